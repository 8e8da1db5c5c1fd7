"""The regression's losses by hand, its controls, and what it does and does not look at."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny import Share, answering, weights
from torch import nn

from petct_lib import InputError
from petct_lib.models.losses import adversarial_loss, discriminator_accuracy, discriminator_loss
from petct_lib.models.regression import FIRST_LOG_SCALE, Regression, RegressionSettings, drop_coarse

PLAIN = replace(tiny.REGRESSION, patch=1, lr=3e-3, ema_decay=0.5)
PIX2PIX = replace(tiny.PIX2PIX, patch=1, lambda_l1=10.0, lambda_adversarial=2.0)
LAPLACE = replace(PLAIN, laplace=True)


def step(stage, batch, number, **inputs):
    """Training step number `number` of a stage, seeded by it; the batches that its updates saw."""
    update = Share(stage, **inputs)
    return stage.step(batch, number, np.random.default_rng(number), update), update.seen


def batch_of(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {key: torch.rand(n, 1, 16, 16, generator=g) * 2 - 1 for key in ("source", "coarse", "target")}


def constant(stage, *values):
    """The stage with a U-Net that gives one value for each of its outputs, whatever it sees."""
    for net in (stage.nets["unet"], stage.ema["unet"].module):
        with torch.no_grad():
            net.pixels[-1].bias.copy_(torch.tensor(values))
    return stage


def test_l1_by_hand():
    batch = batch_of()
    logged, _ = step(Regression(replace(PLAIN, lambda_l1=2.0)), batch, 0)
    assert list(logged) == ["l1"]
    assert logged["l1"].item() == pytest.approx(2 * batch["target"].abs().mean().item()), "an untrained one gives 0"
    losses, images = constant(Regression(PLAIN), 0.25).losses(batch)
    assert losses["l1"].item() == pytest.approx((batch["target"] - 0.25).abs().mean().item())
    assert images["image"].unique().item() == 0.25


def test_laplace_likelihood_by_hand():
    """|e|/b + log b, here of an error of 0.5 everywhere: b = e⁻³ untrained, and then e⁻¹."""
    batch = batch_of()
    batch["target"] = torch.full_like(batch["target"], 0.5)
    logged, _ = step(Regression(LAPLACE), batch, 0)
    assert list(logged) == ["laplace"]
    assert logged["laplace"].item() == pytest.approx(0.5 * math.e**3 - 3)
    stage = constant(Regression(LAPLACE), 0.0, 2.0)
    assert stage.losses(batch)[0]["laplace"].item() == pytest.approx(0.5 * math.e - 1)
    scale = stage.scale(batch["source"], batch["coarse"])
    assert scale.shape == batch["target"].shape
    assert scale.unique().item() == pytest.approx(math.exp(-1))
    assert constant(stage, 0.3, 2.0).predict(batch["source"], batch["coarse"]).unique().item() == pytest.approx(0.3)


def slope_of_scale(log_b, batch):
    stage = constant(Regression(LAPLACE), 0.0, log_b - FIRST_LOG_SCALE)
    stage.losses(batch)[0]["laplace"].backward()
    return stage.nets["unet"].pixels[-1].bias.grad[1].item()


def test_the_likelihood_is_best_where_the_scale_is_the_mean_absolute_error():
    batch = batch_of()
    best = math.log(batch["target"].abs().mean().item())
    assert slope_of_scale(best, batch) == pytest.approx(0, abs=1e-5)
    assert slope_of_scale(best - 0.1, batch) < -0.05
    assert slope_of_scale(best + 0.1, batch) > 0.05


def test_a_scale_is_learned_beside_the_image():
    """Half of the image is 0, the other is 0.4 or −0.4, which nothing tells apart: its scale is 0.4."""
    stage = Regression(replace(LAPLACE, lr=1e-2, coarse_dropout=0.0))
    zeros = torch.zeros(8, 1, 16, 16)
    for k in range(120):
        target = zeros.clone()
        target[..., 8:] = 0.4 * torch.randint(2, (8, 1, 16, 8), generator=torch.Generator().manual_seed(k)) * 2 - 0.4
        step(stage, {"source": zeros, "coarse": zeros, "target": target}, k)
    scale = stage.scale(zeros, zeros).mean(0)[0]
    assert scale[:, 11:15].mean().item() == pytest.approx(0.4, rel=0.3)
    assert scale[:, 1:5].mean() < 0.1


def test_no_scale_is_given_by_a_regression_without():
    batch = batch_of()
    with pytest.raises(InputError, match="without a Laplace scale"):
        Regression(PLAIN).scale(batch["source"], batch["coarse"])


def test_pix2pix_by_hand():
    stage, batch = Regression(PIX2PIX), batch_of()
    assert list(step(stage, batch, 0)[0]) == ["l1", "adversarial", "D_patch", "accuracy_patch"]
    losses, output = stage.losses(batch)
    real, fake = (stage.nets["D"](torch.cat([batch["source"], i], 1)) for i in (batch["target"], output["image"]))
    assert losses["l1"].item() == pytest.approx(10 * (output["image"] - batch["target"]).abs().mean().item())
    assert torch.allclose(losses["adversarial"], 2 * adversarial_loss(fake))
    judged, accuracy = stage.discriminator_losses({**batch, **output})
    assert torch.allclose(judged["D_patch"], discriminator_loss(real, fake))
    assert accuracy["accuracy_patch"] == discriminator_accuracy(real, fake)


def test_the_discriminator_is_frozen_in_the_generators_update_and_learns_in_its_own():
    stage, batch, seen = Regression(PIX2PIX), batch_of(), {}

    def watched(name, make):
        def losses(images):
            seen[name] = {net: all(p.requires_grad for p in item.parameters()) for net, item in stage.nets.items()}
            return make(images)

        return losses

    for name in ("losses", "discriminator_losses"):
        setattr(stage, name, watched(name, getattr(stage, name)))
    step(stage, batch, 0)
    assert seen == {"losses": {"unet": True, "D": False}, "discriminator_losses": {"unet": True, "D": True}}
    assert all(p.requires_grad for p in stage.nets["D"].parameters())


@pytest.mark.parametrize("moves", ["unet", "D"])
def test_each_update_changes_its_own_network_alone(moves):
    stage = Regression(PIX2PIX)
    before = {name: weights(net) for name, net in stage.nets.items()}
    for name, optimiser in stage.optimisers.items():
        optimiser.param_groups[0]["lr"] = 1e-2 if name == moves else 0.0
    step(stage, batch_of(), 0)
    assert {name for name, net in stage.nets.items() if not torch.equal(weights(net), before[name])} == {moves}


def test_without_a_weight_there_is_no_discriminator_and_its_momentum_is_a_gans():
    assert set(Regression(PLAIN).nets) == {"unet"}
    betas = {name: item.param_groups[0]["betas"] for name, item in Regression(PIX2PIX).optimisers.items()}
    assert betas == {"unet": (0.9, 0.999), "D": (0.5, 0.999)}


def test_it_begins_with_the_averaged_weights_of_another():
    trained, batch = Regression(PLAIN, seed=1), batch_of()
    for k in range(3):
        step(trained, batch, k)
    average = weights(trained.ema["unet"].module)
    assert not torch.equal(average, weights(trained.nets["unet"]))
    stage = Regression(PIX2PIX, seed=2)
    stage.start_from(trained)
    assert torch.equal(weights(stage.nets["unet"]), average)
    zeros = torch.zeros_like(batch["coarse"])  # pix2pix sees no other coarse image
    assert torch.equal(stage.predict(batch["source"], zeros), trained.predict(batch["source"], zeros))
    step(stage, batch, 0)
    assert not torch.equal(weights(stage.nets["unet"]), average)
    assert torch.equal(weights(trained.ema["unet"].module), average)


@pytest.mark.parametrize("other", [{"width": 16}, {"neighbours": 3}, {"laplace": True}])
def test_it_does_not_begin_with_the_weights_of_another_network(other):
    with pytest.raises(InputError, match="cannot begin with the weights of another network"):
        Regression(PLAIN).start_from(Regression(replace(PLAIN, **other)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"neighbours": 2}, "neighbours 2 is not 1, 3 or 5"),
        ({"coarse_dropout": 1.1}, "coarse_dropout 1.1 must lie between 0 and 1"),
        ({"coarse_dropout": math.nan}, "coarse_dropout nan must lie between 0 and 1"),
        ({"lambda_l1": -1.0}, "weights must be 0 or more"),
        ({"lambda_adversarial": -1.0}, "weights must be 0 or more"),
        ({"width": 0}, "width and patch must be 1 or more"),
        ({"patch": 0}, "width and patch must be 1 or more"),
        ({"sees_source": False}, "without the source it needs the coarse image: set coarse_dropout to 0"),
        ({"laplace": True, "lambda_adversarial": 1.0}, "a Laplace scale and a discriminator do not go together"),
    ],
)
def test_impossible_settings_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        RegressionSettings(**bad)


def test_dropped_replaces_whole_images_by_zeros():
    coarse, update = torch.full((1000, 1, 2, 2), 0.5), Share(Regression(PLAIN))
    none, half, every = (drop_coarse(coarse, share, np.random.default_rng(0), update) for share in (0.0, 0.3, 1.0))
    assert torch.equal(none, coarse)
    assert not every.any()
    kept = half.flatten(1).mean(1)
    assert set(kept.tolist()) == {0.0, 0.5}, "an image is dropped or kept"
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(half, drop_coarse(coarse, 0.3, np.random.default_rng(0), update))
    assert not torch.equal(half, drop_coarse(coarse, 0.3, np.random.default_rng(1), update))


def test_two_processes_drop_what_one_drops():
    batch, stage = batch_of(8), Regression(PLAIN)
    _, whole = step(stage, batch, 0)
    assert 0 < (whole["unet"]["coarse"].flatten(1).any(1)).sum() < 8
    for rank in range(2):
        _, half = step(stage, {k: v[4 * rank : 4 * rank + 4] for k, v in batch.items()}, 0, rank=rank, processes=2)
        assert torch.equal(half["unet"]["coarse"], whole["unet"]["coarse"][4 * rank : 4 * rank + 4])


def trained(settings, batch, steps=4):
    stage = Regression(settings)
    for k in range(steps):
        step(stage, batch, k)
    return stage


@pytest.mark.parametrize(
    ("unseen", "key"),
    [
        ({"sees_source": False, "coarse_dropout": 0.0}, "source"),
        ({"coarse_dropout": 1.0}, "coarse"),
        ({"coarse_dropout": 1.0, "lambda_adversarial": 1.0, "patch_width": 4, "patch_layers": 1}, "coarse"),
    ],
)
def test_what_a_control_does_not_see_changes_nothing_in_training_or_after(unseen, key):
    batch, settings = batch_of(), replace(PLAIN, **unseen)
    other = {**batch, key: batch[key].flip(0)}
    one, same = (trained(settings, item) for item in (batch, other))
    assert torch.equal(weights(one.nets["unet"]), weights(same.nets["unet"]))
    assert torch.equal(one.predict(batch["source"], batch["coarse"]), one.predict(other["source"], other["coarse"]))


@pytest.mark.parametrize("key", ["source", "coarse"])
def test_what_it_sees_changes_its_image(key):
    batch, stage = batch_of(), answering(PLAIN)
    other = {**batch, key: batch[key].flip(0)}
    assert not torch.allclose(
        stage.predict(batch["source"], batch["coarse"]), stage.predict(other["source"], other["coarse"])
    )


def test_it_looks_at_as_many_neighbours_as_it_was_made_for():
    batch = batch_of()
    five = torch.cat([torch.rand_like(batch["source"]) for _ in range(5)], 1)
    outer, inner = five.clone(), five.clone()
    outer[:, [0, 4]] = 0.0
    inner[:, [1, 3]] = 0.0
    for neighbours, changes in ((1, (False, False)), (3, (False, True)), (5, (True, True))):
        stage = answering(replace(PLAIN, neighbours=neighbours))
        images = [stage.predict(x, batch["coarse"]) for x in (five, outer, inner)]
        assert tuple(not torch.equal(images[0], image) for image in images[1:]) == changes, neighbours
        step(stage, {**batch, "source": five}, 0)
        assert stage.preview({**batch, "source": five}).shape == (1, 64, 64)


def test_it_answers_with_its_averaged_weights_and_without_a_gradient():
    stage, batch = trained(PLAIN, batch_of()), batch_of()
    image = stage.predict(batch["source"], batch["coarse"])
    assert not image.requires_grad
    nn.init.zeros_(stage.nets["unet"].pixels[-1].weight)
    assert torch.equal(stage.predict(batch["source"], batch["coarse"]), image)
    assert not stage.ema["unet"].module.training


def test_it_learns_to_mend_the_coarse_image_and_to_do_without():
    batch = batch_of(8)
    batch["target"] = 0.5 * batch["source"]
    batch["coarse"] = (batch["target"] + 0.3).clamp(-1, 1)
    stage = Regression(PLAIN)
    losses = [step(stage, batch, k)[0]["l1"].item() for k in range(150)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    for coarse in (batch["coarse"], torch.zeros_like(batch["coarse"])):
        error = (stage.predict(batch["source"], coarse) - batch["target"]).abs().mean()
        assert error < 0.5 * (batch["coarse"] - batch["target"]).abs().mean()


def test_it_takes_its_inputs_to_the_networks_device():
    stage, batch = Regression(LAPLACE), batch_of()
    stage.ema["unet"].to("meta")
    for answer in (stage.predict, stage.scale):
        assert answer(batch["source"], batch["coarse"]).device.type == "meta"


def test_preview_shows_source_coarse_prediction_and_target():
    batch = batch_of()
    picture = constant(Regression(PLAIN), 0.5).preview(batch)
    assert picture.shape == (1, 64, 64)
    for row, image in enumerate((batch["source"], batch["coarse"], torch.full_like(batch["target"], 0.5))):
        assert torch.allclose(picture[0, 16 * row : 16 * row + 16, 16:32], (image[1, 0] + 1) / 2)
    assert torch.allclose(picture[0, 48:, :16], (batch["target"][0, 0] + 1) / 2)
