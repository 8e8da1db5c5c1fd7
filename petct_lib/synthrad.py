"""The scores of the SynthRAD2025 challenge, so that numbers can stand beside its: masked MAE, PSNR and MS-SSIM of a CT.

As its published evaluation computes them (github.com/SynthRAD2025/evaluation, image_metrics.py; Huijben et al. 2024,
Med. Image Anal. 97:103276, for the protocol of the first challenge): one range for all patients, the patient's whole
volume at once, the mask of the body.
"""

import math

import numpy as np
from scipy.ndimage import uniform_filter

from petct_lib import metrics

RANGE_HU = (-1024.0, 3071.0)
WINDOW = 7  # voxels, a box: skimage's default
K1, K2 = 0.01, 0.03  # Wang 2004
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, section 3.2
MIN_SIDE = 97  # five scales of a window of 7: smaller volumes are padded with their edges


def score(real_hu: np.ndarray, synthetic_hu: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """{"mae", "psnr", "ms_ssim"} of one patient's CT (n, H, W) in HU over the mask of the body, bool of that shape.

    MAE is not clipped, the others are, to RANGE_HU. ValueError as for `metrics.mae`.
    """
    real, synthetic, mask = metrics.checked(real_hu, synthetic_hu, mask)
    low, high = RANGE_HU
    clipped = [np.clip(image, low, high) for image in (real, synthetic)]
    return {
        "mae": metrics.mae(real, synthetic, mask),
        "psnr": metrics.psnr(*clipped, data_range=high - low, mask=mask),
        "ms_ssim": ms_ssim(real, synthetic, mask, clip=RANGE_HU),
    }


def ms_ssim(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, *, clip: tuple[float, float]) -> float:
    """Multi-scale structural similarity (Wang 2003) of volumes (n, H, W), masked at every scale; 1 for identical ones.

    As SynthRAD2025 has it, which is not quite as Wang had: in three dimensions, with a box of WINDOW voxels, luminance
    weighted at every scale, and each scale's map averaged over the mask. Images are clipped to `clip`, its width is the
    data range, and outside the mask both are set to its low end. NaN where at a coarse scale no voxel of the mask
    is as far from the border as the window reaches, as in a thin slab. ValueError as for `metrics.mae`.
    """
    real, synthetic, mask = metrics.checked(real, synthetic, mask)
    metrics.check_range("clip", *clip)
    low, high = clip
    pad = [((MIN_SIDE - n) // 2, MIN_SIDE - n - (MIN_SIDE - n) // 2) if n < MIN_SIDE else (0, 0) for n in mask.shape]
    x, y = (np.where(mask, np.clip(image, low, high) - low, 0.0) for image in (real, synthetic))
    x, y, mask = (np.pad(image, pad, mode="edge") for image in (x, y, mask))
    product = 1.0
    for weight in SCALE_WEIGHTS:
        inner = (slice(WINDOW // 2, -(WINDOW // 2)),) * 3  # where the window lies within the volume
        if not mask[inner].any():
            return math.nan
        similarity = _similarity(x, y, high - low, weight)[inner][mask[inner]].mean()
        product *= min(max(similarity, 0.0), 1.0)
        x, y = (uniform_filter(image, 2, mode="constant")[::2, ::2, ::2] for image in (x, y))
        mask = mask[::2, ::2, ::2]
    return float(product)


def _similarity(x: np.ndarray, y: np.ndarray, data_range: float, weight: float) -> np.ndarray:
    """Luminance, contrast and structure (Wang 2004, eq. 6, 9 and 10), each to the power of the weight; (n, H, W)."""
    unbiased = WINDOW**3 / (WINDOW**3 - 1)
    mean_x, mean_y = uniform_filter(x, WINDOW), uniform_filter(y, WINDOW)
    var_x = unbiased * (uniform_filter(x * x, WINDOW) - mean_x * mean_x)
    var_y = unbiased * (uniform_filter(y * y, WINDOW) - mean_y * mean_y)
    covariance = unbiased * (uniform_filter(x * y, WINDOW) - mean_x * mean_y)
    deviations = np.sqrt(var_x.clip(0)) * np.sqrt(var_y.clip(0))
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    contrast = (2 * deviations + c2) / (var_x + var_y + c2)
    structure = (covariance + c2 / 2) / (deviations + c2 / 2)
    return luminance.clip(0) ** weight * contrast.clip(0) ** weight * structure.clip(0) ** weight
