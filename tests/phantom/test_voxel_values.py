"""Labels to HU and SUV: each tissue's own value, texture around it, density in the lung, the couch under the back."""

import numpy as np
import pytest

from petct_lib.phantom import voxel_values
from petct_lib.phantom.benign_uptake import Uptake
from petct_lib.phantom.lesions import Lesion
from petct_lib.phantom.person import Person, draw_person
from petct_lib.phantom.shapes import Canvas
from petct_lib.phantom.tissues import FIRST_LESION, LABEL, LOBES, TISSUES, label_table


@pytest.fixture(scope="module")
def person() -> Person:
    return draw_person(np.random.default_rng(5), "easy", 0.0)


def canvas(person: Person) -> Canvas:
    axes = tuple(np.arange(a, b, s, np.float32) for a, b, s in ((-220, 221, 3), (-150, 200, 3), (-165, 135, 6)))
    axes = tuple(a * k for a, k in zip(axes, person.scale.astype(np.float32), strict=True))
    return Canvas(np.zeros([len(a) for a in axes[::-1]], np.uint8), axes, axes[2].copy(), person.scale)


@pytest.fixture(scope="module")
def painted(person) -> tuple:
    c, values = canvas(person), voxel_values.draw_values(np.random.default_rng(1), person, person.lesions, [])
    return c, values, *voxel_values.paint_values(np.random.default_rng(2), person, c, values, person.lesions, [], True)


def test_every_tissue_has_its_value_with_its_texture(painted):
    c, (hu_of, suv_of), hu, suv, _ = painted
    assert hu.dtype == suv.dtype == np.float32
    for name, tissue in TISSUES.items():
        inside = c.labels == LABEL[name]
        if inside.sum() < 500 or name in LOBES or name == "air":
            continue
        spread = max(0.35 * tissue.hu_texture, 1.0)
        assert hu[inside].mean() == pytest.approx(hu_of[LABEL[name]], abs=spread), name
        assert hu[inside].std() < 1.6 * tissue.hu_texture + 1e-3, name
        assert np.allclose(suv[inside], suv_of[LABEL[name]]), name


def test_air_is_air(painted):
    c, _, hu, suv, _ = painted
    outside = c.labels == LABEL["air"]
    assert np.all(hu[outside] == -1000)
    assert np.all(suv[outside] == 0)


def test_uptake_of_the_lung_follows_its_density(painted):
    c, (hu_of, suv_of), hu, suv, _ = painted
    lung = label_table(*LOBES)[c.labels]
    assert np.corrcoef(hu[lung], suv[lung])[0, 1] > 0.9
    plain = lung & (np.abs(hu - hu_of[LABEL[LOBES[0]]]) < 1)
    assert np.median(suv[plain]) == pytest.approx(suv_of[LABEL[LOBES[0]]], rel=0.03)
    vessels = lung & (hu > -200)
    assert vessels.sum() > 200  # thinner than a voxel, drawn as a share
    assert 0.004 < vessels.sum() / lung.sum() < 0.15


def test_what_moves_is_inside_the_ribs_and_not_bone(painted):
    c, _, _, _, moving = painted
    for name in ("liver", "myocardium", "blood", "left lower lobe", "spleen"):
        assert moving[c.labels == LABEL[name]].mean() > 0.93, name
    for name in ("skin", "cord", "cortex", "couch shell", "air"):
        assert not moving[c.labels == LABEL[name]].any(), name


def test_the_couch_lies_under_the_back(painted):
    c, _, _, _, _ = painted
    middle = c.labels[:, :, 70:78]
    couch = np.argwhere(label_table("couch shell", "couch foam")[middle])
    skin = np.argwhere(middle == LABEL["skin"])
    assert skin[:, 1].max() < couch[:, 1].min() <= skin[:, 1].max() + 4
    assert len(set(couch[:, 0])) == len(c.labels)


def test_without_a_couch_there_is_none(person):
    bare = canvas(person)
    values = voxel_values.draw_values(np.random.default_rng(1), person, [], [])
    voxel_values.paint_values(np.random.default_rng(2), person, bare, values, [], [], False)
    assert not label_table("couch shell", "couch foam")[bare.labels].any()


def test_values_of_lesions_and_of_benign_uptake(person):
    core = {"radius_mm": 5.0, "hu": 11.0, "suv": 0.9}
    lesion = Lesion(FIRST_LESION, "lung", "necrotic", ("CT", "PT"), (0, 0, 0), 10.0, 44.0, 8.5, core, 1)
    hu, suv = voxel_values.draw_values(np.random.default_rng(0), person, [lesion], [Uptake("oesophagus", 3.3, None)])
    assert (hu[FIRST_LESION], suv[FIRST_LESION]) == (44.0, 8.5)
    assert (hu[FIRST_LESION + 1], suv[FIRST_LESION + 1]) == pytest.approx((11.0, 0.9))
    assert suv[LABEL["oesophagus"]] == pytest.approx(3.3)


def test_uptake_of_the_heart_depends_on_fasting(person):
    hearts = np.array([
        voxel_values.draw_values(np.random.default_rng(i), person, [], [])[1][LABEL["myocardium"]] for i in range(300)
    ])  # fmt: skip
    assert 0.35 < np.mean(hearts < 2.6) < 0.55
    assert hearts.min() >= 1.5
    assert hearts.max() <= 9.0


def test_uptake_varies_between_patients_as_stated(person):
    liver = [voxel_values.draw_values(np.random.default_rng(i), person, [], [])[1][LABEL["liver"]] for i in range(300)]
    assert np.median(liver) == pytest.approx(TISSUES["liver"].suv, rel=0.04)
    assert np.std(np.log(liver)) == pytest.approx(TISSUES["liver"].suv_spread, rel=0.2)
