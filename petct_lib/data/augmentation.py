"""Augmentation of training slices: shifts by whole pixels, and crops around the patient. Nothing is interpolated."""

import numpy as np
import torch
from torch import Tensor

from petct_lib import InputError

Shift = tuple[int, int]  # down and right, in pixels


def draw_shift(limit: int, rng: np.random.Generator) -> Shift:
    """A shift by up to `limit` pixels along each axis. InputError for a limit that is no whole number from 0 up."""
    if limit < 0 or limit % 1:
        raise InputError(f"shift {limit} must be whole pixels, 0 or more: slices are moved without interpolation")
    down, right = rng.integers(-limit, limit + 1, size=2).tolist()
    return down, right


def shift_image(image: Tensor, shift: Shift) -> Tensor:
    """(C, H, W) in [−1, 1], moved; −1 (air) comes in at the edge."""
    if shift == (0, 0):
        return image
    out = torch.full_like(image, -1.0)
    height, width = image.shape[-2:]
    dy, dx = (max(-n, min(d, n)) for d, n in zip(shift, (height, width), strict=True))  # farther is as empty
    out[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        :, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


def crop(images: dict[str, Tensor], size: int, by: str, chance: float) -> dict[str, Tensor]:
    """Squares of `size` pixels of aligned images (C, H, W), around a pixel where images[by] is above its mean.

    So they show the patient and not the air; which pixel, `chance` in [0, 1) decides. ValueError for a larger square
    than the images.
    """
    image = images[by][0]
    if size > min(image.shape):
        raise ValueError(f"crop {size}: the slices have {tuple(image.shape)} pixels")
    places = torch.nonzero(image >= image.mean())
    row, column = places[int(chance * len(places))].tolist()
    top, left = (min(max(at - size // 2, 0), n - size) for at, n in zip((row, column), image.shape, strict=True))
    return {name: stack[:, top : top + size, left : left + size] for name, stack in images.items()}
