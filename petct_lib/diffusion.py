"""Diffusion refinement: a paired bridge from the coarse translation to the real image, in a few steps.

y is the real target slice, c the coarse translation, x the source, all (B, 1, H, W) in [−1, 1]:
    z_t = (1 − t)·y + t·(c + σ·ε),   t in [0, 1],  ε from N(0, 1)
The denoiser predicts y from (z_t, x, c) and t. Relatives: I2SB (Liu 2023), BBDM (Li 2023); training on the few times
that sampling uses, as in Fast-DDPM (Jiang 2024). Sampling has no y: it puts its own prediction ŷ in y's place. So does
training, in a share `on_policy` of its steps; with y itself the network learns to copy y out of z_t, and errs when the
ŷ of sampling is wrong (exposure bias, Ning 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError
from petct_lib.cyclegan import Update
from petct_lib.nets import Denoiser, averaged, tile


@dataclass(frozen=True)
class RefinerSettings:
    """`steps=1, sigma=0` is the control `refiner_l1`: the same network as a one-step L1 regression from (x, c)."""

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    steps: int = 2  # network evaluations a sample
    sigma: float = 0.1  # noise at t = 1, in network units: enough to vary the samples
    on_policy: float = 1.0  # share of training steps whose z_t is walked to, as in sampling; 0: the textbook bridge
    lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.steps < 1 or self.sigma < 0 or not 0 <= self.on_policy <= 1:
            raise InputError(
                f"refiner: steps {self.steps} must be at least 1, sigma {self.sigma} at least 0, "
                f"on_policy {self.on_policy} between 0 and 1"
            )


def time_grid(steps: int) -> tuple[float, ...]:
    """Evenly spaced times from 1 downwards, without 0: (1, 0.75, 0.5, 0.25) for 4 steps."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return tuple(1 - k / steps for k in range(steps))


def bridge(y: Tensor, start: Tensor, t: float | Tensor) -> Tensor:
    """z_t = (1 − t)·y + t·z_1, with z_1 = `start` = c + σ·ε. t: one time, or (B, 1, 1, 1)."""
    return (1 - t) * y + t * start


def walk(predict: Callable[[Tensor, float], Tensor], start: Tensor, times: Sequence[float]) -> list[Tensor]:
    """Predictions of y along the times, from z_1 = `start` = c + σ·ε; the last one is the sample.

    Between times s < t the state is put back on the bridge, z_s = (1 − s)·ŷ + s·z_1 (deterministic, as I2SB's ODE).
    predict: (z_t, t) → ŷ.
    """
    z, predictions = start, []
    for k, t in enumerate(times):
        predictions.append(predict(z, t))
        if k + 1 < len(times):
            z = bridge(predictions[-1], start, times[k + 1])
    return predictions


class Refiner:
    """The denoiser of one direction with its optimiser: a stage that `train.fit` can run."""

    def __init__(self, settings: RefinerSettings, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        self.nets: dict[str, nn.Module] = {"denoiser": Denoiser(3, s.width, tuple(s.multipliers))}
        net = self.nets["denoiser"]
        self.optimisers = {
            "denoiser": torch.optim.Adam(net.parameters(), lr=s.lr, betas=(s.beta1, s.beta2), fused=True)
        }
        self.ema = {"denoiser": averaged(net, s.ema_decay)}

    def step(self, batch: dict[str, Tensor], _step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """One update: L1, each image at a random time of the grid. batch: "source", "coarse", "target"."""
        x, c, y = batch["source"], batch["coarse"], batch["target"]
        n, times = len(y) * update.processes, np.array(time_grid(self.settings.steps))
        k = update.own(rng.integers(len(times), size=n))  # drawn for the whole batch, whoever has the slices
        noise = update.own(rng.standard_normal((n, *c.shape[1:]), dtype=np.float32))
        start = c + self.settings.sigma * torch.from_numpy(noise).to(c)
        on_policy, predict = rng.random() < self.settings.on_policy, self._predictor(self.nets["denoiser"], x, c)
        clean = self._walked(predict, y, start, times, k) if on_policy else y
        t = torch.from_numpy(times[k]).to(y)
        losses, _ = update("denoiser", self.losses, {**batch, "z": bridge(clean, start, t.view(-1, 1, 1, 1)), "t": t})
        self.ema["denoiser"].update_parameters(self.nets["denoiser"])
        return losses

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L1 between the denoiser's prediction and the target; no images are given on."""
        predict = self._predictor(self.nets["denoiser"], batch["source"], batch["coarse"])
        return {"l1": (predict(batch["z"], batch["t"]) - batch["target"]).abs().mean()}, {}

    @staticmethod
    @torch.no_grad()
    def _walked(predict: Callable, y: Tensor, start: Tensor, times: np.ndarray, k: np.ndarray) -> Tensor:
        """What sampling has in y's place when it comes to time number k (one for each image): the prediction before."""
        predictions = [y, *walk(predict, start, times[: k.max()].tolist())]  # at k = 0, t = 1, y has no weight
        return torch.stack([predictions[j][i] for i, j in enumerate(k)])

    @staticmethod
    def _predictor(net: nn.Module, x: Tensor, c: Tensor) -> Callable[[Tensor, float | Tensor], Tensor]:
        return lambda z, t: net(
            torch.cat([z, x, c], dim=1), torch.as_tensor(t, dtype=z.dtype, device=z.device).expand(len(z))
        )

    @property
    def device(self) -> torch.device:
        """Where the averaged denoiser is."""
        return next(self.ema["denoiser"].parameters()).device

    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: source, coarse, refined, target; (1, 4 · H, B · W) in [0, 1]."""
        x, c, y = (batch[key] for key in ("source", "coarse", "target"))
        return tile([x, c, self.sample(x, c, torch.Generator().manual_seed(0))[-1], y])

    @torch.no_grad()
    def sample(self, x: Tensor, c: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Predictions of y along one walk, the last one being the sample.

        generator: on the CPU, so that every device draws the same noise.
        """
        x, c = x.to(self.device), c.to(self.device)
        start = c + self.settings.sigma * torch.randn(c.shape, generator=generator).to(c)
        net = self.ema["denoiser"].module.eval()
        return walk(self._predictor(net, x, c), start, time_grid(self.settings.steps))

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimiser: the settings."""
        return {"settings": {**asdict(self.settings), "multipliers": list(self.settings.multipliers)}}

    def load_extra_state(self, state: dict) -> None:
        """Nothing beside the settings, which `train.fit` has compared already."""
