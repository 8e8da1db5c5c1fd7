"""Errors of voxels: MAE, MSE, RMSE, PSNR.

Arrays are a patient's stack (n, H, W) in physical units (HU or SUV); a mask is bool of that shape, or None for all. It
is used for scoring only: no model ever sees one. Which scores a run has is decided in `image_scores`; which of them a
table shows, in `evaluation.tables`.
"""

import math

import numpy as np


def check_stacks(
    real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both stacks (n, H, W) as float64 and the mask as bool; ValueError if they cannot be scored."""
    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    if real.shape != synthetic.shape or real.ndim != 3:
        raise ValueError(f"real {real.shape} and synthetic {synthetic.shape} must have one shape (n, H, W)")
    mask = np.ones(real.shape, bool) if mask is None else np.asarray(mask)
    if mask.shape != real.shape or mask.dtype != bool:
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be bool, of the images' shape {real.shape}")
    if not mask.any():
        raise ValueError(f"empty mask: 0 of {mask.size} voxels to score")
    for name, image in (("real", real), ("synthetic", synthetic)):
        if bad := int(np.count_nonzero(~np.isfinite(image))):
            raise ValueError(f"{name} has {bad} non-finite values of {image.size}")
    return real, synthetic, mask


def check_range(name: str, low: float, high: float) -> None:
    """ValueError unless low < high, both finite."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must be finite and increasing, not {low} to {high}")


def mae(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error over the mask, in the images' unit.

    Stacks (n, H, W). ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask.

    >>> real, synthetic = np.zeros((1, 1, 3)), np.array([[[10.0, -30.0, 500.0]]])
    >>> mae(real, synthetic, mask=np.array([[[True, True, False]]]))
    20.0
    """
    real, synthetic, mask = check_stacks(real, synthetic, mask)
    return float(np.abs(real - synthetic)[mask].mean())


def mean_error(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean of synthetic − real over the mask, in the images' unit: the bias. Stacks (n, H, W).

    ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask.

    >>> mean_error(np.zeros((1, 1, 2)), np.array([[[10.0, -30.0]]]))
    -10.0
    """
    real, synthetic, mask = check_stacks(real, synthetic, mask)
    return float((synthetic - real)[mask].mean())


def mse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error over the mask, in the images' unit squared. Stacks (n, H, W).

    ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask.
    """
    real, synthetic, mask = check_stacks(real, synthetic, mask)
    return float(np.square(real - synthetic)[mask].mean())


def rmse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root of the mean squared error over the mask, in the images' unit. Stacks (n, H, W).

    ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask.
    """
    return math.sqrt(mse(real, synthetic, mask))


def psnr(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio over the mask in dB, 10 log10(data_range² / MSE); inf for identical images.

    `data_range` is the width of the fixed clip, one for all patients, never an image's own maximum; it must be above 0.
    Stacks (n, H, W). ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask.

    >>> psnr(np.zeros((1, 2, 2)), np.full((1, 2, 2), 40.0), data_range=4000.0)  # an error of one in a hundred
    40.0
    """
    return psnr_from_mse(mse(real, synthetic, mask), data_range)


def psnr_from_mse(mean_squared_error: float, data_range: float) -> float:
    """`psnr` where the mean squared error is known already."""
    check_range("0 to data_range", 0.0, data_range)
    return math.inf if mean_squared_error == 0 else 10 * math.log10(data_range**2 / mean_squared_error)
