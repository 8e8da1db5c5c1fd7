"""The commands' help, exit codes and output."""

import json
import sys
from types import SimpleNamespace

import pydicom
import pytest
from conftest import petct

from petct_lib.cli import main
from petct_lib.common.files import read_json


@pytest.mark.parametrize("command", [[], ["run"], ["ingest"], ["phantom"], ["translate"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: python -m petct_lib" in capsys.readouterr().out


def test_a_wrong_command_line_exits_2():
    with pytest.raises(SystemExit) as stop:
        main(["translate", "x"])
    assert stop.value.code == 2


def test_ingest_prints_json_and_nothing_else(phantom_dir):
    done = petct("ingest", str(phantom_dir), "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert len(report["studies"]) == 5
    assert {"id", "pet", "ct", "suv_factor", "suv_rule"} <= set(report["studies"][0])
    assert [item["what"] for item in report["left_out"]] == ["15 files (truth/*.nii.gz)", "a file (truth.json)"]


def test_ingest_as_text_names_rule_and_grid(phantom_dir, capsys):
    assert main(["ingest", str(phantom_dir / "PHANTOM-0000")]) == 0
    text = capsys.readouterr().out
    assert "1 usable studies" in text
    assert "GE MEDICAL SYSTEMS  SUV factor" in text
    assert "(BQML: dose decayed to the GE private scan time)" in text
    assert "112×112" in text


def test_ingest_without_anything_usable_exits_2(tmp_path, phantom_dir, capsys):
    assert main(["ingest", str(tmp_path)]) == 2
    assert "the folder is empty" in capsys.readouterr().err
    assert main(["ingest", str(phantom_dir / "PHANTOM-0000" / "CT"), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["studies"] == []
    assert [item["reason"] for item in report["left_out"]] == ["no usable PET of the same study"]


def test_phantom_writes_dicom_and_refuses_a_full_folder(tmp_path, capsys):
    small = ["--seed", "3", "--ct-size", "100", "--difficulty", "easy"]
    assert main(["phantom", str(tmp_path / "p"), "--patients", "1", *small]) == 0
    assert "1 patients" in capsys.readouterr().out
    assert read_json(tmp_path / "p" / "truth.json")["difficulty"] == "easy"
    header = pydicom.dcmread(next((tmp_path / "p" / "PHANTOM-0000" / "CT").iterdir()), stop_before_pixels=True)
    assert (header.Rows, list(header.PixelSpacing)) == (100, [5, 5])
    assert main(["phantom", str(tmp_path / "p"), "--patients", "1"]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["phantom", str(tmp_path / "q"), "--patients", "0"])
    assert stop.value.code == 2


def test_download_lists_the_collection_without_a_network(tmp_path, capsys):
    assert main(["download", "--list", "--patients", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 patients" in text
    assert "CC BY 3.0" in text
    assert main(["download"]) == 2
    assert "needs a folder" in capsys.readouterr().err


def test_a_command_whose_packages_are_not_there_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "papermill", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "papermill.iorw", raising=False)
    assert main(["run", "--profile", "smoke", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: papermill is not installed; pip install 'petct-lib[notebooks]'\n"
    monkeypatch.setitem(sys.modules, "papermill", SimpleNamespace())
    monkeypatch.setattr("petct_lib.experiments.profiles.NOTEBOOK_DIR", tmp_path / "none")
    assert main(["run", "--out", str(tmp_path / "run")]) == 2
    assert "clone the repository" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
