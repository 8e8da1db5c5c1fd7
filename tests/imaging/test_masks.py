"""Region masks from SEG objects, written here with highdicom, and from HU thresholds on a drawn chest."""

from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from small_seg import ball, distance, on

from petct_lib import InputError
from petct_lib.imaging import masks
from petct_lib.imaging.masks import Region, find_regions
from petct_lib.imaging.volume import Volume, axial_affine, body_mask
from petct_lib.phantom.cohort import PhantomSettings, make_patient


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


# Thresholds.


def chest(seed: int = 0) -> tuple[Volume, dict[str, np.ndarray]]:
    """A CT of 130 × 100 × 60 voxels of 3 × 3 × 4 mm with noise, and its parts."""
    size, affine = (130, 100, 60), axial_affine((3.0, 3.0, 4.0), np.array([-195.0, -150.0, -120.0]))
    far = partial(distance, size, affine)
    z, y, x = np.mgrid[-120:120:4, -150:150:3, -195:195:3]
    tube = np.hypot(x, y + 5)
    parts = {
        "body": far((0, 0, 0), (170, 110, 1e6)) < 1,
        "lung": (far((-75, 0, 30), (52, 70, 95)) < 1) | (far((75, 0, 30), (50, 70, 95)) < 1),
        "vessel": (np.hypot(y - 10, z - 30) < 5) & (np.abs(x) < 110),
        "spine": np.hypot(x, y - 75) < 16,
        "trachea": (tube < 9) & (z > 20),
        "bowel gas": far((10, -40, -95), (80, 45, 20)) < 1,
        "air under the couch": (y > 125) & (y < 140),
    }
    bronchi = (np.hypot(y + 5, z - 22) < 6) & (np.abs(x) < 40)
    parts["trachea"] |= bronchi & ~parts["lung"]
    hu = np.full(size[::-1], -1000.0)
    values = {"body": 40, "lung": -850, "vessel": 40, "spine": 400, "trachea": -1000, "bowel gas": -1000}
    for name, value in values.items():
        hu[parts[name]] = value
    hu[:, 90:92] = hu[:, 97:99] = -100  # two boards of a couch
    noise = np.random.default_rng(seed).normal(0, 20, hu.shape)
    return Volume((hu + noise).astype(np.float32), affine, "HU"), parts


def test_lung_bone_and_soft_tissue_by_threshold():
    ct, parts = chest()
    body = body_mask(ct)
    result = find_regions(ct, body, {})
    assert list(result) == ["body", "lung", "soft_tissue", "bone"]
    assert {region.source for region in result.values()} == {"HU threshold"}
    assert result["body"].mask is body
    masks = {name: on(region.mask, ct) for name, region in result.items()}
    assert dice(masks["lung"], parts["lung"]) > 0.95
    for name in ("trachea", "bowel gas", "air under the couch"):
        outside = parts[name] & ~parts["lung"]
        assert np.mean(masks["lung"][outside]) < 0.1, name
    assert np.mean(masks["lung"][parts["vessel"] & parts["lung"]]) > 0.9
    assert dice(masks["bone"], parts["spine"]) > 0.9
    soft = parts["body"] & ~np.any([parts[n] for n in ("lung", "spine", "trachea", "bowel gas")], axis=0)
    assert dice(masks["soft_tissue"], soft) > 0.9
    assert not np.any(masks["lung"] & masks["bone"])
    assert not np.any(masks["soft_tissue"] & (masks["lung"] | masks["bone"]))


def test_regions_of_the_phantom():
    patient = make_patient(0, 1, PhantomSettings(ct_pixel_mm=4.0, ct_size=104, ct_slice_mm=8.0, pet_slice_mm=8.0))
    result = find_regions(patient.ct, body_mask(patient.ct), {})
    hu = {name: np.median(patient.ct.array[on(region.mask, patient.ct)]) for name, region in result.items()}
    assert -870 < hu["lung"] < -800
    assert -100 < hu["soft_tissue"] < 60
    assert 200 < hu["bone"] < 600
    lung_ml = result["lung"].mask.array.sum() * np.prod(result["lung"].mask.spacing_mm) / 1000
    assert 2000 < lung_ml < 6000


def test_a_thigh_has_no_lung():
    size, affine = (130, 80, 40), axial_affine((3.0, 3.0, 4.0), np.array([-195.0, -120.0, 0.0]))
    ct = Volume(np.full(size[::-1], -1000, np.float32), affine, "HU")
    for x in (-90, 90):
        ct.array[distance(size, affine, (x, 0, 80), (80, 80, 1e6)) < 1] = 40
        ct.array[distance(size, affine, (x, 0, 80), (15, 15, 1e6)) < 1] = 800
    result = find_regions(ct, body_mask(ct), {})
    assert not result["lung"].mask.array.any()
    assert result["lung"].source == "HU threshold"
    assert result["bone"].mask.array.any()


def test_bowel_gas_alone_is_no_lung():
    ct, parts = chest()
    below = Volume(ct.array[:14], ct.affine, "HU")  # the slices under the lungs
    assert parts["bowel gas"][:14].sum() * 0.036 > 250  # ml: large enough for a lung
    assert not find_regions(below, body_mask(below), {})["lung"].mask.array.any()


def test_an_empty_body_has_empty_regions():
    ct = Volume(np.full((20, 40, 40), -1000, np.float32), axial_affine((3.0, 3.0, 4.0), np.zeros(3)), "HU")
    result = find_regions(ct, body_mask(ct), {})
    assert not any(region.mask.array.any() for region in result.values())


# Both.


def of_seg(**masks):
    return {name: [Region(mask, "SEG") for mask in item] for name, item in masks.items()}


def test_segments_come_before_thresholds():
    ct, parts = chest()
    right = Volume(parts["lung"] & (np.arange(130) < 65), ct.affine, "1")
    left = Volume(parts["lung"] & (np.arange(130) >= 65), ct.affine, "1")
    result = find_regions(ct, body_mask(ct), of_seg(lung=[right, left]))
    assert result["lung"].source == "SEG"
    assert result["bone"].source == result["soft_tissue"].source == "HU threshold"
    assert "lesion" not in result
    assert dice(on(result["lung"].mask, ct), parts["lung"]) > 0.97
    assert find_regions(ct, body_mask(ct), of_seg(lung=[right]))["lung"].mask.array.sum() > 0
    assert not np.any(on(find_regions(ct, body_mask(ct), of_seg(lung=[right]))["lung"].mask, ct) & left.array)


def test_lesions_stay_on_the_finest_grid_and_are_put_together():
    ct, _ = chest()
    coarse, fine = ball(12, spacing_mm=(4.0, 4.0, 4.0)), ball(3, (0.2, 0.5, 0.5), spacing_mm=(1.0, 1.0, 1.5))
    for one in (coarse, fine):
        one.affine[:3, 3] = (-60, -40, -30)
    lesion = find_regions(ct, body_mask(ct), of_seg(lesion=[coarse, fine]))["lesion"]
    assert lesion.source == "SEG"
    assert lesion.mask.spacing_mm == pytest.approx(fine.spacing_mm)
    np.testing.assert_array_equal(on(lesion.mask, fine) & fine.array, fine.array)
    assert dice(on(lesion.mask, coarse), coarse.array) > 0.95
    voxels_ml = [m.array.sum() * np.prod(m.spacing_mm) / 1000 for m in (lesion.mask, coarse, fine)]
    assert voxels_ml[0] == pytest.approx(voxels_ml[1] + voxels_ml[2], rel=0.1)


def test_segments_of_another_place_do_not_count():
    ct, _ = chest()
    away = ball(20)
    away.affine[:3, 3] += 5000
    result = find_regions(ct, body_mask(ct), of_seg(lung=[away], lesion=[away]))
    assert result["lung"].source == "HU threshold"
    assert result["lung"].mask.array.any()
    assert "lesion" not in result


def test_lesions_that_would_fill_the_memory_are_refused():
    ct, _ = chest()
    near, tiny = ball(20), ball(3, spacing_mm=(1e-3, 1e-3, 1e-3))
    near.affine[:3, 3] = tiny.affine[:3, 3] = (-60, -40, -30)
    with pytest.raises(InputError, match="limit"):
        find_regions(ct, body_mask(ct), of_seg(lesion=[near, tiny]))


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (2.8, 2.8, 3.27), (1.0, 1.5, 2.0)])
def test_morphology_and_components_are_those_of_simpleitk(spacing):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((30, 40, 36)), 2.5)
    mask = Volume(noise > 0.02, axial_affine(spacing, np.zeros(3)), "1")
    image = sitk.GetImageFromArray(mask.array.astype(np.uint8))
    for ours, theirs in (
        (masks._erode, sitk.BinaryErode), (masks._dilate, sitk.BinaryDilate),
        (masks._close, sitk.BinaryMorphologicalClosing),
    ):  # fmt: skip
        for radius_mm in (3.0, 6.0):
            radius = [round(radius_mm / mm) for mm in spacing]
            expected = sitk.GetArrayFromImage(theirs(image, radius, sitk.sitkBall)).astype(bool)
            assert np.array_equal(ours(mask, radius_mm).array, expected), (theirs, radius_mm)
    labels, volumes_ml = masks._pieces(mask)
    expected = sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(image)))
    assert np.array_equal(labels, expected)
    assert volumes_ml == pytest.approx([0, *np.bincount(expected.ravel())[1:] * np.prod(spacing) / 1000])


def test_morphology_of_nothing_and_of_everything():
    for value in (False, True):
        mask = Volume(np.full((4, 5, 6), value), axial_affine((1.0, 1.0, 1.0), np.zeros(3)), "1")
        for change in (masks._erode, masks._dilate):
            assert np.array_equal(change(mask, 1.0).array, mask.array)
