"""Every method on every test patient: the rows of `scores.csv`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from petct_lib import metrics, perceptual
from petct_lib.data import SOURCE, TARGET, copied, mean_atlas
from petct_lib.intensity import Intensity
from petct_lib.prepare import Prepared
from petct_lib.translate import UNIT, Translator, load_refiner

CT_RANGE_HU = (-1024.0, 3000.0)  # fixed: never an image's own minimum and maximum
LPIPS_WINDOW = {"ct": (-1000.0, 400.0), "pet": (0.0, 10.0)}  # display windows, HU and SUV


@dataclass(frozen=True)
class Case:
    """One test patient, all slices, in one direction; arrays (n, H, W) in SUV and HU."""

    patient: str
    source: np.ndarray
    real: np.ndarray
    masks: dict[str, np.ndarray]  # bool by region, for scoring only
    sources: dict[str, str]  # where each mask comes from: SEG or HU threshold
    images: dict[str, np.ndarray]  # translations by method
    std: np.ndarray  # spread of the samples of `refined`

    @property
    def body(self) -> np.ndarray:
        """The body mask."""
        return self.masks["body"]


def translate_patient(
    run_dir: Path, prepared: Prepared, splits: dict, patient: str, direction: str, translator: Translator, *,
    samples: int, seed: int,
) -> Case:  # fmt: skip
    """Every method on one patient, by its name in `scores.csv`.

    The controls: `copy` is the source shown through the target's range, `atlas` the mean of the training targets,
    `refiner_l1` the refiner's network trained as a one-step regression on the same pairs.
    """
    kind = TARGET[direction]
    source, real = (np.array(prepared.of_patient(patient, k)) for k in (SOURCE[direction], kind))
    sources = prepared.regions(patient)
    masks = {region: np.array(prepared.of_patient(patient, region)) for region in sources}
    atlas = mean_atlas(prepared, splits[f"train_{kind}"], kind)
    control = load_refiner(Path(run_dir) / "checkpoints" / f"refiner_l1_{direction}.pt")
    x, coarse = translator.start(source, direction, prepared.lengths(patient))
    refined = translator.refined(x, coarse, direction, samples=samples, seed=seed)
    images = {
        "copy": copied(source, direction, translator.window),
        "atlas": np.broadcast_to(atlas, source.shape),
        "cyclegan": refined.coarse,
        "refiner_l1": translator.refined(x, coarse, direction, samples=1, seed=seed, refiner=control).refined,
        "refined": refined.refined,
    }
    return Case(patient, source, real, masks, sources, images, refined.std)


def score_case(case: Case, direction: str, window: Intensity, lpips_model: torch.nn.Module | None = None) -> list[dict]:
    """One row a score: each method, all slices of the patient together, over body, lung, soft tissue, bone, lesions."""
    kind = TARGET[direction]
    low, high = CT_RANGE_HU if kind == "ct" else (0.0, window.suv_cap)
    lpips = lpips_model and partial(perceptual.lpips, model=lpips_model, window=LPIPS_WINDOW[kind])
    fixed = {"data_range": high - low, "unit": UNIT[kind], "clip": (low, high)}
    rows = []
    for method, image in case.images.items():
        scores = metrics.score_patient(case.real, image, case.body, source=case.sources["body"], lpips=lpips, **fixed)
        for region in (name for name in case.masks if name != "body"):
            scores += metrics.score_region(
                case.real, image, case.masks[region], region=region, source=case.sources[region], **fixed
            )
        rows.extend({"direction": direction, "method": method, "patient": case.patient, **row} for row in scores)
    return rows


def middle_slice(case: Case) -> dict[str, np.ndarray]:
    """The middle slice of a patient, whatever it shows, for `view.translations`."""
    k = len(case.real) // 2
    images = {"coarse": case.images["cyclegan"], "refined": case.images["refined"]}
    return {"source": case.source[k], "real": case.real[k], **{name: image[k] for name, image in images.items()}}


def spread_correlation(case: Case) -> float | None:
    """Spearman correlation of the samples' spread with the absolute error over the body; None without a spread."""
    std, error = case.std[case.body], np.abs(case.images["refined"] - case.real)[case.body]
    return float(stats.spearmanr(std, error).statistic) if np.ptp(std) > 0 else None
