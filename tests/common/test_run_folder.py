"""The names in a run's folder are what other programs rely on."""

from pathlib import Path

from petct_lib.common.run_folder import RunFolder


def test_paths_are_those_that_the_readme_names():
    run = RunFolder("runs/a")
    names = {name: str(path.relative_to("runs/a")) for name, path in vars(run).items() if name != "path"}
    assert names == {
        "manifest": "manifest.json", "stages": "stages.json", "prepared": "prepared", "splits": "splits.json",
        "intensity": "intensity.json", "checkpoints": "checkpoints", "coarse": "coarse", "logs": "logs",
        "scores": "scores.csv", "metrics": "metrics.json", "figures": "figures", "notebooks": "notebooks",
        "synthetic": "synthetic", "report": "report.html", "model_card": "model_card.md", "data_card": "data_card.md",
    }  # fmt: skip
    assert run.checkpoint("cyclegan") == Path("runs/a/checkpoints/cyclegan.pt")


def test_nothing_is_made(tmp_path):
    RunFolder(tmp_path / "run")
    assert not list(tmp_path.iterdir())
