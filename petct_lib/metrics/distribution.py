"""Scores of a distribution of images: given by samples, or by a regression with a map of its error's scale.

A patient's stack is (n, H, W) in physical units (HU or SUV), samples are (N, n, H, W), a mask is bool (n, H, W). Most
functions ask for no stack: they take any samples (N, ...) of values (...), such as the voxels of a mask or the means of
blocks. Images are scored as they come: clip them first. All scores raise ValueError for unequal shapes, for values that
are not finite and for no values at all. float32 stays float32; means over a mask are taken in float64.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from scipy.special import ndtr

from petct_lib.metrics.rows import Row

BLOCK_SIZES = (4, 8)  # pixels: errors of neighbours average out in a block, unless they are alike
LEVEL = 0.8  # of `coverage_80`
LEAST = 4  # samples that are scored as a distribution: two pairs
COVERED = 8  # samples that have a `coverage_80`: of fewer, half of them say about 0.8 whatever they are


def independent_halves(samples: np.ndarray) -> list[np.ndarray]:
    """The even and the odd ones of N >= 4 samples (N, ...), equally many, the last one left out where N is odd.

    Each is the mirror of one of the others (`translator.noise_like`). All scores here are for independent samples, as
    the even ones are, and the odd ones: take the mean over both. ValueError for fewer.
    """
    if len(samples) < LEAST:
        raise ValueError(f"{len(samples)} samples: {LEAST} is the least, two pairs")
    end = len(samples) // 2 * 2
    return [samples[0:end:2], samples[1:end:2]]


def spread(samples: np.ndarray) -> np.ndarray:
    """Standard deviation at each value of N samples in pairs, (N, ...) -> (...), their unit; see `independent_halves`.

    Of each half with N / 2 − 1, for in a pair samples are further apart than two others. Of fewer than 4 samples with
    N: of a pair it is half of the difference, of one 0.

    >>> spread(np.array([[1.0], [3.0], [2.0], [2.0]])) ** 2  # (0.5 + 0.5) / 2
    array([0.5])
    """
    if len(samples) < LEAST:
        return samples.std(axis=0)
    return np.sqrt(np.mean([half.var(axis=0, ddof=1) for half in independent_halves(samples)], axis=0))


def crps(samples: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Fair CRPS of N samples at each value, (N, ...) and (...) -> (...), in their unit: 0 is best.

    mean |xᵢ − y| − Σ_{i<j} |xᵢ − xⱼ| / (N (N − 1)): the kernel form (Gneiting and Raftery 2007, eq. 21) with the pairs
    counted without i = j. Its expectation is the CRPS of the distribution, whatever N (Ferro 2014); a single value may
    be below 0. N = 1 has no pairs: the absolute error, which is not fair beside the CRPS of more samples.

    >>> crps(np.array([[0.0], [2.0]]), np.array([5.0]))  # (5 + 3) / 2 − 2 / 2
    array([3.])
    """
    samples, real = _check_samples(samples, real)
    n = len(samples)
    error = np.abs(samples - real).mean(axis=0)
    if n == 1:
        return error
    weights = np.arange(1 - n, n, 2, dtype=samples.dtype)  # of the sorted samples: Σ_{i<j} |xᵢ − xⱼ| = Σ wₖ x₍ₖ₎
    return error - np.tensordot(weights, np.sort(samples, axis=0), axes=1) / (n * (n - 1))


def crps_laplace(location: np.ndarray, scale: np.ndarray, real: np.ndarray) -> np.ndarray:
    """CRPS of Laplace distributions at each value, all (...), in their unit. Scale 0: the absolute error.

    b (|z| + exp(−|z|) − 3/4) with z = (y − µ) / b (Jordan, Krüger and Lerch 2019, appendix A). ValueError too for
    scales below 0.

    >>> float(crps_laplace(0.0, 2.0, 0.0))
    0.5
    """
    error, scale, z = _standardise(location, scale, real)
    return error + scale * (np.exp(-z) - 0.75)


def crps_normal(location: np.ndarray, sd: np.ndarray, real: np.ndarray) -> np.ndarray:
    """CRPS of normal distributions at each value, all (...), in their unit. Standard deviation 0: the absolute error.

    σ (z (2 Φ(z) − 1) + 2 φ(z) − 1/√π) with z = (y − µ) / σ (Gneiting et al. 2005, eq. 5). ValueError too for standard
    deviations below 0.

    >>> round(float(crps_normal(0.0, 1.0, 0.0)), 6)  # (√2 − 1) / √π
    0.233695
    """
    error, sd, z = _standardise(location, sd, real)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return error * (2 * ndtr(z) - 1) + sd * (2 * density - 1 / math.sqrt(math.pi))


def block_means(stack: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """Means of the blocks of size x size pixels that lie wholly in the mask, (..., n, H, W) -> (..., blocks).

    Blocks lie within a slice and start at its first pixel; rows and columns that fill no block are left out. There may
    be 0 blocks. Unit: the stack's. ValueError for a mask that is not bool (n, H, W), and a size below 1.

    >>> block_means(np.arange(8.0).reshape(1, 2, 4), np.ones((1, 2, 4), bool), 2)
    array([2.5, 4.5])
    """
    stack, mask = np.asarray(stack), np.asarray(mask)
    if mask.ndim != 3 or stack.shape[-3:] != mask.shape or mask.dtype != bool:
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be bool (n, H, W), as stack {stack.shape} ends")
    if size < 1:
        raise ValueError(f"blocks of {size} pixels: 1 is the least")
    rows, columns = (length // size for length in mask.shape[1:])
    shape = (len(mask), rows, size, columns, size)
    inner = (..., slice(rows * size), slice(columns * size))
    whole = mask[inner].reshape(shape).all(axis=(2, 4))  # (n, rows, columns)
    return stack[inner].reshape(*stack.shape[:-3], *shape).mean(axis=(-3, -1))[..., whole]


def coverage(samples: np.ndarray, real: np.ndarray, level: float = LEVEL) -> float:
    """Share of the values (...) inside the central interval of N >= 2 samples (N, ...), 0 to 1; `level` is calibrated.

    If the real value is exchangeable with the samples, its rank r among them is uniform on 0..N, so that r stands for
    the part r / (N + 1) to (r + 1) / (N + 1) of the distribution. A value counts by the share of its part that lies in
    (1 − level) / 2 to (1 + level) / 2: the non-randomised PIT of Czado, Gneiting and Held 2009. So a value well inside
    the samples counts 1, one beyond the interval 0, and one in the gap that an end of the interval cuts, in part: the
    interval between two order statistics, interpolated to a content of exactly `level` for any N and distribution.
    A value equal to samples has all the parts that it may have by rank, with equal weight.

    Fewer than (1 + level) / (1 − level) samples (9 for 0.8) do not reach that far out: a value outside all of them
    still counts 1 − (N + 1) (1 − level) / 2, which is 0.1 for 8 samples and 0.5 for 4, and nothing is lower. So a
    spread that is wrong shows less with fewer samples: normal ones of 0.7 of the right width have 0.67 with 8 and 0.74
    with 4. Compare at equal N. ValueError too for fewer than 2 samples, and a level outside 0 to 1.

    >>> samples = np.arange(1.0, 5.0)[:, None].repeat(5, axis=1)  # 1, 2, 3 and 4, five times
    >>> round(coverage(samples, np.array([0.5, 1.5, 2.5, 3.5, 4.5])), 6)  # (0.5 + 1 + 1 + 1 + 0.5) / 5
    0.8
    """
    samples, real = _check_samples(samples, real, least=2)
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    below, equal = _ranks(samples, real)
    low, high = below / (len(samples) + 1), (below + equal + 1) / (len(samples) + 1)
    ends = (1 - level) / 2, (1 + level) / 2
    return float(np.mean((np.clip(high, *ends) - np.clip(low, *ends)) / (high - low)))


def spread_skill(samples: np.ndarray, real: np.ndarray) -> float | None:
    """Spread of N >= 2 samples (N, ...) by the RMSE of their mean, no unit: 1 is calibrated, below 1 too narrow.

    sqrt((N + 1) / N · mean variance) / RMSE, the variance with N − 1 (Fortin et al. 2014, eq. 15); without the factor,
    few samples would seem too narrow. A bias counts as error. None where the RMSE is 0.

    >>> spread_skill(np.array([[-1.0], [1.0]]), np.array([1.0]))  # variance 2, mean 0: sqrt(3 / 2 · 2) / 1
    1.7320508075688772
    """
    samples, real = _check_samples(samples, real, least=2)
    variance = samples.var(axis=0, ddof=1).mean(dtype=np.float64)
    return _ratio((len(samples) + 1) / len(samples) * variance, samples.mean(axis=0) - real)


def rank_histogram(samples: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many values (...) have rank 0..N among their N samples (N, ...): (N + 1,) counts (Hamill 2001).

    Flat for a real value exchangeable with the samples; high at both ends for samples too narrow, at one end for
    biased ones. A flat one is no proof: biases of both signs may cancel. `rng` draws the rank among ties.

    >>> rank_histogram(np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([0.0, 3.0]), np.random.default_rng(0))
    array([1, 0, 1])
    """
    samples, real = _check_samples(samples, real)
    below, equal = _ranks(samples, real)
    return np.bincount((below + rng.integers(0, equal + 1)).ravel(), minlength=len(samples) + 1)


def spread_error_correlation(samples: np.ndarray, real: np.ndarray) -> float | None:
    """Spearman's rank correlation of the `spread` of N >= 2 samples in pairs (N, ...) and |mean − real|, −1 to 1.

    Does the spread know where the error is, whatever its size? Errors scatter around even a perfect spread, so that 1
    is out of reach. None where either is constant.

    >>> samples = np.array([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    >>> round(spread_error_correlation(samples, np.array([0.1, -0.5, 0.7])), 6)
    1.0
    """
    samples, real = _check_samples(samples, real, least=2)
    return _rank_correlation(spread(samples), np.abs(samples.mean(axis=0) - real))


def score_samples(
    real: np.ndarray, samples: np.ndarray, masks: Mapping[str, np.ndarray], *, unit: str, sources: Mapping[str, str]
) -> list[Row]:
    """Scores of N >= 4 samples in pairs (N, n, H, W) of a patient's stack (n, H, W), as `image_scores` has them.

    Of the body: `crps` (mean over voxels), `crps_4` and `crps_8` (over means of 4x4 and 8x8 pixels), `coverage_80`,
    `spread_skill` and `rank_correlation`. Of each region that has voxels: `crps_mean`, the CRPS of its mean. The CRPS
    of voxels does not see how voxels go together, that of means does. All but the rank correlation are means over the
    two halves of the samples, see `independent_halves`. No row for what has no value: the coverage of fewer than
    COVERED samples, blocks where none lies in the body, and what is None. ValueError for unequal shapes, values that
    are not finite, fewer than 4 samples, masks that are not bool or without body, and no source.
    """
    samples, real = _check_samples(samples, real, least=LEAST)
    _check_masks(masks, real, sources)
    body = masks["body"]
    voxels, real_voxels = samples[:, body], real[body]
    scores = [("body", "crps", _mean_over_halves(_mean_crps, voxels, real_voxels), unit)]
    for size in BLOCK_SIZES:
        real_means = block_means(real, body, size)
        if real_means.size:
            value = _mean_over_halves(_mean_crps, block_means(samples, body, size), real_means)
            scores.append(("body", f"crps_{size}", value, unit))
    covered = _mean_over_halves(coverage, voxels, real_voxels) if len(samples) >= COVERED else None
    scores += [
        ("body", "coverage_80", covered, "1"),
        ("body", "spread_skill", _mean_over_halves(spread_skill, voxels, real_voxels), "1"),
        ("body", "rank_correlation", spread_error_correlation(voxels, real_voxels), "1"),
    ]
    for region, mask in _nonempty(masks):
        sample_means = samples[:, mask].mean(axis=1, dtype=np.float64)  # (N,)
        scores.append((region, "crps_mean", _mean_over_halves(_mean_crps, sample_means, _mean(real[mask])), unit))
    return _rows(scores, sources)


def _mean_over_halves(
    score: Callable[[np.ndarray, np.ndarray], float | None], samples: np.ndarray, real: np.ndarray
) -> float | None:
    """The mean of a score over the independent halves; None where it has no value in one."""
    values = [score(half, real) for half in independent_halves(samples)]
    return None if None in values else _mean(values)


def _mean_crps(samples: np.ndarray, real: np.ndarray) -> float:
    return _mean(crps(samples, real))


def score_error_map(
    real: np.ndarray,
    image: np.ndarray,
    scale: np.ndarray,
    masks: Mapping[str, np.ndarray],
    *,
    unit: str,
    sources: Mapping[str, str],
) -> list[Row]:
    """Scores of a regression (n, H, W) with the Laplace scale b of each voxel's error: rows as of `score_samples`.

    Of a map alone, nobody knows how errors go together, so that there are two rows for each CRPS of means. `crps_4`,
    `crps_8` and `crps_mean` take the errors as independent: normal, with the variance Σ 2 b² / k² of a mean of k
    voxels. `crps_4_dependent` and so on take them as one and the same error: Laplace, with the mean of b. `coverage_80`
    is that of the central Laplace interval, `spread_skill` sqrt(mean 2 b²) by the RMSE, `rank_correlation` that of b
    and the absolute error. ValueError for unequal shapes, values that are not finite, masks that are not bool or
    without body, no source, and scales below 0.
    """
    image, scale, real = _checked_map(image, scale, real)
    _check_masks(masks, real, sources)
    body, stacks = masks["body"], (image, scale, np.square(scale), real)
    location, b, squared, target = (stack[body] for stack in stacks)
    error = np.abs(target - location)
    scores = [("body", "crps", _mean(crps_laplace(location, b, target)), unit)]
    for size in BLOCK_SIZES:
        means = [block_means(stack, body, size) for stack in stacks]
        if means[0].size:
            scores += [("body", name, value, unit) for name, value in _mean_scores(f"crps_{size}", *means, size**2)]
    scores += [
        ("body", "coverage_80", _mean(error <= b * math.log(1 / (1 - LEVEL))), "1"),
        ("body", "spread_skill", _ratio(2 * _mean(squared), error), "1"),
        ("body", "rank_correlation", _rank_correlation(b, error), "1"),
    ]
    for region, mask in _nonempty(masks):
        means = [_mean(stack[mask]) for stack in stacks]
        scores += [(region, name, x, unit) for name, x in _mean_scores("crps_mean", *means, np.count_nonzero(mask))]
    return _rows(scores, sources)


def _mean_scores(
    name: str, location: np.ndarray, scale: np.ndarray, squared: np.ndarray, real: np.ndarray, voxels: int
) -> list[tuple[str, float]]:
    """Mean CRPS of means over `voxels` voxels, given the means of µ, b, b² and y: errors independent, and all one."""
    independent = crps_normal(location, np.sqrt(2 * squared / voxels), real)
    return [(name, _mean(independent)), (f"{name}_dependent", _mean(crps_laplace(location, scale, real)))]


def _check_samples(samples: np.ndarray, real: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Samples (N, ...) as float32 or float64 and the real values (...) alike; ValueError if they cannot be scored."""
    samples = np.asarray(samples)
    samples = samples.astype(np.result_type(samples.dtype, np.float32), copy=False)
    real = np.asarray(real, samples.dtype)
    if samples.ndim != real.ndim + 1 or samples.shape[1:] != real.shape:
        raise ValueError(f"samples {samples.shape} must be (N, ...) of real (...), not of {real.shape}")
    if len(samples) < least:
        raise ValueError(f"samples {samples.shape} of real {real.shape}: {len(samples)} samples, {least} is the least")
    _check_finite(samples=samples, real=real)
    return samples, real


def _checked_map(location: np.ndarray, scale: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, ...]:
    """All three (...) as float32 or float64, as the first; ValueError if they cannot be scored."""
    location = np.asarray(location)
    location = location.astype(np.result_type(location.dtype, np.float32), copy=False)
    scale, real = np.asarray(scale, location.dtype), np.asarray(real, location.dtype)
    if not location.shape == scale.shape == real.shape:
        raise ValueError(f"location {location.shape}, scale {scale.shape} and real {real.shape} must have one shape")
    _check_finite(location=location, scale=scale, real=real)
    if bad := int(np.count_nonzero(scale < 0)):
        raise ValueError(f"scale has {bad} values of {scale.size} below 0")
    return location, scale, real


def _check_finite(**arrays: np.ndarray) -> None:
    for name, values in arrays.items():
        if not values.size:
            raise ValueError(f"{name} {values.shape} has no values to score")
        if bad := int(np.count_nonzero(~np.isfinite(values))):
            raise ValueError(f"{name} has {bad} non-finite values of {values.size}")


def _check_masks(masks: Mapping[str, np.ndarray], real: np.ndarray, sources: Mapping[str, str]) -> None:
    if real.ndim != 3:
        raise ValueError(f"real {real.shape} must be a stack (n, H, W)")
    if "body" not in masks or set(masks) - set(sources):
        raise ValueError(f"masks {sorted(masks)} must have body, and each a source; sources are of {sorted(sources)}")
    for region, mask in masks.items():
        if np.shape(mask) != real.shape or np.asarray(mask).dtype != bool:
            raise ValueError(f"mask {region} {np.shape(mask)} must be bool, of real's shape {real.shape}")
    if not np.any(masks["body"]):
        raise ValueError(f"empty mask: 0 of {real.size} voxels of the body to score")


def _standardise(location: np.ndarray, scale: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, ...]:
    """|y − µ|, the scale and |z|, which is infinite for scale 0: all (...)."""
    location, scale, real = _checked_map(location, scale, real)
    error = np.abs(real - location)
    return error, scale, np.divide(error, scale, out=np.full_like(scale, np.inf), where=scale > 0)


def _ranks(samples: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the N samples are below the real value, and how many equal to it: (...) each."""
    return np.sum([sample < real for sample in samples], axis=0), np.sum([sample == real for sample in samples], axis=0)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))


def _ratio(variance: float, error: np.ndarray) -> float | None:
    squared = _mean(np.square(error))
    return math.sqrt(variance / squared) if squared else None


def _nonempty(masks: Mapping[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    return ((region, mask) for region, mask in masks.items() if np.any(mask))


def _rows(scores: Iterable[tuple[str, str, float | None, str]], sources: Mapping[str, str]) -> list[Row]:
    return [
        {"region": region, "metric": metric, "value": float(value), "unit": unit, "mask": sources[region]}
        for region, metric, value, unit in scores
        if value is not None
    ]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, of values (...); None where either is constant."""
    from scipy import stats  # slow to import

    return None if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.spearmanr(a, b, axis=None).statistic)
