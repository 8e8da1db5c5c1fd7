"""Balls as masks, and DICOM segmentations of them."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from petct_lib.dicom.writer import Subject, make_uid, write_ct
from petct_lib.imaging.volume import Volume, axial_affine, resample

SECRET = "Doe^Jane"
SUBJECT = Subject(SECRET, make_uid("study"), make_uid("frame"))
LUNG = ("Lung", Code("39607008", "SCT", "Lung"))  # this and the next as in the BAMF-AIMI annotations
TUMOUR = ("FDG-Avid Tumor", Code("C168968", "NCIt", "FDG-Avid Tumor"))
AXIAL = np.eye(3)
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


def on(mask: Volume, other: Volume) -> np.ndarray:
    """A mask on another volume's grid, (z, y, x) bool."""
    return resample(mask, other.grid, 0.0).array
