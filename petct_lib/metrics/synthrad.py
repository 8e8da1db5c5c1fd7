"""The scores of the SynthRAD2025 challenge, so that numbers can stand beside its: masked MAE, PSNR and MS-SSIM of a CT.

As its published evaluation computes them (github.com/SynthRAD2025/evaluation, image_metrics.py; Huijben et al. 2024,
Med. Image Anal. 97:103276, for the protocol of the first challenge): one range for all patients, the patient's whole
volume at once, the mask of the body.
"""

import math

import numpy as np
from scipy.ndimage import uniform_filter

from petct_lib.metrics import voxelwise
from petct_lib.metrics.structure import bounding_box

RANGE_HU = (-1024.0, 3071.0)
WINDOW = 7  # voxels, a box: skimage's default
K1, K2 = 0.01, 0.03  # Wang 2004
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, section 3.2
INNER = (slice(WINDOW // 2, -(WINDOW // 2)),) * 3  # where the window lies within the volume
MIN_SIDE = 97  # five scales of a window of 7: smaller volumes are padded with their edges


def score_synthrad(real_hu: np.ndarray, synthetic_hu: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """{"mae", "psnr", "ms_ssim"} of one patient's CT (n, H, W) in HU over the mask of the body, bool of that shape.

    MAE is not clipped, the others are, to RANGE_HU. ValueError for unequal shapes, values that are not finite, and an
    empty or non-bool mask.
    """
    real, synthetic, mask = voxelwise.check_stacks(real_hu, synthetic_hu, mask)
    low, high = RANGE_HU
    clipped = [np.clip(image, low, high) for image in (real, synthetic)]
    return {
        "mae": voxelwise.mae(real, synthetic, mask),
        "psnr": voxelwise.psnr(*clipped, data_range=high - low, mask=mask),
        "ms_ssim": ms_ssim(real, synthetic, mask, clip=RANGE_HU),
    }


def ms_ssim(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, *, clip: tuple[float, float]) -> float:
    """Multi-scale structural similarity (Wang 2003) of volumes (n, H, W), masked at every scale; 1 for identical ones.

    As SynthRAD2025 has it, which is not quite as Wang had: in three dimensions, with a box of WINDOW voxels, luminance
    weighted at every scale, and each scale's map averaged over the mask. Images are clipped to `clip`, its width is the
    data range, and outside the mask both are set to its low end. NaN where at a coarse scale no voxel of the mask is as
    far from the border as the window reaches, as in a thin slab. ValueError for unequal shapes, values that are not
    finite, and an empty or non-bool mask.
    """
    real, synthetic, mask = voxelwise.check_stacks(real, synthetic, mask)
    voxelwise.check_range("clip", *clip)
    low, high = clip
    pad = [((MIN_SIDE - n) // 2, MIN_SIDE - n - (MIN_SIDE - n) // 2) if n < MIN_SIDE else (0, 0) for n in mask.shape]
    x, y = (np.where(mask, np.clip(image, low, high) - low, 0.0) for image in (real, synthetic))
    x, y, mask = (np.pad(image, pad, mode="edge") for image in (x, y, mask))
    product = 1.0
    for weight in SCALE_WEIGHTS:
        scored = np.zeros_like(mask)
        scored[INNER] = mask[INNER]
        if not scored.any():
            return math.nan
        near = bounding_box(scored, WINDOW // 2)  # no window reaches further
        similarity = _similarity(x[near], y[near], scored[near][INNER], high - low) ** weight
        product *= min(similarity.mean(), 1.0)
        x, y, mask = _halve(x), _halve(y), mask[::2, ::2, ::2]
    return float(product)


def _halve(image: np.ndarray) -> np.ndarray:
    """Every second voxel's mean with those before it, (n, H, W) → half of it; half of one at the border is nothing."""
    for axis in range(3):
        image = np.moveaxis(image, axis, 0)
        half = image[::2] / 2
        half[1:] += image[1:-1:2] / 2
        image = np.moveaxis(half, 0, axis)
    return image


def _similarity(x: np.ndarray, y: np.ndarray, mask: np.ndarray, data_range: float) -> np.ndarray:
    """Luminance, contrast and structure (Wang 2004, eq. 6, 9 and 10), multiplied, none below 0; (voxels,).

    x, y: (n, H, W); mask: of the voxels as far from the border as the window reaches, less by that on each side.
    """
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (_box_mean(image)[mask] for image in (x, y, x * x, y * y, x * y))
    unbiased = WINDOW**3 / (WINDOW**3 - 1)
    var_x, var_y = unbiased * (mean_xx - mean_x * mean_x), unbiased * (mean_yy - mean_y * mean_y)
    covariance = unbiased * (mean_xy - mean_x * mean_y)
    deviations = np.sqrt(var_x.clip(0)) * np.sqrt(var_y.clip(0))
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    contrast = (2 * deviations + c2) / (var_x + var_y + c2)
    structure = (covariance + c2 / 2) / (deviations + c2 / 2)
    return luminance.clip(0) * contrast.clip(0) * structure.clip(0)


def _box_mean(image: np.ndarray) -> np.ndarray:
    """Mean of the window of WINDOW³ voxels around each voxel of (n, H, W) that has all of it."""
    return uniform_filter(image, WINDOW)[INNER]
