"""Cosine spectra of images that are known by hand, and the filter that goes with them."""

import math

import numpy as np
import pytest
import torch

from petct_lib.imaging.spectrum import BANDS, filter_bands, spectrum


def noise(n=64, height=32, width=32, seed=0):
    return torch.randn(n, 1, height, width, generator=torch.Generator().manual_seed(seed))


def test_white_noise_has_its_standard_deviation_in_every_band():
    assert spectrum(0.7 * noise(256)) == pytest.approx([0.7] * BANDS, rel=0.05)


@pytest.mark.parametrize("k", [0, 8, 24])
def test_a_cosine_is_in_the_band_of_its_frequency_alone(k):
    x = torch.arange(32) + 0.5
    image = torch.cos(math.pi * k * x / 32).expand(1, 1, 32, 32)
    bands = np.array(spectrum(image))
    assert bands.argmax() == k // 2, "32 frequencies in 16 bands"
    assert bands[bands.argmax()] > 1e4 * np.delete(bands, k // 2).max()


def test_small_images_take_what_their_neighbours_have():
    bands = spectrum(noise(2000, 4, 4))
    assert bands == pytest.approx([1.0] * BANDS, rel=0.1)


@pytest.mark.parametrize("gains", [(2.0,), (3.0, 0.5), tuple(np.geomspace(1, 0.01, BANDS))])
def test_a_filter_is_undone_by_its_inverse(gains):
    images = noise(4, 24, 40)
    assert torch.allclose(filter_bands(filter_bands(images, gains), [1 / g for g in gains]), images, atol=1e-4)


def test_no_gain_may_be_zero():
    with pytest.raises(ValueError, match="gains must be above 0"):
        filter_bands(noise(1), [1.0, 0.0])


def test_one_gain_is_a_factor():
    assert torch.allclose(filter_bands(noise(2), [0.3]), 0.3 * noise(2), atol=1e-6)


def test_filtered_noise_has_the_spectrum_asked_for_at_every_size():
    gains = tuple(np.geomspace(1, 0.1, BANDS))
    for size in (32, 64):
        assert spectrum(filter_bands(noise(64, size, size), gains)) == pytest.approx(gains, rel=0.08)


def test_it_keeps_its_digits_where_networks_compute_in_bf16():
    images, gains = noise(2), [2.0, 0.1]
    expected = filter_bands(images, gains), spectrum(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert (images @ images).dtype == torch.bfloat16
        assert torch.equal(filter_bands(images, gains), expected[0])
        assert spectrum(images) == expected[1]
