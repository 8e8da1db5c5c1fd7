"""Adversarial, cycle and identity losses."""

from torch import Tensor


def adversarial_loss(scores: Tensor) -> Tensor:
    """What a generator minimises, over the scores of its fakes: mean (D − 1)² (Mao 2017; Zhu 2017, §4).

    >>> import torch
    >>> adversarial_loss(torch.tensor([1.0, 0.0])).item()  # one patch of two has fooled the discriminator
    0.5
    """
    return (scores - 1).square().mean()


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Half of mean (D(real) − 1)² + mean D(fake)²: halved to slow D down relative to G (Zhu 2017, appendix 7.1)."""
    return 0.5 * ((scores_real - 1).square().mean() + scores_fake.square().mean())


def discriminator_accuracy(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Share of the patches judged right, 0 to 1: on the right side of 1/2."""
    return 0.5 * ((scores_real > 0.5).float().mean() + (scores_fake < 0.5).float().mean())


def cycle_loss(real: Tensor, reconstructed: Tensor, weight: float) -> Tensor:
    """The weight × mean |F(G(x)) − x|, both (B, C, H, W) (Zhu 2017, eq. 2).

    >>> import torch
    >>> cycle_loss(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5), 10.0).item()
    5.0
    """
    return weight * (reconstructed - real).abs().mean()


def identity_loss(real: Tensor, mapped: Tensor, weight: float) -> Tensor:
    """The weight × mean |G(y) − y| for y already of the target domain, both (B, C, H, W) (Zhu 2017, §5.2)."""
    return weight * (mapped - real).abs().mean()
