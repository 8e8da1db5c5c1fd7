"""Grown patients drawn at 3 mm: every organ there, as large as in the literature, on its side, in one piece."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from petct_lib.phantom import anatomy
from petct_lib.phantom.anatomy import Anatomy, Build
from petct_lib.phantom.shapes import Canvas, smooth_step
from petct_lib.phantom.tissues import LABEL, LOBES, LUNG, TISSUES, label_table

VOXEL_MM = (3.0, 3.0, 4.0)
ML = float(np.prod(VOXEL_MM)) / 1000
BUILDS = [(sex, arms_up, seed) for sex in "MF" for arms_up in (True, False) for seed in (1, 2)]
# Adults, lying, near the end of expiration; parts of abdominal organs reach out of the field. Each range, in ml, holds
# the published mean ± 2σ or so of what the field shows.
VOLUMES_ML = {
    "lungs": (2500, 6500),  # functional residual capacity 2-3.5 l and the tissue's 0.9 l, up to a deep breath
    "blood": (450, 1100),  # of the heart and the vessels of the chest
    "myocardium": (80, 250),  # of the left ventricle 66-190 g, and the right one's thin wall
    "airway": (25, 120),
    "oesophagus": (8, 60),
    "liver": (1000, 2100),
    "spleen": (40, 350),  # 100-250; the dome of the abdomen takes some of it
    "stomach": (100, 600),
    "kidney": (50, 400),  # their upper parts
    "diaphragm": (100, 400),
    "cord": (15, 60),
    "disc": (25, 120),
    "marrow": (300, 1200),
    "cortex": (250, 1000),
    "cartilage": (30, 200),
    "skin": (400, 1500),
}


def blank(mm: tuple = VOXEL_MM, z_mm: tuple = (-190, 210), way_mm: float = 0.0) -> Canvas:
    """A 500 mm field; way_mm: how far the diaphragm is from the middle of the breath, 0 at the apex."""
    x, y = (np.arange(-249, 250, step, np.float32) for step in mm[:2])
    z = np.arange(*z_mm, mm[2]).astype(np.float32)
    inner = z + way_mm * (1 - smooth_step(z, -50, 80))
    return Canvas(np.zeros((len(z), len(y), len(x)), np.uint8), (x, y, z), inner.astype(np.float32), np.ones(3))


def grow(sex: str, arms_up: bool, seed: int) -> Anatomy:
    build = Build(sex, 22.0 if sex == "F" else 15.0, 0.9 if sex == "F" else 1.0, arms_up)
    return anatomy.grow_anatomy(np.random.default_rng(seed), build)


@cache
def drawn(sex: str, arms_up: bool, seed: int) -> tuple[Anatomy, Canvas]:
    a, c = grow(sex, arms_up, seed), blank()
    anatomy.paint_anatomy(a, c)
    return a, c


@pytest.fixture(params=BUILDS, ids=lambda p: f"{p[0]}-{'up' if p[1] else 'down'}-{p[2]}", scope="module")
def patient(request) -> tuple[Anatomy, Canvas]:
    """An anatomy and its labels: read, never written to."""
    return drawn(*request.param)


@pytest.fixture(scope="module", autouse=True)
def _forget():
    yield
    drawn.cache_clear()


def label_mask(c: Canvas, *names: str) -> np.ndarray:
    return label_table(*names)[c.labels]


def ml(mask: np.ndarray) -> float:
    return float(mask.sum() * ML)


def left_share(c: Canvas, mask: np.ndarray) -> float:
    return float(mask[:, :, c.axes[0] > 0].sum() / mask.sum())


def largest(mask: np.ndarray, corners: bool = False) -> float:
    """The share of a mask that its largest connected piece has."""
    pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)) if corners else None)
    return float(np.bincount(pieces.ravel())[1:].max() / mask.sum())


def touched(mask: np.ndarray, c: Canvas) -> set[str]:
    """The tissues that share a face with a mask."""
    beside = np.unique(c.labels[ndimage.binary_dilation(mask) & ~mask])
    return {name for name, i in LABEL.items() if i in beside}


# Every patient.


def test_every_organ_is_there_in_an_adults_size(patient):
    a, c = patient
    volumes = {"lungs": ml(label_mask(c, *LUNG))} | {name: ml(label_mask(c, name)) for name in TISSUES}
    wrong = {name: round(volumes[name]) for name, (low, high) in VOLUMES_ML.items() if not low < volumes[name] < high}
    assert not wrong
    present = {name for name in TISSUES if volumes[name]}
    drawn_elsewhere = {"thyroid", "couch shell", "couch foam", "brown fat", "active muscle",
                       "reactive node", "inflamed lung", "inflamed joint"}  # fmt: skip
    assert set(TISSUES) - present <= drawn_elsewhere | ({"breast gland"} if a.build.sex == "M" else set())


def test_the_heart_is_an_adults_and_lies_mostly_left(patient):
    a, c = patient
    heart = (c.fine(a.fields["heart"]) < 0) & label_mask(c, "blood", "myocardium")
    assert 330 < ml(heart) < 1100
    assert 0.5 < left_share(c, heart) < 0.8
    middle = [axis[index].mean() for axis, index in zip(c.axes[::-1], np.nonzero(heart), strict=True)]
    assert -60 < middle[0] < 10  # behind the lower sternum
    assert middle[1] < -10  # in front


def test_organs_lie_on_their_side(patient):
    _, c = patient
    assert left_share(c, label_mask(c, "liver")) < 0.25
    assert left_share(c, label_mask(c, "spleen")) > 0.95
    assert left_share(c, label_mask(c, "stomach")) > 0.8
    assert left_share(c, label_mask(c, "myocardium")) > 0.8
    for name in LOBES:
        assert label_mask(c, name)[:, :, c.axes[0] >= 0].any() == name.startswith("left")
        assert label_mask(c, name)[:, :, c.axes[0] < 0].any() == name.startswith("right")


def test_gas_rises_to_the_front_of_stomach_and_bowel(patient):
    _, c = patient
    gas = label_mask(c, "gas")
    assert ml(gas) > 5
    y = {name: c.axes[1][np.nonzero(label_mask(c, name))[1]].mean() for name in ("gas", "stomach")}
    assert y["gas"] < y["stomach"]
    assert touched(gas, c) <= {"stomach", "bowel"} | {"liver", "abdominal fat", "diaphragm", "spleen"}


def test_lungs_are_about_alike_and_have_five_lobes_of_one_piece(patient):
    _, c = patient
    share = left_share(c, label_mask(c, *LUNG))
    assert 0.42 < share < 0.52
    total = ml(label_mask(c, *LUNG))
    for name in LOBES:
        lobe = label_mask(c, name)
        assert largest(lobe) > 0.97
        assert 0.03 < ml(lobe) / total < 0.40
    fissure = label_mask(c, "fissure")
    assert 0.003 < ml(fissure) / total < 0.03
    assert touched(fissure, c) >= {"right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe"}


# Not asked, since it does not hold: right and left lung are apart. Under the heart they meet at x = 0 in every patient.


def test_upper_lobes_lie_above_and_before_lower_ones(patient):
    _, c = patient
    middle = {
        name: [a[i].mean() for a, i in zip(c.axes[::-1], np.nonzero(label_mask(c, name)), strict=True)]
        for name in LOBES
    }
    for side in ("right", "left"):
        assert middle[f"{side} upper lobe"][0] > middle[f"{side} lower lobe"][0] + 30
        assert middle[f"{side} upper lobe"][1] < middle[f"{side} lower lobe"][1]
    assert middle["right upper lobe"][0] > middle["right middle lobe"][0] + 30
    assert middle["right middle lobe"][1] < middle["right lower lobe"][1] - 30  # in front


def test_no_lung_touches_skin_fat_or_the_air_around(patient):
    _, c = patient
    assert not touched(label_mask(c, *LUNG), c) & {"air", "skin", "fat", "gas"}


def test_the_trachea_is_one_tube_from_the_top_to_the_carina_and_splits_in_two(patient):
    _, c = patient
    air, z = label_mask(c, "airway"), c.axes[2]
    assert largest(air, corners=True) > 0.97
    for k in np.flatnonzero(z > 40):
        pieces, count = ndimage.label(air[k])
        if z[k] > 60:  # below, the upper lobes' bronchi rise beside it
            assert count == 1
            assert 100 < (pieces == 1).sum() * 9 < 400  # 15-20 mm wide: 180-310 mm²
    assert air[-1].any()
    carina = next(h for h in z[::-1] if not near_midline(c, air, h))
    assert 0 < carina < 32
    below = air[z < carina]
    assert below[:, :, c.axes[0] < -15].any()
    assert below[:, :, c.axes[0] > 15].any()


def near_midline(c: Canvas, mask: np.ndarray, height: float) -> bool:
    """Whether a slice has some of a mask at the places where the trachea comes down."""
    k = list(c.axes[2]).index(height)
    return bool(mask[k][:, np.abs(c.axes[0] + 1) < 5].any())


def test_the_airway_is_lined_by_its_wall(patient):
    _, c = patient
    air = label_mask(c, "airway")
    beside = ndimage.binary_dilation(air) & ~air
    lined = label_mask(c, "airway wall")[beside].mean()
    assert lined > 0.4  # a wall of 1-2 mm at voxels of 3
    assert "skin" not in touched(air, c)


def test_the_left_ventricle_is_a_shell_around_its_pool(patient):
    a, c = patient
    pool = (c.fine(a.fields["pool"]) < 0) & label_mask(c, "blood")
    assert 40 < ml(pool) < 180  # 50 ml at the end of systole, 150 ml of diastole
    assert touched(pool, c) <= {"myocardium", "blood"}  # blood: the valves' planes
    beside = ndimage.binary_dilation(pool) & ~pool
    assert label_mask(c, "myocardium")[beside].mean() > 0.75


def test_the_body_is_one_piece_without_holes(patient):
    _, c = patient
    body = c.labels != LABEL["air"]
    assert largest(body) == 1
    around, _ = ndimage.label(np.pad(~body, ((0, 0), (1, 1), (1, 1)), constant_values=True))
    assert np.bincount(around.ravel())[1:].max() > 0.9999 * (around > 0).sum()  # an armpit may be cut off by a voxel
    assert around.shape[0] == len(c.axes[2])


def test_the_body_is_wrapped_in_skin(patient):
    _, c = patient
    body = c.labels != LABEL["air"]
    rim = body & ~ndimage.binary_erosion(body, np.ones((1, 3, 3)), border_value=1)
    outside = np.zeros(256, bool)
    outside[[LABEL[n] for n in ("muscle", "liver", *LUNG, "marrow", "airway")]] = True
    assert outside[c.labels[rim]].mean() < 0.02
    assert label_mask(c, "skin")[rim].mean() > 0.3  # 1.8 mm at voxels of 3; the rest is the fat under it


def test_the_trunk_has_an_adults_girth(patient):
    _, c = patient
    body = c.labels[np.argmin(np.abs(c.axes[2] + 60))] != LABEL["air"]
    trunk = body & (np.abs(c.axes[0]) < 175)
    wide, deep = (np.ptp(np.flatnonzero(trunk.any(axis=n))) * 3 for n in (0, 1))
    assert 280 < wide <= 350
    assert 190 < deep < 330


def test_breasts_are_womens(patient):
    a, c = patient
    gland = label_mask(c, "breast gland")
    if a.build.sex == "M":
        assert not gland.any()
        return
    assert 60 < ml(gland) < 600
    assert 0.35 < left_share(c, gland) < 0.65
    assert c.axes[1][np.nonzero(gland)[1]].mean() < -80  # in front
    assert c.axes[1][np.nonzero(gland)[1]].max() < -40


def test_the_humerus_is_beside_the_chest_only_when_the_arms_are_down(patient):
    a, c = patient
    beside = (np.abs(c.axes[0]) > 170)[None, None, :] & label_mask(c, "marrow")
    at_chest, above = (beside[np.argmin(np.abs(c.axes[2] - h))] for h in (0, 170))
    down = not a.build.arms_up
    assert at_chest.any() == down
    assert above.any() == a.build.arms_up
    for mask in (at_chest if down else above,):
        assert mask[:, c.axes[0] < 0].any()
        assert mask[:, c.axes[0] > 0].any()


def test_the_aorta_runs_beside_the_spine(patient):
    _, c = patient
    k = np.argmin(np.abs(c.axes[2] + 20))
    x, y = c.axes[:2]
    behind = label_mask(c, "blood")[k] & ((y > 8) & (y < 48))[:, None] & ((x > 5) & (x < 60))[None]
    pieces, _ = ndimage.label(behind)
    area = np.bincount(pieces.ravel())[1:].max() * 9
    assert 200 < area < 900  # 18-32 mm wide with atrium or oesophagus apart


# All of them.


def test_the_same_seed_gives_the_same_patient_and_another_another():
    _, first = drawn("F", True, 1)
    again = blank()
    anatomy.paint_anatomy(grow("F", True, 1), again)
    assert np.array_equal(first.labels, again.labels)
    assert (first.labels != drawn("F", True, 2)[1].labels).mean() > 0.01


def test_drawing_in_slabs_gives_the_same_patient():
    a, whole = drawn("F", False, 2)
    cut = blank()
    for k in range(0, len(cut.labels), 8):
        anatomy.paint_anatomy(a, cut.part(slice(k, k + 8)))
    assert (cut.labels != whole.labels).sum() <= 5  # float32 at a surface
    assert cut.labels.any()


def test_more_fat_and_muscle_make_more_of_them():
    def volumes(fat_mm: float, muscle: float) -> list[float]:
        a, c = anatomy.grow_anatomy(np.random.default_rng(1), Build("M", fat_mm, muscle, True)), blank()
        anatomy.paint_anatomy(a, c)
        return [ml(label_mask(c, name)) for name in ("fat", "muscle")]

    fat, muscle = volumes(12, 1.0)
    assert volumes(28, 1.0)[0] > 1.4 * fat
    assert volumes(12, 1.3)[1] > 1.1 * muscle


def test_the_right_lung_is_the_larger_one_on_average():
    shares = [left_share(drawn(*b)[1], label_mask(drawn(*b)[1], *LUNG)) for b in BUILDS if b[1]]
    assert np.mean(shares) < 0.5


def test_breathing_moves_the_liver_and_leaves_bones_and_skin():
    a, still, moved = (
        drawn("M", True, 1)[0],
        blank((3.0, 3.0, 1.0), (-150, -20)),
        blank((3.0, 3.0, 1.0), (-150, -20), way_mm=-10.0),
    )
    for c in (still, moved):
        anatomy.paint_anatomy(a, c)
    top, higher = (c.axes[2][np.nonzero(label_mask(c, "liver"))[0].max()] for c in (still, moved))
    assert higher - top == pytest.approx(10, abs=1.5)
    assert label_mask(moved, *LUNG).sum() < label_mask(still, *LUNG).sum()
    for name in ("skin", "cortex", "marrow", "endplate", "disc", "cartilage", "cord", "air"):
        assert np.array_equal(label_mask(still, name), label_mask(moved, name)), name
    outside = still.fine(a.fields["wall"], inner=False) > 1  # muscle, fat and arms stay too
    assert outside.any()
    assert np.array_equal(still.labels[outside], moved.labels[outside])


def test_breathing_leaves_the_apex():
    a, still, moved = drawn("M", True, 1)[0], blank(z_mm=(80, 160)), blank(z_mm=(80, 160), way_mm=-10.0)
    for c in (still, moved):
        anatomy.paint_anatomy(a, c)
    assert label_mask(still, *LUNG).any()
    assert np.array_equal(still.labels, moved.labels)


def test_the_lungs_are_two(patient):
    c = patient[1]
    pieces, _ = ndimage.label(label_mask(c, *LUNG))
    sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1]
    assert sizes[1] > 0.6 * sizes[0]
    assert sizes[2:].sum() < 0.02 * sizes.sum()
