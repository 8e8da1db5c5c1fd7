"""Masks of lungs and lesions from DICOM structure sets (RTSTRUCT): what a radiotherapist or a study's reader drew.

For scoring only, as those of `regions`, whose names they share.
"""

import warnings
from io import BytesIO

import numpy as np
import pydicom
from pydicom import Dataset

from petct_lib import InputError
from petct_lib.dicom.archives import FileRef
from petct_lib.dicom.seg import match_region
from petct_lib.imaging.volume import MAX_VOXELS, Volume, axial_affine

FROM_RTSTRUCT = "RTSTRUCT"
RTSTRUCT_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
PIXEL_MM = 1.0  # that contours are filled at: finer than any PET, and than most CTs of PET/CT
SAME_PLANE_MM = 0.1  # written positions are rounded; no scanner cuts thinner slices
MIN_POINTS = 3  # of a contour that encloses anything
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def read_structures(ref: FileRef, frame_of_reference_uid: str, slice_mm: float) -> dict[str, list[Volume]]:
    """Masks of the structures that are a lung or a lesion by their name, bool volumes by "lung" and "lesion".

    Closed contours on axial planes, filled at PIXEL_MM; where several of a structure lie in one plane, what is inside
    an odd number of them counts, so that a contour within another is a hole. A structure's slices are as thick as its
    planes are apart, at the median; `slice_mm` where there is one plane alone. Structures of other names, and empty
    ones, are left out. Raises InputError for a file that is no readable RTSTRUCT of this frame of reference, for
    oblique contours, and for what is too large. Source: DICOM PS3.3 C.8.8.5 and C.8.8.6.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values, which may identify a patient
            dataset = pydicom.dcmread(BytesIO(ref.read()), force=True)
            if dataset.get("SOPClassUID") != RTSTRUCT_STORAGE:
                raise InputError("not a DICOM structure set")
            return _read(dataset, frame_of_reference_uid, slice_mm)
    except InputError as error:
        raise InputError(str(error), ref.shown) from None
    except Exception as error:  # a stranger's file may break any part of the reader; its text may quote values
        raise InputError(f"cannot be read as RTSTRUCT ({type(error).__name__})", ref.shown) from None


def _read(dataset: Dataset, frame_of_reference_uid: str, slice_mm: float) -> dict[str, list[Volume]]:
    structures: dict[str, list[Volume]] = {}
    rois = {int(roi.ROINumber): roi for roi in dataset.StructureSetROISequence}
    for drawn in dataset.ROIContourSequence:
        roi = rois[int(drawn.ReferencedROINumber)]
        name = match_region([str(roi.get("ROIName"))])
        contours = [
            np.array(c.ContourData, float).reshape(-1, 3)
            for c in drawn.get("ContourSequence", [])
            if c.ContourGeometricType in CLOSED
        ]
        contours = [c for c in contours if len(c) >= MIN_POINTS]
        if name is None or not contours:
            continue
        if str(roi.ReferencedFrameOfReferenceUID) != frame_of_reference_uid:
            raise InputError("its structures are of another frame of reference than the PET")
        structures.setdefault(name, []).append(fill(contours, slice_mm))
    return structures


def fill(contours: list[np.ndarray], slice_mm: float) -> Volume:
    """Closed axial contours, each (points, 3) in patient mm, as one bool volume; see `read_structures`."""
    if any(not np.isfinite(c).all() or np.ptp(c[:, 2]) > SAME_PLANE_MM for c in contours):
        raise InputError("a contour that is not on an axial plane")
    planes = _planes(contours)
    heights = np.array([plane[0][0, 2] for plane in planes])
    thick = float(np.quantile(np.diff(heights), 0.5, method="lower")) if len(planes) > 1 else slice_mm
    k = np.floor((heights - heights[0]) / thick + 0.5).astype(int) + 1
    margin = 1.5 * PIXEL_MM  # background around it; and no corner on a centre
    low = np.min([c[:, :2].min(axis=0) for c in contours], axis=0) - margin
    high = np.max([c[:, :2].max(axis=0) for c in contours], axis=0) + margin
    columns, rows = np.ceil((high - low) / PIXEL_MM).astype(int) + 1
    slices = int(k.max()) + 2
    if float(slices) * rows * columns > MAX_VOXELS:
        raise InputError(f"a structure of {slices} × {rows} × {columns} voxels, more than the limit of {MAX_VOXELS}")
    from skimage.draw import polygon2mask  # slow to import

    mask = np.zeros((slices, rows, columns), bool)
    for plane, at in zip(planes, k, strict=True):
        inside = np.zeros((rows, columns), bool)
        for contour in plane:
            inside ^= polygon2mask((rows, columns), (contour[:, 1::-1] - low[::-1]) / PIXEL_MM)  # row and column
        mask[at] |= inside  # planes closer than `thick` may share a slice
    return Volume(mask, axial_affine((PIXEL_MM, PIXEL_MM, thick), np.array([*low, heights[0] - thick])), "1")


def _planes(contours: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Contours by plane, from the lowest upwards; those within SAME_PLANE_MM of a plane's lowest are of it."""
    planes: list[list[np.ndarray]] = []
    for contour in sorted(contours, key=lambda c: c[0, 2]):
        if planes and contour[0, 2] - planes[-1][0][0, 2] <= SAME_PLANE_MM:
            planes[-1].append(contour)
        else:
            planes.append([contour])
    return planes
