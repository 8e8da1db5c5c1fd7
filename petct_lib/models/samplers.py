"""Rectified flow: the path from data to noise, its velocity, and samplers. Pure functions; no network in here.

With r the data and ε from N(0, 1), both (B, 1, H, W), and t from 0 (data) to 1 (noise):
    z_t = (1 − t)·r + t·ε,   v = dz/dt = ε − r        (Liu 2023, eq. 1; Lipman 2023, eq. 22; Esser 2024, eq. 13)
A network learns E[v | z_t, t]. From noise at t = 1, a sampler integrates dz = v dt down to t = 0.

The samplers share one signature, `(velocity, z, times)`: `velocity` is (z, t) → v, `z` the state at `times[0]`, `times`
fall to their last one, which is 0. They return the state at each time after the first; the last one is the sample.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def time_grid(steps: int) -> tuple[float, ...]:
    """Steps + 1 times from 1 to 0, evenly spaced. ValueError for no steps.

    >>> time_grid(4)
    (1.0, 0.75, 0.5, 0.25, 0.0)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return tuple(1 - k / steps for k in range(steps + 1))


def straight_path(r: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
    """z_t = (1 − t)·r + t·ε. t: one time, or (B, 1, 1, 1).

    >>> straight_path(torch.tensor(1.0), torch.tensor(-1.0), 0.25).item()  # a quarter of the way to noise
    0.5
    """
    return (1 - t) * r + t * noise


def draw_times(n: int, offset: float) -> Tensor:
    """N times in [0, 1), evenly spaced from a random offset in [0, 1): uniform, with less variance than n draws.

    (Kingma 2021, Variational diffusion models, appendix I.1.) Uniform and not logit-normal as in Esser 2024: a sampler
    of few steps begins at t = 1, where the logit-normal has next to no times to learn from.

    >>> draw_times(4, 0.5).tolist()
    [0.5, 0.75, 0.0, 0.25]
    """
    return (offset + torch.arange(n) / n) % 1


def euler(velocity: Velocity, z: Tensor, times: Sequence[float]) -> list[Tensor]:
    """z_s = z_t + (s − t)·v(z_t, t): one evaluation a step, error of order 1 (Karras 2022, §3)."""
    states = []
    for t, s in pairwise(times):
        z = z + (s - t) * velocity(z, t)
        states.append(z)
    return states


def heun(velocity: Velocity, z: Tensor, times: Sequence[float]) -> list[Tensor]:
    """Euler's step, then the mean of the velocities at both of its ends: error of order 2 (Karras 2022, algorithm 1).

    Two evaluations a step; the last step, to t = 0, is Euler's, as there: N steps take 2·N − 1.
    """
    states = []
    for t, s in pairwise(times):
        v = velocity(z, t)
        ahead = z + (s - t) * v
        z = ahead if s == 0 else z + (s - t) * (v + velocity(ahead, s)) / 2
        states.append(z)
    return states


def midpoint(velocity: Velocity, z: Tensor, times: Sequence[float]) -> list[Tensor]:
    """The velocity halfway along Euler's step, for the whole step: error of order 2 (Hairer 1993, §II.1, eq. 1.4).

    Two evaluations a step. The default, for a sampler of few steps takes variance away, and this one the least:

    >>> unit = lambda z, t: z * (2 * t - 1) / ((1 - t) ** 2 + t**2)  # where r is from N(0, 1), too: z should stay 1
    >>> {name: round(f(unit, torch.tensor(1.0), time_grid(4))[-1].item() ** 2, 2) for name, f in SAMPLERS.items()}
    {'euler': 0.52, 'heun': 0.9, 'midpoint': 1.0}
    """
    states = []
    for t, s in pairwise(times):
        half = (t + s) / 2
        z = z + (s - t) * velocity(z + (half - t) * velocity(z, t), half)
        states.append(z)
    return states


SAMPLERS = {"euler": euler, "heun": heun, "midpoint": midpoint}
DEFAULT_SAMPLER = "midpoint"
EVALUATIONS = {  # of the network, a sample
    "euler": lambda steps: steps, "heun": lambda steps: 2 * steps - 1, "midpoint": lambda steps: 2 * steps,
}  # fmt: skip
