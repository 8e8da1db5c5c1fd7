"""Masks of body, lung, soft tissue, bone and lesions: from DICOM segmentations, else from HU thresholds.

They are for scoring only and are never given to a network: a translated image may not depend on the CT it is judged by.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.uid import SegmentationStorage
from scipy import ndimage

from petct_lib import InputError
from petct_lib.archives import FileRef
from petct_lib.dicom_files import Series, decompress
from petct_lib.volume import AIR_HU, Grid, Volume, overlap_mm, resample, to_sitk

if TYPE_CHECKING:
    from highdicom import VolumeGeometry

FROM_SEG, FROM_HU = "SEG", "HU threshold"

LUNG_MAX_HU = -400.0  # halfway between lung, about −850, and blood and muscle, about +40: the threshold of Hu 2001
GAS_MAX_HU = -960.0  # a trachea or bowel of gas is −1000 on average; lungs, severe emphysema too, are denser
AIRWAY_MM = 6.0  # the erosion that parts lungs from the airways, and the closing that takes in vessels
MIN_LUNG_ML = 100.0  # of an eroded lung: a collapsed one still counts, a stomach's bubble does not
SOFT_MIN_HU = -150.0  # fat in PET/CT reaches from −140 to −30 HU (PMC4043057)
# Own choice, above muscle with its tail, to 150 HU (10.1038/s41598-025-96238-6), and noise; others take 100 HU, with
# more soft tissue in it (10.1007/s00259-012-2113-0).
BONE_MIN_HU = 200.0
BONE_CLOSING_MM = 3.0  # between the walls of a rib; more would join ribs to each other
MIN_BONE_ML = 2.0  # most calcifications and clips are smaller; a piece of rib between two cartilages is not
MIN_SOFT_ML = 50.0  # nodules and vessels alone in the lung are neither lung nor soft tissue
MAX_VOXELS = 2**29  # two segments of 1,000 slices of 512 × 512; half a GiB when unpacked
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


@dataclass(frozen=True)
class Region:
    """A bool mask in patient space, and where it comes from, for the score table: "SEG", "RTSTRUCT", "HU threshold"."""

    mask: Volume
    source: str


# From SEG objects.


def preferred(series: list[Series]) -> list[Series]:
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
    found: dict[str, list[Volume]] = {}
    for ref in dict.fromkeys(refs):  # a multi-frame file is there once a frame
        try:
            masks = _read_masks(ref)
        except InputError as error:
            raise InputError(str(error), ref.shown) from None
        except Exception as error:  # a stranger's file may break any part of the reader; its text may quote values
            raise InputError(f"cannot be read as SEG ({type(error).__name__})", ref.shown) from None
        for name, mask in masks:
            found.setdefault(name, []).append(mask)
    return found


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
    named = {int(item.SegmentNumber): _region_of(item) for item in dataset.SegmentSequence}
    return {number: name for number, name in named.items() if name}


def _region_of(segment: Dataset) -> str | None:
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return region_named([str(n) for n in (segment.get("SegmentLabel"), *(t.get("CodeMeaning") for t in types))])


def region_named(names: list[str]) -> str | None:
    """What a segment or structure is by one of its names, "lesion" or "lung"; None for anything else.

    >>> region_named(["Lung nodule"]), region_named(["left lung"]), region_named(["lung vessels"])
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
    from highdicom.seg import Segmentation  # slow to import, and needed for SEG only

    seg = Segmentation.from_dataset(dataset, copy=False)
    _check_grid(dataset, seg.get_volume_geometry(allow_missing_positions=True, rtol=SLICE_TOLERANCE))
    half = dataset.MaximumFractionalValue / 2 if dataset.SegmentationType == "FRACTIONAL" else 0.5
    for number in numbers:
        stack = seg.get_volume(segment_numbers=[number], rescale_fractional=False, rtol=SLICE_TOLERANCE)
        # highdicom's axes are slice, row, column; ours are x along the columns, y along the rows, then slices.
        mask = Volume(stack.array[..., 0] > half, stack.affine[:, [2, 1, 0, 3]], "1")
        if mask.array.any():
            yield number, _cut_to_box(mask)


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


# From the CT.


def find_regions(ct: Volume, body: Volume, segments: dict[str, list[Region]]) -> dict[str, Region]:
    """Region by name: body (as given), lung, soft_tissue and bone always, lesion where the segments have one.

    ct: HU. body: `volume.body_mask(ct)`. segments: from SEG and RTSTRUCT by name, or {}. Lung, soft tissue and bone are
    on the body mask's grid, cut to the body's box; lesions on the finest lesion segment's grid, so that small ones
    last. The caller brings them to another grid with `volume.resample`, which interpolates and cuts at one half. Any
    mask but the body may be empty (a thigh has no lung). Lesions overlap the other regions.

    Thresholds see attenuation only: contrast medium, metal or thick calcifications over 200 HU count as bone, loose
    marrow under 200 HU as soft tissue, consolidated lung and nodules wider than 12 mm not as lung; bronchi inside the
    lungs count as lung. Scheme of Hu 2001 (10.1109/42.929615): threshold, components, closing.
    """
    box = _cut_to_box(body) if body.array.any() else body
    hu = resample(_around(ct, box), box.grid, AIR_HU)
    drawn = {name: [region.mask for region in of] for name, of in segments.items()}
    lung = _on_grid(drawn.get("lung", []), box.grid)
    source = _sources(segments["lung"]) if lung.array.any() else FROM_HU
    lung = lung if lung.array.any() else lungs(hu, box)
    rest = box.array & ~lung.array
    bone = _bone(hu, rest)
    soft = (hu.array > SOFT_MIN_HU) & (hu.array <= BONE_MIN_HU) & rest & ~bone.array
    soft = _large(Volume(soft, hu.affine, "1"), MIN_SOFT_ML)
    regions = {"body": Region(body, FROM_HU), "lung": Region(lung, source)}
    regions |= {"soft_tissue": Region(soft, FROM_HU), "bone": Region(bone, FROM_HU)}
    lesions = [region for region in segments.get("lesion", []) if _overlap(region.mask, box)]
    lesion = {"lesion": Region(_on_finest([r.mask for r in lesions]), _sources(lesions))} if lesions else {}
    return regions | lesion


def _sources(regions: list[Region]) -> str:
    return " and ".join(sorted({region.source for region in regions}))


def lungs(hu: Volume, body: Volume) -> Volume:
    """The one or two largest pieces of lung in a CT (HU) within the body, on its grid; empty where there is none."""
    air = Volume((hu.array < LUNG_MAX_HU) & body.array, hu.affine, "1")
    core = _morph(sitk.BinaryErode, air, AIRWAY_MM)
    labels, volumes_ml = _pieces(core)
    large = np.flatnonzero(volumes_ml > MIN_LUNG_ML)
    largest = large[ndimage.mean(hu.array, labels, large) > GAS_MAX_HU][:2] if large.size else []
    core = Volume(np.isin(labels, largest), hu.affine, "1")
    # One voxel further than the erosion, so that the thin edges come back.
    grown = _morph(sitk.BinaryDilate, core, AIRWAY_MM + float(hu.spacing_mm.min()))
    closed = _morph(sitk.BinaryMorphologicalClosing, Volume(grown.array & air.array, hu.affine, "1"), AIRWAY_MM)
    return Volume(closed.array & body.array, hu.affine, "1")


def _bone(hu: Volume, where: np.ndarray) -> Volume:
    dense = Volume((hu.array > BONE_MIN_HU) & where, hu.affine, "1")
    closed = _morph(sitk.BinaryMorphologicalClosing, dense, BONE_CLOSING_MM)
    return _large(Volume(closed.array & where, hu.affine, "1"), MIN_BONE_ML)


def _large(mask: Volume, smallest_ml: float) -> Volume:
    labels, volumes_ml = _pieces(mask)
    return Volume((volumes_ml >= smallest_ml)[labels], mask.affine, "1")


def _pieces(mask: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Connected components from the largest on, (z, y, x) from 1, and their volumes by label, ml, 0 for label 0."""
    image = sitk.RelabelComponent(sitk.ConnectedComponent(to_sitk(mask)))
    labels = sitk.GetArrayFromImage(image)
    volumes_ml = np.bincount(labels.ravel()) * np.prod(mask.spacing_mm) / 1000
    volumes_ml[0] = 0
    return labels, volumes_ml


def _morph(operation: Callable, mask: Volume, radius_mm: float) -> Volume:
    radius = [round(float(r)) for r in radius_mm / mask.spacing_mm]
    image = operation(to_sitk(mask), radius, sitk.sitkBall)
    return Volume(sitk.GetArrayFromImage(image).astype(bool), mask.affine, "1")


# Grids.


def _cut_to_box(mask: Volume) -> Volume:
    """The part that is not empty, with one voxel of background around it: interpolation then ends where it should."""
    spans = [np.flatnonzero(mask.array.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    part = mask.array[tuple(slice(s[0], s[-1] + 1) for s in spans)]
    affine = mask.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s[0] - 1.0 for s in spans[::-1]]
    return Volume(np.pad(part, 1), affine, mask.unit)


def _around(ct: Volume, box: Volume) -> Volume:
    """The part of the CT that holds the box and four voxels more."""
    low, high = _index_bounds([box], ct.affine)
    low, high = np.maximum(low - 4, 0), np.minimum(high + 5, ct.size)
    affine = ct.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    return Volume(ct.array[tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))], affine, ct.unit)


def _index_bounds(volumes: list[Volume], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last index (x, y, z) that the volumes cover on a grid of that affine."""
    corners = np.concatenate([v.corners_mm() for v in volumes])
    index = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return np.floor(index.min(axis=0) + 0.5 + 1e-6).astype(int), np.ceil(index.max(axis=0) - 0.5 - 1e-6).astype(int)


def _overlap(a: Volume, b: Volume) -> bool:
    try:
        return bool(overlap_mm([a, b]))
    except ValueError:
        return False


def _on_grid(masks: list[Volume], grid: Grid) -> Volume:
    """Where any of the masks holds; empty without masks."""
    union = np.zeros(grid.size[::-1], bool)
    for mask in masks:
        union |= resample(mask, grid, 0.0).array
    return Volume(union, grid.affine, "1")


def _on_finest(masks: list[Volume]) -> Volume:
    """Where any of the masks holds, on the finest one's grid, which is made large enough for all of them."""
    finest = min(masks, key=lambda m: np.prod(m.spacing_mm))
    low, high = _index_bounds(masks, finest.affine)
    size = high - low + 1
    if np.prod(size.astype(float)) > MAX_VOXELS:
        raise InputError(f"the lesion segments span {size} voxels together, more than the limit of {MAX_VOXELS}")
    affine = finest.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    return _on_grid(masks, Grid(tuple(int(n) for n in size), affine))
