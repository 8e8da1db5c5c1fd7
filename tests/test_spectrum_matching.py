"""Gains against spectra known by construction, and what the filter must leave alone."""

import numpy as np
import pytest
from scipy import ndimage

from petct_lib import metrics
from petct_lib.spectrum_matching import GAIN_LIMIT, fit_gains, matched


def noise(seed: int, n: int = 40, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, size, size))


def test_a_blur_is_undone_on_images_that_the_gains_were_not_fitted_on():
    blurred = [ndimage.gaussian_filter(noise(seed), (0, 0.4, 0.4)) for seed in (0, 1, 2)]
    gains = fit_gains([noise(3), noise(4)], blurred[:2])
    made = matched(blurred[2], gains)
    before, after = (metrics.spectrum_distance(noise(2), image) for image in (blurred[2], made))
    assert after < 0.1 * before
    assert np.abs(made - noise(2)).mean() < np.abs(blurred[2] - noise(2)).mean(), "here it is an inverse filter"


def test_gains_are_the_ratio_of_amplitudes_by_frequency():
    y, x = np.mgrid[:64, :64]
    coarse, fine = np.cos(2 * np.pi * 4 * x / 64), np.cos(2 * np.pi * 20 * y / 64)
    gains = fit_gains([0.2 * (coarse + fine)[None]], [(0.2 * coarse + 0.1 * fine)[None]])
    assert gains[4] == pytest.approx(1, abs=1e-3)
    assert gains[20] == pytest.approx(2, abs=1e-3)
    assert gains[0] == 1
    assert matched((0.2 * coarse + 0.1 * fine)[None], gains) == pytest.approx(0.2 * (coarse + fine)[None], abs=2e-3)


def test_the_geometric_mean_over_patients_counts():
    loud, quiet = noise(0), noise(0) / 4
    assert fit_gains([loud, quiet], [loud, loud])[1:] == pytest.approx(1 / 2)
    assert fit_gains([loud], [loud, quiet])[1:] == pytest.approx(2)


def test_gains_are_limited_and_leave_mean_shape_and_type():
    flat = noise(0) * 1e-9
    gains = fit_gains([noise(1)], [flat])
    assert gains[1:].tolist() == [GAIN_LIMIT] * (len(gains) - 1)
    image = (noise(2, 3) / 8 + 0.25).astype(np.float32)
    made = matched(image, gains)
    assert (made.dtype, made.shape) == (image.dtype, image.shape)
    assert made.mean(axis=(1, 2)) == pytest.approx(image.mean(axis=(1, 2)), abs=1e-5)
    assert np.abs(matched(noise(0), gains)).max() <= 1, "the networks' range"
    assert matched(image, np.ones(len(gains))) == pytest.approx(image, abs=1e-6)


def test_slices_that_are_not_square_and_gains_of_another_size():
    wide = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 16, 24))
    assert matched(wide, fit_gains([wide], [wide])) == pytest.approx(wide)
    with pytest.raises(ValueError, match="16×24"):
        matched(wide, np.ones(5))
