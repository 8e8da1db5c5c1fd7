"""Region masks from SEG objects, written here with highdicom, and from HU thresholds on a drawn chest."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from petct_lib import InputError, regions
from petct_lib.archives import FileRef
from petct_lib.dicom_write import Subject, make_uid, write_ct
from petct_lib.phantom import PhantomSettings, make_patient
from petct_lib.regions import Region, find_regions, read_segments
from petct_lib.volume import Volume, axial_affine, body_mask, resample

SECRET = "Doe^Jane"
SUBJECT = Subject(SECRET, make_uid("study"), make_uid("frame"))
LUNG = ("Lung", Code("39607008", "SCT", "Lung"))  # this and the next as in the BAMF-AIMI annotations
TUMOUR = ("FDG-Avid Tumor", Code("C168968", "NCIt", "FDG-Avid Tumor"))
AXIAL = np.eye(3)
OBLIQUE = np.linalg.qr([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.3], [-0.05, -0.3, 1.0]])[0]
ORIGIN_MM = np.array([-40.0, -50.0, -300.0])


def distance(size: tuple, affine: np.ndarray, centre_mm: tuple, radii_mm: tuple = (1, 1, 1)) -> np.ndarray:
    """Of every voxel from a point, (z, y, x), each axis divided by its radius."""
    index = np.moveaxis(np.indices(size[::-1])[::-1], 0, -1)  # (z, y, x, 3) of (x, y, z)
    return np.linalg.norm((index @ affine[:3, :3].T + affine[:3, 3] - centre_mm) / np.array(radii_mm), axis=-1)


def ball(radius_mm: float, at=(0.5, 0.5, 0.5), turn=AXIAL, spacing_mm=(2.0, 2.0, 3.0)) -> Volume:
    """A bool ball on a grid of 48 × 44 × 30 voxels; `at` is its place as a fraction of the grid."""
    size, affine = np.array([48, 44, 30]), axial_affine(spacing_mm, ORIGIN_MM)
    affine[:3, :3] = turn @ affine[:3, :3]
    centre_mm = affine[:3, :3] @ ((size - 1) * np.array(at)) + affine[:3, 3]
    return Volume(distance(tuple(size), affine, centre_mm) < radius_mm, affine, "1")


def write_seg(folder: Path, masks: list[Volume], names: list[tuple], kind: str = "BINARY") -> Path:
    """One SEG with a segment a mask, on the masks' own grid, frames without a voxel left out."""
    first = masks[0]
    ct = write_ct(Volume(np.zeros((1, 2, 2), np.float32), np.eye(4), "HU"), folder / "source", SUBJECT, make_uid("ct"))
    manual = SegmentAlgorithmTypeValues.MANUAL
    x, y, z = first.spacing_mm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg = Segmentation(
            source_images=[pydicom.dcmread(ct[0])],
            pixel_array=np.stack([m.array for m in masks], -1).astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
            segmentation_type=kind,
            segment_descriptions=[
                SegmentDescription(i, label, codes.SCT.AnatomicalStructure, code, manual)
                for i, (label, code) in enumerate(names, 1)
            ],
            series_instance_uid=make_uid("seg"),
            series_number=300,
            sop_instance_uid=make_uid("seg", folder),
            instance_number=1,
            manufacturer="test",
            manufacturer_model_name="test",
            software_versions="1",
            device_serial_number="1",
            plane_positions=[
                PlanePositionSequence("PATIENT", first.affine[:3, 3] + k * first.affine[:3, 2])
                for k in range(len(first.array))
            ],
            plane_orientation=PlaneOrientationSequence("PATIENT", (first.affine[:3, :2] / [x, y]).T.ravel()),
            pixel_measures=PixelMeasuresSequence((y, x), z, spacing_between_slices=z),
        )
    seg.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


def read(*paths: Path) -> dict[str, list[Volume]]:
    return read_segments([FileRef(p, p.name) for p in paths])


def on(mask: Volume, other: Volume) -> np.ndarray:
    """A mask on another volume's grid, (z, y, x) bool."""
    return resample(mask, other.grid, 0.0).array


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def reverse_frames(dataset: Dataset) -> None:
    """The same SEG with its frames from the last to the first."""
    frames = dataset.pixel_array[::-1]
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[::-1]
    dataset.PixelData = pack_bits(frames.ravel()) if dataset.BitsAllocated == 1 else frames.tobytes()


# SEG objects.


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("turn", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("edit", [None, reverse_frames], ids=["as written", "reversed"])
def test_segments_lie_where_they_were_written(tmp_path, kind, turn, edit):
    right, left, tumour = (
        ball(18, (0.25, 0.5, 0.5), turn),
        ball(15, (0.75, 0.4, 0.6), turn),
        ball(8, (0.5, 0.8, 0.3), turn),
    )
    names = [("Right lung", LUNG[1]), ("Left Lung", LUNG[1]), TUMOUR]
    path = write_seg(tmp_path, [right, left, tumour], names, kind)
    if edit:
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path)
    found = read(path)
    assert [len(found[name]) for name in ("lung", "lesion")] == [2, 1]
    for mask, written in zip([*found["lung"], *found["lesion"]], [right, left, tumour], strict=True):
        assert mask.array.dtype == bool
        assert mask.array.size < written.array.size / 2  # cut to its box
        np.testing.assert_array_equal(on(mask, written), written.array)


def test_a_fractional_segment_is_cut_at_one_half(tmp_path):
    whole = ball(20)
    core = ball(12).array
    values = Volume(np.where(core, 0.6, 0.4 * whole.array).astype(np.float32), whole.affine, "1")
    (mask,) = read(write_seg(tmp_path, [values], [LUNG], "FRACTIONAL"))["lung"]
    np.testing.assert_array_equal(on(mask, whole), core)


def test_frames_left_out_in_the_middle_are_background(tmp_path):
    two = Volume(ball(8, (0.5, 0.5, 0.15)).array | ball(8, (0.5, 0.5, 0.85)).array, ball(8).affine, "1")
    path = write_seg(tmp_path, [two], [TUMOUR])
    assert pydicom.dcmread(path).NumberOfFrames < 0.5 * len(two.array)
    (mask,) = read(path)["lesion"]
    np.testing.assert_array_equal(on(mask, two), two.array)


def test_a_single_slice_is_as_thick_as_the_spacing_says(tmp_path):
    disc = ball(10)
    disc.array[np.arange(30) != 15] = False
    (mask,) = read(write_seg(tmp_path, [disc], [TUMOUR]))["lesion"]
    assert mask.spacing_mm == pytest.approx((2, 2, 3))
    np.testing.assert_array_equal(on(mask, disc), disc.array)


@pytest.mark.parametrize(
    ("label", "meaning", "region"),
    [
        ("Lung", "Lung", "lung"),
        ("Segment_1", "Left lung", "lung"),
        ("lungs", "Anatomical structure", "lung"),
        ("Lung structure", "Lung structure", "lung"),
        ("Nodule", "Nodule", "lesion"),
        ("Lung nodules", "Lung", "lesion"),
        ("FDG-Avid Tumor", "FDG-Avid Tumor", "lesion"),
        ("GTV-1", "Neoplasm, Primary", "lesion"),
        ("Tumour", "Mass", "lesion"),
        ("Heart", "Heart", None),
        ("Lung vessels", "Pulmonary artery", None),
        ("Left upper lobe of lung", "Upper lobe of left lung", None),
        ("Massive effusion", "Pleural effusion", None),
        ("Segment 1", "Tissue", None),
    ],
)
def test_segments_are_known_by_their_words(label, meaning, region):
    segment, code = Dataset(), Dataset()
    segment.SegmentLabel, code.CodeMeaning = label, meaning
    segment.SegmentedPropertyTypeCodeSequence = [code]
    assert regions._region_of(segment) == region


def test_unknown_and_empty_segments_are_left_out(tmp_path):
    heart = ("Heart", Code("80891009", "SCT", "Heart"))
    empty = Volume(np.zeros_like(ball(10).array), ball(10).affine, "1")
    assert list(read(write_seg(tmp_path, [ball(10), ball(8), empty], [heart, TUMOUR, LUNG]))) == ["lesion"]
    assert read(write_seg(tmp_path, [ball(10)], [heart])) == {}
    assert read() == {}


def drop(keyword: str, sequence: str, dataset: Dataset) -> None:
    """Delete an attribute from all functional groups."""
    for group in [*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]:
        for item in group.get(sequence, []):
            if keyword in item:
                delattr(item, keyword)


def move_last(by_mm: float, dataset: Dataset) -> None:
    """Move the last frame along z."""
    dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0].ImagePositionPatient[2] += by_mm


def keep_one(dataset: Dataset) -> None:
    """One frame, of unknown thickness."""
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:1]
    dataset.NumberOfFrames = 1
    drop("SpacingBetweenSlices", "PixelMeasuresSequence", dataset)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (partial(drop, "ImageOrientationPatient", "PlaneOrientationSequence"), "no ImageOrientationPatient"),
        (partial(drop, "ImagePositionPatient", "PlanePositionSequence"), "no ImagePositionPatient"),
        (partial(drop, "PixelSpacing", "PixelMeasuresSequence"), "no PixelSpacing"),
        (partial(move_last, -1.4), "regular distances"),
        (partial(move_last, -3e7), "far apart"),
        (keep_one, "single slice"),
        (lambda d: setattr(d, "NumberOfFrames", 10**7), "limit"),
        (lambda d: setattr(d, "Rows", None), "rows, columns and frames"),
        (lambda d: setattr(d, "PixelData", d.PixelData[: len(d.PixelData) // 2]), "cannot be read as SEG"),
        (lambda d: delattr(d, "SegmentSequence"), "cannot be read as SEG"),
        (lambda d: delattr(d, "PixelData"), "cannot be read as SEG"),
        (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "not a DICOM Segmentation"),
    ],
)
def test_bad_segs_are_refused(tmp_path, edit: Callable, message: str):
    path = write_seg(tmp_path, [ball(12)], [LUNG])
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert SECRET not in str(refused.value)


def test_files_that_are_no_dicom_are_refused(tmp_path):
    (tmp_path / "text.dcm").write_text("not DICOM, " * 100)
    (tmp_path / "empty.dcm").write_bytes(b"")
    for name in ("text.dcm", "empty.dcm", "missing.dcm"):
        with pytest.raises(InputError, match=r"SEG|Segmentation"):
            read(tmp_path / name)


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
    found = find_regions(ct, body, {})
    assert list(found) == ["body", "lung", "soft_tissue", "bone"]
    assert {region.source for region in found.values()} == {"HU threshold"}
    assert found["body"].mask is body
    masks = {name: on(region.mask, ct) for name, region in found.items()}
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
    found = find_regions(patient.ct, body_mask(patient.ct), {})
    hu = {name: np.median(patient.ct.array[on(region.mask, patient.ct)]) for name, region in found.items()}
    assert -870 < hu["lung"] < -800
    assert -100 < hu["soft_tissue"] < 60
    assert 200 < hu["bone"] < 600
    lung_ml = found["lung"].mask.array.sum() * np.prod(found["lung"].mask.spacing_mm) / 1000
    assert 2000 < lung_ml < 6000


def test_a_thigh_has_no_lung():
    size, affine = (130, 80, 40), axial_affine((3.0, 3.0, 4.0), np.array([-195.0, -120.0, 0.0]))
    ct = Volume(np.full(size[::-1], -1000, np.float32), affine, "HU")
    for x in (-90, 90):
        ct.array[distance(size, affine, (x, 0, 80), (80, 80, 1e6)) < 1] = 40
        ct.array[distance(size, affine, (x, 0, 80), (15, 15, 1e6)) < 1] = 800
    found = find_regions(ct, body_mask(ct), {})
    assert not found["lung"].mask.array.any()
    assert found["lung"].source == "HU threshold"
    assert found["bone"].mask.array.any()


def test_bowel_gas_alone_is_no_lung():
    ct, parts = chest()
    below = Volume(ct.array[:14], ct.affine, "HU")  # the slices under the lungs
    assert parts["bowel gas"][:14].sum() * 0.036 > 250  # ml: large enough for a lung
    assert not find_regions(below, body_mask(below), {})["lung"].mask.array.any()


def test_an_empty_body_has_empty_regions():
    ct = Volume(np.full((20, 40, 40), -1000, np.float32), axial_affine((3.0, 3.0, 4.0), np.zeros(3)), "HU")
    found = find_regions(ct, body_mask(ct), {})
    assert not any(region.mask.array.any() for region in found.values())


# Both.


def of_seg(**masks):
    return {name: [Region(mask, "SEG") for mask in of] for name, of in masks.items()}


def test_segments_come_before_thresholds():
    ct, parts = chest()
    right = Volume(parts["lung"] & (np.arange(130) < 65), ct.affine, "1")
    left = Volume(parts["lung"] & (np.arange(130) >= 65), ct.affine, "1")
    found = find_regions(ct, body_mask(ct), of_seg(lung=[right, left]))
    assert found["lung"].source == "SEG"
    assert found["bone"].source == found["soft_tissue"].source == "HU threshold"
    assert "lesion" not in found
    assert dice(on(found["lung"].mask, ct), parts["lung"]) > 0.97
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
    found = find_regions(ct, body_mask(ct), of_seg(lung=[away], lesion=[away]))
    assert found["lung"].source == "HU threshold"
    assert found["lung"].mask.array.any()
    assert "lesion" not in found


def test_lesions_that_would_fill_the_memory_are_refused():
    ct, _ = chest()
    near, tiny = ball(20), ball(3, spacing_mm=(1e-3, 1e-3, 1e-3))
    near.affine[:3, 3] = tiny.affine[:3, 3] = (-60, -40, -30)
    with pytest.raises(InputError, match="limit"):
        find_regions(ct, body_mask(ct), of_seg(lesion=[near, tiny]))
