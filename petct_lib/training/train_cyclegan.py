"""Stage 1 of a run folder: what notebook 02, `python -m petct_lib train` and every launcher train.

One plan, whoever starts it: one process, several on one host (`processes`, through accelerate's notebook_launcher), or
several hosts (torchrun, also within SLURM).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, notebook_launcher
from torch import distributed

from petct_lib.common.run_folder import RunFolder
from petct_lib.data.datasets import Slices, UnpairedBatches
from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import read_splits
from petct_lib.imaging.intensity import read_window
from petct_lib.models.checkpoints import load_checkpoint
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.training.loggers import TensorBoardLog
from petct_lib.training.loop import FitSettings, Watcher, count_steps, fit, pick_settings
from petct_lib.training.validation import Validation

PREVIEWED = 4  # slices of the sample panel


@dataclass(frozen=True)
class CycleGANPlan:
    """Everything that decides stage 1's result, beside the data."""

    gan: CycleGANSettings
    fit: FitSettings
    shift: int  # augmentation: slices are moved by up to so many pixels
    batch_size: int
    seed: int


def unpaired_slices(run_dir: Path, device: torch.device | None = None) -> tuple[Slices, Slices]:
    """PET slices of `train_pet` and CT slices of `train_ct`; device: where to hold them all, None: on the disk."""
    prepared, splits = Prepared(RunFolder(run_dir).prepared), read_splits(run_dir)
    window = read_window(run_dir)
    return tuple(Slices(prepared, splits[f"train_{kind}"], (kind,), window, device=device) for kind in ("pet", "ct"))


def make_plan(
    run_dir: Path, *, seed: int, batch_size: int, steps: int | None, epochs: int | None, shift: int = 0,
    **settings: object,
) -> CycleGANPlan:  # fmt: skip
    """The plan of notebook 02's parameters. settings: fields of CycleGANSettings and FitSettings by name.

    InputError for a name that neither has.
    """
    gan, schedule = pick_settings("stage 1", settings, CycleGANSettings, FitSettings)
    slices = max(map(len, unpaired_slices(run_dir)))
    schedule = FitSettings(count_steps(steps, epochs, slices, batch_size), **schedule)
    return CycleGANPlan(CycleGANSettings(**gan), schedule, shift, batch_size, seed)


def train_cyclegan(
    run_dir: Path, plan: CycleGANPlan, *, resume: bool, processes: int = 1, watchers: Sequence[Watcher] = ()
) -> list[dict]:
    """Trains stage 1 of a run folder that notebook 01 has prepared; returns the rows logged, see `loop.fit`.

    processes: on this host, each with its own GPU or, without GPUs, its share of the cores; `watchers` are told only
    where there is one, TensorBoard always. InputError for a checkpoint of other settings or data, FloatingPointError
    for a loss that is not finite or has exploded.
    """
    if processes == 1:
        return _train(Path(run_dir), plan, resume, watchers)
    notebook_launcher(_train_as_one_of_several, (Path(run_dir), plan, resume), num_processes=processes)
    return load_checkpoint(RunFolder(run_dir).checkpoint("cyclegan"))["history"]


def leave_group() -> None:
    """Destroys torch's process group, if this process is in one: for a process that ends after its training.

    One that exits as a member may be aborted by gloo's threads, and its launcher would take that for a failure
    (github.com/pytorch/pytorch/issues/190489). Not after an error, when it would wait for the others.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _train_as_one_of_several(run_dir: Path, plan: CycleGANPlan, resume: bool) -> None:
    _train(run_dir, plan, resume)
    leave_group()


def _train(run_dir: Path, plan: CycleGANPlan, resume: bool, watchers: Sequence[Watcher] = ()) -> list[dict]:
    run, splits = RunFolder(run_dir), read_splits(run_dir)
    prepared = Prepared(run.prepared)
    pets, cts = _held(run_dir)
    batches = UnpairedBatches(pets, cts, plan.batch_size, plan.shift)
    return fit(
        CycleGAN(plan.gan, plan.seed), batches, plan.fit, checkpoint=run.checkpoint("cyclegan"),
        fingerprint=prepared.fingerprint, seed=plan.seed, resume=resume, name="CycleGAN",
        watchers=[TensorBoardLog(run.logs / "cyclegan"), *watchers],
        preview=UnpairedBatches(pets, cts, PREVIEWED).fixed(),
        validate=Validation(prepared, splits["refine"], pets.window),
    )  # fmt: skip


def _held(run_dir: Path) -> tuple[Slices, Slices]:
    """The slices: on the GPU where there is one that they leave half empty, else read from the disk when drawn."""
    slices = unpaired_slices(run_dir)
    if not torch.cuda.is_available():
        return slices
    device = Accelerator().device
    free, _ = torch.cuda.mem_get_info(device)
    fits = sum(part.nbytes for part in slices) < free / 2
    return unpaired_slices(run_dir, device) if fits else slices
