"""Cycle pairs: pairs to refine with, made without a single real one.

From a real image y of the target domain, the trained generators F (target → source) and G (source → target) make
c' = G(F(y) + perturbation). Of (c', y) stage 2 learns to turn a CycleGAN output into the real image that it came from,
and then refines c = G(x) of a new patient. The perturbation takes away what F hides in its image for G to read
(steganography, Chu et al. 2017): without it c' would be nearly y.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from petct_lib.models.cyclegan import CycleGAN
from petct_lib.models.networks import enlarge, shrink

BACK = {"pet2ct": "ct2pet", "ct2pet": "pet2ct"}


@dataclass(frozen=True)
class Perturbation:
    """Changes of F(y), by image: noise of a random strength up to `noise`, and a random share of a 3×3 blur."""

    noise: float = 0.1  # network units; chosen: well above what is hidden, well below anatomy
    blur: bool = True


def perturb(image: Tensor, perturbation: Perturbation, rng: np.random.Generator) -> Tensor:
    """Images (B, C, H, W) in [−1, 1], each changed with numbers of its own."""
    share, strength = (torch.from_numpy(rng.random((len(image), 1, 1, 1), np.float32)).to(image) for _ in range(2))
    if perturbation.blur:
        soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        image = torch.lerp(image, soft, share)
    noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32)).to(image)
    return (image + perturbation.noise * strength * noise).clamp(-1, 1)


@torch.no_grad()
def make_cycle_pair(
    cyclegan: CycleGAN, y: Tensor, direction: str, perturbation: Perturbation, rng: np.random.Generator,
    variants: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Target slices y (B, 1, H, W) of a direction → F(y), a synthetic source, (B, 1, H, W), and c', on the CPU.

    c': (B, variants, H, W), each of another perturbation. Both generators work on the coarse grid; what they give is
    brought up to y's size.
    """
    F_, G = cyclegan.generator(BACK[direction]), cyclegan.generator(direction)
    small = shrink(y.to(next(G.parameters()).device), cyclegan.settings.coarse_size)
    x = F_(small)
    c = torch.cat([G(perturb(x, perturbation, rng)) for _ in range(variants)], dim=1)
    return tuple(enlarge(image, y.shape[-2:]).cpu() for image in (x, c))
