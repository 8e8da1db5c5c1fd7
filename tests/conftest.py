"""Fixtures that several files share: a small phantom as DICOM, its prepared slices, and one finished tiny run."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from petct_lib.cli import main
from petct_lib.data.prepare import Prepared, SliceSettings, prepare
from petct_lib.phantom.cohort import phantom_settings, write_phantom

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "tests" / "tiny_run.yaml")  # a profile
SMALL = phantom_settings("easy", ct_pixel_mm=4.0, ct_size=112, ct_slice_mm=8.0, pet_size=112, pet_slice_mm=8.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at a whole run is slow, for one has to be made first."""
    for item in items:
        if "tiny_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> Path:
    """Five small phantom patients as DICOM."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), 5, 0, SMALL)


@pytest.fixture(scope="session")
def prepared(phantom_dir, tmp_path_factory) -> Prepared:
    """Their slices, 32×32, every 16 mm."""
    return prepare(phantom_dir, tmp_path_factory.mktemp("run") / "prepared", SliceSettings(32, None, 16.0))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run of the four notebooks through papermill, at the sizes of TINY; one for all pytest workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / "tiny"
    with FileLock(shared / "tiny.lock"):
        if not (out / "terminal.txt").exists():
            done = petct("run", "--profile", TINY, "--out", str(out))
            assert done.returncode == 0, done.stderr[-3000:]
            (out / "terminal.txt").write_text(done.stdout)
    return out


def petct(*arguments: str) -> SimpleNamespace:
    """What `python -m petct_lib …` returns and prints, without a process that imports torch once more."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def dicom_errors(path: Path) -> list[str]:
    """What `dciodvfy` (dicom3tools, by nobody here; in the test extra) calls an error in a DICOM file."""
    command = [str(Path(sys.executable).parent / "dciodvfy"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = (done.stdout + done.stderr).splitlines()
    assert {"CTImage", "PETImage"} & set(report), f"the kind of object is not recognised: {report}"
    return [line for line in report if line.startswith("Error")]
