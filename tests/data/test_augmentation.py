"""Augmentation by known values: what moves, by how much, and what never changes."""

import math

import numpy as np
import pytest
import torch

from petct_lib import InputError
from petct_lib.data.augmentation import crop, draw_shift, shift_image


def image(height=5, width=5):
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, height, width)).astype(np.float32))


def test_without_a_shift_nothing_changes():
    assert draw_shift(0, np.random.default_rng(0)) == (0, 0)
    x = image()
    assert torch.equal(shift_image(x, (0, 0)), x)


def test_shift_moves_whole_pixels_and_air_comes_in():
    x = image()
    y = shift_image(x, (1, -2))
    assert torch.equal(y[:, 1:, :3], x[:, :-1, 2:])
    assert (y[:, 0] == -1).all()
    assert (y[:, :, 3:] == -1).all()


@pytest.mark.parametrize("far", [5, 6, 100])
def test_what_is_moved_out_of_the_image_leaves_air(far):
    for shift in ((far, 0), (-far, 0), (0, far), (0, -far)):
        assert torch.equal(shift_image(image(), shift), torch.full((2, 5, 5), -1.0))


def test_shifts_reach_the_limit_and_the_generator_alone_decides():
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    drawn = [draw_shift(2, rng) for _ in range(300)]
    assert {down for down, _ in drawn} == {right for _, right in drawn} == {-2, -1, 0, 1, 2}
    assert drawn == [draw_shift(2, again) for _ in range(300)]


@pytest.mark.parametrize("limit", [-1, 2.5, math.nan])
def test_a_limit_that_is_no_whole_number_of_pixels_is_refused(limit):
    with pytest.raises(InputError, match=f"shift {limit} must be whole pixels"):
        draw_shift(limit, np.random.default_rng(0))


@pytest.mark.parametrize(("chance", "at"), [(0.0, (2, 3)), (0.5, (4, 4)), (0.999, (7, 0))])
def test_a_crop_is_around_a_pixel_that_is_above_the_mean_or_as_near_as_the_edge_allows(chance, at):
    body, other = torch.full((1, 8, 8), -1.0), torch.arange(128.0).view(2, 8, 8)
    for row, column in ((2, 3), (4, 4), (7, 0)):
        body[0, row, column] = 1.0
    out = crop({"body": body, "other": other}, 4, "body", chance)
    top, left = (min(max(k - 2, 0), 4) for k in at)
    assert torch.equal(out["other"], other[:, top : top + 4, left : left + 4])
    assert torch.equal(out["body"], body[:, top : top + 4, left : left + 4])


def test_a_crop_of_air_or_of_the_whole_image_is_one_and_a_larger_one_is_refused():
    air = {"x": torch.full((1, 8, 8), -1.0)}
    assert crop(air, 4, "x", 0.9)["x"].shape == (1, 4, 4)
    assert torch.equal(crop({"x": image()}, 5, "x", 0.3)["x"], image())
    with pytest.raises(ValueError, match=r"crop 9: the slices have \(8, 8\) pixels"):
        crop(air, 9, "x", 0.0)
