"""The words for both directions belong together."""

from petct_lib.imaging.directions import DIRECTIONS, MODALITY, SOURCE, TARGET, UNIT


def test_what_is_source_in_one_direction_is_target_in_the_other():
    assert set(SOURCE) == set(TARGET) == set(DIRECTIONS)
    a, b = DIRECTIONS
    assert (SOURCE[a], TARGET[a]) == (TARGET[b], SOURCE[b])
    assert all(f"{SOURCE[d]}2{TARGET[d]}" == d for d in DIRECTIONS)


def test_units_and_modalities_are_those_of_dicom_and_of_scores():
    assert UNIT == {"pet": "SUV", "ct": "HU"}
    assert MODALITY == {"pet": "PT", "ct": "CT"}
