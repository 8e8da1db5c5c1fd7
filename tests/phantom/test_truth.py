"""Truth files come back as they were written, in the same place, and the SEG is read as a hospital's is."""

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from petct_lib.dicom.archives import FileRef
from petct_lib.dicom.seg import read_segments
from petct_lib.dicom.writer import Subject, make_uid, write_ct
from petct_lib.imaging.nifti import RAS_TO_LPS
from petct_lib.imaging.volume import Volume, axial_affine, resample
from petct_lib.phantom.truth import write_nifti, write_seg

SUBJECT = Subject("p-12345678", make_uid("study"), make_uid("frame"), "20200202", 80.0)
AXIAL = axial_affine((2.0, 1.5, 3.0), np.array([-40.0, -50.0, -300.0]))
OBLIQUE = AXIAL.copy()
OBLIQUE[:3, :3] = np.linalg.qr([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.3], [-0.05, -0.3, 1.0]])[0] @ AXIAL[:3, :3]
SEGMENTS = [("lesion 1: lung nodule", (7,), "lesion"), ("lesion 2: liver", (9,), "lesion"), ("lung", (3, 7), "lung")]


def noise(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(4).uniform(low, high, (6, 9, 8)).astype(np.float32)


def labels(affine: np.ndarray = AXIAL) -> Volume:
    """Two lungs (3), a nodule in one of them (7), a lesion below (9), another organ (1); (20, 32, 36)."""
    array = np.zeros((20, 32, 36), np.uint8)
    array[2:6] = 1
    array[8:18, 8:20, 3:12] = array[8:18, 9:21, 20:30] = 3
    array[10:12, 12:15, 5:9] = 7
    array[3:5, 20:25, 20:22] = 9
    return Volume(array, affine, "1")


def ct_files(folder: Path) -> list[Path]:
    volume = Volume(np.zeros((20, 32, 36), np.float32), AXIAL, "HU")
    return write_ct(volume, folder / "ct", SUBJECT, make_uid("ct"))


def on(mask: Volume, other: Volume) -> np.ndarray:
    return resample(mask, other.grid, 0.0).array


@pytest.mark.parametrize("affine", [AXIAL, OBLIQUE, AXIAL @ np.diag([1, 1, -1, 1])], ids=["axial", "oblique", "down"])
@pytest.mark.parametrize(
    ("unit", "low", "high", "step"),
    [("HU", -1024, 3000, 1.0), ("SUV", 0, 30, 0.001), ("SUV", -2, 90, 90 / 32767), ("1", 0, 255, 0.0)],
)
def test_volumes_come_back(tmp_path, affine, unit, low, high, step):
    source = Volume(labels().array if unit == "1" else noise(low, high), affine, unit)
    back = nibabel.load(write_nifti(source, tmp_path / "truth" / "one.nii.gz"))
    assert back.header["descrip"] == unit.encode()
    assert back.get_data_dtype() == (np.uint8 if unit == "1" else np.int16)
    assert np.abs(np.asarray(back.dataobj, float).T - source.array).max() <= 0.502 * step
    np.testing.assert_allclose(RAS_TO_LPS @ back.affine, affine, atol=1e-4)
    assert [p.name for p in (tmp_path / "truth").iterdir()] == ["one.nii.gz"]


@pytest.mark.parametrize("affine", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_the_file_is_what_the_nifti_standard_says(tmp_path, affine):
    """Read by the offsets of NIfTI-1 alone: dim, datatype, vox_offset, scl_slope, scl_inter, sform."""
    source = Volume(noise(0, 30), affine, "SUV")
    content = gzip.decompress(write_nifti(source, tmp_path / "suv.nii.gz").read_bytes())
    assert np.frombuffer(content, "<i2", 4, 40).tolist() == [3, 8, 9, 6]
    assert np.frombuffer(content, "<i2", 1, 70) == [4]  # int16
    assert content[344:347] == b"n+1"
    offset, slope, intercept = np.frombuffer(content, "<f4", 3, 108)
    values = np.frombuffer(content, "<i2", source.array.size, int(offset)).reshape(source.array.shape) * slope
    np.testing.assert_allclose(values + intercept, source.array, atol=0.00051)
    assert np.frombuffer(content, "<i2", 2, 252).min() > 0  # both forms hold
    rows = np.frombuffer(content, "<f4", 12, 280).reshape(3, 4)
    np.testing.assert_allclose(rows, np.diag([-1, -1, 1]) @ affine[:3], atol=1e-4)  # LPS → RAS


def test_an_empty_or_constant_volume_can_be_written(tmp_path):
    empty = Volume(np.zeros((2, 3, 4), np.float32), AXIAL, "SUV")
    assert not nibabel.load(write_nifti(empty, tmp_path / "empty.nii.gz")).get_fdata().any()


def test_bool_masks_are_written_as_labels(tmp_path):
    mask = Volume(labels().array == 3, AXIAL, "1")
    back = nibabel.load(write_nifti(mask, tmp_path / "mask.nii.gz"))
    assert np.array_equal(np.asarray(back.dataobj).T, mask.array)


@pytest.mark.parametrize("unit", ["HU", "SUV", "1"])
def test_the_same_volume_writes_the_same_bytes(tmp_path, unit):
    source = Volume(noise(0, 200), OBLIQUE, unit)
    once, again = (write_nifti(source, tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert once == again
    assert once[4:8] == bytes(4), "no time in the gzip header"


def test_other_units_are_refused(tmp_path):
    with pytest.raises(ValueError, match="HU, SUV or 1, not 'Bq/ml'"):
        write_nifti(Volume(noise(0, 1), AXIAL, "Bq/ml"), tmp_path / "x.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("affine", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_segments_are_read_as_a_hospitals_are(tmp_path, affine):
    source = labels(affine)
    path = write_seg(source, SEGMENTS, ct_files(tmp_path), tmp_path / "truth" / "seg.dcm", "seed")
    result = read_segments([FileRef(path, path.name)])
    assert {name: len(masks) for name, masks in result.items()} == {"lesion": 2, "lung": 1}
    for mask, values in zip([*result["lesion"], *result["lung"]], [(7,), (9,), (3, 7)], strict=True):
        np.testing.assert_array_equal(on(mask, source), np.isin(source.array, values))


def test_the_seg_belongs_to_the_ct(tmp_path):
    files = ct_files(tmp_path)
    seg, ct = (pydicom.dcmread(p) for p in (write_seg(labels(), SEGMENTS, files, tmp_path / "s.dcm", "seed"), files[0]))
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert seg[keyword].value == ct[keyword].value
    [referenced] = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == ct.SeriesInstanceUID
    uids = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert uids == [pydicom.dcmread(f).SOPInstanceUID for f in files]
    assert [s.SegmentLabel for s in seg.SegmentSequence] == [name for name, _, _ in SEGMENTS]
    assert seg.ContentCreatorName == ""
    assert seg.NumberOfFrames == 2 + 2 + 10, "frames without a voxel are left out"
    assert seg.Rows < 32
    assert seg.Columns < 36


def test_empty_segments_are_left_out(tmp_path):
    files = ct_files(tmp_path)
    path = write_seg(labels(), [*SEGMENTS, ("lesion 3", (200,), "lesion")], files, tmp_path / "s.dcm", "seed")
    assert len(pydicom.dcmread(path).SegmentSequence) == 3
    with pytest.raises(ValueError, match=r"no segment has a voxel; the labels are \[0, 1, 3, 7, 9\]"):
        write_seg(labels(), [("lesion 3", (200,), "lesion")], files, tmp_path / "x.dcm", "seed")
    with pytest.raises(ValueError, match=r"\['heart'\] are unknown: they are lesion, lung"):
        write_seg(labels(), [("heart", (1,), "heart")], files, tmp_path / "x.dcm", "seed")
    assert not (tmp_path / "x.dcm").exists()


def test_the_same_arguments_write_the_same_seg(tmp_path):
    files = ct_files(tmp_path)
    once, again, other = (
        write_seg(labels(), SEGMENTS, files, tmp_path / name, name[0]).read_bytes() for name in ("a1", "a2", "b1")
    )
    assert once == again
    assert once != other


def test_dciodvfy_finds_no_error(tmp_path):
    path = write_seg(labels(), SEGMENTS, ct_files(tmp_path), tmp_path / "s.dcm", "seed")
    command = [str(Path(sys.executable).parent / "dciodvfy"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in report
    assert not [line for line in report if line.startswith("Error")]
