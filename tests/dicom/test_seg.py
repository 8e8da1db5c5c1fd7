"""Masks from DICOM segmentations."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.sr.coding import Code
from small_seg import AXIAL, LUNG, SECRET, TUMOUR, ball, on, write_seg

from petct_lib import InputError
from petct_lib.dicom.archives import FileRef
from petct_lib.dicom.seg import _match_segment, read_segments
from petct_lib.imaging.volume import Volume

OBLIQUE = np.linalg.qr([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.3], [-0.05, -0.3, 1.0]])[0]


def read(*paths: Path) -> dict[str, list[Volume]]:
    return read_segments([FileRef(p, p.name) for p in paths])


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
    result = read(path)
    assert [len(result[name]) for name in ("lung", "lesion")] == [2, 1]
    for mask, written in zip([*result["lung"], *result["lesion"]], [right, left, tumour], strict=True):
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
    assert _match_segment(segment) == region


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


def test_without_highdicom_the_extra_is_named(tmp_path, monkeypatch):
    path = write_seg(tmp_path, [ball(8)], [LUNG])
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"needs highdicom: pip install 'petct-lib\[dicom-seg\]'"):
        read(path)
