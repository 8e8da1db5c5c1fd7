"""Fine structure put back: an image's power by spatial frequency set to that of real images.

Networks that minimise an error, and means of several images, lack power at high frequencies. A gain for each ring of
equal spatial frequency gives it back: a linear filter, fitted on other patients than those it is used on. It raises
what an image holds at a frequency, right and wrong alike: texture at the price of some error. All images are in the
networks' range [−1, 1].
"""

from collections.abc import Sequence

import numpy as np

from petct_lib.metrics import radial_power_spectrum

GAIN_LIMIT = 4.0  # and its inverse; chosen: a ring that needs more holds next to nothing but rounding


def fit_gains(real: Sequence[np.ndarray], made: Sequence[np.ndarray]) -> np.ndarray:
    """√(P_real / P_made) by ring, (rings,), of patients' stacks (n, H, W) with slices of one size.

    P is the geometric mean over patients, each of whom counts as much as any other: `metrics.spectrum_distance`, of one
    patient, compares logarithms, and an arithmetic mean would be that of the few with most noise. The patients of the
    two may be others, and n may differ. The slices' mean has gain 1. Errors as for `metrics.radial_power_spectrum`.

    >>> slices = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8))
    >>> fit_gains([slices], [slices / 2]).round(6).tolist()
    [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    log_real, log_made = (np.mean([_log_power(stack) for stack in stacks], axis=0) for stacks in (real, made))
    gains = np.exp((log_real - log_made) / 2).clip(1 / GAIN_LIMIT, GAIN_LIMIT)
    gains[0] = 1.0
    return gains


def _log_power(stack: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(radial_power_spectrum(stack), np.finfo(float).tiny))


def matched(images: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Each slice of (n, H, W) with its frequencies times the gains, between rings linearly; clipped to [−1, 1].

    A slice's mean stays. ValueError for gains of another slice size.
    """
    gains, (height, width) = np.asarray(gains, float), images.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) * min(height, width)  # in rings
    if len(gains) != round(frequency.max()) + 1:
        raise ValueError(f"{len(gains)} gains are not for slices of {height}×{width}, which have other rings")
    factor = np.interp(frequency, np.arange(len(gains)), gains)
    made = [np.fft.irfft2(np.fft.rfft2(image) * factor, (height, width)) for image in images]
    return np.stack(made).clip(-1, 1).astype(images.dtype)
