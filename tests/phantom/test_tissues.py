"""The table of tissues: labels that do not collide, and values as the literature has them."""

import numpy as np
import pytest

from petct_lib.phantom.tissues import FIRST_LESION, LABEL, LOBES, LUNG, TISSUES, label_table


def test_labels_are_unique_start_at_air_and_leave_room_for_lesions():
    assert LABEL["air"] == 0
    assert sorted(LABEL.values()) == list(range(len(TISSUES)))
    assert max(LABEL.values()) < FIRST_LESION
    assert FIRST_LESION + 2 * 20 < 256  # two labels a lesion fit into a byte


def test_the_lung_is_five_lobes_and_the_fissures():
    assert len(LOBES) == 5
    assert sum(name.startswith("right") for name in LOBES) == 3
    assert set(LUNG) == {*LOBES, "fissure"}


def test_among_marks_the_named_labels_only():
    table = label_table("liver", "air")
    assert table.shape == (256,)
    assert table.dtype == bool
    assert set(np.flatnonzero(table)) == {LABEL["liver"], LABEL["air"]}
    assert not label_table().any()


def test_among_refuses_an_unknown_name():
    with pytest.raises(KeyError, match="livre"):
        label_table("livre")


@pytest.mark.parametrize("name", TISSUES)
def test_values_are_physical(name):
    tissue = TISSUES[name]
    assert -1000 <= tissue.hu <= 1500
    assert 0 <= tissue.suv <= 10
    assert 0 <= tissue.hu_texture <= 100
    assert 0 <= tissue.suv_spread <= 0.5
    assert 0 <= tissue.hu_spread <= 100


def test_density_rises_from_air_to_cortex():
    order = ("air", "right upper lobe", "fissure", "fat", "disc", "marrow", "endplate", "cortex")
    hu = [TISSUES[name].hu for name in order]
    assert hu == sorted(hu)
    assert len(set(hu)) == len(hu)
    watery = ("muscle", "blood", "liver", "spleen", "kidney", "cord", "myocardium", "skin", "oesophagus", "stomach")
    assert all(TISSUES["fat"].hu < TISSUES[name].hu < TISSUES["marrow"].hu for name in watery)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("right lower lobe", -900, -700), ("fat", -120, -80), ("muscle", 35, 70), ("liver", 45, 70), ("blood", 30, 55),
     ("cortex", 500, 1500), ("marrow", 100, 300)],
)  # fmt: skip
def test_hounsfield_units_of_known_tissues(name, low, high):
    assert low <= TISSUES[name].hu <= high


def test_the_liver_takes_up_more_than_blood_and_blood_more_than_muscle_and_lung():
    suv = {name: TISSUES[name].suv for name in ("liver", "blood", "muscle", "right upper lobe", "fat")}
    assert suv["liver"] > suv["blood"] > suv["muscle"] > suv["right upper lobe"] > suv["fat"] > 0
    assert 1.5 < suv["liver"] < 3.5  # PERCIST's reference organ
    assert 1.0 < suv["blood"] < 2.5


def test_all_lobes_share_one_set_of_values():
    assert len({TISSUES[name] for name in LOBES}) == 1


def test_only_air_and_the_couch_take_nothing_up():
    assert {name for name, tissue in TISSUES.items() if tissue.suv == 0} == {"air", "couch shell", "couch foam"}
