"""Scores of one patient's synthetic images against the real ones; `scores` puts many patients' together.

A mask is used for scoring only: no model ever sees one.
Arrays are a patient's stack (n, H, W) in physical units (HU or SUV); a mask is bool of that shape, or None for all.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal.windows import hann

from petct_lib.scores import Row

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # voxels: the Gaussian window of Wang 2004, 11 x 11
SSIM_K1, SSIM_K2 = 0.01, 0.03  # Wang 2004
POWER_FLOOR = 1e-12  # of the real images' strongest ring; power below it is the rounding of float32


def checked(
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

    Stacks (n, H, W). ValueError for unequal shapes, an empty or non-bool mask, and non-finite values.

    >>> real, synthetic = np.zeros((1, 1, 3)), np.array([[[10.0, -30.0, 500.0]]])
    >>> mae(real, synthetic, mask=np.array([[[True, True, False]]]))
    20.0
    """
    real, synthetic, mask = checked(real, synthetic, mask)
    return float(np.abs(real - synthetic)[mask].mean())


def mean_error(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean of synthetic − real over the mask, in the images' unit: the bias. Shapes and errors as for `mae`.

    >>> mean_error(np.zeros((1, 1, 2)), np.array([[[10.0, -30.0]]]))
    -10.0
    """
    real, synthetic, mask = checked(real, synthetic, mask)
    return float((synthetic - real)[mask].mean())


def mse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error over the mask, in the images' unit squared. Shapes and errors as for `mae`."""
    real, synthetic, mask = checked(real, synthetic, mask)
    return float(np.square(real - synthetic)[mask].mean())


def rmse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root of the mean squared error over the mask, in the images' unit. Shapes and errors as for `mae`."""
    return math.sqrt(mse(real, synthetic, mask))


def psnr(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio over the mask in dB, 10 log10(data_range² / MSE); inf for identical images.

    `data_range` is the width of the fixed clip, one for all patients, never an image's own maximum; it must be
    above 0. Shapes and errors as for `mae`.

    >>> psnr(np.zeros((1, 2, 2)), np.full((1, 2, 2), 40.0), data_range=4000.0)  # an error of one in a hundred
    40.0
    """
    return _psnr(mse(real, synthetic, mask), data_range)


def _psnr(mean_squared_error: float, data_range: float) -> float:
    check_range("0 to data_range", 0.0, data_range)
    return math.inf if mean_squared_error == 0 else 10 * math.log10(data_range**2 / mean_squared_error)


def ssim(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Structural similarity of slices (Wang et al. 2004: Gaussian window, sigma 1.5, 11x11); 1 for identical images.

    Each slice's map is averaged over the mask, the voxels of all slices pooled. Without a mask the 5 voxels at the
    border count too, which skimage's own mean leaves out. `data_range` as for `psnr`, shapes and errors as for
    `mae`; slices smaller than 11x11 are a ValueError.
    """
    check_range("0 to data_range", 0.0, data_range)
    real, synthetic, mask = checked(real, synthetic, mask)
    if min(mask.shape[1:]) <= 2 * SSIM_RADIUS:
        raise ValueError(f"slices {mask.shape[1:]} are smaller than the window, {2 * SSIM_RADIUS + 1} voxels")
    total = 0.0
    for i in np.flatnonzero(mask.any(axis=(1, 2))):
        near = box(mask[i], SSIM_RADIUS)  # no window of the mask reaches further
        total += _similarity(real[i][near], synthetic[i][near], mask[i][near], data_range).sum()
    return float(total / np.count_nonzero(mask))


def _similarity(x: np.ndarray, y: np.ndarray, mask: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM (Wang 2004, eq. 13) of two images (H, W) at the voxels of the mask, (voxels,)."""
    smoothed = (gaussian_filter(image, SSIM_SIGMA, radius=SSIM_RADIUS)[mask] for image in (x, y, x * x, y * y, x * y))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = smoothed
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance, variances = mean_xy - product, mean_xx + mean_yy - squares
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The smallest box that holds a mask, of any shape and not empty, and `margin` voxels more where there are any.

    >>> box(np.array([0, 0, 0, 1, 0, 1, 0], bool), margin=2)
    (slice(1, 7, None),)
    """
    spans = []
    for axis, n in enumerate(mask.shape):
        some = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        spans.append(slice(max(int(some[0]) - margin, 0), min(int(some[-1]) + 1 + margin, n)))
    return tuple(spans)


def radial_power_spectrum(stack: np.ndarray) -> np.ndarray:
    """Power by spatial frequency, (n, H, W) -> (rings,), unit squared; ring r is r / min(H, W) cycles per voxel.

    The mean over slices of |FFT2|² under a Hann window, averaged in rings one step of frequency wide. They go on from
    Nyquist (r = min(H, W) // 2) to the corner of the plane, for that is where a checkerboard is. Each slice's mean is
    taken off first: the window would leak it into ring 1. Errors as for `mae`.
    """
    stack, _, _ = checked(stack, stack)
    n, height, width = stack.shape
    window = np.outer(hann(height, sym=False), hann(width, sym=False))  # (H, W)
    waves = (np.fft.rfft2((image - image.mean()) * window) for image in stack)  # (H, W // 2 + 1) each
    power = sum(wave.real**2 + wave.imag**2 for wave in waves) / n
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))  # cycles per voxel
    ring = np.rint(frequency * min(height, width)).astype(int)
    count = np.full(ring.shape, 2.0)  # of a real image, the other half of the plane is this one mirrored,
    count[:, 0] = count[:, width // 2 + width % 2 :] = 1  # but for these columns, which have no mirror image
    return np.bincount(ring.ravel(), (count * power).ravel()) / np.bincount(ring.ravel(), count.ravel())


def spectrum_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Root mean square, over the rings but ring 0, of the difference of natural log power; no unit, 0 is perfect.

    It sees what errors between voxels reward: blur (high frequencies lack power) and checkerboards (a few have too
    much). It cannot tell structure from noise: noise of the right strength buys it, so read it beside MAE. Shapes
    and errors as for `mae`, and ValueError for constant real images. Power under the floor counts as the floor.
    """
    real, synthetic, _ = checked(real, synthetic)
    if not np.ptp(real, axis=(1, 2)).any():
        raise ValueError(f"real {real.shape} has constant slices only: no spectrum to compare with")
    power_real, power_synthetic = radial_power_spectrum(real)[1:], radial_power_spectrum(synthetic)[1:]
    floor = POWER_FLOOR * power_real.max()
    difference = np.log(np.maximum(power_real, floor)) - np.log(np.maximum(power_synthetic, floor))
    return float(np.sqrt(np.mean(difference**2)))


def inside(stack: np.ndarray, mask: np.ndarray, low: float) -> np.ndarray:
    """The slices of (n, H, W) that have some of the mask, everything outside it set to low."""
    return np.where(mask, stack, low)[mask.any(axis=(1, 2))]


def shift_gain(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, reach: int = 1) -> float:
    """How much lower the MAE would be, in %, were the synthetic stack moved by up to `reach` voxels along any axis.

    Much: part of the error is a rigid misregistration and not the translator's; breathing is not rigid. The best of all
    (2 · reach + 1)³ whole-voxel shifts against none, over the mask less `reach` voxels at the border of the stack. 0
    where no shift is better, there is no error, or nothing is left of the mask. Shapes and errors as for `mae`.
    """
    real, synthetic, mask = checked(real, synthetic, mask)
    inner = tuple(slice(reach, n - reach) for n in real.shape)
    where = mask[inner]
    if min(real.shape) <= 2 * reach or not where.any():
        return 0.0
    real, shifts = real[inner][where], itertools.product(range(2 * reach + 1), repeat=3)
    maes = {}
    for shift in shifts:
        part = tuple(slice(s, s + n) for s, n in zip(shift, where.shape, strict=True))
        maes[shift] = float(np.abs(real - synthetic[part][where]).mean())
    unmoved = maes[reach, reach, reach]
    return 100 * (1 - min(maes.values()) / unmoved) if unmoved else 0.0


def score_patient(
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
    is used for scoring only. Errors as for `mae`; no mask is one too.
    """
    if mask is None:
        raise ValueError("no mask: scores of the body would be swollen by air and couch")
    real, synthetic, mask = checked(real, synthetic, mask)
    check_range("clip", *clip)
    real, synthetic = np.clip(real, *clip), np.clip(synthetic, *clip)
    real_body, synthetic_body = (inside(stack, mask, clip[0]) for stack in (real, synthetic))
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
    an empty mask: a patient may have no lung in the field. Shapes, clip and errors as for `score_patient`.
    """
    if not np.any(mask):
        return []
    real, synthetic, mask = checked(real, synthetic, mask)
    check_range("clip", *clip)
    inside = (np.clip(stack[mask], *clip) for stack in (real, synthetic))
    return [_row(region, source, *score) for score in _voxel_scores(*inside, clip, unit)]


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
        ("psnr", _psnr(squared, clip[1] - clip[0]), "dB"),
    ]


def _row(region: str, source: str, metric: str, value: float, unit: str) -> Row:
    return {"region": region, "metric": metric, "value": value, "unit": unit, "mask": source}
