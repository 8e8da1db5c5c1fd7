"""Scoring of a patient's translations, with translations whose scores are known."""

from dataclasses import replace

import numpy as np
import pytest
import small_run
from scored_cases import SAMPLED, case_of, translated, value

from petct_lib.data.splits import read_splits
from petct_lib.evaluation.cases import Case, load_case
from petct_lib.evaluation.compare import EVERYONE
from petct_lib.evaluation.methods import METHODS, mean_atlas
from petct_lib.evaluation.scoring import (
    keep_few_slices,
    score_case,
    score_test_patients,
    summarise_samples,
    two_sample_accuracies,
    two_sample_rows,
)
from petct_lib.imaging.intensity import Intensity
from petct_lib.metrics import distribution
from petct_lib.metrics.rows import check_rows


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    return small_run.small_run(prepared, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def atlas(prepared, run):
    return mean_atlas(prepared, read_splits(run)["train_ct"], "ct")


@pytest.fixture(scope="module")
def case(prepared, run, atlas):
    """The first test patient by all methods, PET to CT."""
    return translated(prepared, run, atlas)


def test_a_perfect_method_and_a_shifted_one(prepared):
    case = case_of(prepared, "ct", perfect=lambda real, body: real, shifted=lambda real, body: real + 50)
    rows = score_case(case, "pet2ct", Intensity())
    assert value(rows, "perfect", "mae") == 0
    assert value(rows, "perfect", "psnr") == np.inf
    assert value(rows, "perfect", "ssim") == 1
    assert value(rows, "shifted", "mae") == pytest.approx(50, abs=1e-3)
    assert {r["unit"] for r in rows if r["metric"] == "mae"} == {"HU"}
    assert {r["patient"] for r in rows} == {prepared.patients[0]}


def test_regions_are_scored_by_themselves_and_say_where_their_masks_come_from(prepared):
    case = case_of(prepared, "ct", wrong_lungs=lambda real, body: np.where(real < -400, real + 50, real))
    case = Case(**{**vars(case), "masks": {**case.masks, "lesion": np.zeros_like(case.body)}})
    case.sources["lesion"] = "SEG"
    rows = score_case(case, "pet2ct", Intensity())
    lung = case.masks["lung"]
    expected = 50 * np.mean(case.real[lung] < -400)
    assert value(rows, "wrong_lungs", "mae", "lung") == pytest.approx(expected, abs=1e-3)
    assert value(rows, "wrong_lungs", "mae") < expected
    assert {r["mask"] for r in rows if r["region"] == "lung"} == {"SEG"}
    assert {r["mask"] for r in rows if r["region"] == "body"} == {"HU threshold"}
    assert not [r for r in rows if r["region"] == "lesion"], "there is none to score"


def test_air_and_couch_do_not_count(prepared):
    case = case_of(prepared, "pet", outside=lambda real, body: np.where(body, real, 9.0))
    assert value(score_case(case, "ct2pet", Intensity()), "outside", "mae") == 0


def test_lpips_is_scored_with_a_model_only(prepared, monkeypatch):
    case = case_of(prepared, "ct", perfect=lambda real, body: real)
    assert "lpips" not in {r["metric"] for r in score_case(case, "pet2ct", Intensity())}
    monkeypatch.setattr("petct_lib.metrics.perceptual.lpips", lambda real, synthetic, model, window: window[1])
    assert value(score_case(case, "pet2ct", Intensity(), object()), "perfect", "lpips") == 400.0


def test_samples_are_scored_as_a_distribution_under_their_mean(case):
    rows = score_case(case, "pet2ct", Intensity())
    of_samples = {"crps", "crps_4", "crps_8", "coverage_80", "spread_skill", "rank_correlation", "crps_mean"}
    for method in METHODS:
        metrics = {row["metric"] for row in rows if row["method"] == method}
        assert (of_samples <= metrics) == (method in ("mean", "unpaired_mean")), method
        assert bool(of_samples & metrics) == (method in ("mean", "unpaired_mean")), method
    halves = (distribution.crps(case.samples["mean"][k::2, case.body], case.real[case.body]) for k in (0, 1))
    assert value(rows, "mean", "crps") == pytest.approx(np.mean(list(halves)), rel=1e-5)
    assert {row["region"] for row in rows if row["metric"] == "crps_mean"} >= {"body", "lung"}


def test_a_distribution_is_scored_in_the_range_of_the_errors(prepared):
    case = case_of(prepared, "pet", mean=lambda real, body: real)
    case.real[case.body] += 40.0  # far above the cap of the network's range
    stack = np.full((4, *case.real.shape), 15.0, np.float32)
    case = replace(case, images={"mean": stack[0]}, samples={"mean": stack}, scales={"mean": stack[0] / 15})
    rows = score_case(replace(case, scales={}), "ct2pet", Intensity())
    assert value(rows, "mean", "mae") == value(rows, "mean", "crps") == 0
    of_map = score_case(replace(case, samples={}), "ct2pet", Intensity())
    assert value(of_map, "mean", "crps") == pytest.approx(0.25), "b / 4 where nothing is wrong"


def test_a_regression_with_a_laplace_scale_is_scored_with_it(prepared, atlas, tmp_path):
    run = small_run.small_run(prepared, tmp_path / "run")
    small_run.refiner(run, "pet2ct", 0, laplace=True)
    case = translated(prepared, run, atlas, methods=("regression", "mean"))
    assert list(case.scales) == ["regression"]
    rows = score_case(case, "pet2ct", Intensity())
    stacks = (stack[case.body] for stack in (case.images["regression"], case.scales["regression"], case.real))
    assert value(rows, "regression", "crps") == pytest.approx(distribution.crps_laplace(*stacks).mean(), rel=1e-5)
    assert "crps_4_dependent" in {row["metric"] for row in rows if row["method"] == "regression"}
    assert "regression" not in translated(prepared, run, atlas, methods=("mean",)).scales


def test_a_summary_has_the_spread_and_the_ranks_in_place_of_the_samples(case):
    short = summarise_samples(case)
    assert short.samples == {}
    assert np.array_equal(short.spread, distribution.spread(case.samples["mean"]))
    assert np.array_equal(short.drawn, case.samples["mean"][:, len(case.real) // 2]), "of the middle slice"
    below = [(case.samples["mean"][k::2] < case.real)[:, case.body].sum(axis=0) for k in (0, 1)]
    assert short.ranks.sum() == 2 * case.body.sum(), "in each half"
    expected = np.bincount(np.concatenate(below), minlength=5)
    assert np.abs(short.ranks - expected).sum() < 0.02 * case.body.sum(), "but for ties"
    two = summarise_samples(replace(case, samples={"mean": case.samples["mean"][:2]}))
    assert two.ranks is None
    assert two.spread.any()
    one = summarise_samples(replace(case, samples={"mean": case.samples["mean"][:1]}))
    assert (one.samples, one.ranks) == ({}, None)
    assert not one.spread.any()
    none = summarise_samples(replace(case, samples={}))
    assert none.spread is none.ranks is none.drawn is None


def test_patients_are_scored_one_a_core_as_in_a_row(prepared, run, atlas):
    values = {**SAMPLED, "methods": ("cyclegan", "mean")}
    rows, cases = score_test_patients(run, "pet2ct", **values)
    assert [case.patient for case in cases] == read_splits(run)["test"]
    assert {row["method"] for row in rows} == {"cyclegan", "mean"}
    assert all(case.samples == {} and case.spread is not None for case in cases)
    case = translated(prepared, run, atlas, methods=values["methods"])
    first = [row for row in rows if row["patient"] == case.patient]
    assert first == score_case(case, "pet2ct", Intensity())


def test_a_synthetic_ct_is_scored_by_what_it_is_for(prepared):
    case = case_of(prepared, "ct", perfect=lambda real, body: real, solid=lambda real, body: np.where(body, 40.0, real))
    case = replace(case, voxel_mm=(16.0, 10.0, 10.0), kvp=120.0)
    rows = score_case(case, "pet2ct", Intensity())
    assert value(rows, "perfect", "mu_error") == value(rows, "perfect", "mu_bias") == 0
    assert value(rows, "perfect", "dice", "lung") == 1
    assert value(rows, "solid", "mu_bias") > 5, "lungs of muscle attenuate more"
    assert value(rows, "solid", "dice", "lung") == 0
    assert {r["unit"] for r in rows if r["metric"] in ("mu_error", "mu_bias", "shift_gain")} == {"%"}
    assert value(rows, "perfect", "shift_gain") == 0
    pet = case_of(prepared, "pet", perfect=lambda real, body: real)
    assert not {"mu_error", "dice"} & {r["metric"] for r in score_case(pet, "ct2pet", Intensity())}


def test_lesions_and_coherence_are_scored(prepared):
    case = case_of(prepared, "pet", perfect=lambda real, body: real, empty=lambda real, body: real * 0)
    lesion = np.zeros_like(case.body)
    k, i, j = np.argwhere(case.body & (case.real > 0.2))[0]
    lesion[k, i, j] = True
    case = Case(**{**vars(case), "masks": {**case.masks, "lesion": lesion}, "voxel_mm": (16.0, 10.0, 10.0)})
    case.sources["lesion"] = "SEG"
    rows = score_case(case, "ct2pet", Intensity())
    assert value(rows, "perfect", "coherence") == pytest.approx(1)
    assert value(rows, "empty", "coherence") == 0
    assert value(rows, "perfect", "suvmax_error", "lesion") == 0
    assert value(rows, "empty", "suvmax_error", "lesion") == pytest.approx(case.real[k, i, j])
    assert value(rows, "perfect", "missed", "lesion") == 0
    assert value(rows, "empty", "missed", "lesion") == value(rows, "empty", "lesions", "lesion") == 1


def test_without_a_mask_of_lesions_invented_ones_are_counted_still(prepared):
    case = case_of(prepared, "pet", hot=lambda real, body: np.where(body, 12.0, real), perfect=lambda real, body: real)
    case = Case(**{**vars(case), "voxel_mm": (16.0, 10.0, 10.0)})
    assert "lesion" not in case.masks
    rows = score_case(case, "ct2pet", Intensity())
    assert value(rows, "perfect", "invented", "lesion") == 0
    assert value(rows, "hot", "invented", "lesion") >= 1
    assert {r["metric"] for r in rows if r["region"] == "lesion"} == {"invented"}


def test_a_lesion_does_not_go_on_in_the_next_study():
    real = np.ones((4, 16, 16), np.float32)
    real[1:3, 2:4, 2:4] = 8  # the end of one study and the beginning of the next
    body, lesion = np.ones(real.shape, bool), real > 4
    values = Case("p", None, real, {"body": body, "lesion": lesion}, {"body": "SEG", "lesion": "SEG"}, {"same": real},
                 lengths=(2, 2), voxel_mm=(5.0, 5.0, 5.0))  # fmt: skip
    counts = [
        value(score_case(case, "ct2pet", Intensity()), "same", "lesions", "lesion")
        for case in (values, replace(values, lengths=(4,)))
    ]
    assert counts == [2, 1]


def test_two_sample_accuracy_tells_a_flat_image_and_not_the_real_one():
    rng, cases = np.random.default_rng(0), []
    body = np.ones((8, 16, 16), bool)
    for patient in "abcd":
        real = rng.normal(0, 300, (8, 16, 16)).astype(np.float32)
        images = {"same": real, "flat": np.zeros_like(real)}
        cases.append(Case(patient, None, real, {"body": body}, {"body": "HU threshold"}, images))
    accuracies = two_sample_accuracies(cases, ("flat", "same"), "pet2ct", Intensity(), 0)
    assert list(accuracies) == ["flat", "same"]
    assert accuracies["same"] == pytest.approx(0.5)
    assert accuracies["flat"] > 0.9
    rows = two_sample_rows({**accuracies, "alone": None}, "pet2ct")
    assert [(row["method"], row["value"]) for row in rows] == list(accuracies.items())
    check_rows(rows)
    assert {(row["patient"], row["metric"], row["region"]) for row in rows} == {
        (EVERYONE, "two_sample_accuracy", "body")
    }
    alone = two_sample_accuracies(cases[:1], ("flat",), "pet2ct", Intensity(), 0)
    assert alone == {"flat": None}, "nobody to judge it on"


def test_what_goes_to_another_process_is_small():
    stack = np.zeros((60, 4, 4))
    one = {"mean": stack}
    case = Case("p", stack, stack, {"body": stack > 0, "lung": stack > 0}, {}, one, one, one, stack, np.ones(3))
    few = keep_few_slices(case)
    assert few.source is few.spread is few.ranks is few.drawn is None
    assert few.samples == few.scales == {}
    assert few.real.shape == few.images["mean"].shape == few.body.shape == (24, 4, 4)
    assert list(few.masks) == ["body"]


def test_attenuation_is_scored_by_the_tube_voltage_of_the_real_ct_alone(prepared):
    case = load_case(prepared, prepared.patients[0], "pet2ct")
    assert case.kvp == 140, "the first patient's scanner"
    result = {}
    for kvp in (140.0, 120.0, 135.0, None):  # Carney 2006 has no 135
        rows = score_case(replace(case, kvp=kvp, images={"bone": case.real + 500}), "pet2ct", Intensity())
        result[kvp] = [row["value"] for row in rows if row["metric"] == "mu_bias"]
    assert result[140.0][0] > result[120.0][0] > 0, "the line above the break is steeper"
    assert result[135.0] == result[None] == []
