"""Residual flow: what the regression could not know, drawn by diffusion (stage 2, second part).

With x the source, c the coarse image, m = m(x, c) the regression's and y the real target, all (B, 1, H, W): the flow of
`samplers.py` learns the residual y − m given x, c and m (CorrDiff, Mardani et al. 2023). It is whitened first: r is the
residual with each spatial frequency divided by its standard deviation s, so that noise drowns coarse and fine
structures at the same times (EqualSNR, Falck et al. 2025). Else the coarse ones would be drawn in the first of the few
steps and the fine ones in the last. A sample is m + s·r: one image that may be the real one. The mean of several has
less error, their spread is the uncertainty.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError
from petct_lib.imaging.slices import center_slice
from petct_lib.imaging.spectrum import filter_bands
from petct_lib.models.networks import UNet, ema_model, tile
from petct_lib.models.regression import Regression, Stage2Settings, drop_coarse
from petct_lib.models.samplers import DEFAULT_SAMPLER, SAMPLERS, draw_times, straight_path, time_grid
from petct_lib.models.stage import Update

PREVIEW_STEPS = 4


@dataclass(frozen=True)
class FlowSettings(Stage2Settings):
    """Those of the flow. InputError for settings out of their range."""

    residual_spectrum: tuple[float, ...] = (0.1,)  # s: of y − m by frequency, in network units, see `spectrum`

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.residual_spectrum or not all(s > 0 for s in self.residual_spectrum):
            raise InputError(f"flow: residual_spectrum must have bands, each above 0: {self.residual_spectrum}")


class ResidualFlow:
    """The velocity network of one direction beside the regression that it builds on: a stage for `loop.fit`.

    The regression stays as it is; its image is made anew for each training batch, after augmentation.
    """

    def __init__(self, settings: FlowSettings, regression: Regression, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        self.regression = regression
        images = 1 + s.sees_source * s.neighbours + 2  # z_t, x, c, m
        unet = UNet(images, width=s.width, multipliers=tuple(s.multipliers), patch=s.patch)
        self.nets: dict[str, nn.Module] = {"velocity": unet}
        self.optimisers = {
            "velocity": torch.optim.Adam(unet.parameters(), lr=s.lr, betas=(s.beta1, s.beta2), fused=True)
        }
        self.ema = {"velocity": ema_model(unet, s.ema_decay)}

    def step(self, batch: dict[str, Tensor], step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """Training step number `step`; what it logs comes back.

        batch: "source" (B, neighbours or more, H, W), "coarse", "target" (B, 1, H, W) in [−1, 1].
        """
        c = drop_coarse(batch["coarse"], self.settings.coarse_dropout, rng, update)
        n = len(c) * update.processes
        t = update.own(draw_times(n, rng.random())).to(c)
        noise = rng.standard_normal((n, *c.shape[1:]), dtype=np.float32)
        more = {"coarse": c, "t": t, "noise": torch.from_numpy(update.own(noise)).to(c)}
        losses, _ = update("velocity", self.losses, {**batch, **more})
        self.ema["velocity"].update_parameters(self.nets["velocity"])
        return losses

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean squared error of the velocity ε − r at z_t (conditional flow matching, Lipman 2023, eq. 9)."""
        return {"mse": self._loss(self.nets["velocity"], **batch)}, {}

    def _loss(self, net: nn.Module, source: Tensor, coarse: Tensor, target: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        m = self.regression.predict(source, coarse)  # here, in the precision of the update
        r = filter_bands(target - m, [1 / s for s in self.settings.residual_spectrum])
        v = self._forward(net, straight_path(r, noise, t[:, None, None, None]), source, coarse, m, t)
        return (v - (noise - r)).square().mean()

    def _forward(self, net: nn.Module, z: Tensor, x: Tensor, c: Tensor, m: Tensor, t: Tensor) -> Tensor:
        if self.settings.coarse_dropout == 1:  # a coarse image would be something new to it
            c = torch.zeros_like(c)
        seen = [center_slice(x, self.settings.neighbours)] if self.settings.sees_source else []
        return net(torch.cat([z, *seen, c, m], dim=1), t)

    @property
    def device(self) -> torch.device:
        """Where the averaged network is."""
        return next(self.ema["velocity"].parameters()).device

    @torch.no_grad()
    def sample(
        self, source: Tensor, coarse: Tensor, mean: Tensor, noise: Tensor, *, steps: int, sampler: str = DEFAULT_SAMPLER
    ) -> list[Tensor]:
        """The image m + s·r after each step from noise (B, 1, H, W), the last one being the sample; not clipped.

        mean: the regression's image. A coarse image of zeros: without it. InputError for a sampler that there is not.
        """
        if sampler not in SAMPLERS:
            raise InputError(f"sampler {sampler!r}: it must be one of {', '.join(SAMPLERS)}")
        x, c, m, z = (image.to(self.device) for image in (source, coarse, mean, noise))
        net = self.ema["velocity"].module.eval()

        def velocity(z: Tensor, t: float) -> Tensor:
            return self._forward(net, z, x, c, m, torch.full((len(z),), t, device=z.device))

        spectrum = self.settings.residual_spectrum
        return [m + filter_bands(r, spectrum) for r in SAMPLERS[sampler](velocity, z, time_grid(steps))]

    @torch.no_grad()
    def loss_on(self, source: Tensor, coarse: Tensor, target: Tensor, generator: torch.Generator) -> float:
        """The training's loss of the averaged network on slices (n, …), times and noise from `generator` on the CPU."""
        x, c, y = (image.to(self.device) for image in (source, coarse, target))
        t = draw_times(len(y), torch.rand((), generator=generator).item()).to(y)
        noise = torch.randn(y.shape, generator=generator).to(y)
        return self._loss(self.ema["velocity"].module.eval(), x, c, y, noise, t).item()

    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: source, coarse, regression, sample, target; (1, 5 · H, B · W) in [0, 1]."""
        x, c, y = (batch[key] for key in ("source", "coarse", "target"))
        m = self.regression.predict(x, c)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        return tile([center_slice(x), c, m, self.sample(x, c, m, noise, steps=PREVIEW_STEPS)[-1], y])

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimisers: the settings."""
        settings = asdict(self.settings).items()
        return {"settings": {name: list(value) if isinstance(value, tuple) else value for name, value in settings}}

    def load_extra_state(self, state: dict) -> None:
        """Nothing beside the settings, which `loop.fit` has compared already."""
