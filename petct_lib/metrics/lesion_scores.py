"""What a translation does to the lesions on PET: how far their uptake is off, which are missed, which are invented.

Masks are for scoring only. Arrays are a patient's stack (n, H, W); PET is in SUV; voxels are (z, y, x) mm.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from petct_lib.metrics import voxelwise

UNITS = {
    "lesions": "count", "suvmax_error": "SUV", "suvmean_error": "SUV", "suvpeak_error": "SUV", "overlap": "1",
    "missed": "count", "invented": "count",
}  # fmt: skip
MISSED_SHARE = 0.5  # of the real SUVmax: PET lesions are contoured at 41 to 50 % of it (EANM 2.0, Boellaard 2015)
HOT_SUV = 4.0  # above blood and liver, about 2 to 3; the safer of the thresholds 2.5 and 4.0 in use (PMC7139791)
MIN_ML = 0.5  # chosen: a ball 10 mm across, hardly more than PET resolves; in ml, for voxels differ. Less is noise
PEAK_MM = 6.2  # a ball of 1 ml: SUVpeak (PERCIST, Wahl 2009; IBSI, global intensity peak, 0F91)
PARTS = 9  # a voxel's parts along each axis, to tell which share of it lies in the ball
CONTOUR_SHARE = 0.41  # of the real SUVmax: the contour of the EANM guideline 2.0 (Boellaard 2015)
NEAR_MM = 10.0  # chosen: how far from its mask a lesion may be painted and still overlap; no other organ's uptake
TOUCHING = np.ones((3, 3, 3), bool)  # a voxel and its 26 neighbours


def score_lesions(
    studies: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]],
    voxel_mm: tuple[float, float, float],
) -> dict[str, float]:
    """Scores of a patient's lesions; each component of a study's mask with its 26 neighbours is one.

    studies: of each, the real and the synthetic PET (n, H, W), the lesions, bool of that shape and maybe empty, or None
    where nobody has drawn any, and the body. `summarise_lesions` of `score_each_lesion` of all of them, left out where
    no study has a mask; and invented, see `count_invented_regions`: the real PET knows where there is uptake.
    ValueError for unequal shapes, values that are not finite, a body that is empty, masks that are not bool, and voxels
    without size.
    """
    each, drawn, invented = [], False, 0
    for real, synthetic, lesion, body in studies:
        invented += count_invented_regions(real, synthetic, body, voxel_mm)
        if lesion is not None:
            drawn = True
            each += score_each_lesion(real, synthetic, lesion, voxel_mm)
    return {**(summarise_lesions(each) if drawn else {}), "invented": float(invented)}


def summarise_lesions(each: list[dict[str, float]]) -> dict[str, float]:
    """lesions: their number; missed: how many; of the other scores the means over the lesions that have them."""
    names = dict.fromkeys(name for one in each for name in one if name != "missed")
    means = {name: float(np.mean([one[name] for one in each if name in one])) for name in names}
    return {"lesions": float(len(each)), "missed": float(sum(one["missed"] for one in each)), **means}


def score_each_lesion(
    real_suv: np.ndarray, synthetic_suv: np.ndarray, lesion: np.ndarray, voxel_mm: tuple[float, float, float]
) -> list[dict[str, float]]:
    """Of each lesion of a study: suvmax_error, suvmean_error, suvpeak_error, missed, overlap.

    The errors are |synthetic − real|, in SUV, of the maximum, the mean, and the highest mean of a ball of 1 ml around a
    voxel of the lesion. missed: 1 for a synthetic SUVmax below MISSED_SHARE of the real one, which for a lesion that
    never took up any says little. overlap: see there; only of a lesion whose contour is above what is around it.
    ValueError for unequal shapes, values that are not finite, lesions that are not bool, and voxels without size.
    """
    real, synthetic, _ = voxelwise.check_stacks(real_suv, synthetic_suv)
    if np.shape(lesion) != real.shape or np.asarray(lesion).dtype != bool:
        raise ValueError(f"lesion {np.shape(lesion)} must be bool, of the images' shape {real.shape}")
    labels, _ = ndimage.label(lesion, TOUCHING)
    balls = ball_shares(PEAK_MM, voxel_mm), ball_voxels(NEAR_MM, voxel_mm)
    boxes = enumerate(ndimage.find_objects(labels), start=1)
    return [_one(real, synthetic, labels, k, box, *balls) for k, box in boxes]


def _one(
    real: np.ndarray, synthetic: np.ndarray, labels: np.ndarray, k: int, box: tuple, ball: np.ndarray, near: np.ndarray
) -> dict[str, float]:
    """Scores of the lesion labelled k, which lies in the box."""
    reach = (max(n, m) // 2 for n, m in zip(ball.shape, near.shape, strict=True))
    wide = tuple(slice(max(s.start - n, 0), s.stop + n) for s, n in zip(box, reach, strict=True))
    mask, a, b = labels[wide] == k, real[wide], synthetic[wide]
    highest = float(a[mask].max())
    around = ndimage.binary_dilation(mask, near)
    scores = {
        "suvmax_error": abs(float(b[mask].max()) - highest),
        "suvmean_error": abs(float(b[mask].mean() - a[mask].mean())),
        "suvpeak_error": abs(suv_peak(b, mask, ball) - suv_peak(a, mask, ball)),
        "missed": float(b[mask].max() < MISSED_SHARE * highest),
    }
    outside = around & (labels[wide] == 0)
    if not outside.any() or CONTOUR_SHARE * highest > np.median(a[outside]):
        scores["overlap"] = overlap(a, b, around, CONTOUR_SHARE * highest)
    return scores


def ball_voxels(radius_mm: float, voxel_mm: tuple[float, ...]) -> np.ndarray:
    """Voxels whose centre is within the radius of the middle one's, bool (z, y, x) with odd sides.

    >>> int(ball_voxels(1.0, (1.0, 1.0, 1.0)).sum())  # the voxel itself and its six faces' neighbours
    7
    """
    reach = [int(radius_mm // size) for size in voxel_mm]
    axes = [np.arange(-n, n + 1) * size for n, size in zip(reach, voxel_mm, strict=True)]
    return sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij")) <= radius_mm**2


def ball_shares(radius_mm: float, voxel_mm: tuple[float, ...]) -> np.ndarray:
    """Share of each voxel that lies in a ball around the centre of the middle one, (z, y, x) with odd sides.

    Shares, and not the voxels whose centres are in it as IBSI has it: on a grid of 7 mm that is one voxel of 0.25 ml,
    and a maximum by the name of a peak. On fine grids both are the same. The shares add up to the ball's volume, 1 ml
    for SUVpeak:

    >>> round(float(ball_shares(PEAK_MM, (3.0, 4.0, 4.0)).sum()) * 3 * 4 * 4 / 1000, 2)
    1.0
    """
    reach = [int(np.ceil(radius_mm / size - 0.5)) for size in voxel_mm]
    parts = [(np.arange(-n * PARTS, (n + 1) * PARTS) + 0.5) / PARTS - 0.5 for n in reach]  # in voxels
    squares = np.meshgrid(*((p * size) ** 2 for p, size in zip(parts, voxel_mm, strict=True)), indexing="ij")
    inside = sum(squares) <= radius_mm**2
    sides = [n for k in reach for n in (2 * k + 1, PARTS)]
    return inside.reshape(sides).mean(axis=(1, 3, 5))


def suv_peak(suv: np.ndarray, mask: np.ndarray, ball: np.ndarray) -> float:
    """Highest mean over the ball around a voxel of the mask, in SUV: SUVpeak (PERCIST, Wahl 2009; IBSI 0F91).

    suv (n, H, W), mask bool of that shape and not empty; ball: `ball_shares`. Its part outside the array is left out.
    """
    total = ndimage.correlate(suv.astype(float), ball, mode="constant")
    count = ndimage.correlate(np.ones(suv.shape), ball, mode="constant")
    return float((total / count)[mask].max())


def overlap(real_suv: np.ndarray, synthetic_suv: np.ndarray, around: np.ndarray, threshold_suv: float) -> float:
    """Dice of the voxels at or above one threshold in both images within `around`; 0 where the synthetic has none.

    The threshold comes from the real lesion, for 41 % of nothing is everywhere. All (n, H, W), `around` bool.

    >>> real, synthetic = np.array([[[0.0, 5.0, 5.0]]]), np.array([[[0.0, 0.0, 5.0]]])
    >>> round(overlap(real, synthetic, np.ones((1, 1, 3), bool), threshold_suv=2.0), 3)  # 2 · 1 / (2 + 1)
    0.667
    """
    a, b = around & (real_suv >= threshold_suv), around & (synthetic_suv >= threshold_suv)
    total = int(a.sum()) + int(b.sum())
    return 2 * float((a & b).sum()) / total if total else 0.0


def count_invented_regions(
    real_suv: np.ndarray, synthetic_suv: np.ndarray, body: np.ndarray, voxel_mm: tuple[float, float, float]
) -> int:
    """Number of hot regions of the synthetic PET that the real one knows nothing of.

    A region: voxels of the body with HOT_SUV or more that touch (26 neighbours), MIN_ML or more together. The real PET
    knows of it if, in the region or one voxel around it, it is above half of the region's synthetic maximum: uptake
    that is shared, as the heart's, or painted somewhat too strong, is not invented. An invented lesion that touches
    shared uptake is one region with it and is not counted. ValueError for unequal shapes, values that are not finite, a
    body that is empty or not bool, and voxels without size.
    """
    return len(find_invented_lesions(real_suv, synthetic_suv, body, voxel_mm))


@dataclass(frozen=True)
class Spot:
    """One lesion, or one invented hot region: where its maximum is, and the SUV maxima of both images there."""

    place: tuple[int, int, int]  # slice, row, column: of the real maximum of a lesion, the synthetic of an invention
    real: float
    synthetic: float


def find_invented_lesions(
    real_suv: np.ndarray, synthetic_suv: np.ndarray, body: np.ndarray, voxel_mm: tuple[float, float, float]
) -> list[Spot]:
    """The regions that `count_invented_regions` counts; `real` is the maximum in the region and one voxel around it."""
    real, synthetic, body = voxelwise.check_stacks(real_suv, synthetic_suv, body)
    if len(voxel_mm) != 3 or not all(math.isfinite(size) and size > 0 for size in voxel_mm):
        raise ValueError(f"voxel_mm must be three sizes above 0 mm, (z, y, x), not {voxel_mm}")
    labels, _ = ndimage.label(body & (synthetic >= HOT_SUV), TOUCHING)
    voxel_mm3 = math.prod(voxel_mm)
    spots = []
    for k, box in enumerate(ndimage.find_objects(labels), start=1):
        box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)  # with room for the dilation
        region = labels[box] == k
        if np.count_nonzero(region) * voxel_mm3 < 1000 * MIN_ML:
            continue
        known = float(real[box][ndimage.binary_dilation(region, TOUCHING)].max())
        hottest = np.unravel_index(np.where(region, synthetic[box], -np.inf).argmax(), region.shape)
        spot = Spot(
            tuple(int(s.start + k) for s, k in zip(box, hottest, strict=True)), known, float(synthetic[box][hottest])
        )
        if spot.real <= spot.synthetic / 2:
            spots.append(spot)
    return spots


def find_lesions(real_suv: np.ndarray, synthetic_suv: np.ndarray, lesion: np.ndarray) -> list[Spot]:
    """Each lesion of the mask, as `score_lesions` counts them. Stacks (n, H, W), `lesion` bool of that shape."""
    labels, count = ndimage.label(lesion, TOUCHING)
    if count == 0:
        return []
    each = range(1, count + 1)
    places = ndimage.maximum_position(real_suv, labels, each)
    maxima = (ndimage.maximum(suv, labels, each) for suv in (real_suv, synthetic_suv))
    return [Spot(tuple(int(k) for k in place), float(a), float(b)) for place, a, b in zip(places, *maxima, strict=True)]
