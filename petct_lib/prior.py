"""Unpaired refinement: a diffusion prior of the target images, used as in SDEdit (Meng et al. 2022).

The denoiser is trained on target slices y alone, (B, 1, H, W) in [−1, 1], at any of T times of the schedule:
    z_t = √ᾱ_t · y + √(1 − ᾱ_t) · ε,   t in 0 … T − 1,  ε from N(0, 1)   (Ho et al. 2020, equation 4)
To refine, the coarse translation c takes y's place: it is noised to t0, which drowns its fine structure and leaves its
coarse one, and denoised in a few steps of DDIM (Song et al. 2021, equation 12). So no pairs are needed; a larger t0
trusts the prior more and c less. Schedule, noising and steps are MONAI's.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError
from petct_lib.cyclegan import Update
from petct_lib.nets import Denoiser, averaged, tile

if TYPE_CHECKING:
    from monai.networks.schedulers import DDIMScheduler

PREDICTIONS = ("sample", "v_prediction")  # MONAI's names


@dataclass(frozen=True)
class PriorSettings:
    """t0 is a share of the schedule, not of the noise: at 0.3 of it √ᾱ = 0.63 of c is left under noise of 0.78.

    InputError for settings out of their range.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    train_times: int = 1000  # T (Ho 2020, §4)
    t0: float = 0.3  # the low end of 0.3 to 0.6 that keeps the content (Meng 2022, §3): anatomy must stay
    steps: int = 8  # denoiser evaluations a sample. They blur: a Gaussian of σ 0.15 keeps 70 % of it, in 20 steps 88 %
    prediction: str = "sample"  # y itself, which `Denoiser`, whose skip adds z_t, nearly knows where t is small
    lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.train_times <= 20:  # the last β of the schedule is 20 / T
            raise InputError(f"prior: train_times {self.train_times} must be above 20")
        if self.prediction not in PREDICTIONS:
            raise InputError(f"prior: prediction {self.prediction!r} must be {' or '.join(PREDICTIONS)}")
        if self.width < 1 or min(self.multipliers, default=0) < 1:
            raise InputError(f"prior: width {self.width} and multipliers {self.multipliers} must be at least 1")
        if self.lr < 0 or not all(0 <= share < 1 for share in (self.beta1, self.beta2, self.ema_decay)):
            raise InputError(
                f"prior: lr {self.lr} must be at least 0; beta1 {self.beta1}, beta2 {self.beta2} and "
                f"ema_decay {self.ema_decay} from 0 to below 1"
            )
        walk_times(self.t0, self.steps, self.train_times)


def walk_times(t0: float, steps: int, train_times: int) -> list[int]:
    """The times of a walk's evaluations, evenly from round(t0 · T) − 1 down to 0.

    From the last one the walk goes to the clean image. InputError: t0 is not in (0, 1], or has fewer times than steps.

    >>> walk_times(0.3, 4, 1000)
    [299, 199, 100, 0]
    """
    if not 0 < t0 <= 1:
        raise InputError(f"prior: t0 {t0} must be above 0 and at most 1")
    available = round(t0 * train_times)
    if not 1 <= steps <= available:
        raise InputError(f"prior: steps {steps} must be 1 to {available}, the times up to t0 {t0} of {train_times}")
    return np.linspace(available - 1, 0, steps).round().astype(int).tolist()


def schedule(train_times: int, prediction: str = "sample") -> DDIMScheduler:
    """MONAI's DDIM with the linear schedule of Ho et al. 2020, clipping predictions of y to [−1, 1].

    Its β are scaled by 1000 / T (as in the code of Nichol and Dhariwal 2021), so that a share of the schedule is the
    same noise for any T.
    A new one for each use, since MONAI's `add_noise` changes its device and precision for good.
    """
    from monai.networks.schedulers import DDIMScheduler  # imports all of MONAI: seconds

    return DDIMScheduler(
        train_times, "linear_beta", prediction_type=prediction, beta_start=0.1 / train_times, beta_end=20 / train_times
    )


def walk_schedule(times: list[int], train_times: int, prediction: str) -> DDIMScheduler:
    """A schedule of the walk's times alone, numbered from 0, the cleanest, to len(times) − 1, with their ᾱ.

    `DDIMScheduler.step` does not read its grid: it takes the time T // num_inference_steps below for the next one,
    which for most t0 and steps is not on an even grid (nor, as T − 1 and T differ, on that of `set_timesteps`), so that
    the state would have other noise than the network is told. Among the walk's own times the next is always 1 below,
    and below 0 is the clean image (respacing, Nichol and Dhariwal 2021, §4).
    """
    own = schedule(train_times, prediction)
    own.alphas_cumprod = own.alphas_cumprod[times[::-1]]
    own.num_train_timesteps = len(times)
    own.set_timesteps(len(times))
    return own


def walk(
    predict: Callable[[Tensor, float], Tensor], z: Tensor, times: list[int], train_times: int, prediction: str
) -> list[Tensor]:
    """Predictions of y, clipped to [−1, 1], along the times from z; the last one is the sample (DDIM with η = 0).

    predict: (z_t, t / T) → y, or the velocity (Salimans and Ho 2022), as `prediction` says.
    """
    scheduler, predictions = walk_schedule(times, train_times, prediction), []
    for k, t in zip(scheduler.timesteps.tolist(), times, strict=True):
        z, clean = scheduler.step(predict(z, t / train_times), k, z)
        predictions.append(clean)
    return predictions


class Prior:
    """The denoiser of one target domain with its optimiser: a stage that `train.fit` can run."""

    def __init__(self, settings: PriorSettings, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        self.nets: dict[str, nn.Module] = {"denoiser": Denoiser(1, s.width, tuple(s.multipliers))}
        net = self.nets["denoiser"]
        self.optimisers = {
            "denoiser": torch.optim.Adam(net.parameters(), lr=s.lr, betas=(s.beta1, s.beta2), fused=True)
        }
        self.ema = {"denoiser": averaged(net, s.ema_decay)}

    def step(self, batch: dict[str, Tensor], _step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """One update: mean squared error, each image at a random time of all T. batch: "target" is all it reads."""
        y, s = batch["target"], self.settings
        n = len(y) * update.processes  # drawn for the whole batch, whoever has the slices
        t = torch.from_numpy(update.own(rng.integers(s.train_times, size=n))).to(y.device)
        noise = torch.from_numpy(update.own(rng.standard_normal((n, *y.shape[1:]), dtype=np.float32))).to(y)
        scheduler = schedule(s.train_times)
        aim = y if s.prediction == "sample" else scheduler.get_velocity(y, noise, t)
        noised = {"z": scheduler.add_noise(y, noise, t), "t": t / s.train_times, "aim": aim}
        losses, _ = update("denoiser", self.losses, noised)
        self.ema["denoiser"].update_parameters(self.nets["denoiser"])
        return losses

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean squared error between the denoiser's output and what it is to give; no images are given on."""
        return {"mse": (self.nets["denoiser"](batch["z"], batch["t"]) - batch["aim"]).square().mean()}, {}

    @property
    def device(self) -> torch.device:
        """Where the averaged denoiser is."""
        return next(self.ema["denoiser"].parameters()).device

    def at(self, t0: float, steps: int | None = None) -> Prior:
        """The same networks, used with another t0 and number of steps; InputError if they do not fit."""
        other = copy(self)
        other.settings = replace(self.settings, t0=t0, steps=self.settings.steps if steps is None else steps)
        return other

    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: coarse, refined, target; (1, 3 · H, B · W) in [0, 1]. Without "coarse": target noised to t0, for it."""
        y, c = batch["target"], batch.get("coarse", batch["target"])
        first = c if "coarse" in batch else self.noised(y, torch.Generator().manual_seed(0), self.settings.t0)
        return tile([first, self.sample(None, c, torch.Generator().manual_seed(0))[-1], y])

    def noised(self, c: Tensor, generator: torch.Generator, t0: float) -> Tensor:
        """Where a walk begins: c under the noise of t0, one ε for all slices, on c's device. generator: on the CPU."""
        noise = torch.randn((1, *c.shape[1:]), generator=generator).to(c).expand_as(c)
        first = torch.tensor(walk_times(t0, 1, self.settings.train_times)).expand(len(c))
        return schedule(self.settings.train_times).add_noise(c, noise, first)

    @torch.no_grad()
    def sample(
        self, x: Tensor | None, c: Tensor, generator: torch.Generator, t0: float | None = None,
        steps: int | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Predictions of y along one walk from the coarse c, (B, 1, H, W) each; the last one is the sample.

        x, the source, is not looked at: the prior knows target images alone. generator: on the CPU, so that every
        device draws the same noise. t0, steps: others than the settings'; InputError if they do not fit.
        """
        s = self.settings
        t0, steps = s.t0 if t0 is None else t0, s.steps if steps is None else steps
        times = walk_times(t0, steps, s.train_times)
        start = self.noised(c.to(self.device), generator, t0)
        net = self.ema["denoiser"].module.eval()
        return walk(lambda z, t: net(z, z.new_full((len(z),), t)), start, times, s.train_times, s.prediction)

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimiser: the settings."""
        return {"settings": {**asdict(self.settings), "multipliers": list(self.settings.multipliers)}}

    def load_extra_state(self, state: dict) -> None:
        """Nothing beside the settings, which `train.fit` has compared already."""
