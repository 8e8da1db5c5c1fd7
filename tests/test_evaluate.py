"""Scoring of a patient's translations, with translations whose scores are known."""

import numpy as np
import pytest

from petct_lib.data import mean_atlas
from petct_lib.evaluate import Case, middle_slice, score_case, spread_correlation, translate_patient
from petct_lib.files import read_json
from petct_lib.intensity import Intensity
from petct_lib.prepare import Prepared
from petct_lib.translate import Translator


def case_of(prepared, kind, **images):
    patient = prepared.patients[0]
    pet, ct, body, lung = (np.array(prepared.of_patient(patient, k)) for k in ("pet", "ct", "body", "lung"))
    source, real = (pet, ct) if kind == "ct" else (ct, pet)
    made = {name: make(real, body) for name, make in images.items()}
    sources = {"body": "HU threshold", "lung": "SEG"}
    return Case(patient, source, real, {"body": body, "lung": lung}, sources, made, np.zeros(real.shape))


def value(rows, method, metric, region="body"):
    [found] = [r["value"] for r in rows if (r["method"], r["metric"], r["region"]) == (method, metric, region)]
    return found


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
    monkeypatch.setattr("petct_lib.perceptual.lpips", lambda real, synthetic, model, window: window[1])
    assert value(score_case(case, "pet2ct", Intensity(), object()), "perfect", "lpips") == 400.0


def test_methods_of_a_run_are_what_they_say(smoke_run):
    prepared, splits = Prepared(smoke_run / "prepared"), read_json(smoke_run / "splits.json")
    translator = Translator(smoke_run)
    case = translate_patient(smoke_run, prepared, splits, splits["test"][0], "pet2ct", translator, samples=2, seed=0)
    assert list(case.images) == ["copy", "atlas", "cyclegan", "refiner_l1", "refined"]
    assert all(image.shape == case.source.shape for image in case.images.values())
    assert np.array_equal(case.images["atlas"][0], mean_atlas(prepared, splits["train_ct"], "ct"))
    whole = translator(case.source, "pet2ct", samples=2, seed=0)
    assert np.array_equal(case.images["refined"], whole.refined)
    assert np.array_equal(case.images["cyclegan"], whole.coarse)
    assert np.array_equal(case.std, whole.std)
    assert not np.array_equal(case.images["refined"], case.images["refiner_l1"])


def test_middle_slice_is_the_middle_one(prepared):
    case = case_of(prepared, "ct", cyclegan=lambda real, body: real + 1, refined=lambda real, body: real + 2)
    row, k = middle_slice(case), len(case.real) // 2
    assert np.array_equal(row["real"], case.real[k])
    assert np.array_equal(row["refined"], case.real[k] + 2)
    assert np.array_equal(row["coarse"], case.real[k] + 1)
    assert np.array_equal(row["source"], case.source[k])


def test_spread_correlation():
    real, body = np.zeros((1, 4, 4)), np.ones((1, 4, 4), bool)
    error = np.arange(16.0).reshape(1, 4, 4)

    def correlation(std):
        return spread_correlation(
            Case("p", real, real, {"body": body}, {"body": "HU threshold"}, {"refined": error}, std)
        )

    assert correlation(error**2) == pytest.approx(1)
    assert correlation(-error) == pytest.approx(-1)
    assert correlation(np.zeros((1, 4, 4))) is None
