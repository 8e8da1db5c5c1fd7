"""Scores of a stage under training, on a few slices of patients that are kept from it and from the test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from petct_lib import InputError
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.prepare import Prepared
from petct_lib.imaging.directions import DIRECTIONS, SOURCE, TARGET, UNIT
from petct_lib.imaging.intensity import ENCODE, Intensity, read_window
from petct_lib.imaging.slices import center_slice, evenly_spaced
from petct_lib.inference.translator import (
    coarse_images,
    decode_images,
    encode_slices,
    map_batches,
    noise_like,
    translate_coarse,
)
from petct_lib.metrics import structure, training_warnings, voxelwise
from petct_lib.models.checkpoints import load_cyclegan
from petct_lib.models.cyclegan import CycleGAN
from petct_lib.models.regression import Regression
from petct_lib.models.residual_flow import ResidualFlow

KINDS = ("ct", "pet")
SAMPLED = 2  # steps of the sample that a flow is validated by


@dataclass(frozen=True)
class _Patient:
    """The slices of one patient's first study that are scored, arrays (n, H, W) in HU and SUV."""

    study: str
    chosen: np.ndarray  # (n,): their numbers in the study
    real: dict[str, np.ndarray]  # by kind
    body: np.ndarray
    lung: np.ndarray | None  # None: the study has no such mask


class Validation:
    """Scores of a stage by name, lower `validation_score` is better; to be called at every checkpoint.

    The patients must be neither trained on nor tested: those of the role `refine`. The slices are read once.
    """

    def __init__(self, prepared: Prepared, patients: list[str], window: Intensity, slices: int = 16) -> None:
        self.window, self.pixel_mm = window, prepared.index["grid"]["pixel_mm"]
        self.patients = [_read(prepared, patient, slices) for patient in patients]
        if sum(len(p.chosen) for p in self.patients) < 2:
            raise InputError(f"validation on {len(patients)} patients, {slices} slices each: needs two slices or more")

    def __call__(self, stage: CycleGAN) -> dict[str, float]:
        """The scores, keys `validation_…`; means over patients of what each patient's slices give.

        mae_hu, mae_suv: in the body. score: the mean of both in the network's range, so that neither unit rules.
        diversity_ct, diversity_pet: `training_warnings.diversity` of all patients' slices, in the network's range, so
        that no hot bladder rules. invented_percent, lungless_percent: `training_warnings.invented_percent` and
        `training_warnings.lungs_in_lungless_slices`, over the patients that have such tissue or slices; else left out.
        """
        fakes = [
            {TARGET[d]: translate_coarse(stage, patient.real[SOURCE[d]], d, self.window) for d in DIRECTIONS}
            for patient in self.patients
        ]
        scores, encoded_maes = {}, []
        for kind in KINDS:
            pairs = [(p.real[kind], fake[kind], p.body) for p, fake in zip(self.patients, fakes, strict=True)]
            scores[f"mae_{UNIT[kind].lower()}"] = _mean([voxelwise.mae(*pair) for pair in pairs])
            encode = ENCODE[kind]
            pairs = [(encode(real, self.window), encode(fake, self.window), body) for real, fake, body in pairs]
            encoded_maes.append(_mean([voxelwise.mae(*pair) for pair in pairs]))
            reals, synthetic = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
            scores[f"diversity_{kind}"] = training_warnings.diversity(synthetic, reals)
        scores["score"] = _mean(encoded_maes)
        scores |= self._invented_percent([fake["ct"] for fake in fakes])
        return {f"validation_{name}": value for name, value in scores.items()}

    def _invented_percent(self, fake_cts: list[np.ndarray]) -> dict[str, float]:
        scored = [(p, fake) for p, fake in zip(self.patients, fake_cts, strict=True) if p.lung is not None]
        scores = {}
        for name, score in (
            ("invented_percent", training_warnings.invented_percent),
            ("lungless_percent", training_warnings.lungs_in_lungless_slices),
        ):
            values = [score(fake, p.real["ct"], p.body, p.lung, self.pixel_mm) for p, fake in scored]
            values = [value for value in values if value is not None]
            if values:
                scores[name] = _mean(values)
        return scores


class RefinerValidation:
    """Scores of a regression, pix2pix or flow of one direction, on a few slices; lower `validation_score` is better.

    The patients must be neither trained on, as pairs, nor tested: see `train_refiner.validation_patients`.
    """

    def __init__(
        self, run_dir: Path, patients: list[str], direction: str, slices: int = 8, neighbours: int = 1
    ) -> None:
        run = RunFolder(run_dir)
        prepared = Prepared(run.prepared)
        self.window = read_window(run_dir)
        self.kind, source = TARGET[direction], SOURCE[direction]
        cyclegan = load_cyclegan(run.checkpoint("cyclegan"))
        self.patients = []  # (source, coarse) as the networks take them, and the real image and body, by patient
        for one in (_read(prepared, patient, slices) for patient in patients):
            study = np.array(prepared.array(one.study, source))
            x = encode_slices(study, source, self.window, neighbours)[one.chosen]
            coarse = coarse_images(cyclegan, center_slice(x), direction)
            self.patients.append((x, coarse, one.real[self.kind], one.body))

    def __call__(self, stage: Regression | ResidualFlow) -> dict[str, float]:
        """Means over the patients, keys `validation_…`: mae_hu or mae_suv of the body, spectrum, score.

        Of a regression's image, or a flow's sample of SAMPLED steps. score: a regression's body MAE in the network's
        range; a flow's loss with fixed noise, for the error of a sample does not say how good it is.
        """
        maes, scores, spectra = [], [], []
        for x, c, real, body in self.patients:
            y = encode_slices(real, self.kind, self.window)
            if isinstance(stage, ResidualFlow):
                m, noise = map_batches(stage.regression.predict, x, c), noise_like(c, seed=0, sample=0)
                image = map_batches(lambda *images: stage.sample(*images, steps=SAMPLED)[-1], x, c, m, noise)
                score = stage.loss_on(x, c, y, torch.Generator().manual_seed(0))
            else:
                image = map_batches(stage.predict, x, c)
                score = float((image - y).abs().numpy()[:, 0][body].mean())
            image = decode_images(image, self.kind, self.window)
            maes.append(voxelwise.mae(real, image, body))
            seen = (structure.mask_slices(stack, body, real.min()) for stack in (real, image))
            spectra.append(structure.spectrum_distance(*seen))
            scores.append(score)
        unit = UNIT[self.kind].lower()
        values = {f"mae_{unit}": _mean(maes), "score": _mean(scores), "spectrum": _mean(spectra)}
        return {f"validation_{name}": value for name, value in values.items()}


def _read(prepared: Prepared, patient: str, slices: int) -> _Patient:
    study = prepared.studies([patient])[0]
    n = prepared.row(study)["slices"]
    chosen = evenly_spaced(n, slices, ends=False)
    arrays = {kind: np.array(prepared.array(study, kind)[chosen]) for kind in (*KINDS, "body")}
    lung = np.array(prepared.array(study, "lung")[chosen]) if "lung" in prepared.regions(patient) else None
    return _Patient(study, chosen, {kind: arrays[kind] for kind in KINDS}, arrays["body"], lung)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
