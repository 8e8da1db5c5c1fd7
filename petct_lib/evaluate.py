"""Every method on every test patient: the rows of `scores.csv`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petct_lib import InputError, distribution, downstream, lesion_scores, metrics, perceptual, realism, synthrad
from petct_lib.compare import EVERYONE
from petct_lib.data import SOURCE, TARGET, copied, mean_atlas, read_splits
from petct_lib.intensity import ENCODE, Intensity
from petct_lib.parallel import each, whole
from petct_lib.prepare import Prepared
from petct_lib.regions import FROM_HU
from petct_lib.translate import UNIT, Translator, batched, load_regression

CT_RANGE_HU = (-1024.0, 3000.0)  # fixed: never an image's own minimum and maximum
DIAPHRAGM_MM = 30.0  # chosen: domes move by 10 to 20 mm in quiet breathing, and are not flat
LPIPS_WINDOW = {"ct": (-1000.0, 400.0), "pet": (0.0, 10.0)}  # display windows, HU and SUV
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


@dataclass(frozen=True)
class Case:
    """One test patient, all slices, in one direction; arrays (n, H, W) in SUV and HU."""

    patient: str
    source: np.ndarray | None  # None: not known, as for the images of other translators
    real: np.ndarray
    masks: dict[str, np.ndarray]  # bool by region, for scoring only
    sources: dict[str, str]  # where each mask comes from: SEG or HU threshold
    images: dict[str, np.ndarray]  # translations by method
    samples: dict[str, np.ndarray] = field(default_factory=dict)  # (N, n, H, W), by the method that is their mean
    scales: dict[str, np.ndarray] = field(default_factory=dict)  # Laplace scale of the error, by method
    spread: np.ndarray | None = None  # standard deviation of the samples of `mean`
    ranks: np.ndarray | None = None  # histogram of the real image's rank among half of them, (N / 2 + 1,)
    drawn: np.ndarray | None = None  # the middle slice of each of them, (N, H, W)
    lengths: tuple[int, ...] | None = None  # slices of each study, one after the other; None: one study
    voxel_mm: tuple[float, float, float] | None = None  # z, y, x; None: no lesions are counted
    kvp: float | None = None  # the real CT's tube voltage; None: not known, and no attenuation is scored

    @property
    def body(self) -> np.ndarray:
        """The body mask."""
        return self.masks["body"]


# what a part of a case goes without
PART = {"source": None, "samples": {}, "scales": {}, "spread": None, "ranks": None, "drawn": None, "lengths": None}


def load_case(prepared: Prepared, patient: str, direction: str) -> Case:
    """A test patient with real images and masks, before anything is translated.

    Masks: those of the prepared slices, and those of `with_further_regions`. kvp is None where the patient's studies
    differ in it.
    """
    source, real = (np.array(prepared.of_patient(patient, kind)) for kind in (SOURCE[direction], TARGET[direction]))
    sources = prepared.regions(patient)
    masks = {region: np.array(prepared.of_patient(patient, region)) for region in sources}
    grid = prepared.index["grid"]
    voxel_mm = grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]
    lengths = tuple(prepared.lengths(patient))
    kvps = {prepared.row(study)["ct"].get("kvp") for study in prepared.studies([patient])}
    kvp = kvps.pop() if len(kvps) == 1 else None
    case = Case(patient, source, real, masks, sources, {}, lengths=lengths, voxel_mm=voxel_mm, kvp=kvp)
    return with_further_regions(case)


def with_further_regions(case: Case) -> Case:
    """The same with two regions more, to see what scores hide.

    "diaphragm": the body from DIAPHRAGM_MM below the height where the lungs end below to as much above, where breathing
    moves PET against CT (not where there is no lung, or the images end first); "image": everything, air and couch too,
    that swell a score.
    """
    masks = {**case.masks, "image": np.ones(case.real.shape, bool)}
    sources = {**case.sources, "image": "none"}
    if "lung" in case.masks and case.masks["lung"].any() and case.voxel_mm:
        near = _around_lung_bases(case)
        if near.any():
            masks["diaphragm"], sources["diaphragm"] = case.body & near[:, None, None], case.sources["lung"]
    return replace(case, masks=masks, sources=sources)


def _around_lung_bases(case: Case) -> np.ndarray:
    """Whether a slice is near the lungs' base of its study, (n,).

    The base: the median over the lungs' columns of the lowest slice with lung; the very lowest is behind.
    """
    near, reach = np.zeros(len(case.real), bool), round(DIAPHRAGM_MM / case.voxel_mm[0])
    for part in _parts(case):
        lung = case.masks["lung"][part]
        base = int(np.median(lung.argmax(axis=0)[lung.any(axis=0)])) if lung.any() else 0
        if base > 0:
            near[part][max(0, base - reach) : base + reach + 1] = True
    return near


def translate_patient(
    prepared: Prepared, splits: dict, patient: str, direction: str, translator: Translator, *, samples: int, steps: int,
    seed: int, atlas: np.ndarray, methods: Collection[str] = METHODS, shared_noise: bool = True,
    without_coarse: bool = False, bf16: bool = False,
) -> Case:  # fmt: skip
    """Those of `methods` that the run has on one patient, by their names in `scores.csv`.

    seed: of the noise, which is another for each patient. shared_noise: see `translate.noise_like`. without_coarse: the
    samples do not see the coarse image. bf16: see `Refiner.samples`. atlas: `data.mean_atlas` of the training targets.
    InputError for a patient who is not of the role `test`: all others were learned from or chosen by.
    """
    if patient not in splits["test"]:
        raise InputError(f"patient {patient} is not one of the {len(splits['test'])} test patients: no score is made")
    case = load_case(prepared, patient, direction)
    x, coarse = translator.start(case.source, direction, case.lengths)
    images = _controls(case, x, coarse, direction, translator, atlas, methods)
    own = seed * len(splits["test"]) + splits["test"].index(patient)  # else one lucky noise would be that of them all
    given = {"samples": samples, "steps": steps, "seed": own, "shared": shared_noise, "bf16": bf16}
    stacks, scales = {}, {}
    for prefix in ("",) if without_coarse else ("", "unpaired_"):  # of cycle pairs, there is nothing else to see
        refiner = translator.refiner(direction, prefix)
        if refiner and {f"{prefix}sample", f"{prefix}mean"} & set(methods):
            seen = refiner.without(coarse) if without_coarse else coarse
            stack = translator.decoded(torch.stack(list(refiner.samples(x, seen, **given))), direction)
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
        "copy": lambda: copied(case.source, direction, translator.window),
        "atlas": lambda: np.broadcast_to(atlas, case.source.shape),
        "cyclegan": lambda: translator.decoded(coarse, direction),
        "regression": lambda: translator.regression(x, coarse, direction),
        "regression_without_coarse": lambda: translator.regression(x, without, direction),
        "pix2pix": lambda: translator.decoded(batched(load_regression(pix2pix).predict, x, without), direction),
    }
    there = {
        "regression_without_coarse": translator.refiners[direction].regression.settings.coarse_dropout > 0,
        "pix2pix": pix2pix.exists(),
    }
    return {name: image() for name, image in make.items() if name in methods and there.get(name, True)}


def score_patients(
    run_dir: Path, direction: str, *, methods: Collection[str] = METHODS, lpips_model: torch.nn.Module | None = None,
    progress: Callable = iter, **drawing: object,
) -> tuple[list[dict], list[Case]]:  # fmt: skip
    """Rows of `methods` on all test patients of a run, and the cases without their samples: one patient a core.

    On a GPU one after the other. drawing: samples, steps, seed and more for `translate_patient`. Errors as for it and
    `score_case`.
    """
    prepared, splits = Prepared(Path(run_dir) / "prepared"), read_splits(run_dir)
    kind = TARGET[direction]
    atlas = mean_atlas(prepared, splits[f"train_{kind}"], kind)
    given = {**drawing, "atlas": atlas, "methods": tuple(methods)}
    work = partial(_score_patient, Path(run_dir), direction, lpips_model, given)
    found = whole(each(work, splits["test"], jobs=1 if torch.cuda.is_available() else None, progress=progress))
    return [row for rows, _ in found for row in rows], [case for _, case in found]


def _score_patient(
    run_dir: Path, direction: str, lpips_model: torch.nn.Module | None, given: dict, patient: str
) -> tuple[list[dict], Case]:
    prepared, splits, translator = Prepared(run_dir / "prepared"), read_splits(run_dir), Translator(run_dir)
    case = translate_patient(prepared, splits, patient, direction, translator, **given)
    rows = score_case(case, direction, translator.window, lpips_model)
    return rows, summarised(case)


def summarised(case: Case) -> Case:
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
    ranks = [distribution.rank_histogram(of[:, body], case.real[body], rng) for of in distribution.independent(stack)]
    return replace(case, ranks=sum(ranks))


def score_case(case: Case, direction: str, window: Intensity, lpips_model: torch.nn.Module | None = None) -> list[dict]:
    """One row a score: each method, all slices of the patient together, over body, lung, soft tissue, bone, lesions.

    Of a PET, the lesions one by one too, see `lesion_scores`; and how smoothly slice follows slice (`coherence`). The
    range of PSNR and SSIM is that of the direction, the same for every patient. InputError where the source is the real
    target itself: what was made from it is a reconstruction (PET→CT→PET), and no translation; ValueError as for
    `metrics.score_patient`. The rows have the columns of `scores.SCORE_COLUMNS`.
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
        scores = metrics.score_patient(case.real, image, case.body, source=case.sources["body"], lpips=lpips, **fixed)
        for region in (name for name in case.masks if name != "body"):
            scores += metrics.score_region(
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
        ("body", "shift_gain", moved(metrics.shift_gain), "%", mask["body"]),
        ("body", "ms_ssim", moved(partial(synthrad.ms_ssim, clip=clip)), "1", mask["body"]),
    ]
    if kind == "ct":
        scores += _downstream(case, image, mask["body"])
    if kind == "pet" and case.voxel_mm:
        given = ((one.real, part, one.masks.get("lesion"), one.body) for one, part in studies(case, image))
        found = lesion_scores.score_lesions(given, case.voxel_mm).items()
        scores += [("lesion", name, value, lesion_scores.UNITS[name], mask["lesion"]) for name, value in found]
    return [
        {"region": region, "metric": name, "value": float(value), "unit": unit, "mask": source}
        for region, name, value, unit, source in scores
        if value is not None
    ]


def _downstream(case: Case, image: np.ndarray, body: str) -> list[tuple[str, str, float | None, str, str]]:
    """Attenuation over the body, where the tube voltage is known, and the lungs' overlap where there are any.

    Both lungs of the overlap are found by the same thresholds, whoever drew the region's mask.
    """
    known = case.kvp in downstream.CARNEY
    errors = downstream.attenuation_errors(case.real, image, case.body, case.kvp) if known else {}
    dice = case.voxel_mm and _over_studies(case, image, partial(downstream.lung_dice, voxel_mm=case.voxel_mm))
    return [*(("body", name, value, "%", body) for name, value in errors.items()), ("lung", "dice", dice, "1", FROM_HU)]


def studies(case: Case, image: np.ndarray) -> Iterator[tuple[Case, np.ndarray]]:
    """The patient's studies, each as a case of its own, and their parts of the image."""
    for part in _parts(case):
        masks = {name: mask[part] for name, mask in case.masks.items()}
        yield replace(case, real=case.real[part], masks=masks, images={}, **PART), image[part]


def _parts(case: Case) -> list[slice]:
    """Which slices of the stack each study has."""
    ends = accumulate(case.lengths or (len(case.real),), initial=0)
    return [slice(first, end) for first, end in pairwise(ends)]


def _over_studies(case: Case, image: np.ndarray, score: Callable) -> float | None:
    """Mean of score(real, image, body) over the studies, by their voxels of body; None where no study has it."""
    found = [(score(study.real, part, study.body), study.body.sum()) for study, part in studies(case, image)]
    found = [(value, weight) for value, weight in found if value is not None and not np.isnan(value)]
    if not found:
        return None
    values, weights = zip(*found, strict=True)
    return float(np.average(values, weights=weights))


def two_sample_accuracies(
    cases: list[Case], methods: Sequence[str], direction: str, window: Intensity, seed: int, progress: Callable = iter
) -> dict[str, float | None]:
    """How often a classifier tells a method's slices from real ones, 0.5 to 1, by method; one method a core.

    Trained on some of the cases' patients, judged on the others (see `realism.two_sample_accuracy`); None for a single
    one. Outside the body both are set to the lowest value.
    """
    accuracy = partial(_two_sample_accuracy, [few_slices(case) for case in cases], direction, window, seed)
    return dict(zip(methods, whole(each(accuracy, list(methods), progress=progress)), strict=True))


def few_slices(case: Case) -> Case:
    """A case with the slices that the classifier reads and no others, so that it can go to another process."""
    chosen = realism.spread(len(case.real))
    images = {method: image[chosen] for method, image in case.images.items()}
    masks, real = {"body": case.body[chosen]}, case.real[chosen]
    return replace(case, real=real, masks=masks, images=images, **PART)


def _two_sample_accuracy(cases: list[Case], direction: str, window: Intensity, seed: int, method: str) -> float | None:
    if len(cases) < 2:
        return None
    encode = ENCODE[TARGET[direction]]
    real, made = (
        [np.where(case.body, encode(image, window), -1.0).astype(np.float32) for case, image in of]
        for of in (((case, case.real) for case in cases), ((case, case.images[method]) for case in cases))
    )
    return realism.two_sample_accuracy(real, made, seed=seed)


def middle_slice(case: Case) -> dict[str, np.ndarray]:
    """The middle slice of a patient, whatever it shows, for `view.translations`: its images by name, (H, W) each."""
    return slice_of(case, len(case.real) // 2)


def slice_of(case: Case, k: int) -> dict[str, np.ndarray]:
    """Slice k of a case, for `view.translations`: source, coarse, regression, sample, mean, spread, real."""
    names = {"coarse": "cyclegan", "regression": "regression", "sample": "sample", "mean": "mean"}
    images = {name: case.images[method] for name, method in names.items() if method in case.images}
    images |= {"spread": case.spread} if case.spread is not None else {}
    images = {"source": case.source, **images, "real": case.real}
    return {name: image[k] for name, image in images.items()}


def two_sample_rows(accuracies: dict[str, float | None], direction: str) -> list[dict]:
    """Two-sample accuracies by method as rows of `scores.csv`: one for all patients together, patient EVERYONE."""
    where = {"patient": EVERYONE, "region": "body", "metric": "two_sample_accuracy", "unit": "1", "mask": FROM_HU}
    return [
        {"direction": direction, "method": method, **where, "value": value}
        for method, value in accuracies.items()
        if value is not None
    ]
