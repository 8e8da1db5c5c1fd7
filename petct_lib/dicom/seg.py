"""Masks of lungs and lesions from DICOM segmentations (SEG)."""

import re
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from petct_lib import InputError
from petct_lib.dicom.archives import FileRef
from petct_lib.dicom.headers import Series
from petct_lib.dicom.pixels import decompress
from petct_lib.imaging.volume import MAX_VOXELS, Volume, cut_to_box

if TYPE_CHECKING:
    from highdicom import VolumeGeometry

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # DICOM 2024; pydicom 3.0 has no name for it
SLICE_TOLERANCE = 0.1  # of the spacing: written positions are rounded, and the rounding adds up along the slices
PLANE = [
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
]

LESION_NAME = re.compile(r"\b(nodules?|tumou?rs?|neoplasms?|mass(es)?|lesions?|metastas[ie]s|gtv\w*)\b")
NO_LESION = re.compile(  # beside a tumour ("GTV_Edema"), and an organ without its tumour ("Lungs-GTV", "Body not GTV")
    r"\bo?edema\b|\b(lungs?|body|liver|normal)\b.*(-|\b(minus|not|without|excl\w*)\b)\s*\w*(gtv|ctv|itv|ptv|tumou?r)"
)
LUNG_WORDS = {"lung", "lungs", "left", "right", "l", "r", "both", "and", "structure", "of", "entire", "whole"}


def choose_versions(series: list[Series]) -> list[Series]:
    """One version of each kind of SEG or RTSTRUCT: corrected by a radiologist before others, before AI alone.

    Anti-PD-1_Lung has up to four of one image; the kind (tumour on PET, nodule on CT) and the version are told by
    SeriesDescription: "AIMI lung and nodule AI segmentation", "… radiologist 1 corrected …".
    """
    best: dict[tuple[str, bool], Series] = {}
    for one in sorted(series, key=lambda s: (_version(s), s.uid)):
        best.setdefault((one.modality, "nodule" in str(one.get("SeriesDescription")).lower()), one)
    return list(best.values())


def _version(series: Series) -> int:
    described = str(series.get("SeriesDescription")).lower()
    return 0 if "radiologist" in described else 1 if "corrected" in described else 2


def read_segments(refs: list[FileRef]) -> dict[str, list[Volume]]:
    """Masks of the segments that are a lung or a lesion by their label or coded type, in all the SEG files given.

    Returns bool volumes by "lung" and "lesion", one a segment, each cut to its own box on the SEG's own grid (affine in
    LPS mm). Frames that a file leaves out are background; fractional segments are cut at one half; segments of another
    name, and empty ones, are left out. Give it the SEGs of one frame of reference, and of several versions of one
    (by AI, corrected by a radiologist) only the one that is meant: the masks are put together.
    Raises InputError for a file that is not a readable SEG on a regular grid in patient space, or is too large.
    Source: DICOM PS3.3 A.51; the names as in TCIA's BAMF-AIMI annotations (10.5281/zenodo.8345959).
    """
    segments: dict[str, list[Volume]] = {}
    for ref in dict.fromkeys(refs):  # a multi-frame file is there once a frame
        try:
            masks = _read_masks(ref)
        except InputError as error:
            raise InputError(str(error), ref.shown) from None
        except Exception as error:  # a stranger's file may break any part of the reader; its text may quote values
            raise InputError(f"cannot be read as SEG ({type(error).__name__})", ref.shown) from None
        for name, mask in masks:
            segments.setdefault(name, []).append(mask)
    return segments


def _read_masks(ref: FileRef) -> list[tuple[str, Volume]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values, which may identify a patient
        dataset = pydicom.dcmread(BytesIO(ref.read()), force=True)
        _check(dataset)
        named = _named_segments(dataset)
        decompress(dataset)
        return [(named[number], mask) for number, mask in _unpack(dataset, list(named))] if named else []


def _check(dataset: Dataset) -> None:
    """Refuses what is no SEG, or unpacks to more than MAX_VOXELS, before any pixel is unpacked."""
    if dataset.get("SOPClassUID") not in (SegmentationStorage, LABEL_MAP_STORAGE):
        raise InputError("not a DICOM Segmentation object")
    try:
        rows, columns, frames = (int(dataset[k].value) for k in ("Rows", "Columns", "NumberOfFrames"))
    except Exception:  # missing, empty, or not a number
        raise InputError("the SEG does not say its rows, columns and frames") from None
    if rows * columns * frames > MAX_VOXELS:
        raise InputError(f"the SEG has {rows} × {columns} × {frames} voxels, more than the limit of {MAX_VOXELS}")
    for sequence, keyword in PLANE:
        if not _in_frames(dataset, sequence, keyword):
            raise InputError(f"the frames of the SEG have no {keyword}")


def _named_segments(dataset: Dataset) -> dict[int, str]:
    """Region name by segment number, for the segments that have one."""
    named = {int(item.SegmentNumber): _match_segment(item) for item in dataset.SegmentSequence}
    return {number: name for number, name in named.items() if name}


def _match_segment(segment: Dataset) -> str | None:
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return match_region([str(n) for n in (segment.get("SegmentLabel"), *(t.get("CodeMeaning") for t in types))])


def match_region(names: list[str]) -> str | None:
    """What a segment or structure is by one of its names, "lesion" or "lung"; None for anything else.

    >>> match_region(["Lung nodule"]), match_region(["left lung"]), match_region(["lung vessels"])
    ('lesion', 'lung', None)
    """
    names = [n.lower().replace("_", " ") for n in names]
    if any(LESION_NAME.search(n) and not NO_LESION.search(n) for n in names):
        return "lesion"
    words = [set(re.findall(r"\w+", n)) for n in names]
    # Every word has to fit: "lung vessels" and "left upper lobe of lung" are not the lung.
    return "lung" if any(w & {"lung", "lungs"} and w <= LUNG_WORDS for w in words) else None


def _unpack(dataset: Dataset, numbers: list[int]) -> Iterator[tuple[int, Volume]]:
    """Segment number and mask, cut to its box, of the segments that are not empty."""
    try:
        from highdicom.seg import Segmentation  # slow to import, and needed for SEG only
    except ModuleNotFoundError:
        raise InputError("reading SEG needs highdicom: pip install 'petct-lib[dicom-seg]'") from None

    seg = Segmentation.from_dataset(dataset, copy=False)
    _check_grid(dataset, seg.get_volume_geometry(allow_missing_positions=True, rtol=SLICE_TOLERANCE))
    half = dataset.MaximumFractionalValue / 2 if dataset.SegmentationType == "FRACTIONAL" else 0.5
    for number in numbers:
        stack = seg.get_volume(segment_numbers=[number], rescale_fractional=False, rtol=SLICE_TOLERANCE)
        # highdicom's axes are slice, row, column; ours are x along the columns, y along the rows, then slices.
        mask = Volume(stack.array[..., 0] > half, stack.affine[:, [2, 1, 0, 3]], "1")
        if mask.array.any():
            yield number, cut_to_box(mask)


def _check_grid(dataset: Dataset, grid: "VolumeGeometry | None") -> None:
    """Refuses what is no regular grid in patient space, or a grid far larger than its frames."""
    if grid is None:
        raise InputError("the frames of the SEG are not parallel slices at regular distances")
    if np.prod([float(n) for n in grid.spatial_shape]) > MAX_VOXELS:
        raise InputError(f"the SEG's slices lie so far apart that its grid is beyond {MAX_VOXELS} voxels")
    if not np.isfinite(grid.affine).all() or abs(np.linalg.det(grid.affine)) < 1e-9:
        raise InputError("the SEG's image positions, orientation and pixel spacing span no volume")
    if grid.spatial_shape[0] == 1 and not _in_frames(dataset, "PixelMeasuresSequence", "SpacingBetweenSlices"):
        raise InputError("the SEG has a single slice and no SpacingBetweenSlices: its thickness is not known")


def _in_frames(dataset: Dataset, sequence: str, keyword: str) -> bool:
    """Whether the frames, together or each, have an attribute."""
    groups = [*dataset.get("SharedFunctionalGroupsSequence", []), *dataset.get("PerFrameFunctionalGroupsSequence", [])]
    return any(keyword in item for group in groups for item in group.get(sequence, []))
