"""CycleGAN (Zhu et al. 2017): losses, image pool, and one training step, PET→CT and CT→PET together.

Names: G_pet2ct is the paper's G, G_ct2pet its F, D_ct its D_Y, D_pet its D_X.
"""

import itertools
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError
from petct_lib.models.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_accuracy,
    discriminator_loss,
    identity_loss,
)
from petct_lib.models.networks import (
    PatchDiscriminator,
    ResnetGenerator,
    ema_model,
    enlarge,
    freeze,
    shrink,
    tile,
)
from petct_lib.models.stage import Update


@dataclass(frozen=True)
class CycleGANSettings:
    """Defaults are the paper's, but for the averaged weights. A weight of 0 leaves its loss out.

    InputError for a weight below 0, an interval below 1, and a coarse grid that cannot be halved twice.
    """

    width: int = 64  # first layer's channels of generator and discriminator
    blocks: int = 9  # residual blocks, for 256×256 images
    patch_layers: int = 3  # 3: 70×70 patches; 2: 34×34, for small images
    coarse_size: int | None = None  # pixels along x and y of the grid that it works on; None: the slices' own
    lambda_cycle: float = 10.0  # Zhu 2017, §4
    lambda_identity: float = 5.0  # half of lambda_cycle, Zhu 2017, §5.2
    identity_every: int = 1  # the identity loss on every n-th step only, n times as strong there
    pool_size: int = 50  # Shrivastava 2017, as in Zhu 2017, §4; 0: no pool
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ema_decay: float = 0.999  # averaged weights are what translates

    def __post_init__(self) -> None:
        if min(self.lambda_cycle, self.lambda_identity, self.pool_size) < 0 or self.identity_every < 1:
            raise InputError(f"CycleGAN: weights and pool_size must be at least 0, identity_every at least 1: {self}")
        if self.coarse_size is not None and (self.coarse_size < 4 or self.coarse_size % 4):
            raise InputError(f"CycleGAN: coarse_size {self.coarse_size} must be a multiple of 4, or None")


class ImagePool:
    """The last `size` fakes; each new one is, half of the time, swapped for an old one (Shrivastava 2017)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor, rng: np.random.Generator) -> Tensor:
        """(B, C, H, W) fakes in, (B, C, H, W) fakes for the discriminator out."""
        return torch.stack([self._swap(image, rng).to(fakes.device) for image in fakes.detach()])

    def _swap(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self.size == 0:
            return image
        if len(self.images) < self.size:
            self.images.append(image.clone())  # not a view, which would keep its whole batch
            return image
        if rng.random() < 0.5:
            return image
        k = int(rng.integers(self.size))
        old, self.images[k] = self.images[k], image.clone()
        return old


class CycleGAN:
    """Both generators and discriminators with their optimisers: a stage that `loop.fit` can run."""

    def __init__(self, settings: CycleGANSettings, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        self.nets: dict[str, nn.Module] = {
            "G_pet2ct": ResnetGenerator(s.width, s.blocks), "G_ct2pet": ResnetGenerator(s.width, s.blocks),
            "D_ct": PatchDiscriminator(1, s.width, s.patch_layers),
            "D_pet": PatchDiscriminator(1, s.width, s.patch_layers),
        }  # fmt: skip
        self.optimisers = {kind: self._adam(kind) for kind in "GD"}
        self.ema = {name: ema_model(net, s.ema_decay) for name, net in self.nets.items() if name[0] == "G"}
        self.pools = {"ct": ImagePool(s.pool_size), "pet": ImagePool(s.pool_size)}

    def _adam(self, kind: str) -> torch.optim.Adam:
        nets = [net for name, net in self.nets.items() if name[0] == kind]
        parameters = itertools.chain(*(net.parameters() for net in nets))
        betas = (self.settings.beta1, self.settings.beta2)
        return torch.optim.Adam(parameters, lr=self.settings.lr, betas=betas, fused=True)

    def step(self, batch: dict[str, Tensor], step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """Training step number `step`: an update of G and F, then one of D_Y and D_X; what it logs comes back.

        batch: unpaired "pet" and "ct", (B, 1, H, W) in [−1, 1].
        """
        batch = {kind: shrink(images, self.settings.coarse_size) for kind, images in batch.items()}
        generator_losses = partial(self.generator_losses, identity=step % self.settings.identity_every == 0)
        with freeze(net for name, net in self.nets.items() if name[0] == "D"):
            losses, fakes = update("G", generator_losses, batch)
        for kind, pool in self.pools.items():  # every process keeps the same pool, of all processes' fakes
            fakes[f"fake_{kind}"] = update.own(pool.query(update.everyone(fakes[f"fake_{kind}"]), rng))
        judged, accuracy = update("D", self.discriminator_losses, {**batch, **fakes})
        for name, ema in self.ema.items():
            ema.update_parameters(self.nets[name])
        return {**losses, **judged, **accuracy}

    def generator_losses(
        self, batch: dict[str, Tensor], identity: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Zhu 2017, eq. 3 and §5.2: the terms that G and F minimise together; and the fakes."""
        s, pet, ct = self.settings, batch["pet"], batch["ct"]
        G, F_, D_Y, D_X = (self.nets[name] for name in ("G_pet2ct", "G_ct2pet", "D_ct", "D_pet"))
        fake_ct, fake_pet = G(pet), F_(ct)
        losses = {"adversarial": adversarial_loss(D_Y(fake_ct)) + adversarial_loss(D_X(fake_pet))}
        if s.lambda_cycle:
            there_and_back = cycle_loss(pet, F_(fake_ct), s.lambda_cycle), cycle_loss(ct, G(fake_pet), s.lambda_cycle)
            losses["cycle"] = sum(there_and_back)
        if s.lambda_identity and identity:
            weight = s.lambda_identity * s.identity_every
            losses["identity"] = identity_loss(ct, G(ct), weight) + identity_loss(pet, F_(pet), weight)
        return losses, {"fake_ct": fake_ct, "fake_pet": fake_pet}

    def discriminator_losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What D_Y and D_X minimise, on real images and fakes from the pools; and how often they are right."""
        losses, accuracy = {}, {}
        for kind in ("ct", "pet"):
            real, fake = self.nets[f"D_{kind}"](batch[kind]), self.nets[f"D_{kind}"](batch[f"fake_{kind}"])
            losses[f"D_{kind}"] = discriminator_loss(real, fake)
            accuracy[f"accuracy_{kind}"] = discriminator_accuracy(real, fake)
        return losses, accuracy

    def generator(self, direction: str) -> nn.Module:
        """The averaged generator of a direction, on the coarse grid: for training. `translate` is for all else."""
        return self.ema[f"G_{direction}"].module.eval()

    @torch.no_grad()
    def translate(self, x: Tensor, direction: str) -> Tensor:
        """Slices (B, 1, H, W) in [−1, 1] to their coarse images, (B, 1, H, W), on the networks' device.

        The generator sees them on its coarse grid, and its image is brought up to theirs.
        """
        generator = self.generator(direction)
        size, device = x.shape[-2:], next(generator.parameters()).device
        return enlarge(generator(shrink(x.to(device), self.settings.coarse_size)), size)

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: PET, CT made of it, CT, PET made of it; (1, 4 · H, B · W) in [0, 1]."""
        pet, ct = batch["pet"], batch["ct"]
        return tile([pet, self.translate(pet, "pet2ct"), ct, self.translate(ct, "ct2pet")])

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimisers: settings and image pools."""
        return {"settings": asdict(self.settings), "pools": {k: list(p.images) for k, p in self.pools.items()}}

    def load_extra_state(self, state: dict) -> None:
        """The image pools of a checkpoint; its settings `loop.fit` has compared already."""
        for key, images in state.get("pools", {}).items():
            self.pools[key].images = list(images)
