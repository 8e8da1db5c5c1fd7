"""Lesions kept, weakened, missed and invented, painted by hand."""

import numpy as np
import pytest

from petct_lib.metrics.lesion_scores import (
    HOT_SUV,
    PEAK_MM,
    UNITS,
    ball_shares,
    count_invented_regions,
    overlap,
    score_lesions,
    suv_peak,
)

SHAPE = (12, 24, 24)
VOXEL_MM = (3.0, 4.0, 4.0)  # 0.048 ml: 0.5 ml takes 11 voxels
BODY = np.ones(SHAPE, bool)
FIRST, SECOND = np.s_[2:5, 4:7, 4:7], np.s_[7:10, 15:18, 15:18]  # 27 voxels, 1.3 ml, far apart


def background():
    return np.ones(SHAPE)


def two_lesions():
    """A PET of SUV 1 with lesions of SUV 8, one voxel of 10 in each, and their mask."""
    real, lesion = background(), np.zeros(SHAPE, bool)
    for box in (FIRST, SECOND):
        real[box], lesion[box] = 8, True
    real[3, 5, 5] = real[8, 16, 16] = 10
    return real, lesion


def score(real, synthetic, lesion, body=BODY):
    return score_lesions([(real, synthetic, lesion, body)], VOXEL_MM)


def test_lesions_that_are_kept():
    real, lesion = two_lesions()
    expected = {"lesions": 2, "suvmax_error": 0, "suvmean_error": 0, "suvpeak_error": 0, "missed": 0, "invented": 0}
    assert score(real, real, lesion) == expected | {"overlap": 1}
    assert set(score(real, real, lesion)) == set(UNITS)


def test_a_lesion_that_is_halved_is_not_missed_and_one_below_is():
    real, lesion = two_lesions()
    synthetic = real.copy()
    synthetic[FIRST] /= 2  # maximum 5 of 10: not below 50 %
    scores = score(real, synthetic, lesion)
    mean = (26 * 8 + 10) / 27
    assert scores["suvmax_error"] == pytest.approx(5 / 2)  # the other lesion has no error
    assert scores["suvmean_error"] == pytest.approx(mean / 2 / 2)
    assert (scores["missed"], scores["invented"]) == (0, 0)
    synthetic[FIRST] *= 0.99
    assert score(real, synthetic, lesion)["missed"] == 1


def test_a_lesion_that_is_gone():
    real, lesion = two_lesions()
    synthetic = real.copy()
    synthetic[FIRST] = 1
    scores = score(real, synthetic, lesion)
    assert (scores["lesions"], scores["missed"], scores["invented"]) == (2, 1, 0)
    assert scores["suvmax_error"] == pytest.approx(9 / 2)


def test_errors_are_means_of_sizes_and_do_not_cancel():
    real, lesion = two_lesions()
    synthetic = real.copy()
    synthetic[FIRST] += 1
    synthetic[SECOND] -= 3
    scores = score(real, synthetic, lesion)
    assert scores["suvmax_error"] == pytest.approx(2)
    assert scores["suvmean_error"] == pytest.approx(2)


def test_lesions_that_touch_at_a_corner_are_one():
    lesion = np.zeros(SHAPE, bool)
    lesion[2, 4, 4] = lesion[3, 5, 5] = lesion[3, 5, 7] = True
    assert score(background(), background(), lesion)["lesions"] == 2


def test_an_invented_lesion_without_a_real_one():
    synthetic = background()
    synthetic[FIRST] = 8
    none = np.zeros(SHAPE, bool)
    assert score(background(), synthetic, none) == {"lesions": 0, "missed": 0, "invented": 1}
    synthetic[SECOND] = HOT_SUV
    assert score(background(), synthetic, none)["invented"] == 2


def test_physiological_uptake_of_both_is_not_invented():
    real, synthetic = background(), background()
    real[FIRST] = 6
    synthetic[FIRST] = 11.9  # the real one is above half of it
    assert count_invented_regions(real, synthetic, BODY, VOXEL_MM) == 0
    synthetic[FIRST] = 12
    assert count_invented_regions(real, synthetic, BODY, VOXEL_MM) == 1


@pytest.mark.parametrize(("voxels", "invented"), [(0, 0), (1, 0), (2, 1)])
def test_uptake_that_moved_by_a_voxel_is_not_invented(voxels, invented):
    real, synthetic = background(), background()
    real[5, 5:8, 5:15] = 8
    synthetic[5, 7 + voxels : 10 + voxels, 5:15] = 8  # its first row: the last of the real one, and then further
    assert count_invented_regions(real, synthetic, BODY, VOXEL_MM) == invented


def test_what_is_cool_small_or_outside_the_body_is_not_invented():
    synthetic = background()
    synthetic[FIRST] = HOT_SUV - 0.01
    assert count_invented_regions(background(), synthetic, BODY, VOXEL_MM) == 0
    synthetic[FIRST] = 8
    assert count_invented_regions(background(), synthetic, BODY, (1.0, 1.0, 1.0)) == 0  # 0.027 ml
    body = BODY.copy()
    body[FIRST] = False
    assert count_invented_regions(background(), synthetic, body, VOXEL_MM) == 0


@pytest.mark.parametrize(("voxels", "invented"), [(9, 0), (10, 1)])
def test_half_a_millilitre_is_enough(voxels, invented):
    synthetic = background()
    synthetic[0, 0, :voxels] = 8  # at the edge of the stack, which has no room around it
    assert count_invented_regions(background(), synthetic, BODY, (2.0, 5.0, 5.0)) == invented  # 0.05 ml a voxel


def test_what_cannot_be_scored_is_an_error():
    real, lesion = two_lesions()
    with pytest.raises(ValueError, match="one shape"):
        score(real, real[1:], lesion)
    with pytest.raises(ValueError, match="empty mask"):
        score(real, real, lesion, ~BODY)
    with pytest.raises(ValueError, match=r"lesion \(11, 24, 24\)"):
        score(real, real, lesion[1:])
    with pytest.raises(ValueError, match="must be bool"):
        score(real, real, lesion.astype(np.uint8))
    with pytest.raises(ValueError, match="non-finite"):
        score(real, real * np.nan, lesion)
    for wrong in ((1.0, 1.0), (0.0, 1.0, 1.0), (1.0, np.nan, 1.0)):
        with pytest.raises(ValueError, match="voxel_mm"):
            score_lesions([(real, real, lesion, BODY)], wrong)


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), VOXEL_MM, (5.0, 7.0, 7.0), (10.0, 7.0, 7.0), (8.0, 8.0, 8.0)])
def test_a_ball_has_its_volume_on_every_grid(voxel_mm):
    shares = ball_shares(PEAK_MM, voxel_mm)
    assert shares.sum() * np.prod(voxel_mm) == pytest.approx(4 / 3 * np.pi * PEAK_MM**3, rel=0.05)  # 1 ml
    assert np.array_equal(shares, shares[::-1, ::-1, ::-1])
    assert shares.max() <= 1


def test_the_peak_is_the_mean_of_a_ball_and_not_the_maximum():
    suv = background()
    suv[6, 12, 12] = 11
    share = ball_shares(PEAK_MM, VOXEL_MM)
    expected = 1 + 10 * share.max() / share.sum()
    assert suv_peak(suv, suv > 5, share) == pytest.approx(expected)
    assert 1.3 < expected < 2, "a voxel of 0.048 ml in a ball of 1 ml"
    real, lesion = two_lesions()
    synthetic = real.copy()
    synthetic[SECOND] = 1
    peak = suv_peak(real, lesion & (real == 10), share)
    assert score(real, synthetic, lesion)["suvpeak_error"] == pytest.approx((peak - 1) / 2)


def test_a_lesion_that_is_not_hot_has_no_overlap():
    real, lesion = two_lesions()
    real[FIRST] = 1.2  # seen on CT alone: 41 % of it is everywhere
    scores = score(real, real, lesion)
    assert scores["overlap"] == 1, "the second's alone"
    real[SECOND] = 1.2
    assert "overlap" not in score(real, real, lesion)


def test_the_peak_at_the_border_is_the_mean_of_what_is_there():
    suv = np.full((3, 3, 3), 5.0)
    assert suv_peak(suv, suv > 0, np.ones((3, 3, 3))) == pytest.approx(5.0)


def test_overlap_of_a_moved_lesion():
    real, lesion = two_lesions()
    synthetic = background()
    synthetic[3:6, 4:7, 4:7] = 9  # the first, one slice higher; the second is gone
    assert score(real, synthetic, lesion)["overlap"] == pytest.approx((2 * 18 / 54 + 0) / 2)
    everywhere = np.full(SHAPE, 20.0)  # within 10 mm of the lesion all is painted
    around = np.zeros(SHAPE, bool)
    around[1:6, 3:8, 3:8] = True
    assert overlap(real, everywhere, around, 4.1) == pytest.approx(2 * 27 / (27 + 125))
    assert overlap(real, background(), around, 4.1) == 0


def test_studies_are_pooled_lesion_by_lesion_and_one_without_a_mask_counts_inventions_alone():
    real, lesion = two_lesions()
    one = np.zeros(SHAPE, bool)
    one[FIRST] = True
    gone = background()
    result = score_lesions([(real, real, lesion, BODY), (real, gone, one, BODY)], VOXEL_MM)
    assert (result["lesions"], result["missed"]) == (3, 1)
    assert result["suvmax_error"] == pytest.approx(9 / 3), "of three lesions, not of two studies"
    assert score_lesions([(gone, real, None, BODY)], VOXEL_MM) == {"invented": 2}
