"""FDG uptake that is no tumour: brown fat, tense muscle, reactive nodes, pneumonia, arthritis, oesophagitis."""

from dataclasses import dataclass

import numpy as np

from petct_lib.phantom.anatomy import HILA, Anatomy
from petct_lib.phantom.shapes import GRID, Canvas, ellipsoid, noise, tube, union
from petct_lib.phantom.skeleton import ARM
from petct_lib.phantom.tissues import LABEL, LOBES, label_table

# How often each is drawn, and its SUV. Brown fat: 3.6 % of reports (PMC5594988), 8.6 % of patients
# (10.1007/s11307-010-0431-9); SUVmax 0.8 to 12.4 (PMID 18806563). The others are chosen.
FREQUENCY = {
    "brown fat": (0.07, (2.5, 9.0)),
    "active muscle": (0.10, (1.4, 3.5)),
    "reactive node": (0.15, (2.0, 4.5)),
    "inflamed lung": (0.10, (1.2, 4.0)),
    "inflamed joint": (0.12, (1.5, 3.5)),
    "oesophagus": (0.12, (2.5, 4.5)),
}
OVER = {
    "brown fat": label_table("fat", "muscle"),
    "active muscle": label_table("muscle"),
    "reactive node": label_table("mediastinal fat", "airway wall", "fissure", "blood", *LOBES),
    "inflamed lung": label_table(*LOBES),
    "inflamed joint": label_table("muscle", "fat"),
}


@dataclass(frozen=True)
class Uptake:
    """One benign uptake: its tissue, its SUV, and its field; None where an organ of the anatomy is meant."""

    what: str
    suv: float
    field: np.ndarray | None


def draw_benign_plan(rng: np.random.Generator, a: Anatomy) -> list[Uptake]:
    """The benign uptake of one patient at one time; in most there is none or one."""
    plan = []
    for what, (share, suv) in FREQUENCY.items():
        if rng.random() < share:
            shape = None if what == "oesophagus" else SHAPES[what](rng, a).astype(np.float32)
            plan.append(Uptake(what, round(float(np.exp(rng.uniform(*np.log(suv)))), 2), shape))
    return plan


def paint_benign_uptake(uptake: Uptake, c: Canvas) -> None:
    """Paint it over the tissues that it may take."""
    if uptake.field is not None:
        inner = uptake.what in ("reactive node", "inflamed lung")
        c.solid(uptake.field, LABEL[uptake.what], OVER[uptake.what], inner=inner)


def _brown_fat(rng: np.random.Generator, a: Anatomy) -> np.ndarray:
    """Above the collarbones and along the spine, in patches on both sides."""
    at = _grid()
    places = [tube(at, [(s * 40, 0, 104), (s * 85, 4, 112), (s * 120, 0, 108)], 17) for s in (-1, 1)]
    places += [tube(at, [(s * 32, 62, 100), (s * 32, 70, 20)], 8) for s in (-1, 1)]
    return union(*places) + 6 * noise(rng, 14.0) + 3


def _muscle(rng: np.random.Generator, a: Anatomy) -> np.ndarray:
    s, at = rng.choice([-1, 1]), _grid()
    places = (
        tube(at, [(s * 40, -96, 20), (s * 100, -70, 60)], 20),  # pectoral
        tube(at, [(s * 25, 50, 130), (s * 90, 60, 100)], 22),  # trapezius
        tube(at, [(s * 38, -20, 130), (s * 40, 10, 112)], 12),  # scalene
    )
    return places[rng.integers(len(places))]


def _nodes(rng: np.random.Generator, a: Anatomy) -> np.ndarray:
    """Hilar on both sides, and under the carina, as in sarcoid-like reactions."""
    at, spots = _grid(), [*(np.add(p, (14 * s, 6, -10)) for s, p in HILA.items()), (0, 16, 2)]
    return union(*(ellipsoid(at, p + rng.normal(0, 2, 3), rng.uniform(6, 9, 3)) for p in spots))


def _pneumonia(rng: np.random.Generator, a: Anatomy) -> np.ndarray:
    s = rng.choice([-1, 1])
    patch = ellipsoid(_grid(), (s * 85, rng.uniform(10, 50), rng.uniform(-40, 30)), rng.uniform(18, 34, 3))
    return np.maximum(patch + 6 * noise(rng, 10.0), a.fields["lung"])


def _joint(rng: np.random.Generator, a: Anatomy) -> np.ndarray:
    s = rng.choice([-1, 1])
    return ellipsoid(_grid(), (s * ARM[a.build.arms_up][0][0], *ARM[a.build.arms_up][0][1:]), (28, 28, 28))


def _grid() -> np.ndarray:
    return np.stack(np.broadcast_arrays(*GRID))


SHAPES = {
    "brown fat": _brown_fat,
    "active muscle": _muscle,
    "reactive node": _nodes,
    "inflamed lung": _pneumonia,
    "inflamed joint": _joint,
}
