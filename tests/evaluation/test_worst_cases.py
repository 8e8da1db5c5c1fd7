"""The worst is found where it was put."""

from dataclasses import replace

import numpy as np
import pytest

from petct_lib.evaluation.cases import Case
from petct_lib.evaluation.worst_cases import worst_inventions, worst_misses, worst_slices


def case_of(patient, *, errors=(), lesion=None, real=None, mean=None):
    real = np.ones((20, 16, 16)) if real is None else real
    mean = real.copy() if mean is None else mean
    for k, error in errors:
        mean[k] += error
    body = np.ones(real.shape, bool)
    masks = {"body": body} if lesion is None else {"body": body, "lesion": lesion}
    sources = dict.fromkeys(masks, "SEG")
    source = np.full(real.shape, float(ord(patient)))
    images = {"cyclegan": real, "regression": real - 1, "mean": mean}
    return Case(patient, source, real, masks, sources, images, spread=mean - real, voxel_mm=(5.0, 5.0, 5.0))


def test_the_worst_slices_of_all_patients_come_first_and_apart():
    cases = [case_of("a", errors=[(4, 2.0), (5, 1.9), (12, 0.5)]), case_of("b", errors=[(9, 1.0)])]
    rows = worst_slices(cases, 3)
    assert [np.abs(row["mean"] - row["real"]).mean() for row in rows] == pytest.approx([2.0, 1.0, 0.5])
    assert [chr(int(row["source"][0, 0])) for row in rows] == ["a", "b", "a"]
    assert all(np.array_equal(row["spread"], row["mean"] - row["real"]) for row in rows), "all of one slice"
    assert list(rows[0]) == ["source", "coarse", "regression", "mean", "spread", "real"]
    assert worst_slices(cases, 1, "regression")[0]["spread"].max() == 0, "of the method asked for"
    assert worst_slices([case_of("a")], 3) == []


def test_slices_with_hardly_any_body_do_not_count():
    case = case_of("a", errors=[(0, 50.0), (8, 1.0)])
    case.body[0] = False
    case.body[0, 0, 0] = True
    [row] = worst_slices([case], 1)
    assert np.abs(row["mean"] - row["real"]).mean() == 1


def test_a_lesion_that_goes_on_in_the_next_study_is_two():
    lesion, real = np.zeros((20, 16, 16), bool), np.ones((20, 16, 16))
    lesion[9:11, 4, 4], real[9, 4, 4], real[10, 4, 4] = True, 8, 6
    case = replace(case_of("a", real=real, mean=np.ones(real.shape), lesion=lesion), lengths=(10, 10))
    assert [row["real"].max() for row in worst_misses([case], 5)] == [8, 6]


def test_misses_and_inventions():
    real, lesion = np.ones((20, 16, 16)), np.zeros((20, 16, 16), bool)
    real[3, 4, 4], real[10, 8, 8], lesion[3, 4, 4], lesion[10, 8, 8] = 9, 12, True, True
    mean = real.copy()
    mean[3, 4, 4], mean[10, 8, 8] = 8, 2  # the second loses most
    mean[15:17, 1:4, 1:4] = 7  # 2.25 ml that the real image knows nothing of
    case = case_of("a", real=real, mean=mean, lesion=lesion)
    misses = worst_misses([case_of("b"), case], 5)
    assert [row["real"].max() for row in misses] == [12, 9]
    assert [row["place"] for row in misses] == [(8, 8), (4, 4)]
    [invention] = worst_inventions([case_of("b"), case], 5)
    assert (invention["mean"].max(), invention["real"].max()) == (7, 1)
    assert invention["place"] == (1, 1)
    assert worst_misses([case_of("b")], 5) == worst_inventions([case_of("b")], 5) == []
