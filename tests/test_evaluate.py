"""Scoring of a patient's translations, with translations whose scores are known."""

from dataclasses import replace

import numpy as np
import pytest

from petct_lib.data import mean_atlas, read_splits
from petct_lib.evaluate import (
    Case,
    load_case,
    middle_slice,
    score_case,
    translate_patient,
    two_sample_accuracies,
    uncertainty_scores,
    with_further_regions,
)
from petct_lib.intensity import Intensity
from petct_lib.prepare import Prepared
from petct_lib.translate import Translator, load_refiner


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
    prepared, splits = Prepared(smoke_run / "prepared"), read_splits(smoke_run)
    translator = Translator(smoke_run)
    case = translate_patient(prepared, splits, splits["test"][0], "pet2ct", translator, samples=2, seed=0)
    assert list(case.images) == [
        "copy",
        "atlas",
        "cyclegan",
        "cyclegan_tta",
        "unet_l1",
        "pix2pix",
        "refiner_l1",
        "blend",
        "refined_distortion",
        "refined",
    ]
    assert all(image.shape == case.source.shape for image in case.images.values())
    assert np.array_equal(case.images["atlas"][0], mean_atlas(prepared, splits["train_ct"], "ct"))
    whole = translator(case.source, "pet2ct", samples=2, seed=0)
    assert np.array_equal(case.images["refined"], whole.refined)
    assert np.array_equal(case.images["cyclegan"], whole.coarse)
    assert np.array_equal(case.uncertainty, whole.uncertainty)
    for name, alpha in (("pix2pix", 0.0), ("refined_distortion", "distortion")):
        made = translator(case.source, "pet2ct", samples=2, seed=0, alpha=alpha)
        assert np.array_equal(case.images[name], made.refined), name
    x, coarse = translator.start(case.source, "pet2ct")
    assert np.array_equal(case.images["cyclegan_tta"], translator.unpaired(x, coarse, "pet2ct"))
    for name in ("unet_l1", "refiner_l1"):
        control = load_refiner(smoke_run / "checkpoints" / f"{name}_pet2ct.pt")
        regression = translator.image(control, x, coarse, "pet2ct", samples=1, seed=0)
        assert np.array_equal(case.images[name], regression), name
    assert np.allclose(case.images["blend"], (regression + whole.coarse) / 2, atol=1e-3)
    assert not np.array_equal(case.images["refined"], case.images["refiner_l1"])


def test_a_region_around_the_diaphragm_and_one_with_air_and_couch():
    body, lung = np.zeros((40, 16, 16), bool), np.zeros((40, 16, 16), bool)
    body[:, 4:12, 4:12] = True
    lung[20:30, 6:9, 6:9] = lung[35:, 6:9, 6:9] = True  # two studies, the second from slice 32 on
    real = np.where(body, 40.0 + np.arange(40)[:, None, None], -1000.0)
    given = Case("p", None, real, {"body": body, "lung": lung}, {"body": "HU threshold", "lung": "SEG"}, {},
                 lengths=(32, 8), voxel_mm=(10.0, 5.0, 5.0))  # fmt: skip
    case = with_further_regions(given)
    near = np.flatnonzero(case.masks["diaphragm"].any(axis=(1, 2)))
    assert near.tolist() == [*range(17, 24), *range(32, 39)], "30 mm on both sides of 20 and 35, within a study"
    assert case.masks["image"].all()
    assert case.sources["image"] == "none"
    case = replace(case, images={"off": np.where(body, real + 50, real)})
    rows = score_case(case, "pet2ct", Intensity())
    assert value(rows, "off", "mae", "diaphragm") == value(rows, "off", "mae") == 50
    assert value(rows, "off", "mae", "image") == pytest.approx(50 * body.mean()), "air makes any error small"
    assert value(rows, "off", "psnr", "image") > value(rows, "off", "psnr") + 3
    recess = lung.copy()
    recess[15:20, 6, 6:9] = True  # it goes further down behind, and that is not the dome
    deep = with_further_regions(replace(given, masks={"body": body, "lung": recess}))
    assert np.array_equal(deep.masks["diaphragm"], case.masks["diaphragm"])
    no_lung = with_further_regions(replace(given, masks={**given.masks, "lung": np.zeros_like(body)}))
    assert "diaphragm" not in no_lung.masks


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


def test_middle_slice_is_the_middle_one(prepared):
    case = case_of(prepared, "ct", cyclegan=lambda real, body: real + 1, refined=lambda real, body: real + 2)
    row, k = middle_slice(case), len(case.real) // 2
    assert np.array_equal(row["real"], case.real[k])
    assert np.array_equal(row["refined"], case.real[k] + 2)
    assert np.array_equal(row["coarse"], case.real[k] + 1)
    assert np.array_equal(row["source"], case.source[k])


def test_uncertainty_scores():
    real, body = np.zeros((1, 4, 5)), np.ones((1, 4, 5), bool)
    error = np.arange(20.0).reshape(1, 4, 5)

    def scores(expected):
        return uncertainty_scores(
            Case("p", None, real, {"body": body}, {"body": "HU threshold"}, {"refined": error}, expected)
        )

    assert scores(error) == {"rank_correlation": pytest.approx(1), "calibration_error": pytest.approx(0)}
    assert scores(2 * error) == {"rank_correlation": pytest.approx(1), "calibration_error": pytest.approx(1)}
    assert scores(19 - error)["rank_correlation"] == pytest.approx(-1)
    assert np.isnan(scores(np.ones_like(error))["rank_correlation"])


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
    given = Case("p", None, real, {"body": body, "lesion": lesion}, {"body": "SEG", "lesion": "SEG"}, {"same": real},
                 lengths=(2, 2), voxel_mm=(5.0, 5.0, 5.0))  # fmt: skip
    counts = [
        value(score_case(case, "ct2pet", Intensity()), "same", "lesions", "lesion")
        for case in (given, replace(given, lengths=(4,)))
    ]
    assert counts == [2, 1]


def test_two_sample_accuracy_tells_a_flat_image_and_not_the_real_one():
    rng, cases = np.random.default_rng(0), []
    body = np.ones((8, 16, 16), bool)
    for patient in "abcd":
        real = rng.normal(0, 300, (8, 16, 16)).astype(np.float32)
        images = {"same": real, "flat": np.zeros_like(real)}
        cases.append(Case(patient, None, real, {"body": body}, {"body": "HU threshold"}, images, real))
    told = two_sample_accuracies(cases, ("flat", "same"), "pet2ct", Intensity(), 0)
    assert list(told) == ["flat", "same"]
    assert told["same"] == pytest.approx(0.5)
    assert told["flat"] > 0.9
    alone = two_sample_accuracies(cases[:1], ("flat",), "pet2ct", Intensity(), 0)
    assert alone == {"flat": None}, "nobody to judge it on"


def test_attenuation_is_scored_by_the_tube_voltage_of_the_real_ct_alone(prepared):
    case = load_case(prepared, prepared.patients[0], "pet2ct")
    assert case.kvp == 140, "the first patient's scanner"
    found = {}
    for kvp in (140.0, 120.0, 135.0, None):  # Carney 2006 has no 135
        rows = score_case(replace(case, kvp=kvp, images={"bone": case.real + 500}), "pet2ct", Intensity())
        found[kvp] = [row["value"] for row in rows if row["metric"] == "mu_bias"]
    assert found[140.0][0] > found[120.0][0] > 0, "the line above the break is steeper"
    assert found[135.0] == found[None] == []


def test_studies_of_a_patient_are_scored_apart():
    chest, solid = np.full((12, 40, 40), -1000.0), np.full((12, 40, 40), -1000.0)
    body, lung = np.zeros(chest.shape, bool), np.zeros(chest.shape, bool)
    body[:, 4:36, 4:36] = True
    lung[2:10, 10:30, 8:18] = lung[2:10, 10:30, 22:32] = True
    chest[body] = solid[body] = 40.0
    chest[lung] = -850.0
    twice = {"body": np.concatenate([body, body])}
    real = np.concatenate([chest, chest])
    found = {}
    for name, parts in (("first", (chest, solid)), ("second", (solid, chest))):
        case = Case("p", None, real, twice, {"body": "HU threshold"}, {"m": np.concatenate(parts)},
                    lengths=(12, 12), voxel_mm=(10.0, 10.0, 10.0))  # fmt: skip
        rows = score_case(case, "pet2ct", Intensity())
        found[name] = value(rows, "m", "dice", "lung")
        assert [r["mask"] for r in rows if r["metric"] == "dice"] == ["HU threshold"]
    assert found["first"] == found["second"] == pytest.approx(0.5)
