"""Every method on every test patient: the rows of `scores.csv`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from petct_lib import metrics, perceptual
from petct_lib.data import SOURCE, TARGET, Prepared, copied, mean_atlas
from petct_lib.intensity import Intensity
from petct_lib.translate import UNIT, Translator, load_refiner

CT_RANGE_HU = (-1024.0, 3000.0)  # fixed: never an image's own minimum and maximum
LPIPS_WINDOW = {"ct": (-1000.0, 400.0), "pet": (0.0, 10.0)}  # display windows, HU and SUV
Method = Callable[[np.ndarray], np.ndarray]


def methods(
    run_dir: Path, prepared: Prepared, splits: dict, direction: str, translator: Translator, samples: int, seed: int
) -> dict[str, Method]:
    """Names of `scores.csv` → functions from source (n, H, W) to translation (n, H, W), in SUV and HU.

    The controls: `copy` is the source shown through the target's range, `atlas` the mean of the training targets,
    `refiner_l1` the refiner's network trained as a one-step regression on the same pairs.
    """
    kind = TARGET[direction]
    atlas = mean_atlas(prepared, splits[f"train_{kind}"], kind)
    control = load_refiner(Path(run_dir) / "checkpoints" / f"refiner_l1_{direction}.pt")

    def translated(source: np.ndarray, refiner: object = None, n: int = samples) -> object:
        return translator(source, direction, samples=n, seed=seed, refiner=refiner)

    return {
        "copy": lambda source: copied(source, direction, translator.window),
        "atlas": lambda source: np.broadcast_to(atlas, source.shape),
        "cyclegan": lambda source: translated(source, control, 1).coarse,
        "refiner_l1": lambda source: translated(source, control, 1).refined,
        "refined": lambda source: translated(source).refined,
    }


def score_patients(
    prepared: Prepared, patients: list[str], direction: str, named: dict[str, Method], window: Intensity,
    lpips_model: torch.nn.Module | None = None, progress: Callable = iter,
) -> list[dict]:  # fmt: skip
    """One row a score: each method on each patient, all their slices together, over the body of the real CT."""
    kind = TARGET[direction]
    low, high = CT_RANGE_HU if kind == "ct" else (0.0, window.suv_cap)
    lpips = lpips_model and partial(perceptual.lpips, model=lpips_model, window=LPIPS_WINDOW[kind])
    rows = []
    for patient in progress(patients):
        source, real = (np.array(prepared.of_patient(patient, k)) for k in (SOURCE[direction], kind))
        body = np.array(prepared.of_patient(patient, "body"))
        for name, method in named.items():
            scores = metrics.score_patient(
                real, method(source), body, data_range=high - low, unit=UNIT[kind], clip=(low, high), lpips=lpips
            )
            rows.extend({"direction": direction, "method": name, "patient": patient, **row} for row in scores)
    return rows
