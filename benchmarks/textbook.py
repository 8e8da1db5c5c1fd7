"""CycleGAN as its paper has it (Zhu et al. 2017, §4 and appendix 7), written plainly: the peer of `training.py`.

Nothing of petct_lib's networks or training is used. ResNet-9 generators of width 64 with transposed convolutions, 70×70
PatchGANs, instance norm, least squares, Adam, batch 1, float32, each image through each network by itself, no averages.
"""

import random
from types import SimpleNamespace

import torch
from torch import Tensor, nn

LAMBDA = 10.0  # §4
LAMBDA_IDENTITY = 0.5 * LAMBDA  # §5.2
POOL = 50  # §4
LR, BETAS = 2e-4, (0.5, 0.999)


def conv(a: int, b: int, stride: int) -> list[nn.Module]:
    """dk: 3×3 convolution of stride 2, or a stride of 1 in a residual block; norm."""
    return [nn.Conv2d(a, b, 3, stride, padding=1 if stride == 2 else 0), nn.InstanceNorm2d(b)]


class Residual(nn.Module):
    """Rk: two 3×3 convolutions, reflection padding."""

    def __init__(self, k: int) -> None:
        super().__init__()
        pad = nn.ReflectionPad2d(1)
        self.net = nn.Sequential(pad, *conv(k, k, 1), nn.ReLU(), pad, *conv(k, k, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def generator(channels: int = 1) -> nn.Sequential:
    """c7s1-64, d128, d256, R256 × 9, u128, u64, c7s1 (appendix 7.2)."""
    return nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(channels, 64, 7), nn.InstanceNorm2d(64), nn.ReLU(),
        *conv(64, 128, 2), nn.ReLU(), *conv(128, 256, 2), nn.ReLU(),
        *[Residual(256) for _ in range(9)],
        nn.ConvTranspose2d(256, 128, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(64), nn.ReLU(),
        nn.ReflectionPad2d(3), nn.Conv2d(64, channels, 7), nn.Tanh(),
    ).apply(init)  # fmt: skip


def discriminator(channels: int = 1) -> nn.Sequential:
    """C64, C128, C256, C512, a score a patch of 70×70 (appendix 7.2)."""
    layers = [nn.Conv2d(channels, 64, 4, 2, 1), nn.LeakyReLU(0.2)]
    for a, b, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [nn.Conv2d(a, b, 4, stride, 1), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1)).apply(init)


def init(module: nn.Module) -> None:
    """N(0, 0.02) (appendix 7.1)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)


class Pool:
    """The last 50 fakes; half of the time an old one is judged in a new one's place."""

    def __init__(self, seed: int) -> None:
        self.images: list[Tensor] = []
        self.random = random.Random(seed)

    def __call__(self, fakes: Tensor) -> Tensor:
        return torch.stack([self.swap(fake) for fake in fakes.detach()])

    def swap(self, fake: Tensor) -> Tensor:
        """One fake in, it or an older one out."""
        if len(self.images) < POOL:
            self.images.append(fake)
            return fake
        if self.random.random() < 0.5:
            return fake
        k = self.random.randrange(POOL)
        old, self.images[k] = self.images[k], fake
        return old


class Textbook:
    """The four networks, their optimisers, and `train_step`; X is PET, Y is CT, as in petct_lib.cyclegan."""

    settings = SimpleNamespace(neighbours=1)  # what petct_lib's validation asks of a stage

    def __init__(self, steps: int, device: torch.device, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.G, self.F, self.D_Y, self.D_X = (
            net.to(device) for net in (generator(), generator(), discriminator(), discriminator())
        )
        generators = [*self.G.parameters(), *self.F.parameters()]
        discriminators = [*self.D_Y.parameters(), *self.D_X.parameters()]
        self.adam_G = torch.optim.Adam(generators, LR, BETAS)
        self.adam_D = torch.optim.Adam(discriminators, LR, BETAS)
        decay = [torch.optim.lr_scheduler.LambdaLR(adam, rate_of(steps)) for adam in (self.adam_G, self.adam_D)]
        self.decay, self.pool_Y, self.pool_X = decay, Pool(seed), Pool(seed + 1)

    def train_step(self, x: Tensor, y: Tensor) -> None:
        """Real PET x and real CT y, (B, 1, H, W): both generators are updated, then both discriminators."""
        self.freeze_discriminators(True)
        fake_y, fake_x = self.G(x), self.F(y)
        gan = (self.D_Y(fake_y) - 1).square().mean() + (self.D_X(fake_x) - 1).square().mean()
        cycle = (self.F(fake_y) - x).abs().mean() + (self.G(fake_x) - y).abs().mean()
        identity = (self.G(y) - y).abs().mean() + (self.F(x) - x).abs().mean()
        self.adam_G.zero_grad()
        (gan + LAMBDA * cycle + LAMBDA_IDENTITY * identity).backward()
        self.adam_G.step()

        self.freeze_discriminators(False)
        self.adam_D.zero_grad()
        for D, real, fake in ((self.D_Y, y, self.pool_Y(fake_y)), (self.D_X, x, self.pool_X(fake_x))):
            (0.5 * ((D(real) - 1).square().mean() + D(fake).square().mean())).backward()
        self.adam_D.step()
        for schedule in self.decay:
            schedule.step()

    def freeze_discriminators(self, frozen: bool) -> None:
        """They are not updated with the generators, so they need no gradients then."""
        for D in (self.D_Y, self.D_X):
            D.requires_grad_(not frozen)

    def generator(self, direction: str) -> nn.Module:
        """The generator of a direction, for translating; instance norm makes no difference between modes."""
        return {"pet2ct": self.G, "ct2pet": self.F}[direction].eval()


def rate_of(steps: int) -> object:
    """Constant for the first half of the steps, then linear to 0 (§4)."""
    return lambda step: min(1.0, 2 * (1 - step / steps))
