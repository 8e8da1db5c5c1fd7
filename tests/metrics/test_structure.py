"""SSIM, spectrum distance, gain by a shift."""

import math

import numpy as np
import pytest
from conftest import SHAPE
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from petct_lib.metrics import structure, voxelwise


def test_shift_gain_finds_a_shift_and_nothing_else(rng):
    real = gaussian_filter(rng.normal(0, 300, (8, 24, 24)), 1)
    mask = np.ones(real.shape, bool)
    assert structure.shift_gain(real, np.roll(real, (1, 0, -1), (0, 1, 2)), mask) == pytest.approx(100)
    assert structure.shift_gain(real, np.roll(real, 2, 1), mask) < 60, "two voxels, and one is the most"
    assert structure.shift_gain(real, real + 50, mask) < 2, "noise may meet noise"
    assert structure.shift_gain(real, real, mask) == 0
    mask[1:-1, 1:-1, 1:-1] = False
    assert structure.shift_gain(real, np.roll(real, 1, 2), mask) == 0, "nothing but the border"
    assert structure.shift_gain(real[:2], real[1:3], np.ones((2, 24, 24), bool)) == 0


def test_ssim_equals_skimage(pair):
    settings = {"data_range": 4024, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    results = [structural_similarity(r, s, full=True, **settings) for r, s in zip(*pair, strict=True)]
    assert structure.ssim(*pair, data_range=4024) == pytest.approx(np.mean([full for _, full in results]))
    inner = np.zeros(SHAPE, bool)
    inner[:, 5:-5, 5:-5] = True
    assert structure.ssim(*pair, data_range=4024, mask=inner) == pytest.approx(np.mean([mean for mean, _ in results]))


@pytest.mark.parametrize("place", [np.s_[0, :3, :40], np.s_[1:, 20:31, 12:44], np.s_[:, 47:, 60:], np.s_[2, 25, 30]])
def test_ssim_in_the_box_of_a_mask_is_skimages_of_the_whole_slice(rng, place):
    real = gaussian_filter(rng.normal(0, 3000, (3, 50, 61)), (0, 2, 2))
    synthetic = real + rng.normal(0, 100, real.shape)
    mask = np.zeros(real.shape, bool)
    mask[place] = True
    settings = {"data_range": 4024, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(real, synthetic, strict=True)
    full = np.array([structural_similarity(r, s, full=True, **settings)[1] for r, s in pairs])
    assert structure.ssim(real, synthetic, data_range=4024, mask=mask) == pytest.approx(full[mask].mean(), rel=1e-12)


def test_slices_smaller_than_the_window_have_no_ssim():
    assert structure.ssim(*[np.eye(11)[None]] * 2, data_range=1) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"\(10, 30\).*11"):
        structure.ssim(*[np.zeros((1, 10, 30))] * 2, data_range=1)


def test_ssim_of_constant_images_by_hand():
    c1 = (0.01 * 100) ** 2
    expected = (2 * 10 * 30 + c1) / (10**2 + 30**2 + c1)
    assert structure.ssim(np.full(SHAPE, 10.0), np.full(SHAPE, 30.0), data_range=100) == pytest.approx(expected)


def test_ssim_pools_the_voxels_of_all_slices(pair):
    mask = np.zeros(SHAPE, bool)
    mask[0, :1, :10] = True  # 10 voxels
    mask[2, :3, :10] = True  # 30 voxels; slice 1 has none
    first, _, third = (structure.ssim(*(s[i : i + 1] for s in pair), data_range=999, mask=mask[i : i + 1])
                       if mask[i].any() else None for i in range(3))  # fmt: skip
    assert first != pytest.approx(third)
    assert structure.ssim(*pair, data_range=999, mask=mask) == pytest.approx((first + 3 * third) / 4)


# Spectrum


def test_power_of_a_cosine_by_hand():
    n, k = 32, 8
    wave = np.tile(np.cos(2 * np.pi * k * np.arange(n) / n), (n, 1))
    power = structure.radial_power_spectrum(np.stack([wave, np.zeros_like(wave)]))
    # Hann spreads n²/2 (one of two peaks, times 1/4 of the window) over rows 0 and ±1: n²/8 and n²/16 in ring 8
    steps = range(-n // 2, n // 2)
    in_ring = sum(round(math.hypot(y, x)) == k for y in steps for x in steps)
    expected = (2 * (n * n / 8) ** 2 + 4 * (n * n / 16) ** 2) / in_ring / 2  # and 1 of the 2 slices has it
    assert power.shape == (1 + round(n * math.sqrt(0.5)),)
    assert power[k] == pytest.approx(expected)
    assert np.argmax(power) == k
    assert np.delete(power, [k - 1, k, k + 1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 17, 24), (2, 24, 17), (1, 15, 15)])
def test_power_is_that_of_the_whole_plane(rng, shape):
    stack = rng.normal(0, 1, shape)
    window = np.outer(*(np.sin(np.pi * np.arange(n) / n) ** 2 for n in shape[1:]))
    power = (np.abs(np.fft.fft2((stack - stack.mean(axis=(1, 2), keepdims=True)) * window)) ** 2).mean(axis=0)
    ring = np.rint(np.hypot(np.fft.fftfreq(shape[1])[:, None], np.fft.fftfreq(shape[2])) * min(shape[1:])).astype(int)
    expected = [power[ring == r].mean() for r in range(ring.max() + 1)]
    assert structure.radial_power_spectrum(stack) == pytest.approx(np.array(expected), rel=1e-9)


def test_rings_are_cycles_per_voxel_whatever_the_shape():
    down = np.tile(np.cos(0.5 * np.pi * np.arange(32))[:, None], (1, 48))[None]
    across = np.tile(np.cos(0.5 * np.pi * np.arange(48)), (32, 1))[None]
    for stack in (down, across):
        power = structure.radial_power_spectrum(stack)
        assert power.shape == (24,)
        assert np.argmax(power) == 8  # a quarter of a cycle per voxel, half of Nyquist


def test_gain_of_noise_is_the_log_ratio_of_power(rng):
    noise = rng.normal(0, 1, SHAPE)
    assert structure.spectrum_distance(noise, 3 * noise) == pytest.approx(2 * math.log(3))
    other = rng.normal(0, 3, (200, 32, 32))
    assert structure.spectrum_distance(rng.normal(0, 1, other.shape), other) == pytest.approx(2 * math.log(3), rel=0.02)


def test_the_distance_leaves_out_ring_0(pair):
    power = [structure.radial_power_spectrum(stack) for stack in (pair[0], pair[0] * np.hanning(32))]
    ratio = np.log(power[0] / power[1])
    expected = math.sqrt((ratio[1:] ** 2).mean())
    assert expected != pytest.approx(math.sqrt((ratio**2).mean()))
    assert structure.spectrum_distance(pair[0], pair[0] * np.hanning(32)) == pytest.approx(expected)


def test_blur_and_checkerboard_show_and_noise_buys(rng):
    real = gaussian_filter(rng.normal(0, 300, SHAPE), (0, 0.7, 0.7))
    blurred = gaussian_filter(real, (0, 0.7, 0.7))
    blurred_more = gaussian_filter(real, (0, 1.5, 1.5))
    _, y, x = np.indices(SHAPE)
    distances = [structure.spectrum_distance(real, image) for image in (real, blurred, blurred_more)]
    assert distances[0] < 0.5 < distances[1] < distances[2]
    for pattern in (x, y, x + y):  # the last one lies beyond Nyquist, in the corner of the frequency plane
        assert structure.spectrum_distance(real, real + 100 * (-1.0) ** pattern) > 0.5
    noisy = blurred + rng.normal(0, 20, SHAPE)
    assert structure.spectrum_distance(real, noisy) < distances[1]
    assert voxelwise.mae(real, noisy) > voxelwise.mae(real, blurred)


def test_constant_images_have_no_spectrum(pair):
    constant = np.full(SHAPE, 0.1)
    with pytest.raises(ValueError, match="constant"):
        structure.spectrum_distance(constant, pair[0])
    assert 10 < structure.spectrum_distance(pair[0], constant) < -math.log(structure.POWER_FLOOR)
