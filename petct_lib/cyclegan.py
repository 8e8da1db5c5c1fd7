"""CycleGAN (Zhu et al. 2017): losses, image pool, and one training step, PET→CT and CT→PET together.

Names: G_pet2ct is the paper's G, G_ct2pet its F, D_ct its D_Y, D_pet its D_X.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from petct_lib.nets import PatchDiscriminator, ResnetGenerator, tile

DIRECTIONS = ("pet2ct", "ct2pet")


@dataclass(frozen=True)
class CycleGANSettings:
    """Defaults are the paper's."""

    width: int = 64  # first layer's channels of generator and discriminator
    blocks: int = 9  # residual blocks, for 256×256 images
    patch_layers: int = 3  # 3: 70×70 patches; 2: 34×34, for small images
    lambda_cycle: float = 10.0  # Zhu 2017, §4
    lambda_identity: float = 5.0  # half of lambda_cycle, Zhu 2017, §5.2
    pool_size: int = 50  # Shrivastava 2017, as in Zhu 2017, §4
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    ema_decay: float = 0.999  # averaged weights are what translates


def lsgan_loss(scores: Tensor, is_real: bool) -> Tensor:
    """Least-squares GAN loss: mean (D − label)², label 1 for real and 0 for fake (Mao 2017; Zhu 2017, §4)."""
    return (scores - float(is_real)).square().mean()


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Half the sum of both least-squares terms: halved to slow D down relative to G (Zhu 2017, appendix 7.1)."""
    return 0.5 * (lsgan_loss(scores_real, True) + lsgan_loss(scores_fake, False))


def cycle_loss(real: Tensor, reconstructed: Tensor, weight: float) -> Tensor:
    """weight × mean |F(G(x)) − x| (Zhu 2017, eq. 2)."""
    return weight * (reconstructed - real).abs().mean()


def identity_loss(real: Tensor, mapped: Tensor, weight: float) -> Tensor:
    """weight × mean |G(y) − y| for y already of the target domain (Zhu 2017, §5.2)."""
    return weight * (mapped - real).abs().mean()


class ImagePool:
    """The last `size` fakes; each new one is, half of the time, swapped for an old one (Shrivastava 2017)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, fakes: Tensor, rng: np.random.Generator) -> Tensor:
        """(B, 1, H, W) fakes in, (B, 1, H, W) fakes for the discriminator out."""
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
    """Both generators and discriminators with their optimisers: a stage that `train.fit` can run."""

    def __init__(self, settings: CycleGANSettings, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        self.nets: dict[str, nn.Module] = {
            "G_pet2ct": ResnetGenerator(1, 1, s.width, s.blocks),
            "G_ct2pet": ResnetGenerator(1, 1, s.width, s.blocks),
            "D_ct": PatchDiscriminator(1, s.width, s.patch_layers),
            "D_pet": PatchDiscriminator(1, s.width, s.patch_layers),
        }
        self.optimisers = {kind: self._adam(kind) for kind in "GD"}
        average = get_ema_multi_avg_fn(s.ema_decay)
        self.ema = {n: AveragedModel(net, multi_avg_fn=average) for n, net in self.nets.items() if n[0] == "G"}
        self.pools = {"ct": ImagePool(s.pool_size), "pet": ImagePool(s.pool_size)}

    def _adam(self, kind: str) -> torch.optim.Adam:
        nets = [net for name, net in self.nets.items() if name[0] == kind]
        parameters = itertools.chain(*(net.parameters() for net in nets))
        return torch.optim.Adam(parameters, lr=self.settings.lr, betas=(self.settings.beta1, self.settings.beta2))

    def step(
        self, batch: dict[str, Tensor], rng: np.random.Generator, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """One update of G and F, then of D_Y and D_X. batch: unpaired "pet" and "ct", (B, 1, H, W) in [−1, 1]."""
        s, nets, pet, ct = self.settings, self.nets, batch["pet"], batch["ct"]
        fake_ct, fake_pet = nets["G_pet2ct"](pet), nets["G_ct2pet"](ct)

        self._freeze_discriminators(True)
        adversarial = lsgan_loss(nets["D_ct"](fake_ct), True) + lsgan_loss(nets["D_pet"](fake_pet), True)
        cycle = cycle_loss(pet, nets["G_ct2pet"](fake_ct), s.lambda_cycle)
        cycle = cycle + cycle_loss(ct, nets["G_pet2ct"](fake_pet), s.lambda_cycle)
        identity = identity_loss(ct, nets["G_pet2ct"](ct), s.lambda_identity)
        identity = identity + identity_loss(pet, nets["G_ct2pet"](pet), s.lambda_identity)
        self._update("G", adversarial + cycle + identity, backward)

        self._freeze_discriminators(False)
        d_ct = discriminator_loss(nets["D_ct"](ct), nets["D_ct"](self.pools["ct"].query(fake_ct, rng)))
        d_pet = discriminator_loss(nets["D_pet"](pet), nets["D_pet"](self.pools["pet"].query(fake_pet, rng)))
        self._update("D", d_ct + d_pet, backward)

        for name, ema in self.ema.items():
            ema.update_parameters(nets[name])
        return {"adversarial": adversarial, "cycle": cycle, "identity": identity, "D_ct": d_ct, "D_pet": d_pet}

    def _freeze_discriminators(self, frozen: bool) -> None:
        for name in ("D_ct", "D_pet"):
            self.nets[name].requires_grad_(not frozen)

    def _update(self, kind: str, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        self.optimisers[kind].zero_grad(set_to_none=True)
        backward(loss)
        self.optimisers[kind].step()

    def generator(self, direction: str) -> nn.Module:
        """The averaged generator of a direction, for translating."""
        return self.ema[f"G_{direction}"].module.eval()

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: PET, CT made of it, CT, PET made of it; (1, 4 · H, B · W) in [0, 1]."""
        device = next(self.generator("pet2ct").parameters()).device
        pet, ct = batch["pet"].to(device), batch["ct"].to(device)
        return tile([pet, self.generator("pet2ct")(pet), ct, self.generator("ct2pet")(ct)])

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimisers: settings and image pools."""
        return {"settings": asdict(self.settings), "pools": {k: list(p.images) for k, p in self.pools.items()}}

    def load_extra_state(self, state: dict) -> None:
        """The image pools of a checkpoint; its settings `train.fit` has compared already."""
        for key, images in state["pools"].items():
            self.pools[key].images = list(images)
