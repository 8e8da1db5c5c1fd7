"""The bridge from the coarse translation to the real image, and its samplers: pure functions.

y is the real target slice, c the coarse translation, all (B, 1, H, W) in [−1, 1]:
    z_t = (1 − t)·y + t·(c + σ·ε),   t in [0, 1],  ε from N(0, 1)
At t = 1 it is what we can make, at t = 0 what we want. Relatives: I2SB (Liu 2023), BBDM (Li 2023), ResShift (Yue 2023).

The samplers share one signature, `(predict, coarse, times, *, sigma, draw)`, and walk from t = 1 down the times:
`predict` is (z_t, t) → ŷ, `draw` gives a new ε of the coarse image's shape. They return the ŷ of each time; the last
one is the sample. They differ in how the state goes on from ŷ to the next time s < t.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Predict = Callable[[Tensor, float], Tensor]
Draw = Callable[[], Tensor]


def time_grid(steps: int) -> tuple[float, ...]:
    """Evenly spaced times from 1 downwards, without 0. ValueError for no steps.

    >>> time_grid(4)
    (1.0, 0.75, 0.5, 0.25)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return tuple(1 - k / steps for k in range(steps))


def bridge(y: Tensor, start: Tensor, t: float | Tensor) -> Tensor:
    """z_t = (1 − t)·y + t·z_1, with z_1 = `start` = c + σ·ε. t: one time, or (B, 1, 1, 1).

    >>> bridge(torch.tensor(1.0), torch.tensor(-1.0), 0.25).item()  # a quarter of the way from the real image
    0.5
    """
    return (1 - t) * y + t * start


def renoised(predict: Predict, coarse: Tensor, times: Sequence[float], *, sigma: float, draw: Draw) -> list[Tensor]:
    """z_s = (1 − s)·ŷ + s·(c + σ·ε') with a new ε' at each time.

    Exact where ŷ is a draw from p(y | z_t, …), as an adversarially trained denoiser's is meant to be (Xiao 2022,
    eq. 4); the multistep sampling of consistency models (Song 2023, algorithm 1).
    """
    predictions = [predict(coarse + sigma * draw(), times[0])]
    for s in times[1:]:
        predictions.append(predict(bridge(predictions[-1], coarse + sigma * draw(), s), s))
    return predictions


def anchored(predict: Predict, coarse: Tensor, times: Sequence[float], *, sigma: float, draw: Draw) -> list[Tensor]:
    """z_s = (1 − s)·ŷ + s·z_1: as `renoised`, with the noise of the start kept; a sample has one ε."""
    start = coarse + sigma * draw()
    return renoised(predict, start, times, sigma=0.0, draw=lambda: torch.zeros_like(start))


def euler(predict: Predict, coarse: Tensor, times: Sequence[float], *, sigma: float, draw: Draw) -> list[Tensor]:
    """z_s = z_t + (s − t)·(z_t − ŷ)/t, Euler's method on the flow dz/dt = (z − E[y | z, t])/t.

    Exact, in the limit of many steps, where ŷ is the mean E[y | z_t, …], as an L2-trained denoiser's is (Liu 2023,
    rectified flow; PMRF, Ohayon 2025, algorithm 1).
    """
    z, predictions = coarse + sigma * draw(), []
    for t, s in zip(times, (*times[1:], 0.0), strict=True):
        predictions.append(predict(z, t))
        z = z + (s - t) * (z - predictions[-1]) / t
    return predictions


SAMPLERS = {"renoised": renoised, "anchored": anchored, "euler": euler}


def interpolated(distortion: Tensor, perceptual: Tensor, alpha: float) -> Tensor:
    """(1 − α)·distortion + α·perceptual: the straight line is the best trade-off of squared error and realism.

    Exactly so for the Wasserstein distance, when the ends are the two optima (Freirich 2021, theorem 2). α above 1 goes
    on along the line, for an end that is short of the optimum. Both of one shape, and so is the result.

    >>> interpolated(torch.tensor(0.0), torch.tensor(1.0), alpha=0.25).item()
    0.25
    """
    return (1 - alpha) * distortion + alpha * perceptual
