"""A run made small enough to ship."""

import shutil
from pathlib import Path

import torch

from petct_lib import InputError
from petct_lib.common.files import atomic_write, read_json, write_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.imaging.directions import DIRECTIONS
from petct_lib.models.checkpoints import load_checkpoint, save_checkpoint

NETWORKS = ("cyclegan", *(f"{kind}_{d}" for kind in ("regression", "flow") for d in DIRECTIONS))
KEPT_STAGES = ("grid", "seed", "data_source", "data_fingerprint", "patients")


def slim(run_dir: Path, out: Path) -> int:
    """What `translate` needs of a finished run, into the new folder `out`: bytes written.

    The averaged weights in half precision, without the discriminators and the optimisers: enough to translate, and a
    ninth of the size. A training cannot go on from it. InputError where the run is not finished or `out` exists.
    """
    run, out = RunFolder(run_dir), Path(out)
    needed = [run.intensity, run.model_card, run.stages]
    if missing := [path.name for path in needed if not path.exists()]:
        raise InputError(f"{run_dir}: is not a finished run, {', '.join(missing)} is missing; finish it with --resume")
    if out.exists():
        raise InputError(f"{out}: exists; remove it first, or name another folder")
    with atomic_write(out) as temporary:
        for name in NETWORKS:
            state = load_checkpoint(run.checkpoint(name))
            save_checkpoint(_slim_state(state), RunFolder(temporary).checkpoint(name))
        stages = read_json(run.stages)
        write_json({key: stages[key] for key in KEPT_STAGES}, RunFolder(temporary).stages)
        for path in needed[:2]:
            shutil.copyfile(path, temporary / path.name)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _slim_state(state: dict) -> dict:
    kept = {key: state[key] for key in ("step", "origin", "settings")}
    return {**kept, "ema": {name: _half(weights) for name, weights in state["ema"].items()}}


def _half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
