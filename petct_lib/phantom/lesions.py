"""The phantom's disease: lesions in lung, hilum, mediastinum, pleura and bone, and how they change."""

from dataclasses import dataclass, replace

import numpy as np

from petct_lib.phantom import skeleton
from petct_lib.phantom.anatomy import HILA, Anatomy
from petct_lib.phantom.shapes import X_MM, Y_MM, Z_MM, Canvas, outside_tube, sample
from petct_lib.phantom.tissues import FIRST_LESION, LUNG, TISSUES, label_table

# Shares, counts, sizes and uptakes are chosen: wide enough that a translator cannot learn one kind. SUVmax of
# primaries: 11.0 ± 4.1 and 7.4 ± 4.4 (squamous, adenocarcinoma), of nodes 4.6 ± 3.1 (10.1186/s12890-015-0014-2).
COUNTS = {  # probability of 0, 1, 2 … lesions: a share of patients has none
    "easy": (0.2, 0.3, 0.3, 0.2),
    "realistic": (0.2, 0.25, 0.2, 0.13, 0.1, 0.07, 0.05),
}
SITES = {
    "easy": {"lung": 0.6, "hilum": 0.2, "mediastinum": 0.2},
    "realistic": {"lung": 0.5, "hilum": 0.12, "mediastinum": 0.18, "pleura": 0.08, "bone": 0.12},
}
NODES = {  # lymph node stations (IASLC map, Rusch 2009, J Thorac Oncol 4:568), nominal mm
    "2R": (-14, -2, 78), "4R": (-18, -2, 42), "4L": (14, 4, 44), "5": (34, -14, 44), "6": (10, -44, 56),
    "7": (0, 14, 8), "8": (16, 14, -36),
}  # fmt: skip
PAINTED_OVER = {
    "lung": label_table(*LUNG, "airway wall", "airway"),
    "hilum": label_table(*LUNG, "mediastinal fat", "airway wall", "airway", "blood"),
    "mediastinum": label_table("mediastinal fat", *LUNG, "oesophagus", "blood"),
    "pleura": label_table(*LUNG, "muscle", "mediastinal fat", "diaphragm"),
    "bone": label_table("marrow", "cortex", "endplate", "disc", "muscle"),
}
RESPONSES = {"complete": 0.12, "partial": 0.3, "stable": 0.28, "progression": 0.3}  # under PD-1 inhibitors
GAP_MM = 4.0  # between two lesions, so that each can be scored


@dataclass(frozen=True)
class Kind:
    """A kind of lesion and what it is drawn from: (low, high) of radius in mm, HU and SUV, of its rim and its core."""

    share: float  # of a site's lesions
    radius_mm: tuple[float, float]
    hu: tuple[float, float]
    suv: tuple[float, float]
    core_hu: tuple[float, float] | None = None
    core_suv: tuple[float, float] | None = None
    core_share: tuple[float, float] = (0.5, 0.7)  # of the radius
    seen_on: tuple[str, ...] = ("CT", "PT")


SOLID = Kind(0.34, (3, 20), (20, 60), (2.0, 14.0))
NODE = Kind(0.75, (4, 14), (25, 60), (2.5, 14.0))
KINDS: dict[str, dict[str, Kind]] = {
    "lung": {
        "solid": SOLID,
        "spiculated": Kind(0.22, (6, 18), (20, 60), (3.0, 15.0)),
        "part-solid": Kind(0.12, (7, 15), (-650, -450), (0.8, 1.6), (10, 50), (1.5, 5.0), (0.35, 0.65)),
        "necrotic": Kind(0.12, (14, 26), (25, 60), (5.0, 16.0), (5, 25), (0.6, 1.4), (0.5, 0.75)),
        "granuloma": Kind(0.10, (2.5, 6), (250, 900), (0.5, 0.9), seen_on=("CT",)),  # calcified, burnt out
        "hamartoma": Kind(0.10, (4, 10), (-40, 60), (0.6, 1.2), seen_on=("CT",)),
    },
    "hilum": {
        "node": replace(NODE, radius_mm=(6, 18), share=0.8),
        "necrotic": Kind(0.2, (12, 22), (25, 60), (5.0, 15.0), (8, 25), (0.7, 1.5)),
    },
    "mediastinum": {"node": NODE, "enlarged node": Kind(0.25, (6, 11), (25, 55), (0.9, 1.6), seen_on=("CT",))},
    "pleura": {"plaque": Kind(1.0, (6, 16), (25, 60), (3.0, 12.0))},
    "bone": {
        "lytic": Kind(0.35, (6, 13), (35, 80), (3.0, 14.0)),
        "sclerotic": Kind(0.25, (5, 11), (450, 900), (2.5, 9.0)),
        "marrow": Kind(0.40, (6, 12), (TISSUES["marrow"].hu, TISSUES["marrow"].hu), (3.0, 12.0), seen_on=("PT",)),
    },
}  # fmt: skip
EASY = {site: {"solid": Kind(1.0, (8, 20), (20, 60), (4.0, 12.0))} for site in SITES["easy"]}


@dataclass(frozen=True)
class Lesion:
    """One lesion: where (nominal mm, at the middle of a breath), how large, and its HU and SUV before imaging."""

    label: int  # of its outer part; the core's is one more
    site: str
    kind: str
    seen_on: tuple[str, ...]
    centre: tuple[float, float, float]
    radius_mm: float
    hu: float
    suv: float
    core: dict | None  # {"radius_mm", "hu", "suv"}
    shape_seed: int


def draw_lesion_plan(rng: np.random.Generator, a: Anatomy, scale: np.ndarray, difficulty: str) -> list[Lesion]:
    """The lesions of one patient, none of them touching another. scale: nominal mm per patient mm (3,)."""
    plan: list[Lesion] = []
    for _ in range(rng.choice(len(COUNTS[difficulty]), p=COUNTS[difficulty])):
        sites = SITES[difficulty]
        site = str(rng.choice(list(sites), p=list(sites.values())))
        lesion = _one(rng, a, scale, site, EASY[site] if difficulty == "easy" else KINDS[site], plan)
        if lesion is not None:
            plan.append(lesion)
    return plan


def _one(
    rng: np.random.Generator, a: Anatomy, scale: np.ndarray, site: str, kinds: dict[str, Kind], others: list[Lesion]
) -> Lesion | None:
    """One lesion at a free place of a site; None where 20 tries found none."""
    shares = np.array([k.share for k in kinds.values()])
    name = str(rng.choice(list(kinds), p=shares / shares.sum()))
    kind = kinds[name]
    radius = _log_uniform(rng, kind.radius_mm)
    core = None
    if kind.core_hu:
        core = {
            "radius_mm": radius * rng.uniform(*kind.core_share),
            "hu": rng.uniform(*kind.core_hu),
            "suv": rng.uniform(*kind.core_suv),
        }
        core = {key: round(float(value), 2) for key, value in core.items()}
    suv = _log_uniform(rng, kind.suv)
    for _ in range(20):
        centre = _place(rng, a, site, radius)
        if centre is None:
            return None
        apart = [np.linalg.norm((centre - o.centre) / scale) - 1.65 * (radius + o.radius_mm) for o in others]
        if all(gap > GAP_MM for gap in apart):
            label = FIRST_LESION + 2 * len(others)
            place = tuple(round(float(v), 2) for v in centre)
            values = round(radius, 2), round(float(rng.uniform(*kind.hu)), 1), round(suv, 2)
            return Lesion(label, site, name, kind.seen_on, place, *values, core, int(rng.integers(2**31)))
    return None


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))


def _place(rng: np.random.Generator, a: Anatomy, site: str, radius: float) -> np.ndarray | None:
    """A random place in a site, nominal mm (3,)."""
    if site == "hilum":
        side = rng.choice([-1, 1])
        return _beside_vessels(rng, a, np.array(HILA[side]) + np.array((8 * side, 0, 0)), 6.0)
    if site == "mediastinum":
        return _beside_vessels(rng, a, np.array(NODES[str(rng.choice(list(NODES)))]), 4.0)
    if site == "bone":
        z = a.bones.disc_z + skeleton.VERTEBRA_MM * (rng.integers(-5, 5) + 0.5)
        x, y = skeleton.spine_at(a.bones, z)
        return np.array([x + rng.uniform(-6, 6), y + rng.uniform(-5, 4), z + rng.uniform(-4, 4)])
    lung, wall = a.fields["lung"], a.fields["wall"]
    chosen = lung < -0.8 * radius if site == "lung" else (np.abs(lung + 1) < 2.5) & (np.abs(wall + 3) < 2.5)
    inside = np.flatnonzero(chosen)
    if not len(inside):
        return None
    k, j, i = np.unravel_index(rng.choice(inside), lung.shape)
    return np.array([X_MM[i], Y_MM[j], Z_MM[k]]) + rng.uniform(-2, 2, 3)


def _beside_vessels(rng: np.random.Generator, a: Anatomy, place: np.ndarray, spread_mm: float) -> np.ndarray:
    """A point about a place, of 30 tried the first (else the last) that is in no great vessel, airway or chamber."""
    for _ in range(30):
        point = place + rng.normal(0, spread_mm, 3)
        chains = [(points, radius) for _, points, radius in a.tubes] + a.airway
        if sample(a.fields["blood"], point[None])[0] > 0 and all(outside_tube(point, *chain) for chain in chains):
            break
    return point


def paint_lesions(lesion: Lesion, c: Canvas) -> None:
    """Paint one lesion, its edge uneven (and with spikes where it is spiculated), then its core."""
    reach = lesion.radius_mm * (2.7 if lesion.kind == "spiculated" else 1.6)
    where = c.box(np.array(lesion.centre) - reach * c.scale, np.array(lesion.centre) + reach * c.scale)
    if any(s.stop <= s.start for s in where):
        return
    offsets = np.stack(np.broadcast_arrays(*(
        (g - o) / k for g, o, k in zip(c.grid(where), lesion.centre, c.scale, strict=True)
    )))  # patient mm  # fmt: skip
    gap = np.sqrt((offsets**2).sum(axis=0))
    direction = offsets / (gap + 1e-3)
    edge = _edge(lesion, direction)
    c.paint(where, gap < edge, lesion.label, PAINTED_OVER[lesion.site])
    if lesion.core:
        inner = edge * lesion.core["radius_mm"] / lesion.radius_mm
        own = np.zeros(256, bool)
        own[lesion.label] = True
        c.paint(where, gap < inner, lesion.label + 1, own)


def _edge(lesion: Lesion, direction: np.ndarray) -> np.ndarray:
    """Distance from centre to edge, mm, in directions (3, …): uneven, of the volume of a ball of its radius."""

    def shape(towards: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(lesion.shape_seed)
        edge = 1 + _bumps(rng, towards, 0.12, 1.6) + _bumps(rng, towards, 0.06, 4.0)
        return edge * (1 + _spikes(rng, towards)) if lesion.kind == "spiculated" else edge

    height = np.linspace(-1, 1, 2000)  # directions spread evenly, by the golden angle
    around, wide = np.pi * (3 - np.sqrt(5)) * np.arange(2000), np.sqrt(1 - height**2)
    everywhere = np.stack([wide * np.cos(around), wide * np.sin(around), height])
    return lesion.radius_mm * shape(direction) / np.cbrt((shape(everywhere) ** 3).mean())


def _bumps(rng: np.random.Generator, direction: np.ndarray, amount: float, rate: float) -> np.ndarray:
    """A smooth function of the direction (3, …) around 0: a few waves of random orientation."""
    waves = rng.normal(0, rate, (6, 3))
    phases = rng.uniform(0, 2 * np.pi, 6)
    total = sum(np.sin(np.tensordot(w, direction, axes=1) + p) for w, p in zip(waves, phases, strict=True))
    return amount * total / np.sqrt(3)


def _spikes(rng: np.random.Generator, direction: np.ndarray) -> np.ndarray:
    """Thin cones in random directions, as a share of the radius."""
    axes = rng.normal(size=(18, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    lengths = rng.uniform(0.3, 1.0, 18)
    total = 0.0
    for axis, length in zip(axes, lengths, strict=True):
        along = np.tensordot(axis, direction, axes=1)
        total = np.maximum(total, length * np.clip((along - 0.97) / 0.03, 0, 1) ** 1.5)
    return total


def follow_up(rng: np.random.Generator, lesions: list[Lesion]) -> tuple[str, list[Lesion]]:
    """The same patient weeks later: a response as in RECIST's four words, and the lesions that are still there."""
    response = str(rng.choice(list(RESPONSES), p=list(RESPONSES.values())))
    size, uptake = {
        "complete": ((0.0, 0.0), (1, 1)), "partial": ((0.45, 0.7), (0.3, 0.6)),
        "stable": ((0.9, 1.1), (0.8, 1.2)), "progression": ((1.2, 1.5), (1.0, 1.5)),
    }[response]  # fmt: skip
    grown, heat, changed = rng.uniform(*size), rng.uniform(*uptake), []
    for lesion in lesions:
        if "PT" not in lesion.seen_on:
            changed.append(lesion)  # benign ones stay
        elif grown:
            factor = grown * rng.uniform(0.92, 1.08)
            hotter = heat * rng.uniform(0.85, 1.15)
            core = lesion.core and {
                **lesion.core,
                "radius_mm": round(lesion.core["radius_mm"] * factor, 2),
                "suv": round(lesion.core["suv"] * hotter, 2),
            }
            suv = round(lesion.suv * hotter, 2)
            changed.append(replace(lesion, radius_mm=round(lesion.radius_mm * factor, 2), suv=suv, core=core))
    return response, changed
