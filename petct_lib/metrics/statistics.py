"""Statistics over patients: intervals, paired tests, effect sizes, agreement. A value is a patient's, not a slice's."""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean over patients by 9999 resamples: BCa (Efron 1987), or percentile where BCa is undefined.

    (nan, nan) for fewer than 2 patients or non-finite values. Values that differ by rounding give intervals that do:
    a resample's sum does not depend on its order, on which BCa's ties with the mean would hang.
    """
    return _bootstrap_interval(tuple(map(float, values)), seed, level)


@functools.lru_cache(maxsize=2**14)  # a run's tables ask for the same 1000 intervals again and again
def _bootstrap_interval(values: tuple[float, ...], seed: int, level: float) -> tuple[float, float]:
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    from scipy import stats  # slow to import

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa is undefined, which is handled here
            rng = np.random.default_rng(seed)
            result = stats.bootstrap((values,), _mean, confidence_level=level, method=method, rng=rng)
        low, high = map(float, result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.sort(values, axis=axis).mean(axis=axis)


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (1945) on the paired differences of n patients.

    It cannot be below 2^(1−n): 5 patients never reach 0.05 (0.0625), 6 do (0.031). Exact up to 50 patients, up to 13
    if differences are 0 or tied. None with fewer than 2 patients, all-zero or non-finite differences.

    >>> wilcoxon_p([1.0, 2.0, 3.0, 4.0, 5.0]), wilcoxon_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (0.0625, 0.03125)
    """
    d = np.asarray(differences, float)
    if len(d) < 2 or not np.isfinite(d).all() or not d.any():
        return None
    from scipy import stats  # slow to import

    return float(stats.wilcoxon(d).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number by Holm's step-down method (1979), in the given order, at most 1.

    The k-th smallest of m is multiplied by m − k + 1, and is no smaller than the one before it. None stays None, and
    does not count as a test.

    >>> holm([0.5, 0.125, None])
    [0.5, 0.25, None]
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for k, (p, i) in enumerate(tested):
        reached = max(reached, min(1.0, p * (len(tested) - k)))
        adjusted[i] = reached
    return adjusted


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Effect size of Wilcoxon's test: matched-pairs rank-biserial correlation (Kerby 2014), −1 to 1.

    The share of the ranks of |difference| whose difference is positive, less that of the negative ones; zero
    differences are left out, as Wilcoxon did. None where there is no other, or a non-finite one.

    >>> rank_biserial([-1.0, 2.0, 5.0, 0.0])  # ranks 1 to 3: (2 + 3 − 1) / 6
    0.6666666666666666
    """
    d = np.asarray(differences, float)
    d = d[d != 0]
    if len(d) == 0 or not np.isfinite(d).all():
        return None
    from scipy import stats  # slow to import

    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman 1986: mean difference (bias) and limits within which 95 % of differences are expected."""

    bias: float
    low: float
    high: float
    n: int


def agreement(real: Sequence[float], synthetic: Sequence[float]) -> Agreement:
    """Bias and limits of agreement, bias ± 1.96 standard deviations, of synthetic − real over patients, in their unit.

    ValueError for unequal numbers, fewer than 2 patients, and non-finite values.

    >>> limits = agreement(real=[1.0, 2.0, 3.0], synthetic=[1.0, 3.0, 5.0])  # differences 0, 1, 2: their SD is 1
    >>> limits.bias, round(limits.low, 2), round(limits.high, 2)
    (1.0, -0.96, 2.96)
    """
    a, b = np.asarray(real, float), np.asarray(synthetic, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2 or not np.isfinite([a, b]).all():
        raise ValueError(f"real {a.shape} and synthetic {b.shape} must be finite values of the same 2 patients or more")
    difference = b - a
    bias, reach = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return Agreement(bias, bias - reach, bias + reach, len(a))
