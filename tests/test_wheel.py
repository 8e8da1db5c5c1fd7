"""The core alone, in an environment of its own: what a programmer gets who installs no extra."""

import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from petct_lib.cli import main
from petct_lib.dicom.studies import find_pairs, load_pair
from petct_lib.dicom.suv import suv_factor
from petct_lib.metrics.structure import ssim
from petct_lib.metrics.voxelwise import mae

study, run, out = sys.argv[1:]
pair = find_pairs(Path(study)).pairs[0]
print("factor", suv_factor(pair.pet.headers).factor)
ct = load_pair(pair).ct.array[:3]
print("mae", mae(ct, ct + 50), "ssim", ssim(ct, ct, data_range=4024.0))
given = ["--direction", "pet2ct", "--samples", "1", "--steps", "1"]
assert main(["translate", study, "--run", run, "--out", out, *given]) == 0
print("loaded", *sorted({"accelerate", "IPython", "papermill", "highdicom", "lpips"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_a_wheel_with_the_core_alone_converts_scores_and_translates(phantom_dir, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    pins = tmp_path / "pins.txt"
    lines = (ROOT / "environment.yml").read_text().splitlines()
    pins.write_text("\n".join(line.strip(" -") for line in lines if "==" in line))
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("petct_lib-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, *pip[1:], "install", "--constraint", str(pins), str(wheel)], check=True)
    installed = subprocess.run([python, *pip[1:3], "list"], capture_output=True, text=True, check=True).stdout
    extras = {"jupyterlab", "papermill", "duckdb", "accelerate", "lpips", "simpleitk"}
    assert not extras & set(installed.lower().split())
    values = [str(phantom_dir / "PHANTOM-0001"), str(ROOT / "notebooks" / "demo"), str(tmp_path / "out")]
    done = subprocess.run([python, "-c", SCRIPT, *values], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mae 50.0 ssim 1.0" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "loaded"
    assert list((tmp_path / "out" / "image").glob("*.dcm"))
