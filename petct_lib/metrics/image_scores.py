"""All scores of one patient's images."""

import math
from collections.abc import Callable

import numpy as np

from petct_lib.metrics.rows import Row
from petct_lib.metrics.structure import mask_slices, spectrum_distance, ssim
from petct_lib.metrics.voxelwise import check_range, check_stacks, psnr_from_mse


def score_body(
    real: np.ndarray,
    synthetic: np.ndarray,
    mask: np.ndarray,
    *,
    unit: str,
    clip: tuple[float, float],
    source: str,
    lpips: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> list[Row]:
    """Scores of one patient's stack (n, H, W) in the body: rows of region, metric, value, unit and mask (`source`).

    Both stacks are clipped to `clip` (low, high), whose width is the data range of PSNR and SSIM: one for all patients,
    never an image's own. `spectrum` and `lpips` (of two stacks, see `perceptual.lpips`) need whole slices: they take
    those with some body, everything outside it set to low in both stacks, so that air and couch do not count. The mask
    is used for scoring only. ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask,
    and where there is none.
    """
    if mask is None:
        raise ValueError("no mask: scores of the body would be swollen by air and couch")
    real, synthetic, mask = check_stacks(real, synthetic, mask)
    check_range("clip", *clip)
    real, synthetic = np.clip(real, *clip), np.clip(synthetic, *clip)
    real_body, synthetic_body = (mask_slices(stack, mask, clip[0]) for stack in (real, synthetic))
    scores = [
        *_voxel_scores(real[mask], synthetic[mask], clip, unit),
        ("ssim", ssim(real, synthetic, data_range=clip[1] - clip[0], mask=mask), "1"),
        ("spectrum", spectrum_distance(real_body, synthetic_body), "1"),
    ]
    if lpips is not None:
        scores.append(("lpips", lpips(real_body, synthetic_body), "1"))
    return [_row("body", source, *score) for score in scores]


def score_region(
    real: np.ndarray,
    synthetic: np.ndarray,
    mask: np.ndarray,
    *,
    region: str,
    unit: str,
    clip: tuple[float, float],
    source: str,
) -> list[Row]:
    """Scores of one patient's stack in a region other than the body: those that are sums over voxels.

    SSIM, spectrum and LPIPS look at neighbourhoods, which in a lesion or a rib are mostly something else. No rows for
    an empty mask: a patient may have no lung in the field. ValueError for unequal shapes, values that are not finite,
    and a mask that is not bool.
    """
    if not np.any(mask):
        return []
    real, synthetic, mask = check_stacks(real, synthetic, mask)
    check_range("clip", *clip)
    values = (np.clip(stack[mask], *clip) for stack in (real, synthetic))
    return [_row(region, source, *score) for score in _voxel_scores(*values, clip, unit)]


def _voxel_scores(
    real: np.ndarray, synthetic: np.ndarray, clip: tuple[float, float], unit: str
) -> list[tuple[str, float, str]]:
    """real, synthetic: values within the mask, (voxels,)."""
    error = synthetic - real  # once for all: as the functions of these names, which the tests compare
    squared = float(np.square(error).mean())
    return [
        ("mae", float(np.abs(error).mean()), unit),
        ("me", float(error.mean()), unit),
        ("mean", float(synthetic.mean()), unit),
        ("mse", squared, f"{unit}^2"),
        ("rmse", math.sqrt(squared), unit),
        ("psnr", psnr_from_mse(squared, clip[1] - clip[0]), "dB"),
    ]


def _row(region: str, source: str, metric: str, value: float, unit: str) -> Row:
    return {"region": region, "metric": metric, "value": value, "unit": unit, "mask": source}
