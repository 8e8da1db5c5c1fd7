"""One person of the phantom: body and anatomy, disease, breath and tissue densities, which studies have in common."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from petct_lib.phantom import anatomy, lesions
from petct_lib.phantom.anatomy import Anatomy, Build
from petct_lib.phantom.shapes import GRID, noise, smooth_step
from petct_lib.phantom.tissues import LABEL, TISSUES


@dataclass(frozen=True)
class Person:
    """What stays the same between the studies of a patient."""

    build: Build
    anatomy: Anatomy
    scale: np.ndarray  # nominal mm per patient mm (3,)
    lesions: list[lesions.Lesion]
    weight_kg: float
    size_m: float
    amplitude_mm: float  # way of the diaphragm in quiet breathing, patient mm
    lung_hu: np.ndarray  # field: what the lung's HU differ from the mean by
    hu: np.ndarray  # by label, (256,)
    first_date: date


def draw_person(rng: np.random.Generator, difficulty: str, breathing_mm: float) -> Person:
    """A person: the same state of `rng` gives the same one. breathing_mm: the mean of the amplitudes."""
    sex = "F" if rng.random() < 0.42 else "M"
    size_m = round(float(rng.normal(1.75 if sex == "M" else 1.62, 0.065)), 2)
    fat_mm = float(np.exp(rng.uniform(*np.log((6, 24) if sex == "M" else (9, 30)))))
    arms_up = bool(rng.random() < 0.85)  # the rule for the chest; some cannot
    build = Build(sex, fat_mm, rng.uniform(0.85, 1.15) * (1.0 if sex == "M" else 0.85), arms_up)
    bmi = 17.5 + 0.5 * fat_mm + rng.normal(0, 1.2)
    frame = (size_m / 1.74) ** 0.7 * rng.uniform(0.96, 1.04, 3) * (1.0 if sex == "M" else 0.95)
    shapes = anatomy.grow_anatomy(rng, build)
    plan = lesions.draw_lesion_plan(rng, shapes, 1 / frame, difficulty)
    amplitude_mm = breathing_mm * float(np.exp(np.clip(rng.normal(0, 0.3), -0.6, 0.6)))
    return Person(
        build, shapes, 1 / frame, plan, round(float(bmi * size_m**2), 1), size_m, amplitude_mm,
        _lung_hu(rng, shapes, difficulty), _tissue_hu(rng),
        date(2016, 1, 4) + timedelta(days=int(rng.integers(0, 1200))),
    )  # fmt: skip


def _lung_hu(rng: np.random.Generator, a: Anatomy, difficulty: str) -> np.ndarray:
    """HU to add to the lung's mean: denser to the back, most along the pleura; emphysema in some, mostly above."""
    y, z = GRID[1], GRID[2]
    field = rng.normal(0, 22) + rng.uniform(0.5, 0.9) * y + 14 * noise(rng, 30.0)
    dependent = rng.uniform(40, 160) * np.exp(-np.maximum(-a.fields["wall"] - 2.5, 0) / 6) * smooth_step(y, 20, 70)
    if difficulty != "easy" and rng.random() < 0.35:
        holes = smooth_step(noise(rng, 12.0), 0.4, 1.6) * (0.35 + 0.65 * smooth_step(z, -40, 60))
        field = field - rng.uniform(40, 120) * holes
    return (field + dependent).astype(np.float32)


def _tissue_hu(rng: np.random.Generator) -> np.ndarray:
    hu = np.zeros(256, np.float32)
    for name, tissue in TISSUES.items():
        hu[LABEL[name]] = round(tissue.hu + tissue.hu_spread * np.clip(rng.normal(), -2, 2), 1)
    return hu
