"""The small trained run that comes with the notebooks, how it is made, and a new patient to try it on.

`make demo` trains it (`notebooks/params/demo.yaml`) and keeps what translation needs in `notebooks/demo`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from petct_lib import InputError
from petct_lib.checkpoints import load_checkpoint, save_checkpoint
from petct_lib.cyclegan import DIRECTIONS
from petct_lib.data import read_splits
from petct_lib.files import read_json, replacing, write_json
from petct_lib.phantom import phantom_settings, write_phantom
from petct_lib.prepare import Prepared, SliceSettings, prepare

FOLDER = Path(__file__).parent.parent / "notebooks" / "demo"
SEED = 1000  # of the new patient: the run that is shipped learned from seed 0
NETWORKS = ("cyclegan", *(f"{kind}_{d}" for kind in ("regression", "flow") for d in DIRECTIONS))
KEPT_STAGES = ("grid", "seed", "data_source", "data_fingerprint", "patients")
CARD = "model_card.md"


@dataclass(frozen=True)
class Example:
    """One patient on a run's grid: PET in SUV, CT in HU and the body for scoring, (n, H, W), feet first."""

    pet_suv: np.ndarray
    ct_hu: np.ndarray
    body: np.ndarray
    spacing_mm: tuple[float, float, float]  # of z, y, x
    suv_rule: str


def slim(run_dir: Path, out: Path) -> int:
    """What `translate` needs of a finished run, into the new folder `out`: bytes written.

    The averaged weights in half precision, without the discriminators and the optimisers: enough to translate, and a
    ninth of the size. A training cannot go on from it. InputError where the run is not finished or `out` exists.
    """
    run_dir, out = Path(run_dir), Path(out)
    needed = [run_dir / "intensity.json", run_dir / CARD, run_dir / "stages.json"]
    if missing := [path.name for path in needed if not path.exists()]:
        raise InputError(f"{run_dir}: is not a finished run, {', '.join(missing)} is missing; finish it with --resume")
    if out.exists():
        raise InputError(f"{out}: exists; remove it first, or name another folder")
    with replacing(out) as temporary:
        for name in NETWORKS:
            state = load_checkpoint(run_dir / "checkpoints" / f"{name}.pt")
            save_checkpoint(_slim_state(state), temporary / "checkpoints" / f"{name}.pt")
        stages = read_json(run_dir / "stages.json")
        write_json({key: stages[key] for key in KEPT_STAGES}, temporary / "stages.json")
        for path in needed[:2]:
            shutil.copyfile(path, temporary / path.name)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _slim_state(state: dict) -> dict:
    kept = {key: state[key] for key in ("step", "origin", "settings")}
    return {**kept, "ema": {name: _half(weights) for name, weights in state["ema"].items()}}


def _half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}


def example(run_dir: Path, folder: Path) -> Example:
    """A patient to look at: the first test patient of a run that has its slices, or else `new_patient` in `folder`."""
    run_dir = Path(run_dir)
    if (run_dir / "prepared").exists():
        prepared = Prepared(run_dir / "prepared")
        study = prepared.studies([read_splits(run_dir)["test"][0]])[0]
    else:
        prepared = new_patient(folder, run_dir)
        [study] = prepared.studies()
    pet, ct, body = (np.array(prepared.array(study, kind)) for kind in ("pet", "ct", "body"))
    grid = prepared.index["grid"]
    spacing_mm = grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]
    return Example(pet, ct, body, spacing_mm, prepared.row(study)["suv_rule"])


def new_patient(folder: Path, run_dir: Path = FOLDER, *, seed: int = SEED) -> Prepared:
    """A phantom patient that no run of another seed has seen: written to `folder` as DICOM, prepared on a run's grid.

    Takes a few seconds. What is in `folder` already is kept.
    """
    folder, grid = Path(folder), read_json(Path(run_dir) / "stages.json")["grid"]
    if not (folder / "dicom" / "truth.json").exists():
        settings = phantom_settings("realistic", ct_size=320, ct_pixel_mm=1.4, follow_ups=0.0)
        write_phantom(folder / "dicom", 1, seed, settings, jobs=1)
    settings = SliceSettings(grid["size"], grid["fov_mm"], grid["slice_mm"], grid["suv_kind"])
    return prepare(folder / "dicom", folder / "prepared", settings, jobs=1)
