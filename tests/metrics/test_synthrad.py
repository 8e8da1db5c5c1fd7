"""SynthRAD2025's scores against an independent, slow writing-out of its published definition, voxel by voxel."""

import numpy as np
import pytest

from petct_lib.metrics import synthrad, voxelwise
from petct_lib.metrics.synthrad import RANGE_HU, ms_ssim, score_synthrad


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:20, :40, :36]
    real = np.where((y - 20) ** 2 + (x - 18) ** 2 < 200, 40.0 + 300 * np.sin(x / 3) * np.cos(y / 4 + z / 5), -1000.0)
    mask = (y - 20) ** 2 + (x - 18) ** 2 < 250
    return real, real + rng.normal(0, 80, real.shape), mask


def slow_ms_ssim(real, synthetic, mask, low, high):
    """By the definition: loops over scales and windows, plain means and np.cov; a few windows drawn at random."""
    volumes = []
    for image in (real, synthetic):
        image = np.clip(image, low, high)
        image[~mask] = low
        volumes.append(image - low)
    kept = mask
    for axis, n in enumerate(mask.shape):
        before = max(97 - n, 0) // 2
        after = max(97 - n - before, 0)
        width = [(0, 0)] * 3
        width[axis] = (before, after)
        volumes = [np.pad(v, width, mode="edge") for v in volumes]
        kept = np.pad(kept, width, mode="edge")
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    result = 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        centres = [c for c in np.argwhere(kept) if all(3 <= c[a] < kept.shape[a] - 3 for a in range(3))]
        values = []
        for i, j, k in centres:
            a, b = (v[i - 3 : i + 4, j - 3 : j + 4, k - 3 : k + 4].ravel() for v in volumes)
            ((vx, cov), (_, vy)) = np.cov(a, b)
            s = np.sqrt(vx) * np.sqrt(vy)
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            parts = luminance, (2 * s + c2) / (vx + vy + c2), (cov + c2 / 2) / (s + c2 / 2)
            values.append(np.prod([max(p, 0.0) ** weight for p in parts]))
        result *= np.clip(np.mean(values), 0, 1)
        halves = []
        for v in volumes:
            before = np.pad(v, ((1, 0),) * 3)  # half of a voxel at the border is nothing
            total = sum(before[a : a + v.shape[0], b : b + v.shape[1], c : c + v.shape[2]]
                        for a in (0, 1) for b in (0, 1) for c in (0, 1))  # fmt: skip
            halves.append((total / 8)[::2, ::2, ::2])
        volumes, kept = halves, kept[::2, ::2, ::2]
    return result


@pytest.mark.slow
def test_ms_ssim_equals_its_definition_written_out(pair):
    real, synthetic, mask = (stack[:8, 10:30, 8:30] for stack in pair)
    mask = mask & (np.arange(22) < 12)
    expected = slow_ms_ssim(real, synthetic, mask, *RANGE_HU)
    assert 0.5 < expected < 0.99
    assert ms_ssim(real, synthetic, mask, clip=RANGE_HU) == pytest.approx(expected, abs=1e-7)


def test_room_around_the_mask_changes_nothing(pair):
    real, synthetic, mask = pair
    values = []
    for before, after in ((48, 49), (64, 90)):  # multiples of 16: the halvings meet the same voxels
        room = (0, 0), (before, after), (before, after)
        wide = (np.pad(a, room, constant_values=before) for a in (real, synthetic))
        values.append(ms_ssim(*wide, np.pad(mask, room), clip=RANGE_HU))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_mae_and_psnr_by_the_protocol(pair):
    real, synthetic, mask = pair
    synthetic = np.where(mask, real + 50, 9999.0)
    real[8, 20, 18], synthetic[8, 20, 18] = 4000.0, 3500.0  # metal, beyond the range: MAE counts it, PSNR does not
    results_found = score_synthrad(real, synthetic, mask)
    n = mask.sum()
    assert results_found["mae"] == pytest.approx((50 * (n - 1) + 500) / n)
    assert results_found["psnr"] == pytest.approx(10 * np.log10(4095**2 / (2500 * (n - 1) / n)))
    assert results_found["mae"] == voxelwise.mae(real, synthetic, mask)


def test_identical_volumes_and_what_is_outside_the_mask(pair):
    real, synthetic, mask = pair
    assert ms_ssim(real, real, mask, clip=RANGE_HU) == pytest.approx(1.0)
    elsewhere = np.where(mask, synthetic, 2000.0)
    assert ms_ssim(real, elsewhere, mask, clip=RANGE_HU) == ms_ssim(real, synthetic, mask, clip=RANGE_HU)


def test_more_noise_is_less_similar(pair):
    real, synthetic, mask = pair
    values = [ms_ssim(real, real + k * (synthetic - real), mask, clip=RANGE_HU) for k in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)


def test_a_mask_that_vanishes_at_a_coarse_scale_has_no_ms_ssim(pair):
    real, synthetic, mask = pair
    corner = np.zeros_like(mask)
    corner[0, 0, 0] = True
    assert np.isnan(ms_ssim(real, synthetic, corner, clip=RANGE_HU))


def test_guards(pair):
    real, synthetic, mask = pair
    for bad in ((real[:-1], synthetic, mask), (real, synthetic, np.zeros_like(mask)), (real, synthetic, mask * 1.0)):
        with pytest.raises(ValueError, match=r"must|mask"):
            score_synthrad(*bad)
    with pytest.raises(ValueError, match="clip"):
        ms_ssim(real, synthetic, mask, clip=(1.0, 1.0))
    assert synthrad.MIN_SIDE == (synthrad.WINDOW - 1) * 2**4 + 1
