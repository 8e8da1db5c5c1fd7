"""Scores: each formula against numbers known by hand, skimage or scipy, and each guard made to speak."""

import math

import numpy as np
import pytest
import torch
from conftest import SHAPE
from monai.metrics import MAEMetric, MSEMetric, PSNRMetric, RMSEMetric
from skimage.metrics import peak_signal_noise_ratio

from petct_lib.metrics import structure, voxelwise

# Errors between voxels


def test_identical_images_are_perfect(pair):
    real, _ = pair
    assert voxelwise.mae(real, real) == voxelwise.mse(real, real) == voxelwise.rmse(real, real) == 0
    assert voxelwise.psnr(real, real, data_range=4024) == math.inf
    assert structure.ssim(real, real, data_range=4024) == pytest.approx(1)
    assert structure.spectrum_distance(real, real) == 0


def test_a_shift_by_a_constant(pair):
    real, _ = pair
    assert voxelwise.mae(real, real - 2) == pytest.approx(2)
    assert voxelwise.mean_error(real, real - 2) == pytest.approx(-2)
    assert voxelwise.mse(real, real - 2) == pytest.approx(4)
    assert voxelwise.rmse(real, real - 2) == pytest.approx(2)
    assert voxelwise.psnr(real, real - 2, data_range=20) == pytest.approx(20)  # 10 log10(400 / 4)
    assert structure.spectrum_distance(real, real - 2) == pytest.approx(0, abs=1e-9)


def test_a_scaled_image():
    real = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    assert voxelwise.mae(real, 3 * real) == pytest.approx(5)  # 2 (1 + 2 + 3 + 4) / 4
    assert voxelwise.mse(real, 3 * real) == pytest.approx(30)  # 4 (1 + 4 + 9 + 16) / 4


def test_one_voxel_counts_by_the_size_of_the_mask(left):
    real, synthetic = np.zeros(SHAPE), np.zeros(SHAPE)
    synthetic[1, 5, 5] = 10
    assert voxelwise.mae(real, synthetic) == pytest.approx(10 / 3072)
    assert voxelwise.mae(real, synthetic, left) == pytest.approx(10 / 1536)
    assert voxelwise.mse(real, synthetic, left) == pytest.approx(100 / 1536)
    assert voxelwise.psnr(real, synthetic, data_range=100, mask=left) == pytest.approx(10 * math.log10(100 * 1536))
    assert voxelwise.mae(real, synthetic, ~left) == 0
    assert voxelwise.psnr(real, synthetic, data_range=100, mask=~left) == math.inf


def test_psnr_equals_skimage(pair):
    expected = peak_signal_noise_ratio(*pair, data_range=4024)
    assert voxelwise.psnr(*pair, data_range=4024) == pytest.approx(expected)


def test_the_data_range_is_never_guessed(pair):
    for score in (voxelwise.psnr, structure.ssim):
        with pytest.raises(TypeError, match="data_range"):
            score(*pair)
        for wrong in (0, -1, math.nan, math.inf):
            with pytest.raises(ValueError, match="data_range"):
                score(*pair, data_range=wrong)


ALL = [
    voxelwise.mae,
    voxelwise.mse,
    voxelwise.rmse,
    lambda *a: voxelwise.psnr(*a[:2], data_range=1, mask=a[2] if len(a) > 2 else None),
    lambda *a: structure.ssim(*a[:2], data_range=1, mask=a[2] if len(a) > 2 else None),
]


@pytest.mark.parametrize("score", ALL)
def test_what_cannot_be_compared_is_an_error(score):
    real = np.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(2, 32, 32\)"):
        score(real, real[:2])
    with pytest.raises(ValueError, match=r"\(32, 32\)"):
        score(real[0], real[0])
    with pytest.raises(ValueError, match="0 of 3072"):
        score(real, real, np.zeros(SHAPE, bool))
    with pytest.raises(ValueError, match="uint8"):
        score(real, real, np.ones(SHAPE, np.uint8))
    with pytest.raises(ValueError, match=r"mask \(2, 32, 32\)"):
        score(real, real, np.ones((2, 32, 32), bool))
    broken = real.copy()
    broken[0, 0, :2] = np.nan, np.inf
    with pytest.raises(ValueError, match="synthetic has 2 non-finite"):
        score(real, broken)
    with pytest.raises(ValueError, match="real has 2 non-finite"):
        score(broken, real)


def test_errors_and_psnr_equal_monais(pair):
    real, synthetic = pair
    batch = [torch.from_numpy(np.asarray(a, np.float64))[None, None] for a in (synthetic, real)]
    assert voxelwise.mae(*pair) == pytest.approx(MAEMetric()(*batch).item(), rel=1e-6)
    assert voxelwise.mse(*pair) == pytest.approx(MSEMetric()(*batch).item(), rel=1e-6)
    assert voxelwise.rmse(*pair) == pytest.approx(RMSEMetric()(*batch).item(), rel=1e-6)
    assert voxelwise.psnr(*pair, data_range=4024) == pytest.approx(PSNRMetric(max_val=4024)(*batch).item(), rel=1e-6)


def test_masked_errors_equal_monais_on_what_the_mask_holds(pair):
    mask = np.random.default_rng(3).random(pair[0].shape) < 0.3
    batch = [torch.from_numpy(np.asarray(a[mask], np.float64))[None, None] for a in pair[::-1]]
    assert voxelwise.mae(*pair, mask) == pytest.approx(MAEMetric()(*batch).item(), rel=1e-6)
    assert voxelwise.psnr(*pair, data_range=999, mask=mask) == pytest.approx(
        PSNRMetric(max_val=999)(*batch).item(), rel=1e-6
    )
