"""Scoring of methods on patients, with methods whose scores are known."""

import numpy as np
import pytest

from petct_lib.data import Prepared, mean_atlas
from petct_lib.evaluate import methods, score_patients
from petct_lib.files import read_json
from petct_lib.intensity import Intensity
from petct_lib.translate import Translator


def value(rows, method, metric):
    return [r["value"] for r in rows if r["method"] == method and r["metric"] == metric]


def test_a_perfect_method_and_a_shifted_one(prepared):
    patient = prepared.patients[0]
    real = np.array(prepared.of_patient(patient, "ct"))
    named = {"perfect": lambda source: real, "shifted": lambda source: real + 50}
    rows = score_patients(prepared, [patient], "pet2ct", named, Intensity())
    assert value(rows, "perfect", "mae") == [0]
    assert value(rows, "perfect", "psnr") == [np.inf]
    assert value(rows, "perfect", "ssim") == [1]
    assert value(rows, "shifted", "mae") == pytest.approx([50], abs=1e-3)
    assert {r["unit"] for r in rows if r["metric"] == "mae"} == {"HU"}
    assert {r["patient"] for r in rows} == {patient}


def test_air_and_couch_do_not_count(prepared):
    patient = prepared.patients[0]
    real, body = (np.array(prepared.of_patient(patient, kind)) for kind in ("pet", "body"))
    named = {"wrong outside": lambda source: np.where(body, real, 9.0)}
    rows = score_patients(prepared, [patient], "ct2pet", named, Intensity())
    assert value(rows, "wrong outside", "mae") == [0]


def test_methods_of_a_run_are_what_they_say(smoke_run):
    prepared, splits = Prepared(smoke_run / "prepared"), read_json(smoke_run / "splits.json")
    named = methods(smoke_run, prepared, splits, "pet2ct", Translator(smoke_run), 2, 0)
    assert list(named) == ["copy", "atlas", "cyclegan", "refiner_l1", "refined"]
    source = np.array(prepared.of_patient(splits["test"][0], "pet"))
    images = {name: method(source) for name, method in named.items()}
    assert all(image.shape == source.shape for image in images.values())
    assert np.array_equal(images["atlas"][0], mean_atlas(prepared, splits["train_ct"], "ct"))
    assert not np.array_equal(images["refined"], images["refiner_l1"])
    assert not np.array_equal(images["cyclegan"], images["refiner_l1"])
