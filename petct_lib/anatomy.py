"""The phantom's anatomy: organs and lesions drawn as labels, in a nominal frame that each patient stretches.

The frame: a body of 360 × 240 mm, x to the patient's left, y to the back, z to the head, origin mid-chest, mm. Later
shapes are painted over earlier ones.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# name: (HU, SUV by body weight, HU texture 1σ, spread of the SUV between patients 1σ as a fraction). Rounded textbook
# values for native CT at 120 kV (range as in Schneider 1996, 10.1088/0031-9155/41/1/009) and for FDG 60 min after
# injection (range as in Zincirkeser 2007, J Int Med Res 35:231).
ORGANS: dict[str, tuple[float, float, float, float]] = {
    "air": (-1000, 0.0, 0, 0),
    "skin": (10, 0.5, 5, 0.1),
    "fat": (-100, 0.25, 8, 0.15),
    "muscle": (50, 0.7, 6, 0.1),
    "gland": (25, 0.7, 12, 0.2),
    "lung": (-850, 0.5, 16, 0.12),
    "fissure": (-700, 0.5, 10, 0),
    "small vessel": (-350, 0.6, 40, 0.1),  # under a voxel wide: lung and blood mixed
    "vessel": (40, 1.3, 4, 0.08),
    "airway": (-1000, 0.1, 0, 0),
    "mediastinum": (-75, 0.6, 20, 0.1),  # fat with small vessels and nodes between the organs
    "abdomen": (-95, 0.4, 10, 0.1),  # fat between the organs below the diaphragm
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
LESION_COUNTS = (0.2, 0.3, 0.25, 0.15, 0.1)  # probability of 0, 1, 2, 3, 4 lesions
LESION_SITES = {"lung": 0.6, "hilum": 0.2, "mediastinum": 0.2}
HILA = {-1: (-44.0, 10.0, 8.0), 1: (48.0, 14.0, 10.0)}  # nominal mm, right and left
LUNG = ("lung", "fissure", "small vessel")
CHEST = (*LUNG, "mediastinum", "muscle", "fat", "diaphragm", "vessel", "blood", "oesophagus")  # what may be displaced
ALL = (slice(None),) * 3


@dataclass(frozen=True)
class Canvas:
    """Labels (z, y, x) uint8 and the voxel centres' nominal coordinates, mm; scale: nominal mm per patient mm (3,)."""

    labels: np.ndarray
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]  # x (X,), y (Y,), z (Z,)
    scale: np.ndarray
    texture: np.ndarray  # (z, y, x) smooth noise of variance 1

    def grid(self, where: tuple = ALL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x (i,), y (j, 1), z (k, 1, 1) of a part given as slices (z, y, x): they broadcast to (z, y, x)."""
        return self.axes[0][where[2]], self.axes[1][where[1], None], self.axes[2][where[0], None, None]

    def box(self, low: np.ndarray, high: np.ndarray) -> tuple:
        """Slices (z, y, x) of the voxels between two corners (x, y, z)."""
        found = (np.searchsorted(a, [lo, hi]) for a, lo, hi in zip(self.axes, low, high, strict=True))
        return tuple(slice(*f) for f in found)[::-1]

    def paint(self, where: tuple, mask: np.ndarray, name: str | int, over: tuple[str, ...] = ()) -> None:
        """Set an organ (or a lesion's label) where the mask holds and, if `over` is given, one of those lies there."""
        part = self.labels[where]
        if over:
            table = np.zeros(256, bool)
            table[[LABEL[n] for n in over]] = True
            mask = mask & table[part]
        part[mask] = LABEL[name] if isinstance(name, str) else name


def draw_anatomy(c: Canvas, rng: np.random.Generator, sex: str, couch_below_mm: float | None) -> None:
    """Everything but lesions, from the trunk inwards; the couch if `couch_below_mm` says how far below the centre."""
    wall = _draw_trunk(c, rng, sex)
    _draw_chest(c, rng, wall)
    _draw_abdomen(c, rng)
    _draw_heart(c, rng)
    _draw_vessels(c, rng)
    _draw_airways(c, rng)
    _draw_ribs(c, rng, wall)
    _draw_shoulders(c, wall)
    _draw_spine(c, rng)
    if couch_below_mm is not None:
        _draw_couch(c, couch_below_mm)


def _draw_trunk(c: Canvas, rng: np.random.Generator, sex: str) -> np.ndarray:
    """Skin, fat and muscle. Returns the distance to the chest cavity's wall, (z, y, x), mm, negative inside."""
    x, y, z = c.grid()
    taper = 1 - 0.10 * smooth_step(z, 60, 130) - rng.uniform(0.0, 0.05) * smooth_step(-z, 20, 120)
    depth = _outside(c, (0, 0), NOMINAL_HALF_MM, 2.4, taper)
    angle = np.arctan2(y, x)
    fat_mm = rng.uniform(7, 20) * (1 + 0.3 * np.cos(2 * angle + 0.6) + 0.15 * np.cos(3 * angle + rng.uniform(0, 6)))
    c.paint(ALL, depth < 0, "skin")
    c.paint(ALL, depth < -2, "fat")
    c.paint(ALL, (depth < (-2 - fat_mm).astype(np.float32)) & (c.texture < 1.5), "muscle")
    for side in (-1, 1) if sex == "F" else ():
        for name, radii in (("skin", (60, 40, 54)), ("fat", (58, 38, 52)), ("gland", (32, 24, 30))):
            _ellipsoid(c, (side * 78, -96, -2), radii, name, ("air", "skin", "fat"), rough=0.3 * (name == "gland"))
    wall = _outside(c, (0, -9), (rng.uniform(134, 142), 84), 2.3, 1 - 0.34 * smooth_step(z, 0, 135))
    planes = (((wall > 12) & (wall < 14.5)) | ((wall > 25) & (wall < 27.5))) & (c.texture > -0.4)
    c.paint(ALL, planes, "fat", over=("muscle",))
    for side in (-1, 1):
        _ellipsoid(c, (side * 152, -8, 62), (20, 30, 55), "fat", over=("muscle",))  # axilla
    return wall


def _draw_chest(c: Canvas, rng: np.random.Generator, wall: np.ndarray) -> None:
    """Mediastinum, lungs with their fissures, and the space under the diaphragm, inside the chest wall."""
    x, y, z = c.grid()
    floor = _dome(x, y, (8, -25), rng.uniform(-64, -56), (95, 85))
    right, left = (_dome(x, y, (side * 56, 10), rng.uniform(98, 112), (82, 98)) for side in (-1, 1))
    for side, height in ((-1, rng.uniform(-46, -30)), (1, rng.uniform(-60, -44))):
        floor = np.maximum(floor, _dome(x, y, (side * 76, -8), height, (80, 94)))
    half = rng.uniform(8, 14) + 27 * np.exp(-((y / 38) ** 2)) + 1.5 * c.texture
    half += (0.1 * np.maximum(z, 0) + 9 * np.sin(z / 27 + rng.uniform(0, 6)) * (np.abs(y) < 40)).astype(np.float32)
    middle = np.abs(x - 4) < np.where(y > 28, np.maximum(half, 21), half)
    inside, above = wall < 0, z > floor
    c.paint(ALL, inside, "diaphragm")
    c.paint(ALL, (wall < -2.5) & (z < floor - 3), "abdomen")
    c.paint(ALL, inside & above & middle, "mediastinum")
    lung = inside & above & ~middle & (z < np.where(x < 0, right, left))
    c.paint(ALL, lung, "lung")
    bent = z - (np.abs(x) - 80) ** 2 / 300 - 7 * np.sin(y / 40 + x / 60)
    oblique = bent - 0.78 * y - np.where(x < 0, *rng.uniform(-12, 8, 2))
    horizontal = (x < 0) & (oblique > 0) & (np.abs(bent - 12) < 1.3)
    c.paint(ALL, lung & ((np.abs(oblique) < 1.3) | horizontal), "fissure")


def _draw_abdomen(c: Canvas, rng: np.random.Generator) -> None:
    j = rng.normal(0, 4, (3, 3))
    _ellipsoid(c, j[0] + (-62, -8, -128), (rng.uniform(105, 130), 92, 110), "liver", ("abdomen",))
    _ellipsoid(c, j[1] + (98, 34, -104), (34, 30, 44), "spleen", ("abdomen",))
    _ellipsoid(c, j[2] + (66, -34, -106), (46, 44, 54), "stomach", ("abdomen",))
    _ellipsoid(c, j[2] + (62, -56, -98), (26, 13, 28), "airway", ("stomach",))
    _tube(c, [(-20, 8, -40), (-22, 14, -130)], 11, "blood", ("liver", "abdomen", "diaphragm", "mediastinum"))


def _draw_heart(c: Canvas, rng: np.random.Generator) -> None:
    """Pericardial fat, atria and right ventricle as blood, the left ventricle as a shell on an oblique axis."""
    soft, size, at = (*CHEST, "myocardium", "abdomen", "liver"), rng.uniform(0.92, 1.1), rng.normal(0, 3, 3)
    axis = np.array([0.72, -0.5, -0.48]) + rng.normal(0, 0.08, 3)
    axis /= np.linalg.norm(axis)
    apex = np.array([36, -28, -26])
    chambers = [
        ((20, -30, -20), (50, 50, 48), "mediastinum", 66),
        ((2, -46, -24), (44, 28, 38), "blood", None),  # right ventricle
        ((-27, -26, -14), (27, 30, 35), "blood", None),  # right atrium
        ((8, 4, -4), (38, 22, 26), "blood", None),  # left atrium
        (apex, (33, 33, 33), "myocardium", 47),
        (apex - 9 * axis, (22, 22, 22), "blood", 40),
    ]
    for centre, radii, name, length in chambers:
        _ellipsoid(c, at + centre, size * np.array(radii), name, soft, axis=axis, length=length and size * length)


def _draw_vessels(c: Canvas, rng: np.random.Generator) -> None:
    """Aorta, pulmonary arteries, great veins, arch branches, oesophagus; then the trees of vessels in the lungs."""
    j, aorta = rng.normal(0, 2.0, 3), 14 * rng.uniform(0.9, 1.15)
    tubes = [
        ([(4, -28, 0), (-12, -28, 28), (-8, -20, 48), (4, -3, 60), (18, 18, 57), (26, 33, 42)], aorta),
        ([(26, 33, 42), (25, 36, 0), (19, 33, -60), (10, 28, -130)], 0.88 * aorta),
        ([(24, -44, -2), (26, -30, 22), (22, -14, 29), (38, 4, 30), HILA[1]], 11),  # pulmonary trunk, left artery
        ([(22, -14, 28), (-10, -3, 26), HILA[-1]], 10),
        ([(-26, -18, 88), (-26, -14, 40), (-25, -16, 0)], 9),  # superior vena cava
        ([(-26, -20, 84), (5, -34, 80), (42, -22, 104), (70, -14, 118)], 6),
        ([(-26, -18, 86), (-36, -20, 104), (-62, -14, 118)], 6),
        ([(-6, -16, 58), (-18, -10, 92), (-24, -8, 130)], 6),
        ([(6, -2, 62), (18, 4, 130)], 4),
        ([(18, 14, 60), (26, 14, 100), (54, 6, 120)], 5),
    ]
    for points, radius in tubes:
        _tube(c, np.array(points) + j, radius, "blood", (*CHEST, "abdomen"))
    _tube(c, [(2, 27, 130), (4, 33, 40), (10, 35, -40), (26, 20, -100)], 6.5, "oesophagus", CHEST[:-2])
    for side, hilum in HILA.items():
        for start, end, radius in _tree(rng, hilum, side):
            name = "vessel" if radius > 1.6 else "small vessel"
            _tube(c, (start, end), radius, name, LUNG)


def _tree(rng: np.random.Generator, hilum: tuple, side: int, roots: int = 10, generations: int = 7) -> list:
    """Segments (start (3,), end (3,), radius mm): each branch splits in two, thinner and shorter."""
    heads = rng.uniform((0.2, -0.9, -1), (1, 0.9, 1), (roots, 3)) * (side, 1, 1)
    heads[:, 2] = np.linspace(-1.2, 1.2, roots)
    starts, segments, radius, length = np.tile(hilum, (roots, 1)), [], 4.2, 27.0
    for _ in range(generations):
        heads /= np.linalg.norm(heads, axis=1, keepdims=True)
        ends = starts + heads * length * rng.uniform(0.7, 1.2, (len(heads), 1))
        segments += zip(starts, ends, radius * rng.uniform(0.85, 1.15, len(ends)), strict=True)
        starts, heads = np.repeat(ends, 2, axis=0), np.repeat(heads, 2, axis=0)
        heads = heads + rng.normal((side * 0.06, 0, 0), 0.42, heads.shape)
        radius, length = 0.78 * radius, 0.85 * length
    return segments


def _draw_airways(c: Canvas, rng: np.random.Generator) -> None:
    """Trachea, main and lobar bronchi, with walls."""
    split = (-2, 18, rng.uniform(20, 30))
    tubes = [
        ([(0, 8, 130), (0, 14, 70), split], 8.5),
        ([split, (-22, 20, 8), (-44, 16, -2)], 6.5),
        ([split, (24, 20, 10), (48, 18, -4)], 5.8),
        ([(-44, 16, -2), (-54, 26, -30)], 3.6),
        ([(48, 18, -4), (58, 28, -32)], 3.6),
        ([(-40, 16, 0), (-66, 4, 22)], 3.0),
        ([(44, 18, -2), (66, 0, 24)], 3.0),
    ]
    for points, radius in tubes:
        _tube(c, points, radius + 1.6, "vessel", CHEST)
    for points, radius in tubes:
        _tube(c, points, radius, "airway", CHEST)


def _draw_ribs(c: Canvas, rng: np.random.Generator, wall: np.ndarray) -> None:
    """Rib rings on the chest wall, falling from back to front, cartilage in front; the sternum between them."""
    k, j, i = np.nonzero((wall > 1.0) & (wall < 11.0))
    d, x, y, z = wall[k, j, i], c.axes[0][i], c.axes[1][j], c.axes[2][k]
    spacing, slope, phase = rng.uniform(25, 28), rng.uniform(0.45, 0.6), rng.uniform(0, 25) + rng.uniform(-2, 2, 2)
    across = np.mod(z - slope * y + np.where(x < 0, *phase), spacing) - spacing / 2
    q = ((d - 6) / 4.2) ** 2 + (across / 6.3) ** 2
    bone = np.where(q > 0.42, LABEL["cortex"], LABEL["marrow"])
    bone = np.where((y < -62) & (np.abs(x) < 78), LABEL["cartilage"], bone)
    half = np.where(z > 55, 26, 15)
    sternum = (y < -40) & (np.abs(x) < half) & (z > -62) & (z < 84) & (d > 1.5) & (d < 10.5)
    rim = (np.abs(d - 6) > 3.2) | (np.abs(x) > half - 2)
    bone = np.where(sternum, np.where(rim, LABEL["cortex"], LABEL["marrow"]), bone)
    drawn = sternum | ((q < 1) & ((y < 0) | (np.abs(x) > 24)))
    c.labels[k[drawn], j[drawn], i[drawn]] = bone[drawn]


def _draw_shoulders(c: Canvas, wall: np.ndarray) -> None:
    """Scapulae as plates behind the ribs, narrow below; clavicles."""
    x, y, z = c.grid()
    width = np.where(z > -30, 4 + 22 * smooth_step(z, -30, 40), 0)
    plate = (np.abs(np.degrees(np.arctan2(y + 9, np.abs(x))) - 38) < width) & (wall > 16.5) & (wall < 22)
    c.paint(ALL, plate, "cortex", over=("muscle", "fat"))
    c.paint(ALL, plate & (np.abs(wall - 19.25) < 1.4), "marrow", over=("cortex",))
    for side in (-1, 1):
        points = np.array([(22, -72, 86), (70, -58, 100), (128, -20, 116)]) * (side, 1, 1)
        _tube(c, points, 6.5, "cortex")
        _tube(c, points, 4, "marrow")


def _draw_spine(c: Canvas, rng: np.random.Generator) -> None:
    """Vertebral bodies with cortex, discs between them, canal, arches and processes on a kyphotic curve."""
    where = c.box((-60, 20, -1e3), (60, 125, 1e3))
    x, y, z = c.grid(where)
    u = x - rng.uniform(-5, 5) * np.cos((z - rng.uniform(-60, 60)) / 60)
    v = y - 50 + 10 * ((z - 10) / 110) ** 2
    along = np.mod(z + rng.uniform(0, 26), 26) - 13
    body, canal = (u / 18) ** 2 + (v / 15.5) ** 2, (u / 9) ** 2 + ((v - 24) / 8) ** 2
    arch = ((u / 15) ** 2 + ((v - 24) / 14) ** 2 < 1) & (np.abs(along + 4) < 10)
    spinous = (np.abs(u) < 4) & (v > 34) & (v < 60) & (np.abs(np.mod(along + 0.7 * (v - 34) + 13, 26) - 13) < 8)
    transverse = (np.abs(v - 22 - 0.25 * np.abs(u)) < 4.5) & (np.abs(u) > 10) & (np.abs(u) < 36) & (np.abs(along) < 7)
    c.paint(where, arch | spinous | transverse, "marrow")
    c.paint(where, (arch & (canal < 1.6)) | (spinous & (np.abs(u) > 2.2)), "cortex")
    c.paint(where, body < 1, "disc")
    c.paint(where, (body < 1) & (np.abs(along) < 10.5), "cortex")
    c.paint(where, (body < 0.8) & (np.abs(along) < 9), "marrow")
    c.paint(where, canal < 1, "cord")


def _draw_couch(c: Canvas, below_mm: float) -> None:
    """A curved shell with foam inside, 7 mm below the back; the same for every patient."""
    x, y = c.axes[0] / c.scale[0], c.axes[1][:, None] / c.scale[1]  # patient mm
    upper = below_mm + 7 - x**2 / 900
    lower = upper + 38 * (1 - (x / 195) ** 2)
    c.paint(ALL, (y > upper - 2) & (y < lower + 2) & (np.abs(x) < 200), "couch", ("air",))
    c.paint(ALL, (y > upper) & (y < lower), "foam", ("couch",))


def add_lesions(c: Canvas, rng: np.random.Generator, centre: np.ndarray, hu: np.ndarray, suv: np.ndarray) -> list:
    """Paint 0-4 lesions apart from each other, enter them in the two tables, and return their truth (patient mm)."""
    lesions: list[dict] = []
    for label in range(FIRST_LESION, FIRST_LESION + rng.choice(5, p=LESION_COUNTS)):
        site = str(rng.choice(list(LESION_SITES), p=list(LESION_SITES.values())))
        radius = round(float(rng.uniform(5, 20) if site == "lung" else rng.uniform(6, 16)), 1)
        values = {"suv": round(rng.uniform(3, 12), 2), "hu": round(rng.uniform(20, 60), 1), "site": site}
        suv[label], hu[label] = values["suv"], values["hu"]
        soft = (*CHEST, "airway") if site == "hilum" else CHEST  # hilar tumours close bronchi; the trachea stays open
        place = _place(c, rng, site, 0.8 * radius * c.scale)
        at = [round(float(v), 2) for v in place / c.scale + centre]
        if all(np.linalg.norm(np.subtract(at, o["centre_mm"])) > radius + o["radius_mm"] + 4 for o in lesions):
            _ellipsoid(c, place, radius * c.scale, label, soft, rough=0.15)
            lesions.append({"centre_mm": at, "radius_mm": radius, **values})
    return lesions


def _place(c: Canvas, rng: np.random.Generator, site: str, reach: np.ndarray) -> np.ndarray:
    """A random place in a site, nominal mm (3,), in the lung with lung at `reach` (3,) on all six sides if found."""
    side = rng.choice([-1, 1])
    if site == "hilum":
        return np.array(HILA[side]) + rng.normal(0, 5, 3) + (6 * side, 0, 0)
    where = c.box((-1e3, -60, -30 if site == "mediastinum" else -75), (1e3, 60, 80))
    found = np.argwhere(c.labels[where] == LABEL[site])
    k, j, i = found[rng.integers(len(found), size=64)].T + np.array([[s.start] for s in where])
    places = np.stack([a[n] for a, n in zip(c.axes, (i, j, k), strict=True)], axis=1)  # (64, 3)
    around = places[:, None] + np.concatenate([np.diag(reach), -np.diag(reach)])  # (64, 6, 3)
    x, y, z = (np.searchsorted(a, around[..., n]).clip(0, len(a) - 1) for n, a in enumerate(c.axes))
    clear = np.isin(c.labels[z, y, x], [LABEL[n] for n in (*LUNG, "vessel")]).all(axis=1) & (site == "lung")
    return places[np.argmax(clear)]


# Shapes.


def _ellipsoid(
    c: Canvas,
    centre: np.ndarray,
    radii: np.ndarray,
    name: str | int,
    over: tuple[str, ...],
    *,
    axis: np.ndarray | None = None,
    length: float | None = None,
    rough: float = 0.0,
) -> None:
    """Paint an ellipsoid, nominal mm. length: its radius along `axis`; rough: how far the texture moves its edge."""
    centre, radii = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    reach = (radii if length is None else np.maximum(radii, length)) * (1 + 2 * rough)
    where = c.box(centre - reach, centre + reach)
    offsets = [g - o for g, o in zip(c.grid(where), centre, strict=True)]
    q = sum((o / r) ** 2 for o, r in zip(offsets, radii, strict=True))
    if length is not None:
        q = q + sum(o * a for o, a in zip(offsets, axis, strict=True)) ** 2 * (length**-2 - float(radii.mean()) ** -2)
    c.paint(where, q < (1 + rough * np.clip(c.texture[where], -1.5, 1.5)) ** 2, name, over)


def _tube(c: Canvas, points: list, radius: float, name: str, over: tuple[str, ...] = ()) -> None:
    """Paint a chain of round-ended cylinders through points (n, 3), nominal mm."""
    radius = max(radius, 1.1)  # thinner ones would fall between voxels
    for a, b in pairwise(np.asarray(points, np.float32)):
        where = c.box(np.minimum(a, b) - radius, np.maximum(a, b) + radius)
        x, y, z = (g - o for g, o in zip(c.grid(where), a, strict=True))
        dx, dy, dz = b - a
        t = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
        gap = (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2
        c.paint(where, gap < radius**2, name, over)


def _outside(c: Canvas, centre: tuple, half: tuple, power: float, taper: np.ndarray) -> np.ndarray:
    """Radial distance to a tapering superellipse cylinder, (z, y, x) float32, mm; negative inside. taper: (Z, 1, 1)."""
    x, y, _ = c.grid()
    x, y = x - centre[0], y - centre[1]
    radius = np.hypot(x, y) + 1e-3
    edge = radius / ((np.abs(x) / half[0]) ** power + (np.abs(y) / half[1]) ** power) ** (1 / power)
    return (radius - taper.astype(np.float32) * edge).astype(np.float32)


def _dome(x: np.ndarray, y: np.ndarray, centre: tuple, top: float, radii: tuple) -> np.ndarray:
    """Height (y, x) of a dome, flat on top, that falls by 90 mm at its radii."""
    q = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
    return (top - 90 * q**1.3).astype(np.float32)


def smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
