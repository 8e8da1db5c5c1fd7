"""Structure of images: SSIM, spectrum distance, gain by a shift."""

import itertools

import numpy as np
from scipy.ndimage import gaussian_filter

from petct_lib.metrics.voxelwise import check_range, check_stacks

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # voxels: the Gaussian window of Wang 2004, 11 x 11
SSIM_K1, SSIM_K2 = 0.01, 0.03  # Wang 2004
POWER_FLOOR = 1e-12  # of the real images' strongest ring; power below it is the rounding of float32


def ssim(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Structural similarity of slices (Wang et al. 2004: Gaussian window, sigma 1.5, 11x11); 1 for identical images.

    Each slice's map is averaged over the mask, the voxels of all slices pooled. Without a mask the 5 voxels at the
    border count too, which skimage's own mean leaves out. `data_range`: of the fixed clip, above 0. Stacks (n, H, W).
    ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask, and for slices smaller
    than 11x11.
    """
    check_range("0 to data_range", 0.0, data_range)
    real, synthetic, mask = check_stacks(real, synthetic, mask)
    if min(mask.shape[1:]) <= 2 * SSIM_RADIUS:
        raise ValueError(f"slices {mask.shape[1:]} are smaller than the window, {2 * SSIM_RADIUS + 1} voxels")
    total = 0.0
    for i in np.flatnonzero(mask.any(axis=(1, 2))):
        near = bounding_box(mask[i], SSIM_RADIUS)  # no window of the mask reaches further
        total += similarity_map(real[i][near], synthetic[i][near], mask[i][near], data_range).sum()
    return float(total / np.count_nonzero(mask))


def similarity_map(x: np.ndarray, y: np.ndarray, mask: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM (Wang 2004, eq. 13) of two images (H, W) at the voxels of the mask, (voxels,)."""
    smoothed = (gaussian_filter(image, SSIM_SIGMA, radius=SSIM_RADIUS)[mask] for image in (x, y, x * x, y * y, x * y))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = smoothed
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance, variances = mean_xy - product, mean_xx + mean_yy - squares
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The smallest box that holds a mask, of any shape and not empty, and `margin` voxels more where there are any.

    >>> bounding_box(np.array([0, 0, 0, 1, 0, 1, 0], bool), margin=2)
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
    taken off first: the window would leak it into ring 1. ValueError for values that are not finite.
    """
    stack, _, _ = check_stacks(stack, stack)
    n, height, width = stack.shape
    window = np.outer(np.hanning(height + 1)[:-1], np.hanning(width + 1)[:-1])  # (H, W)
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
    much). It cannot tell structure from noise: noise of the right strength buys it, so read it beside MAE. Stacks (n,
    H, W). ValueError for unequal shapes, values that are not finite, and constant real images. Power under the floor
    counts as the floor.
    """
    real, synthetic, _ = check_stacks(real, synthetic)
    if not np.ptp(real, axis=(1, 2)).any():
        raise ValueError(f"real {real.shape} has constant slices only: no spectrum to compare with")
    power_real, power_synthetic = radial_power_spectrum(real)[1:], radial_power_spectrum(synthetic)[1:]
    floor = POWER_FLOOR * power_real.max()
    difference = np.log(np.maximum(power_real, floor)) - np.log(np.maximum(power_synthetic, floor))
    return float(np.sqrt(np.mean(difference**2)))


def mask_slices(stack: np.ndarray, mask: np.ndarray, low: float) -> np.ndarray:
    """The slices of (n, H, W) that have some of the mask, everything outside it set to low."""
    return np.where(mask, stack, low)[mask.any(axis=(1, 2))]


def shift_gain(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, reach: int = 1) -> float:
    """How much lower the MAE would be, in %, were the synthetic stack moved by up to `reach` voxels along any axis.

    Much: part of the error is a rigid misregistration and not the translator's; breathing is not rigid. The best of all
    (2 · reach + 1)³ whole-voxel shifts against none, over the mask less `reach` voxels at the border of the stack. 0
    where no shift is better, there is no error, or nothing is left of the mask. Stacks (n, H, W).
    ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask.
    """
    real, synthetic, mask = check_stacks(real, synthetic, mask)
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
