"""Fixtures that several files share: a small phantom as DICOM, its prepared slices, and one finished tiny run."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from petct_lib.cli import main
from petct_lib.data.prepare import Prepared, SliceSettings, prepare
from petct_lib.phantom.cohort import phantom_settings, write_phantom

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "tests" / "tiny_run.yaml")  # a profile
SHAPE = (3, 32, 32)  # of the stacks `pair`
SMALL = phantom_settings("easy", ct_pixel_mm=4.0, ct_size=112, ct_slice_mm=8.0, pet_size=112, pet_slice_mm=8.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at a whole run or at many patients is slow, for they have to be made first."""
    for item in items:
        if {"tiny_run", "cohort", "written"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of a name, as `make(folder)` left it; made once for all pytest workers, who only read it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        done = folder.with_name(f"{name}.done")
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> Path:
    """Five small phantom patients as DICOM."""
    return once(tmp_path_factory, "phantom", lambda folder: write_phantom(folder, 5, 0, SMALL))


@pytest.fixture(scope="session")
def prepared(phantom_dir, tmp_path_factory) -> Prepared:
    """Their slices, 32×32, every 16 mm."""
    settings = SliceSettings(32, None, 16.0)
    return Prepared(once(tmp_path_factory, "prepared", lambda folder: prepare(phantom_dir, folder, settings)))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run of the four notebooks through papermill, at the sizes of TINY, and what it printed in `terminal.txt`."""

    def make(folder: Path) -> None:
        done = petct("run", "--profile", TINY, "--out", str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "terminal.txt").write_text(done.stdout)

    return once(tmp_path_factory, "tiny", make)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def pair(rng) -> tuple[np.ndarray, np.ndarray]:
    """A stack of noise, and one beside it."""
    real = rng.normal(0, 300, SHAPE)
    return real, real + rng.normal(0, 50, SHAPE)


@pytest.fixture
def left() -> np.ndarray:
    """A mask of the left half."""
    mask = np.zeros(SHAPE, bool)
    mask[:, :, :16] = True
    return mask


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
