"""Losses by hand, the image pool, the switches, and a training step that learns."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from petct_lib import InputError
from petct_lib.imaging.directions import DIRECTIONS
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings, ImagePool
from petct_lib.training.update import Updates

TINY = CycleGANSettings(width=4, blocks=1, patch_layers=2, ema_decay=0.5)


def batch(seed=0, channels=1):
    g = torch.Generator().manual_seed(seed)
    return {kind: torch.rand(2, channels, 32, 32, generator=g) * 2 - 1 for kind in ("pet", "ct")}


def step(stage, number=0, inputs=None):
    """Training step `number`, seeded by it."""
    inputs = batch(number) if inputs is None else inputs
    return stage.step(inputs, number, np.random.default_rng(number), Updates(stage.optimisers))


def flat(net):
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


class Affine(nn.Module):
    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(scale)), shift

    def forward(self, x):
        return self.scale * x + self.shift


def by_hand(**settings):
    """A stage with G(x) = x/2 + 0.25, F(x) = x − 0.5, D_ct(x) = x, D_pet(x) = 2x."""
    stage = CycleGAN(replace(TINY, **settings))
    stage.nets |= {"G_pet2ct": Affine(0.5, 0.25), "G_ct2pet": Affine(1.0, -0.5), "D_ct": Affine(1.0, 0.0)}
    stage.nets["D_pet"] = Affine(2.0, 0.0)
    return stage


PAIR = {"pet": torch.full((1, 1, 2, 2), 0.5), "ct": torch.full((1, 1, 2, 2), 1.0)}


def test_the_generators_losses_by_hand():
    # fake CT G(0.5) = 0.5 and fake PET F(1) = 0.5, judged 0.5 and 1: (0.5 − 1)² + (1 − 1)² = 0.25.
    # There and back F(0.5) = 0 and G(0.5) = 0.5: 10·|0 − 0.5| + 10·|0.5 − 1| = 10. Identity G(1) = 0.75, F(0.5) = 0:
    # 5·|0.75 − 1| + 5·|0 − 0.5| = 3.75, and 3 times as much where it is computed on every third step.
    losses, fakes = by_hand().generator_losses(PAIR)
    assert {k: v.item() for k, v in losses.items()} == {"adversarial": 0.25, "cycle": 10.0, "identity": 3.75}
    assert (fakes["fake_ct"].mean().item(), fakes["fake_pet"].mean().item()) == (0.5, 0.5)
    assert by_hand(identity_every=3).generator_losses(PAIR)[0]["identity"].item() == 11.25
    assert by_hand(lambda_cycle=1.0, lambda_identity=2.0).generator_losses(PAIR)[0]["cycle"].item() == 1.0


def test_the_discriminators_losses_by_hand():
    # D_ct: real 1, fake 0.25: (0 + 0.0625)/2, both right. D_pet: real 2·0.5, fake 2·0.5: (0 + 1)/2, half right.
    fakes = {"fake_ct": torch.full((1, 1, 2, 2), 0.25), "fake_pet": torch.full((1, 1, 2, 2), 0.5)}
    losses, accuracy = by_hand().discriminator_losses({**PAIR, **fakes})
    assert {k: v.item() for k, v in losses.items()} == {"D_ct": 0.03125, "D_pet": 0.5}
    assert {k: v.item() for k, v in accuracy.items()} == {"accuracy_ct": 1.0, "accuracy_pet": 0.5}


class Scripted:
    """A random generator that says what it was told to."""

    def __init__(self, coins, places):
        self.coins, self.places = iter(coins), iter(places)

    def random(self):
        return next(self.coins)

    def integers(self, size):
        assert size == 2
        return next(self.places)


def test_a_pools_sequence_by_hand():
    pool, rng = ImagePool(2), Scripted([0.2, 0.7, 0.5, 0.49, 0.9], [1, 0, 1])
    out = [pool.query(torch.full((1, 1, 1, 1), float(k)), rng).item() for k in range(1, 8)]
    # 1 and 2 fill it; 3 passes (0.2); 4 takes 2's place (0.7); 5 takes 1's (0.5); 6 passes; 7 takes 4's
    assert out == [1, 2, 3, 2, 1, 6, 4]
    assert [image.item() for image in pool.images] == [5, 7]
    batched = ImagePool(2)
    images = torch.arange(1.0, 8).view(7, 1, 1, 1)
    assert batched.query(images, Scripted([0.2, 0.7, 0.5, 0.49, 0.9], [1, 0, 1])).flatten().tolist() == out


def test_a_pool_keeps_images_and_neither_batches_nor_gradients():
    pool, fakes = ImagePool(2), torch.ones(2, 1, 4, 4, requires_grad=True)
    assert not pool.query(fakes, np.random.default_rng(0)).requires_grad
    assert all(image.untyped_storage().nbytes() == 16 * 4 for image in pool.images)


def test_step_names_its_losses_and_moves_every_network():
    stage = CycleGAN(TINY)
    before = {name: flat(net) for name, net in stage.nets.items()}
    logged = step(stage)
    assert list(logged) == ["adversarial", "cycle", "identity", "D_ct", "D_pet", "accuracy_ct", "accuracy_pet"]
    assert not any(value.requires_grad for value in logged.values())
    assert all(not torch.equal(before[name], flat(net)) for name, net in stage.nets.items())
    assert all(p.requires_grad for net in stage.nets.values() for p in net.parameters())


@pytest.mark.parametrize(("still", "moving"), [("D", "G"), ("G", "D")])
def test_each_networks_loss_leaves_the_others_alone(still, moving):
    stage = CycleGAN(TINY)
    stage.optimisers[still].param_groups[0]["lr"] = 0.0
    before = {name: flat(net) for name, net in stage.nets.items()}
    step(stage)
    for name, net in stage.nets.items():
        assert torch.equal(before[name], flat(net)) == (name[0] == still)
        assert name[0] in still + moving


def calls_and_log(number=0, **settings):
    """How often a step runs each network, and what it logs."""
    stage, calls = CycleGAN(replace(TINY, **settings)), Counter()
    for name, net in stage.nets.items():
        net.register_forward_hook(lambda *_, name=name: calls.update([name]))
    logged = step(stage, number)
    assert calls["G_pet2ct"] == calls["G_ct2pet"]
    assert calls["D_ct"] == calls["D_pet"] == 3  # the generators' fake; a real one, a fake
    return calls["G_pet2ct"], {k: v.item() for k, v in logged.items()}


def test_identity_and_cycle_off_leave_out_their_passes_and_nothing_else():
    calls, logged = calls_and_log()
    assert calls == 3  # fake, back, identity
    for off, expected in ((("identity",), 2), (("cycle",), 2), (("cycle", "identity"), 1)):
        calls, rest = calls_and_log(**{f"lambda_{name}": 0.0 for name in off})
        assert calls == expected
        assert list(rest) == [key for key in logged if key not in off]
        assert rest["adversarial"] == logged["adversarial"]


def test_identity_on_every_third_step():
    result = [calls_and_log(number, identity_every=3) for number in range(4)]
    assert [calls for calls, _ in result] == [3, 2, 2, 3]
    assert ["identity" in logged for _, logged in result] == [True, False, False, True]
    assert result[0][1]["identity"] == pytest.approx(3 * calls_and_log()[1]["identity"])


def judged(pool_size, steps):
    """A stage after some steps, and the fakes that its generators made and that its discriminators got."""
    stage, output, got = CycleGAN(replace(TINY, pool_size=pool_size)), [], []
    generators, discriminators = stage.generator_losses, stage.discriminator_losses

    def watched(images, identity):
        losses, fakes = generators(images, identity)
        output.append(fakes["fake_ct"].detach())
        return losses, fakes

    stage.generator_losses = watched
    stage.discriminator_losses = lambda images: got.append(images["fake_ct"]) or discriminators(images)
    for k in range(steps):
        step(stage, k)
    return stage, output, got


def test_pool_off_gives_the_discriminators_the_newest_fakes():
    stage, output, got = judged(0, 4)
    assert all(torch.equal(a, b) for a, b in zip(output, got, strict=True))
    assert stage.pools["ct"].images == stage.pools["pet"].images == []
    filling, _, _ = judged(50, 4)  # a pool that is not full hands everything on
    assert all(torch.equal(flat(stage.nets[n]), flat(filling.nets[n])) for n in stage.nets)
    _, output, got = judged(2, 4)
    assert not all(torch.equal(a, b) for a, b in zip(output, got, strict=True))


def test_the_preview_shows_each_slice_above_its_translation():
    stage, inputs = CycleGAN(TINY), batch(0)
    step(stage, 0, inputs)
    picture = stage.preview(inputs)
    assert picture.shape == (1, 4 * 32, 2 * 32)
    assert torch.allclose(picture[0, :32, :32], (inputs["pet"][0, 0] + 1) / 2)
    output = stage.generator("pet2ct")(inputs["pet"])
    assert torch.allclose(picture[0, 32:64, 32:], (output[1, 0].detach() + 1) / 2)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_translation_is_the_averaged_generators(direction):
    stage, x = CycleGAN(TINY), batch(0)["pet"]
    nn.init.normal_(stage.nets[f"G_{direction}"].leave[-2].weight)  # what is trained is not what translates
    output = stage.translate(x, direction)
    assert torch.equal(output, stage.ema[f"G_{direction}"].module(x))
    assert not output.requires_grad


def test_on_a_coarse_grid_everything_is_computed_there_and_translations_have_the_slices_size():
    stage, inputs, sizes = CycleGAN(replace(TINY, coarse_size=16)), batch(), set()
    for net in (*stage.nets.values(), *(ema.module for ema in stage.ema.values())):
        net.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[-2:])))
    step(stage, 0, inputs)
    output = stage.translate(inputs["pet"], "pet2ct")
    assert stage.preview(inputs).shape == (1, 4 * 32, 2 * 32)
    assert sizes == {(16, 16)}
    assert {tuple(image.shape) for pool in stage.pools.values() for image in pool.images} == {(1, 16, 16)}
    small = F.avg_pool2d(inputs["pet"], 2)
    expected = stage.generator("pet2ct")(small)
    assert torch.equal(output, F.interpolate(expected, size=(32, 32), mode="bilinear", align_corners=False))


def test_a_training_on_the_coarse_grid_is_that_of_the_shrunken_slices():
    inputs, ends = batch(), []
    shrunken = {kind: F.avg_pool2d(images, 2) for kind, images in inputs.items()}
    for settings, images in ((replace(TINY, coarse_size=16), inputs), (TINY, shrunken)):
        stage = CycleGAN(settings)
        step(stage, 0, images)
        ends.append(flat(stage.nets["G_pet2ct"]))
    assert torch.equal(*ends)


def test_slices_that_are_no_multiple_of_the_coarse_size_are_refused():
    stage = CycleGAN(replace(TINY, coarse_size=20))
    for act in (lambda: step(stage), lambda: stage.translate(batch()["pet"], "pet2ct")):
        with pytest.raises(InputError, match="coarse_size 20: slices of 32×32 pixels are not a multiple of it"):
            act()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pool_size": -1}, "pool_size must be at least 0"),
        ({"lambda_cycle": -1.0}, "weights and pool_size must be at least 0"),
        ({"identity_every": 0}, "identity_every at least 1"),
        ({"coarse_size": 0}, "coarse_size 0 must be a multiple of 4, or None"),
        ({"coarse_size": 18}, "coarse_size 18 must be a multiple of 4, or None"),
    ],
)
def test_bad_settings_name_themselves_and_the_choices(bad, message):
    with pytest.raises(InputError, match=message):
        CycleGANSettings(**bad)


def test_cycle_loss_falls_on_a_fixed_batch():
    stage, fixed = CycleGAN(CycleGANSettings(width=8, blocks=1, patch_layers=2, lr=2e-3)), batch()
    cycle = [step(stage, k, fixed)["cycle"].item() for k in range(30)]
    assert np.mean(cycle[-5:]) < 0.8 * np.mean(cycle[:5])


def test_translating_weights_are_the_running_mean_of_the_generators():
    stage, values = CycleGAN(TINY), []
    for k in range(2):
        step(stage, k)
        values.append(flat(stage.nets["G_pet2ct"]))
    mean = flat(stage.generator("pet2ct"))
    assert torch.allclose(mean, 2 / 11 * values[0] + 9 / 11 * values[1], atol=1e-6)
    assert not stage.generator("pet2ct").training


def test_extra_state_comes_back():
    stage, other = CycleGAN(TINY), CycleGAN(TINY)
    step(stage)
    other.load_extra_state(stage.extra_state())
    assert all(torch.equal(a, b) for a, b in zip(stage.pools["ct"].images, other.pools["ct"].images, strict=True))
    assert other.extra_state()["settings"]["pool_size"] == 50
