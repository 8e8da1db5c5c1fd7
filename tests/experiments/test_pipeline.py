"""The pipeline as the commands run it: a finished run's files, bad input, and what must not be overwritten."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, petct

from petct_lib import InputError
from petct_lib.common.files import read_json, write_json
from petct_lib.data.prepare import input_key
from petct_lib.data.splits import ROLES
from petct_lib.evaluation import methods
from petct_lib.evaluation.tables import read_scores
from petct_lib.experiments.pipeline import (
    MAKES,
    _open_run,
    _provenance,
    fork,
    format_summary,
    open_run_folder,
    record,
    require_inputs,
    timed,
)
from petct_lib.experiments.profiles import NOTEBOOKS, load_params

METHODS = {name for name in methods.METHODS if not name.startswith("unpaired")}
METRICS = {"mae", "mse", "rmse", "psnr", "ssim", "spectrum"}


def test_a_run_leaves_what_the_architecture_names(tiny_run):
    for name in (*(f"notebooks/{n}.ipynb" for n in NOTEBOOKS), "checkpoints/cyclegan.pt", "metrics.json", "figures"):
        assert (tiny_run / name).exists(), name
    splits = read_json(tiny_run / "splits.json")
    assert list(splits) == list(ROLES)
    assert len({p for members in splits.values() for p in members}) == 8
    for patient in splits["test"]:
        for direction in ("pet2ct", "ct2pet"):
            assert any((tiny_run / "synthetic" / patient / direction / "image").glob("*.dcm"))


def test_scores_hold_every_method_and_metric_for_every_test_patient(tiny_run):
    rows, splits = read_scores(tiny_run / "scores.csv"), read_json(tiny_run / "splits.json")
    assert {r["patient"] for r in rows} == {*splits["test"], "all"}
    for direction in ("pet2ct", "ct2pet"):
        result = {(r["method"], r["metric"]) for r in rows if r["direction"] == direction}
        assert {(method, metric) for method in METHODS for metric in METRICS} <= result
    assert all(math.isfinite(r["value"]) for r in rows)
    assert {r["unit"] for r in rows if r["metric"] == "mae"} == {"HU", "SUV"}
    assert {(r["region"], r["mask"]) for r in rows} >= {
        ("body", "HU threshold"), ("lung", "SEG"), ("bone", "HU threshold"), ("lesion", "SEG"),
    }  # fmt: skip
    metrics = read_json(tiny_run / "metrics.json")
    key = ("pet2ct", "mean", "mae", "body")
    mine = [r["value"] for r in rows if (r["direction"], r["method"], r["metric"], r["region"]) == key]
    assert metrics["pet2ct"]["mean"]["body"]["mae"]["mean"] == pytest.approx(sum(mine) / len(mine))
    assert metrics["pet2ct"]["mean"]["body"]["mae"]["n"] == len(splits["test"])


def test_manifest_says_what_was_run(tiny_run):
    manifest = read_json(tiny_run / "manifest.json")
    assert manifest["finished"]
    assert manifest["parameters"]["02_cyclegan_training"]["steps"] == 4
    assert set(manifest["seconds"]) == set(NOTEBOOKS)
    assert manifest["stage_seconds"]["cyclegan training"] > 0
    assert manifest["peak_memory_mb"] > 100
    assert manifest["data_source"] == "phantom"
    assert len(manifest["data_fingerprint"]) == 64
    assert manifest["versions"]["torch"].startswith("2.")
    assert len(manifest["suv_rules"]) == 8  # all that `suv` knows, one a patient
    text = (tiny_run / "terminal.txt").read_text()
    assert "regression_without_coarse" in text
    assert str(tiny_run) in text
    assert "cyclegan training" in text


def test_no_patient_id_reaches_what_a_run_writes(tiny_run):
    for path in tiny_run.rglob("*"):
        if path.is_file() and "phantom" not in path.relative_to(tiny_run).parts:
            assert b"PHANTOM-0" not in path.read_bytes(), path


def test_executed_notebooks_hold_no_error(tiny_run):
    for name in NOTEBOOKS:
        book = json.loads((tiny_run / "notebooks" / f"{name}.ipynb").read_text())
        kinds = {o["output_type"] for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]}
        assert "error" not in kinds


def test_a_finished_run_is_shown_again_and_other_settings_are_refused(tiny_run):
    before = (tiny_run / "scores.csv").stat().st_mtime_ns
    again = petct("run", "--profile", TINY, "--out", str(tiny_run))
    assert again.returncode == 0
    assert "regression_without_coarse" in again.stdout
    other = petct("run", "--profile", "quick", "--out", str(tiny_run))
    assert other.returncode == 2
    assert "holds a run with other profile" in other.stderr
    assert "Traceback" not in other.stderr
    assert (tiny_run / "scores.csv").stat().st_mtime_ns == before


def test_an_unfinished_run_is_resumed_only_when_told(tiny_run, tmp_path):
    out = tmp_path / "half"
    shutil.copytree(tiny_run, out)
    manifest = read_json(out / "manifest.json")
    write_json({**manifest, "finished": False, "done": list(NOTEBOOKS[:3])}, out / "manifest.json")
    (out / "scores.csv").unlink()
    refused = petct("run", "--profile", TINY, "--out", str(out))
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    checkpoint = (out / "checkpoints" / "cyclegan.pt").stat().st_mtime_ns
    done = petct("run", "--profile", TINY, "--out", str(out), "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    again, before = read_scores(out / "scores.csv"), read_scores(tiny_run / "scores.csv")
    assert [{**row, "value": None} for row in again] == [{**row, "value": None} for row in before]
    # Not to the bit: how torch's convolutions round depends on where the arrays happen to lie in memory.
    assert [row["value"] for row in again] == pytest.approx([row["value"] for row in before], rel=1e-6)
    assert (out / "checkpoints" / "cyclegan.pt").stat().st_mtime_ns == checkpoint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such file or folder"),
        (lambda folder: folder.mkdir(), "the folder is empty"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("hello")), "no readable DICOM"),
    ],
)
def test_bad_data_exits_2_and_writes_nothing(tmp_path, make, message):
    make(tmp_path / "data")
    done = petct("run", "--profile", TINY, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_pet_without_ct_and_too_few_patients(phantom_dir, tmp_path):
    for k in range(4):
        shutil.copytree(phantom_dir / f"PHANTOM-000{k}" / "PT", tmp_path / "pets" / str(k))
    alone = petct("run", "--profile", TINY, "--data", str(tmp_path / "pets"), "--out", str(tmp_path / "a"))
    assert alone.returncode == 2
    assert "no CT of the same study" in alone.stderr
    one = phantom_dir / "PHANTOM-0000"
    few = petct("run", "--profile", TINY, "--data", str(one), "--out", str(tmp_path / "b"))
    assert few.returncode == 2
    assert "1 patients with a usable PET/CT pair" in few.stderr
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = petct("run", "--profile", TINY, "--out", str(tmp_path))
    assert done.returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_override_is_another_run(tiny_run):
    before = (tiny_run / "scores.csv").stat().st_mtime_ns
    set_as_it_is = ("--set", "02_cyclegan_training.steps=4")
    assert petct("run", "--profile", TINY, *set_as_it_is, "--out", str(tiny_run)).returncode == 0
    other = petct("run", "--profile", TINY, "--set", "02_cyclegan_training.steps=3", "--out", str(tiny_run))
    assert other.returncode == 2
    assert "holds a run with other parameters" in other.stderr
    assert (tiny_run / "scores.csv").stat().st_mtime_ns == before


SMALL_GPU = (  # the gpu profile's path, with sizes that a CPU can do
    "02_cyclegan_training.width=4", "02_cyclegan_training.blocks=1", "02_cyclegan_training.patch_layers=1",
    "02_cyclegan_training.steps=2", "02_cyclegan_training.batch_size=2", "02_cyclegan_training.shift=1",
    "03_diffusion_refinement.width=4", "03_diffusion_refinement.batch_size=2", "03_diffusion_refinement.crop=16",
    *(f"03_diffusion_refinement.{name}_steps=2" for name in ("regression", "pix2pix", "flow")),
    "03_diffusion_refinement.multipliers=[1, 2]",
    "03_diffusion_refinement.shift=1", "04_evaluation.samples=2", "04_evaluation.steps=1",
    "04_evaluation.methods=[regression, pix2pix, sample, mean]", "04_evaluation.export=false",
)  # fmt: skip


def test_the_gpu_profile_trains_and_is_scored(tiny_run, tmp_path):
    """From the tiny run's slices: what the profile has of its own comes after them."""
    out = tmp_path / "gpu"
    sizes = [f"{NOTEBOOKS[0]}.{name}={json.dumps(value)}" for name, value in load_params(TINY)[NOTEBOOKS[0]].items()]
    values = [*sizes, *SMALL_GPU]
    fork(tiny_run, out, "gpu", "phantom", values, until=NOTEBOOKS[0])
    options = [part for setting in values for part in ("--set", setting)]
    done = petct("run", "--profile", "gpu", *options, "--out", str(out), "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {r["method"] for r in read_scores(out / "scores.csv")} == {"regression", "pix2pix", "sample", "mean"}
    manifest = read_json(out / "manifest.json")
    assert manifest["parameters"]["02_cyclegan_training"]["mixed_precision"] == "bf16"
    assert manifest["parameters"]["02_cyclegan_training"]["steps"] == 2


def test_notebooks_say_what_to_run_first(tmp_path):
    with pytest.raises(InputError, match=r"run 01_data_exploration\.ipynb first"):
        require_inputs(tmp_path, "02_cyclegan_training")
    (tmp_path / "splits.json").write_text("{}")
    with pytest.raises(InputError, match=r"run 02_cyclegan_training\.ipynb first"):
        require_inputs(tmp_path, "04_evaluation")


def test_a_notebook_opened_alone_has_the_earlier_ones_run_first(tmp_path, monkeypatch):
    def as_papermill(notebook, out, parameters, **_):
        folder = open_run_folder(parameters.get("run_dir", tmp_path / "run"), parameters["resume"])
        (folder / MAKES[Path(notebook).stem]).parent.mkdir(exist_ok=True)
        (folder / MAKES[Path(notebook).stem]).write_text(Path(out).stem)

    monkeypatch.setattr("papermill.execute_notebook", as_papermill)
    monkeypatch.setattr("petct_lib.experiments.pipeline.DEFAULT_RUN", tmp_path / "run")
    assert require_inputs(tmp_path / "run", "04_evaluation") == tmp_path / "run"
    assert all((tmp_path / "run" / name).exists() for name in MAKES.values())


def test_other_data_under_the_same_name_is_not_taken_for_the_finished_run(tmp_path):
    def request(text):
        (tmp_path / "dicom" / "slice").write_text(text)
        return {"profile": "p", "data_source": "dicom", "data_key": input_key(tmp_path / "dicom"), "parameters": {}}

    (tmp_path / "dicom").mkdir()
    first = request("first")
    write_json({**first, "finished": True}, tmp_path / "out" / "manifest.json")
    assert _open_run(tmp_path / "out", first, False, False)["finished"]
    with pytest.raises(InputError, match="other data_key"):
        _open_run(tmp_path / "out", request("second, and longer"), False, False)


def test_provenance_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _provenance(tmp_path)["commit"] is None


def test_fresh_folder_empties_notebook_runs_only(tmp_path):
    folder = open_run_folder(tmp_path / "r", False)
    (folder / "old").write_text("x")
    assert (open_run_folder(folder, True) / "old").exists()
    assert not (open_run_folder(folder, False) / "old").exists()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is not a run of these notebooks"):
        open_run_folder(folder, False)


def test_record_merges_and_stage_times(tmp_path):
    record(tmp_path, a={"x": 1}, b=2)
    record(tmp_path, a={"y": 2})
    with timed(tmp_path, "nap"):
        pass
    held = read_json(tmp_path / "stages.json")
    assert held["a"] == {"x": 1, "y": 2}
    assert held["b"] == 2
    assert held["stage_seconds"]["nap"] >= 0
    assert held["stage_peak_mb"]["nap"] > 10, "a process that has loaded torch"
    assert ("stage_gpu_mb" in held) == torch.cuda.is_available()
    record(tmp_path, stage_seconds={"nap": 5.0})
    with timed(tmp_path, "nap"):
        pass
    assert read_json(tmp_path / "stages.json")["stage_seconds"]["nap"] >= 5  # a resumed stage goes on counting


def test_summary_names_resolution_and_folder(tiny_run):
    text = format_summary(tiny_run)
    assert "32×32" in text
    assert "peak memory" in text


@pytest.mark.slow
def test_real_patients_through_ingest():
    path = ROOT.parent / "shared" / "data" / "sts" / "STS_008.zip"
    if not path.exists():
        pytest.skip("the real patients of shared/data are not beside this checkout")
    done = petct("ingest", str(path), "--json")
    assert done.returncode == 0
    [study] = json.loads(done.stdout)["studies"]
    assert study["suv_rule"].startswith("GML")
    assert study["ct"]["size"] == [141, 137, 51]
