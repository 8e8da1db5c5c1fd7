"""The small trained run that comes with the notebooks, how it is made, and a new patient to try it on.

`make demo` trains it (`notebooks/params/demo.yaml`) and keeps what translation needs in `notebooks/demo`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petct_lib.common.files import read_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.prepare import Prepared, SliceSettings, prepare
from petct_lib.data.splits import read_splits
from petct_lib.phantom.cohort import phantom_settings, write_phantom

FOLDER = Path(__file__).parents[2] / "notebooks" / "demo"
SEED = 1000  # of the new patient: the run that is shipped learned from seed 0


@dataclass(frozen=True)
class Example:
    """One patient on a run's grid: PET in SUV, CT in HU and the body for scoring, (n, H, W), feet first."""

    pet_suv: np.ndarray
    ct_hu: np.ndarray
    body: np.ndarray
    spacing_mm: tuple[float, float, float]  # of z, y, x
    suv_rule: str


def load_example(run_dir: Path, folder: Path) -> Example:
    """To look at: the first test patient of a run that has its slices, else `make_new_patient` in `folder`."""
    slices = RunFolder(run_dir).prepared
    if slices.exists():
        prepared = Prepared(slices)
        study = prepared.studies([read_splits(run_dir)["test"][0]])[0]
    else:
        prepared = make_new_patient(folder, run_dir)
        [study] = prepared.studies()
    pet, ct, body = (np.array(prepared.array(study, kind)) for kind in ("pet", "ct", "body"))
    grid = prepared.index["grid"]
    spacing_mm = grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]
    return Example(pet, ct, body, spacing_mm, prepared.row(study)["suv_rule"])


def make_new_patient(folder: Path, run_dir: Path = FOLDER, *, seed: int = SEED) -> Prepared:
    """A phantom patient that no run of another seed has seen: written to `folder` as DICOM, prepared on a run's grid.

    Takes a few seconds. What is in `folder` already is kept.
    """
    folder, grid = Path(folder), read_json(RunFolder(run_dir).stages)["grid"]
    if not (folder / "dicom" / "truth.json").exists():
        settings = phantom_settings("realistic", ct_size=320, ct_pixel_mm=1.4, follow_ups=0.0)
        write_phantom(folder / "dicom", 1, seed, settings, jobs=1)
    settings = SliceSettings(grid["size"], grid["fov_mm"], grid["slice_mm"], grid["suv_kind"])
    return prepare(folder / "dicom", folder / "prepared", settings, jobs=1)
