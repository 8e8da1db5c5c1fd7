"""Slices of a stack: neighbours, the middle one, some evenly spaced."""

import numpy as np
from torch import Tensor


def neighbour_indices(k: int, slices: int, neighbours: int) -> list[int]:
    """Numbers of the slices around slice k of a study, the study's first and last repeated beyond its ends.

    >>> neighbour_indices(0, slices=10, neighbours=5)
    [0, 0, 0, 1, 2]
    """
    half = neighbours // 2
    return [min(max(j, 0), slices - 1) for j in range(k - half, k + half + 1)]


def center_slice(images: Tensor, neighbours: int = 1) -> Tensor:
    """The slice itself, (n, 1, H, W), of slices among their neighbours, (n, more, H, W); or it among fewer of them."""
    first = (images.shape[1] - neighbours) // 2
    return images[:, first : first + neighbours]


def evenly_spaced(slices: int, count: int, *, ends: bool) -> np.ndarray:
    """Numbers of up to `count` slices of a stack, evenly spaced, each once.

    ends: from the first to the last; else both ends are as far away as the slices are from each other.

    >>> evenly_spaced(100, 3, ends=True).tolist(), evenly_spaced(100, 3, ends=False).tolist()
    ([0, 50, 99], [25, 50, 74])
    """
    numbers = np.linspace(0, slices - 1, count if ends else count + 2).round().astype(int)
    return np.unique(numbers if ends else numbers[1:-1])
