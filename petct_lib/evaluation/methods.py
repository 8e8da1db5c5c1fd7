"""The methods that are compared, and their images of a patient."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from petct_lib import InputError
from petct_lib.data.prepare import Prepared
from petct_lib.evaluation.cases import Case, load_case
from petct_lib.imaging.directions import SOURCE, TARGET
from petct_lib.imaging.intensity import DECODE, ENCODE, Intensity
from petct_lib.inference.translator import Translator, map_batches
from petct_lib.models.checkpoints import load_regression


def mean_atlas(prepared: Prepared, patients: list[str], kind: str) -> np.ndarray:
    """Mean of all slices of some patients, (H, W), in HU or SUV: the `atlas` control."""
    total, count = 0.0, 0
    for study in prepared.studies(patients):
        array = prepared.array(study, kind)
        total, count = total + array.sum(axis=0, dtype=np.float64), count + len(array)
    return (total / count).astype(np.float32)


def copy_source(source: np.ndarray, direction: str, window: Intensity) -> np.ndarray:
    """The source given as the translation, through the network's range: the `copy` control, in the target's unit."""
    return DECODE[TARGET[direction]](ENCODE[SOURCE[direction]](source, window), window)


METHODS = {  # by name in `scores.csv`: what it is, and the question that it is there to answer
    "copy": ("the source, shown through the target's range", "Is the task trivial?"),
    "atlas": ("the mean of all training targets", "Does a network look at the patient at all?"),
    "cyclegan": ("stage 1 alone: the coarse image", "What does unpaired training reach?"),
    "regression": ("a U-Net from source and coarse image, L1 loss", "What does the diffusion add?"),
    "regression_without_coarse": (
        "the same network, its coarse image replaced by zeros", "What is the coarse image worth?",
    ),
    "pix2pix": (
        "the regression without coarse image, fine-tuned with a discriminator", "Is a discriminator enough?",
    ),
    "sample": ("one sample of the residual flow", "Mode `sample`: can it be told from a real image?"),
    "mean": ("the mean of the samples", "Mode `mean`: has it less error than a regression?"),
    "unpaired_sample": ("one sample of a flow trained on cycle pairs", "What is possible without any real pair?"),
    "unpaired_mean": ("the mean of such samples", "What is possible without any real pair?"),
}  # fmt: skip


def translate_patient(
    prepared: Prepared, splits: dict, patient: str, direction: str, translator: Translator, *, samples: int, steps: int,
    seed: int, atlas: np.ndarray, methods: Collection[str] = METHODS, shared_noise: bool = True,
    without_coarse: bool = False, bf16: bool = False,
) -> Case:  # fmt: skip
    """Those of `methods` that the run has on one patient, by their names in `scores.csv`.

    seed: of the noise, which is another for each patient. shared_noise: see `translator.noise_like`. without_coarse:
    the samples do not see the coarse image. bf16: see `Refiner.samples`. atlas: `mean_atlas` of the training targets.
    InputError for a patient who is not of the role `test`: all others were learned from or chosen by.
    """
    if patient not in splits["test"]:
        raise InputError(f"patient {patient} is not one of the {len(splits['test'])} test patients: no score is made")
    case = load_case(prepared, patient, direction)
    x, coarse = translator.start(case.source, direction, case.lengths)
    images = _controls(case, x, coarse, direction, translator, atlas, methods)
    own = seed * len(splits["test"]) + splits["test"].index(patient)  # else one lucky noise would be that of them all
    drawing = {"samples": samples, "steps": steps, "seed": own, "shared": shared_noise, "bf16": bf16}
    stacks, scales = {}, {}
    for prefix in ("",) if without_coarse else ("", "unpaired_"):  # of cycle pairs, there is nothing else to see
        refiner = translator.refiner(direction, prefix)
        if refiner and {f"{prefix}sample", f"{prefix}mean"} & set(methods):
            seen = refiner.without(coarse) if without_coarse else coarse
            stack = translator.decode(torch.stack(list(refiner.samples(x, seen, **drawing))), direction)
            images |= {f"{prefix}sample": stack[0], f"{prefix}mean": stack.mean(axis=0)}
            stacks[f"{prefix}mean"] = stack
    if "regression" in images and translator.refiners[direction].regression.settings.laplace:
        scales["regression"] = translator.error_scale(x, coarse, images["regression"], direction)
    images = {method: image for method, image in images.items() if method in methods}
    return replace(case, images=images, samples=stacks, scales=scales)


def _controls(
    case: Case, x: Tensor, coarse: Tensor, direction: str, translator: Translator, atlas: np.ndarray,
    methods: Collection[str],
) -> dict[str, np.ndarray]:  # fmt: skip
    """The images of those of `methods` that need no sampling."""
    without = torch.zeros_like(coarse)
    pix2pix = translator.checkpoints / f"pix2pix_{direction}.pt"
    make = {
        "copy": lambda: copy_source(case.source, direction, translator.window),
        "atlas": lambda: np.broadcast_to(atlas, case.source.shape),
        "cyclegan": lambda: translator.decode(coarse, direction),
        "regression": lambda: translator.regression(x, coarse, direction),
        "regression_without_coarse": lambda: translator.regression(x, without, direction),
        "pix2pix": lambda: translator.decode(map_batches(load_regression(pix2pix).predict, x, without), direction),
    }
    there = {
        "regression_without_coarse": translator.refiners[direction].regression.settings.coarse_dropout > 0,
        "pix2pix": pix2pix.exists(),
    }
    return {name: image() for name, image in make.items() if name in methods and there.get(name, True)}
