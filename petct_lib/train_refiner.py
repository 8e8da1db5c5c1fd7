"""Stage 2 of a run folder: the refiner of a direction, its controls, and the unpaired prior.

What notebook 03 and `make ablation` train: one function for all of them, which differ in their settings alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

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
CURVES = (  # in `refiner.json`: name, score, of the line as it is or with its spectrum matched
    ("mae", "mae", True), ("mae_matched", "mae", False), ("spectrum", "spectrum", True),
    ("spectrum_matched", "spectrum", False),
)  # fmt: skip
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
    control = load_refiner(run_dir / "checkpoints" / f"refiner_l1_{direction}.pt")
    of_control, seen = [], []
    for x, coarse, real, body in held_out_images(translator, run_dir, direction):
        ends = translator.ends(x, coarse, direction, **given)
        of_control.append(metrics.mae(real, translator.image(control, x, coarse, direction, **given), body))
        seen.append((ends, x, coarse, real, body))
    points, limit = _line(translator, direction, seen), margin * float(np.mean(of_control))
    least = min((point for point in points if point.gains is None), key=lambda point: point.mae)
    best = min((point for point in points if point.mae <= limit), key=lambda point: point.spectrum, default=least)
    fitted = {
        "alpha": best.alpha, "alpha_distortion": least.alpha, "gains": best.gains,
        **{name: {str(p.alpha): round(getattr(p, score), 4) for p in points if (p.gains is None) == plain}
           for name, score, plain in CURVES},
        "mae_refiner_l1": round(limit / margin, 4),
    }  # fmt: skip
    translator.fitted = {direction: fitted}
    results = [(translator.at("default", *of, direction), real, body) for *of, real, body in seen]
    scales = [scale_to_fit(r.uncertainty, np.abs(r.refined - real), body) for r, real, body in results]
    fitted["error_scale"] = float(np.mean(scales))
    path = run_dir / FITTED
    write_json({**(read_json(path) if path.exists() else {}), direction: fitted}, path)
    return fitted


def _line(translator: Translator, direction: str, seen: Sequence[tuple]) -> list[Point]:
    """All points of ALPHAS, as they are and matched, scored on `calibrate`'s patients."""
    points = []
    for alpha in ALPHAS:
        images = [translator.between(*ends, alpha, direction) for ends, *_ in seen]
        found = gains_of(translator, direction, [(real, i) for i, (*_, real, _) in zip(images, seen, strict=True)])
        gains = [round(float(gain), 4) for gain in found]
        matched = [translator.matched(image, gains, direction) for image in images]
        for those, of in ((images, None), (matched, gains)):
            scores = [
                _scores(i, real, body, FILL[TARGET[direction]]) for i, (*_, real, body) in zip(those, seen, strict=True)
            ]
            points.append(Point(alpha, of, *map(float, np.mean(scores, axis=0))))
    return points


def _scores(image: np.ndarray, real: np.ndarray, body: np.ndarray, air: float) -> tuple[float, float]:
    """Body MAE, and distance of the body's spectrum."""
    stacks = [metrics.inside(stack, body, air) for stack in (real, image)]
    return metrics.mae(real, image, body), metrics.spectrum_distance(*stacks)


def gains_of(translator: Translator, direction: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`spectrum_matching.fit_gains` from (real, made) of patients, (n, H, W) each in the target's unit."""
    encode, window = ENCODE[TARGET[direction]], translator.window
    return fit_gains(*([encode(image, window) for image in images] for images in zip(*pairs, strict=True)))


def held_out_images(translator: Translator, run_dir: Path, direction: str) -> Iterator[tuple]:
    """Of each validation patient, CALIBRATED slices: source and coarse as `Translator.start` gives them, real, body."""
    prepared, splits = Prepared(run_dir / "prepared"), read_splits(run_dir)
    for patient in held_out(splits, direction):
        kinds = (SOURCE[direction], TARGET[direction], "body")
        source, real, body = (np.array(prepared.of_patient(patient, kind)) for kind in kinds)
        chosen = spread(len(source), CALIBRATED)
        x, coarse = translator.start(source, direction, prepared.lengths(patient))
        yield x[chosen], coarse[chosen], real[chosen], body[chosen]
