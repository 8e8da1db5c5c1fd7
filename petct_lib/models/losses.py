"""Adversarial, cycle and identity losses."""

import torch.nn.functional as F
from torch import Tensor

LOSSES = ("lsgan", "hinge")


def adversarial_loss(scores: Tensor, kind: str) -> Tensor:
    """What a generator minimises, over the scores of its fakes.

    "lsgan": mean (D − 1)² (Mao 2017; Zhu 2017, §4). "hinge": −mean D (Lim and Ye 2017).

    >>> adversarial_loss(torch.tensor([1.0, 0.0]), "lsgan").item()  # one patch of two has fooled the discriminator
    0.5
    """
    return (scores - 1).square().mean() if kind == "lsgan" else -scores.mean()


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor, kind: str) -> Tensor:
    """Half the sum of the terms for real and fake: halved to slow D down relative to G (Zhu 2017, appendix 7.1).

    "lsgan": mean (D(real) − 1)² and mean D(fake)². "hinge": mean max(0, 1 − D(real)) and mean max(0, 1 + D(fake)).
    """
    if kind == "lsgan":
        return 0.5 * ((scores_real - 1).square().mean() + scores_fake.square().mean())
    return 0.5 * (F.relu(1 - scores_real).mean() + F.relu(1 + scores_fake).mean())


def discriminator_accuracy(scores_real: Tensor, scores_fake: Tensor, kind: str) -> Tensor:
    """Share of the patches judged right, 0 to 1: on the right side of 1/2 (least squares) or of 0 (hinge)."""
    middle = 0.5 if kind == "lsgan" else 0.0
    return 0.5 * ((scores_real > middle).float().mean() + (scores_fake < middle).float().mean())


def cycle_loss(real: Tensor, reconstructed: Tensor, weight: float) -> Tensor:
    """The weight × mean |F(G(x)) − x|, both (B, C, H, W) (Zhu 2017, eq. 2).

    >>> cycle_loss(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5), 10.0).item()
    5.0
    """
    return weight * (reconstructed - real).abs().mean()


def identity_loss(real: Tensor, mapped: Tensor, weight: float) -> Tensor:
    """The weight × mean |G(y) − y| for y already of the target domain, both (B, C, H, W) (Zhu 2017, §5.2)."""
    return weight * (mapped - real).abs().mean()
