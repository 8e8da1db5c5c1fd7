"""Stage 2 of a run folder: the refiner of a direction, its controls, and the unpaired prior.

What notebook 03 and `make ablation` train: one function for all of them, which differ in their settings alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from petct_lib import InputError, metrics
from petct_lib.augment import Augmentation
from petct_lib.calibration import scale_to_fit
from petct_lib.data import SOURCE, TARGET, PairedBatches, Slices, read_splits, refiner_patients
from petct_lib.files import read_json, write_json
from petct_lib.intensity import ENCODE, read_window
from petct_lib.logs import TensorBoardLog
from petct_lib.prepare import FILL, Prepared
from petct_lib.prior import Prior, PriorSettings
from petct_lib.realism import spread
from petct_lib.refiner import Refiner, RefinerSettings
from petct_lib.spectrum_matching import fit_gains
from petct_lib.train import FitSettings, Watcher, fit
from petct_lib.train_cyclegan import checkpoint_of
from petct_lib.translate import FITTED, Translator, coarse_for, load_cyclegan, load_refiner
from petct_lib.validation import RefinerValidation

PREVIEWED = 4  # slices of the sample panel
ALPHAS = tuple(k / 10 for k in range(16))  # that the mode `default` chooses from
CALIBRATED = 24  # slices of a validation patient that α and the error's scale are fitted on: neighbours are alike
MARGIN = 1.02  # how much error, as a multiple of `refiner_l1`'s, the mode `default` may pay for texture


@dataclass(frozen=True)
class Plan:
    """Everything that decides a refiner's result, beside the data and the CycleGAN."""

    stage: RefinerSettings | PriorSettings
    fit: FitSettings
    augmentation: Augmentation
    batch_size: int
    seed: int
    start: str | None = None  # a finished refiner of the run, `checkpoints/<start>.pt`, whose denoiser it begins with

    @property
    def draws(self) -> int:
        """The seed of the batches: one that goes on from another sees others than that began with."""
        return self.seed + (self.start is not None)


def plans(plan: Plan, warmup: float, direction: str) -> dict[str, Plan]:
    """The trainings of a direction in their order, by the method's name, from the plan of its whole refiner.

    For the share `warmup` of the steps, two regressions: `unet_l1` from the source alone, and `refiner_l1` from source
    and coarse image, with an error network. For the other steps, with the refiner's losses, from the weights of the
    first `pix2pix`, the line's end at α = 0, and from those of the second `refiner`, its end at α = 1. InputError for a
    share that leaves one of them no step.
    """
    steps = int(warmup * plan.fit.steps)
    if not 0 < steps < plan.fit.steps:
        raise InputError(f"warmup {warmup}: of {plan.fit.steps} steps it must leave some to regression and refiner")
    first = replace(plan, fit=replace(plan.fit, steps=steps))
    rest = replace(plan, fit=replace(plan.fit, steps=plan.fit.steps - steps))
    regression = plan.stage.regression()
    return {
        "unet_l1": replace(first, stage=replace(regression.direct(), error_width=0)),
        "pix2pix": replace(rest, stage=plan.stage.direct(), start=f"unet_l1_{direction}"),
        "refiner_l1": replace(first, stage=regression),
        "refiner": replace(rest, start=f"refiner_l1_{direction}"),
    }


@dataclass(frozen=True)
class HeldOut:
    """Slices of a validation patient: x and coarse as `Translator.start` gives them, real and body (n, H, W)."""

    x: Tensor
    coarse: Tensor
    real: np.ndarray
    body: np.ndarray


@dataclass(frozen=True)
class Point:
    """A point of the line and its mean scores over the validation patients: body MAE in the target's unit, spectrum."""

    alpha: float
    gains: list[float] | None  # by ring; None: its spectrum is not matched
    mae: float
    spectrum: float


@dataclass(frozen=True)
class Pairs:
    """The slices that refiners of a direction learn from, and their coarse images, (n, 1, H, W), encoded."""

    slices: Slices
    coarse: np.ndarray
    direction: str


def held_out(splits: dict[str, list[str]], direction: str) -> list[str]:
    """Who validates the refiner of a direction: the patients whose source the CycleGAN was fitted on.

    No refiner of this direction learns from them. Their coarse images are in-fold, and so a little better than a new
    patient's. The test patients stay for notebook 04.
    """
    return splits["train_" + SOURCE[direction]]


def pairs_of(
    run_dir: Path, direction: str, patients: Sequence[str] | None = None, name: str | None = None, neighbours: int = 1
) -> Pairs:
    """The pairs of a direction; their coarse images are made and kept in the run's `coarse/<name>.npy`.

    patients: by default `data.refiner_patients`; name: by default the direction. neighbours: of the source's slices.
    InputError where notebook 01 has not prepared the run folder, or stage 1 has no checkpoint.
    """
    run_dir = Path(run_dir)
    prepared, splits = Prepared(run_dir / "prepared"), read_splits(run_dir)
    window = read_window(run_dir)
    patients = list(refiner_patients(splits, direction) if patients is None else patients)
    cyclegan, kind = load_cyclegan(checkpoint_of(run_dir)), SOURCE[direction]
    around = Slices(prepared, patients, (kind,), window, cyclegan.settings.neighbours)
    path = run_dir / "coarse" / f"{name or direction}.npy"
    coarse = coarse_for(around, cyclegan.generator(direction), kind, path)
    return Pairs(Slices(prepared, patients, ("pet", "ct"), window, neighbours), coarse, direction)


def train_refiner(
    run_dir: Path, name: str, pairs: Pairs, plan: Plan, *, resume: bool, watchers: Sequence[Watcher] = ()
) -> list[dict]:
    """Trains a refiner, a control or the prior, as `plan.stage` says, into `checkpoints/<name>.pt`; the rows logged.

    A prior reads the targets of the pairs alone. Validated on the `held_out` patients of whom there are no pairs, if
    there are such. InputError and FloatingPointError as for `train.fit`, and InputError
    where `plan.start` is missing or another network.
    """
    run_dir = Path(run_dir)
    prepared, splits = Prepared(run_dir / "prepared"), read_splits(run_dir)
    batches = PairedBatches(pairs.slices, pairs.coarse, pairs.direction, plan.batch_size, plan.augmentation)
    fixed = PairedBatches(pairs.slices, pairs.coarse, pairs.direction, PREVIEWED).fixed()
    stage = (Refiner if isinstance(plan.stage, RefinerSettings) else Prior)(plan.stage, plan.seed)
    if plan.start:
        stage.start_from(load_refiner(run_dir / "checkpoints" / f"{plan.start}.pt"))
    known = set(pairs.slices.studies)
    unseen = [patient for patient in held_out(splits, pairs.direction) if not known & set(prepared.studies([patient]))]
    return fit(
        stage, batches, plan.fit, checkpoint=run_dir / "checkpoints" / f"{name}.pt",
        fingerprint=prepared.fingerprint, seed=plan.draws, resume=resume, name=name, preview=fixed,
        watchers=[TensorBoardLog(run_dir / "logs" / name), *watchers],
        validate=unseen and RefinerValidation(run_dir, unseen, pairs.direction, neighbours=pairs.slices.neighbours),
    )  # fmt: skip


def calibrate(run_dir: Path, direction: str, *, samples: int, seed: int, margin: float = MARGIN) -> dict:
    """What the modes of `translate` need for a direction, fitted on `held_out` patients and kept in the run's folder.

    "alpha_distortion": the α of ALPHAS with the least mean body MAE. "alpha" and "gains": of all points of the line, as
    they are (gains: None) and with their spectrum matched (gains by ring), the one with the least mean distance of the
    body's spectrum whose mean body MAE is at most `margin` times that of the control `refiner_l1`, whose network the
    refiner began with; where none is, that of "alpha_distortion". "error_scale": the factor on the uncertainty map of
    that image, the mean over patients: the error network learned the errors of single samples at α = 1 on its own
    training patients, and is used on averaged weights and samples, at α, on new patients, with the distance between the
    line's ends added. These have in-fold coarse images, see `held_out`. By α: "mae", "mae_matched" in the target's
    unit, "spectrum", "spectrum_matched"; and "mae_refiner_l1".
    """
    run_dir, translator = Path(run_dir), Translator(run_dir)
    given, translator.fitted = {"samples": samples, "seed": seed}, {}
    patients = list(held_out_slices(translator, run_dir, direction))
    ends = [translator.ends(of.x, of.coarse, direction, **given) for of in patients]
    control = load_refiner(run_dir / "checkpoints" / f"refiner_l1_{direction}.pt")
    of_control = [translator.image(control, of.x, of.coarse, direction, **given) for of in patients]
    mae_control, _ = _scores(patients, of_control, FILL[TARGET[direction]])
    plain, matched = _line(translator, direction, patients, ends)
    least = min(plain.values(), key=lambda point: point.mae)
    within = [point for point in (*plain.values(), *matched.values()) if point.mae <= margin * mae_control]
    best = min(within, key=lambda point: point.spectrum, default=least)
    fitted = {
        "alpha": best.alpha, "alpha_distortion": least.alpha, "gains": best.gains,
        "mae": {str(alpha): round(of.mae, 4) for alpha, of in plain.items()},
        "mae_matched": {str(alpha): round(of.mae, 4) for alpha, of in matched.items()},
        "spectrum": {str(alpha): round(of.spectrum, 4) for alpha, of in plain.items()},
        "spectrum_matched": {str(alpha): round(of.spectrum, 4) for alpha, of in matched.items()},
        "mae_refiner_l1": round(mae_control, 4),
    }  # fmt: skip
    translator.fitted = {direction: fitted}
    scales = []
    for of, pair in zip(patients, ends, strict=True):
        result = translator.at("default", pair, of.x, of.coarse, direction)
        scales.append(scale_to_fit(result.uncertainty, np.abs(result.refined - of.real), of.body))
    fitted["error_scale"] = float(np.mean(scales))
    path = run_dir / FITTED
    write_json({**(read_json(path) if path.exists() else {}), direction: fitted}, path)
    return fitted


def _line(
    translator: Translator, direction: str, patients: Sequence[HeldOut], ends: Sequence[Sequence[np.ndarray]]
) -> tuple[dict[float, Point], dict[float, Point]]:
    """The points of ALPHAS by α: as they are, and matched."""
    plain, matched, air = {}, {}, FILL[TARGET[direction]]
    for alpha in ALPHAS:
        images = [translator.between(*pair, alpha, direction) for pair in ends]
        found = gains_of(translator, direction, [of.real for of in patients], images)
        gains = [round(float(gain), 4) for gain in found]
        sharp = [translator.matched(image, gains, direction) for image in images]
        plain[alpha] = Point(alpha, None, *_scores(patients, images, air))
        matched[alpha] = Point(alpha, gains, *_scores(patients, sharp, air))
    return plain, matched


def _scores(patients: Sequence[HeldOut], images: Sequence[np.ndarray], air: float) -> tuple[float, float]:
    """Means over patients: body MAE, and distance of the body's spectrum."""
    maes, distances = [], []
    for of, image in zip(patients, images, strict=True):
        maes.append(metrics.mae(of.real, image, of.body))
        distances.append(metrics.spectrum_distance(*(metrics.inside(i, of.body, air) for i in (of.real, image))))
    return float(np.mean(maes)), float(np.mean(distances))


def gains_of(
    translator: Translator, direction: str, real: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> np.ndarray:
    """`spectrum_matching.fit_gains` from patients' stacks (n, H, W) in the target's unit."""
    encode, window = ENCODE[TARGET[direction]], translator.window
    return fit_gains(*([encode(image, window) for image in images] for images in (real, made)))


def held_out_slices(translator: Translator, run_dir: Path, direction: str) -> Iterator[HeldOut]:
    """Of each validation patient, CALIBRATED slices."""
    prepared, splits = Prepared(Path(run_dir) / "prepared"), read_splits(run_dir)
    for patient in held_out(splits, direction):
        kinds = (SOURCE[direction], TARGET[direction], "body")
        source, real, body = (np.array(prepared.of_patient(patient, kind)) for kind in kinds)
        chosen = spread(len(source), CALIBRATED)
        x, coarse = translator.start(source, direction, prepared.lengths(patient))
        yield HeldOut(x[chosen], coarse[chosen], real[chosen], body[chosen])
