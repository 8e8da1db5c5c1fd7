"""Structure sets: contours become the masks that they enclose, where they lie; what is no such file is refused."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from petct_lib import InputError
from petct_lib.data.prepare import SliceSettings, prepare
from petct_lib.dicom.archives import FileRef
from petct_lib.dicom.rtstruct import RTSTRUCT_STORAGE, fill, read_structures
from petct_lib.dicom.seg import match_region
from petct_lib.dicom.studies import find_pairs
from petct_lib.imaging.volume import Grid, axial_affine, resample

FRAME = "1.2.3.4"
REAL = Path(__file__).parents[3] / "shared" / "data" / "sts"


def square(side_mm, z=0.0, centre=(0.0, 0.0)):
    half = side_mm / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)]) + centre
    return np.column_stack([corners, np.full(4, z)])


def circle(radius_mm, z):
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return np.column_stack([radius_mm * np.cos(angle), radius_mm * np.sin(angle), np.full(90, z)])


def volume_ml(mask):
    return mask.array.sum() * np.prod(mask.spacing_mm) / 1000


def structure_set(path, rois, *, frame=FRAME, kind="CLOSED_PLANAR"):
    """rois: {name: contours}."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = RTSTRUCT_STORAGE
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    data.StructureSetROISequence, data.ROIContourSequence = Sequence(), Sequence()
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = number
        roi.ROIName, roi.ReferencedFrameOfReferenceUID = name, frame
        drawn.ContourSequence = Sequence()
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{v:.3f}" for v in np.ravel(points)]
            drawn.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return FileRef(path, path.name)


def test_contours_become_the_volume_that_they_enclose():
    planes = np.arange(-20, 21, 2.0)
    ball = fill([circle(np.sqrt(400.5 - z**2), z) for z in planes], 9.0)
    assert ball.spacing_mm.tolist() == [1, 1, 2]
    assert volume_ml(ball) == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=0.01)
    index = np.argwhere(ball.array)[:, ::-1]
    centre = (index @ ball.affine[:3, :3].T + ball.affine[:3, 3]).mean(axis=0)
    assert centre == pytest.approx([0, 0, 0], abs=0.1)
    assert not ball.array[0].any()
    assert not ball.array[-1].any()


def test_a_contour_within_another_is_a_hole_and_a_plane_without_one_is_empty():
    mask = fill([square(30, 0), square(10, 0), square(30, 3), square(30, 9)], 5.0)
    areas = mask.array.sum(axis=(1, 2))
    assert areas[1] == 900 - 100
    assert areas[2] == 900
    assert areas[3] == 0
    assert areas[4] == areas[2]


def test_two_pieces_apart_are_both_there_and_one_plane_has_the_thickness_given():
    mask = fill([square(10, 5, (-30, 0)), square(10, 5, (30, 8))], 4.0)
    assert mask.spacing_mm[2] == 4
    grid = Grid((100, 100, 1), axial_affine((1.0, 1.0, 4.0), np.array([-50.0, -50.0, 5.0])))
    on = resample(mask, grid, 0.0).array[0]
    assert on[50, 20]
    assert on[58, 80]
    assert not on[50, 50]


def test_planes_closer_than_the_slices_are_joined_and_not_cut_out_of_each_other():
    mask = fill([square(10, z) for z in (0, 1.5, 4.5, 7.5, 10.5, 13.5)], 9.0)
    assert mask.spacing_mm[2] == 3
    assert mask.array.sum(axis=(1, 2)).tolist() == [0, 100, 100, 100, 100, 100, 100, 0]
    rounded = fill([square(10, z) for z in (0, 3.0, 3.006, 6.0)], 9.0)
    assert rounded.spacing_mm[2] == 3


@pytest.mark.parametrize(
    ("name", "region"),
    [("Lungs-GTV", None), ("Total Lung - GTV", None), ("Lungs minus GTV", None), ("Body not PTV", None),
     ("PET-GTV", "lesion"), ("GTV-1", "lesion"), ("Tumour in lung", "lesion"), ("Lung_R", "lung")],
)  # fmt: skip
def test_an_organ_without_its_tumour_is_neither(name, region):
    assert match_region([name]) == region


def test_structures_are_known_by_their_names(tmp_path):
    contours = [square(20, z) for z in (0, 3, 6)]
    names = ("GTV_Mass_PET", "Lung_L", "GTV_Edema", "Heart", "PTV", "Tumor 1")
    ref = structure_set(tmp_path / "rs.dcm", {**dict.fromkeys(names, contours), "Lesion empty": []})
    result = read_structures(ref, FRAME, 3.0)
    assert {name: len(masks) for name, masks in result.items()} == {"lesion": 2, "lung": 1}
    points = structure_set(tmp_path / "points.dcm", {"GTV": contours}, kind="POINT")
    assert read_structures(points, FRAME, 3.0) == {}
    short = structure_set(tmp_path / "short.dcm", {"GTV": [square(20)[:2], *contours]})
    assert volume_ml(read_structures(short, FRAME, 3.0)["lesion"][0]) == pytest.approx(3.6)


def test_what_cannot_be_used_is_refused_by_name(tmp_path):
    other = structure_set(tmp_path / "other.dcm", {"GTV": [square(20)]}, frame="9.9")
    oblique = square(20)
    oblique[0, 2] = 5.0
    tilted = structure_set(tmp_path / "tilted.dcm", {"GTV": [oblique]})
    large = structure_set(tmp_path / "large.dcm", {"GTV": [square(9e5)]})
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM")
    cases = ((other, "another frame"), (tilted, "axial"), (large, "limit"))
    for ref, message in (*cases, (FileRef(text, text.name), "structure set")):
        with pytest.raises(InputError, match=message) as error:
            read_structures(ref, FRAME, 3.0)
        assert error.value.where == ref.name


def test_a_damaged_file_is_an_input_error(tmp_path):
    ref = structure_set(tmp_path / "rs.dcm", {"GTV": [square(20, z) for z in (0, 3)]})
    whole = ref.path.read_bytes()
    rng = np.random.default_rng(0)
    for k in range(60):
        cut = bytearray(whole[: rng.integers(140, len(whole))] if k % 2 else whole)
        for at in rng.integers(132, len(cut), size=4):
            cut[at] = rng.integers(256)
        ref.path.write_bytes(cut)
        try:
            read_structures(ref, FRAME, 3.0)
        except InputError:
            continue


@pytest.mark.skipif(not REAL.is_dir(), reason="real studies are not here: ../shared/data/sts")
def test_a_real_tumour_lies_where_the_pet_is_hot(tmp_path):
    path = REAL / "STS_001.zip"
    [pair] = find_pairs(path).pairs
    assert [series.modality for series in pair.segments] == ["RTSTRUCT"]
    prepared = prepare(path, tmp_path / "prepared", SliceSettings(size=64, slice_mm=3.27))
    [study] = prepared.studies()
    lesion, pet, body = (prepared.array(study, name) for name in ("lesion", "pet", "body"))
    assert prepared.row(study)["regions"]["lesion"] == "RTSTRUCT"
    assert pet[lesion].mean() > 3 * pet[body & ~lesion].mean()
