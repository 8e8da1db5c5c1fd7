"""The bridge's ends, the walk, and a refiner that learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from petct_lib import InputError
from petct_lib.diffusion import Refiner, RefinerSettings, bridge, time_grid, walk
from petct_lib.updates import Updates

TINY = RefinerSettings(width=8, multipliers=(1, 2), steps=2, sigma=0.1, lr=3e-3, ema_decay=0.5)


def step(stage, batch, number):
    """Training step `number` of a stage, seeded by it."""
    return stage.step(batch, number, np.random.default_rng(number), Updates(stage.optimisers))


def images(seed=0, n=4):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 1, 16, 16, generator=g) * 2 - 1 for _ in range(3)]


def test_time_grid():
    assert time_grid(1) == (1.0,)
    assert time_grid(4) == (1.0, 0.75, 0.5, 0.25)
    with pytest.raises(ValueError, match="at least 1"):
        time_grid(0)


def test_bridge_ends_exactly_at_its_two_images():
    y, start, _ = images()
    assert torch.equal(bridge(y, start, 0.0), y)
    assert torch.equal(bridge(y, start, 1.0), start)
    assert torch.allclose(bridge(y, start, 0.25), 0.75 * y + 0.25 * start)


def test_one_step_is_the_direct_prediction_from_the_start():
    _, start, _ = images()
    seen = []
    out = walk(lambda z, t: seen.append((z, t)) or z * 2, start, (1.0,))
    assert len(out) == 1
    assert torch.equal(seen[0][0], start)
    assert seen[0][1] == 1.0
    assert torch.equal(out[0], 2 * start)


def test_the_walk_stays_on_the_bridge_of_a_perfect_prediction():
    y, start, _ = images()
    states = []
    out = walk(lambda z, t: states.append((z, t)) or y, start, time_grid(4))
    assert [t for _, t in states] == [1.0, 0.75, 0.5, 0.25]
    for z, t in states:
        assert torch.allclose(z, (1 - t) * y + t * start, atol=1e-6)
    assert all(torch.equal(prediction, y) for prediction in out)


def test_a_linear_gaussian_bridge_is_walked_to_its_posterior():
    # y ~ N(0, 1) and c = 0, so that z_t = (1 − t)·y + t·σ·ε and E[y | z_t] = z_t (1 − t) / ((1 − t)² + (t·σ)²).
    sigma, noise = 0.5, torch.randn(20000, 1, 1, 1, generator=torch.Generator().manual_seed(0))

    def posterior_mean(z, t):
        return z * (1 - t) / ((1 - t) ** 2 + (t * sigma) ** 2)

    first, second = walk(posterior_mean, sigma * noise, time_grid(2))
    assert first.abs().max() == 0  # at t = 1 the state knows nothing of y
    assert second.std().item() == pytest.approx(0.5 * sigma * 0.5 / (0.25 + 0.25 * sigma**2), rel=0.02)


def test_noise_comes_from_the_generator_alone():
    _, _, c = images()
    stage = Refiner(TINY)

    def sample(seed):
        return stage.sample(c, c, torch.Generator().manual_seed(seed))[-1]

    torch.nn.init.normal_(stage.ema["denoiser"].module.tail[-1].weight)
    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def states_seen(on_policy, monkeypatch):
    """The (z, t, y, c) that the network is trained on in 20 steps from two pairs."""
    y, x, c = images(n=2)
    stage, seen = Refiner(replace(TINY, on_policy=on_policy, sigma=0.0, lr=0.0)), []
    net = stage.nets["denoiser"]
    forward = net.forward

    def watched(inputs, t):
        if torch.is_grad_enabled():
            seen.extend((inputs[i, :1], t[i].item(), y[i], c[i]) for i in range(len(t)))
        return forward(inputs, t)

    monkeypatch.setattr(net, "forward", watched)
    for k in range(20):
        step(stage, {"source": x, "coarse": c, "target": y}, k)
    assert {t for _, t, _, _ in seen} == {0.5, 1.0}
    return seen


def test_off_policy_training_sees_the_textbook_bridge(monkeypatch):
    for z, t, y, c in states_seen(0.0, monkeypatch):
        assert torch.allclose(z, bridge(y, c, t), atol=1e-6)


def test_on_policy_training_sees_what_sampling_sees_and_never_the_target(monkeypatch):
    # An untrained denoiser predicts c, so the walk stays at c; the target is nowhere in the state.
    for z, _, y, c in states_seen(1.0, monkeypatch):
        assert torch.allclose(z, c, atol=1e-6)
        assert not torch.allclose(y, c)


def test_walked_states_take_each_image_to_its_own_time():
    y, start, _ = images(n=3)
    clean = Refiner._walked(lambda z, t: z + t, y, start, np.array([1.0, 0.5]), np.array([0, 1, 1]))
    assert torch.equal(clean[0], y[0])
    assert torch.equal(clean[1:], start[1:] + 1.0)


def test_refiner_learns_to_mend_a_constant_error():
    y, x, _ = images(n=8)
    stage, pairs = Refiner(TINY), {"source": x, "coarse": (y + 0.3).clamp(-1, 1), "target": y}
    losses = [step(stage, pairs, k)["l1"].item() for k in range(150)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    sample = stage.sample(x, pairs["coarse"], torch.Generator().manual_seed(0))[-1]
    assert (sample - y).abs().mean() < 0.5 * (pairs["coarse"] - y).abs().mean()


def test_sampling_takes_its_inputs_to_the_networks_device():
    _, x, c = images()
    stage = Refiner(TINY)
    stage.ema["denoiser"].to("meta")
    assert stage.sample(x, c, torch.Generator())[-1].device.type == "meta"


@pytest.mark.parametrize("bad", [{"steps": 0}, {"sigma": -0.1}, {"on_policy": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match="refiner"):
        RefinerSettings(**bad)


def test_the_control_is_the_same_network_without_noise_or_walk():
    control = Refiner(RefinerSettings(width=8, multipliers=(1, 2), steps=1, sigma=0.0))
    _, x, c = images()
    one, other = (control.sample(x, c, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert len(one) == 1
    assert torch.equal(one[0], other[0])


def test_preview_shows_four_rows():
    y, x, c = images()
    assert Refiner(TINY).preview({"source": x, "coarse": c, "target": y}).shape == (1, 64, 64)


def test_an_untrained_denoisers_loss_is_the_coarse_images_error():
    y, x, c = images()
    losses = step(Refiner(TINY), {"source": x, "coarse": c, "target": y}, 0)
    assert set(losses) == {"l1"}
    assert losses["l1"].item() == pytest.approx((c - y).abs().mean().item())  # it returns the coarse image


def test_parts_see_the_times_and_the_noise_of_the_whole_batch():
    y, x, c = images()
    batch, weights = {"source": x, "coarse": c, "target": y}, []
    for parts in (1, 2):
        stage = Refiner(replace(TINY, sigma=0.5))
        stage.optimisers = {"denoiser": torch.optim.SGD(stage.nets["denoiser"].parameters(), lr=1.0)}
        for k in range(2):
            stage.step(batch, k, np.random.default_rng(k), Updates(stage.optimisers, accumulate=parts))
        weights.append(torch.cat([p.detach().flatten() for p in stage.nets["denoiser"].parameters()]))
    assert torch.allclose(*weights, rtol=1e-4, atol=1e-6)
