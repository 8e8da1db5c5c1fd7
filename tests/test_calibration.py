"""Uncertainty against error: maps whose calibration is known by hand."""

import math

import numpy as np
import pytest

from petct_lib.calibration import calibration_error, deciles, rank_correlation, scale_to_fit

SHAPE = (2, 5, 10)  # 100 voxels
ALL = np.ones(SHAPE, bool)
RISING = np.arange(1.0, 101).reshape(SHAPE)


def test_rank_correlation_sees_the_order_and_nothing_else():
    assert rank_correlation(RISING, RISING**3, ALL) == pytest.approx(1)
    assert rank_correlation(RISING, 1 / RISING, ALL) == pytest.approx(-1)
    predicted, error = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 4, 3])
    assert rank_correlation(predicted, error, np.ones(4, bool)) == pytest.approx(1 - 6 * 4 / (4 * 15))  # Spearman 1904


def test_rank_correlation_of_a_constant_is_none():
    assert rank_correlation(np.ones(SHAPE), RISING, ALL) is None
    assert rank_correlation(RISING, np.ones(SHAPE), ALL) is None


def test_deciles_by_hand():
    pairs = deciles(RISING[::-1], 2 * RISING[::-1], ALL)  # whatever the order of the voxels
    means = [10 * k + 5.5 for k in range(10)]
    assert pairs == [(pytest.approx(mean), pytest.approx(2 * mean)) for mean in means]


def test_groups_are_equal_and_ties_stay_in_order():
    error = np.array([1.0, 2, 3, 4, 5])
    mask = np.ones(5, bool)
    assert deciles(np.full(5, 7.0), error, mask, groups=2) == [(7.0, 2.0), (7.0, 4.5)]  # 3 voxels and 2
    assert deciles(np.array([2.0, 1, 2, 1, 2]), error, mask, groups=2) == [(pytest.approx(4 / 3), pytest.approx(7 / 3)),
                                                                           (2.0, 4.0)]  # fmt: skip
    assert deciles(error, error, mask, groups=1) == [(3.0, 3.0)]


def test_calibration_error_by_hand():
    assert calibration_error(RISING, RISING, ALL) == 0
    assert calibration_error(2 * RISING, RISING, ALL) == pytest.approx(1)  # each decile is off by its own mean error
    assert calibration_error(np.zeros(SHAPE), RISING, ALL) == pytest.approx(1)
    assert calibration_error(RISING + 10, RISING, ALL) == pytest.approx(10 / 50.5)


def test_a_constant_map_is_off_by_the_deciles_it_does_not_tell_apart():
    mean = float(RISING.mean())
    assert calibration_error(np.full(SHAPE, mean), RISING, ALL) == pytest.approx(25 / mean)  # |5.5 + 10 k − 50.5|: 25
    shuffled = np.random.default_rng(0).permutation(np.tile(RISING.ravel(), 100))
    everywhere = np.ones(shuffled.shape, bool)
    assert calibration_error(np.full(shuffled.shape, mean), shuffled, everywhere) < 0.05


def test_errors_drawn_from_what_was_predicted_are_calibrated():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(1, 3, 50000)
    error = np.abs(rng.laplace(0, predicted))
    mask = np.ones(predicted.shape, bool)
    assert calibration_error(predicted, error, mask) < 0.03
    assert calibration_error(0.5 * predicted, error, mask) == pytest.approx(0.5, abs=0.03)
    assert scale_to_fit(0.5 * predicted, error, mask) == pytest.approx(2, rel=0.02)


def test_the_scale_makes_the_means_equal():
    predicted, error, mask = np.array([1.0, 2, 5]), np.array([4.0, 4, 8]), np.ones(3, bool)
    assert scale_to_fit(predicted, error, mask) == 2  # 16 / 8
    assert (scale_to_fit(predicted, error, mask) * predicted).mean() == error.mean()
    assert scale_to_fit(predicted, 0 * error, mask) == 0


def test_a_prediction_near_0_does_not_throw_the_scale():
    predicted, error = np.ones(100), np.ones(100)
    predicted[0] = 1e-12
    assert scale_to_fit(predicted, error, np.ones(100, bool)) == pytest.approx(1, rel=0.02)


SCORES = [rank_correlation, deciles, calibration_error, scale_to_fit]


@pytest.mark.parametrize("score", SCORES)
def test_only_the_mask_counts(score):
    mask = np.zeros(SHAPE, bool)
    mask[0] = True
    other = np.where(mask, RISING, 1e6)
    assert score(other, np.where(mask, RISING**2, 0), mask) == score(RISING[0], RISING[0] ** 2, ALL[0])


@pytest.mark.parametrize("score", SCORES)
def test_what_cannot_be_compared_is_an_error(score):
    with pytest.raises(ValueError, match=r"\(2, 5, 10\).*\(1, 5, 10\)"):
        score(RISING, RISING[:1], ALL)
    with pytest.raises(ValueError, match=r"mask \(1, 5, 10\)"):
        score(RISING, RISING, ALL[:1])
    with pytest.raises(ValueError, match="uint8"):
        score(RISING, RISING, ALL.astype(np.uint8))
    with pytest.raises(ValueError, match="0 of 100"):
        score(RISING, RISING, ~ALL)
    for wrong in (math.nan, math.inf, -1.0):
        bad = RISING.copy()
        bad[0, 0, 0] = wrong
        with pytest.raises(ValueError, match="predicted has 1 values of 100"):
            score(bad, RISING, ALL)
        with pytest.raises(ValueError, match="error has 1 values of 100"):
            score(RISING, bad, ALL)


def test_what_has_no_answer_is_an_error():
    with pytest.raises(ValueError, match="predicted is 0"):
        scale_to_fit(0 * RISING, RISING, ALL)
    with pytest.raises(ValueError, match="error is 0"):
        calibration_error(RISING, 0 * RISING, ALL)
    with pytest.raises(ValueError, match="9 voxels cannot make 10 groups"):
        calibration_error(RISING[0, 0, :9], RISING[0, 0, :9], ALL[0, 0, :9])
    with pytest.raises(ValueError, match="0 groups"):
        deciles(RISING, RISING, ALL, groups=0)
