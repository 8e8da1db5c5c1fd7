"""Stage 2 of a run folder: pairs, regression, pix2pix and residual flow of a direction.

What notebook 03 and `make ablation` train: the same functions for both, which differ in their settings alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from petct_lib import InputError
from petct_lib.common.files import atomic_write
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.datasets import MixedBatches, PairedBatches, Slices
from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import read_splits, refiner_patients
from petct_lib.imaging.directions import SOURCE, TARGET
from petct_lib.imaging.intensity import read_window
from petct_lib.imaging.spectrum import spectrum
from petct_lib.inference.translator import BATCH, coarse_images
from petct_lib.models.checkpoints import load_cyclegan, load_regression
from petct_lib.models.cycle_pairs import Perturbation, make_cycle_pair
from petct_lib.models.cyclegan import CycleGAN
from petct_lib.models.regression import Regression, RegressionSettings
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow
from petct_lib.training.loggers import TensorBoardLog
from petct_lib.training.loop import FitSettings, Watcher, fit, pick_settings
from petct_lib.training.validation import RefinerValidation

KINDS = ("real", "cycle", "both")  # of pairs
GRID = 64  # pixels along x and y of the space-to-depth grid
VARIANTS = 4  # perturbed images of each slice that cycle pairs draw from
PREVIEWED = 4  # slices of the sample panel
FLOOR = 1e-3  # chosen: a band of the residual with less would turn rounding into signal
ADVERSARIAL = 0.05  # chosen: pix2pix's weight of the adversarial loss beside L1; Isola 2017 has 0.01
DERIVED = {"patch", "lambda_adversarial", "patch_width", "patch_layers", "residual_spectrum"}  # no parameters
MEASURED = 32  # batches that the residual's spectrum is measured on


@dataclass(frozen=True)
class Stage2Plan:
    """Everything that decides a network's result, beside the data and the CycleGAN."""

    stage: RegressionSettings | FlowSettings
    fit: FitSettings
    shift: int  # augmentation: slices are moved by up to so many pixels
    batch_size: int
    seed: int
    crop: int | None = None  # pixels along x and y of the squares that it learns from; None: whole slices
    start: str | None = None  # the run's regression of this name, with whose weights this one begins
    regression: str | None = None  # of a flow: the run's regression of this name, whose residual it learns

    @property
    def draws(self) -> int:
        """The seed of the batches: what begins with another's weights sees other batches than that one did."""
        return self.seed + (self.start is not None) + (self.regression is not None)


@dataclass(frozen=True)
class Pairs:
    """The slices that stage 2 of a direction learns from; see `datasets.PairedBatches`."""

    slices: Slices
    coarse: np.ndarray  # (n, variants, H, W), encoded
    direction: str
    sources: np.ndarray | None = None  # (n, 1, H, W), encoded; None: the slices' own


def make_plans(
    size: int, *, seed: int, batch_size: int, regression_steps: int, pix2pix_steps: int, flow_steps: int,
    crop: int | None = None, shift: int = 0, prefix: str = "", **settings: object,
) -> dict[str, Stage2Plan]:  # fmt: skip
    """The trainings of a direction in their order, by the method's name, from the parameters of notebook 03.

    `regression`; `pix2pix`, which begins with its weights, sees no coarse image, and is left out for no steps or where
    the source is not seen; `flow`, which learns the regression's residual. Where the source is not seen, the coarse
    image always is. size: of the slices, in pixels. prefix: of the names, such as "unpaired_". settings: fields of
    RegressionSettings, FlowSettings and FitSettings, by name. InputError for a name that none of them has, and for a
    size or a crop that the U-Net cannot halve down to its last level.
    """
    kinds = (RegressionSettings, FlowSettings, FitSettings)
    regression_values, flow_values, fit_values = pick_settings("stage 2", settings, *kinds, without=DERIVED)
    common = {"patch": max(1, size // GRID)}
    if not settings.get("sees_source", True):
        common["coarse_dropout"] = 0.0
    regression = RegressionSettings(**{**regression_values, **common})
    unit = regression.patch * 2 ** (len(regression.multipliers) - 1)
    if size % unit or (crop or size) % unit:
        raise InputError(f"size {size}, crop {crop}: the networks need multiples of {unit} pixels")

    def plan(stage: RegressionSettings | FlowSettings, steps: int, **more: str) -> Stage2Plan:
        return Stage2Plan(stage, FitSettings(steps, **fit_values), shift, batch_size, seed, crop, **more)

    stages = {"regression": plan(regression, regression_steps)}
    if pix2pix_steps and regression.sees_source:
        judge = {"patch_width": max(1, regression.width // 2), "patch_layers": 3 if size >= 256 else 2}
        direct = {"coarse_dropout": 1.0, "laplace": False, "lambda_adversarial": ADVERSARIAL, **judge}
        pix2pix = RegressionSettings(**{**regression_values, **common, **direct})
        stages["pix2pix"] = plan(pix2pix, pix2pix_steps, start=f"{prefix}regression")
    stages["flow"] = plan(FlowSettings(**{**flow_values, **common}), flow_steps, regression=f"{prefix}regression")
    return {prefix + name: value for name, value in stages.items()}


def validation_patients(splits: dict[str, list[str]], direction: str) -> list[str]:
    """Who validates stage 2 of a direction: the patients whose source the CycleGAN was trained on.

    Stage 2 of this direction does not learn from them. Their coarse images are in-fold, and so a little better than a
    new patient's. The test patients stay for notebook 04.
    """
    return splits["train_" + SOURCE[direction]]


def write_coarse_images(slices: Slices, cyclegan: CycleGAN, direction: str, path: Path) -> np.ndarray:
    """Coarse images (n, 1, H, W) of all slices of a dataset, written to `path` (.npy).

    Memory-mapped, encoded, float32: what a training holds in memory does not grow with its patients.
    """
    kind = SOURCE[direction]
    with atomic_write(path) as temporary:
        shape = (len(slices), 1, *slices[0][kind].shape[1:])
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        for first in range(0, len(slices), BATCH):
            part = range(first, min(first + BATCH, len(slices)))
            source = torch.stack([slices[i][kind] for i in part])
            out[part.start : part.stop] = coarse_images(cyclegan, source, direction).numpy()
        out.flush()
    return np.load(path, mmap_mode="r")


def load_real_pairs(run_dir: Path, direction: str, patients: Sequence[str] | None = None, neighbours: int = 1) -> Pairs:
    """Aligned slices of a direction; their coarse images are made and kept in the run's `coarse/<direction>.npy`.

    patients: by default `splits.refiner_patients`. neighbours: of the source's slices.
    InputError where notebook 01 has not prepared the run folder, or stage 1 has no checkpoint.
    """
    run, splits, window = RunFolder(run_dir), read_splits(run_dir), read_window(run_dir)
    prepared = Prepared(run.prepared)
    patients = list(refiner_patients(splits, direction) if patients is None else patients)
    cyclegan, kind = load_cyclegan(run.checkpoint("cyclegan")), SOURCE[direction]
    sources = Slices(prepared, patients, (kind,), window)
    coarse = write_coarse_images(sources, cyclegan, direction, run.coarse / f"{direction}.npy")
    return Pairs(Slices(prepared, patients, ("pet", "ct"), window, neighbours), coarse, direction)


def load_cycle_pairs(run_dir: Path, direction: str, *, seed: int, perturbation: Perturbation | None = None) -> Pairs:
    """Cycle pairs of a direction from the target images alone of the same patients as `load_real_pairs`.

    F(y) and VARIANTS of c' are made and kept in the run's `coarse/cycle_<direction>_….npy`. InputError where notebook
    01 has not prepared the run folder, or stage 1 has no checkpoint.
    """
    run, splits, window = RunFolder(run_dir), read_splits(run_dir), read_window(run_dir)
    prepared = Prepared(run.prepared)
    patients = refiner_patients(splits, direction)
    cyclegan, kind, rng = load_cyclegan(run.checkpoint("cyclegan")), TARGET[direction], np.random.default_rng(seed)
    slices = Slices(prepared, patients, (kind,), window)
    folder, name = run.coarse, f"cycle_{direction}"
    shape = slices[0][kind].shape[1:]
    with atomic_write(folder / f"{name}_x.npy") as x_path, atomic_write(folder / f"{name}_c.npy") as c_path:
        x = np.lib.format.open_memmap(x_path, "w+", np.float32, (len(slices), 1, *shape))
        c = np.lib.format.open_memmap(c_path, "w+", np.float32, (len(slices), VARIANTS, *shape))
        for first in range(0, len(slices), BATCH):
            part = slice(first, min(first + BATCH, len(slices)))
            y = torch.stack([slices[i][kind] for i in range(part.start, part.stop)])
            images = make_cycle_pair(cyclegan, y, direction, perturbation or Perturbation(), rng, VARIANTS)
            x[part], c[part] = (image.numpy() for image in images)
        x.flush()
        c.flush()
    held = [np.load(folder / f"{name}_{which}.npy", mmap_mode="r") for which in "cx"]
    return Pairs(Slices(prepared, patients, (kind,), window), held[0], direction, sources=held[1])


def load_pairs(
    run_dir: Path, direction: str, kind: str, *, seed: int, paired_patients: int | None = None, neighbours: int = 1,
    perturbation: Perturbation | None = None,
) -> list[Pairs]:  # fmt: skip
    """The pairs of one of KINDS, of "both" the real ones first; see `load_real_pairs` and `load_cycle_pairs`.

    paired_patients: how many of `splits.refiner_patients` have real pairs, the first ones; None: all. InputError for
    another kind, no patient, and cycle pairs with neighbours.
    """
    if kind not in KINDS:
        raise InputError(f"pairs {kind!r}: must be one of {', '.join(KINDS)}")
    if paired_patients is not None and paired_patients < 1:
        raise InputError(f"paired_patients {paired_patients} must be 1 or more, or None; without any take pairs cycle")
    if kind != "real" and neighbours != 1:
        raise InputError(f"pairs {kind!r}: cycle pairs have single slices, not neighbours {neighbours}")
    datasets = []
    if kind != "cycle":
        patients = refiner_patients(read_splits(run_dir), direction)[:paired_patients]
        datasets.append(load_real_pairs(run_dir, direction, patients, neighbours))
    if kind != "real":
        datasets.append(load_cycle_pairs(run_dir, direction, seed=seed, perturbation=perturbation))
    return datasets


def train_stage(
    run_dir: Path,
    name: str,
    pairs: Sequence[Pairs],
    plan: Stage2Plan,
    *,
    resume: bool,
    watchers: Sequence[Watcher] = (),
) -> list[dict]:
    """Trains a regression, pix2pix or a flow, as `plan.stage` says; the rows logged.

    Into `checkpoints/<name>_<direction>.pt`. pairs: of one kind, or of several, which share each batch. Validated on
    the `validation_patients` of whom there are no pairs, if there are such. InputError for a checkpoint of other
    settings or data, and where `plan.start` or `plan.regression` is missing or another network; FloatingPointError for
    a loss that is not finite or has exploded.
    """
    run, splits = RunFolder(run_dir), read_splits(run_dir)
    prepared = Prepared(run.prepared)
    direction, known = pairs[0].direction, {study for part in pairs for study in part.slices.studies}
    name = f"{name}_{direction}"
    batches = _batches(pairs, plan.batch_size, plan.shift, plan.crop)
    stage = _stage(run, direction, plan, batches)
    unseen = [
        patient for patient in validation_patients(splits, direction) if not known & set(prepared.studies([patient]))
    ]
    neighbours = pairs[0].slices.neighbours
    return fit(
        stage, batches, plan.fit, checkpoint=run.checkpoint(name), fingerprint=prepared.fingerprint,
        seed=plan.draws, resume=resume, name=name, preview=_batches(pairs, PREVIEWED).fixed(),
        watchers=[TensorBoardLog(run.logs / name), *watchers],
        validate=unseen and RefinerValidation(run_dir, unseen, direction, neighbours=neighbours),
    )  # fmt: skip


def _batches(
    pairs: Sequence[Pairs], size: int, shift: int = 0, crop: int | None = None
) -> PairedBatches | MixedBatches:
    if size % len(pairs):
        raise InputError(f"a batch of {size} cannot be shared by {len(pairs)} kinds of pairs; take a multiple")
    parts = [
        PairedBatches(
            dataset.slices, dataset.coarse, dataset.direction, size // len(pairs), shift, dataset.sources, crop
        )
        for dataset in pairs
    ]
    return parts[0] if len(parts) == 1 else MixedBatches(parts)


def _stage(
    run: RunFolder, direction: str, plan: Stage2Plan, batches: PairedBatches | MixedBatches
) -> Regression | ResidualFlow:
    """The stage before its first step; a flow's residual is measured on the training's own batches."""
    if isinstance(plan.stage, RegressionSettings):
        stage = Regression(plan.stage, plan.seed)
        if plan.start:
            stage.start_from(load_regression(run.checkpoint(f"{plan.start}_{direction}")))
        return stage
    regression = load_regression(run.checkpoint(f"{plan.regression}_{direction}"))
    settings = replace(plan.stage, residual_spectrum=measure_residual_spectrum(regression, batches, plan.seed))
    return ResidualFlow(settings, regression, plan.seed)


def measure_residual_spectrum(
    regression: Regression, batches: PairedBatches | MixedBatches, seed: int
) -> tuple[float, ...]:
    """The spectrum of y − m(x, c) over MEASURED batches, in network units; see `spectrum.spectrum`.

    To three digits, so that another number of threads does not make it another flow, which would not resume. No band
    is below FLOOR of the largest.
    """
    residuals = []
    for k in range(MEASURED):
        batch = batches(np.random.default_rng([seed, k]))
        residuals.append(batch["target"] - regression.predict(batch["source"], batch["coarse"]).cpu())
    bands = spectrum(torch.cat(residuals))
    return tuple(float(f"{max(s, FLOOR * max(bands)):.3g}") for s in bands)
