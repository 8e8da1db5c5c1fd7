"""The mistakes do what they are shown for: they flatter."""

import numpy as np
import pytest

from petct_lib.metrics import voxelwise
from petct_lib.teaching import pitfalls

RNG = np.random.default_rng(0)


def patients(n=6, slices=8):
    """Slices that differ little within a patient, and PET that does not know the CT."""
    base = RNG.normal(size=(2, n, 1, 6, 6))
    images = base + 0.05 * RNG.normal(size=(2, n, slices, 6, 6))
    return images.reshape(2, n * slices, 6, 6), np.repeat(np.arange(n), slices)


def test_the_nearest_slice_is_copied():
    source, target = RNG.normal(size=(5, 4, 4)), RNG.normal(size=(5, 4, 4))
    order = [3, 0, 0, 4]
    assert np.array_equal(pitfalls.copy_nearest(source, target, source[order] + 1e-3), target[order])


def test_a_split_by_slice_rewards_memory_and_one_by_patient_does_not():
    (source, target), patient = patients()
    mask = np.ones(source.shape, bool)
    by_slice = pitfalls.memory_mae(source, target, mask, np.arange(len(source)) % 4 == 0)
    by_patient = pitfalls.memory_mae(source, target, mask, patient < 2)
    assert by_slice < 0.1 < 0.5 < by_patient


def test_an_own_range_makes_two_scans_of_one_error_differ():
    real, mask = np.linspace(-1000, 500, 27).reshape(3, 3, 3), np.ones((3, 3, 3), bool)
    with_metal = real.copy()
    with_metal[0, 0, 0] = 3000
    a, b = (pitfalls.own_range_psnr(image, image + 50, mask) for image in (real, with_metal))
    assert a == pytest.approx(20 * np.log10(1500 / 50))
    assert b == pytest.approx(20 * np.log10(4000 / 50) - 0, abs=0.3)
    fixed = [voxelwise.psnr(image, image + 50, data_range=4024) for image in (real, with_metal)]
    assert fixed[0] == pytest.approx(fixed[1])
