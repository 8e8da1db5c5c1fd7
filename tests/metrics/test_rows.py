"""What a row of scores must have."""

import pytest

from petct_lib.metrics.rows import KEY_COLUMNS, SCORE_COLUMNS, check_rows

ROW = dict(zip(SCORE_COLUMNS, ("pet2ct", "mean", "p0", "body", "mae", 50.0, "HU", "SEG"), strict=True))


def test_rows_of_other_scores_are_accepted():
    check_rows([ROW, {**ROW, "patient": "p1"}, {**ROW, "direction": "ct2pet", "unit": "SUV"}])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({**ROW, "value": 51.0, "mask": "HU threshold"}, "repeated score.*p0"),
        ({**ROW, "patient": "p1", "unit": "SUV"}, "in HU and in SUV"),
        ({**ROW, "patient": "p1", "unit": None}, "a row has"),
        ({key: value for key, value in ROW.items() if key != "mask"}, "a row has"),
    ],
)
def test_a_second_row_that_contradicts_is_refused(second, message):
    with pytest.raises(ValueError, match=message):
        check_rows([ROW, second])


def test_the_key_is_all_but_value_unit_and_mask():
    assert set(SCORE_COLUMNS) - set(KEY_COLUMNS) == {"value", "unit", "mask"}
