"""Masks of lung, soft tissue and bone by HU thresholds, and of lesions as they were drawn, on a common grid.

They are for scoring only and are never given to a network: a translated image may not depend on the CT it is judged by.
The body's own mask is `volume.body_mask`.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from petct_lib import InputError
from petct_lib.imaging.volume import AIR_HU, MAX_VOXELS, Grid, Volume, cut_to_box, overlap_mm, resample

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


@dataclass(frozen=True)
class Region:
    """A bool mask in patient space, and where it comes from, for the score table: "SEG", "RTSTRUCT", "HU threshold"."""

    mask: Volume
    source: str


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
    box = cut_to_box(body) if body.array.any() else body
    hu = resample(_around(ct, box), box.grid, AIR_HU)
    drawn = {name: [region.mask for region in parts] for name, parts in segments.items()}
    lung = _on_grid(drawn.get("lung", []), box.grid)
    source = _sources(segments["lung"]) if lung.array.any() else FROM_HU
    lung = lung if lung.array.any() else find_lungs(hu, box)
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


def find_lungs(hu: Volume, body: Volume) -> Volume:
    """The one or two largest pieces of lung in a CT (HU) within the body, on its grid; empty where there is none."""
    air = Volume((hu.array < LUNG_MAX_HU) & body.array, hu.affine, "1")
    core = _erode(air, AIRWAY_MM)
    labels, volumes_ml = _pieces(core)
    large = np.flatnonzero(volumes_ml > MIN_LUNG_ML)
    largest = large[ndimage.mean(hu.array, labels, large) > GAS_MAX_HU][:2] if large.size else []
    core = Volume(np.isin(labels, largest), hu.affine, "1")
    # One voxel further than the erosion, so that the thin edges come back.
    grown = _dilate(core, AIRWAY_MM + float(hu.spacing_mm.min()))
    closed = _close(Volume(grown.array & air.array, hu.affine, "1"), AIRWAY_MM)
    return Volume(closed.array & body.array, hu.affine, "1")


def _bone(hu: Volume, where: np.ndarray) -> Volume:
    dense = Volume((hu.array > BONE_MIN_HU) & where, hu.affine, "1")
    closed = _close(dense, BONE_CLOSING_MM)
    return _large(Volume(closed.array & where, hu.affine, "1"), MIN_BONE_ML)


def _large(mask: Volume, smallest_ml: float) -> Volume:
    labels, volumes_ml = _pieces(mask)
    return Volume((volumes_ml >= smallest_ml)[labels], mask.affine, "1")


def _pieces(mask: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Connected components from the largest on, (z, y, x) from 1, and their volumes by label, ml, 0 for label 0."""
    labels, count = ndimage.label(mask.array)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)
    order = 1 + np.argsort(-voxels[1:], kind="stable")
    number = np.zeros(count + 1, int)
    number[order] = np.arange(1, count + 1)
    return number[labels], np.array([0, *voxels[order]]) * np.prod(mask.spacing_mm) / 1000


def _dilate(mask: Volume, radius_mm: float) -> Volume:
    """All voxels whose centre lies in the ellipsoid of ⌊radius⌉ + ½ voxels around one of the mask's."""
    semi_axes = np.round(radius_mm / mask.spacing_mm)[::-1] + 0.5
    if not mask.array.any():
        return mask
    return Volume(ndimage.distance_transform_edt(~mask.array, sampling=1 / semi_axes) <= 1, mask.affine, "1")


def _erode(mask: Volume, radius_mm: float) -> Volume:
    """The inverse of `_dilate`; what is beyond the border counts as mask."""
    return Volume(~_dilate(Volume(~mask.array, mask.affine, "1"), radius_mm).array, mask.affine, "1")


def _close(mask: Volume, radius_mm: float) -> Volume:
    """Dilated, then eroded, with background beyond the border."""
    margin = int(np.round(radius_mm / mask.spacing_mm).max()) + 1
    padded = Volume(np.pad(mask.array, margin), mask.affine, "1")
    inner = (slice(margin, -margin),) * 3
    return Volume(_erode(_dilate(padded, radius_mm), radius_mm).array[inner], mask.affine, "1")


# Grids.


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
