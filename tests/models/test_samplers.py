"""The path's ends, and the samplers on problems whose answer is known in closed form."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from monai.networks.schedulers import RFlowScheduler

from petct_lib.inference.translator import noise_like
from petct_lib.models.samplers import (
    EVALUATIONS,
    SAMPLERS,
    draw_times,
    euler,
    heun,
    midpoint,
    straight_path,
    time_grid,
)

N = 20_000
MU, S = 0.3, 0.5  # of the Gaussian toy: r ~ N(MU, S²)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(seed=0, n=4):
    return torch.rand(n, 1, 8, 8, generator=seeded(seed)) * 2 - 1


def noise_of(seed=0, n=N):
    return torch.randn(n, 1, 1, 1, generator=seeded(seed), dtype=torch.float64)


def gaussian_velocity(mean, std):
    """E[ε − r | z_t = z, t] of r ~ N(mean, std²) and ε ~ N(0, 1).

    z_t is N((1 − t)·mean, (1 − t)²·std² + t²), and its covariance with ε − r is t − (1 − t)·std².
    """

    def velocity(z, t):
        gain = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
        return -mean + gain * (z - (1 - t) * mean)

    return velocity


def test_time_grid():
    assert time_grid(1) == (1.0, 0.0)
    assert time_grid(3) == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0))
    assert all(time_grid(n)[-1] == 0 for n in range(1, 100)), "exactly: Heun's last step is told by it"
    for none in (0, -1):
        with pytest.raises(ValueError, match=f"steps must be at least 1, not {none}"):
            time_grid(none)


def test_the_path_ends_exactly_at_data_and_noise():
    r, noise = images(0), images(1)
    assert torch.equal(straight_path(r, noise, 0.0), r)
    assert torch.equal(straight_path(r, noise, 1.0), noise)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])[:, None, None, None]
    between = straight_path(r, noise, t)
    assert torch.equal(between[0], r[0])
    assert torch.allclose(between[1], 0.75 * r[1] + 0.25 * noise[1])
    assert torch.equal(between[3], noise[3])


def test_the_velocity_is_the_paths_derivative_and_points_to_the_data():
    r, noise = images(0).double(), images(1).double()
    v = noise - r
    for t in (0.0, 0.3, 0.7, 1.0):
        slope = (straight_path(r, noise, t + 1e-6) - straight_path(r, noise, t - 1e-6)) / 2e-6
        assert torch.allclose(slope, v)
        assert torch.allclose(straight_path(r, noise, t) - t * v, r)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_times_of_a_batch_are_evenly_spread_over_the_unit_circle_and_uniform_over_the_batches(n):
    offsets = torch.rand(5000, generator=seeded()).tolist()
    times = torch.stack([draw_times(n, offset) for offset in offsets])
    assert times.shape == (5000, n)
    assert times.min() >= 0
    assert times.max() < 1
    gaps = times.sort(dim=1).values.diff(dim=1)
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / n), atol=1e-6)
    for image in range(n):  # each image of a batch meets all times
        for quantile in (0.1, 0.5, 0.9):
            assert (times[:, image] < quantile).float().mean().item() == pytest.approx(quantile, abs=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_point_mass_is_reached_exactly_along_the_path_in_any_number_of_steps(name, steps):
    r, noise = images(0).double(), images(1).double()
    states = SAMPLERS[name](lambda z, t: (z - r) / t, noise, time_grid(steps))
    assert len(states) == steps
    for z, t in zip(states, time_grid(steps)[1:], strict=True):
        assert torch.allclose(z, straight_path(r, noise, t), atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_of_the_velocity_are_as_many_as_said_and_never_at_the_end(name, steps):
    seen = []
    SAMPLERS[name](lambda z, t: seen.append(t) or z, images(), time_grid(steps))
    assert len(seen) == EVALUATIONS[name](steps)
    assert set(time_grid(steps)[:-1]) <= set(seen)
    assert min(seen) > 0, "where a network has not been trained"


def test_samplers_have_one_signature_and_names_of_their_own():
    assert {"euler": euler, "heun": heun, "midpoint": midpoint} == SAMPLERS
    assert set(EVALUATIONS) == set(SAMPLERS)
    assert len({str(inspect.signature(sampler)) for sampler in SAMPLERS.values()}) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_draws_nothing_and_leaves_its_noise_alone(name):
    noise = images()
    before, state = noise.clone(), torch.get_rng_state()
    one, other = (SAMPLERS[name](gaussian_velocity(MU, S), noise, time_grid(3))[-1] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(noise, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_step_by_hand():
    # v(z, t) = z·t from z = 2 at t = 1. Euler to 1/2: 2 − 2/2 = 1; to 0: 1 − (1/2)·(1/2) = 0.75.
    # Heun to 1/2: ahead 1, whose velocity is 1/2: 2 − (2 + 1/2)/4 = 1.375; to 0, as Euler: 1.375·(1 − 1/4) = 1.03125.
    values = lambda z, t: z * t, torch.tensor(2.0), time_grid(2)
    assert [z.item() for z in euler(*values)] == [1.0, 0.75]
    assert [z.item() for z in heun(*values)] == [1.375, 1.03125]
    # The midpoint to 1/2: at 3/4 it is 3/2, whose velocity is 9/8: 2 − 9/16 = 1.4375; to 0: at 1/4 it is 1.4375·7/8.
    assert [z.item() for z in midpoint(*values)] == [1.4375, 1.4375 * (1 - 7 / 64)]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_toys_velocity_is_the_regression_of_the_velocity_on_the_state(t):
    """What a network learns by least squares, E[v | z_t]: here the line through many draws."""
    noise, r = noise_of(0), MU + S * noise_of(1)
    z, v = straight_path(r, noise, t), noise - r
    slope = ((z - z.mean()) * (v - v.mean())).mean() / z.var()
    line = gaussian_velocity(MU, S)
    assert (line(1.0, t) - line(0.0, t)) == pytest.approx(slope.item(), abs=0.03)
    assert line(0.0, t) == pytest.approx((v.mean() - slope * z.mean()).item(), abs=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_gaussian_is_sampled_to_its_mean_and_variance(name):
    samples = SAMPLERS[name](gaussian_velocity(MU, S), noise_of(), time_grid(200))[-1]
    assert samples.mean().item() == pytest.approx(MU, abs=0.01)
    assert samples.var().item() == pytest.approx(S**2, rel=0.03)
    score = (samples - samples.mean()) / samples.std()
    assert score.pow(4).mean().item() == pytest.approx(3, abs=0.15), "a Gaussian"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_conditional_gaussian_is_sampled_to_its_posterior(name):
    """Of y ~ N(MU, S²) only x = y + N(0, 0.4²) is seen: y given x is N(MU + k·(x − MU), (1 − k)·S²)."""
    y = MU + S * noise_of(1)
    x = y + 0.4 * noise_of(2)
    k = S**2 / (S**2 + 0.4**2)
    posterior = gaussian_velocity(MU + k * (x - MU), math.sqrt((1 - k) * S**2))
    samples = SAMPLERS[name](posterior, noise_of(3), time_grid(100))[-1]
    slope = ((samples - samples.mean()) * (x - x.mean())).mean() / x.var()
    rest = samples - samples.mean() - slope * (x - x.mean())
    assert slope.item() == pytest.approx(k, abs=0.02)
    assert rest.var().item() == pytest.approx((1 - k) * S**2, rel=0.05)
    assert samples.mean().item() == pytest.approx(MU, abs=0.02)
    assert samples.var().item() == pytest.approx(S**2, rel=0.05), "averaged over x, they are the data"
    # A sample is as far from y as another draw of the posterior: √2 times as far as the posterior's mean.
    error, of_mean = (samples - y).square().mean(), (MU + k * (x - MU) - y).square().mean()
    assert (error / of_mean).item() == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_order_of_convergence_by_halving_the_steps(name, order):
    """Of dz/dt = z·t from t = 1 to 0, which divides z by √e. (The midpoint method's order for a Gaussian is 3.)"""
    noise = noise_of(n=100)
    errors = [
        (SAMPLERS[name](lambda z, t: z * t, noise, time_grid(steps))[-1] - noise / math.sqrt(math.e)).abs().mean()
        for steps in (64, 128, 256, 512)
    ]
    orders = [torch.log2(coarse / fine).item() for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order] * 3, abs=0.15)


@pytest.mark.parametrize("name", ["heun", "midpoint"])
def test_the_second_order_is_better_than_euler_at_the_same_number_of_evaluations(name):
    noise, exact = noise_of(n=100), MU + S * noise_of(n=100)
    velocity = gaussian_velocity(MU, S)
    of_second = SAMPLERS[name](velocity, noise, time_grid(4))[-1]
    of_euler = euler(velocity, noise, time_grid(EVALUATIONS[name](4)))[-1]
    assert (of_second - exact).abs().mean() < (of_euler - exact).abs().mean()


@pytest.mark.parametrize("std", [5.0, 2.0, 1.0])
def test_four_midpoint_steps_keep_the_spread_that_heun_loses(std):
    """Of what is large beside the noise, as the residual's coarse structures are; the flow ends at std · ε."""
    noise, velocity = noise_of(n=100), gaussian_velocity(0.0, std)
    of_heun, of_midpoint = (SAMPLERS[name](velocity, noise, time_grid(4))[-1] / noise for name in ("heun", "midpoint"))
    assert (of_heun / std).max() < 0.97
    assert (of_heun / std).max() < (of_midpoint / std).min()
    assert (of_midpoint / std).numpy() == pytest.approx(1.0, abs=0.05)


def test_shared_noise_is_one_image_for_all_slices_whatever_their_number():
    few, many = (noise_like(torch.zeros(n, 1, 8, 8), seed=3, sample=1) for n in (2, 9))
    assert few.shape == (2, 1, 8, 8)
    assert torch.equal(few[0], few[1])
    assert torch.equal(many[:2], few)
    assert few.std().item() == pytest.approx(1, abs=0.3)


def test_a_slices_own_noise_is_another_for_each():
    own = noise_like(torch.zeros(400, 1, 8, 8), seed=3, sample=1, shared=False)
    neighbours = torch.stack([own[:-1].flatten(), own[1:].flatten()])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.02
    assert own.mean().item() == pytest.approx(0, abs=0.02)
    assert own.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(noise_like(torch.zeros(5, 1, 8, 8), seed=3, sample=1, shared=False), own[:5])


@pytest.mark.parametrize("shared", [True, False])
def test_samples_come_in_pairs_of_mirrored_noise(shared):
    noise = [noise_like(images(), 1, sample, shared=shared) for sample in range(4)]
    assert torch.equal(noise[1], -noise[0])
    assert torch.equal(noise[3], -noise[2])
    assert not torch.equal(noise[2].abs(), noise[0].abs())


@pytest.mark.parametrize("shared", [True, False])
def test_noise_is_that_of_its_seed_and_sample_alone(shared):
    values = {"shared": shared}
    first = noise_like(images(), 1, 0, **values)
    torch.manual_seed(99)
    assert torch.equal(noise_like(2 * images(), 1, 0, **values), first)
    for seed, sample in ((1, 1), (2, 0)):
        assert not torch.equal(noise_like(images(), seed, sample, **values), first)


@pytest.mark.parametrize("times", [(1.0, 0.0), (1.0, 0.85, 0.5, 0.15, 0.0)])  # MONAI rounds them to thousandths
def test_path_and_euler_are_monais_rectified_flow(times):
    """MONAI's `RFlowScheduler` has the same path, and the velocity with the other sign (towards the data)."""
    scheduler = RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
    scheduler.set_timesteps(len(times) - 1)
    generator = torch.Generator().manual_seed(0)
    r, noise = (torch.randn((2, 1, 4, 4), generator=generator) for _ in range(2))
    for t in (0.0, 0.3, 1.0):
        theirs = scheduler.add_noise(r, noise, torch.full((2,), 1000 * t))
        assert torch.allclose(straight_path(r, noise, t), theirs, atol=1e-6)

    def velocity(z, t):
        return torch.sin(3 * z) + t

    z = noise
    for t, s in pairwise(times):
        z, _ = scheduler.step(-velocity(z, t), 1000 * t, z, 1000 * s)
    assert torch.allclose(euler(velocity, noise, times)[-1], z, atol=1e-5)
