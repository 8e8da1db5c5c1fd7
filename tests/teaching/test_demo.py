"""The slim run translates as the whole one does, and is small; the demo's patient is what its DICOM says."""

import numpy as np
import pytest
from small_run import small_run

from petct_lib.common.files import read_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.inference.translator import Translator
from petct_lib.teaching import demo


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = small_run(prepared, tmp_path_factory.mktemp("demo") / "run")
    RunFolder(folder).model_card.write_text("# Model card")
    return folder


def test_the_shipped_run_is_under_6_mb_and_says_what_it_is():
    files = [p for p in demo.FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 6e6
    card = RunFolder(demo.FOLDER).model_card.read_text()
    assert "not for diagnosis" in card.lower()
    Translator(demo.FOLDER)


def test_the_demos_patient_is_read_back_from_dicom_on_the_runs_grid(tmp_path):
    patient = demo.load_example(demo.FOLDER, tmp_path / "patient")
    grid = read_json(demo.FOLDER / "stages.json")["grid"]
    assert patient.pet_suv.shape == patient.ct_hu.shape == patient.body.shape
    assert patient.ct_hu.shape[1:] == (grid["size"], grid["size"])
    assert patient.spacing_mm == pytest.approx((grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]))
    assert -1024 <= patient.ct_hu.min() < -900
    assert patient.ct_hu[patient.body].max() > 300
    again = demo.load_example(demo.FOLDER, tmp_path / "patient")
    assert np.array_equal(again.ct_hu, patient.ct_hu)
    fingerprint = demo.make_new_patient(tmp_path / "patient").fingerprint
    assert fingerprint != read_json(demo.FOLDER / "stages.json")["data_fingerprint"]


def test_a_run_with_its_slices_shows_its_own_test_patient(run, prepared, tmp_path):
    patient = demo.load_example(run, tmp_path)
    test = prepared.studies([read_json(run / "splits.json")["test"][0]])[0]
    assert np.array_equal(patient.pet_suv, prepared.array(test, "pet"))
    assert patient.spacing_mm[0] == prepared.index["grid"]["slice_mm"]
    assert not list(tmp_path.iterdir()), "nothing is made"
