"""What a training asks of a model."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


class Update(Protocol):
    """One optimiser step: `update.Updates`, or anything simpler that does the same."""

    processes: int  # that share the batch

    def __call__(self, kind: str, loss_of: Callable, batch: dict[str, Tensor]) -> tuple[dict, dict]:
        """Minimises the sum of `loss_of(batch)`'s losses with optimiser `kind`; gives its losses and images back."""

    def everyone(self, images: Tensor) -> Tensor:
        """The images of all processes, in the order of the whole batch."""

    def own(self, images: Tensor) -> Tensor:
        """The share of this process of what `everyone` gives."""


@runtime_checkable
class Stage(Protocol):
    """A model under training: `CycleGAN`, `Regression`, `ResidualFlow`. Networks, averages, optimisers go by name."""

    settings: Any  # a frozen dataclass, with the learning rate `lr`
    nets: dict[str, nn.Module]
    ema: dict[str, AveragedModel]  # averages of the networks that are used after training
    optimisers: dict[str, Optimizer]

    def step(self, batch: dict[str, Tensor], step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """One training step on a batch, all randomness from `rng`; gives the losses by name, each a scalar."""

    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """A picture of what a batch is translated to, (1, H, W) in [0, 1]."""

    def extra_state(self) -> dict:
        """What a checkpoint holds beside weights and optimisers; "settings" among it."""

    def load_extra_state(self, state: dict) -> None:
        """Takes the same from a checkpoint."""
