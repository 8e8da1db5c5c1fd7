"""Where the phantom is drawn: smooth shapes as distance fields on a coarse grid, painted as labels on a fine one.

The nominal frame: a body of about 360 × 240 mm, x to the patient's left, y to the back, z to the head, origin
mid-chest, mm. A field holds, on a fixed coarse grid of that frame, the distance to a surface in mm, negative inside:
smooth enough for linear interpolation to place the surface well within a voxel of any CT. Later shapes are painted over
earlier ones.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

STEP_MM = 4.0  # of the coarse grid
X_MM, Y_MM, Z_MM = (np.arange(a, b, STEP_MM, np.float32) for a, b in ((-270, 271), (-180, 201), (-200, 221)))
GRID = X_MM, Y_MM[:, None], Z_MM[:, None, None]  # broadcasts to (z, y, x)
FAR_MM = 60.0  # what a shape's field says everywhere beyond that distance
ALL = (slice(None),) * 3


# Fields on the coarse grid, (z, y, x) float32, mm.


def ellipsoid(at: np.ndarray, centre: tuple, radii: tuple, axes: np.ndarray | None = None) -> np.ndarray:
    """Distance to an ellipsoid, exact at its surface to first order. at: x, y, z of the grid; axes: rows (3, 3)."""
    centre, radii = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    reach = radii if axes is None else np.full(3, radii.max())
    field, where = _far(centre - reach, centre + reach)
    offsets = at[:, *where] - (centre[:, None, None, None] + np.float32(1e-3))  # never 0 / 0 at the centre
    if axes is not None:
        offsets = np.tensordot(np.asarray(axes, np.float32), offsets, axes=1)
    scaled = offsets / radii[:, None, None, None]
    first = (scaled**2).sum(axis=0)
    second = ((scaled / radii[:, None, None, None]) ** 2).sum(axis=0)
    field[where] = np.minimum((first - np.sqrt(first)) / (np.sqrt(second) + 1e-6), FAR_MM)
    return field


def tube(at: np.ndarray, points: list, radius: float | list[float]) -> np.ndarray:
    """Distance to a chain of round-ended cones through points (n, 3). radius: one, or one a point."""
    points = np.asarray(points, np.float32)
    radii = np.broadcast_to(np.asarray(radius, np.float32), len(points))
    field, _ = _far(points[0], points[0])
    for (a, b), (ra, rb) in zip(pairwise(points), pairwise(radii), strict=True):
        reach = max(ra, rb)
        _, where = _far(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        t, gap = _along(at[:, *where], a, b)
        field[where] = np.minimum(field[where], np.sqrt(gap) - (ra + t * (rb - ra)))
    return field


def outside_tube(point: np.ndarray, points: np.ndarray, radius: float | list[float]) -> bool:
    """Whether a point (3,) lies in none of the round-ended cones of a chain, see `tube`."""
    radii = np.broadcast_to(np.asarray(radius, np.float32), len(points))
    for (a, b), (ra, rb) in zip(pairwise(np.asarray(points, np.float32)), pairwise(radii), strict=True):
        t, gap = _along(point, a, b)
        if gap < (ra + t * (rb - ra)) ** 2:
            return False
    return True


def _far(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, tuple]:
    """A field of FAR_MM everywhere, and the part of it (z, y, x) where a shape between two corners (x, y, z) counts."""
    margin = FAR_MM + 10  # the grid's coordinates may be bent by some millimetres
    where = tuple(
        slice(*np.searchsorted(axis, (lo - margin, hi + margin)))
        for axis, lo, hi in zip((X_MM, Y_MM, Z_MM), low, high, strict=True)
    )[::-1]
    return np.full((len(Z_MM), len(Y_MM), len(X_MM)), FAR_MM, np.float32), where


def union(*fields: np.ndarray, smooth_mm: float = 0.0) -> np.ndarray:
    """The nearest of the surfaces; smooth_mm: width of the filled crease between them (Quilez' polynomial minimum)."""
    joined = fields[0]
    for other in fields[1:]:
        if smooth_mm:
            h = np.clip(0.5 + 0.5 * (other - joined) / smooth_mm, 0, 1)
            joined = other + (joined - other) * h - smooth_mm * h * (1 - h)
        else:
            joined = np.minimum(joined, other)
    return joined.astype(np.float32)


def noise(rng: np.random.Generator, length_mm: float) -> np.ndarray:
    """Noise of variance 1, correlated with a FWHM of about `length_mm`, on the coarse grid, (z, y, x) float32."""
    step, matrices = length_mm / 1.7, []
    for axis in (X_MM, Y_MM, Z_MM):
        nodes = np.arange(axis[0] - 2 * step, axis[-1] + 3 * step, step)
        rows = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.72 * step)) ** 2)
        matrices.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    coarse = rng.standard_normal([m.shape[1] for m in matrices[::-1]], np.float32)
    return np.tensordot(matrices[2], np.matmul(matrices[1], coarse @ matrices[0].T), axes=1)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A field at points (n, 3) x, y, z in nominal mm, by linear interpolation; (n,)."""
    index = [(points[:, n] - a[0]) / STEP_MM for n, a in ((2, Z_MM), (1, Y_MM), (0, X_MM))]
    return ndimage.map_coordinates(field, index, order=1, mode="nearest")


def smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _along(at: tuple, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the segment a…b each place is nearest to (0 to 1), and the squared distance to it, mm²."""
    x, y, z = (p - o for p, o in zip(at, a, strict=True))
    dx, dy, dz = b - a
    t = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
    return t, (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2


# The fine grid.


@dataclass(frozen=True)
class Canvas:
    """Labels (z, y, x) uint8 on a CT grid, whole or some slices of it, and where its voxels lie in the nominal frame.

    axes: x (X,), y (Y,), z (Z,) nominal mm of what is fixed to the ribs and the spine. inner_z: z of what breathing
    moves. scale: nominal mm per patient mm (3,).
    """

    labels: np.ndarray
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    inner_z: np.ndarray
    scale: np.ndarray

    def part(self, slices: slice) -> "Canvas":
        """Some slices of it, sharing its labels."""
        axes = *self.axes[:2], self.axes[2][slices]
        return Canvas(self.labels[slices], axes, self.inner_z[slices], self.scale)

    def places(self, inner: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The axes x, y, z: of what moves, or of what does not."""
        return self.axes[0], self.axes[1], self.inner_z if inner else self.axes[2]

    def grid(self, where: tuple = ALL, inner: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Axes x (i,), y (j, 1), z (k, 1, 1) of a part given as slices (z, y, x): they broadcast to (z, y, x)."""
        x, y, z = self.places(inner)
        return x[where[2]], y[where[1], None], z[where[0], None, None]

    def box(self, low: np.ndarray, high: np.ndarray, inner: bool = True) -> tuple:
        """Slices (z, y, x) of the voxels between two corners (x, y, z), nominal mm."""
        edges = (np.searchsorted(a, [lo, hi]) for a, lo, hi in zip(self.places(inner), low, high, strict=True))
        return tuple(slice(*f) for f in edges)[::-1]

    def fine(self, field: np.ndarray, where: tuple = ALL, inner: bool = True) -> np.ndarray:
        """A coarse field at the voxels of a part, (z, y, x) float32, linear along each axis."""
        x, y, z = (a[s] for a, s in zip(self.places(inner), where[::-1], strict=True))
        return interpolate(field, (X_MM, Y_MM, Z_MM), (x, y, z))

    def solid(
        self, field: np.ndarray, label: int, over: np.ndarray | None = None, inner: bool = True, level: float = 0.0
    ) -> None:
        """Paint where a field is below a level; over: bool (256,), the labels that may be painted over."""
        where = self.around(field, inner, level)
        if where is not None:
            self.paint(where, self.fine(field, where, inner) < level, label, over)

    def tubes(self, points: list, radius: float | list, label: int, over: np.ndarray | None = None, inner=True) -> None:
        """Paint a chain of round-ended cones; ones thinner than a voxel are painted a voxel thick."""
        points = np.asarray(points, np.float32)
        radii = np.maximum(np.broadcast_to(np.asarray(radius, np.float32), len(points)), 1.1)
        for (a, b), (ra, rb) in zip(pairwise(points), pairwise(radii), strict=True):
            reach = max(ra, rb)
            where = self.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach, inner)
            if all(s.stop > s.start for s in where):
                t, gap = _along(self.grid(where, inner), a, b)
                self.paint(where, gap < (ra + t * (rb - ra)) ** 2, label, over)

    def paint(self, where: tuple, mask: np.ndarray, label: int, over: np.ndarray | None = None) -> None:
        """Set a label where the mask holds and, if `over` is given, one of those labels lies there."""
        part = self.labels[where]
        np.copyto(part, np.uint8(label), where=mask if over is None else mask & over[part])

    def around(self, field: np.ndarray, inner: bool = True, level: float = 0.0) -> tuple | None:
        """The part of the canvas in which a field may be below a level; None where it is nowhere."""
        z = self.places(inner)[2]
        planes = field[(z[0] - 2 * STEP_MM < Z_MM) & (z[-1] + 2 * STEP_MM > Z_MM)] < level
        if not planes.any():
            return None
        spans = [np.flatnonzero(planes.any(axis=others)) for others in ((0, 1), (0, 2))]
        (x0, x1), (y0, y1) = ((a[s[0]], a[s[-1]]) for a, s in zip((X_MM, Y_MM), spans, strict=True))
        low, high = (x0 - STEP_MM, y0 - STEP_MM, -np.inf), (x1 + STEP_MM, y1 + STEP_MM, np.inf)
        where = self.box(low, high, inner)
        return where if all(w.stop > w.start for w in where) else None


def interpolate(array: np.ndarray, coarse: tuple, fine: tuple, *, keep_variance: bool = False) -> np.ndarray:
    """Linear interpolation (z, y, x) from coarse to fine axes x, y, z of regular steps; the ends go on beyond."""
    (to_x, x), (to_y, y), (to_z, z) = (_linear(c, f, keep_variance) for c, f in zip(coarse, fine, strict=True))
    planes = np.matmul(to_y, array[z, y, x] @ to_x.T)
    return (to_z @ planes.reshape(len(planes), -1)).reshape(-1, *planes.shape[1:])


def _linear(coarse: np.ndarray, fine: np.ndarray, keep_variance: bool) -> tuple[np.ndarray, slice]:
    """Weights (fine, some of coarse), two a row, and which of the coarse ones these are.

    keep_variance: the squares of a row's weights add up to 1, not the weights, so that white noise keeps its variance.
    """
    index = np.clip((fine - coarse[0]) / (coarse[1] - coarse[0]), 0, len(coarse) - 1.001)
    low = index.astype(int)
    used = slice(low.min(), low.max() + 2)
    weights = np.zeros((len(fine), used.stop - used.start), np.float32)
    rows = np.arange(len(fine))
    weights[rows, low - used.start] = 1 - (index - low)
    weights[rows, low - used.start + 1] = index - low
    return weights / np.linalg.norm(weights, axis=1, keepdims=True) if keep_variance else weights, used


def fine_noise(rng: np.random.Generator, c: Canvas, step_mm: float = 3.0) -> Callable:
    """Noise of variance 1 that a grid of `step_mm` carries, to be called as noise(slab)(part) for a part, (z, y, x)."""
    nodes = [np.arange(a[0] - step_mm, a[-1] + 2 * step_mm, step_mm, np.float32) for a in c.axes]
    white = rng.standard_normal([len(n) for n in nodes[::-1]], np.float32)

    def of_slab(slab: slice) -> Callable:
        x, y, z = *c.axes[:2], c.axes[2][slab]
        return lambda part: interpolate(white, nodes, (x[part[2]], y[part[1]], z[part[0]]), keep_variance=True)

    return of_slab


def draw_by_slabs(draw: Callable[[slice], None], slices: int, size: int = 8) -> None:
    """Calls `draw` on slabs of a fixed number of slices, side by side in threads: numpy works outside of the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, [slice(k, min(k + size, slices)) for k in range(0, slices, size)]))
