"""Augmentation by known values: what moves, by how much, and what never changes."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from petct_lib import InputError
from petct_lib.data.augmentation import Augmentation, Change, apply_change, crop, draw_change


def image(height=5, width=5):
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, height, width)).astype(np.float32))


def test_nothing_asked_nothing_changed():
    assert draw_change(Augmentation(), np.random.default_rng(0)) == Change()
    x = image()
    assert torch.equal(apply_change(x, Change()), x)


def test_shift_moves_whole_pixels_and_air_comes_in():
    x = image()
    y = apply_change(x, Change(dy=1, dx=-2))
    assert torch.equal(y[:, 1:, :3], x[:, :-1, 2:])
    assert (y[:, 0] == -1).all()
    assert (y[:, :, 3:] == -1).all()


@pytest.mark.parametrize("far", [5, 6, 100])
def test_what_is_moved_out_of_the_image_leaves_air(far):
    for change in (Change(dy=far), Change(dy=-far), Change(dx=far), Change(dx=-far)):
        assert torch.equal(apply_change(image(), change), torch.full((2, 5, 5), -1.0))


def test_a_quarter_turn_is_rot90():
    x = image()
    assert torch.allclose(apply_change(x, Change(angle_deg=90.0)), torch.rot90(x, 1, (1, 2)), atol=1e-5)


def test_all_changes_together_are_those_of_scipy():
    """The output pixel p, from the middle, shows the mirrored input at R(angle) p / zoom; the shift comes last."""
    height, width, a, zoom = 41, 61, math.radians(17.0), 1.2
    x = image(height, width)
    back = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) / zoom  # of (y, x), y downwards
    middle = np.array([height - 1, width - 1]) / 2
    padded = np.pad(x[0].numpy()[:, ::-1] + 1.0, 3)  # what scipy interpolates to beyond the edge is air, too
    turned = affine_transform(padded, back, middle + 3 - back @ middle, (height, width), order=1) - 1
    expected = np.full((height, width), -1.0)
    expected[3:, :-4] = turned[:-3, 4:]
    changed = apply_change(x, Change(dy=3, dx=-4, angle_deg=17.0, zoom=zoom, flip=True))
    assert np.allclose(changed[0].numpy(), expected, atol=2e-5)


def test_turning_keeps_shapes_in_images_that_are_not_square():
    x = torch.full((1, 41, 81), -1.0)
    x[0, 20, 20:61] = 1.0  # a line of 41 pixels along x
    y = apply_change(x, Change(angle_deg=90.0))
    assert y[0, :, 40].gt(0).sum() == 41
    assert y[0, :, [30, 50]].max() < 0


def test_zoom_changes_a_discs_radius_by_the_factor():
    yy, xx = np.mgrid[:101, :101] - 50
    disc = torch.from_numpy(np.where(yy**2 + xx**2 < 20**2, 1.0, -1.0).astype(np.float32))[None]
    area = (apply_change(disc, Change(zoom=1.5)) > 0).sum().item()
    assert math.sqrt(area / math.pi) == pytest.approx(30, abs=0.3)


def test_flip_mirrors_left_and_right_and_twice_is_nothing():
    x = image()
    assert torch.equal(apply_change(x, Change(flip=True)), x.flip(2))
    assert torch.equal(apply_change(apply_change(x, Change(flip=True)), Change(flip=True)), x)


def test_draws_stay_within_the_settings_and_reach_their_ends():
    settings = Augmentation(shift=2, rotate_deg=10.0, scale=0.1, flip=True, suv_scale=0.25)
    rng = np.random.default_rng(1)
    drawn = [draw_change(settings, rng) for _ in range(2000)]
    assert {c.dy for c in drawn} == {c.dx for c in drawn} == {-2, -1, 0, 1, 2}
    for values, low, high in (
        ([c.angle_deg for c in drawn], -10, 10), ([c.zoom for c in drawn], 0.9, 1.1),
        ([c.suv_factor for c in drawn], 0.8, 1.25),
    ):  # fmt: skip
        assert low <= min(values) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < max(values) <= high
    assert np.mean(np.log([c.suv_factor for c in drawn])) == pytest.approx(0, abs=0.01)
    assert 0.45 < np.mean([c.flip for c in drawn]) < 0.55


def test_the_generator_alone_decides_and_what_is_off_takes_its_numbers_too():
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert (
        draw_change(Augmentation(shift=3), one).dy == draw_change(Augmentation(shift=3, flip=True, scale=0.1), other).dy
    )
    assert one.random() == other.random()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift", -1), ("shift", 2.5), ("rotate_deg", -5.0), ("rotate_deg", math.nan), ("scale", 1.0), ("scale", -0.1),
        ("suv_scale", -1), ("suv_scale", math.inf),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(InputError, match=f"augmentation: {name} {value} must be"):
        Augmentation(**{name: value})


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
