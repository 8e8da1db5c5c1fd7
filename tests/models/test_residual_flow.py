"""The flow's loss and samples with a velocity that is known, what it looks at, and that it learns."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import tiny
import torch
from tiny import Share, answering, weights
from torch import nn

from petct_lib import InputError
from petct_lib.imaging.spectrum import spectrum
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow
from petct_lib.models.samplers import EVALUATIONS, SAMPLERS, draw_times, straight_path, time_grid

REGRESSION = replace(tiny.REGRESSION, patch=1)
FLOW = replace(tiny.FLOW, patch=1, lr=3e-3, ema_decay=0.5)


def step(stage, batch, number, **values):
    """Training step number `number` of a stage, seeded by it; the batch that its update saw."""
    update = Share(stage, **values)
    logged = stage.step(batch, number, np.random.default_rng(number), update)
    return logged, update.seen["velocity"]


def images(seed=0, n=4):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch_of(n=4):
    return {key: images(seed, n) for seed, key in enumerate(("source", "coarse", "target"))}


def flow(regression=REGRESSION, **settings):
    return ResidualFlow(replace(FLOW, **settings), answering(regression))


def given_of(batch, stage, seed=7):
    """Arguments of `sample`: source, coarse, mean, noise."""
    noise = torch.randn(batch["target"].shape, generator=torch.Generator().manual_seed(seed))
    return batch["source"], batch["coarse"], stage.regression.predict(batch["source"], batch["coarse"]), noise


def mean_of(stage, batch):
    """The regression's image of a batch that an update saw."""
    return stage.regression.predict(batch["source"], batch["coarse"])


def knowing(stage, target, scale):
    """Both networks of the flow give (z − r)/t, the true velocity of this target, for a residual of this scale."""

    def velocity(inputs, t):
        z, m = inputs[:, :1], inputs[:, -1:]
        return (z - (target - m) / scale) / t[:, None, None, None]

    for net in (stage.nets["velocity"], stage.ema["velocity"].module):
        net.forward = velocity
    return stage


def test_the_true_velocity_has_no_loss_and_that_of_another_scale_has():
    stage, batch = flow(), batch_of()
    _, seen = step(stage, batch, 0)
    knowing(stage, batch["target"], 0.3)
    assert stage.losses(seen)[0]["mse"].item() == pytest.approx(0, abs=1e-8)
    values = batch["source"], batch["coarse"], batch["target"]
    assert stage.loss_on(*values, torch.Generator().manual_seed(0)) == pytest.approx(0, abs=1e-8)
    knowing(stage, batch["target"], 0.6)
    assert stage.losses(seen)[0]["mse"] > 0.1
    assert stage.loss_on(*values, torch.Generator().manual_seed(0)) > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_the_true_velocity_the_sample_is_the_target_and_the_way_there_the_path(sampler):
    stage, batch = flow(), batch_of()
    x, c, m, noise = given_of(batch, stage)
    states = knowing(stage, batch["target"], 0.3).sample(x, c, m, noise, steps=4, sampler=sampler)
    residual = (batch["target"] - m) / 0.3
    for image, t in zip(states, time_grid(4)[1:], strict=True):
        assert torch.allclose(image, m + 0.3 * straight_path(residual, noise, t), atol=1e-5)
    assert torch.allclose(states[-1], batch["target"], atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_an_untrained_flows_sample_is_the_mean_and_noise_of_the_residuals_size(scale):
    stage = flow(residual_spectrum=(scale,))
    x, c, m, noise = given_of(batch_of(), stage)
    assert m.std() > 0.1
    for image in stage.sample(x, c, m, noise, steps=3):
        assert torch.allclose(image, m + scale * noise, atol=1e-6)


def test_noise_has_the_residuals_spectrum_at_every_time():
    stage = flow(residual_spectrum=(0.5, 0.1))
    x, c, m, noise = given_of(batch_of(64), stage)
    coloured = spectrum(stage.sample(x, c, m, noise, steps=3)[1] - m)  # an untrained flow leaves its noise as it is
    assert coloured[0] == pytest.approx(0.5, rel=0.05)
    assert coloured[-1] == pytest.approx(0.1, rel=0.05)


def test_the_loss_of_an_untrained_flow_by_hand():
    stage, batch = flow(), batch_of(64)
    logged, seen = step(stage, batch, 0)
    assert list(logged) == ["mse"]
    residual = (batch["target"] - mean_of(stage, seen)) / 0.3
    assert logged["mse"].item() == pytest.approx((seen["noise"] - residual).square().mean().item(), rel=1e-5)
    assert seen["noise"].std().item() == pytest.approx(1, abs=0.02)
    times = seen["t"].sort().values
    assert torch.allclose(times.diff(), torch.full((63,), 1 / 64), atol=1e-6)


def test_the_network_sees_the_paths_state_source_coarse_mean_and_time(monkeypatch):
    stage, batch, inputs = flow(), batch_of(), []
    net = stage.nets["velocity"]
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda *values: inputs.append(values) or forward(*values))
    _, seen = step(stage, batch, 0)
    [(channels, t)] = inputs
    z = straight_path((batch["target"] - mean_of(stage, seen)) / 0.3, seen["noise"], seen["t"][:, None, None, None])
    assert torch.allclose(channels, torch.cat([z, batch["source"], seen["coarse"], mean_of(stage, seen)], 1), atol=1e-5)
    assert torch.equal(t, seen["t"])


@pytest.mark.parametrize(("share", "kept"), [(0.0, 12), (0.5, None), (1.0, 0)])
def test_a_dropped_coarse_image_is_dropped_for_regression_and_flow_alike(share, kept):
    stage, batch, inputs = flow(coarse_dropout=share), batch_of(12), []
    stage.nets["velocity"].register_forward_pre_hook(lambda _, values: inputs.append(values[0].detach()))
    _, seen = step(stage, batch, 0)
    there = seen["coarse"].flatten(1).any(1)
    assert there.sum().item() == kept if kept is not None else 0 < there.sum() < 12
    c, m = batch["coarse"], inputs[0][:, -1:]
    assert torch.equal(inputs[0][:, -2:-1], seen["coarse"])
    with_it, without = (stage.regression.predict(batch["source"], coarse) for coarse in (c, torch.zeros_like(c)))
    assert torch.equal(seen["coarse"][there], c[there])
    assert torch.allclose(m[there], with_it[there], atol=1e-6)
    assert torch.allclose(m[~there], without[~there], atol=1e-6)
    assert (with_it - without).abs().amax((1, 2, 3)).min() > 0.01, "it makes a difference"


def test_two_processes_have_the_times_the_noise_and_the_drops_of_one():
    stage, batch = flow(), batch_of(8)
    for number in range(3):
        _, whole = step(stage, batch, number)
        for rank in range(2):
            own = slice(4 * rank, 4 * rank + 4)
            _, half = step(stage, {k: v[own] for k, v in batch.items()}, number, rank=rank, processes=2)
            assert all(torch.equal(half[key], whole[key][own]) for key in ("t", "noise", "coarse", "target"))


def test_the_regression_stays_as_it_is_and_is_no_part_of_the_flow():
    stage, batch = flow(), batch_of()
    before = {key: value.clone() for key, value in stage.regression.ema["unet"].state_dict().items()}
    of_net = weights(stage.regression.nets["unet"])
    for k in range(3):
        step(stage, batch, k)
    assert tiny.differences(before, dict(stage.regression.ema["unet"].state_dict())) == []
    assert torch.equal(weights(stage.regression.nets["unet"]), of_net)
    assert set(stage.nets) == set(stage.ema) == set(stage.optimisers) == {"velocity"}
    trained = {id(p) for group in stage.optimisers["velocity"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in stage.nets["velocity"].parameters()}


def answering_flow(regression=REGRESSION, **settings):
    stage = flow(regression, **settings)
    nn.init.normal_(stage.ema["velocity"].module.pixels[-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return stage


def test_without_the_source_nothing_of_it_is_looked_at():
    batch = batch_of()
    blind, unseen = replace(REGRESSION, sees_source=False, coarse_dropout=0.0), {"sees_source": False}
    ends, samples = [], []
    for other in (batch, {**batch, "source": batch["source"].flip(0)}):
        stage = flow(blind, **unseen)
        for k in range(4):
            step(stage, other, k)
        ends.append(weights(stage.nets["velocity"]))
        samples.append(answering_flow(blind, **unseen).sample(*given_of(other, stage), steps=2)[-1])
    assert torch.equal(*ends)
    assert torch.equal(*samples)


def test_a_flow_that_never_saw_a_coarse_image_does_not_look_at_one():
    stage, (x, c, m, noise) = answering_flow(coarse_dropout=1.0), given_of(batch_of(), flow())
    assert torch.equal(stage.sample(x, c, m, noise, steps=2)[-1], stage.sample(x, c.flip(0), m, noise, steps=2)[-1])


@pytest.mark.parametrize("part", range(4))
def test_a_sample_depends_on_source_coarse_mean_and_noise(part):
    stage = answering_flow()
    values = list(given_of(batch_of(), stage))
    image = stage.sample(*values, steps=2)[-1]
    values[part] = values[part].flip(0)
    assert not torch.allclose(stage.sample(*values, steps=2)[-1], image, atol=1e-3)


def test_it_looks_at_as_many_neighbours_as_it_was_made_for():
    batch = batch_of()
    five = torch.cat([images(seed) for seed in range(5)], 1)
    outer, inner = five.clone(), five.clone()
    outer[:, [0, 4]] = 0.0
    inner[:, [1, 3]] = 0.0
    for neighbours, changes in ((1, (False, False)), (3, (False, True)), (5, (True, True))):
        stage = answering_flow(neighbours=neighbours)
        _, c, m, noise = given_of(batch, stage)
        drawn = [stage.sample(x, c, m, noise, steps=2)[-1] for x in (five, outer, inner)]
        assert tuple(not torch.equal(drawn[0], image) for image in drawn[1:]) == changes, neighbours
        step(stage, {**batch, "source": five}, 0)
        assert stage.preview({**batch, "source": five}).shape == (1, 80, 64)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_noise_gives_the_same_images_and_its_network_is_evaluated_as_often_as_said(sampler):
    stage, calls = answering_flow(), []
    stage.ema["velocity"].module.register_forward_hook(lambda *_: calls.append(1))
    values = given_of(batch_of(), stage)
    first = stage.sample(*values, steps=4, sampler=sampler)
    assert len(calls) == EVALUATIONS[sampler](4)
    torch.manual_seed(99)
    again = stage.sample(*values, steps=4, sampler=sampler)
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_samplers_differ_and_midpoint_is_the_default():
    stage = answering_flow()
    values = given_of(batch_of(), stage)
    output = {sampler: stage.sample(*values, steps=4, sampler=sampler)[-1] for sampler in SAMPLERS}
    for one, other in combinations(output.values(), 2):
        assert not torch.allclose(one, other, atol=1e-4)
    assert torch.equal(stage.sample(*values, steps=4)[-1], output["midpoint"])


def test_a_slices_sample_does_not_depend_on_its_batch():
    stage = answering_flow()
    values = given_of(batch_of(), stage)
    together = stage.sample(*values, steps=2)[-1]
    alone = torch.cat([stage.sample(*(image[k : k + 1] for image in values), steps=2)[-1] for k in range(4)])
    assert torch.allclose(alone, together, atol=1e-5)


def test_an_unknown_sampler_and_no_steps_are_refused():
    stage = flow()
    values = given_of(batch_of(), stage)
    with pytest.raises(InputError, match="sampler 'ddim': it must be one of euler, heun, midpoint"):
        stage.sample(*values, steps=2, sampler="ddim")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        stage.sample(*values, steps=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"neighbours": 2}, "neighbours 2 is not 1, 3 or 5"),
        ({"coarse_dropout": -0.1}, "coarse_dropout -0.1 must lie between 0 and 1"),
        ({"residual_spectrum": (0.3, 0.0)}, "residual_spectrum must have bands, each above 0"),
        ({"residual_spectrum": (math.nan,)}, "residual_spectrum must have bands, each above 0"),
        ({"residual_spectrum": ()}, "residual_spectrum must have bands, each above 0"),
        ({"width": 0}, "width and patch must be 1 or more"),
        ({"patch": 0}, "width and patch must be 1 or more"),
    ],
)
def test_impossible_settings_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        FlowSettings(**bad)


def test_a_flow_overfits_one_batch():
    """Of one target alone the velocity can be known; the sample is then nearer to it than the regression is."""
    stage, batch = flow(residual_spectrum=(0.6,)), batch_of(2)
    batch["target"] = batch["target"].sign() * 0.6
    losses = [step(stage, batch, k)[0]["mse"].item() for k in range(250)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    values = given_of(batch, stage)
    sample = stage.sample(*values, steps=4)[-1]
    assert (sample - batch["target"]).abs().mean() < 0.6 * (values[2] - batch["target"]).abs().mean()


def test_the_loss_on_slices_is_the_averaged_networks_and_of_its_generator_alone():
    stage, batch = answering_flow(), batch_of()
    values = batch["source"], batch["coarse"], batch["target"]
    one, same, other = (stage.loss_on(*values, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one == same != other
    g = torch.Generator().manual_seed(0)
    t, noise = draw_times(4, torch.rand((), generator=g).item()), torch.randn(4, 1, 16, 16, generator=g)
    stage.nets["velocity"].load_state_dict(stage.ema["velocity"].module.state_dict())
    assert stage.losses({**batch, "t": t, "noise": noise})[0]["mse"].item() == pytest.approx(one, rel=1e-5)


def test_sampling_takes_its_inputs_to_the_networks_device():
    stage = flow()
    values = given_of(batch_of(), stage)
    stage.ema["velocity"].to("meta")
    assert stage.sample(*values, steps=2)[-1].device.type == "meta"


def test_preview_shows_source_coarse_regression_sample_and_target():
    stage, batch = flow(), batch_of()
    picture, (x, c, m, _) = stage.preview(batch), given_of(batch, stage)
    assert picture.shape == (1, 80, 64)
    for row, image in ((0, x), (1, c), (2, m), (4, batch["target"])):
        assert torch.allclose(picture[0, 16 * row : 16 * row + 16, 16:32], (image[1, 0].clamp(-1, 1) + 1) / 2)
    assert not torch.allclose(picture[0, 48:64], picture[0, 32:48], atol=0.05), "a sample is no regression"
