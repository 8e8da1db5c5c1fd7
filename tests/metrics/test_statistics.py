"""Intervals, paired tests, effect sizes and agreement against scipy and numbers known by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from petct_lib.metrics import statistics


def test_bootstrap_is_scipys_bca():
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 10, 12)
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(7)).confidence_interval
    assert statistics.bootstrap_interval(values, seed=7) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert statistics.bootstrap_interval(values, seed=8) != pytest.approx((expected.low, expected.high), rel=1e-9)
    narrow = statistics.bootstrap_interval(values, seed=7, level=0.5)
    assert expected.low < narrow[0] < values.mean() < narrow[1] < expected.high


def test_values_that_differ_by_rounding_have_the_same_interval():
    values = np.array([67.856, 95.524, 62.629, 120.666, 70.295])  # few: ties with the mean are many
    expected = statistics.bootstrap_interval(values)
    for seed in range(20):
        other = values + np.random.default_rng(seed).normal(size=5) * 1e-7
        assert statistics.bootstrap_interval(other) == pytest.approx(expected, abs=1e-5)


def test_an_interval_is_computed_once(monkeypatch):
    first = statistics.bootstrap_interval([1.0, 2.0, 4.0, 8.5], seed=5)
    monkeypatch.setattr(stats, "bootstrap", None)
    assert statistics.bootstrap_interval(np.array([1.0, 2.0, 4.0, 8.5]), seed=5) == first
    with pytest.raises(TypeError):
        statistics.bootstrap_interval([1.0, 2.0, 4.0, 8.5], seed=6)


def test_bootstrap_where_bca_is_undefined(recwarn):
    assert statistics.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    for values in ([2.0], [], [1.0, math.nan], [1.0, math.inf]):
        assert np.isnan(statistics.bootstrap_interval(values)).all()
    assert not recwarn.list


@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_the_smallest_p_value(n, tied):
    assert statistics.wilcoxon_p([1.0 if tied else 1.0 + i for i in range(n)]) == pytest.approx(2 ** (1 - n))


def test_wilcoxon_is_scipys():
    d = [0.5, -0.2, 2.0, 3.0, 1.0, 4.0]
    assert statistics.wilcoxon_p(d) == stats.wilcoxon(d, method="exact").pvalue


@pytest.mark.parametrize("d", [[], [1.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_cannot_be_tested_has_no_p_value(d):
    assert statistics.wilcoxon_p(d) is None


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 · 0.01, 2 · 0.03, no less
    assert statistics.holm([0.5, None, 0.6]) == [1.0, None, 1.0]  # None is no test, and 1 is the most
    assert statistics.holm([None, 0.02]) == [None, 0.02]
    assert statistics.holm([]) == []


def test_rank_biserial_by_hand():
    assert statistics.rank_biserial([1.0, 2.0, 5.0]) == 1.0
    assert statistics.rank_biserial([-1.0, -2.0]) == -1.0
    assert statistics.rank_biserial([1.0, 2.0, -3.0]) == 0.0
    assert statistics.rank_biserial([0.0, 3.0, -1.0]) == pytest.approx(1 / 3)  # ranks 2 and 1 of 3
    for d in ([], [0.0], [math.nan, 1.0], [math.inf, 1.0]):
        assert statistics.rank_biserial(d) is None


def test_agreement_by_hand():
    result = statistics.agreement([1.0, 2.0], [2.0, 5.0])  # differences 1 and 3, standard deviation √2
    assert (result.bias, result.n) == (2.0, 2)
    assert (result.low, result.high) == pytest.approx((2 - 1.96 * math.sqrt(2), 2 + 1.96 * math.sqrt(2)))
    for real, synthetic in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])):
        with pytest.raises(ValueError, match="2 patients"):
            statistics.agreement(real, synthetic)
