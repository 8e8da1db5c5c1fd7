"""The bridge's ends, and the samplers on problems whose answer is known in closed form."""

from functools import partial

import numpy as np
import pytest
import torch

from petct_lib.bridge import SAMPLERS, anchored, bridge, euler, interpolated, renoised, time_grid

N = 40_000


def images(n=4):
    g = torch.Generator().manual_seed(0)
    return [torch.rand(n, 1, 8, 8, generator=g) * 2 - 1 for _ in range(2)]


def noise_of(seed, shape=(N, 1, 1, 1)):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=g)


def test_time_grid():
    assert time_grid(1) == (1.0,)
    assert time_grid(4) == (1.0, 0.75, 0.5, 0.25)
    with pytest.raises(ValueError, match="at least 1"):
        time_grid(0)


def test_bridge_ends_exactly_at_its_two_images():
    y, start = images()
    assert torch.equal(bridge(y, start, 0.0), y)
    assert torch.equal(bridge(y, start, 1.0), start)
    assert torch.allclose(bridge(y, start, torch.full((4, 1, 1, 1), 0.25)), 0.75 * y + 0.25 * start)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_direct_prediction_from_the_start(name):
    y, c = images()
    eps, seen = torch.randn_like(c), []
    out = SAMPLERS[name](lambda z, t: seen.append((z, t)) or y, c, (1.0,), sigma=0.5, draw=lambda: eps)
    [(z, t)] = seen
    assert torch.equal(z, c + 0.5 * eps)
    assert t == 1.0
    assert len(out) == 1
    assert torch.equal(out[0], y)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_prediction_stays_on_the_bridge(name):
    y, c = images()
    eps, seen = torch.randn_like(c), []
    out = SAMPLERS[name](lambda z, t: seen.append((z, t)) or y, c, time_grid(4), sigma=0.2, draw=lambda: eps)
    assert [t for _, t in seen] == [1.0, 0.75, 0.5, 0.25]
    for z, t in seen:
        assert torch.allclose(z, bridge(y, c + 0.2 * eps, t), atol=1e-6)
    assert all(torch.equal(prediction, y) for prediction in out)


def test_they_draw_as_often_as_they_say():
    _, c = images()
    counts = {}
    for name, sampler in SAMPLERS.items():
        drawn = []
        sampler(lambda z, t: z, c, time_grid(4), sigma=0.1, draw=lambda drawn=drawn: drawn.append(1) or c)
        counts[name] = len(drawn)
    assert counts == {"renoised": 4, "anchored": 1, "euler": 1}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_reproduces(name):
    _, c = images()

    def sample(seed):
        return SAMPLERS[name](lambda z, t: z * t, c, time_grid(3), sigma=0.3, draw=noise_of(seed, c.shape))[-1]

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


# A Gaussian toy: y ~ N(m, s²) given c = 0, so z_t = (1 − t)·y + t·σ·ε is jointly normal with y, and
# E[y | z_t] = m + k·(z_t − (1 − t)·m) with k = (1 − t)·s² / v, v = (1 − t)²·s² + t²·σ², and
# Var[y | z_t] = s²·(1 − k·(1 − t)).
M, S, SIGMA = 0.3, 0.5, 0.4


def posterior(z, t):
    v = (1 - t) ** 2 * S**2 + t**2 * SIGMA**2
    k = (1 - t) * S**2 / v
    return M + k * (z - (1 - t) * M), S * np.sqrt(1 - k * (1 - t))


def spread_after(steps):
    times = np.linspace(1, 0, steps, endpoint=False)
    out = euler(lambda z, t: posterior(z, t)[0], torch.zeros(N, 1, 1, 1), times, sigma=SIGMA, draw=noise_of(0))
    return out[-1].mean().item(), out[-1].std().item()


def test_euler_with_the_posterior_mean_samples_the_posterior_and_converges_with_steps():
    means, stds = zip(*[spread_after(n) for n in (1, 4, 16, 64, 256)], strict=True)
    assert means == pytest.approx([M] * 5, abs=0.01)
    errors = [abs(s - S) for s in stds]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(S, abs=1e-6)  # one step gives the mean: no spread at all
    assert errors[-1] < 0.02


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_renoised_with_draws_from_the_posterior_samples_it_at_any_number_of_steps(steps):
    eps = noise_of(1)

    def drawn(z, t):
        mean, std = posterior(z, t)
        return mean + std * eps()

    out = renoised(drawn, torch.zeros(N, 1, 1, 1), time_grid(steps), sigma=SIGMA, draw=noise_of(0))[-1]
    assert out.mean().item() == pytest.approx(M, abs=0.01)
    assert out.std().item() == pytest.approx(S, abs=0.01)


def test_anchored_keeps_the_noise_of_its_start():
    predict = partial(lambda z, t, y: y, y=torch.zeros(N, 1, 1, 1))
    states = []
    anchored(lambda z, t: states.append(z / t) or predict(z, t), torch.zeros(N, 1, 1, 1), (1.0, 0.5), sigma=1.0,
             draw=noise_of(0))  # fmt: skip
    assert torch.allclose(states[0], states[1])


def test_interpolated_is_a_straight_line_between_its_ends():
    a, b = images()
    assert torch.equal(interpolated(a, b, 0.0), a)
    assert torch.equal(interpolated(a, b, 1.0), b)
    assert torch.allclose(interpolated(a, b, 0.25), 0.75 * a + 0.25 * b)
