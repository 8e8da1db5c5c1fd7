"""The phantom's soft organs: one patient's shapes in the nominal frame, and how they are painted."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from petct_lib.phantom import skeleton
from petct_lib.phantom.shapes import GRID, Z_MM, Canvas, ellipsoid, noise, sample, smooth_step, tube, union
from petct_lib.phantom.tissues import LABEL, LUNG, label_table
from petct_lib.phantom.vessels import Tree, grow_vessels

HILA = {-1: (-46.0, 4.0, 6.0), 1: (49.0, 6.0, 12.0)}  # nominal mm, right and left
BEND_MM = 3.0  # 1σ of the smooth bending that keeps any organ from being an ellipsoid
SKIN_MM = 1.8  # epidermis and dermis of the trunk are 1-3 mm
PLANES_MM = (14.0, 26.0)  # fat between the layers of muscle, from the cage's inner surface
CHEST = label_table(*LUNG, "mediastinal fat", "diaphragm", "muscle", "airway wall")
SOFT = CHEST | label_table("abdominal fat", "blood", "oesophagus", "liver", "myocardium")
ABDOMEN = label_table("abdominal fat")
# The cage's inner surface by height: half width, half depth and middle (y), mm. Thoracic index 0.65 to 0.7 in adults.
CAGE_Z = (-200, -120, -50, 0, 50, 85, 108, 125, 150, 220)
CAGE = {
    "half_width": (124, 130, 134, 130, 110, 82, 58, 44, 40, 40),
    "half_depth": (88, 91, 90, 86, 74, 57, 45, 40, 38, 38),
    "middle": (-9, -9, -8, -6, 1, 8, 12, 13, 14, 14),
}


@dataclass(frozen=True)
class Build:
    """What of a patient decides the shapes."""

    sex: str  # M or F
    fat_mm: float  # subcutaneous, mean over the trunk
    muscle: float  # thickness relative to the mean
    arms_up: bool


@dataclass(frozen=True)
class Anatomy:
    """One patient: fields by name, (z, y, x) mm, negative inside; chains of tubes; bones and trees."""

    build: Build
    fields: dict[str, np.ndarray]
    tubes: list[tuple[str, np.ndarray, object]]  # tissue, points (n, 3) nominal mm, radius
    airway: list[tuple[np.ndarray, float]]  # trachea and large bronchi: points, radius of the lumen
    bones: skeleton.Bones
    vessels: Tree


def grow_anatomy(rng: np.random.Generator, build: Build) -> Anatomy:
    """A patient's shapes: the same state of `rng` gives the same patient."""
    bend = BEND_MM * np.stack([noise(rng, 90.0) for _ in range(3)])
    bend[2] *= 0.5  # slices show the bending in plane
    at = bend + np.stack(np.broadcast_arrays(*GRID))
    fields = _trunk(rng, build, at)
    heart, great, airway = _heart(rng, at), _great_vessels(rng), _airway(rng)
    fields |= heart | _chest(rng, at, fields["wall"], heart["heart"], great, airway)
    fields |= _abdomen(rng, at, fields["abdomen"])
    great = [(tissue, _place(points, bend), radius) for tissue, points, radius in great]
    airway = [(_place(points, bend), radius) for points, radius in airway]
    vessels = grow_vessels(rng, fields["lung"], HILA)
    return Anatomy(build, fields, great, airway, skeleton.grow_skeleton(rng, build.arms_up), vessels)


def _place(points: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Where the bending takes points (n, 3) of the unbent patient, to first order."""
    points = np.asarray(points, np.float32)
    return points - np.stack([sample(b, points) for b in bend], axis=1)


def paint_anatomy(a: Anatomy, c: Canvas) -> None:
    """Everything but lesions and couch, from the skin inwards."""
    _draw_trunk(a, c)
    _draw_chest(a, c)
    _draw_abdomen(a, c)
    _draw_heart(a, c)
    for tissue, points, radius in a.tubes:
        c.tubes(points, radius, LABEL[tissue], SOFT)
    for wall in (True, False):
        for points, radius in a.airway:
            name = "airway wall" if wall else "airway"
            c.tubes(points, radius + wall * (0.8 + 0.1 * radius), LABEL[name], SOFT | label_table("airway wall"))
    skeleton.paint_skeleton(a.bones, c, a.fields["wall"])


# Trunk.


def _trunk(rng: np.random.Generator, build: Build, at: np.ndarray) -> dict[str, np.ndarray]:
    """Chest cavity (`wall`), muscle and body, from the inside out."""
    x, y, z = at
    half_w, half_d, middle = (
        PchipInterpolator(CAGE_Z, v)(Z_MM)[:, None, None].astype(np.float32) for v in CAGE.values()
    )
    shape = rng.normal(0, 0.025, 2)
    dx, dy = x, y - middle
    radius = np.hypot(dx, dy) + 1e-3
    power = 2.25
    edge = (np.abs(dx) / (half_w * (1 + shape[0]))) ** power + (np.abs(dy) / (half_d * (1 + shape[1]))) ** power
    cage = (radius * (1 - edge ** (-1 / power))).astype(np.float32)
    # Beside the spine the ribs stand back from its bodies: the cavity ends in front of them.
    behind = tube(np.stack(np.broadcast_arrays(*GRID)), [(0, y + 25, h) for h, y in skeleton.CURVE], 27)
    wall = -union(-cage, behind, smooth_mm=10)
    angle = np.degrees(np.arctan2(np.abs(dx), -dy))  # 0 at the sternum, 180 at the spine
    muscle = union(cage - build.muscle * _muscle_mm(build, angle, z), _shoulders(at, build, 0.0), smooth_mm=18)
    fat_mm = build.fat_mm * _fat_share(angle, z) * (1 + 0.15 * noise(rng, 110.0))
    body = union(muscle - np.clip(fat_mm, 1.5, 50) - SKIN_MM, _shoulders(at, build, 0.7 * build.fat_mm), smooth_mm=14)
    fields = {"wall": wall, "cage": cage, "muscle": muscle}
    if build.sex == "F":
        size = rng.uniform(0.75, 1.15) * np.array((58, 34 + 0.6 * build.fat_mm, 56))
        lie = rng.uniform(4, 14)  # lying, they spread to the sides
        breasts = union(*(ellipsoid(at, (s * (72 + lie), -88 + lie, -12), size) for s in (-1, 1)))
        gland = union(*(ellipsoid(at, (s * (74 + lie), -98 + lie, -14), 0.62 * size) for s in (-1, 1)))
        body = union(body, breasts, smooth_mm=16)
        fields["gland"] = np.maximum(gland + 5 * noise(rng, 14.0), 6 - wall)
    return fields | {"body": body}


def _bump(angle: np.ndarray, middle: float, width: float) -> np.ndarray:
    return np.exp(-(((angle - middle) / width) ** 2))


def _muscle_mm(build: Build, angle: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Thickness from the cage's inner surface: ribs and intercostals, then the muscles of front, side and back."""
    pectoral = 1.0 if build.sex == "M" else 0.65
    chest = smooth_step(z, -35, 15) * (1 - smooth_step(z, 85, 115))
    thick = 13 + 15 * pectoral * _bump(angle, 47, 26) * chest  # pectoralis: 10-20 mm
    thick += 7 * _bump(angle, 105, 30) * (1 - smooth_step(z, -20, 30))  # serratus, latissimus
    thick += 30 * _bump(angle, 118, 34) * smooth_step(z, -30, 40)  # subscapularis, infraspinatus, teres
    thick += 13 * _bump(angle, 148, 20) * smooth_step(z, -20, 50)  # trapezius, rhomboids
    thick += 18 * _bump(angle, 160, 16) * (1 - 0.4 * smooth_step(z, 40, 110))  # erector spinae
    return thick - 5 * _bump(angle, 0, 12) - 4 * _bump(angle, 180, 7)


def _fat_share(angle: np.ndarray, z: np.ndarray) -> np.ndarray:
    share = 0.85 + 0.35 * _bump(angle, 128, 38) + 0.3 * _bump(angle, 50, 35) - 0.4 * _bump(angle, 0, 22)
    return share * (1 + 0.35 * smooth_step(-z, 40, 140)) * (1 - 0.25 * smooth_step(z, 60, 120))


def _shoulders(at: np.ndarray, build: Build, fat_mm: float) -> np.ndarray:
    """Muscle of neck, shoulders and upper arms; with fat_mm and the skin, their surface."""
    more = fat_mm + SKIN_MM if fat_mm else 0.0
    limbs = [tube(at, [(0, 14, 100), (0, 8, 240)], 50 * build.muscle**0.3 + more)]
    for s in (-1, 1):
        limbs.append(
            tube(at, [(s * 45, 22, 128), (s * 100, 16, 112), (s * 152, 6, 96)], [34 + more, 36 + more, 36 + more])
        )
        limbs.append(
            tube(at, [(s * x, y, z) for x, y, z in skeleton.ARM[build.arms_up]], [36 + more, 35 + more, 32 + more])
        )
    return union(*limbs, smooth_mm=18)


def _draw_trunk(a: Anatomy, c: Canvas) -> None:
    f = a.fields
    where = c.around(f["body"], inner=False)
    if where is None:
        return
    depth = c.fine(f["body"], where, inner=False)
    c.paint(where, depth < 0, LABEL["skin"])
    c.paint(where, depth < -SKIN_MM, LABEL["fat"])
    if "gland" in f:
        c.solid(f["gland"], LABEL["breast gland"], label_table("fat"), inner=False)
    c.solid(f["muscle"], LABEL["muscle"], label_table("fat"), inner=False)
    wavy, thin = (
        c.fine(field, where, inner=False) for field in (f["cage"] - 2.5 * f["marbling"], 1.2 - np.abs(f["marbling"]))
    )
    for plane in PLANES_MM:
        c.paint(where, np.abs(wavy - plane) < thin, LABEL["fat"], label_table("muscle"))


# Chest.


def _chest(
    rng: np.random.Generator, at: np.ndarray, wall: np.ndarray, heart: np.ndarray, great: list, airway: list
) -> dict[str, np.ndarray]:
    """Mediastinum as a sleeve around its organs, the diaphragm's floor, the lungs and their fissures, muscle planes."""
    x, y, z = at
    spine = tube(at, [(0, y, h) for h, y in skeleton.CURVE], 21)
    sleeve = [tube(at, points, np.asarray(radius) + 3) for tissue, points, radius in great if tissue != "azygos"]
    sleeve += [tube(at, points, radius + 3) for points, radius in airway if radius > 5]
    upper = ellipsoid(at, (0, -26, 62), (rng.uniform(20, 27), 40, 62))
    front = tube(at, [(2, -90, -60), (2, -82, 0), (0, -60, 70)], rng.uniform(3, 7))
    middle = union(spine, heart - rng.uniform(2, 5), upper, front, *sleeve, smooth_mm=14)
    middle = np.minimum(middle, np.abs(x - 2) - 2.5)  # behind the sternum and under the heart the lungs nearly touch
    floor = _floor(rng, at)
    apex = z - np.where(x < 0, *(_dome(x, y, (s * 52, 14), rng.uniform(104, 114), (78, 70), 70) for s in (-1, 1)))
    lung = np.maximum.reduce([wall + 2.5, (floor - z) / 1.35, -middle, apex / 1.3]).astype(np.float32)
    bent = z - (np.abs(x) - 80) ** 2 / 300 - 7 * np.sin(y / 40 + x / 60)
    right, left = rng.uniform(-14, 6, 2)
    oblique = bent - 0.9 * y - np.where(x < 0, right, left - 22)
    horizontal = bent - rng.uniform(4, 16) + 0.12 * (y + 40)
    return {
        "mediastinum": np.maximum.reduce([middle, wall + 2, floor - z]), "lung": lung,
        "diaphragm": np.maximum(wall + 3, z - floor), "abdomen": np.maximum(wall + 6, z - floor + 5),
        "oblique": (oblique / 1.4).astype(np.float32), "horizontal": horizontal.astype(np.float32),
        "marbling": noise(rng, 36.0),
    }  # fmt: skip


def _floor(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    """Height (z, y, x) of the diaphragm at the middle of a breath; the right dome is higher, the back is lower."""
    x, y, _ = at
    right = rng.uniform(-58, -42)
    left = right - rng.uniform(4, 16)  # a right dome 1-2 cm higher is normal
    floor = _dome(x, y, (4, -30), right - rng.uniform(14, 24), (100, 84), 80)
    for side, top in ((-1, right), (1, left)):
        floor = np.maximum(floor, _dome(x, y, (side * 70, -14), top, (78, 90), 95))
    return floor


def _dome(x: np.ndarray, y: np.ndarray, centre: tuple, top: float, radii: tuple, fall: float) -> np.ndarray:
    """Height of a dome, flat on top, that falls by `fall` mm at its radii."""
    q = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
    return (top - fall * q**1.25).astype(np.float32)


def _draw_chest(a: Anatomy, c: Canvas) -> None:
    f = a.fields
    c.solid(f["diaphragm"], LABEL["diaphragm"], label_table("muscle", "fat"))
    c.solid(f["abdomen"], LABEL["abdominal fat"], label_table("diaphragm"))
    c.solid(f["mediastinum"], LABEL["mediastinal fat"], label_table("muscle"))
    where = c.around(f["lung"])
    if where is None:
        return
    lung = c.fine(f["lung"], where) < 0
    oblique, horizontal = (c.fine(f[name], where) for name in ("oblique", "horizontal"))
    right = np.broadcast_to(c.grid(where)[0] < 0, lung.shape)
    for name, part in (
        ("right upper lobe", right & (oblique > 0) & (horizontal > 0)),
        ("right middle lobe", right & (oblique > 0) & (horizontal <= 0)),
        ("right lower lobe", right & (oblique <= 0)),
        ("left upper lobe", ~right & (oblique > 0)),
        ("left lower lobe", ~right & (oblique <= 0)),
        ("fissure", (np.abs(oblique) < 0.7) | (right & (oblique > 0) & (np.abs(horizontal) < 0.7))),
    ):
        c.paint(where, lung & part, LABEL[name])


# Heart and vessels.


def _heart(rng: np.random.Generator, at: np.ndarray) -> dict[str, np.ndarray]:
    """Atria and right ventricle as blood, the left ventricle as a shell around its pool on an oblique axis."""
    size, shift = rng.uniform(0.92, 1.08), rng.normal((5, 0, 0), 3)
    long = np.array([0.70, -0.52, -0.49]) + rng.normal(0, 0.07, 3)
    long /= np.linalg.norm(long)
    side = np.cross(long, (0, 0, 1.0))
    side /= np.linalg.norm(side)
    axes = np.stack([long, side, np.cross(long, side)])

    def chamber(centre: tuple, radii: tuple, turned: bool = True) -> np.ndarray:
        return ellipsoid(at, shift + np.array(centre), size * np.array(radii), axes if turned else None)

    left = np.array((34, -30, -26))
    # At end-diastole 6-10 mm (Lang 2015, J Am Soc Echocardiogr 28:1); PET sees the mean.
    wall_mm = rng.uniform(8.5, 11.5)
    outer = chamber(left, (48, 33, 33))
    pool = chamber(left - 6 * long, (48 - wall_mm, 33 - wall_mm, 33 - wall_mm))
    right = np.maximum(chamber((6, -52, -26), (46, 27, 36)), 1.5 - outer)
    atria = union(chamber((-33, -26, -16), (25, 30, 34), False), chamber((2, -2, -2), (34, 17, 24), False), smooth_mm=6)
    blood = union(right, np.maximum(atria, 3 - outer))
    whole = union(outer, blood, smooth_mm=16)
    right_wall = np.maximum(right - 2.5, -right)
    return {"heart": whole, "blood": blood, "ventricle": outer, "pool": pool, "right wall": right_wall}


def _draw_heart(a: Anatomy, c: Canvas) -> None:
    f = a.fields
    c.solid(f["heart"], LABEL["mediastinal fat"], SOFT, level=3.0)
    c.solid(f["right wall"], LABEL["myocardium"], SOFT)
    c.solid(f["blood"], LABEL["blood"], SOFT)
    c.solid(f["ventricle"], LABEL["myocardium"], SOFT)
    c.solid(f["pool"], LABEL["blood"], SOFT)


def _great_vessels(rng: np.random.Generator) -> list[tuple[str, np.ndarray, object]]:
    """Aorta, pulmonary arteries and veins, great veins, the arch's branches, oesophagus: chains of points and radii."""
    j, aorta = rng.normal(0, 2.0, 3), rng.uniform(14, 18)  # Framingham, by CT: men 34, women 32 mm wide (Rogers 2013)
    hila = HILA
    chains = [
        ([(4, -24, -4), (-14, -30, 22), (-14, -24, 44), (-3, -8, 60), (14, 10, 60), (27, 22, 46)],
         [aorta, aorta, aorta, 0.92 * aorta, 0.86 * aorta, 0.82 * aorta]),
        ([(27, 22, 46), (29, 28, 10), (26, 26, -50), (14, 24, -110), (4, 24, -200)], 0.76 * aorta),
        ([(18, -46, 0), (20, -38, 20), (22, -20, 30), (38, 0, 26), hila[1]], [13, 13, 12, 11, 9]),
        ([(22, -20, 28), (2, -8, 22), (-24, -6, 16), hila[-1]], [12, 11, 10, 9]),
        ([(-26, -18, 92), (-26, -18, 40), (-28, -20, 4)], 9),
        ([(-26, -20, 88), (5, -34, 84), (36, -26, 104), (66, -14, 118)], 6),
        ([(-26, -18, 90), (-38, -22, 106), (-64, -14, 118)], 6),
        ([(-5, -14, 62), (-16, -12, 92), (-26, -8, 130), (-30, -8, 220)], [6, 6, 5, 4]),
        ([(6, -4, 64), (18, 0, 130), (28, -6, 220)], 3.8),
        ([(16, 8, 62), (26, 10, 100), (60, 4, 118)], 4.8),
        ([(-30, -16, -30), (-26, -2, -62), (-24, 8, -90), (-20, 14, -200)], 11),  # inferior vena cava
        ([(-30, 0, -2), (-56, 8, -22)], 6),  # pulmonary veins
        ([(-30, -6, 4), (-54, -14, 16)], 5.5),
        ([(30, 2, -2), (56, 12, -22)], 6),
        ([(30, -4, 4), (56, -16, 14)], 5.5),
    ]  # fmt: skip
    vessels = [("blood", np.array(points) + j, radius) for points, radius in chains]
    azygos = [(-9, 27, -120), (-9, 24, 20), (-16, 14, 34), (-24, -10, 38)]
    gullet = [(2, 24, 130), (5, 20, 60), (8, 16, 0), (14, 8, -50), (28, -4, -84)]
    return [*vessels, ("blood", np.array(azygos) + j, 3.5), ("oesophagus", np.array(gullet) + j, rng.uniform(6, 8))]


def _airway(rng: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Trachea, main, lobar and segmental bronchi: points and the lumen's radius.

    The trachea is 15-20 mm wide: 10-25 in Breatnach 1984, AJR 142:903.
    """
    split, wide = (-2, 8, rng.uniform(20, 30)), rng.uniform(7.5, 9.8)
    chains = [
        ([(0, -4, 220), (0, -2, 130), (0, 4, 70), split], wide),
        ([split, (-20, 10, 10), (-44, 8, -2)], 0.74 * wide),
        ([split, (24, 10, 10), (48, 10, -2)], 0.66 * wide),
        ([(-44, 8, -2), (-52, 16, -30), (-60, 26, -58)], 0.42 * wide),
        ([(48, 10, -2), (56, 18, -32), (62, 28, -60)], 0.40 * wide),
        ([(-38, 8, 2), (-60, 0, 22), (-74, 8, 44)], 0.38 * wide),
        ([(44, 10, 0), (62, -4, 20), (74, 2, 42)], 0.36 * wide),
        ([(-50, 14, -26), (-62, -14, -36), (-74, -40, -42)], 0.28 * wide),
        ([(50, 4, 4), (70, -22, 2), (80, -46, -4)], 0.28 * wide),
        ([(-54, 18, -36), (-72, 40, -40)], 0.26 * wide),
        ([(58, 20, -36), (76, 42, -40)], 0.26 * wide),
    ]
    return [(np.array(points, np.float32), radius) for points, radius in chains]


# Abdomen.


def _abdomen(rng: np.random.Generator, at: np.ndarray, space: np.ndarray) -> dict[str, np.ndarray]:
    """Liver, spleen, stomach with its gas, kidneys and a bend of bowel, under the diaphragm."""
    j = rng.normal(0, 5, (6, 3))

    def organ(centre: tuple, radii: tuple, jitter: np.ndarray) -> np.ndarray:
        return ellipsoid(at, np.array(centre) + jitter, np.array(radii) * rng.uniform(0.92, 1.08, 3))

    lobes = organ((-66, -4, -126), (92, 88, 90), j[0]), organ((12, -44, -96), (rng.uniform(48, 78), 36, 34), j[0])
    liver = union(*lobes, smooth_mm=22)
    stomach = union(
        organ((60, -22, -104), (42, 40, 44), j[1]), organ((30, -50, -130), (46, 28, 26), j[1]), smooth_mm=14
    )
    gas = np.maximum(stomach + 4, at[1] + rng.uniform(30, 50))  # it rises to the front
    bowel = organ((92, -50, -128), (26, 26, 34), j[2])
    spleen = np.maximum(organ((80, 36, -112), (46, 52, 54), j[3]), -organ((50, 8, -112), (40, 42, 64), j[3]))
    kidneys = union(organ((-60, 54, -182), (27, 25, 52), j[4]), organ((62, 56, -168), (27, 25, 52), j[4]))
    sinus = union(organ((-46, 48, -184), (16, 12, 26), j[4]), organ((48, 50, -170), (16, 12, 26), j[4]))
    fields = {
        "liver": liver,
        "stomach": stomach,
        "spleen": spleen,
        "bowel": bowel,
        "kidney": np.maximum(kidneys, -sinus),
    }
    fields["gas"] = np.minimum(gas, np.maximum(bowel + 5, at[1] + 62))
    return {name: np.maximum(shape, space).astype(np.float32) for name, shape in fields.items()}


def _draw_abdomen(a: Anatomy, c: Canvas) -> None:
    for name in ("bowel", "stomach", "kidney", "spleen", "liver"):
        c.solid(a.fields[name], LABEL[name], ABDOMEN)
    c.solid(a.fields["gas"], LABEL["gas"], label_table("stomach", "bowel"))
