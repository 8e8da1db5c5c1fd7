"""Scores of distributions: values known by hand, pairs counted one by one, and draws that are calibrated."""

import itertools
import math

import numpy as np
import pytest

from petct_lib.metrics.distribution import (
    block_means,
    coverage,
    crps,
    crps_laplace,
    crps_normal,
    independent_halves,
    rank_histogram,
    score_error_map,
    score_samples,
    spread,
    spread_error_correlation,
    spread_skill,
)

VOXELS = 40000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def plain_crps(samples, real, pairs_by):
    pairs = sum(np.abs(a - b) for a, b in itertools.combinations(samples, 2))
    return np.abs(samples - real).mean(axis=0) - pairs / pairs_by


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_crps_is_the_sum_over_pairs(rng, n):
    samples, real = rng.normal(size=(n, 5, 7)), rng.normal(size=(5, 7))
    assert crps(samples, real) == pytest.approx(plain_crps(samples, real, n * (n - 1)))


def test_crps_by_hand():
    assert crps(np.array([1.0, 2, 6]), np.array(3.0)) == pytest.approx(2 - 10 / 6)  # (2 + 1 + 3) / 3; pairs 1 + 5 + 4
    assert crps(np.array([0.0, 2]), np.array(1.0)) == 0
    assert crps(np.array([1.0, 1]), np.array(4.0)) == 3  # no spread: the absolute error
    assert crps(np.array([-1.0, 1]), np.array(0.0)) == 0


def test_crps_of_one_sample_is_the_absolute_error():
    assert list(crps(np.array([[3.0, -2.0]]), np.array([1.0, 1.0]))) == [2, 3]


def test_crps_is_fair(rng):
    """The expectation for a real value of the same normal distribution is 1/√π, whatever the number of samples."""
    draws, real = rng.normal(size=(16, VOXELS)), rng.normal(size=VOXELS)
    for n in (2, 4, 8, 16):
        fair = crps(draws[:n], real).mean()
        assert fair == pytest.approx(1 / math.sqrt(math.pi), abs=0.012)
        unfair = plain_crps(draws[:n], real, n * n).mean()
        assert unfair == pytest.approx((1 + 1 / n) / math.sqrt(math.pi), abs=0.012)


def test_crps_keeps_float32_and_its_precision(rng):
    samples, real = rng.normal(-1000, 5, (8, 1000)), rng.normal(-1000, 5, 1000)
    single = crps(samples.astype(np.float32), real)
    assert single.dtype == np.float32
    assert crps(samples, real).dtype == np.float64
    assert crps(samples.astype(np.int16), real.astype(np.int16)).dtype == np.float32
    assert single == pytest.approx(crps(samples, real), abs=2e-3)


@pytest.mark.parametrize("real", [-4.0, 0.5, 1.0, 6.0])
@pytest.mark.parametrize(("score", "draw"), [(crps_laplace, "laplace"), (crps_normal, "normal")])
def test_closed_forms_are_the_crps_of_many_samples(rng, score, draw, real):
    samples = getattr(rng, draw)(1.0, 2.0, 200000)
    assert score(1.0, 2.0, real) == pytest.approx(crps(samples, np.array(real)), abs=0.03)


def test_closed_forms_by_hand():
    assert crps_laplace(0.0, 1.0, -3.0) == pytest.approx(2.29978707)  # the value in the tests of R's scoringRules
    assert crps_laplace(0.1, 0.9, 0.1 - 2.7) == pytest.approx(0.9 * 2.29978707)
    assert crps_normal(5.0, 2.0, 5.0) == pytest.approx(2 * (math.sqrt(2) - 1) / math.sqrt(math.pi))
    assert crps_normal(0.0, 1.0, 1.0) == crps_normal(0.0, 1.0, -1.0) == pytest.approx(0.6024413)
    location, scale, real = np.zeros((2, 3)), np.full((2, 3), 2.0), np.ones((2, 3))
    assert crps_laplace(location, scale, real) == pytest.approx(np.full((2, 3), 1 + 2 * (math.exp(-0.5) - 0.75)))


@pytest.mark.parametrize("score", [crps_laplace, crps_normal])
def test_a_scale_of_0_is_a_point(score):
    assert list(score(np.array([1.0, 1.0]), np.zeros(2), np.array([1.0, 4.0]))) == [0, 3]
    assert score(0.0, 1e-9, 3.0) == pytest.approx(3)


def test_block_means_by_hand():
    stack = np.arange(2 * 5 * 5.0).reshape(2, 5, 5)  # the fifth row and column fill no block
    mask = np.ones(stack.shape, bool)
    assert list(block_means(stack, mask, 2)) == [3, 5, 13, 15, 28, 30, 38, 40]
    mask[0, 0, 0] = mask[1, 3, 3] = False
    assert list(block_means(stack, mask, 2)) == [5, 13, 15, 28, 30, 38]
    mask[:, 4] = False
    assert list(block_means(stack, mask, 2)) == [5, 13, 15, 28, 30, 38]
    assert list(block_means(stack, mask, 4)) == []
    assert list(block_means(stack, np.ones(stack.shape, bool), 4)) == [9, 34]
    assert list(block_means(stack, mask, 1)) == list(stack[mask])
    assert block_means(stack, mask, 6).shape == (0,)


def test_block_means_of_samples_are_those_of_each(rng):
    samples, mask = rng.normal(size=(3, 2, 9, 8)), rng.random((2, 9, 8)) < 0.9
    means = block_means(samples, mask, 2)
    assert means.shape == (3, len(means[0]))
    for sample, mean in zip(samples, means, strict=True):
        assert list(block_means(sample, mask, 2)) == list(mean)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 9, 20])
@pytest.mark.parametrize("level", [0.5, 0.8])
def test_an_exchangeable_value_is_covered_at_the_level(rng, n, level):
    draws = rng.gamma(0.5, size=(n + 1, VOXELS)) * rng.gamma(1, size=VOXELS)  # skewed, each voxel on its own scale
    assert coverage(draws[1:], draws[0], level) == pytest.approx(level, abs=0.01)
    rounded = np.floor(draws)  # many ties
    assert coverage(rounded[1:], rounded[0], level) == pytest.approx(level, abs=0.01)


def test_coverage_by_hand():
    samples = np.arange(1.0, 20)[:, None]  # 19 samples: 5 % of the distribution between each two
    by_value = {0.5: 0, 1.5: 0, 2.5: 1, 10.5: 1, 17.5: 1, 18.5: 0, 19.5: 0}  # 0.1 to 0.9: from sample 2 to sample 18
    assert {value: coverage(samples, np.array([value])) for value in by_value} == pytest.approx(by_value)
    assert coverage(samples, np.array([2.0])) == pytest.approx(0.5)  # tied with sample 2: rank 1 or 2
    assert coverage(samples, np.array([2.5]), level=0.75) == pytest.approx(0.5)  # from 0.125, half of 0.1 to 0.15


@pytest.mark.parametrize(("width", "of_8", "of_4"), [(0.7, 0.674, 0.741), (1.0, 0.8, 0.8), (1.5, 0.902, 0.858)])
def test_a_wrong_spread_shows_less_with_fewer_samples(rng, width, of_8, of_4):
    samples, real = width * rng.normal(size=(8, VOXELS)), rng.normal(size=VOXELS)
    assert coverage(samples, real) == pytest.approx(of_8, abs=0.01)
    assert coverage(samples[:4], real) == pytest.approx(of_4, abs=0.01)


def test_few_samples_do_not_reach_as_far_as_the_level():
    far = np.full(3, 100.0)
    assert coverage(np.zeros((8, 3)), far) == pytest.approx(0.1)
    assert coverage(np.zeros((4, 3)), far) == pytest.approx(0.5)
    assert coverage(np.zeros((9, 3)), far) == pytest.approx(0)


def test_coverage_tells_narrow_from_wide(rng):
    samples, real = rng.normal(size=(8, VOXELS)), rng.normal(size=VOXELS)
    assert coverage(0.3 * samples, real) < 0.5
    assert coverage(3 * samples, real) > 0.95


@pytest.mark.parametrize("n", [2, 4, 8])
def test_spread_matches_the_error_of_exchangeable_draws(rng, n):
    draws = rng.normal(50, 3, size=(n + 1, VOXELS))
    assert spread_skill(draws[1:], draws[0]) == pytest.approx(1, abs=0.015)
    narrow = 50 + 0.5 * (draws[1:] - 50)
    assert spread_skill(narrow, draws[0]) < 0.75
    assert spread_skill(50 + 3 * (draws[1:] - 50), draws[0]) > 1.2


def test_spread_skill_by_hand():
    samples = np.array([[0.0, 10], [2, 10], [4, 10]])  # variances 4 and 0, means 2 and 10
    assert spread_skill(samples, np.array([5.0, 11])) == pytest.approx(math.sqrt(4 / 3 * 2 / 5))
    assert spread_skill(samples, np.array([2.0, 10])) is None


def test_rank_histogram_is_flat_for_exchangeable_draws(rng):
    draws = rng.normal(size=(5, VOXELS))
    for values in (draws, np.round(draws), np.zeros_like(draws)):
        counts = rank_histogram(values[1:], values[0], rng)
        assert counts.sum() == VOXELS
        assert counts / VOXELS == pytest.approx(np.full(5, 0.2), abs=0.01)
    ends = rank_histogram(0.3 * draws[1:], draws[0], rng)[[0, 4]] / VOXELS
    assert ends.min() > 0.3


def test_rank_histogram_by_hand(rng):
    samples = np.array([[[1.0, 1, 1, 9]], [[2, 2, 2, 8]]])
    assert list(rank_histogram(samples, np.array([[0.0, 1.5, 3, 7]]), rng)) == [2, 1, 1]
    again = [rank_histogram(np.ones((3, 50)), np.ones(50), np.random.default_rng(1)) for _ in range(2)]
    assert list(again[0]) == list(again[1])


def test_spread_error_correlation_sees_the_order():
    spread = np.array([1.0, 2, 3, 4])
    samples = np.array([-spread, spread])
    assert spread_error_correlation(samples, np.array([0.1, -0.2, 5, -6])) == pytest.approx(1)
    assert spread_error_correlation(samples, 1 / spread) == pytest.approx(-1)
    assert spread_error_correlation(samples, np.array([2.0, 1, 4, 3])) == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert spread_error_correlation(np.zeros((2, 4)), spread) is None


SHAPE = (2, 16, 16)
SOURCES = {"body": "the body's", "lung": "the lung's", "lesion": "the lesions'"}


@pytest.fixture
def masks():
    body, lung = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    body[:, :12] = True
    lung[0, 2:5, 2:9] = True
    return {"body": body, "lung": lung, "lesion": np.zeros(SHAPE, bool)}


def by_name(rows):
    assert all(set(row) == {"region", "metric", "value", "unit", "mask"} for row in rows)
    assert all(type(row["value"]) is float and row["mask"] == SOURCES[row["region"]] for row in rows)
    result = {(row["region"], row["metric"]): row["value"] for row in rows}
    assert len(result) == len(rows)
    return result


def test_rows_of_samples(rng, masks):
    real, samples = rng.normal(size=SHAPE), rng.normal(size=(8, *SHAPE))
    rows = score_samples(real, samples, masks, unit="HU", sources=SOURCES)
    body, lung = masks["body"], masks["lung"]

    def mean_over_halves(score):
        return (score(samples[[0, 2, 4, 6]]) + score(samples[[1, 3, 5, 7]])) / 2

    def of_blocks(size):
        return mean_over_halves(lambda half: crps(block_means(half, body, size), block_means(real, body, size)).mean())

    def of_means(mask):
        return mean_over_halves(lambda half: float(crps(half[:, mask].mean(axis=1), real[mask].mean())))

    expected = {
        ("body", "crps"): mean_over_halves(lambda half: crps(half[:, body], real[body]).mean()),
        ("body", "crps_4"): of_blocks(4),
        ("body", "crps_8"): of_blocks(8),
        ("body", "coverage_80"): mean_over_halves(lambda half: coverage(half[:, body], real[body], level=0.8)),
        ("body", "spread_skill"): mean_over_halves(lambda half: spread_skill(half[:, body], real[body])),
        ("body", "rank_correlation"): spread_error_correlation(samples[:, body], real[body]),
        ("body", "crps_mean"): of_means(body),
        ("lung", "crps_mean"): of_means(lung),
    }
    assert by_name(rows) == pytest.approx(expected)
    units = {row["metric"]: row["unit"] for row in rows}
    assert {name for name, unit in units.items() if unit == "1"} == {"coverage_80", "spread_skill", "rank_correlation"}
    assert {unit for name, unit in units.items() if name.startswith("crps")} == {"HU"}


@pytest.mark.parametrize("alike", [-1.0, -0.7, 0.0])
def test_pairs_of_mirrored_samples_are_scored_without_bias(rng, alike):
    """Calibrated samples whose pairs are correlated: the scores are those of independent ones."""
    shape = (1, 160, 160)
    first, other = rng.normal(size=(2, 4, *shape))
    second = alike * first + math.sqrt(1 - alike**2) * other
    samples, real = np.stack([first, second], axis=1).reshape(8, *shape), rng.normal(size=shape)
    masks, sources = {"body": np.ones(shape, bool)}, {"body": "all"}
    rows = {row["metric"]: row["value"] for row in score_samples(real, samples, masks, unit="HU", sources=sources)}
    assert rows["crps"] == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    assert rows["crps_4"] == pytest.approx(1 / math.sqrt(math.pi) / 4, abs=0.01)
    assert rows["spread_skill"] == pytest.approx(1, abs=0.02)
    assert rows["coverage_80"] == pytest.approx(0.8, abs=0.01)
    assert np.square(spread(samples)).mean() == pytest.approx(1, abs=0.02)
    if alike == -1:
        assert abs(crps(samples, real).mean() - 1 / math.sqrt(math.pi)) > 0.03, (
            "taken as independent they are not right"
        )


def test_the_spread_of_few_samples():
    samples = np.array([[1.0], [3.0], [5.0], [5.0], [100.0]])
    assert spread(samples[:1]) == 0
    assert spread(samples[:2]) == 1, "of a pair: half of the difference"
    assert spread(samples[:3]) == pytest.approx(samples[:3].std())
    assert spread(samples) == pytest.approx(math.sqrt((8 + 2) / 2)), "1 and 5, 3 and 5; the last one has no partner"


def test_halves_have_one_of_each_pair():
    even, odd = independent_halves(np.arange(7)[:, None])
    assert (even.ravel().tolist(), odd.ravel().tolist()) == ([0, 2, 4], [1, 3, 5])
    with pytest.raises(ValueError, match="3 samples: 4 is the least, two pairs"):
        independent_halves(np.ones((3, 5)))


def test_rows_of_an_error_map_by_hand(masks):
    real, image, scale = np.zeros(SHAPE), np.full(SHAPE, 2.0), np.ones(SHAPE)
    scale[1] = 3.0
    result = by_name(score_error_map(real, image, scale, masks, unit="SUV", sources=SOURCES))

    def two_slices(score, scale_of):
        return (score(2.0, scale_of(1), 0.0) + score(2.0, scale_of(3), 0.0)) / 2

    expected = {
        ("body", "crps"): two_slices(crps_laplace, float),
        ("body", "crps_4"): two_slices(crps_normal, lambda b: math.sqrt(2) * b / 4),
        ("body", "crps_4_dependent"): two_slices(crps_laplace, float),
        ("body", "crps_8"): two_slices(crps_normal, lambda b: math.sqrt(2) * b / 8),
        ("body", "crps_8_dependent"): two_slices(crps_laplace, float),
        ("body", "coverage_80"): 0.5,  # ln 5 = 1.61 and 3 ln 5 = 4.83 around an error of 2
        ("body", "spread_skill"): math.sqrt(2 * (1 + 9) / 2) / 2,
        ("body", "crps_mean"): crps_normal(2.0, math.sqrt(2 * 5 / masks["body"].sum()), 0.0),
        ("body", "crps_mean_dependent"): crps_laplace(2.0, 2.0, 0.0),
        ("lung", "crps_mean"): crps_normal(2.0, math.sqrt(2 / 21), 0.0),
        ("lung", "crps_mean_dependent"): crps_laplace(2.0, 1.0, 0.0),
    }
    assert result == pytest.approx(expected)  # no rank correlation: the error is constant


def test_both_give_the_same_scores_of_the_same_distribution(rng):
    """Samples of independent Laplace errors, and their map."""
    shape, draws = (1, 48, 48), 8
    scale, image = rng.uniform(1, 20, shape), rng.normal(0, 100, shape)
    real, samples = image + rng.laplace(0, scale), image + rng.laplace(0, scale, (draws, *shape))
    masks, sources = {"body": np.ones(shape, bool)}, {"body": "all"}
    both = [
        {row["metric"]: row["value"] for row in rows}
        for rows in (
            score_samples(real, samples, masks, unit="HU", sources=sources),
            score_error_map(real, image, scale, masks, unit="HU", sources=sources),
        )
    ]
    assert {name for name in both[1] if name not in both[0]} == {f"crps_{x}_dependent" for x in ("4", "8", "mean")}
    tolerances = {"crps": 0.3, "crps_4": 0.2, "crps_8": 0.2, "coverage_80": 0.03, "spread_skill": 0.1}
    for name, tolerance in tolerances.items():
        assert both[0][name] == pytest.approx(both[1][name], abs=tolerance), name
    assert both[1]["crps_8"] < both[1]["crps_8_dependent"]  # they are independent here, and the score says so
    assert both[1]["coverage_80"] == pytest.approx(0.8, abs=0.03)
    assert both[1]["spread_skill"] == pytest.approx(1, abs=0.1)
    assert min(rows["rank_correlation"] for rows in both) > 0.2


def test_errors_that_go_together_show_in_blocks(rng):
    """One error for a whole slice: voxels score alike, means show that independent samples are far too narrow."""
    shape = (50, 8, 8)
    real = np.broadcast_to(rng.normal(size=(50, 1, 1)), shape)
    together = np.broadcast_to(rng.normal(size=(8, 50, 1, 1)), (8, *shape))
    apart = rng.normal(size=(8, *shape))
    masks, sources = {"body": np.ones(shape, bool)}, {"body": "all"}
    one, other = (
        {row["metric"]: row["value"] for row in score_samples(real, samples, masks, unit="HU", sources=sources)}
        for samples in (together, apart)
    )
    assert one["crps"] == pytest.approx(other["crps"], rel=0.2)
    assert one["crps_8"] < 0.9 * other["crps_8"]


def test_few_samples_have_no_coverage(rng, masks):
    real, samples = rng.normal(size=SHAPE), rng.normal(size=(8, *SHAPE))
    inputs = {"masks": masks, "unit": "HU", "sources": SOURCES}
    of_8, of_7 = ({row["metric"] for row in score_samples(real, samples[:n], **inputs)} for n in (8, 7))
    assert of_8 - of_7 == {"coverage_80"}


def test_no_block_in_the_body_is_no_row(rng):
    body = np.zeros(SHAPE, bool)
    body[0, 1:9, 1:9] = True  # one block of 4x4, none of 8x8
    real, samples = rng.normal(size=SHAPE), rng.normal(size=(4, *SHAPE))
    for rows in (
        score_samples(real, samples, {"body": body}, unit="HU", sources=SOURCES),
        score_error_map(real, samples[0], np.abs(samples[1]), {"body": body}, unit="HU", sources=SOURCES),
    ):
        names = {row["metric"] for row in rows}
        assert "crps_4" in names
        assert not {name for name in names if name.startswith("crps_8")}


def test_only_the_masks_count(rng, masks):
    real, samples = rng.normal(size=SHAPE), rng.normal(size=(4, *SHAPE))
    fixed = {"masks": masks, "unit": "HU", "sources": SOURCES}
    moved = samples + 100 * ~masks["body"]
    assert score_samples(real, samples, **fixed) == score_samples(real, moved, **fixed)
    maps = [score_error_map(real, many[0], np.abs(many[1]), **fixed) for many in (samples, moved)]
    assert maps[0] == maps[1]


SAMPLE_SCORES = [
    crps,
    coverage,
    spread_skill,
    spread_error_correlation,
    lambda samples, real: rank_histogram(samples, real, np.random.default_rng(0)),
]


@pytest.mark.parametrize("score", SAMPLE_SCORES)
def test_samples_that_cannot_be_scored_are_an_error(score):
    samples, real = np.ones((3, 4, 5)), np.ones((4, 5))
    for wrong in (real[:1], real[0], samples):  # the last broadcasts
        with pytest.raises(ValueError, match=r"samples \(3, 4, 5\).*not of \("):
            score(samples, wrong)
    with pytest.raises(ValueError, match=r"samples \(0, 4, 5\).*0 samples"):
        score(samples[:0], real)
    with pytest.raises(ValueError, match="no values"):
        score(samples[:, :0], real[:0])
    bad = samples.copy()
    bad[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="samples has 1 non-finite values of 60"):
        score(bad, real)
    with pytest.raises(ValueError, match="real has 1 non-finite values of 20"):
        score(samples, bad[0])


@pytest.mark.parametrize("score", [coverage, spread_skill, spread_error_correlation])
def test_one_sample_has_no_spread(score):
    with pytest.raises(ValueError, match="1 samples, 2 is the least"):
        score(np.ones((1, 5)), np.ones(5))


@pytest.mark.parametrize("level", [0, 1, -0.1, math.nan])
def test_a_level_is_between_0_and_1(level):
    with pytest.raises(ValueError, match="level"):
        coverage(np.ones((2, 5)), np.ones(5), level)


@pytest.mark.parametrize("score", [crps_laplace, crps_normal])
def test_a_map_that_cannot_be_scored_is_an_error(score):
    ones = np.ones((4, 5))
    with pytest.raises(ValueError, match=r"location \(4, 5\), scale \(1, 5\) and real \(4, 5\)"):
        score(ones, ones[:1], ones)
    with pytest.raises(ValueError, match="scale has 20 values of 20 below 0"):
        score(ones, -ones, ones)
    with pytest.raises(ValueError, match="real has 20 non-finite"):
        score(ones, ones, math.inf * ones)


def test_block_means_of_wrong_masks_are_an_error():
    stack = np.ones((3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"mask \(4, 4\) of bool.*\(3, 2, 4, 4\)"):
        block_means(stack, np.ones((4, 4), bool), 2)
    with pytest.raises(ValueError, match=r"mask \(1, 4, 4\)"):
        block_means(stack, np.ones((1, 4, 4), bool), 2)
    with pytest.raises(ValueError, match="float64"):
        block_means(stack, stack[0], 2)
    with pytest.raises(ValueError, match="0 pixels"):
        block_means(stack, np.ones((2, 4, 4), bool), 0)


def test_masks_that_cannot_be_scored_by_are_an_error(masks):
    real, samples = np.zeros(SHAPE), np.zeros((4, *SHAPE))

    def both(match, masks, sources=SOURCES):
        with pytest.raises(ValueError, match=match):
            score_samples(real, samples, masks, unit="HU", sources=sources)
        with pytest.raises(ValueError, match=match):
            score_error_map(real, real, real + 1, masks, unit="HU", sources=sources)

    both("must have body", {"lung": masks["lung"]})
    both("each a source", masks, {"body": "the body's"})
    both(r"mask lung \(1, 16, 16\).*\(2, 16, 16\)", {**masks, "lung": masks["lung"][:1]})
    both("mask lung", {**masks, "lung": masks["lung"].astype(int)})
    both("empty mask", {"body": masks["lesion"]})
    with pytest.raises(ValueError, match="1 samples, 4 is the least"):
        score_samples(real, samples[:1], masks, unit="HU", sources=SOURCES)
    with pytest.raises(ValueError, match="stack"):
        score_samples(real[0], samples[:, 0], {"body": masks["body"][0]}, unit="HU", sources=SOURCES)
