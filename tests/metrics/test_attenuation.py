"""Errors of attenuation at 511 keV, and the overlap of lungs against shapes made to overlap."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from petct_lib.metrics.attenuation import attenuation_errors, lung_dice

VOXEL_MM = (5.0, 4.0, 4.0)


def test_errors_are_relative_to_the_body():
    real = np.zeros((2, 4, 4))
    body = np.zeros(real.shape, bool)
    body[:, :2] = True
    synthetic = np.where(body, -100.0, 900.0)  # what is outside does not count
    assert attenuation_errors(real, synthetic, body, 120) == pytest.approx({"mu_error": 10.0, "mu_bias": -10.0})
    synthetic[0] = np.where(body[0], 0.0, 5.0)
    assert attenuation_errors(real, synthetic, body, 120) == pytest.approx({"mu_error": 5.0, "mu_bias": -5.0})
    assert attenuation_errors(real, real, body, 120) == {"mu_error": 0, "mu_bias": 0}
    with pytest.raises(ValueError, match="kvp 90"):
        attenuation_errors(real, real, body, 90)
    with pytest.raises(ValueError, match="attenuation is 0"):
        attenuation_errors(real - 1000, real, body, 120)


def chest(centre_x):
    z, y, x = np.mgrid[:30, :80, :80]
    body = ((y - 40) / 30) ** 2 + ((x - 40) / 36) ** 2 < 1
    lung = (z > 4) & (z < 26) & (((y - 40) / 14) ** 2 + ((x - centre_x) / 10) ** 2 < 1)
    return np.where(lung, -850.0, np.where(body, 40.0, -1000.0)), body, lung


def test_dice_of_equal_shifted_and_missing_lungs():
    real, body, lung = chest(30)
    assert lung_dice(real, real, body, VOXEL_MM) == 1
    shifted, _, there = chest(34)
    expected = 2 * (lung & there).sum() / (lung.sum() + there.sum())
    assert lung_dice(real, shifted, body, VOXEL_MM) == pytest.approx(expected, abs=0.02)
    masks = (torch.from_numpy(m)[None, None].float() for m in (lung, there))
    assert expected == pytest.approx(compute_dice(*masks).item())
    wide = [np.pad(a, ((2, 0), (9, 3), (0, 11)), constant_values=fill) for a, fill in ((real, -900.0), (shifted, 50.0))]
    outline = np.pad(body, ((2, 0), (9, 3), (0, 11)))
    result = lung_dice(*wide, outline, VOXEL_MM)
    assert result == lung_dice(real, shifted, body, VOXEL_MM), "what is not body is nothing"
    solid = np.where(body, 40.0, -1000.0)
    assert lung_dice(real, solid, body, VOXEL_MM) == 0
    assert lung_dice(solid, solid, body, VOXEL_MM) is None
