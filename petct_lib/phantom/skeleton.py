"""The phantom's bones: spine, ribs with their cartilage, sternum, shoulder girdle and arms."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from petct_lib.phantom.shapes import Canvas, smooth_step
from petct_lib.phantom.tissues import LABEL, label_table

# The upper arm from the shoulder on, nominal mm on the left side; True: raised above the head.
ARM = {
    True: ((152, 6, 96), (178, -6, 160), (190, -16, 240)),
    False: ((152, 6, 96), (196, 18, 40), (206, 26, -220)),
}
CURVE = ((-220, 36), (-130, 43), (-60, 46), (0, 44), (60, 37), (110, 29), (160, 22), (240, 18))  # z, y of the spine, mm
SOFT = label_table("muscle", "fat", "skin")
VERTEBRA_MM = 25.0  # from disc to disc: thoracic 19-29 mm with the disc (Panjabi 1991, Spine 16:888)
RIB_MM = 6.0  # the ribs' middle outside of the cage's inner surface
RIB_HALF_MM = (3.6, 6.6)  # half thickness and half height of a rib (Mohr 2007, J Biomech 40:1310)
CORTEX_MM = 1.1  # of a rib 0.9-2.6 mm at its thickest (Holcombe 2019, J Anat 235:883)


@dataclass(frozen=True)
class Bones:
    """Numbers that place one patient's bones, nominal mm."""

    arms_up: bool
    scoliosis_mm: float
    scoliosis_z: float
    disc_z: float  # height of one disc
    rib_fall_mm: float  # how far a rib falls from the spine to its lowest point
    rib_z: tuple[float, float]  # right and left ribs against the vertebrae
    sternum_half_mm: float


def grow_skeleton(rng: np.random.Generator, arms_up: bool) -> Bones:
    """One patient's bones."""
    return Bones(
        arms_up, rng.uniform(-5, 5), rng.uniform(-60, 60), rng.uniform(0, VERTEBRA_MM),
        rng.uniform(66, 90), tuple(rng.uniform(-2, 2, 2)), rng.uniform(14, 19),
    )  # fmt: skip


def paint_skeleton(b: Bones, c: Canvas, wall: np.ndarray) -> None:
    """All bones; wall: the field of the distance to the cage's inner surface."""
    _draw_arms(b, c)
    _draw_ribs(b, c, wall)
    _draw_spine(b, c)


def spine_at(b: Bones, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertebral bodies' middle, x and y at heights z, each of z's shape, nominal mm."""
    return b.scoliosis_mm * np.cos((z - b.scoliosis_z) / 60), PchipInterpolator(*zip(*CURVE, strict=True))(z)


def _draw_arms(b: Bones, c: Canvas) -> None:
    """Scapulae as bent plates with a spine, clavicles, humeri."""
    for s in (-1, 1):
        _draw_scapula(c, s)
        arm = [(s * x, y, z) for x, y, z in ARM[b.arms_up]]
        clavicle = [(s * 20, -66, 80), (s * 60, -64, 92), (s * 100, -36, 106), (s * 146, -10, 116)]
        acromion = [(s * 92, 66, 84), (s * 122, 50, 106), (s * 150, 20, 122)]
        for points, radius, rim in (
            (arm, [23, 12, 11], 2.2),
            (clavicle, [8, 5.5, 5.5, 6], 1.6),
            (acromion, [3, 5, 6], 1.4),
        ):
            c.tubes(points, radius, LABEL["cortex"], inner=False)
            c.tubes(points, [r - rim for r in radius], LABEL["marrow"], label_table("cortex"), inner=False)


def _draw_scapula(c: Canvas, s: int) -> None:
    """A plate 3-4 mm thick behind the ribs, from the shoulder joint down to its lower angle."""
    corners = np.array([(s * 138, 12, 96), (s * 74, 88, 92), (s * 96, 92, -38)], np.float32)  # joint, upper, lower
    where = c.box(corners.min(axis=0) - 12, corners.max(axis=0) + 12, inner=False)
    if any(w.stop <= w.start for w in where):
        return
    x, y, z = c.grid(where, inner=False)
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normal /= np.linalg.norm(normal)
    off = [g - o for g, o in zip((x, y, z), corners[0], strict=True)]
    plane = sum(n * o for n, o in zip(normal, off, strict=True))
    middle = corners.mean(axis=0)
    inside = None
    for k in range(3):
        edge = np.cross(corners[(k + 1) % 3] - corners[k], normal)
        edge *= np.sign(edge @ (middle - corners[k])) / np.linalg.norm(edge)
        depth = sum(n * (g - o) for n, g, o in zip(edge, (x, y, z), corners[k], strict=True))
        inside = depth if inside is None else np.minimum(inside, depth)
    bow = 7 * np.clip(inside / 25, 0, 1)  # hollow towards the ribs
    sheet = np.abs(plane * np.sign(normal[1]) - bow)
    thick = 1.7 + 2.2 * np.exp(-np.maximum(inside + 2, 0) / 5)  # its borders are stout
    c.paint(where, (inside > -3) & (sheet < thick), LABEL["cortex"], SOFT)
    c.paint(where, (inside > -1.5) & (sheet < thick - 1.3), LABEL["marrow"], label_table("cortex"))


def _draw_ribs(b: Bones, c: Canvas, wall: np.ndarray) -> None:
    """Ribs as arcs in the chest wall that fall from the spine to the front, where cartilage rises to the sternum."""
    where = c.around(wall, inner=False, level=12.5)
    if where is None:
        return
    distance = c.fine(wall, where, inner=False)
    k, j, i = np.nonzero(
        (distance > 0.8) & (distance < 12.2) & label_table("muscle", "fat", "diaphragm", "skin")[c.labels[where]]
    )
    d, (x, y, z) = distance[k, j, i], (a[s] for a, s in zip(c.places(False), where[::-1], strict=True))
    x, y, z = x[i], y[j], z[k]
    angle = np.arctan2(np.abs(x - spine_at(b, z)[0]), y + 6) / np.pi  # 0 at the spine, 1 at the sternum
    steep = 1 - 0.45 * smooth_step(z, 20, 110)
    fall = b.rib_fall_mm * steep * (smooth_step(angle, 0.05, 0.72) - 0.45 * smooth_step(angle, 0.68, 1.0))
    across = np.mod(z + fall - b.disc_z - np.where(x < 0, *b.rib_z), VERTEBRA_MM) - VERTEBRA_MM / 2
    thin, high = RIB_HALF_MM
    q = np.hypot((d - RIB_MM) / thin, across / high)
    cartilage_from = 0.70 + 0.10 * smooth_step(z, -60, 60)
    is_cartilage = angle > cartilage_from
    labels = np.where((1 - q) * thin < CORTEX_MM, LABEL["cortex"], LABEL["marrow"])
    labels = np.where(is_cartilage, LABEL["cartilage"], labels)
    drawn = (q < np.where(is_cartilage, 0.92, 1.0)) & (angle > 0.04) & (z < 112)
    drawn &= ~((angle > 0.62) & (z < -118))  # the lowest ribs end free
    sternum, inner = _sternum(b, x, z, d)
    labels = np.where(sternum, np.where(inner, LABEL["marrow"], LABEL["cortex"]), labels)
    drawn |= sternum & (y < 0)
    part = c.labels[where]
    part[k[drawn], j[drawn], i[drawn]] = labels[drawn]


def _sternum(b: Bones, x: np.ndarray, z: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the sternum is, and its inside: manubrium above, narrow joint, body, and the xiphoid's tip."""
    half = b.sternum_half_mm * (
        0.7 + 0.9 * smooth_step(z, 30, 70) + 0.35 * smooth_step(-z, 0, 40) - 0.9 * smooth_step(-z, 55, 85)
    )
    edge = np.minimum(half - np.abs(x), np.minimum(z + 84, 84 - z))
    rim = (1 - np.hypot((d - RIB_MM) / 5.4, np.clip(np.abs(x) / half, 0, 2) ** 2)) * 5.4
    rim = np.minimum(edge, rim)
    joint = np.abs(z - 34) < 1.6
    return (rim > 0) & ~joint, rim > 1.2


def _draw_spine(b: Bones, c: Canvas) -> None:
    """Vertebral bodies with cortex, endplates and discs, canal and cord, arches and processes, heads of the ribs."""
    where = c.box((-58, 0, -1e3), (58, 112, 1e3), inner=False)
    x, y, z = c.grid(where, inner=False)
    middle_x, middle_y = spine_at(b, z)
    u, v = x - middle_x, y - middle_y
    along = np.mod(z - b.disc_z, VERTEBRA_MM) - VERTEBRA_MM / 2  # 0 in the middle of a vertebra
    grow = 1 - 0.14 * smooth_step(z, -60, 110)
    waist = grow * (1 - 0.09 * np.cos(np.pi * along / VERTEBRA_MM) ** 2)
    depth = np.where(v > 0, 13 - 2.5 * np.exp(-((u / 7) ** 2)), 15.5)
    body = np.sqrt((u / (17.5 * waist)) ** 2 + (v / (depth * waist)) ** 2)
    rim = (1 - body) * 15
    canal = np.hypot(u / 9.5, (v - 20.5) / 8.0)
    arch = (np.hypot(u / 14, (v - 20.5) / 12.5) < 1) & (np.abs(along + 3) < 9.5)
    pedicle = (np.abs(np.abs(u) - 11.5) < 4) & (v > 4) & (v < 20) & (np.abs(along - 3) < 6)
    slope = np.mod(along + 0.75 * (v - 32) + VERTEBRA_MM / 2, VERTEBRA_MM) - VERTEBRA_MM / 2
    spinous = (np.abs(u) < 3.4) & (v > 30) & (v < 53) & (np.abs(slope) < 6.5)
    across = np.abs(v - 21 - 0.42 * (np.abs(u) - 10))
    transverse = (across < 4.5) & (np.abs(u) > 9) & (np.abs(u) < 33 * grow) & (np.abs(along - 3) < 5.5)
    head = (np.hypot(np.abs(v - 12 - 0.75 * (np.abs(u) - 16)), along - 11) < 4.2) & (np.abs(u) > 14) & (np.abs(u) < 40)
    c.paint(where, head | transverse | arch | pedicle | spinous, LABEL["cortex"])
    core = (np.abs(np.abs(u) - 12.6) < 1.7) & (v < 20) & (np.abs(along - 3) < 4.6) & pedicle
    core |= (across < 2.8) & transverse & (np.abs(along - 3) < 4)
    core |= head & (np.hypot(np.abs(v - 12 - 0.75 * (np.abs(u) - 16)), along - 11) < 2.8)
    core |= spinous & (np.abs(u) < 1.9) & (np.abs(slope) < 5)
    c.paint(where, core, LABEL["marrow"])
    c.paint(where, body < 1, LABEL["disc"])
    c.paint(where, (body < 1) & (np.abs(along) < 10.2), LABEL["endplate"])
    c.paint(where, (rim > 1.0) & (np.abs(along) < 9.0), LABEL["marrow"])
    c.paint(where, (canal < 1), LABEL["fat"])
    c.paint(where, (canal < 0.72), LABEL["cord"])
