"""Augmentation of training slices: what a thorax and a scanner could have been, and nothing they could not."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from petct_lib import InputError


@dataclass(frozen=True)
class Augmentation:
    """By how much training slices are changed at random. All off by default; InputError for an amount out of range."""

    shift: int = 0  # moved by up to so many whole pixels, without interpolation
    rotate_deg: float = 0.0  # turned by up to so many degrees about the image's middle
    scale: float = 0.0  # size changed by up to this share: 0.1 gives factors from 0.9 to 1.1
    flip: bool = False  # left and right mirrored, half of the time; off: heart and liver have their sides
    suv_scale: float = 0.0  # SUV times 1/(1 + x) to 1 + x, log-uniform: errors of dose and weight; HU are absolute

    def __post_init__(self) -> None:
        for name, end in (("shift", math.inf), ("rotate_deg", math.inf), ("scale", 1), ("suv_scale", math.inf)):
            value = getattr(self, name)
            if not 0 <= value < end:  # NaN is neither
                raise InputError(f"augmentation: {name} {value} must be at least 0 and below {end}; 0 leaves it out")
        if self.shift % 1:
            raise InputError(
                f"augmentation: shift {self.shift} must be whole pixels, so that it needs no interpolation"
            )


@dataclass(frozen=True)
class Change:
    """One drawn change: down by dy and right by dx pixels, turned, magnified, mirrored; SUV times a factor."""

    dy: int = 0
    dx: int = 0
    angle_deg: float = 0.0  # counter-clockwise on the screen
    zoom: float = 1.0  # above 1: larger
    flip: bool = False
    suv_factor: float = 1.0


def draw_change(settings: Augmentation, rng: np.random.Generator) -> Change:
    """A change within the settings. A shift takes numbers from `rng` only where it is on, all else also where off."""
    dy, dx = rng.integers(-settings.shift, settings.shift + 1, size=2).tolist()
    turn, zoom, mirror, suv = rng.uniform(-1, 1, size=4).tolist()
    factor = math.exp(suv * math.log1p(settings.suv_scale))
    return Change(
        dy, dx, turn * settings.rotate_deg, 1 + zoom * settings.scale, settings.flip and mirror < 0, factor
    )  # fmt: skip


def apply_change(image: Tensor, change: Change) -> Tensor:
    """(C, H, W) in [−1, 1]: mirrored, turned and magnified about its middle, then moved; −1 (air) comes in at the edge.

    Only turning and magnifying interpolate (bilinearly); without them every pixel keeps its value. SUV is not touched.
    """
    if change.flip:
        image = image.flip(-1)
    if change.angle_deg or change.zoom != 1:
        image = _turn(image, change.angle_deg, change.zoom)
    return _shift(image, change.dy, change.dx)


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


def _turn(image: Tensor, angle_deg: float, zoom: float) -> Tensor:
    height, width = image.shape[-2:]
    c, s = math.cos(math.radians(angle_deg)) / zoom, math.sin(math.radians(angle_deg)) / zoom
    # affine_grid asks where each output pixel comes from, in halves of the image's own width and height
    matrix = torch.tensor([[c, -s * height / width, 0.0], [s * width / height, c, 0.0]])
    grid = F.affine_grid(matrix[None].to(image), (1, *image.shape), align_corners=False)
    return F.grid_sample(image[None] + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0] - 1


def _shift(image: Tensor, dy: int, dx: int) -> Tensor:
    if dy == 0 and dx == 0:
        return image
    out = torch.full_like(image, -1.0)
    height, width = image.shape[-2:]
    dy, dx = max(-height, min(dy, height)), max(-width, min(dx, width))  # farther is as empty
    out[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        :, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out
