"""Where slices lie: order, orientation and spacing from headers, and values at known physical points after reading."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import Dataset
from small_dicom import AXIAL, affine_of, centres_mm, only_series, ramp, ramp_volume, subject

from petct_lib import InputError
from petct_lib.dicom.geometry import extent, geometry, length_mm, share_covered
from petct_lib.dicom.studies import find_pairs, load_pair, load_series
from petct_lib.dicom.writer import Tracer, make_uid, write_ct, write_pet
from petct_lib.imaging.volume import Grid, Volume, axial_affine, resample

TURN = np.radians(15)
# Direction of rows, then of columns. Table and patient turned: all are axial slices of one couch.
POSITIONS = {
    "head first supine": AXIAL,
    "head first prone": (-1, 0, 0, 0, -1, 0),
    "head first decubitus left": (0, -1, 0, 1, 0, 0),
    "head first decubitus right": (0, 1, 0, -1, 0, 0),
    "feet first supine": (-1, 0, 0, 0, 1, 0),
    "feet first prone": (1, 0, 0, 0, -1, 0),
    "feet first decubitus left": (0, -1, 0, -1, 0, 0),
    "feet first decubitus right": (0, 1, 0, 1, 0, 0),
}
ORIENTATIONS = {
    **POSITIONS,
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (np.cos(TURN), np.sin(TURN), 0, -np.sin(TURN), np.cos(TURN), 0),
    "doubly oblique": (np.cos(TURN), 0, -np.sin(TURN), 0.5 * np.sin(TURN), np.sqrt(0.75), 0.5 * np.cos(TURN)),
}
TILTS = {"upright": (0, 0, 0), "tilted gantry": (0, 1.4, 0), "slanted both ways": (-0.7, 1.1, 0)}  # mm a slice
SUV_PER_BQ_ML = 3.5e-4  # 70 kg, 400 MBq, one half-life before the scan
TRACER = Tracer(4e8, "090000", "100000", half_life_s=3600)


def slice_header(
    position: tuple, cosines: tuple = AXIAL, spacing: tuple = (3.0, 2.0), size: tuple = (11, 9)
) -> Dataset:
    ds = Dataset()
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = list(position), list(cosines), list(spacing)
    ds.Rows, ds.Columns = size
    return ds


def stack(depths: list[float], **options: object) -> list[Dataset]:
    return [slice_header((-10, -20, z), **options) for z in depths]


def tilted(affine: np.ndarray, shift_mm: tuple) -> np.ndarray:
    """The same slices, each shifted against the one before: what a tilted gantry makes."""
    shear = affine.copy()
    shear[:3, 2] += shift_mm
    return shear


def shuffle_files(folder: Path, seed: int) -> None:
    """Neither the files' names nor their numbers give the order."""
    files = sorted(folder.iterdir())
    numbers = random.Random(seed).sample(range(len(files)), len(files))
    for number, path in zip(numbers, files, strict=True):
        ds = pydicom.dcmread(path)
        ds.InstanceNumber, ds.SliceThickness = number, 99
        path.unlink()
        ds.save_as(folder / f"{number}.dcm")


# From headers alone


def test_geometry_by_hand():
    headers = stack([8.0, -2.0, 3.0])
    for thickness, h in zip((3.75, 1.0, 9.0), headers, strict=True):
        h.SliceThickness = thickness  # is not the spacing
        h.InstanceNumber = 1  # is not the order
    order, affine = geometry(headers)
    assert order == [1, 2, 0]
    # PixelSpacing is the distance of rows (y) first, then that of columns (x).
    assert affine.tolist() == [[2, 0, 0, -10], [0, 3, 0, -20], [0, 0, 5, -2], [0, 0, 0, 1]]


def test_feet_first_stacks_run_down():
    order, affine = geometry(stack([8.0, -2.0, 3.0], cosines=(-1, 0, 0, 0, 1, 0)))
    assert order == [0, 2, 1]
    assert affine.tolist() == [[-2, 0, 0, -10], [0, 3, 0, -20], [0, 0, -5, 8], [0, 0, 0, 1]]


@pytest.mark.parametrize("name", POSITIONS)
def test_slices_run_away_from_the_feet_where_the_head_goes_first(name):
    """The couch moves one way: what lies nearer to the gantry is the head in half of the positions."""
    _, affine = geometry(stack([0, 5, 10], cosines=POSITIONS[name]))
    assert affine[2, 2] == (5 if name.startswith("head") else -5)
    assert np.linalg.det(affine[:3, :3]) == pytest.approx(30)  # never a mirror image


def test_two_slices_make_a_stack():
    assert geometry(stack([0.0, 7.0]))[1][2, 2] == 7.0


def test_a_tilted_gantry_by_hand():
    order, affine = geometry([slice_header((0, 2 * k, 5 * k)) for k in (2, 0, 1)])
    assert order == [1, 2, 0]
    assert affine.tolist() == [[2, 0, 0, 0], [0, 3, 2, 0], [0, 0, 5, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (stack([0.0]), "single slice"),
        (stack([0, 5, 10, 20, 25]), r"1 gaps or uneven steps in z, before 20\.0 mm; the usual step is 5\.00 mm"),
        (stack([0, 5, 10, 15.4, 20]), "2 gaps or uneven steps"),
        (stack([0, 5, 5, 10]), r"1 duplicate slice positions, the first at 5\.0 mm"),
        (stack([0, 5]) + stack([10], cosines=(1, 0, 0, 0, 0, -1)), "different orientations"),
        (stack([0, 5]) + stack([10], spacing=(3.0, 2.1)), "different PixelSpacing"),
        ([slice_header((0, 3 * (k % 2), 5 * k)) for k in range(4)], r"shifted against each other by up to 2\.0 mm"),
        (stack([0, 5], cosines=(1, 0, 0, 1, 0, 0)), "right angles"),
        (stack([0, 5], cosines=(2, 0, 0, 0, 1, 0)), "right angles"),
        ([*stack([0, 5]), Dataset()], "missing or broken"),
        (stack([0, float("nan"), 5]), "missing or broken"),
        (stack([0, 5], spacing=(0.0, 2.0)), "missing or broken"),
        ([slice_header((0, k)) for k in range(3)], "missing or broken"),
    ],
)
def test_slices_that_make_no_stack_are_refused(headers, message):
    with pytest.raises(InputError, match=message):
        geometry(headers)


def test_small_unevenness_is_rounding():
    order, affine = geometry(stack([0, 3.27, 6.53, 9.8]))
    assert order == [0, 1, 2, 3]
    assert affine[2, 2] == pytest.approx(9.8 / 3)


def test_extent_by_hand():
    box = extent(stack([5.0, 0.0, 10.0]))
    assert box.array.shape == (3, 11, 9)
    assert box.corners_mm().min(axis=0).tolist() == [-11.0, -21.5, -2.5]
    assert box.corners_mm().max(axis=0).tolist() == [7.0, 11.5, 12.5]
    assert box.array.nbytes > 4 == box.array.base.nbytes, "it takes no memory"


def test_length_by_hand():
    assert length_mm(stack([0, 5, 10])) == 15.0
    assert length_mm([slice_header((0, 4 * k, 5 * k)) for k in range(3)]) == 15.0  # along the normal, not the slant
    assert length_mm(stack([10, 5, 0], cosines=(-1, 0, 0, 0, 1, 0))) == 15.0
    assert length_mm(stack([0, 5, 20])) == -1.0


@pytest.mark.parametrize(
    ("outer", "share"),
    [
        (stack([0, 10, 20, 30, 40, 50]), 0.7),  # and one slice more: the grids are offset
        (stack([-100, 0, 100]), 1.0),
        (stack([20, 22, 24]), 0.3),
        (stack([22, 24, 26]), 0.2),
        (stack([60, 120]), 0.5),
        (stack([200, 210]), 0.0),
        (stack([45, 0, -45], cosines=(-1, 0, 0, 0, 1, 0)), 0.0),  # beside it: its columns run to −x
        ([slice_header((6, -20, z), (-1, 0, 0, 0, 1, 0)) for z in (45, 0, -45)], 0.6),
        ([slice_header((-10, y, 100), (1, 0, 0, 0, 0, -1), (10, 2)) for y in (-20, -5, 10)], 1.0),  # coronal
        (stack([0, 5, 20]), -1.0),
    ],
)
def test_the_share_covered_by_hand(outer, share):
    assert share_covered(stack(list(range(0, 100, 10))), outer) == share


def test_the_share_covered_by_tilted_slices_is_measured_in_their_middle():
    """Their corners lie 13 cm apart in z, over the same 100 mm of the patient."""
    c, s = np.cos(TURN), np.sin(TURN)
    headers = [
        slice_header((-250, -250 * c + s * d, -250 * s - c * d), (1, 0, 0, 0, c, s), (5, 5), (101, 101))
        for d in range(-50, 51, 10)
    ]
    inner = [slice_header((-250, -250, z), AXIAL, (5, 5), (101, 101)) for z in np.arange(-200, 201, 10)]
    assert share_covered(inner, headers) == round(13 / 41, 2)


def test_the_share_of_what_makes_no_stack_is_an_error():
    with pytest.raises(InputError, match="gaps"):
        share_covered(stack([0, 5, 20]), stack([0, 5]))


# Values at physical points


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
@pytest.mark.parametrize("shift_mm", TILTS.values(), ids=TILTS.keys())
def test_values_come_back_at_their_physical_points(tmp_path, cosines, shift_mm):
    write_ct(ramp_volume(tilted(affine_of(cosines), shift_mm)), tmp_path, subject(), make_uid("ct"))
    shuffle_files(tmp_path, seed=4)
    volume = load_series(only_series(tmp_path), 1.0, "HU")
    assert volume.array.shape == (4, 5, 6)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        row, column = 3, 4
        # PS3.3 C.7.6.2.1.1: columns go along the first cosines, at the second PixelSpacing.
        along, down = np.array(ds.ImageOrientationPatient[:3], float), np.array(ds.ImageOrientationPatient[3:], float)
        point = np.array(ds.ImagePositionPatient, float) + along * 2.0 * column + down * 3.0 * row
        x, y, z = (np.linalg.inv(volume.affine) @ [*point, 1])[:3].round(3)
        assert (x, y) == (column, row)
        assert volume.array[int(z), row, column] == pytest.approx(ramp(point), abs=0.51)


@pytest.mark.parametrize("cosines", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
@pytest.mark.parametrize("shift_mm", TILTS.values(), ids=TILTS.keys())
def test_any_stack_comes_onto_an_axial_grid(tmp_path, cosines, shift_mm):
    """Oblique and slanted acquisitions are resampled, not refused; a ramp is interpolated without error."""
    affine = tilted(affine_of(cosines), shift_mm)
    write_ct(ramp_volume(affine, size=(16, 12, 10)), tmp_path, subject(), make_uid("ct"))
    shuffle_files(tmp_path, seed=5)
    volume = load_series(only_series(tmp_path), 1.0, "HU")
    grid = Grid((5, 4, 3), axial_affine((1.5, 1.5, 1.5), volume.corners_mm().mean(axis=0) - [3, 2.25, 1.5]))
    assert np.abs(resample(volume, grid, -9999.0).array - ramp(centres_mm(grid.size, grid.affine))).max() < 0.6


# Property: a phantom of any geometry comes back


def phantom(rng: np.random.Generator) -> tuple[Callable, float]:
    """Gaussian blobs on a ramp, in patient mm around 0, and a bound of its second derivative in any direction."""
    middles, widths = rng.uniform(-20, 20, (4, 3)), rng.uniform(15, 25, 4)
    heights, slope = rng.uniform(-200, 200, 4), rng.uniform(-2, 2, 3)

    def value(points_mm: np.ndarray) -> np.ndarray:
        distance2 = ((points_mm[..., None, :] - middles) ** 2).sum(axis=-1)
        return 300 + points_mm @ slope + (heights * np.exp(-distance2 / (2 * widths**2))).sum(axis=-1)

    return value, float((np.abs(heights) / widths**2).sum())


def turned(rng: np.random.Generator) -> np.ndarray:
    """A rotation by up to 15° about a random axis (Rodrigues), (3, 3)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.radians(rng.uniform(-15, 15))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_affine(rng: np.random.Generator, spacing_mm: np.ndarray, size: tuple) -> np.ndarray:
    """A grid around 0 of random position and orientation, half of them oblique, a third slanted."""
    affine = affine_of(list(POSITIONS.values())[rng.integers(8)], spacing_mm)
    if rng.random() < 0.5:
        affine[:3, :3] = turned(rng) @ affine[:3, :3]
    if rng.random() < 0.3:
        affine[:3, 2] += affine[:3, :2] @ rng.uniform(-0.3, 0.3, 2)
    affine[:3, 3] = rng.uniform(-3, 3, 3) - affine[:3, :3] @ (np.array(size) - 1) / 2
    return affine


def rescale_at_random(folder: Path, rng: np.random.Generator) -> float:
    """Another slope and intercept in each slice for the same values; returns the largest slope."""
    slopes = []
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        values = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        intercept = round(rng.uniform(-20, 0) + (0 if ds.PixelRepresentation else values.min()), 3)
        slope = float(f"{rng.uniform(1, 3) * np.abs(values - intercept).max() / 32767:.6g}")
        ds.PixelData = (
            np.rint((values - intercept) / slope).astype("<i2" if ds.PixelRepresentation else "<u2").tobytes()
        )
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        ds.save_as(path)
        slopes.append(slope)
    return max(slopes)


def check_values(got: Volume, value: Callable, rounding: float, curvature: float, rng: np.random.Generator) -> None:
    """Voxels where the reader says that they lie, and points between them.

    The error of trilinear interpolation is at most Σ h² |f″| / 8 over the three steps h, whatever way they point.
    """
    truth = value(centres_mm(got.size, got.affine))
    assert np.abs(got.array - truth).max() < rounding
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned(rng), rng.uniform(-8, 8, 3)
    points = Grid((4, 4, 4), affine)
    error = np.abs(resample(got, points, -9999.0).array - value(centres_mm(points.size, affine))).max()
    assert error < rounding + curvature * (got.spacing_mm**2).sum() / 8


@pytest.mark.parametrize("seed", range(40))
def test_a_phantom_of_any_geometry_comes_back(tmp_path, seed):
    rng = np.random.default_rng(seed)
    value, curvature = phantom(rng)
    spacings_mm, sizes = (rng.uniform((2, 2, 2), (3, 3, 5)), rng.uniform(3, 5, 3)), ((26, 24, 28), (18, 18, 20))
    ct, pet = (random_affine(rng, mm, size) for mm, size in zip(spacings_mm, sizes, strict=True))
    ct_hu, pet_bq_ml = (value(centres_mm(size, grid)) for size, grid in zip(sizes, (ct, pet), strict=True))
    write_ct(Volume(ct_hu.astype(np.float32), ct, "HU"), tmp_path / "a", subject(), make_uid("ct"))
    write_pet(Volume(pet_bq_ml.astype(np.float32), pet, "Bq/ml"), tmp_path / "b", subject(), make_uid("pet"), TRACER)
    ct_step, pet_step = (rescale_at_random(tmp_path / name, rng) for name in "ab")
    for name in "ab":
        shuffle_files(tmp_path / name, seed)
    [pair], left_out, _ = find_pairs(tmp_path)
    study = load_pair(pair)
    assert left_out == []
    # Twice half a step: write_ct rounds to 1 HU, write_pet to a slope smaller than the new one; 0.01 for positions.
    check_values(study.ct, value, 0.5 + 0.5 * ct_step + 0.01, curvature, rng)
    activity = Volume(study.pet.array / SUV_PER_BQ_ML, study.pet.affine, "Bq/ml")
    check_values(activity, value, pet_step + 0.01, curvature, rng)


# Property: activity is kept from grid to grid


def hot_spots(points_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Organs and lesions (6 mm: the smallest that PET resolves) that end well inside ±60 mm."""
    value = np.zeros(points_mm.shape[:-1])
    for sigma, height in ((16, 2), (12, 5), (6, 15), (6, 10)):
        middle = rng.uniform(-20, 20, 3) * (60 - 3.5 * sigma) / 60
        value += height * np.exp(-((points_mm - middle) ** 2).sum(axis=-1) / (2 * sigma**2))
    return value


def total(volume: Volume) -> float:
    return float(volume.array.sum(dtype=float) * abs(np.linalg.det(volume.affine[:3, :3])))


def around_zero(spacing_mm: tuple, length_mm: float) -> tuple[tuple, np.ndarray]:
    size = tuple(int(np.ceil(length_mm / mm)) for mm in spacing_mm)
    return size, axial_affine(spacing_mm, -np.array(spacing_mm) * (np.array(size) - 1) / 2)


def check_activity(pet: Volume, ct: Grid) -> None:
    there = resample(pet, ct, 0.0)
    back = resample(there, pet.grid, 0.0)
    assert total(there) == pytest.approx(total(pet), rel=0.01)
    assert total(back) == pytest.approx(total(pet), rel=0.01)


@pytest.mark.parametrize("ct_mm", [(0.98, 0.98, 1.2), (0.98, 0.98, 3.27), (1.37, 1.37, 5.0)])
@pytest.mark.parametrize("pet_mm", [(4.07, 4.07, 3.0), (5.47, 5.47, 3.27), (2.0, 2.0, 2.0)])
def test_activity_is_kept_on_clinical_grids(pet_mm, ct_mm):
    size, affine = around_zero(pet_mm, 150)
    pet = Volume(hot_spots(centres_mm(size, affine), np.random.default_rng(0)).astype(np.float32), affine, "SUV")
    check_activity(pet, Grid(*around_zero(ct_mm, 140)))


@pytest.mark.parametrize("seed", range(12))
def test_activity_is_kept_on_grids_of_any_geometry(seed):
    rng = np.random.default_rng(seed)
    pet_size, ct_size = (56, 54, 52), (76, 74, 72)
    pet = random_affine(rng, rng.uniform(3.5, 4.5, 3), pet_size)
    ct = random_affine(rng, rng.uniform(2.4, 3.0, 3), ct_size)
    activity = hot_spots(centres_mm(pet_size, pet), rng)
    check_activity(Volume(activity.astype(np.float32), pet, "SUV"), Grid(ct_size, ct))


# Property: both ways to resample are one


@pytest.mark.parametrize("seed", range(20))
def test_axis_by_axis_and_at_once_give_the_same_values(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    affines = [np.diag([*(rng.uniform(1, 6, 3) * rng.choice([-1, 1], 3)), 1.0]) for _ in range(2)]
    sizes = [tuple(int(n) for n in rng.integers(8, 30, 3)) for _ in range(2)]
    for affine, size in zip(affines, sizes, strict=True):
        affine[:3, 3] = rng.uniform(-5, 5, 3) - affine[:3, :3] @ np.array(size) / 2
    array = rng.normal(size=sizes[0][::-1]).astype(np.float32)
    volumes = [Volume(a, affines[0], "SUV") for a in (array, array > 0, (array > 0).astype(np.float32))]
    by_axis = [resample(v, Grid(sizes[1], affines[1]), -1.0 if v.array is array else 0.0).array for v in volumes]
    monkeypatch.setattr("petct_lib.imaging.volume.PARALLEL_VOXELS", -1.0)  # no two axes are parallel enough
    at_once = [resample(v, Grid(sizes[1], affines[1]), -1.0 if v.array is array else 0.0).array for v in volumes]
    assert np.abs(by_axis[0] - at_once[0]).max() < 1e-3 * np.ptp(array)
    at_half = np.abs(by_axis[2] - 0.5) < 1e-3  # where rounding decides
    assert np.array_equal(by_axis[1] | at_half, at_once[1] | at_half)
    assert by_axis[1].dtype == at_once[1].dtype == bool


@pytest.mark.parametrize("seed", range(8))
def test_turned_grids_are_resampled_as_by_simpleitk(seed):
    rng = np.random.default_rng(seed)
    sizes, spacing = ((20, 18, 16), (24, 22, 20)), (3.0, 3.0)
    old, new = (random_affine(rng, np.full(3, mm), size) for mm, size in zip(spacing, sizes, strict=True))
    array = rng.normal(size=sizes[0][::-1]).astype(np.float32)
    volume = Volume(array, old, "SUV")
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.spacing_mm.tolist())
    image.SetOrigin(old[:3, 3].tolist())
    image.SetDirection((old[:3, :3] / volume.spacing_mm).ravel().tolist())
    reference = sitk.Image([int(n) for n in sizes[1]], sitk.sitkFloat32)
    reference.SetSpacing(np.linalg.norm(new[:3, :3], axis=0).tolist())
    reference.SetOrigin(new[:3, 3].tolist())
    reference.SetDirection((new[:3, :3] / np.linalg.norm(new[:3, :3], axis=0)).ravel().tolist())
    expected = sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, -9.0))
    ours = resample(volume, Grid(sizes[1], new), -9.0).array
    assert (expected == -9).any()
    assert (expected > -9).mean() > 0.1
    different = np.abs(ours - expected) > 1e-3
    assert different.mean() < 1e-3, "but for voxels on the border, where rounding decides"
