"""The networks: ResNet generator and PatchGAN (Zhu et al. 2017), and the U-Net of regression and diffusion."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from petct_lib import InputError

FINE = 8  # channels on the pixels themselves; chosen: a tenth of the time


class ResnetGenerator(nn.Module):
    """Image to image, (B, 1, H, W) → (B, 1, H, W) float32 in [−1, 1]; H and W divisible by 4.

    Zhu et al. 2017, appendix 7.2, but for the way up: where the paper has transposed convolutions, the nearest
    neighbour and a convolution, which leave no checkerboard (Odena et al. 2016).

    Instance norm (Ulyanov et al. 2016), as in the paper. It takes any bias before it away again, whose gradient would
    be rounding noise, which Adam blows up to full steps: those convolutions have none.
    """

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        w, edge = width, nn.ReflectionPad2d(3)
        self.enter = nn.Sequential(
            edge, nn.Conv2d(1, w, 7, bias=False), nn.InstanceNorm2d(w), nn.ReLU(True),
            *_down(w, 2 * w), *_down(2 * w, 4 * w),
        )  # fmt: skip
        self.blocks = nn.ModuleList(ResidualBlock(4 * w) for _ in range(blocks))
        self.leave = nn.Sequential(*_up(4 * w, 2 * w), *_up(2 * w, w), edge, nn.Conv2d(w, 1, 7), nn.Tanh())
        self.apply(init_gan)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) → (B, 1, H, W) float32 in [−1, 1]."""
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x).float()


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), each 3×3 with norm and reflection padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *_conv3(width, width), nn.InstanceNorm2d(width), nn.ReLU(True),
            *_conv3(width, width), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → the same shape."""
        return x + self.net(x)


def _conv3(a: int, b: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(a, b, 3, bias=False)]


def _down(a: int, b: int) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.InstanceNorm2d(b), nn.ReLU(True)]


def _up(a: int, b: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest"), *_conv3(a, b), nn.InstanceNorm2d(b), nn.ReLU(True)]


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches, (B, in, H, W) → (B, 1, h, w). layers=3 sees 70×70 pixels, layers=2 sees 34×34.

    Isola et al. 2017, as in Zhu et al. 2017.
    """

    def __init__(self, in_channels: int = 1, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        a = width
        for n in range(1, layers + 1):
            b = width * min(2**n, 8)
            stride = 2 if n < layers else 1
            parts += [nn.Conv2d(a, b, 4, stride, 1, bias=False), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2, True)]
            a = b
        self.net = nn.Sequential(*parts, nn.Conv2d(a, 1, 4, padding=1))
        self.apply(init_gan)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → a score for each patch, (B, 1, h, w) float32, of no fixed range."""
        return self.net(x).float()


def init_gan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0 (Zhu et al. 2017, appendix 7.1).

    Depthwise convolutions, which the paper has none of, start from N(0, 1/3), which keeps the variance: with 9 inputs
    and 0.02 the signal would sink below the norms' ε.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02 if module.groups == 1 else 1 / 3)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UNet(nn.Module):
    """Images and a time t to images, (B, in, H, W), (B,) → (B, out, H, W): regression and diffusion have this one.

    It works on a space-to-depth grid: `patch`×`patch` pixels become channels before and pixels again after (Shi et al.
    2016), so that an image of 256×256 with patch 4 costs little more than one of 64×64. Two thin convolutions on the
    pixels themselves come last: without them the squares' borders show. H and W divisible by
    patch · 2 ** (len(multipliers) − 1).
    """

    def __init__(
        self, in_channels: int, out_channels: int = 1, *, width: int = 64, multipliers: tuple[int, ...] = (1, 2, 4, 4),
        patch: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width * m for m in multipliers]
        self.width, self.patch = width, patch
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.head = nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            TimeBlock(a, b, 4 * width) for a, b in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.middle = TimeBlock(widths[-1], widths[-1], 4 * width)
        self.up = nn.ModuleList(
            TimeBlock(a + b, b, 4 * width) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        fine = nn.Conv2d(widths[0], FINE * patch**2, 3, padding=1)
        self.tail = nn.Sequential(_group_norm(widths[0]), nn.SiLU(), fine)
        out = nn.Conv2d(2 * FINE, out_channels, 3, padding=1)
        self.pixels = nn.Sequential(nn.Conv2d(FINE + in_channels, 2 * FINE, 3, padding=1), nn.SiLU(), out)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Images (B, in, H, W) and t (B,) in [0, 1] → (B, out, H, W) float32."""
        emb = self.time(time_embedding(t, self.width))  # (B, 4 · width)
        h, skips = self.head(F.pixel_unshuffle(x, self.patch)), []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, emb)
            skips.append(h)
        h = self.middle(skips.pop(), emb)
        for block in self.up:
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0), skips.pop()], dim=1), emb)
        h = F.pixel_shuffle(self.tail(h), self.patch)
        return self.pixels(torch.cat([h, x.to(h)], dim=1)).float()


def _group_norm(width: int) -> nn.GroupNorm:
    """Group norm of up to 8 groups (Wu and He 2018)."""
    return nn.GroupNorm(math.gcd(8, width), width)


class TimeBlock(nn.Module):
    """Two 3×3 convolutions with group norm; time scales and shifts between them (AdaGN, Dhariwal 2021)."""

    def __init__(self, a: int, b: int, time_width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), _group_norm(b))
        self.film = nn.Linear(time_width, 2 * b)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(b, b, 3, padding=1))
        self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, a, H, W) and the time's embedding (B, time_width) → (B, b, H, W)."""
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)  # each (B, b, 1, 1)
        return self.skip(x) + self.second(self.first(x) * (1 + scale) + shift)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of t in [0, 1], (B,) → (B, width) (Vaswani et al. 2017, with t stretched to 0…1000)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angle = 1000 * t[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def ema_model(net: nn.Module, decay: float) -> AveragedModel:
    """A running mean of a network's weights, whose decay grows with the updates n as (1 + n)/(10 + n), up to `decay`.

    Without the growth, which is TensorFlow's (ExponentialMovingAverage, `num_updates`), the first, random weights would
    stay in it for 1/(1 − decay) steps.
    """

    def average(means: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(means, weights, count)

    return AveragedModel(net, multi_avg_fn=average)


@contextmanager
def freeze(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Within, the networks' weights take no gradient, which still goes through them: as a generator's update needs."""
    nets = list(nets)
    for net in nets:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in nets:
            net.requires_grad_(True)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def shrink(images: Tensor, size: int | None) -> Tensor:
    """(B, C, H, W) → (B, C, size, size), means over squares of pixels; None: as they are. H = W, a multiple of size.

    InputError where it is none.
    """
    if size is None or images.shape[-1] == size:
        return images
    height, width = images.shape[-2:]
    if height != width or width % size:
        raise InputError(f"coarse_size {size}: slices of {height}×{width} pixels are not a multiple of it")
    return F.avg_pool2d(images, width // size)


def enlarge(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) → (B, C, *size), bilinear; as they are where they have the size."""
    if images.shape[-2:] == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)


def tile(rows: list[Tensor]) -> Tensor:
    """Batches (B, 1, H, W) in [−1, 1], one a row, as one picture (1, rows · H, B · W) in [0, 1]."""
    lines = [torch.cat(list(row.detach().float().cpu()), dim=2) for row in rows]
    return (torch.cat(lines, dim=1).clamp(-1, 1) + 1) / 2
