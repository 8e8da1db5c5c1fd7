"""Forks of a run, and the tables of variants and seeds."""

import re
import shutil

import pytest
from conftest import TINY

from petct_lib import InputError
from petct_lib.common.files import read_json, write_json
from petct_lib.evaluation import tables
from petct_lib.experiments import ablation, pipeline
from petct_lib.experiments.ablation import (
    _run_seed,
    _run_variant,
    _seeds_tables,
    _with_seed,
    ablation_table,
    run_ablation,
    save_charts,
)
from petct_lib.experiments.variants import SCORING, TRAINING, Variant
from petct_lib.imaging.directions import DIRECTIONS


def rows_of(method, value, patients=("a", "b"), direction="pet2ct"):
    where = {"direction": direction, "region": "body", "mask": "HU threshold", "method": method}
    result = []
    for k, patient in enumerate(patients):
        result.append({**where, "patient": patient, "metric": "mae", "value": value + k, "unit": "HU"})
        result.append({**where, "patient": patient, "metric": "spectrum", "value": 0.5 + k, "unit": "1"})
    result.append({**where, "patient": "all", "metric": "two_sample_accuracy", "value": 0.75, "unit": "1"})
    return result


@pytest.fixture
def out(tiny_run, tmp_path):
    """An ablation whose first run is the tiny run."""
    ignored = shutil.ignore_patterns("phantom", "logs", "synthetic", "notebooks", "figures")
    shutil.copytree(tiny_run, tmp_path / "seed0", ignore=ignored)
    return tmp_path


def test_a_variant_is_a_fork_of_the_first_run_and_trains_only_what_it_changes(out):
    manifest = read_json(out / "seed0" / "manifest.json")
    variant = Variant("steps1", (f"{SCORING}.samples=2", f"{SCORING}.steps=1"), trained=False)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "seed0" / "checkpoints").iterdir()}
    _run_variant(TINY, "phantom", out, (variant, 0, [f"{SCORING}.export=false"]))
    fork = read_json(out / "steps1" / "manifest.json")
    assert fork["finished"]
    assert fork["data_fingerprint"] == manifest["data_fingerprint"]
    assert fork["parameters"][SCORING]["steps"] == 1
    assert list(fork["seconds"]) == [SCORING]
    assert {p.name: p.stat().st_mtime_ns for p in (out / "steps1" / "checkpoints").iterdir()} == before
    result = tables.read_scores(out / "steps1" / "scores.csv")
    assert {row["method"] for row in result} == {"sample", "mean"}
    first = tables.read_scores(out / "seed0" / "scores.csv")
    key = {"direction": "pet2ct", "method": "mean", "metric": "mae", "region": "body"}
    one = [[r["value"] for r in rows if key.items() <= r.items()] for rows in (result, first)]
    assert one[0] != one[1]


def test_a_fork_that_trains_has_the_cyclegan_and_no_network_of_stage_2(out):
    pipeline.fork(out / "seed0", out / "f", TINY, "phantom", [f"{TRAINING}.flow_steps=1"], until="02_cyclegan_training")
    assert {path.name.split(".")[0] for path in (out / "f" / "checkpoints").iterdir()} == {"cyclegan"}
    manifest = read_json(out / "f" / "manifest.json")
    assert manifest["done"] == ["01_data_exploration", "02_cyclegan_training"]
    assert not manifest["finished"]
    assert (out / "f" / "prepared" / "index.json").samefile(out / "seed0" / "prepared" / "index.json")


def test_the_runs_of_other_seeds_have_the_slices_of_the_first_and_nothing_else(out, monkeypatch):
    request = []
    monkeypatch.setattr(ablation, "run_all", lambda *values, **more: request.append((values, more)))
    seeded = _with_seed([], 1)
    _run_seed(TINY, "phantom", out, (1, seeded))
    assert request == [((TINY, "phantom", out / "seed1"), {"overrides": seeded, "resume": True})]
    assert (out / "seed1" / "prepared" / "index.json").samefile(out / "seed0" / "prepared" / "index.json")
    assert not list((out / "seed1" / "checkpoints").iterdir())
    manifest = read_json(out / "seed1" / "manifest.json")
    assert manifest["done"] == ["01_data_exploration"]
    assert manifest["parameters"][TRAINING]["seed"] == 1


def test_seeds_and_forks_are_run_after_their_first_run_and_as_many_at_a_time_as_asked(tmp_path, monkeypatch):
    """The runs themselves are stood in for; each kind of work comes when what it forks is there."""
    seen = []
    monkeypatch.setattr(ablation, "run_all", lambda *values, **more: seen.append(("first", more["until"])))
    for name in ("_run_seed", "_run_variant"):
        monkeypatch.setattr(ablation, name, lambda *args, name=name: seen.append((name, args[-1])))
    monkeypatch.setattr(ablation, "_longer_steps", lambda *args: 7)

    def each(function, items, *, jobs):
        assert jobs == 2
        return [function(item) for item in items]

    monkeypatch.setattr(ablation, "parallel_map", each)
    with pytest.raises(FileNotFoundError, match="seed0"):  # its scores, which nobody has made
        run_ablation(TINY, "phantom", tmp_path, seeds=2, only="steps8|steps1", jobs=2)
    assert seen[0] == ("first", "01_data_exploration")
    assert [(name, one[0]) for name, one in seen[1:3]] == [("_run_seed", 0), ("_run_seed", 1)]
    assert [(name, one[0].name, one[1]) for name, one in seen[3:]] == [
        ("_run_variant", "steps1", 0), ("_run_variant", "steps8", 0), ("_run_variant", "steps8", 1),
    ]  # fmt: skip


def test_the_longer_regression_takes_the_time_of_both_and_keeps_its_first_number(out):
    seconds = {f"{name}_{d} training": value for name, value in (("regression", 10), ("flow", 15)) for d in DIRECTIONS}
    path = out / "seed0" / "stages.json"
    write_json({**read_json(path), "stage_seconds": seconds}, path)
    assert ablation._longer_steps(out, TINY, [f"{TRAINING}.regression_steps=100"]) == 250
    assert ablation._longer_steps(out, TINY, [f"{TRAINING}.regression_steps=999"]) == 250


def test_the_table_has_a_line_a_method_and_means_over_patients():
    rows = [*rows_of("mean", 10.0), *rows_of("steps1/sample", 20.0), *rows_of("mean", 1.0, direction="ct2pet")]
    text = ablation_table(rows, "pet2ct")
    assert "mean of 2 patients" in text
    line = next(line for line in text.splitlines() if line.startswith("steps1/sample"))
    assert line.split()[1:] == ["20.5", "-", "1", "0.75", *["-"] * 7]


def test_seeds_are_averaged_with_their_range(tmp_path):
    output = [Variant("longer", (), ("mean",), every_seed=True), Variant("steps1", (), ("mean",), trained=False)]
    for seed, value in enumerate((10.0, 12.0)):
        for name, more in ((f"seed{seed}", 0), (f"longer_seed{seed}" if seed else "longer", 20)):
            (tmp_path / name).mkdir()
            rows = [*rows_of("mean", value + more), *rows_of("mean", 1.0, direction="ct2pet")]
            tables.write_scores(rows, tmp_path / name / "scores.csv")
    first, _ = _seeds_tables(tmp_path, 2, output)
    assert "mean of 2 seeds" in first
    assert "11.5 [10.5, 12.5]" in first
    assert re.search(r"longer/mean +31.5 \[30.5, 32.5\]", first)
    assert "steps1" not in first, "it is a fork of the first seed alone"
    assert _seeds_tables(tmp_path, 1, output) == []


def test_planes_and_curves_are_drawn_of_what_is_there(tmp_path):
    output = [("cyclegan", 50.0), ("mean", 9.0), ("sample", 12.0), ("regression", 10.0), ("pairs1/mean", 20.0),
            ("pairs2/mean", 15.0)]  # fmt: skip
    save_charts([row for d in DIRECTIONS for m, v in output for row in rows_of(m, v, direction=d)], 5, tmp_path)
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {f"ablation_{kind}_{d}" for kind in ("plane", "paired") for d in DIRECTIONS}


def test_the_seeds_are_the_ablations_own():
    assert _with_seed(["04_evaluation.steps=2"], 3)[-2:] == ["02_cyclegan_training.seed=3", f"{TRAINING}.seed=3"]
    with pytest.raises(InputError, match="the ablation sets the seeds itself"):
        _with_seed([f"{TRAINING}.seed=1"], 0)


def test_a_wrong_only_is_refused_before_anything_is_run(tmp_path):
    with pytest.raises(InputError, match=re.escape("--only nothing: no variant")):
        run_ablation(TINY, "phantom", tmp_path / "a", seeds=1, only="nothing")
    assert not (tmp_path / "a").exists()
