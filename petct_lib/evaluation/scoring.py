"""Every method on every test patient: the rows of `scores.csv`."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from petct_lib import InputError
from petct_lib.common.parallel import parallel_map, require_all
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import read_splits
from petct_lib.evaluation.cases import PART, Case, split_studies
from petct_lib.evaluation.compare import EVERYONE
from petct_lib.evaluation.methods import METHODS, mean_atlas, translate_patient
from petct_lib.imaging.directions import TARGET, UNIT
from petct_lib.imaging.intensity import ENCODE, Intensity
from petct_lib.imaging.masks import FROM_HU
from petct_lib.imaging.mu_map import CARNEY
from petct_lib.imaging.slices import evenly_spaced
from petct_lib.inference.translator import Translator
from petct_lib.metrics import (
    attenuation,
    distribution,
    image_scores,
    lesion_scores,
    perceptual,
    realism,
    structure,
    synthrad,
)

CT_RANGE_HU = (-1024.0, 3000.0)  # fixed: never an image's own minimum and maximum
LPIPS_WINDOW = {"ct": (-1000.0, 400.0), "pet": (0.0, 10.0)}  # display windows, HU and SUV


def score_test_patients(
    run_dir: Path, direction: str, *, methods: Collection[str] = METHODS, lpips_model: torch.nn.Module | None = None,
    progress: Callable = iter, **drawing: object,
) -> tuple[list[dict], list[Case]]:  # fmt: skip
    """Rows of `methods` on all test patients of a run, and the cases without their samples: one patient a core.

    On a GPU one after the other. drawing: samples, steps, seed and more for `translate_patient`. InputError for a run
    that is not trained, and ValueError for images that cannot be scored.
    """
    prepared, splits = Prepared(RunFolder(run_dir).prepared), read_splits(run_dir)
    kind = TARGET[direction]
    atlas = mean_atlas(prepared, splits[f"train_{kind}"], kind)
    options = {**drawing, "atlas": atlas, "methods": tuple(methods)}
    work = partial(_score_test_patient, Path(run_dir), direction, lpips_model, options)
    results = require_all(
        parallel_map(work, splits["test"], jobs=1 if torch.cuda.is_available() else None, progress=progress)
    )
    return [row for rows, _ in results for row in rows], [case for _, case in results]


def _score_test_patient(
    run_dir: Path, direction: str, lpips_model: torch.nn.Module | None, options: dict, patient: str
) -> tuple[list[dict], Case]:
    prepared, splits, translator = Prepared(RunFolder(run_dir).prepared), read_splits(run_dir), Translator(run_dir)
    case = translate_patient(prepared, splits, patient, direction, translator, **options)
    rows = score_case(case, direction, translator.window, lpips_model)
    return rows, summarise_samples(case)


def summarise_samples(case: Case) -> Case:
    """The case with spread, ranks and middle slice of its samples in their place: they are many times the rest.

    Of a single sample the spread is 0, and of fewer than `distribution.LEAST` there are no ranks.
    """
    stack, body = case.samples.get("mean"), case.body
    if stack is None:
        return replace(case, samples={})
    middle = stack[:, stack.shape[1] // 2].copy()
    case = replace(case, samples={}, drawn=middle, spread=distribution.spread(stack))
    if len(stack) < distribution.LEAST:
        return case
    rng = np.random.default_rng(0)
    ranks = [
        distribution.rank_histogram(half[:, body], case.real[body], rng)
        for half in distribution.independent_halves(stack)
    ]
    return replace(case, ranks=sum(ranks))


def score_case(case: Case, direction: str, window: Intensity, lpips_model: torch.nn.Module | None = None) -> list[dict]:
    """One row a score: each method, all slices of the patient together, over body, lung, soft tissue, bone, lesions.

    Of a PET, the lesions one by one too, see `lesion_scores`; and how smoothly slice follows slice (`coherence`). The
    range of PSNR and SSIM is that of the direction, the same for every patient. InputError where the source is the real
    target itself: what was made from it is a reconstruction (PET→CT→PET), and no translation; ValueError for unequal
    shapes, values that are not finite, and no body. The rows have the columns of `rows.SCORE_COLUMNS`.
    """
    if case.source is not None and np.array_equal(case.source, case.real):
        raise InputError(f"patient {case.patient}: the source is the real target image; a reconstruction is not scored")
    kind = TARGET[direction]
    low, high = CT_RANGE_HU if kind == "ct" else (0.0, window.suv_cap)
    clipped = np.clip(case.real, low, high)
    lpips = lpips_model and partial(perceptual.lpips, model=lpips_model, window=LPIPS_WINDOW[kind])
    fixed = {"unit": UNIT[kind], "clip": (low, high)}
    rows = []
    for method, image in case.images.items():
        scores = image_scores.score_body(case.real, image, case.body, source=case.sources["body"], lpips=lpips, **fixed)
        for region in (name for name in case.masks if name != "body"):
            scores += image_scores.score_region(
                case.real, image, case.masks[region], region=region, source=case.sources[region], **fixed
            )
        scores += _further_scores(case, image, kind, (low, high))
        if len(stack := case.samples.get(method, ())) >= distribution.LEAST:
            scores += distribution.score_samples(clipped, stack, case.masks, unit=UNIT[kind], sources=case.sources)
        if method in case.scales:
            of_map = image, case.scales[method], case.masks
            scores += distribution.score_error_map(clipped, *of_map, unit=UNIT[kind], sources=case.sources)
        rows.extend({"direction": direction, "method": method, "patient": case.patient, **row} for row in scores)
    return rows


def _further_scores(case: Case, image: np.ndarray, kind: str, clip: tuple[float, float]) -> list[dict]:
    """What is no sum over voxels of one image, study by study: a patient's follow-up is another volume."""
    mask = {**case.sources, "lesion": case.sources.get("lesion", case.sources["body"])}  # invented ones: in the body
    clipped = replace(case, real=np.clip(case.real, *clip))
    moved = partial(_over_studies, clipped, np.clip(image, *clip))
    scores = [
        ("body", "coherence", realism.coherence(case.real, image, case.body, case.lengths), "1", mask["body"]),
        ("body", "shift_gain", moved(structure.shift_gain), "%", mask["body"]),
        ("body", "ms_ssim", moved(partial(synthrad.ms_ssim, clip=clip)), "1", mask["body"]),
    ]
    if kind == "ct":
        scores += _downstream(case, image, mask["body"])
    if kind == "pet" and case.voxel_mm:
        images = ((one.real, part, one.masks.get("lesion"), one.body) for one, part in split_studies(case, image))
        lesion = lesion_scores.score_lesions(images, case.voxel_mm).items()
        scores += [("lesion", name, value, lesion_scores.UNITS[name], mask["lesion"]) for name, value in lesion]
    return [
        {"region": region, "metric": name, "value": float(value), "unit": unit, "mask": source}
        for region, name, value, unit, source in scores
        if value is not None
    ]


def _downstream(case: Case, image: np.ndarray, body: str) -> list[tuple[str, str, float | None, str, str]]:
    """Attenuation over the body, where the tube voltage is known, and the lungs' overlap where there are any.

    Both lungs of the overlap are found by the same thresholds, whoever drew the region's mask.
    """
    known = case.kvp in CARNEY
    errors = attenuation.attenuation_errors(case.real, image, case.body, case.kvp) if known else {}
    dice = case.voxel_mm and _over_studies(case, image, partial(attenuation.lung_dice, voxel_mm=case.voxel_mm))
    return [*(("body", name, value, "%", body) for name, value in errors.items()), ("lung", "dice", dice, "1", FROM_HU)]


def _over_studies(case: Case, image: np.ndarray, score: Callable) -> float | None:
    """Mean of score(real, image, body) over the studies, by their voxels of body; None where no study has it."""
    scores = [(score(study.real, part, study.body), study.body.sum()) for study, part in split_studies(case, image)]
    scores = [(value, weight) for value, weight in scores if value is not None and not np.isnan(value)]
    if not scores:
        return None
    values, weights = zip(*scores, strict=True)
    return float(np.average(values, weights=weights))


def two_sample_accuracies(
    cases: list[Case], methods: Sequence[str], direction: str, window: Intensity, seed: int, progress: Callable = iter
) -> dict[str, float | None]:
    """How often a classifier tells a method's slices from real ones, 0.5 to 1, by method; one method a core.

    Trained on some of the cases' patients, judged on the others (see `realism.two_sample_accuracy`); None for a single
    one. Outside the body both are set to the lowest value.
    """
    accuracy = partial(_two_sample_accuracy, [keep_few_slices(case) for case in cases], direction, window, seed)
    return dict(zip(methods, require_all(parallel_map(accuracy, list(methods), progress=progress)), strict=True))


def keep_few_slices(case: Case) -> Case:
    """A case with the slices that the classifier reads and no others, so that it can go to another process."""
    chosen = evenly_spaced(len(case.real), realism.SLICES, ends=True)
    images = {method: image[chosen] for method, image in case.images.items()}
    masks, real = {"body": case.body[chosen]}, case.real[chosen]
    return replace(case, real=real, masks=masks, images=images, **PART)


def _two_sample_accuracy(cases: list[Case], direction: str, window: Intensity, seed: int, method: str) -> float | None:
    if len(cases) < 2:
        return None
    encode = ENCODE[TARGET[direction]]
    real, synthetic = (
        [np.where(case.body, encode(image, window), -1.0).astype(np.float32) for case, image in stacks]
        for stacks in (((case, case.real) for case in cases), ((case, case.images[method]) for case in cases))
    )
    return realism.two_sample_accuracy(real, synthetic, seed=seed)


def two_sample_rows(accuracies: dict[str, float | None], direction: str) -> list[dict]:
    """Two-sample accuracies by method as rows of `scores.csv`: one for all patients together, patient EVERYONE."""
    where = {"patient": EVERYONE, "region": "body", "metric": "two_sample_accuracy", "unit": "1", "mask": FROM_HU}
    return [
        {"direction": direction, "method": method, **where, "value": value}
        for method, value in accuracies.items()
        if value is not None
    ]
