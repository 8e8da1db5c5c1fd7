"""A seeded digital thorax: CT and PET of one patient after another, with the truth, written as DICOM.

Anatomy is drawn on the CT grid as labels, in a nominal frame (a body of 360 × 240 mm, x to the patient's left, y to the
back, z to the head, origin mid-chest) that each patient stretches; labels become HU and SUV, then each is imaged.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import ndimage

from petct_lib.dicom_write import Subject, Tracer, make_uid, write_ct, write_pet
from petct_lib.volume import Volume, axial_affine

# name: (HU, SUV by body weight, HU texture 1σ, spread of the SUV between patients 1σ as a fraction).
# HU at 120 kV: Schneider 1996 (doi 10.1088/0031-9155/41/1/009), native CT. SUV of FDG at 60 min: Zincirkeser 2007
# (doi 10.1177/147323000703500202), Wang 2007 (doi 10.1007/s11307-007-0083-2), EANM guideline 2015 for the liver range.
ORGANS: dict[str, tuple[float, float, float, float]] = {
    "air": (-1000, 0.0, 0, 0),
    "skin": (10, 0.5, 5, 0.1),
    "fat": (-100, 0.25, 8, 0.15),
    "muscle": (50, 0.7, 6, 0.1),
    "gland": (25, 0.7, 12, 0.2),
    "lung": (-850, 0.5, 16, 0.12),
    "small vessel": (-420, 0.6, 40, 0.1),  # under a voxel wide: lung and blood mixed
    "vessel": (40, 1.3, 4, 0.08),
    "airway": (-1000, 0.1, 0, 0),
    "mediastinum": (-75, 0.6, 20, 0.1),  # fat with small vessels and nodes between the organs
    "blood": (42, 1.6, 4, 0.1),
    "myocardium": (46, 3.0, 4, 0),  # its SUV is drawn between 1.5 and 6: it depends on fasting
    "oesophagus": (35, 1.5, 6, 0.15),
    "diaphragm": (45, 0.9, 5, 0.1),
    "liver": (60, 2.2, 5, 0.09),
    "spleen": (48, 1.8, 5, 0.1),
    "stomach": (25, 1.6, 8, 0.25),
    "cortex": (600, 0.8, 60, 0.1),
    "marrow": (200, 1.4, 35, 0.12),
    "disc": (75, 0.8, 6, 0.1),
    "cord": (30, 1.2, 3, 0.1),
    "cartilage": (110, 0.5, 15, 0.1),
    "couch": (-120, 0.0, 20, 0),
    "foam": (-940, 0.0, 4, 0),
}
LABEL = {name: i for i, name in enumerate(ORGANS)}
FIRST_LESION = 100  # labels from here on are lesions, each with its own HU and SUV
NOMINAL_HALF_MM = (180.0, 120.0)
SCAN_TIME_S = 11 * 3600  # PET at 11:00; the CT is two minutes earlier
F18_HALF_LIFE_S = Tracer.half_life_s
LESION_COUNTS = (0.2, 0.3, 0.25, 0.15, 0.1)  # probability of 0, 1, 2, 3, 4 lesions
LESION_SITES = {"lung": 0.6, "hilum": 0.2, "mediastinum": 0.2}
HILA = {-1: (-44.0, 10.0, 8.0), 1: (48.0, 14.0, 10.0)}  # nominal mm, right and left


@dataclass(frozen=True)
class PhantomSettings:
    """Grids and imaging; the defaults are a clinical PET/CT's."""

    ct_pixel_mm: float = 1.4  # a 420 mm field at ct_size: the attenuation CT's usual 1.0-1.4 mm
    ct_size: int = 300
    ct_slice_mm: float = 3.0  # common for attenuation CT
    pet_pixel_mm: float = 4.07  # Siemens Biograph, 4.07 mm in a 168 matrix; here its middle
    pet_size: int = 104
    pet_slice_mm: float = 4.0
    extent_mm: float = 240.0  # lung apex to upper abdomen
    pet_fwhm_mm: float = 6.0  # clinical reconstruction with its filter: 5-7 mm
    pet_noise: float = 0.09  # relative, in the liver: EANM asks for about 10 %
    pet_noise_fwhm_mm: float = 5.5  # noise after OSEM and its filter is correlated over about a voxel
    ct_noise_hu: float = 12.0  # low-dose attenuation CT with a smooth kernel
    ct_blur_voxels: float = 0.6  # in-plane 1σ of the kernel, image and noise alike
    breathing_mm: float = 6.0  # how far the diaphragm lies higher at expiration than in the CT; 0 turns it off
    couch: bool = True  # every CT has one, no PET does


DEFAULTS = PhantomSettings()


@dataclass(frozen=True)
class Patient:
    """One patient: ct in HU, pet_suv in SUV as measured (float32), truth as written to truth.json."""

    patient_id: str
    ct: Volume
    pet_suv: Volume
    truth: dict
    weight_kg: float
    size_m: float
    sex: str
    uptake_s: int
    dose_bq: float
    study_date: str


@dataclass(frozen=True)
class _Canvas:
    """Labels (z, y, x) uint8 and the voxel centres' nominal coordinates, mm; scale: nominal mm per patient mm (3,)."""

    labels: np.ndarray
    x: np.ndarray  # (X,)
    y: np.ndarray  # (Y,)
    z: np.ndarray  # (Z,)
    scale: np.ndarray
    texture: np.ndarray  # (z, y, x) smooth noise of variance 1

    def box(self, low: np.ndarray, high: np.ndarray) -> tuple:
        """Slices (z, y, x) of a box, and its coordinates shaped to broadcast: z (k, 1, 1), y (j, 1), x (i,)."""
        axes = (self.x, self.y, self.z)
        sx, sy, sz = (slice(*np.searchsorted(a, [lo, hi])) for a, lo, hi in zip(axes, low, high, strict=True))
        return (sz, sy, sx), self.z[sz, None, None], self.y[sy, None], self.x[sx]

    def paint(self, where: tuple, mask: np.ndarray, label: int, over: tuple[str, ...] = ()) -> None:
        """Set the label where the mask holds in a box and, if `over` is given, one of those organs lies there."""
        part = self.labels[where]
        if over:
            mask = mask & _among(over)[part]
        part[mask] = label


def make_patient(seed: int, index: int, settings: PhantomSettings = DEFAULTS) -> Patient:
    """The patient number `index` of a seed: the same pair gives the same bits."""
    rng = np.random.default_rng([seed, index])
    s = settings
    sex = "F" if rng.random() < 0.4 else "M"
    width, depth = rng.uniform(320, 400), rng.uniform(210, 270)  # mm
    centre = np.array([rng.uniform(-6, 6), rng.uniform(-32, -24), rng.uniform(-900, -500)])
    ct_affine = _grid_affine(s.ct_pixel_mm, s.ct_size, s.ct_slice_mm, 0.0, centre[2] - s.extent_mm / 2)
    pet_affine = _grid_affine(s.pet_pixel_mm, s.pet_size, s.pet_slice_mm, 2.0, centre[2] - s.extent_mm / 2)
    scale = np.array([2 * NOMINAL_HALF_MM[0] / width, 2 * NOMINAL_HALF_MM[1] / depth, rng.uniform(0.94, 1.06)])
    canvas = _canvas(rng, ct_affine, centre, scale, s)
    _draw_anatomy(canvas, rng, sex, depth / 2, s.couch)
    hu, suv, organs = _lookup(rng)
    lesions = _add_lesions(canvas, rng, centre, hu, suv)
    ct = Volume(_image_ct(canvas, hu, rng, s), ct_affine, "HU")
    pet = Volume(_image_pet(canvas, suv, rng, ct_affine, pet_affine, centre[2], s), pet_affine, "SUV")
    size_m = round(float(rng.normal(1.74 if sex == "M" else 1.63, 0.06)), 2)
    weight_kg = round(float(74 * width * depth / (360 * 240) * size_m / 1.70 * rng.uniform(0.95, 1.05)), 1)
    return Patient(
        f"PHANTOM-{index:04d}", ct, pet, {"lesions": lesions, "organs": organs}, weight_kg, size_m, sex,
        uptake_s=round(np.clip(rng.normal(3600, 480), 2400, 5400)),
        dose_bq=float(round(weight_kg * 4e6 * rng.uniform(0.9, 1.1))),
        study_date=(date(2016, 1, 4) + timedelta(days=int(rng.integers(0, 1200)))).strftime("%Y%m%d"),
    )


def write_patient(patient: Patient, folder: Path, seed: int) -> None:
    """Two series of one study: <folder>/<patient_id>/CT in HU and /PT in Bq/ml, such that the reader's SUV is ours.

    Bq/ml = SUV × dose decayed to the scan / weight in g (the inverse of SUV by body weight, QIBA).
    """
    name, p = patient.patient_id, patient
    subject = Subject(
        name, make_uid(seed, name, "study"), make_uid(seed, name, "frame"), p.study_date, p.weight_kg, p.size_m, p.sex
    )
    tracer = Tracer(p.dose_bq, _clock(SCAN_TIME_S - p.uptake_s), _clock(SCAN_TIME_S))
    decayed_bq = p.dose_bq * 0.5 ** (p.uptake_s / tracer.half_life_s)
    activity = Volume(p.pet_suv.array * np.float64(decayed_bq / (p.weight_kg * 1000)), p.pet_suv.affine, "Bq/ml")
    root = Path(folder) / name
    write_ct(p.ct, root / "CT", subject, make_uid(seed, name, "CT"), _clock(SCAN_TIME_S - 120))
    write_pet(activity, root / "PT", subject, make_uid(seed, name, "PT"), tracer)


def write_phantom(
    folder: Path,
    patients: int,
    seed: int,
    settings: PhantomSettings = DEFAULTS,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Path:
    """Write patients 0 … patients − 1 and, last and atomically, truth.json. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for index in progress(range(patients)) if progress else range(patients):
        patient = make_patient(seed, index, settings)
        write_patient(patient, folder, seed)
        truth[patient.patient_id] = patient.truth
    temporary = folder / "truth.json.part"
    temporary.write_text(json.dumps({"seed": seed, "patients": truth}, indent=1))
    os.replace(temporary, folder / "truth.json")
    return folder


# Drawing: labels in the nominal frame, later shapes over earlier ones.


def _draw_anatomy(c: _Canvas, rng: np.random.Generator, sex: str, half_depth_mm: float, couch: bool) -> None:
    wall = _draw_trunk(c, rng, sex)
    _draw_chest(c, rng, wall)
    _draw_abdomen(c, rng)
    _draw_heart(c, rng)
    _draw_great_vessels(c, rng)
    _draw_airways_and_trees(c, rng)
    _draw_ribs(c, rng, wall)
    _draw_shoulders(c, wall)
    _draw_spine(c, rng)
    if couch:
        _draw_couch(c, half_depth_mm)


def _draw_trunk(c: _Canvas, rng: np.random.Generator, sex: str) -> np.ndarray:
    """Skin, fat and muscle. Returns the distance to the chest cavity's wall, (z, y, x), mm, negative inside."""
    everywhere = (slice(None),) * 3
    taper = 1 - 0.10 * _step(c.z, 60, 130) - rng.uniform(0.0, 0.05) * _step(-c.z, 20, 120)
    depth = _outside(c, (0, 0), NOMINAL_HALF_MM, 2.5, taper)
    angle = np.arctan2(c.y[:, None], c.x)  # (y, x)
    fat_mm = rng.uniform(7, 20) * (1 + 0.3 * np.cos(2 * angle + 0.6) + 0.15 * np.cos(3 * angle + rng.uniform(0, 6)))
    c.labels[depth < 0] = LABEL["skin"]
    c.labels[depth < -2] = LABEL["fat"]
    muscle = (depth < -2 - fat_mm.astype(np.float32)) & (c.texture < 1.5)
    c.labels[muscle] = LABEL["muscle"]
    if sex == "F":
        _draw_breasts(c, rng)
    narrowing = 1 - 0.34 * _step(c.z, 0, 135)
    wall = _outside(c, (0, -9), (rng.uniform(134, 142), 84), 2.3, narrowing)
    planes = (((wall > 12) & (wall < 14.5)) | ((wall > 25) & (wall < 27.5))) & (c.texture > -0.4)
    c.paint(everywhere, planes, LABEL["fat"], over=("muscle",))
    for side in (-1, 1):
        _ellipsoid(c, (side * 152, -8, 62), (20, 30, 55), "fat", over=("muscle",))
    return wall


def _draw_breasts(c: _Canvas, rng: np.random.Generator) -> None:
    out, up = rng.uniform(20, 34), rng.uniform(45, 58)
    for side in (-1, 1):
        centre = np.array([side * 78, -96, -2])
        _ellipsoid(c, centre, (60, out + 12, up + 2), "skin", over=("air",))
        _ellipsoid(c, centre, (58, out + 10, up), "fat", over=("air", "skin"))
        _ellipsoid(c, centre + [0, -8, 0], (30, out - 6, 26), "gland", over=("fat",), rough=0.35)


def _draw_chest(c: _Canvas, rng: np.random.Generator, wall: np.ndarray) -> None:
    """Mediastinum, lungs and what lies under the diaphragm, inside the chest wall."""
    x, y, z = c.x, c.y[:, None], c.z[:, None, None]
    top = np.full((y.size, x.size), -np.inf)
    floor = _dome(x, y, (8, -25), rng.uniform(-64, -56), (85, 75))
    for side in (-1, 1):
        apex = _dome(x, y, (side * 56, 12), rng.uniform(98, 112), (78, 92))
        top = np.where(np.sign(x) == side, apex, top)
        height = rng.uniform(-46, -30) if side < 0 else rng.uniform(-60, -44)
        floor = np.maximum(floor, _dome(x, y, (side * 78, -8), height, (82, 92)))
    half = rng.uniform(9, 15) + 27 * np.exp(-((y / 38) ** 2))
    half = np.where((y > 28) & (half < 21), 21, half) + 0.12 * np.maximum(z, 0)
    inside, above = wall < 0, z > floor
    middle = np.abs(x - 4) < half
    c.labels[inside & above & middle] = LABEL["mediastinum"]
    c.labels[inside & above & ~middle & (z < top)] = LABEL["lung"]
    c.labels[inside & ~above] = LABEL["diaphragm"]
    c.labels[(wall < -2.5) & (z < floor - 3)] = LABEL["mediastinum"]  # abdominal fat until the organs are drawn


def _draw_abdomen(c: _Canvas, rng: np.random.Generator) -> None:
    below = ("mediastinum",)
    j = rng.normal(0, 4, (3, 3))
    _ellipsoid(c, j[0] + (-62, -8, -128), (rng.uniform(100, 125), 90, 105), "liver", below, low=True)
    _ellipsoid(c, j[1] + (96, 34, -104), (34, 30, 40), "spleen", below, low=True)
    _ellipsoid(c, j[2] + (66, -34, -108), (44, 42, 48), "stomach", below, low=True)
    _ellipsoid(c, j[2] + (64, -52, -102), (26, 14, 28), "airway", ("stomach",))
    _tube(c, [(-20, 8, -40), (-22, 14, -130)], [11, 11], "blood", ("liver", *below))


def _draw_heart(c: _Canvas, rng: np.random.Generator) -> None:
    """Pericardial fat, atria and right ventricle as blood, the left ventricle as a shell on an oblique axis."""
    soft = ("mediastinum", "lung", "diaphragm", "liver", "blood", "myocardium")
    size, at = rng.uniform(0.92, 1.1), rng.normal(0, 3, 3)
    axis = _unit(np.array([0.72, -0.5, -0.48]) + rng.normal(0, 0.08, 3))

    def chamber(centre: tuple, radii: tuple, name: str, along: np.ndarray | None = None) -> None:
        _ellipsoid(c, at + centre, size * np.array(radii), name, soft, along=along)

    chamber((20, -30, -20), (66, 50, 47), "mediastinum", axis)
    for centre, radii in (
        ((2, -48, -24), (44, 27, 36)), ((-27, -26, -14), (24, 27, 32)), ((8, 6, -4), (36, 20, 24))
    ):
        chamber(centre, np.add(radii, 3), "myocardium" if centre[0] == 2 and False else "blood")
    chamber((36, -28, -26), (47, 33, 33), "myocardium", axis)
    chamber(tuple(np.array([36, -28, -26]) - 9 * axis), (40, 21, 21), "blood", axis)


def _draw_great_vessels(c: _Canvas, rng: np.random.Generator) -> None:
    j, r = rng.normal(0, 2.0, 3), rng.uniform(0.9, 1.15)
    soft = ("mediastinum", "lung", "muscle", "fat", "diaphragm", "vessel")
    descending = [(26, 33, 42), (25, 36, 0), (19, 33, -60), (10, 28, -130)]
    arch = [(4, -28, 0), (-12, -28, 28), (-8, -20, 48), (4, -3, 60), (18, 18, 57), *descending]
    vessels = [
        (arch, 14 * r),
        ([(24, -44, -2), (26, -30, 22), (22, -14, 29)], 13),  # pulmonary trunk
        ([(22, -14, 28), (-10, -3, 26), HILA[-1]], 10),
        ([(22, -14, 29), (38, 4, 30), HILA[1]], 10),
        ([(-26, -18, 88), (-26, -14, 40), (-25, -16, 0)], 9),  # superior vena cava
        ([(-26, -20, 84), (5, -34, 80), (42, -22, 104), (70, -14, 118)], 6),
        ([(-26, -18, 86), (-36, -20, 104), (-62, -14, 118)], 6),
        ([(-6, -16, 58), (-18, -10, 92), (-24, -8, 130)], 6),
        ([(6, -2, 62), (18, 4, 130)], 4),
        ([(18, 14, 60), (26, 14, 100), (54, 6, 120)], 5),
    ]
    for points, radius in vessels:
        _tube(c, np.array(points) + j, [radius] * len(points), "blood", soft)
    _tube(c, [(2, 27, 130), (4, 33, 40), (10, 35, -40), (26, 20, -100)], [6.5] * 4, "oesophagus", soft)


def _draw_airways_and_trees(c: _Canvas, rng: np.random.Generator) -> None:
    """Trachea and main bronchi with walls, and in each lung a tree of vessels from the hilum outwards."""
    carina = np.array([-2, 18, rng.uniform(20, 30)])
    soft = ("mediastinum", "lung", "muscle", "fat", "vessel", "blood", "oesophagus")
    air = [([(0, 8, 130), (0, 14, 70), carina], [8.5] * 3)]
    air += [([carina, carina + (-20, 2, -17), (-44, 16, -2), (-52, 24, -24)], [7, 6.5, 5, 3.5])]
    air += [([carina, carina + (26, 2, -15), (48, 18, -4), (58, 26, -28)], [6.5, 6, 5, 3.5])]
    air += [([(-44, 16, -2), (-66, 4, 22)], [4, 2.5]), ([(48, 18, -4), (66, 0, 24)], [4, 2.5])]
    for side, hilum in HILA.items():
        for start, end, radius in _tree(rng, hilum, side):
            name = "vessel" if radius > 1.9 else "small vessel"
            _tube(c, (start, end), (radius, 0.85 * radius), name, ("lung", "small vessel"))
    for extra, name in ((1.6, "vessel"), (0.0, "airway")):
        for points, radii in air:
            _tube(c, points, np.add(radii, extra), name, (*soft, "small vessel"))


def _tree(rng: np.random.Generator, hilum: tuple, side: int, generations: int = 6) -> list:
    """Segments (start (3,), end (3,), radius mm): each branch splits in two, thinner and shorter."""
    roots = 7
    heads = np.stack([side * rng.uniform(0.3, 1, roots), rng.uniform(-0.9, 0.9, roots), np.linspace(-1.1, 1.1, roots)], 1)
    starts, heads, segments = np.tile(np.array(hilum), (roots, 1)), _unit(heads), []
    radius, length = 4.2, 27.0
    for _ in range(generations):
        ends = starts + heads * length * rng.uniform(0.7, 1.2, (len(heads), 1))
        segments += [(a, b, r) for a, b, r in zip(starts, ends, radius * rng.uniform(0.85, 1.15, len(ends)), strict=True)]
        starts, heads = np.repeat(ends, 2, axis=0), np.repeat(heads, 2, axis=0)
        heads = _unit(heads + rng.normal(0, 0.42, heads.shape) + [side * 0.08, 0, 0])
        radius, length = 0.76 * radius, 0.84 * length
    return segments


def _draw_ribs(c: _Canvas, rng: np.random.Generator, wall: np.ndarray) -> None:
    """Rib rings on the chest wall, falling from back to front, cartilage in front; the sternum between them."""
    k, j, i = np.nonzero((wall > 1.0) & (wall < 11.0))
    d, x, y, z = wall[k, j, i], c.x[i], c.y[j], c.z[k]
    spacing, slope, phase = rng.uniform(25, 28), rng.uniform(0.45, 0.6), rng.uniform(0, 25, 2)
    phase[1] = phase[0] + rng.uniform(-3, 3)
    across = np.mod(z - slope * y + np.where(x < 0, *phase), spacing) - spacing / 2
    q = ((d - 6) / 4.2) ** 2 + (across / 6.3) ** 2
    bone = np.where(q > 0.42, LABEL["cortex"], LABEL["marrow"])
    bone = np.where((y < -62) & (np.abs(x) < 78), LABEL["cartilage"], bone)
    rib = (q < 1) & ~((y > 0) & (np.abs(x) < 24))
    c.labels[k[rib], j[rib], i[rib]] = bone[rib]
    half = np.where(z > 55, 26, 15)
    sternum = (y < -40) & (np.abs(x) < half) & (z > -62) & (z < 84) & (d > 1.5) & (d < 10.5)
    rim = (np.abs(d - 6) > 3.2) | (np.abs(x) > half - 2)
    c.labels[k[sternum], j[sternum], i[sternum]] = np.where(rim, LABEL["cortex"], LABEL["marrow"])[sternum]


def _draw_shoulders(c: _Canvas, wall: np.ndarray) -> None:
    """Scapulae as plates behind the ribs, clavicles, and the heads of the raised arms' bones at the top."""
    angle = np.degrees(np.arctan2(c.y[:, None] + 9, np.abs(c.x)))  # (y, x)
    z = c.z[:, None, None]
    height = _step(z, -30, 40)
    plate = (wall > 16.5) & (wall < 22) & (np.abs(angle - 38) < 4 + 22 * height) & (z > -30)
    c.paint((slice(None),) * 3, plate, LABEL["marrow"], over=("muscle", "fat"))
    rim = plate & (np.abs(wall - 19.25) > 1.4)
    c.paint((slice(None),) * 3, rim, LABEL["cortex"], over=("marrow",))
    for side in (-1, 1):
        points = np.array([(22, -72, 86), (70, -58, 100), (128, -20, 116)]) * (side, 1, 1)
        _tube(c, points, [6.5] * 3, "cortex")
        _tube(c, points, [4] * 3, "marrow")


def _draw_spine(c: _Canvas, rng: np.random.Generator) -> None:
    """Vertebral bodies with cortex, discs between them, canal, arches and processes on a kyphotic curve."""
    where, z, y, x = c.box((-60, 20, -1e3), (60, 125, 1e3))
    u = x - rng.uniform(-5, 5) * np.cos((z - rng.uniform(-60, 60)) / 60)
    v = y - 50 + 10 * ((z - 10) / 110) ** 2
    along = np.mod(z + rng.uniform(0, 26), 26) - 13
    q = (u / 18) ** 2 + (v / 15.5) ** 2
    canal = (u / 9) ** 2 + ((v - 24) / 8) ** 2
    spinous = (np.abs(u) < 4) & (v > 34) & (v < 60) & (np.abs(np.mod(along + 0.7 * (v - 34) + 13, 26) - 13) < 8)
    transverse = (np.abs(v - 22 - 0.25 * np.abs(u)) < 4.5) & (np.abs(u) > 10) & (np.abs(u) < 36) & (np.abs(along) < 7)
    arch = ((u / 15) ** 2 + ((v - 24) / 14) ** 2 < 1) & (np.abs(along + 4) < 10)
    c.paint(where, arch | spinous | transverse, LABEL["marrow"])
    c.paint(where, (arch & (canal < 1.6)) | (spinous & (np.abs(u) > 2.2)), LABEL["cortex"])
    c.paint(where, (q < 1) & (np.abs(along) > 10.5), LABEL["disc"])
    c.paint(where, (q < 1) & (np.abs(along) <= 10.5), LABEL["cortex"])
    c.paint(where, (q < 0.8) & (np.abs(along) < 9), LABEL["marrow"])
    c.paint(where, canal < 1, LABEL["cord"])


def _draw_couch(c: _Canvas, half_depth_mm: float) -> None:
    """A curved carbon shell with foam inside, a few mm below the back; the same for every patient."""
    x, y = c.x / c.scale[0], c.y[:, None] / c.scale[1]  # patient mm
    upper = half_depth_mm + 7 - x**2 / 900
    lower = upper + 38 * (1 - (x / 195) ** 2)
    foam, shell = (y > upper) & (y < lower), (y > upper - 2) & (y < lower + 2) & (np.abs(x) < 200)
    air = c.labels == LABEL["air"]
    c.labels[air & shell] = LABEL["couch"]
    c.labels[air & foam] = LABEL["foam"]


def _add_lesions(c: _Canvas, rng: np.random.Generator, centre: np.ndarray, hu: np.ndarray, suv: np.ndarray) -> list:
    """Paint 0-4 lesions, extend the two tables by them, and return their truth (centre in patient mm)."""
    lesions: list[dict] = []
    for label in range(FIRST_LESION, FIRST_LESION + rng.choice(5, p=LESION_COUNTS)):
        site = str(rng.choice(list(LESION_SITES), p=list(LESION_SITES.values())))
        radius = round(float(rng.uniform(5, 20) if site == "lung" else rng.uniform(6, 16)), 1)
        at = _place(c, rng, site) / c.scale + centre
        hu[label], suv[label] = round(rng.uniform(20, 60), 1), round(rng.uniform(3, 12), 2)
        if any(np.linalg.norm(at - o["centre_mm"]) < radius + o["radius_mm"] + 4 for o in lesions):
            continue
        soft = ("lung", "vessel", "small vessel", "mediastinum", "blood", "muscle", "oesophagus", "diaphragm")
        _ellipsoid(c, (at - centre) * c.scale, radius * c.scale, label, soft, rough=0.15)
        lesions.append({"centre_mm": [round(float(v), 2) for v in at], "radius_mm": radius,
                        "suv": float(suv[label]), "hu": float(hu[label]), "site": site})
    return lesions


def _place(c: _Canvas, rng: np.random.Generator, site: str) -> np.ndarray:
    """A random voxel centre of a site, nominal mm (3,)."""
    side = rng.choice([-1, 1])
    if site == "hilum":
        return np.array(HILA[side]) + rng.normal(0, 5, 3) + (4 * side, 0, 0)
    where, z, _, _ = c.box((-1e3, -60, -30 if site == "mediastinum" else -75), (1e3, 60, 80))
    found = np.flatnonzero(c.labels[where] == LABEL[site])
    k, j, i = np.unravel_index(found[rng.integers(found.size)], c.labels[where].shape)
    return np.array([c.x[i], c.y[where[1]][j], z[k, 0, 0]])


# Shapes.


def _ellipsoid(
    c: _Canvas,
    centre: np.ndarray,
    radii: tuple,
    name: str | int,
    over: tuple[str, ...] = (),
    *,
    along: np.ndarray | None = None,
    rough: float = 0.0,
    low: bool = False,
) -> None:
    """Paint an ellipsoid, nominal mm. along: its first axis (3,). rough: share by which texture moves the outline.

    low: only below the diaphragm's highest place, so that abdominal organs stay out of the chest.
    """
    centre, radii = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    reach = (radii if along is None else np.full(3, radii.max())) * (1 + 2 * rough)
    high = np.minimum(centre + reach, (1e3, 1e3, -34)) if low else centre + reach
    where, z, y, x = c.box(centre - reach, high)
    offsets = (x - centre[0], y - centre[1], z - centre[2])
    axes = np.eye(3, dtype=np.float32) if along is None else _frame(along).astype(np.float32)
    q = sum((sum(a * o for a, o in zip(axis, offsets, strict=True)) / r) ** 2 for axis, r in zip(axes, radii, strict=True))
    limit = (1 + rough * np.clip(c.texture[where], -1.5, 1.5)) ** 2 if rough else 1.0
    c.paint(where, q < limit, LABEL[name] if isinstance(name, str) else name, over)


def _tube(c: _Canvas, points: list, radii: list, name: str, over: tuple[str, ...] = ()) -> None:
    """Paint a chain of round-ended cones through points (n, 3) with radii (n,), nominal mm."""
    points = np.asarray(points, np.float32)
    for (a, b), (ra, rb) in zip(pairwise(points), pairwise(np.maximum(radii, 1.1)), strict=True):
        reach = max(ra, rb)
        where, z, y, x = c.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        if c.labels[where].size == 0:
            continue
        d = b - a
        x, y, z = x - a[0], y - a[1], z - a[2]
        t = np.clip((x * d[0] + y * d[1] + z * d[2]) / (d @ d), 0, 1)
        gap = (x - t * d[0]) ** 2 + (y - t * d[1]) ** 2 + (z - t * d[2]) ** 2
        c.paint(where, gap < (ra + t * (rb - ra)) ** 2, LABEL[name], over)


def _outside(c: _Canvas, centre: tuple, half: tuple, power: float, taper: np.ndarray) -> np.ndarray:
    """Radial distance to a tapering superellipse cylinder, (z, y, x) float32, mm; negative inside. taper: (Z,)."""
    x, y = c.x - centre[0], (c.y - centre[1])[:, None]
    radius = np.hypot(x, y) + 1e-3
    edge = radius / ((np.abs(x) / half[0]) ** power + (np.abs(y) / half[1]) ** power + 1e-9) ** (1 / power)
    return radius.astype(np.float32) - taper[:, None, None].astype(np.float32) * edge.astype(np.float32)


def _dome(x: np.ndarray, y: np.ndarray, centre: tuple, top: float, radii: tuple) -> np.ndarray:
    """Height (y, x) of a paraboloid that falls by 90 mm at its radii."""
    return (top - 90 * (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2)).astype(np.float32)


def _step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _frame(along: np.ndarray) -> np.ndarray:
    """Three orthonormal rows, the first along the given direction."""
    second = _unit(np.cross(along, (0.0, 0.0, 1.0)))
    return np.stack([_unit(along), second, np.cross(_unit(along), second)])


def _among(names: tuple[str, ...]) -> np.ndarray:
    table = np.zeros(256, bool)
    table[[LABEL[n] for n in names]] = True
    return table


# Grids, tables and imaging.


def _grid_affine(pixel_mm: float, size: int, slice_mm: float, shift_mm: float, bottom_mm: float) -> np.ndarray:
    start = shift_mm - (size - 1) * pixel_mm / 2
    return axial_affine((pixel_mm, pixel_mm, slice_mm), np.array([start, start, bottom_mm + slice_mm / 2]))


def _axis(affine: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Voxel centres along x, y or z (0, 1, 2), (count,), patient mm."""
    return affine[axis, 3] + affine[axis, axis] * np.arange(count)


def _canvas(
    rng: np.random.Generator, affine: np.ndarray, centre: np.ndarray, scale: np.ndarray, s: PhantomSettings
) -> _Canvas:
    counts = (s.ct_size, s.ct_size, round(s.extent_mm / s.ct_slice_mm))
    mm = [_axis(affine, a, n) for a, n in enumerate(counts)]
    x, y, z = (((m - o) * k).astype(np.float32) for m, o, k in zip(mm, centre, scale, strict=True))
    texture = _smooth_noise(rng, mm, 9.0)
    return _Canvas(np.zeros(counts[::-1], np.uint8), x, y, z, scale, texture)


def _lookup(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict]:
    """HU and SUV by label, each (256,), with this patient's own SUV; and both by name for the truth."""
    hu, suv = np.zeros(256), np.zeros(256)
    for name, (organ_hu, organ_suv, _, spread) in ORGANS.items():
        hu[LABEL[name]] = organ_hu
        suv[LABEL[name]] = organ_suv * (1 + spread * np.clip(rng.normal(), -2, 2))
    suv[LABEL["myocardium"]] = np.exp(rng.uniform(np.log(1.5), np.log(6)))
    suv = suv.round(3)
    return hu, suv, {n: {"hu": float(hu[i]), "suv": float(suv[i])} for n, i in LABEL.items()}


def _image_ct(c: _Canvas, hu: np.ndarray, rng: np.random.Generator, s: PhantomSettings) -> np.ndarray:
    """HU of the labels with texture, denser lung at the back, then noise and blur by the same kernel; (z, y, x)."""
    spread = np.zeros(256, np.float32)
    spread[: len(ORGANS)] = [row[2] for row in ORGANS.values()]
    image = hu.astype(np.float32)[c.labels] + spread[c.labels] * c.texture
    lung = c.labels == LABEL["lung"]
    image += lung * (0.45 * c.y[:, None])  # HU per mm: gravity, supine
    kernel = ndimage.gaussian_filter1d(np.eye(1, 9, 4)[0], s.ct_blur_voxels)
    gain = s.ct_noise_hu / float(np.sum(kernel**2))  # two axes, each √Σk²
    image += np.float32(gain) * rng.standard_normal(image.shape, np.float32)
    for axis in (1, 2):
        image = ndimage.gaussian_filter1d(image, s.ct_blur_voxels, axis=axis, truncate=3.0)
    return np.maximum(image, -1024.0, out=image)


def _image_pet(
    c: _Canvas,
    suv: np.ndarray,
    rng: np.random.Generator,
    ct_affine: np.ndarray,
    pet_affine: np.ndarray,
    centre_z: float,
    s: PhantomSettings,
) -> np.ndarray:
    """SUV seen by the scanner: point spread and resampling as one matrix an axis, breathing in z, noise as √SUV."""
    source = suv.astype(np.float32)[c.labels]
    source += (0.0015 * suv[LABEL["lung"]]) * (c.labels == LABEL["lung"]) * c.y[:, None]  # per mm, as the density
    ct = [_axis(ct_affine, a, n) for a, n in enumerate(source.shape[::-1])]
    counts = (s.pet_size, s.pet_size, round(s.extent_mm / s.pet_slice_mm))
    pet = [_axis(pet_affine, a, n) for a, n in enumerate(counts)]
    move = s.breathing_mm * (1 - _step(pet[2] - centre_z, -40, 60))  # full at the diaphragm, none at the apex
    mz = sum(_weights(pet[2] - phase * move, ct[2], s.pet_fwhm_mm, True) for phase in (0.0, 0.5, 1.0)) / 3
    mx, my = (_weights(pet[a], ct[a], s.pet_fwhm_mm, False) for a in (0, 1))
    clean = _separable(source, mz, my, mx)
    sigma = s.pet_noise * np.sqrt(np.maximum(clean, 0) * ORGANS["liver"][1])
    return np.maximum(clean + sigma * _smooth_noise(rng, pet, s.pet_noise_fwhm_mm / 1.7), 0).astype(np.float32)


def _weights(to_mm: np.ndarray, from_mm: np.ndarray, fwhm_mm: float, extend: bool) -> np.ndarray:
    """Matrix (to, from) of Gaussian weights. extend: rows sum to 1 at the ends too; else there is air beyond."""
    sigma, step = fwhm_mm / 2.3548, abs(from_mm[1] - from_mm[0])
    rows = np.exp(-0.5 * ((to_mm[:, None] - from_mm) / sigma) ** 2)
    return (rows / (rows.sum(1, keepdims=True) if extend else sigma * np.sqrt(2 * np.pi) / step)).astype(np.float32)


def _separable(image: np.ndarray, mz: np.ndarray, my: np.ndarray, mx: np.ndarray) -> np.ndarray:
    """Apply one matrix (to, from) to each axis of (z, y, x)."""
    planes = np.matmul(my, image @ mx.T)
    return np.tensordot(mz, planes, axes=1)


def _smooth_noise(rng: np.random.Generator, axes_mm: list[np.ndarray], step_mm: float) -> np.ndarray:
    """Gaussian noise of variance 1, correlated over about 1.7 × step_mm, on the grid of axes (x, y, z); (z, y, x)."""
    matrices, counts = [], []
    for axis in axes_mm:
        nodes = np.arange(axis[0] - 2 * step_mm, axis[-1] + 3 * step_mm, step_mm)
        rows = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.72 * step_mm)) ** 2)
        matrices.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        counts.append(len(nodes))
    mx, my, mz = matrices
    coarse = rng.standard_normal(counts[::-1], np.float32)
    return np.matmul(my, np.tensordot(mz, coarse, axes=1) @ mx.T)


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"
