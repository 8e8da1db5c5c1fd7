"""The refiner's losses, the states it is trained on, its controls, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from petct_lib import InputError
from petct_lib.bridge import SAMPLERS, bridge, time_grid
from petct_lib.cyclegan import adversarial_loss, discriminator_loss
from petct_lib.refiner import Refiner, RefinerSettings, spectrum_loss
from petct_lib.updates import Updates

PLAIN = RefinerSettings(
    width=8, multipliers=(1, 2), steps=2, sigma=0.1, lambda_l1=1.0, lambda_adversarial=0.0, lr=3e-3, ema_decay=0.5
)
FULL = replace(PLAIN, lambda_l1=10.0, lambda_adversarial=1.0, patch_width=8, patch_layers=1, error_width=4)


def step(stage, batch, number):
    """Training step `number` of a stage, seeded by it."""
    return stage.step(batch, number, np.random.default_rng(number), Updates(stage.optimisers))


def images(seed=0, n=4):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 1, 16, 16, generator=g) * 2 - 1 for _ in range(3)]


def batch_of(n=4):
    y, x, c = images(n=n)
    return {"source": x, "coarse": c, "target": y}


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def states_seen(settings, monkeypatch):
    """The (z, t, y, c) that the denoiser is trained on in 20 steps from two pairs, at a rate of 0."""
    batch = batch_of(2)
    stage, seen = Refiner(replace(settings, lr=0.0)), []
    net = stage.nets["denoiser"]
    forward = net.forward

    def watched(inputs, t):
        if torch.is_grad_enabled():
            seen.extend((inputs[i, :1], t[i].item(), batch["target"][i], batch["coarse"][i]) for i in range(len(t)))
        return forward(inputs, t)

    monkeypatch.setattr(net, "forward", watched)
    for k in range(20):
        step(stage, batch, k)
    assert {t for _, t, _, _ in seen} == {0.5, 1.0}
    return seen


@pytest.mark.parametrize("sampler", ["renoised", "anchored", "euler"])
def test_training_sees_what_sampling_sees_and_never_the_target(sampler, monkeypatch):
    # An untrained denoiser predicts c, so without noise the walk stays at c; the target is nowhere in the state.
    for z, _, y, c in states_seen(replace(PLAIN, sigma=0.0, sampler=sampler), monkeypatch):
        assert torch.allclose(z, c, atol=1e-6)
        assert not torch.allclose(y, c)


def test_the_noise_of_a_state_is_sigma_times_t(monkeypatch):
    spread = {0.5: [], 1.0: []}
    for z, t, _, c in states_seen(replace(PLAIN, sigma=0.4), monkeypatch):
        spread[t].append((z - c).std().item())
    assert np.mean(spread[1.0]) == pytest.approx(0.4, rel=0.1)
    assert np.mean(spread[0.5]) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_training_states_are_those_that_the_sampler_walks_through(sampler):
    stage, batch = Refiner(replace(PLAIN, steps=4, sigma=0.3, sampler=sampler)), batch_of()
    torch.nn.init.normal_(stage.nets["denoiser"].tail[-1].weight, std=0.1)
    state = stage._state(batch, np.random.default_rng(1), Updates(stage.optimisers))
    rng, seen = np.random.default_rng(1), {}
    rng.integers(4, size=len(batch["coarse"]))  # the times are drawn first

    def predict(z, t):
        seen[t] = z
        return stage._predict(stage.nets["denoiser"], batch, z, t)

    def draw():
        return torch.from_numpy(rng.standard_normal(tuple(batch["coarse"].shape), dtype=np.float32))

    with torch.no_grad():
        SAMPLERS[sampler](predict, batch["coarse"], time_grid(4), sigma=0.3, draw=draw)
    assert len(set(state["t"].tolist())) > 1
    for k, t in enumerate(state["t"].tolist()):
        assert torch.allclose(state["z"][k], seen[t][k], atol=1e-6)


def test_each_image_is_walked_to_its_own_time():
    stage, batch = Refiner(replace(PLAIN, sigma=0.0)), batch_of()
    torch.nn.init.normal_(stage.nets["denoiser"].tail[-1].weight, std=0.1)
    state = stage._state(batch, np.random.default_rng(1), Updates(stage.optimisers))
    c, t = batch["coarse"], state["t"]
    assert set(t.tolist()) == {0.5, 1.0}
    with torch.no_grad():
        first = stage._predict(stage.nets["denoiser"], batch, c, 1.0)
    for k in range(len(c)):
        expected = c[k] if t[k] == 1 else bridge(first[k], c[k], 0.5)
        assert torch.allclose(state["z"][k], expected, atol=1e-6)


class Share(Updates):
    """What a process of two has of a batch."""

    def __init__(self, stage, rank):
        super().__init__(stage.optimisers)
        self.processes, self.rank = 2, rank

    def own(self, whole):
        half = len(whole) // 2
        return whole[self.rank * half : (self.rank + 1) * half]


@pytest.mark.parametrize("sampler", ["renoised", "anchored", "euler"])
def test_two_processes_have_the_states_of_one(sampler):
    stage, batch = Refiner(replace(PLAIN, steps=4, sigma=0.5, sampler=sampler)), batch_of()
    torch.nn.init.normal_(stage.nets["denoiser"].tail[-1].weight, std=0.1)
    for seed in range(5):
        whole = stage._state(batch, np.random.default_rng(seed), Updates(stage.optimisers))
        halves = [
            stage._state(
                {k: v[2 * r : 2 * r + 2] for k, v in batch.items()}, np.random.default_rng(seed), Share(stage, r)
            )
            for r in range(2)
        ]
        for key in ("z", "t"):
            assert torch.allclose(torch.cat([half[key] for half in halves]), whole[key], atol=1e-5)


def test_an_untrained_denoisers_loss_is_the_coarse_images_error():
    batch = batch_of()
    losses = step(Refiner(PLAIN), batch, 0)
    assert set(losses) == {"l1"}
    assert losses["l1"].item() == pytest.approx((batch["coarse"] - batch["target"]).abs().mean().item())


def test_losses_by_name_and_by_hand():
    stage, batch = Refiner(FULL), batch_of()
    assert set(step(stage, batch, 0)) == {"l1", "adversarial", "D_patch", "accuracy_patch", "error"}
    batch |= {"z": batch["coarse"], "t": torch.full((4,), 0.5)}
    losses, made = stage.denoiser_losses(batch)
    refined, plane = made["refined"], torch.full_like(batch["z"], 0.5)
    real, fake = (
        stage.nets["D"](torch.cat([batch["source"], batch["z"], plane, i], 1)) for i in (batch["target"], refined)
    )
    assert losses["l1"].item() == pytest.approx(10 * (refined - batch["target"]).abs().mean().item())
    assert torch.allclose(losses["adversarial"], adversarial_loss(fake, "lsgan"))
    judged, _ = stage.discriminator_losses({**batch, **made})
    assert torch.allclose(judged["D_patch"], discriminator_loss(real, fake, "lsgan"))


def test_spectrum_loss_knows_strength_and_not_place():
    y = images(n=2)[0] + 0.1 * torch.randn(2, 1, *images()[0].shape[2:], generator=torch.Generator().manual_seed(0))
    assert spectrum_loss(y, y).item() == 0
    assert spectrum_loss(y.roll((3, 5), (2, 3)), y).item() == pytest.approx(0, abs=1e-4)
    assert spectrum_loss(y + 0.5, y).item() == pytest.approx(0, abs=1e-4), "ring 0, the mean, is left to L1"
    assert spectrum_loss(0.5 * y, y).item() == pytest.approx(np.log(4), rel=0.01), "half the amplitude: ln 4 of power"
    blurred = torch.nn.functional.avg_pool2d(y, 3, 1, 1)
    assert spectrum_loss(blurred, y).item() > 1


def test_spectrum_loss_is_weighted():
    stage, batch = Refiner(replace(FULL, lambda_spectrum=0.5, lambda_adversarial=0.0)), batch_of()
    batch |= {"z": batch["coarse"], "t": torch.ones(4)}
    losses, made = stage.denoiser_losses(batch)
    assert losses["spectrum"].item() == pytest.approx(0.5 * spectrum_loss(made["refined"], batch["target"]).item())


@pytest.mark.parametrize("moves", ["denoiser", "D", "error"])
def test_each_update_changes_its_own_network_alone(moves):
    stage, batch = Refiner(FULL), batch_of()
    before = {name: weights(net) for name, net in stage.nets.items()}
    for name, optimiser in stage.optimisers.items():
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 if name == moves else 0.0
    step(stage, batch, 0)
    changed = {name for name, net in stage.nets.items() if not torch.equal(weights(net), before[name])}
    assert changed == {moves}
    assert all(p.requires_grad for p in stage.nets["D"].parameters())


def test_a_refiner_begins_with_the_averaged_weights_of_its_regression():
    regression, batch = Refiner(FULL.regression(), seed=1), batch_of()
    for k in range(3):
        step(regression, batch, k)
    stage, plain = (Refiner(settings, seed=2) for settings in (FULL, replace(FULL, sigma=0.0, steps=1)))
    _, x, c = images()
    expected = regression.sample(x, c, torch.Generator())[-1]
    assert not torch.allclose(expected, c, atol=1e-3), "it has learned something"
    for begun in (stage, plain):
        begun.start_from(regression)
    assert torch.equal(plain.sample(x, c, torch.Generator())[-1], expected)
    for name in ("denoiser", "error"):
        assert torch.equal(weights(stage.nets[name]), weights(regression.ema[name].module)), name
    step(stage, batch, 0)
    assert not torch.equal(weights(stage.nets["denoiser"]), weights(regression.ema["denoiser"].module))
    with pytest.raises(InputError, match="another network"):
        Refiner(FULL.direct()).start_from(regression)


def test_the_error_network_does_not_change_the_denoiser():
    ends = []
    for error_width in (0, 4):
        stage = Refiner(replace(FULL, error_width=error_width))
        for k in range(4):
            step(stage, batch_of(), k)
        ends.append(weights(stage.nets["denoiser"]))
    assert torch.equal(*ends)


def test_the_error_network_learns_the_size_of_the_error():
    # The coarse image is off by noise of a known size on the right half alone, which nothing can predict.
    stage = Refiner(replace(FULL, lambda_adversarial=0.0, steps=1, sigma=0.0, error_width=8, lr=0.0))
    for group in stage.optimisers["error"].param_groups:
        group["lr"] = 1e-2
    size = torch.full((1, 1, 16, 16), 0.02)
    size[..., 8:] = 0.3
    for k in range(300):
        g = torch.Generator().manual_seed(k)
        c = torch.zeros(8, 1, 16, 16)
        y = size * torch.empty(8, 1, 16, 16).exponential_(generator=g)
        step(stage, {"source": c, "coarse": c, "target": y}, k)
    told = stage.expected_error(c, c, c).mean(0)[0]
    assert told[:, 2:6].mean().item() == pytest.approx(0.02, rel=0.3)
    assert told[:, 10:14].mean().item() == pytest.approx(0.3, rel=0.3)


def test_without_an_error_network_there_is_no_uncertainty():
    _, x, c = images()
    with pytest.raises(InputError, match="error_width"):
        Refiner(PLAIN).expected_error(x, c, c)


def test_noise_comes_from_the_generator_alone_and_is_shared_by_the_slices():
    _, _, c = images()
    stage = Refiner(PLAIN)

    def sample(seed):
        return stage.sample(c[:1].expand(4, -1, -1, -1), c[:1].expand(4, -1, -1, -1),
                            torch.Generator().manual_seed(seed))[-1]  # fmt: skip

    torch.nn.init.normal_(stage.ema["denoiser"].module.tail[-1].weight)
    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert torch.allclose(sample(1)[0], sample(1)[3], atol=1e-6)


def test_refiner_learns_to_mend_a_constant_error():
    y, x, _ = images(n=8)
    stage, pairs = Refiner(PLAIN), {"source": x, "coarse": (y + 0.3).clamp(-1, 1), "target": y}
    losses = [step(stage, pairs, k)["l1"].item() for k in range(150)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    sample = stage.sample(x, pairs["coarse"], torch.Generator().manual_seed(0))[-1]
    assert (sample - y).abs().mean() < 0.5 * (pairs["coarse"] - y).abs().mean()


@pytest.mark.parametrize(("unseen", "key"), [("sees_source", "source"), ("sees_coarse", "coarse")])
def test_what_a_control_does_not_see_changes_nothing(unseen, key):
    batch = batch_of()
    ends, samples = [], []
    for other in (batch, {**batch, key: torch.zeros_like(batch[key])}):
        stage = Refiner(replace(FULL, **{unseen: False}))
        for k in range(4):
            step(stage, other, k)
        ends.append(weights(stage.nets["denoiser"]))
        samples.append(stage.sample(other["source"], other["coarse"], torch.Generator().manual_seed(0))[-1])
    assert torch.equal(*ends)
    assert torch.equal(*samples)


def test_the_control_is_the_same_network_without_noise_or_discriminator():
    control, full = Refiner(replace(PLAIN, steps=1, sigma=0.0)), Refiner(FULL)
    _, x, c = images()
    one, other = (control.sample(x, c, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert len(one) == 1
    assert torch.equal(one[0], other[0])
    assert set(control.nets) == {"denoiser"}
    assert torch.equal(weights(control.nets["denoiser"]), weights(full.nets["denoiser"]))


def test_sampling_takes_its_inputs_to_the_networks_device():
    _, x, c = images()
    stage = Refiner(PLAIN)
    stage.ema["denoiser"].to("meta")
    assert stage.sample(x, c, torch.Generator())[-1].device.type == "meta"


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"sigma": -0.1},
        {"lambda_spectrum": -1},
        {"sampler": "ddim"},
        {"sees_source": False, "sees_coarse": False},
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match="refiner"):
        RefinerSettings(**bad)


def test_preview_shows_four_rows():
    assert Refiner(PLAIN).preview(batch_of()).shape == (1, 64, 64)


def test_parts_see_the_times_and_the_noise_of_the_whole_batch():
    ends = []
    for parts in (1, 2):
        stage = Refiner(replace(PLAIN, sigma=0.5))
        stage.optimisers = {"denoiser": torch.optim.SGD(stage.nets["denoiser"].parameters(), lr=1.0)}
        for k in range(2):
            stage.step(batch_of(), k, np.random.default_rng(k), Updates(stage.optimisers, accumulate=parts))
        ends.append(weights(stage.nets["denoiser"]))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-6)


def test_a_refiner_looks_at_as_many_neighbours_as_it_was_trained_with():
    batch = batch_of()
    far = [torch.full_like(batch["source"], v) for v in (-1.0, 1.0)]
    five = {**batch, "source": torch.cat([far[0], batch["source"], batch["source"], batch["source"], far[1]], 1)}
    for neighbours, changes in ((1, False), (3, False), (5, True)):
        stage = Refiner(replace(FULL, neighbours=neighbours))
        step(stage, five, 3)
        other = five["source"].clone()
        other[:, [0, 4]] = 0.0
        a, b = (stage.sample(x, batch["coarse"], torch.Generator().manual_seed(0))[-1] for x in (five["source"], other))
        assert torch.equal(a, b) != changes, neighbours
        assert stage.preview(five).shape == stage.preview({**five, "source": batch["source"].repeat(1, 5, 1, 1)}).shape


def test_neighbours_that_are_no_odd_few():
    with pytest.raises(InputError, match="neighbours 2 is not 1, 3 or 5"):
        replace(PLAIN, neighbours=2)


def test_an_untrained_refiner_returns_the_coarse_image_unless_it_draws_the_whole_one():
    batch = batch_of()
    for residual, expected in ((True, batch["coarse"]), (False, torch.zeros_like(batch["coarse"]))):
        stage = Refiner(replace(PLAIN, residual=residual))
        image = stage.sample(batch["source"], batch["coarse"], torch.Generator().manual_seed(0))[-1]
        assert torch.equal(image, expected), residual
