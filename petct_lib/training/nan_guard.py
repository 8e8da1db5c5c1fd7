"""Stops a training whose losses, weights or optimisers are not finite, before they reach a checkpoint."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from petct_lib.models.stage import Stage
from petct_lib.training.saver import Saver

Names = Callable[[np.random.Generator], list[str]]


class Guard:
    """Remembers, on the device, the first step at which each loss was not finite or beyond the limit.

    So a GPU is not waited for at each step, and the step named is still the right one. names: which slices the batch of
    an equal generator holds.
    """

    def __init__(self, stage: Stage, names: Names, seed: int, limit: float, accelerator: Accelerator) -> None:
        self.stage, self.names, self.seed, self.limit, self.accelerator = stage, names, seed, limit, accelerator
        self.bad: dict[str, Tensor] = {}
        self.step = 0

    def see(self, step: int, losses: dict[str, Tensor]) -> None:
        """Takes a step's losses in."""
        self.step = step
        for key, value in losses.items():
            now = torch.where(value.abs() <= self.limit, math.inf, float(step))  # NaN is not ≤ anything
            self.bad[key] = torch.minimum(self.bad.get(key, now), now)

    def stop_if_bad(self, saver: Saver, saving: bool) -> None:
        """FloatingPointError where something was bad: which step, which losses, which slices, and the way back.

        saving: weights and optimisers are looked at, too.
        """
        if saving:
            self.see(self.step, self._zeros())
        if first := self._first():
            step, names = first
            slices = "; ".join(self.names(np.random.default_rng([self.seed, step])))
            raise FloatingPointError(
                f"step {step}: {', '.join(names)} not finite or beyond {self.limit:g}; {saver.last_good()}; "
                f"the batch's slices: {slices}. Try a smaller lr"
            )

    def _zeros(self) -> dict[str, Tensor]:
        """0 for the weights of each network and each optimiser's state, NaN where they are not finite.

        A gradient may overflow while the losses are finite, and would be seen in the next step's only.
        """
        held = {f"weights of {name}": list(net.parameters()) for name, net in self.stage.nets.items()}
        for name, optimiser in self.stage.optimisers.items():
            states = itertools.chain(*(state.values() for state in optimiser.state.values()))
            held[f"state of optimiser {name}"] = [value for value in states if isinstance(value, Tensor)]
        return {key: sum(0.0 * value.detach().sum() for value in values) for key, values in held.items() if values}

    def _first(self) -> tuple[int, list[str]] | None:
        """The first bad step and its losses; the same answer in all processes."""
        earliest = torch.stack(list(self.bad.values()))
        if self.accelerator.num_processes > 1:
            earliest = self.accelerator.gather(earliest[None]).amin(0)
        step = earliest.min().item()
        names = [key for key, value in zip(self.bad, earliest.tolist(), strict=True) if value == step]
        return (int(step), names) if math.isfinite(step) else None
