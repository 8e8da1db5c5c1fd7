"""Geometry, resampling and body masks against values known by hand."""

import numpy as np
import pytest
from scipy import ndimage
from small_dicom import centres_mm

from petct_lib.imaging.volume import (
    Grid,
    Volume,
    axial_affine,
    axial_grid,
    body_mask,
    coarse_grid,
    extent_mask,
    overlap_mm,
    resample,
)


def ramp(points_mm: np.ndarray) -> np.ndarray:
    """A value linear in patient space: points (..., 3) → (...)."""
    return 7.0 + points_mm @ np.array([2.0, -3.0, 0.5])


def ramp_volume(size: tuple[int, int, int], affine: np.ndarray) -> Volume:
    return Volume(ramp(centres_mm(size, affine)).astype(np.float32), affine, "HU")


def rotated(spacing_mm: tuple, origin_mm: tuple, degrees: float) -> np.ndarray:
    """Affine of a grid that is turned about z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = axial_affine((1, 1, 1), np.array(origin_mm, float))
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing_mm
    return affine


def flipped(volume: Volume) -> Volume:
    """The same image, stored from the other end of x and z, as feet-first studies are."""
    affine = volume.affine.copy()
    affine[:3, 3] = (affine @ [volume.size[0] - 1, 0, volume.size[2] - 1, 1])[:3]
    affine[:3, [0, 2]] *= -1
    return Volume(volume.array[::-1, :, ::-1].copy(), affine, volume.unit)


def test_volume_by_hand():
    volume = Volume(np.zeros((4, 3, 2)), axial_affine((2.0, 3.0, 5.0), np.array([10.0, 20.0, 30.0])), "HU")
    assert volume.size.tolist() == [2, 3, 4]
    assert volume.spacing_mm.tolist() == [2, 3, 5]
    assert volume.corners_mm().min(axis=0).tolist() == [9.0, 18.5, 27.5]
    assert volume.corners_mm().max(axis=0).tolist() == [13.0, 27.5, 47.5]
    assert np.allclose(np.sort(flipped(volume).corners_mm(), axis=0), np.sort(volume.corners_mm(), axis=0))


def test_overlap_by_hand():
    a = Volume(np.zeros((10, 10, 10)), axial_affine((1, 1, 1), np.array([0.0, 0, 0])), "HU")  # −0.5 … 9.5
    b = Volume(np.zeros((2, 3, 4)), axial_affine((2, 2, 2), np.array([6.0, 1, -3])), "SUV")  # 5 … 13, 0 … 6, −4 … 0
    low, high = overlap_mm([a, b])
    assert low.tolist() == [5.0, 0.0, -0.5]
    assert high.tolist() == [9.5, 6.0, 0.0]
    assert np.allclose(overlap_mm([flipped(a), b]), (low, high))


def test_volumes_that_only_touch_do_not_overlap():
    a, b = (Volume(np.zeros((2, 2, 2)), axial_affine((1, 1, 1), np.array([x, 0.0, 0.0])), "HU") for x in (0, 2))
    with pytest.raises(ValueError, match="do not overlap"):
        overlap_mm([a, b])


@pytest.mark.parametrize(
    ("slice_mm", "slices", "first_z"),
    [
        (12.0, 4, 7.0),  # 48 of 50 mm: 1 mm is left at either end
        (10.0, 5, 5.0),
        (70.0, 1, 25.0),  # one slice, in the middle
    ],
)
def test_axial_grid_by_hand(slice_mm, slices, first_z):
    grid = axial_grid(np.array([0.0, 0.0, 0.0]), np.array([100.0, 80.0, 50.0]), 4, 80.0, slice_mm)
    assert grid.size == (4, 4, slices)
    assert np.diag(grid.affine).tolist() == [20.0, 20.0, slice_mm, 1.0]
    assert grid.affine[:3, 3].tolist() == [20.0, 10.0, first_z]


def test_axial_grid_keeps_a_slice_that_rounding_would_lose():
    assert axial_grid(np.zeros(3), np.array([1.0, 1.0, 0.3]), 1, 1.0, 0.1).size[2] == 3  # 0.3 / 0.1 is 2.9999…


def test_coarse_grid_by_hand():
    volume = Volume(np.zeros((2, 9, 10)), axial_affine((1.0, 1.4, 5.0), np.array([0.0, 0.0, 0.0])), "HU")
    grid = coarse_grid(volume, 3.0)
    assert grid.size == (3, 4, 2)  # 10 // 3, 9 // 2, never finer than 5 mm
    assert np.allclose(np.diag(grid.affine), [3.0, 2.8, 5.0, 1])
    assert np.allclose(grid.affine[:3, 3], [1.0, 0.7, 0.0])  # the middles of the first blocks


def test_resampling_to_the_same_grid_changes_nothing():
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    for degrees in (0, 25):
        volume = Volume(array, rotated((2, 3, 5), (-7, 4, 90), degrees), "SUV")
        again = resample(volume, Grid((6, 5, 4), volume.affine), -1.0)
        assert np.allclose(again.array, array, atol=1e-5)
        assert again.unit == "SUV"


@pytest.mark.parametrize("spacing", [(1.3, 1.1, 2.0), (2.0, 3.0, 4.0), (5.0, 6.0, 7.0)])
@pytest.mark.parametrize("turn", [0, 30, 90, "flipped"])
def test_a_ramp_keeps_its_values_at_physical_points(spacing, turn):
    flip = turn == "flipped"
    affine = rotated((2.0, 3.0, 4.0), (-40.0, -60.0, -60.0), 0 if flip else turn)
    volume = ramp_volume((60, 60, 30), affine)
    middle = volume.corners_mm().mean(axis=0)
    size = tuple(int(30 / s) for s in spacing)
    grid = Grid(size, axial_affine(spacing, middle - 15))  # a 30 mm cube deep inside
    out = resample(flipped(volume) if flip else volume, grid, -9999.0)
    assert np.abs(out.array - ramp(centres_mm(size, grid.affine))).max() < 0.05


def test_outside_is_filled():
    volume = ramp_volume((4, 4, 4), axial_affine((1, 1, 1), np.zeros(3)))
    out = resample(volume, Grid((6, 1, 1), axial_affine((1, 1, 1), np.array([-1.0, 1.0, 1.0]))), -1024.0)
    assert np.allclose(out.array[0, 0], [-1024, 4.5, 6.5, 8.5, 10.5, -1024])  # 7 − 3 + 0.5 + 2 x


def test_coarser_grids_average_instead_of_aliasing():
    stripes = np.zeros((24, 96, 96), np.float32)
    stripes[:, :, ::2] = 100.0  # one voxel on, one off: every fourth voxel alone would be 100 or 0 everywhere
    volume = Volume(stripes, axial_affine((1, 1, 1), np.zeros(3)), "HU")
    out = resample(volume, Grid((16, 16, 4), axial_affine((4, 4, 4), np.array([16.0, 16.0, 4.0]))), 0.0)
    assert np.abs(out.array - 50).max() < 1.0


@pytest.mark.parametrize("step", [3.0, 5.0])
def test_coarser_grids_keep_the_mean_and_lose_the_noise(step):
    array = np.random.default_rng(1).normal(40, 30, (48, 48, 48)).astype(np.float32)
    volume = Volume(array, axial_affine((1, 1, 1), np.zeros(3)), "HU")
    n = int(48 / step)
    out = resample(volume, Grid((n, n, n), axial_affine((step,) * 3, np.full(3, (step - 1) / 2))), 0.0)
    assert out.array.mean() == pytest.approx(array.mean(), abs=0.5)
    # White noise after a Gaussian of σ voxels: the variance falls by 2 √π σ along each axis.
    sigma = 0.42 * np.sqrt(step**2 - 1)
    assert out.array.std() == pytest.approx(array.std() * (2 * np.sqrt(np.pi) * sigma) ** -1.5, rel=0.1)


def test_the_blur_does_not_depend_on_how_the_image_is_stored():
    array = np.random.default_rng(2).normal(size=(12, 30, 32)).astype(np.float32)
    volume = Volume(array, axial_affine((1, 1, 3), np.array([-16.0, -15.0, 0.0])), "SUV")
    grid = Grid((7, 7, 5), axial_affine((4, 4, 6), np.array([-12.0, -12.0, 3.0])))
    straight = resample(volume, grid, 0.0).array
    assert np.allclose(resample(flipped(volume), grid, 0.0).array, straight, atol=1e-4)
    swap = volume.affine[:, [2, 0, 1, 3]]  # index (z, x, y): a coronal-like order of the axes
    stored = Volume(array.transpose(1, 2, 0).copy(), swap, "SUV")
    assert np.allclose(resample(stored, grid, 0.0).array, straight, atol=1e-4)


def test_masks_stay_masks():
    mask = np.zeros((6, 6, 6), bool)
    mask[:, :, 3:] = True
    volume = Volume(mask, axial_affine((2, 2, 2), np.zeros(3)), "1")
    out = resample(volume, Grid((12, 2, 2), axial_affine((1, 2, 2), np.array([0.0, 2.0, 2.0]))), 0.0)
    assert out.array.dtype == bool
    assert out.array[0, 0].tolist() == [False] * 6 + [True] * 5 + [False]  # 11 mm is outside: filled with 0


def test_inside_by_hand():
    volume = Volume(np.zeros((2, 2, 4)), axial_affine((10, 10, 10), np.zeros(3)), "HU")  # x from −5 to 35 mm
    grid = Grid((6, 1, 1), axial_affine((10, 10, 10), np.array([-10.0, 0.0, 0.0])))
    assert extent_mask(volume, grid)[0, 0].tolist() == [False, True, True, True, True, False]
    shifted = Grid((6, 1, 1), axial_affine((10, 10, 10), np.array([-16.0, 0.0, 0.0])))  # −16, −6, 4, 14, 24, 34
    assert extent_mask(volume, shifted)[0, 0].tolist() == [False, False, True, True, True, True]
    assert np.array_equal(extent_mask(flipped(volume), grid), extent_mask(volume, grid))


def ct_of(draw, slices: int = 14) -> tuple[Volume, np.ndarray, np.ndarray]:
    """A CT of air with what `draw(hu, x, y)` paints into it, and x, y in mm, (z, y, x)."""
    affine = axial_affine((3.0, 3.0, 3.0), np.array([-240.0, -195.0, 0.0]))
    points = centres_mm((160, 130, slices), affine)
    hu = np.full(points.shape[:3], -1000.0, np.float32)
    draw(hu, points[..., 0], points[..., 1])
    hu += np.random.default_rng(3).normal(0, 15, hu.shape).astype(np.float32)
    return Volume(hu, affine, "HU"), points[..., 0], points[..., 1]


def chest(hu: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    hu[(x / 180) ** 2 + (y / 110) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x - side * 80) / 60) ** 2 + (y / 75) ** 2 < 1] = -850
    hu[(y > 110) & (y < 116) & (np.abs(x) < 200)] = 150  # the couch's upper shell touches the back
    hu[(y >= 116) & (y < 160) & (np.abs(x) < 200)] = -920  # its foam
    hu[(y >= 160) & (y < 166) & (np.abs(x) < 200)] = 150


@pytest.mark.parametrize("flip", [False, True])
def test_body_mask_has_the_lungs_and_not_the_couch(flip):
    ct, x, y = ct_of(chest)
    mask = body_mask(flipped(ct) if flip else ct)
    assert mask.array.dtype == bool
    body = resample(mask, ct.grid, 0.0).array
    truth = (x / 180) ** 2 + (y / 110) ** 2 < 1
    assert 2 * (body & truth).sum() / (body.sum() + truth.sum()) > 0.97
    assert body[ct.array < -700][truth[ct.array < -700]].all(), "the lungs are in"
    assert not body[(y > 119) | (np.abs(x) > 186)].any(), "the couch is out"
    assert body[truth].mean() > 0.999, "the skin is in"


def test_body_mask_keeps_both_legs():
    def legs(hu, x, y):
        for centre, radius in ((-90, 75), (95, 55)):
            hu[(x - centre) ** 2 + y**2 < radius**2] = 50
        hu[(x - 200) ** 2 + y**2 < 15**2] = 50  # a cable or an infusion bag: under a tenth of the larger leg
        hu[(y > 90) & (y < 96)] = 150

    ct, x, y = ct_of(legs)
    body = body_mask(ct).array
    assert body[7, 65, 50]
    assert body[7, 65, 112]
    assert ndimage.label(body)[1] == 2
    assert not body[(x > 180) | (y > 85)].any()


def test_body_mask_of_air_is_empty():
    ct, *_ = ct_of(lambda hu, x, y: None)
    assert not body_mask(ct).array.any()


def test_body_mask_is_coarse_for_fine_cts():
    hu = np.full((8, 120, 120), -1000.0, np.float32)
    hu[:, 30:90, 30:90] = 30
    mask = body_mask(Volume(hu, axial_affine((1.0, 1.0, 3.0), np.zeros(3)), "HU"))
    assert mask.spacing_mm.tolist() == [3.0, 3.0, 3.0]
    assert mask.array[4, 20, 20]
    assert 440 < mask.array[4].sum() <= 480  # 20 × 20 voxels, less the corners, and the skin: one on each side
