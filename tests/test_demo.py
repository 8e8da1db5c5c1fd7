"""The slim run translates as the whole one does, and is small; the demo's patient is what its DICOM says."""

import numpy as np
import pytest
import torch
from small_run import small_run

from petct_lib import InputError, demo
from petct_lib.__main__ import main
from petct_lib.checkpoints import load_checkpoint
from petct_lib.cyclegan import DIRECTIONS
from petct_lib.data import SOURCE
from petct_lib.files import read_json
from petct_lib.translate import Translator


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = small_run(prepared, tmp_path_factory.mktemp("demo") / "run")
    (folder / demo.CARD).write_text("# Model card")
    return folder


@pytest.fixture(scope="module")
def slim(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("slim") / "run"
    return out, demo.slim(run, out)


def test_a_slim_run_translates_as_the_whole_one_but_for_half_precision(run, slim, prepared):
    whole, small = Translator(run), Translator(slim[0])
    for direction in DIRECTIONS:
        source = np.array(prepared.array(prepared.studies()[0], SOURCE[direction]))
        a, b = (t(source, direction, samples=2, steps=2) for t in (whole, small))
        scale = np.ptp(a.image)
        for name in ("coarse", "image", "spread"):
            assert np.abs(getattr(a, name) - getattr(b, name)).max() < 0.02 * scale, (direction, name)


def test_a_slim_run_is_small_and_holds_no_patient(run, slim):
    out, size = slim
    assert size == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert size < sum((run / "checkpoints" / f"{name}.pt").stat().st_size for name in demo.NETWORKS) / 3
    kept = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    weights = {f"checkpoints/{name}.pt" for name in demo.NETWORKS}
    assert kept == weights | {"stages.json", "intensity.json", "model_card.md"}
    assert set(read_json(out / "stages.json")) == set(demo.KEPT_STAGES)


def test_no_training_goes_on_from_a_slim_checkpoint(tmp_path):
    import tiny

    path = tmp_path / "gan.pt"
    tiny.train(path, steps=3)
    torch.save(demo._slim_state(load_checkpoint(path)), path)
    with pytest.raises(InputError, match="averaged weights alone"):
        tiny.train(path, steps=3, resume=True)


def test_slim_refuses_an_unfinished_run_and_a_folder_that_is_there(run, slim, tmp_path, capsys):
    with pytest.raises(InputError, match=r"is not a finished run, intensity\.json"):
        demo.slim(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        demo.slim(run, slim[0])
    assert main(["slim", str(run), "--out", str(tmp_path / "small")]) == 0
    assert "MB" in capsys.readouterr().out


def test_the_shipped_run_is_under_6_mb_and_says_what_it_is():
    files = [p for p in demo.FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 6e6
    card = (demo.FOLDER / demo.CARD).read_text()
    assert "not for diagnosis" in card.lower()
    Translator(demo.FOLDER)


def test_the_demos_patient_is_read_back_from_dicom_on_the_runs_grid(tmp_path):
    patient = demo.example(demo.FOLDER, tmp_path / "patient")
    grid = read_json(demo.FOLDER / "stages.json")["grid"]
    assert patient.pet_suv.shape == patient.ct_hu.shape == patient.body.shape
    assert patient.ct_hu.shape[1:] == (grid["size"], grid["size"])
    assert patient.spacing_mm == pytest.approx((grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]))
    assert -1024 <= patient.ct_hu.min() < -900
    assert patient.ct_hu[patient.body].max() > 300
    again = demo.example(demo.FOLDER, tmp_path / "patient")
    assert np.array_equal(again.ct_hu, patient.ct_hu)
    fingerprint = demo.new_patient(tmp_path / "patient").fingerprint
    assert fingerprint != read_json(demo.FOLDER / "stages.json")["data_fingerprint"]


def test_a_run_with_its_slices_shows_its_own_test_patient(run, prepared, tmp_path):
    patient = demo.example(run, tmp_path)
    test = prepared.studies([read_json(run / "splits.json")["test"][0]])[0]
    assert np.array_equal(patient.pet_suv, prepared.array(test, "pet"))
    assert patient.spacing_mm[0] == prepared.index["grid"]["slice_mm"]
    assert not list(tmp_path.iterdir()), "nothing is made"
