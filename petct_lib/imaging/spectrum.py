"""Images as sums of cosines: how much of each spatial frequency is in them, and a filter by frequency.

The orthonormal discrete cosine transform (type II; Ahmed 1974): no jump from one border to the other, as Fourier's has,
and white noise stays white noise. Frequencies are radial, in units of Nyquist's: 1 is a period of two pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.fft
import torch
from torch import Tensor

BANDS = 16  # chosen: the spectra of residuals are smooth


def spectrum(images: Tensor) -> tuple[float, ...]:
    """Root mean square of the coefficients of images (B, 1, H, W) in BANDS bands of frequency, from 0 to Nyquist's.

    Of white noise each is its standard deviation. Bands that no coefficient falls into take their neighbours' values.
    """
    height, width = images.shape[-2:]
    coefficients = _cosines(height, images) @ images.double() @ _cosines(width, images).T
    power = coefficients.square().mean(dim=(0, 1)).cpu().numpy()
    band = np.minimum(_frequencies(height, width) * BANDS, BANDS - 1).astype(int)
    count, total = (np.bincount(band.ravel(), weights, BANDS) for weights in (None, power.ravel()))
    there = np.flatnonzero(count)
    return tuple(np.interp(range(BANDS), there, np.sqrt(total[there] / count[there])).tolist())


def filter_bands(images: Tensor, gains: Sequence[float]) -> Tensor:
    """Images (B, 1, H, W) with each frequency times its band's gain, float32; ValueError for a gain not above 0.

    Between the bands' middles the gain's logarithm is linear, so that the gains' inverses undo it.

    >>> filter_bands(torch.ones(1, 1, 8, 8), [3.0, 1.0])[0, 0, 0, 0].round().item()
    3.0
    """
    if not min(gains) > 0:
        raise ValueError(f"gains must be above 0: {gains}")
    height, width = images.shape[-2:]
    middles = (np.arange(len(gains)) + 0.5) / len(gains)
    gain = np.exp(np.interp(_frequencies(height, width), middles, np.log(gains)))
    rows, columns = _cosines(height, images), _cosines(width, images)
    coefficients = torch.from_numpy(gain).to(images.device) * (rows @ images.double() @ columns.T)
    return (rows.T @ coefficients @ columns).float()


def _cosines(n: int, like: Tensor) -> Tensor:
    return _basis(n).to(like.device)  # in double precision, which autocast leaves as it is


@lru_cache(maxsize=8)
def _basis(n: int) -> Tensor:
    """(n, n), orthonormal: row k is the cosine of frequency k/n."""
    return torch.from_numpy(scipy.fft.dct(np.eye(n), axis=0, norm="ortho"))


@lru_cache(maxsize=8)
def _frequencies(height: int, width: int) -> np.ndarray:
    """(H, W): √(fy² + fx²), at most 1."""
    return np.minimum(np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None] / width), 1.0)
