"""Slices among their neighbours."""

import pytest
import torch

from petct_lib.imaging.slices import center_slice, evenly_spaced, neighbour_indices


@pytest.mark.parametrize(
    ("k", "neighbours", "expected"),
    [(4, 1, [4]), (4, 3, [3, 4, 5]), (0, 3, [0, 0, 1]), (9, 5, [7, 8, 9, 9, 9]), (0, 5, [0, 0, 0, 1, 2])],
)
def test_neighbours_beyond_the_ends_are_the_first_and_the_last(k, neighbours, expected):
    assert neighbour_indices(k, slices=10, neighbours=neighbours) == expected


def test_the_middle_of_five_is_the_third_and_its_neighbours():
    images = torch.arange(5.0).reshape(1, 5, 1, 1).expand(2, 5, 4, 4)
    assert center_slice(images).shape == (2, 1, 4, 4)
    assert center_slice(images).unique().tolist() == [2.0]
    assert center_slice(images, 3)[0, :, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(center_slice(images, 5), images)


@pytest.mark.parametrize(
    ("n", "count", "ends", "expected"),
    [
        (9, 3, True, [0, 4, 8]), (9, 3, False, [2, 4, 6]), (5, 24, True, [0, 1, 2, 3, 4]), (3, 8, False, [0, 1, 2]),
        (1, 4, True, [0]), (1, 4, False, [0]),
    ],
)  # fmt: skip
def test_some_slices_are_evenly_spaced_and_each_once(n, count, ends, expected):
    assert evenly_spaced(n, count, ends=ends).tolist() == expected
