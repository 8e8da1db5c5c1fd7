"""Losses by hand, the image pool, and a training step that learns."""

import numpy as np
import pytest
import torch

from petct_lib.cyclegan import (
    CycleGAN,
    CycleGANSettings,
    ImagePool,
    cycle_loss,
    discriminator_loss,
    identity_loss,
    lsgan_loss,
)

TINY = CycleGANSettings(width=4, blocks=1, patch_layers=2, ema_decay=0.5)


def backward(loss):
    loss.backward()


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {kind: torch.rand(2, 1, 32, 32, generator=g) * 2 - 1 for kind in ("pet", "ct")}


def test_losses_by_hand():
    scores = torch.tensor([0.5, 1.0, 3.0])
    assert lsgan_loss(scores, True).item() == pytest.approx((0.25 + 0 + 4) / 3)
    assert lsgan_loss(scores, False).item() == pytest.approx((0.25 + 1 + 9) / 3)
    assert discriminator_loss(torch.tensor([1.0]), torch.tensor([0.0])).item() == 0
    assert discriminator_loss(torch.tensor([0.5]), torch.tensor([0.5])).item() == pytest.approx(0.25)
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.5, -1.0])
    assert cycle_loss(a, b, 10.0).item() == pytest.approx(12.5)
    assert identity_loss(a, b, 5.0).item() == pytest.approx(6.25)


def test_pool_hands_out_new_images_until_full_then_old_ones_half_of_the_time():
    pool, rng = ImagePool(3), np.random.default_rng(0)
    first = pool.query(torch.arange(3.0).view(3, 1, 1, 1), rng)
    assert first.flatten().tolist() == [0, 1, 2]
    kept = [pool.query(torch.full((1, 1, 1, 1), float(k)), rng).item() == k for k in range(3, 1003)]
    assert 0.45 < np.mean(kept) < 0.55
    assert len(pool.images) == 3


def test_pool_keeps_images_and_not_their_batches():
    pool = ImagePool(2)
    pool.query(torch.ones(2, 1, 4, 4), np.random.default_rng(0))
    assert all(image.untyped_storage().nbytes() == 16 * 4 for image in pool.images)


def test_pool_of_size_0_hands_every_image_through():
    pool = ImagePool(0)
    out = pool.query(torch.ones(1, 1, 2, 2), np.random.default_rng(0))
    assert out.mean() == 1
    assert pool.images == []


def test_step_names_its_losses_and_moves_every_network():
    stage = CycleGAN(TINY)
    before = {name: [p.clone() for p in net.parameters()] for name, net in stage.nets.items()}
    losses = stage.step(batch(), np.random.default_rng(0), backward)
    assert set(losses) == {"adversarial", "cycle", "identity", "D_ct", "D_pet"}
    for name, net in stage.nets.items():
        moved = [not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)]
        assert any(moved), name


def test_generators_loss_leaves_the_discriminators_alone():
    stage = CycleGAN(TINY)
    stage.optimisers["D"].param_groups[0]["lr"] = 0.0
    before = [p.clone() for p in stage.nets["D_ct"].parameters()]
    stage.step(batch(), np.random.default_rng(0), backward)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.nets["D_ct"].parameters(), strict=True))


def test_same_seed_same_weights_to_the_bit_and_other_seed_others():
    def trained(seed):
        stage = CycleGAN(TINY, seed)
        for k in range(2):
            stage.step(batch(k), np.random.default_rng(k), backward)
        return torch.cat([p.flatten() for p in stage.nets["G_pet2ct"].parameters()])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_cycle_loss_falls_on_a_fixed_batch():
    stage, fixed = CycleGAN(CycleGANSettings(width=8, blocks=1, patch_layers=2, lr=2e-3)), batch()
    cycle = [stage.step(fixed, np.random.default_rng(k), backward)["cycle"].item() for k in range(30)]
    assert np.mean(cycle[-5:]) < 0.8 * np.mean(cycle[:5])


def test_ema_is_the_running_mean_of_the_generator():
    stage = CycleGAN(TINY)
    values = []
    for k in range(2):
        stage.step(batch(k), np.random.default_rng(k), backward)
        values.append(next(stage.nets["G_pet2ct"].parameters()).detach().clone())
    averaged = next(stage.generator("pet2ct").parameters())
    assert torch.allclose(averaged, 0.5 * values[0] + 0.5 * values[1], atol=1e-6)


def test_preview_shows_four_rows():
    assert CycleGAN(TINY).preview(batch()).shape == (1, 4 * 32, 2 * 32)
