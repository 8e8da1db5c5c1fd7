"""Realism: images that can and cannot be distinguished, and changes along z known by hand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from petct_lib.metrics.realism import coherence, two_sample_accuracy

SIZE = 32


def textures(seed, patients=4, slices=12, sigma=0.7):
    """Stacks (slices, 32, 32) of smoothed noise of SD 0.3 around a mean of each patient's own, whatever the seed."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (patients, slices, SIZE, SIZE))
    smooth = gaussian_filter(noise, (0, 0, sigma, sigma))
    stacks = 0.3 * smooth / smooth.std() + np.linspace(-0.3, 0.3, patients)[:, None, None, None]
    return list(stacks.clip(-1, 1).astype(np.float32))


def test_images_of_one_kind_cannot_be_told_apart():
    assert two_sample_accuracy(textures(0), textures(1), seed=0) == pytest.approx(0.5, abs=0.1)


def test_an_image_is_not_told_from_itself():
    real = textures(0, slices=3)
    assert two_sample_accuracy(real, real, seed=0, epochs=2) == 0.5  # of each pair one is told right


def test_blurred_images_are_told():
    real = textures(0)
    blurred = [gaussian_filter(stack, (0, 0.7, 0.7)) for stack in real]
    assert two_sample_accuracy(real, blurred, seed=0) > 0.9


def test_a_checkerboard_is_told():
    real = textures(0)
    board = 0.1 * (-1.0) ** np.indices((SIZE, SIZE)).sum(axis=0)
    assert two_sample_accuracy(real, [stack + board for stack in real], seed=0) > 0.9


def test_slices_larger_than_a_square_are_covered_and_the_background_around_them_is_not_seen():
    real, synthetic = ([np.tile(stack, (1, 3, 3)) for stack in textures(s, slices=4)] for s in (0, 1))
    values = {"seed": 0, "epochs": 2}
    accuracy = two_sample_accuracy(real, synthetic, **values)
    padded = [[np.pad(stack, ((0, 0), (9, 20), (30, 5)), constant_values=-1) for stack in one]
              for one in (real, synthetic)]  # fmt: skip
    assert two_sample_accuracy(*padded, **values) == accuracy


def test_one_seed_one_answer_and_the_global_state_is_left():
    real, synthetic = textures(0, slices=4), textures(1, slices=4, sigma=0.8)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = two_sample_accuracy(real, synthetic, seed=3, epochs=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()  # noqa: NPY002
    torch.rand(5)
    assert two_sample_accuracy(real, synthetic, seed=3, epochs=3) == first


def test_patients_may_have_unequal_numbers_of_slices_and_count_alike():
    real, synthetic = ([stack[: 1 + k] for k, stack in enumerate(textures(s, patients=3))] for s in (0, 1))
    accuracy = two_sample_accuracy(real, synthetic, seed=0, epochs=1, slices=2)
    assert (12 * accuracy) % 1 == pytest.approx(0, abs=1e-5)  # (a / 2 + b / 4 + c / 4) / 3


def test_stacks_that_cannot_be_compared_are_refused():
    real = textures(0, patients=2, slices=3)
    for wrong in (real[:1], [*real, real[0]]):
        with pytest.raises(ValueError, match=f"2 real and {len(wrong)} synthetic"):
            two_sample_accuracy(real, wrong, seed=0)
    with pytest.raises(ValueError, match="2 patients or more"):
        two_sample_accuracy(real[:1], real[:1], seed=0)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(2, 32, 32\)"):
        two_sample_accuracy(real, [real[0], real[1][:2]], seed=0)
    with pytest.raises(ValueError, match="one size"):
        two_sample_accuracy(*[[real[0], real[1][:, :16]]] * 2, seed=0)
    with pytest.raises(ValueError, match="synthetic has 3072 non-finite"):
        two_sample_accuracy(real, [real[0], real[1] * np.nan], seed=0)
    with pytest.raises(ValueError, match="slices"):
        two_sample_accuracy(real, real, seed=0, slices=0)


# Coherence along z

RAMP = np.arange(4.0)[:, None, None] * np.ones((1, 3, 3))  # each slice 1 above the last
ALL = np.ones(RAMP.shape, bool)


def test_coherence_by_hand():
    assert coherence(RAMP, RAMP, ALL) == 1
    assert coherence(RAMP, 3 * RAMP + 7, ALL) == pytest.approx(3)
    assert coherence(RAMP, np.full(RAMP.shape, 5.0), ALL) == 0
    noise = np.random.default_rng(0).normal(0, 2, RAMP.shape)
    assert coherence(RAMP, RAMP + noise, ALL) > 1


def test_coherence_counts_voxels_that_are_in_the_mask_in_both_slices():
    mask = np.zeros(RAMP.shape, bool)
    mask[:2, 0, 0] = mask[2:, 1, 1] = True
    synthetic = 2 * RAMP
    synthetic[2:, 0, 0] = 99  # out of the mask
    assert coherence(RAMP, synthetic, mask) == pytest.approx(2)


def test_coherence_does_not_cross_studies():
    synthetic = RAMP.copy()
    synthetic[2:] += 100
    assert coherence(RAMP, synthetic, ALL) == pytest.approx((1 + 101 + 1) / 3)
    assert coherence(RAMP, synthetic, ALL, lengths=[2, 2]) == pytest.approx(1)
    assert coherence(RAMP, synthetic, ALL, lengths=[1, 3]) == pytest.approx((101 + 1) / 2)


def test_coherence_of_what_has_no_neighbours_is_an_error():
    with pytest.raises(ValueError, match="neighbouring"):
        coherence(RAMP[:1], RAMP[:1], ALL[:1])
    with pytest.raises(ValueError, match="neighbouring"):
        coherence(RAMP, RAMP, ALL, lengths=[1, 1, 1, 1])
    apart = ALL.copy()
    apart[1::2] = False
    with pytest.raises(ValueError, match="neighbouring"):
        coherence(RAMP, RAMP, apart)
    with pytest.raises(ValueError, match="constant along z"):
        coherence(0 * RAMP, RAMP, ALL)
    with pytest.raises(ValueError, match="one shape"):
        coherence(RAMP, RAMP[1:], ALL)
    for wrong in ([3], [4, 0], [5, -1], []):
        with pytest.raises(ValueError, match="4 slices together"):
            coherence(RAMP, RAMP, ALL, lengths=wrong)
