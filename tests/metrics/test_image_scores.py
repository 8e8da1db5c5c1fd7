"""All scores of one patient's images, and of a region."""

import numpy as np
import pytest
from conftest import SHAPE

from petct_lib.metrics import image_scores, structure, voxelwise

CLIP_HU = (-1024.0, 3000.0)


# One patient


def score_body(real, synthetic, mask, **changes):
    settings = {"unit": "HU", "clip": CLIP_HU, "source": "HU threshold"} | changes
    rows = image_scores.score_body(real, synthetic, mask, **settings)
    assert {row["region"] for row in rows} == {"body"}
    assert all(set(row) == {"region", "metric", "value", "unit", "mask"} for row in rows)
    return {row["metric"]: row["value"] for row in rows}, {row["metric"]: row["unit"] for row in rows}


def largest_difference(real, synthetic):
    """Stands in for LPIPS: whole slices in, one number out."""
    return float(np.abs(real - synthetic).max())


def test_scores_of_a_patient(pair, left):
    real, synthetic = (np.clip(stack, *CLIP_HU) for stack in pair)
    values, units = score_body(*pair, left)
    assert units == {
        "mae": "HU",
        "me": "HU",
        "mean": "HU",
        "mse": "HU^2",
        "rmse": "HU",
        "psnr": "dB",
        "ssim": "1",
        "spectrum": "1",
    }
    assert values["mae"] == pytest.approx(voxelwise.mae(real, synthetic, left), rel=1e-12)
    assert values["me"] == pytest.approx(voxelwise.mean_error(real, synthetic, left), rel=1e-12)
    assert values["mean"] == pytest.approx(synthetic[left].mean())
    assert values["mse"] == pytest.approx(voxelwise.mse(real, synthetic, left), rel=1e-12)
    assert values["rmse"] == pytest.approx(voxelwise.rmse(real, synthetic, left), rel=1e-12)
    assert values["psnr"] == pytest.approx(voxelwise.psnr(real, synthetic, data_range=4024, mask=left), rel=1e-12)
    assert values["ssim"] == structure.ssim(real, synthetic, data_range=4024, mask=left)
    body = [np.where(left, stack, -1024) for stack in (real, synthetic)]
    assert values["spectrum"] == structure.spectrum_distance(*body)
    values, units = score_body(*pair, left, lpips=largest_difference)
    assert values["lpips"] == largest_difference(*body)
    assert units["lpips"] == "1"


def test_both_stacks_are_clipped(left):
    values, _ = score_body(np.where(left, 2900.0, 9000.0) + np.eye(32), np.full(SHAPE, 9000.0), left)
    assert values["mae"] == pytest.approx(100 - 16 / 512)  # to 3000, not to 9000; the eye has 16 of 512 voxels


def test_air_couch_and_empty_slices_do_not_count(pair, left):
    real, synthetic = pair
    left[:, :, 10:] = False
    settings = {"lpips": lambda a, b: float(np.mean(a - b))}
    before, _ = score_body(real, synthetic, left, **settings)
    changed = np.where(left, synthetic, 0.0)
    after, _ = score_body(real, changed, left, **settings)
    assert {k: v for k, v in after.items() if k != "ssim"} == {k: v for k, v in before.items() if k != "ssim"}
    longer, _ = score_body(*(np.concatenate([stack, stack]) for stack in pair),
                           np.concatenate([left, np.zeros_like(left)]), **settings)  # fmt: skip
    assert longer == before


def test_guards_of_a_patient(pair, left):
    real, synthetic = pair
    with pytest.raises(ValueError, match="no mask"):
        score_body(real, synthetic, None)
    with pytest.raises(ValueError, match="clip"):
        score_body(real, synthetic, left, clip=(3000, -1024))
    synthetic[0, 0, 0] = np.inf  # clipping must not hide it
    with pytest.raises(ValueError, match="synthetic has 1 non-finite"):
        score_body(real, synthetic, left)


# Regions


def test_a_region_has_the_scores_that_are_sums_over_voxels(pair, left):
    settings = {"unit": "HU", "clip": CLIP_HU, "source": "SEG"}
    rows = image_scores.score_region(*pair, left, region="bone", **settings)
    body = {row["metric"]: row for row in image_scores.score_body(*pair, left, **settings)}
    assert [row["metric"] for row in rows] == ["mae", "me", "mean", "mse", "rmse", "psnr"]
    assert all(row == {**body[row["metric"]], "region": "bone"} for row in rows)
    assert image_scores.score_region(*pair, np.zeros_like(left), region="bone", **settings) == []
