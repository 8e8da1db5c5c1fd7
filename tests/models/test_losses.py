"""Adversarial, cycle and identity losses by hand."""

import pytest
import torch

from petct_lib.models.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_accuracy,
    discriminator_loss,
    identity_loss,
)

SCORES = torch.tensor([0.5, 1.0, 3.0])
FAKES = torch.tensor([-2.0, 0.25, 0.75])


def test_adversarial_losses_by_hand():
    # (0.25 + 0 + 4)/3; half of (0.25 + 0 + 4)/3 and (4 + 0.0625 + 0.5625)/3; 0.5 is not beyond 1/2, 0.75 is
    assert adversarial_loss(SCORES).item() == pytest.approx(4.25 / 3)
    assert discriminator_loss(SCORES, FAKES).item() == pytest.approx(0.5 * (4.25 + 4.625) / 3)
    assert discriminator_accuracy(SCORES, FAKES).item() == pytest.approx(0.5 * (2 / 3 + 2 / 3))


def test_cycle_and_identity_losses_by_hand():
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.5, -1.0])
    assert cycle_loss(a, b, 10.0).item() == pytest.approx(12.5)
    assert identity_loss(a, b, 5.0).item() == pytest.approx(6.25)
