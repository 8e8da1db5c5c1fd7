"""Regression m(x, c): a U-Net that predicts the target from the source x and the coarse image c (stage 2, first part).

Trained with L1, it learns the median of what is likely. In half of the training images c is replaced by zeros
(`coarse_dropout`), so that the same network also answers without the CycleGAN. With a discriminator it is pix2pix
(Isola et al. 2017); with a second output, the scale of a Laplace distribution, it says how far off it expects to be
(Kendall and Gal 2017).
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError
from petct_lib.imaging.slices import center_slice
from petct_lib.models.losses import adversarial_loss, discriminator_accuracy, discriminator_loss
from petct_lib.models.networks import PatchDiscriminator, UNet, ema_model, freeze, tile
from petct_lib.models.stage import Update

FIRST_LOG_SCALE = -3.0  # the Laplace scale untrained: e⁻³ of the network's range, about 60 HU


@dataclass(frozen=True)
class Stage2Settings:
    """What regression and flow have in common; the sizes here are the profile `full`'s.

    InputError for settings out of their range.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    patch: int = 4  # of the space-to-depth grid: size / 64
    neighbours: int = 1  # 3 or 5: slices of the source around the one to translate, and itself (2.5-D)
    sees_source: bool = True  # False: the coarse image alone
    coarse_dropout: float = 0.5  # share of the images whose coarse image is replaced by zeros; 1: it never sees one
    lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.neighbours not in (1, 3, 5):
            raise InputError(f"stage 2: neighbours {self.neighbours} is not 1, 3 or 5")
        if not 0 <= self.coarse_dropout <= 1:
            raise InputError(f"stage 2: coarse_dropout {self.coarse_dropout} must lie between 0 and 1")
        if min(self.width, self.patch) < 1:
            raise InputError(f"stage 2: width and patch must be 1 or more: {self}")


@dataclass(frozen=True)
class RegressionSettings(Stage2Settings):
    """Those of the regression, and of pix2pix. InputError for settings out of their range."""

    laplace: bool = False  # predicts the scale of its error, too
    lambda_l1: float = 1.0
    lambda_adversarial: float = 0.0  # above 0: pix2pix
    patch_width: int = 64  # the discriminator's first layer
    patch_layers: int = 3  # 70×70 patches

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.lambda_l1, self.lambda_adversarial) < 0:
            raise InputError(f"regression: weights must be 0 or more: {self}")
        if not self.sees_source and self.coarse_dropout:
            raise InputError("regression: without the source it needs the coarse image: set coarse_dropout to 0")
        if self.laplace and self.lambda_adversarial:
            raise InputError("regression: a Laplace scale and a discriminator do not go together")


class Regression:
    """The U-Net, and pix2pix's discriminator, with their optimisers: a stage for `loop.fit`."""

    def __init__(self, settings: RegressionSettings, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        unet = UNet(
            s.sees_source * s.neighbours + 1, 1 + s.laplace, width=s.width, multipliers=tuple(s.multipliers),
            patch=s.patch,
        )  # fmt: skip
        self.nets: dict[str, nn.Module] = {"unet": unet}
        if s.lambda_adversarial:
            self.nets["D"] = PatchDiscriminator(2, s.patch_width, s.patch_layers)  # x and the image
        self.optimisers = {name: self._adam(name, net) for name, net in self.nets.items()}
        self.ema = {"unet": ema_model(unet, s.ema_decay)}

    def _adam(self, name: str, net: nn.Module) -> torch.optim.Adam:
        s = self.settings
        beta1 = 0.5 if name == "D" else s.beta1  # Radford 2016: momentum 0.9 lets a GAN oscillate
        return torch.optim.Adam(net.parameters(), lr=s.lr, betas=(beta1, s.beta2), fused=True)

    def start_from(self, other: "Regression") -> None:
        """Begin with the averaged weights of a trained regression. InputError where it is another network."""
        weights = other.ema["unet"].module.state_dict()
        for net in (self.nets["unet"], self.ema["unet"].module):
            try:
                net.load_state_dict(weights)
            except RuntimeError as error:
                raise InputError(f"regression: cannot begin with the weights of another network: {error}") from None

    def step(self, batch: dict[str, Tensor], step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """Training step number `step`: the U-Net, then the discriminator; what it logs comes back.

        batch: "source" (B, neighbours or more, H, W), "coarse", "target" (B, 1, H, W) in [−1, 1].
        """
        batch = {**batch, "coarse": drop_coarse(batch["coarse"], self.settings.coarse_dropout, rng, update)}
        with freeze([net for name, net in self.nets.items() if name == "D"]):
            losses, images = update("unet", self.losses, batch)
        if "D" in self.nets:
            judged, accuracy = update("D", self.discriminator_losses, {**batch, **images})
            losses = {**losses, **judged, **accuracy}
        self.ema["unet"].update_parameters(self.nets["unet"])
        return losses

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """λ · L1 or the Laplace likelihood, and the least-squares adversarial loss (Isola 2017, eq. 4); "image"."""
        s, y = self.settings, batch["target"]
        out = self._forward(self.nets["unet"], batch["source"], batch["coarse"])
        image = out[:, :1]
        error = (image - y).abs()
        if s.laplace:  # negative log likelihood, |e|/b + log b (Kendall and Gal 2017, eq. 8, with L1)
            log_b = out[:, 1:] + FIRST_LOG_SCALE
            return {"laplace": (error * torch.exp(-log_b) + log_b).mean()}, {"image": image}
        losses = {"l1": s.lambda_l1 * error.mean()}
        if s.lambda_adversarial:
            losses["adversarial"] = s.lambda_adversarial * adversarial_loss(self._judge(batch, image))
        return losses, {"image": image}

    def discriminator_losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What D minimises on real and synthetic images of the same source; and how often it is right."""
        real, fake = self._judge(batch, batch["target"]), self._judge(batch, batch["image"])
        accuracy = {"accuracy_patch": discriminator_accuracy(real, fake)}
        return {"D_patch": discriminator_loss(real, fake)}, accuracy

    def _judge(self, batch: dict[str, Tensor], image: Tensor) -> Tensor:
        return self.nets["D"](torch.cat([center_slice(batch["source"]), image], dim=1))

    def _forward(self, net: nn.Module, source: Tensor, coarse: Tensor) -> Tensor:
        if self.settings.coarse_dropout == 1:  # a coarse image would be something new to it
            coarse = torch.zeros_like(coarse)
        seen = [center_slice(source, self.settings.neighbours)] if self.settings.sees_source else []
        return net(torch.cat([*seen, coarse], dim=1), coarse.new_zeros(len(coarse)))

    @property
    def device(self) -> torch.device:
        """Where the averaged network is."""
        return next(self.ema["unet"].parameters()).device

    @torch.no_grad()
    def predict(self, source: Tensor, coarse: Tensor) -> Tensor:
        """m(x, c) of the averaged network, (B, 1, H, W), not clipped. A coarse image of zeros: without it."""
        source, coarse = source.to(self.device), coarse.to(self.device)
        return self._forward(self.ema["unet"].module.eval(), source, coarse)[:, :1]

    @torch.no_grad()
    def scale(self, source: Tensor, coarse: Tensor) -> Tensor:
        """The Laplace scale b, the absolute error to be expected, (B, 1, H, W). InputError without such an output."""
        if not self.settings.laplace:
            raise InputError("regression: it was trained without a Laplace scale")
        source, coarse = source.to(self.device), coarse.to(self.device)
        return (self._forward(self.ema["unet"].module.eval(), source, coarse)[:, 1:] + FIRST_LOG_SCALE).exp()

    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: source, coarse, prediction, target; (1, 4 · H, B · W) in [0, 1]."""
        x, c, y = (batch[key] for key in ("source", "coarse", "target"))
        return tile([center_slice(x), c, self.predict(x, c), y])

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimisers: the settings."""
        return {"settings": {**asdict(self.settings), "multipliers": list(self.settings.multipliers)}}

    def load_extra_state(self, state: dict) -> None:
        """Nothing beside the settings, which `loop.fit` has compared already."""


def drop_coarse(coarse: Tensor, share: float, rng: np.random.Generator, update: Update) -> Tensor:
    """Coarse images (B, 1, H, W), of which a share, drawn at random, is replaced by zeros."""
    kept = update.own(rng.random(len(coarse) * update.processes) >= share)
    return coarse * torch.from_numpy(kept).to(coarse)[:, None, None, None]
