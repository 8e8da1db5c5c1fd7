"""The refiner of one direction: an adversarially trained denoiser on the bridge from the coarse image to the real one.

A denoising diffusion GAN (Xiao 2022; SynDiff, Özbey 2023) on the bridge of `bridge.py`: the denoiser predicts y from
z_t, the source x, the coarse image c and t; L1 keeps it at the patient. A patch discriminator that sees the source
beside the image, and a loss on the power spectrum, give it the texture that L1 alone blurs away. It begins with the
weights of the same network trained as a plain regression. Settings make the controls: without those two losses the
regression `refiner_l1`, without the coarse image `unet_l1` and, with them, `pix2pix`.
A second, smaller network predicts the absolute error of the refined image, for the uncertainty map.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError
from petct_lib.bridge import SAMPLERS, time_grid
from petct_lib.cyclegan import Update, adversarial_loss, discriminator_accuracy, discriminator_loss
from petct_lib.nets import Denoiser, PatchDiscriminator, averaged, frozen, middle, tile

FIRST_LOG_ERROR = -3.0  # what the error network says untrained: e⁻³ of the network's range, about 60 HU
POWER_FLOOR = 1e-6  # noise of 0.1 % of the network's range: less power than that is none


@dataclass(frozen=True)
class RefinerSettings:
    """What the profiles set is in notebook 03 and `notebooks/params/`; the sizes here are the profile `full`'s.

    InputError for settings out of their range, and for a refiner that sees neither source nor coarse image.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    steps: int = 1  # denoiser evaluations a sample: the times of its grid
    sigma: float = 0.1  # noise at t = 1, in network units
    sampler: str = "renoised"
    sees_source: bool = True
    neighbours: int = 1  # 3 or 5: slices of the source around the one to refine, and itself (2.5-D)
    sees_coarse: bool = True  # False: no c anywhere, and the bridge starts at σ·ε
    residual: bool = True  # the denoiser adds to c; False: it sees c, but draws the whole image itself
    lambda_l1: float = 10.0
    lambda_adversarial: float = 1.0  # 0: no discriminator
    lambda_spectrum: float = 0.0  # of `spectrum_loss`
    patch_width: int = 64  # the discriminator's first layer
    patch_layers: int = 2  # 34×34 patches: texture is judged, the patient is L1's matter
    error_width: int = 0  # of the network that predicts the absolute error; 0: none
    lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        weights = self.lambda_l1, self.lambda_adversarial, self.lambda_spectrum
        if self.steps < 1 or min(self.sigma, *weights, self.error_width) < 0:
            raise InputError(f"refiner: steps must be 1 or more, sigma, weights, error_width 0 or more: {self}")
        if self.sampler not in SAMPLERS:
            raise InputError(f"refiner: sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        if self.neighbours not in (1, 3, 5):
            raise InputError(f"refiner: neighbours {self.neighbours} is not 1, 3 or 5")
        if not (self.sees_source or self.sees_coarse):
            raise InputError("refiner: it must see the source, the coarse image, or both")

    def regression(self) -> "RefinerSettings":
        """The same network as a plain regression: one step of L1 alone, without noise and judge."""
        return replace(self, steps=1, sigma=0.0, lambda_adversarial=0.0, lambda_spectrum=0.0)

    def direct(self) -> "RefinerSettings":
        """The same network from the source alone, as pix2pix has it: no coarse image, no noise, one step."""
        return replace(self, sees_coarse=False, sigma=0.0, steps=1)


class Refiner:
    """Denoiser, discriminator and error network of one direction with their optimisers: a stage for `train.fit`."""

    def __init__(self, settings: RefinerSettings, seed: int = 0) -> None:
        torch.manual_seed(seed)  # initial weights; everything later takes its randomness as an argument
        s = self.settings = settings
        images = 1 + s.sees_source * s.neighbours + s.sees_coarse  # z_t, x, c
        self.nets: dict[str, nn.Module] = {
            "denoiser": Denoiser(images, s.width, tuple(s.multipliers), residual=s.sees_coarse and s.residual)
        }
        if s.lambda_adversarial:
            of_state = 2 if s.steps > 1 else 0  # z_t and t: at t = 1 alone they tell nothing that x does not
            self.nets["D"] = PatchDiscriminator(1 + s.sees_source + of_state, s.patch_width, s.patch_layers)
        if s.error_width:
            self.nets["error"] = Denoiser(images, s.error_width, tuple(s.multipliers), residual=False)
            nn.init.constant_(self.nets["error"].tail[-1].bias, FIRST_LOG_ERROR)
        self.optimisers = {name: self._adam(name, net) for name, net in self.nets.items()}
        self.ema = {name: averaged(net, s.ema_decay) for name, net in self.nets.items() if name != "D"}

    def _adam(self, name: str, net: nn.Module) -> torch.optim.Adam:
        s = self.settings
        beta1 = 0.5 if name == "D" else s.beta1  # Radford 2016: momentum 0.9 lets a GAN oscillate
        return torch.optim.Adam(net.parameters(), lr=s.lr, betas=(beta1, s.beta2), fused=True)

    def start_from(self, other: "Refiner") -> None:
        """Begin with the averages of a trained refiner, such as the regression: its denoiser, and its error network.

        InputError where they are of other sizes.
        """
        for name in self.ema.keys() & other.ema.keys():
            weights = other.ema[name].module.state_dict()
            for net in (self.nets[name], self.ema[name].module):
                try:
                    net.load_state_dict(weights)
                except RuntimeError as error:
                    raise InputError(f"refiner: cannot begin with the weights of another network: {error}") from None

    def step(self, batch: dict[str, Tensor], step: int, rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """Training step number `step`: denoiser, discriminator, error network, in this order; what it logs comes back.

        batch: "source" (B, neighbours or more, H, W), "coarse", "target" (B, 1, H, W) in [−1, 1]. Each image gets one
        random time of the grid, to which it is walked as in sampling: with y itself in z_t the network would learn to
        copy y, and err when the ŷ of sampling is wrong (exposure bias, Ning 2023).
        """
        batch = {**batch, **self._state(batch, rng, update)}
        with frozen([net for name, net in self.nets.items() if name == "D"]):
            losses, images = update("denoiser", self.denoiser_losses, batch)
        if "D" in self.nets:
            judged, accuracy = update("D", self.discriminator_losses, {**batch, **images})
            losses = {**losses, **judged, **accuracy}
        if "error" in self.nets:
            losses |= update("error", self.error_losses, {**batch, **images})[0]
        for name, ema in self.ema.items():
            ema.update_parameters(self.nets[name])
        return losses

    def denoiser_losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """λ · L1, the least-squares adversarial loss (Isola 2017, eq. 4) and the spectrum's; "refined"."""
        s, y = self.settings, batch["target"]
        refined = self._predict(self.nets["denoiser"], batch, batch["z"], batch["t"])
        losses = {"l1": s.lambda_l1 * (refined - y).abs().mean()}
        if s.lambda_spectrum:
            losses["spectrum"] = s.lambda_spectrum * spectrum_loss(refined, y)
        if s.lambda_adversarial:
            losses["adversarial"] = s.lambda_adversarial * adversarial_loss(self._judge(batch, refined), "lsgan")
        return losses, {"refined": refined}

    def discriminator_losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What D minimises on real and refined images of the same source; and how often it is right."""
        real, fake = self._judge(batch, batch["target"]), self._judge(batch, batch["refined"])
        return {"D_patch": discriminator_loss(real, fake, "lsgan")}, {
            "accuracy_patch": discriminator_accuracy(real, fake, "lsgan")
        }

    def error_losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Negative log likelihood of the denoiser's error e as Laplace, |e|/b + log b (Kendall 2017, eq. 8, with L1).

        At its least, b is the mean |e| to be expected. The denoiser is not changed by it.
        """
        log_b = self._predict(self.nets["error"], batch, batch["refined"], 0.0)
        error = (batch["refined"] - batch["target"]).abs()
        return {"error": (error * torch.exp(-log_b) + log_b).mean()}, {}

    def _state(self, batch: dict[str, Tensor], rng: np.random.Generator, update: Update) -> dict[str, Tensor]:
        """z_t and t of each image: the state in which the sampler itself comes to the image's own time."""
        s, c = self.settings, self._coarse(batch["coarse"])
        n, times = len(c) * update.processes, time_grid(s.steps)
        everyone = rng.integers(len(times), size=n)  # drawn for the whole batch, whoever has the slices
        k, deepest = update.own(everyone), everyone.max()  # all processes walk, and draw, as far as the deepest image
        states: list[Tensor] = []

        def predict(z: Tensor, t: float) -> Tensor:
            states.append(z)
            is_last = len(states) > deepest  # nobody goes on from there
            return z if is_last else self._predict(self.nets["denoiser"], batch, z, t)

        with torch.no_grad():
            draw = partial(_noise, c, rng, update)
            SAMPLERS[s.sampler](predict, c, times[: deepest + 1], sigma=s.sigma, draw=draw)
        t = torch.tensor([times[i] for i in k], dtype=c.dtype, device=c.device)
        return {"z": torch.stack([states[i][j] for j, i in enumerate(k)]), "t": t}

    def _coarse(self, c: Tensor) -> Tensor:
        return c if self.settings.sees_coarse else torch.zeros_like(c)

    def _predict(self, net: nn.Module, batch: dict[str, Tensor], z: Tensor, t: float | Tensor) -> Tensor:
        """t: one time, or (B,)."""
        s = self.settings
        seen = [middle(batch["source"], s.neighbours)] if s.sees_source else []
        seen += [batch["coarse"]] if s.sees_coarse else []
        times = torch.as_tensor(t, dtype=z.dtype, device=z.device).expand(len(z))
        return net(torch.cat([z, *seen], dim=1), times)

    def _judge(self, batch: dict[str, Tensor], image: Tensor) -> Tensor:
        """D's scores of an image beside its source; on a grid of several times, beside z_t and t, too."""
        seen = [middle(batch["source"])] if self.settings.sees_source else []
        if self.settings.steps > 1:
            seen += [batch["z"], batch["t"].view(-1, 1, 1, 1).expand_as(image)]
        return self.nets["D"](torch.cat([*seen, image], dim=1))

    @property
    def device(self) -> torch.device:
        """Where the averaged denoiser is."""
        return next(self.ema["denoiser"].parameters()).device

    def preview(self, batch: dict[str, Tensor]) -> Tensor:
        """Rows: source, coarse, refined, target; (1, 4 · H, B · W) in [0, 1]."""
        x, c, y = (batch[key] for key in ("source", "coarse", "target"))
        return tile([middle(x), c, self.sample(x, c, torch.Generator().manual_seed(0))[-1], y])

    @torch.no_grad()
    def sample(self, x: Tensor, c: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Predictions of y along one walk, the last one being the sample, each (B, 1, H, W).

        generator: on the CPU, so that every device draws the same noise: one ε (1, 1, H, W) a time for all slices.
        """
        s, x, c = self.settings, x.to(self.device), self._coarse(c.to(self.device))
        predict = partial(self._predict, self.ema["denoiser"].module.eval(), {"source": x, "coarse": c})

        def draw() -> Tensor:
            return torch.randn((1, *c.shape[1:]), generator=generator).to(c).expand_as(c)

        return SAMPLERS[s.sampler](predict, c, time_grid(s.steps), sigma=s.sigma, draw=draw)

    @torch.no_grad()
    def expected_error(self, x: Tensor, c: Tensor, refined: Tensor) -> Tensor:
        """Expected |refined − y| of each pixel, (B, 1, H, W) in the network's range.

        InputError without an error network.
        """
        if "error" not in self.ema:
            raise InputError("refiner: it was trained without an error network (error_width 0), and has no uncertainty")
        x, c, refined = (image.to(self.device) for image in (x, c, refined))
        net = self.ema["error"].module.eval()
        return self._predict(net, {"source": x, "coarse": c}, refined, 0.0).exp()

    def extra_state(self) -> dict:
        """What a checkpoint must hold beside weights and optimiser: the settings."""
        return {"settings": {**asdict(self.settings), "multipliers": list(self.settings.multipliers)}}

    def load_extra_state(self, state: dict) -> None:
        """Nothing beside the settings, which `train.fit` has compared already."""


def spectrum_loss(image: Tensor, real: Tensor) -> Tensor:
    """Mean |ln P(image) − ln P(real)| over images and rings of equal spatial frequency, of (B, 1, H, W).

    P is the power of each image's own rings, as in the spectral regularisation of Durall 2020 (CVPR). Unlike L1 it
    does not mind where fine structure is, so long as there is as much of it; unlike a discriminator, it cannot tell
    structure from noise.
    """
    return (_log_power(image) - _log_power(real)).abs().mean()


def _log_power(image: Tensor) -> Tensor:
    """(B, rings), from one cycle an image up to Nyquist, on the shorter side."""
    height, width = image.shape[-2:]
    size = min(height, width)
    y, x = (f * size for f in (torch.fft.fftfreq(height), torch.fft.rfftfreq(width)))
    beyond = size // 2 + 1  # one ring for the corners, which is left out
    ring = torch.hypot(y[:, None], x).round().long().clamp(max=beyond).flatten().to(image.device)  # (H · (W // 2 + 1),)
    power = torch.fft.rfft2(image[:, 0].float(), norm="ortho").abs().square().flatten(1)
    total = power.new_zeros(len(image), beyond + 1).index_add(1, ring, power)
    count = power.new_zeros(beyond + 1).index_add(0, ring, torch.ones_like(power[0]))
    return (total / count)[:, 1:beyond].add(POWER_FLOOR).log()


def _noise(c: Tensor, rng: np.random.Generator, update: Update) -> Tensor:
    whole = rng.standard_normal((len(c) * update.processes, *c.shape[1:]), dtype=np.float32)
    return torch.from_numpy(update.own(whole)).to(c)
