"""The benchmarks start, and the goals are read from an ablation's scores."""

import importlib
import sys

import numpy as np
import pytest
from conftest import ROOT

from petct_lib.evaluation.tables import write_scores
from petct_lib.experiments.profiles import notebook_parameters

SCRIPTS = [path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if "def main" in path.read_text()]


@pytest.fixture
def script(monkeypatch):
    """A script as a module, with its command line."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_does(script, name, capsys):
    with pytest.raises(SystemExit, match="0"):
        script(name, "--help").main()
    assert "usage: " in capsys.readouterr().out


def test_goals_are_met_missed_or_not_run(script, tmp_path, capsys):
    (tmp_path / "seed0").mkdir()
    where = {"direction": "pet2ct", "patient": "a", "region": "body", "mask": "HU threshold"}
    rows = [
        {**where, "method": method, "metric": "mae", "value": value, "unit": "HU"}
        for method, value in (("regression", 100.0), ("sample", 111.0), ("mean", 90.0), ("pix2pix", 80.0))
    ]
    write_scores(rows, tmp_path / "seed0" / "scores.csv")
    script("goals", "--ablation", str(tmp_path)).main()
    lines = {line[:40].strip(): line.split() for line in capsys.readouterr().out.splitlines() if "pet2ct" in line}
    assert lines["sample: MAE / regression's"][-2:] == ["1.110", "met"]
    assert lines["mean of 8: MAE / pix2pix's"][-2:] == ["1.125", "missed"]
    assert lines["spread/skill"][-2:] == ["not", "run"]


def test_benchmarks_build_the_networks_that_the_profiles_name(script, capsys):
    projection, translate = script("projection"), script("translate")
    params = notebook_parameters("03_diffusion_refinement", "full")
    plain, direct, flow = projection.stage2_settings(params)  # operations are counted by the script: fake tensors crash
    assert plain.width == direct.width == flow.width == params["width"]
    assert direct.lambda_adversarial > plain.lambda_adversarial == 0
    translate.ours(np.zeros((2, 64, 64), np.float32))
    assert "parameters" in capsys.readouterr().out
