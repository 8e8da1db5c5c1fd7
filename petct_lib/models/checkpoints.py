"""Checkpoints: whole or absent, loaded without executing anything; and trained models from them.

`cyclegan.pt` is the newest state; `cyclegan.step0000750.pt` are the newest ones by step, this one among them, as a hard
link, which takes no space of its own.
"""

import os
import shutil
from dataclasses import fields
from pathlib import Path

import torch

from petct_lib import InputError
from petct_lib.common.files import atomic_write
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.regression import Regression, RegressionSettings
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow
from petct_lib.models.stage import Stage


def save_checkpoint(state: dict, path: Path, *, keep: int = 1) -> None:
    """`state` (tensors and plain values, with its "step") as `path`; the old one stays whole until the new one is.

    keep: how many of the newest states stay, this one included.
    Raises InputError where the disk is full or cannot be written to.
    """
    try:
        with atomic_write(path) as temporary:
            _write(state, temporary)
            if keep > 1:
                _link(temporary, step_path(path, state["step"]))
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch's writer hides it behind its own
        if not isinstance(reason, OSError):
            raise
        raise InputError(
            f"{path}: the checkpoint of step {state['step']} cannot be written ({reason}); "
            f"{'the one before it is whole' if path.exists() else 'there is none yet'}. Free some space and go on"
        ) from error
    for old in list_earlier(path)[:-keep]:
        old.unlink()


def _write(state: dict, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # on the disk before it takes the old one's name


def _link(source: Path, name: Path) -> None:
    with atomic_write(name) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(source, temporary)


def step_path(path: Path, step: int) -> Path:
    """The name under which the state of a step is kept beside the newest."""
    return path.with_name(f"{path.stem}.step{step:07d}{path.suffix}")


def list_earlier(path: Path) -> list[Path]:
    """The numbered states beside `path`, oldest first."""
    return sorted(path.parent.glob(f"{path.stem}.step*{path.suffix}"))


def clear_leftovers(path: Path, start: int) -> None:
    """Removes what a killed process left half-written, and the states of another training when one starts at step 0."""
    if start == 0:
        for old in list_earlier(path):
            old.unlink()
    for half in path.parent.glob(f".{path.stem}.*part"):
        half.unlink()


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's tensors and plain values; nothing in it is executed. Raises InputError where it is not one."""
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        older = [old for old in list_earlier(path) if not old.samefile(path)]  # the newest one's link is as broken
        way_out = f"copy {older[-1].name} over it" if older else "remove it to train again"
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); {way_out}") from None


def load_cyclegan(path: Path) -> CycleGAN:
    """A trained CycleGAN from its checkpoint, on `best_device`.

    InputError where it is missing, cannot be read, or has settings that this version does not have.
    """
    state = load_checkpoint(path)
    return _place(CycleGAN(_settings(CycleGANSettings, state, path)), state)


def load_regression(path: Path) -> Regression:
    """A trained regression or pix2pix from its checkpoint, on `best_device`.

    InputError where it is missing, cannot be read, has settings that this version does not have, or is not finished.
    """
    state = _check_finished(path)
    return _place(Regression(_settings(RegressionSettings, state, path)), state)


def load_flow(path: Path, regression: Regression) -> ResidualFlow:
    """A trained residual flow from its checkpoint, on `best_device`, beside its regression.

    InputError where it is missing, cannot be read, has settings that this version does not have, or is not finished.
    """
    state = _check_finished(path)
    return _place(ResidualFlow(_settings(FlowSettings, state, path), regression), state)


def _check_finished(path: Path) -> dict:
    state = load_checkpoint(path)
    if (done := state["step"]) < (planned := state["origin"]["steps"]):
        raise InputError(f"{path}: its training stopped after step {done} of {planned}; resume it (--resume) first")
    return state


def _settings(kind: type, state: dict, path: Path) -> object:
    """The settings of a checkpoint; those of a setting that it does not name are the default."""
    held = {name: tuple(value) if isinstance(value, list) else value for name, value in state["settings"].items()}
    if unknown := sorted(set(held) - {field.name for field in fields(kind)}):
        raise InputError(
            f"{path}: made by another version of petct_lib, with settings that this one does not have "
            f"({', '.join(unknown)}); use that version, or train again"
        )
    return kind(**held)


def _place(stage: CycleGAN | Regression | ResidualFlow, state: dict) -> CycleGAN | Regression | ResidualFlow:
    """The stage with a checkpoint's weights, its averaged networks on the device and in the layout of inference."""
    restore(stage, state)
    for ema in stage.ema.values():
        ema.to(best_device(), memory_format=torch.channels_last)  # a third faster, on a CPU, too
    return stage


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def restore(stage: Stage, state: dict) -> None:
    """Weights, averages, optimisers and the rest from a checkpoint into a stage of the same settings.

    One of `export.slim` has the averages alone.
    """
    for part in ("nets", "ema", "optimisers"):
        for name, value in state.get(part, {}).items():
            getattr(stage, part)[name].load_state_dict(value)
    stage.load_extra_state(state)
