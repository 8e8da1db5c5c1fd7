"""The walk's times, a Gaussian whose samples are known, and a prior that learns from target images alone."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import RandomBatches, before_step, differences, train
from torch import nn

from petct_lib import InputError
from petct_lib.checkpoints import load_checkpoint
from petct_lib.prior import Prior, PriorSettings, schedule, walk, walk_schedule, walk_times
from petct_lib.train import restore
from petct_lib.updates import Updates

TINY = PriorSettings(width=8, multipliers=(1, 2), steps=3, lr=3e-3, ema_decay=0.5)
MU, S, COARSE = 0.2, 0.15, -0.4  # of the Gaussian toy: y ~ N(MU, S²), and the coarse image


def step(stage, batch, number):
    """Training step `number` of a stage, seeded by it."""
    return stage.step(batch, number, np.random.default_rng(number), Updates(stage.optimisers))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(seed=0, n=4):
    return torch.rand(n, 1, 16, 16, generator=seeded(seed)) * 2 - 1


class PosteriorMean(nn.Module):
    """E[y | z_t] of y ~ N(MU, S²), or the velocity that belongs to it."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        self.place = nn.Parameter(torch.zeros(1))
        self.kept = schedule(settings.train_times).alphas_cumprod  # ᾱ

    def forward(self, z, t):
        a = self.kept[(t * self.settings.train_times).round().long()].view(-1, 1, 1, 1)
        y = MU + a.sqrt() * S**2 / (a * S**2 + 1 - a) * (z - a.sqrt() * MU)
        noise = (z - a.sqrt() * y) / (1 - a).sqrt()
        return y if self.settings.prediction == "sample" else a.sqrt() * noise - (1 - a).sqrt() * y


def toy_samples(t0, steps, n=20000, prediction="sample"):
    """Samples of the Gaussian from one coarse value, by the perfect denoiser."""
    stage = Prior(replace(TINY, prediction=prediction))
    stage.ema["denoiser"].module = PosteriorMean(stage.settings)
    return stage.sample(None, torch.full((1, 1, n, 1), COARSE), seeded(), t0=t0, steps=steps)[-1]


@pytest.mark.parametrize(
    "bad",
    [
        {"t0": 0.0}, {"t0": 1.1}, {"t0": math.nan}, {"steps": 0}, {"t0": 0.005, "steps": 6}, {"train_times": 20},
        {"prediction": "noise"}, {"width": 0}, {"multipliers": ()}, {"lr": -1.0}, {"ema_decay": 1.0}, {"beta1": -0.1},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match=f"prior: .*{list(bad)[-1]}"):
        PriorSettings(**bad)


def test_times_go_evenly_from_t0_to_the_first():
    assert walk_times(0.3, 4, 1000) == [299, 199, 100, 0]
    assert walk_times(0.3, 1, 1000) == [299]
    assert walk_times(1.0, 2, 1000) == [999, 0]
    assert walk_times(0.1, 10, 100) == list(range(9, -1, -1))


@pytest.mark.parametrize(("t0", "steps"), [(0.3, 8), (0.3, 7), (0.3, 300), (1.0, 3), (0.001, 1), (0.77, 13)])
def test_the_walk_evaluates_its_times_and_ends_at_a_clean_image(t0, steps):
    times, y, noise, seen = walk_times(t0, steps, 1000), images() / 2, torch.randn(4, 1, 16, 16, generator=seeded()), []
    kept = schedule(1000).alphas_cumprod
    start = kept[times[0]].sqrt() * y + (1 - kept[times[0]]).sqrt() * noise
    out = walk(lambda z, t: seen.append((z, t)) or y, start, times, 1000, "sample")
    assert len(times) == len(set(times)) == len(seen) == len(out) == steps
    assert seen[0][1] == pytest.approx(t0 - 1 / 1000)  # times count from 0
    for (z, t), time in zip(seen, times, strict=True):  # the state has just the noise that the network is told
        assert t == time / 1000
        assert torch.allclose(z, kept[time].sqrt() * y + (1 - kept[time]).sqrt() * noise, atol=1e-4)
    assert torch.equal(out[-1], y)


def test_monais_step_goes_to_the_next_time_of_the_walk():
    times, y, noise = walk_times(0.3, 8, 1000), images() / 2, torch.randn(4, 1, 16, 16, generator=seeded())
    own, every = walk_schedule(times, 1000, "sample"), schedule(1000)
    states = [every.add_noise(y, noise, torch.full((4,), t)) for t in times] + [y]
    for k, state, following in zip(own.timesteps.tolist(), states[:-1], states[1:], strict=True):
        assert torch.allclose(own.step(y, k, state)[0], following, atol=1e-5)


def test_a_share_of_the_schedule_is_the_same_noise_for_any_number_of_times():
    kept = [schedule(n).alphas_cumprod[walk_times(0.3, 1, n)].item() for n in (100, 1000)]
    assert kept[0] == pytest.approx(kept[1], abs=0.01)
    assert kept[1] == pytest.approx(0.396, abs=0.001)  # Ho et al. 2020: ∏ (1 − β), β from 1e-4 to 0.02
    assert kept[1] ** 0.5 == pytest.approx(0.63, abs=0.01)  # as PriorSettings says


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_from_t0_of_1_the_samples_are_the_gaussians_and_the_coarse_image_is_forgotten(prediction):
    samples = toy_samples(1.0, 500, prediction=prediction)
    assert samples.mean().item() == pytest.approx(MU, abs=0.01)
    assert samples.std().item() == pytest.approx(S, rel=0.05)
    z = (samples - samples.mean()) / samples.std()
    assert (z**4).mean().item() == pytest.approx(3, abs=0.15)  # a Gaussian


def test_from_a_lower_t0_the_samples_are_those_of_the_probability_flow():
    # Its solution for a Gaussian: the standard score of the state among all z_t is that of the sample among all y.
    a = schedule(1000).alphas_cumprod[299].item()
    shrink = S / math.sqrt(a * S**2 + 1 - a)
    samples = toy_samples(0.3, 300)
    assert samples.mean().item() == pytest.approx(MU + shrink * math.sqrt(a) * (COARSE - MU), abs=0.01)
    assert samples.std().item() == pytest.approx(shrink * math.sqrt(1 - a), rel=0.05)


def test_samples_converge_with_the_steps():
    exact = toy_samples(1.0, 1000, n=2000)
    errors = [(toy_samples(1.0, steps, n=2000) - exact).abs().mean().item() for steps in (4, 16, 64, 256)]
    assert errors[3] < 0.02
    assert all(late < 0.7 * early for early, late in pairwise(errors))


def test_both_predictions_walk_alike():
    one, other = (toy_samples(0.5, 8, n=100, prediction=p) for p in ("sample", "v_prediction"))
    assert torch.allclose(one, other, atol=1e-4)


def test_a_tiny_t0_leaves_the_image_nearly_as_it_is():
    c = images()
    sample = Prior(TINY).sample(None, c, seeded(), t0=0.001, steps=1)[-1]  # untrained, it returns what it is given
    assert (sample - c).abs().mean() < 0.01
    toy = toy_samples(0.001, 1)
    assert (toy - COARSE).abs().max() < 0.06


def test_predictions_are_clipped_to_the_range_of_images():
    out = walk(lambda z, t: 3 * torch.ones_like(z), images(), [9, 0], 100, "sample")
    assert all(prediction.max() == 1 for prediction in out)


def test_noise_comes_from_the_generator_alone():
    c, stage = images(), Prior(TINY)
    torch.nn.init.normal_(stage.ema["denoiser"].module.tail[-1].weight)
    first = stage.sample(c, c, seeded(1))
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, stage.sample(None, c, seeded(1)), strict=True))
    assert not torch.equal(first[-1], stage.sample(None, c, seeded(2))[-1])
    assert len(first) == 3
    assert len(stage.sample(None, c, seeded(), t0=0.5, steps=5)) == 5


def test_all_slices_of_a_walk_share_their_noise():
    stage, same = Prior(TINY), images()[:1].expand(3, -1, -1, -1)
    walked = stage.sample(None, same, seeded())[-1]
    assert torch.equal(walked[0], walked[2])
    assert torch.equal(walked[:1], stage.sample(None, same[:1], seeded())[-1])


def test_a_sample_that_cannot_be_walked_is_refused():
    with pytest.raises(InputError, match="t0 2"):
        Prior(TINY).sample(None, images(), seeded(), t0=2)
    with pytest.raises(InputError, match="steps 9 must be 1 to 5"):
        Prior(TINY).sample(None, images(), seeded(), t0=0.005, steps=9)


def test_sampling_takes_its_input_to_the_networks_device():
    stage = Prior(TINY)
    stage.ema["denoiser"].to("meta")
    assert stage.sample(None, images(), seeded())[-1].device.type == "meta"


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_an_untrained_denoisers_loss_is_that_of_returning_the_noised_image(prediction):
    y, stage = images(n=64), Prior(replace(TINY, prediction=prediction))
    losses = step(stage, {"target": y}, 0)
    rng = np.random.default_rng(0)
    a = schedule(1000).alphas_cumprod[torch.from_numpy(rng.integers(1000, size=64))].view(-1, 1, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(y.shape, dtype=np.float32))
    z = a.sqrt() * y + (1 - a).sqrt() * noise
    aim = y if prediction == "sample" else a.sqrt() * noise - (1 - a).sqrt() * y
    assert set(losses) == {"mse"}
    assert losses["mse"].item() == pytest.approx((z - aim).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_training_lowers_the_loss(prediction):
    stage = Prior(replace(TINY, prediction=prediction))
    row = torch.linspace(-0.8, 0.8, 16)
    batch = {"target": row.expand(8, 1, 16, 16).clone()}
    losses = [step(stage, batch, k)["mse"].item() for k in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


def test_a_trained_prior_brings_what_is_not_in_the_coarse_image():
    stage = Prior(TINY)
    stripes = torch.tensor([0.6, -0.6]).repeat(8).expand(8, 1, 16, 16).clone()
    for k in range(150):
        step(stage, {"target": stripes}, k)
    coarse = 0.3 * stripes  # the right pattern, too faint
    refined = stage.sample(None, coarse, seeded(), t0=0.3)[-1]
    assert (refined - stripes).abs().mean() < 0.5 * (coarse - stripes).abs().mean()


def test_parts_see_the_times_and_the_noise_of_the_whole_batch():
    batch, weights = {"target": images()}, []
    for parts in (1, 2):
        stage = Prior(TINY)
        stage.optimisers = {"denoiser": torch.optim.SGD(stage.nets["denoiser"].parameters(), lr=0.1)}
        for k in range(2):
            stage.step(batch, k, np.random.default_rng(k), Updates(stage.optimisers, accumulate=parts))
        weights.append(torch.cat([p.detach().flatten() for p in stage.nets["denoiser"].parameters()]))
    assert torch.allclose(*weights, rtol=1e-4, atol=1e-6)


class HalfBatch(Updates):
    """The second of two processes, which keeps its gradients to itself."""

    def __init__(self, optimisers):
        super().__init__(optimisers)
        self.processes, self.seen = 2, None

    def own(self, whole):
        return whole[len(whole) // 2 :]

    def __call__(self, kind, loss_of, batch):
        self.seen, self.processes = batch, 1
        return super().__call__(kind, loss_of, batch)


def test_a_process_has_its_share_of_the_whole_batchs_noise():
    y, alone, stage = images(), Prior(TINY), Prior(TINY)
    whole, half = HalfBatch(alone.optimisers), HalfBatch(stage.optimisers)
    whole.processes, whole.own = 1, lambda x: x
    alone.step({"target": y}, 0, np.random.default_rng(0), whole)
    stage.step({"target": y[2:]}, 0, np.random.default_rng(0), half)
    assert all(torch.equal(half.seen[key], whole.seen[key][2:]) for key in ("z", "t", "aim"))


def test_preview_shows_three_rows_with_and_without_a_coarse_image():
    y, stage = images(), Prior(TINY)
    coarse = stage.preview({"source": y, "coarse": -y, "target": y})
    noised = stage.preview({"target": y})
    assert coarse.shape == noised.shape == (1, 48, 64)
    assert torch.allclose(coarse[0, :16, :16], (1 - y[0, 0]) / 2)
    assert torch.allclose(noised[0, 32:, :16], (1 + y[0, 0]) / 2)
    assert not torch.allclose(noised[0, :16], noised[0, 32:])


def test_a_training_goes_on_from_its_checkpoint_as_if_never_stopped(tmp_path):
    def pair():
        return Prior(TINY), RandomBatches(("target",))

    def stop():
        raise RuntimeError("stopped")

    history = train(tmp_path / "a.pt", steps=5, every=3, pair=pair())
    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path / "b.pt", steps=5, every=3, pair=pair(), prepare=lambda stage: before_step(stage, 4, stop))
    assert train(tmp_path / "b.pt", steps=5, every=3, pair=pair()) == history
    states = [load_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt")]
    assert differences(*states) == []
    loaded = Prior(PriorSettings(**states[0]["settings"]), seed=1)
    restore(loaded, states[0])
    assert differences({**loaded.nets["denoiser"].state_dict()}, {**states[0]["nets"]["denoiser"]}) == []
    with pytest.raises(InputError, match="t0"):
        train(tmp_path / "a.pt", steps=5, every=3, pair=(Prior(replace(TINY, t0=0.5)), RandomBatches(("target",))))


def test_at_changes_t0_and_steps_of_a_copy():
    prior = Prior(PriorSettings(8, (1, 2), steps=2))
    other = prior.at(0.5, 4)
    assert (other.settings.t0, other.settings.steps) == (0.5, 4)
    assert (prior.settings.t0, prior.settings.steps, prior.at(0.5).settings.steps) == (0.3, 2, 2)
    assert other.nets is prior.nets
    with pytest.raises(InputError, match="t0"):
        prior.at(1.5)
