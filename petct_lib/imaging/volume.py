"""A `Volume` (array, affine, unit), resampling in patient space, and the masks used for scoring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

AIR_HU = -1024.0
BODY_THRESHOLD_HU = -300.0  # between lung or fat and air; lungs are filled in afterwards
MASK_SPACING_MM = 3.0  # masks are made at about this spacing: fine enough for a body outline, fast enough for laptops
PARALLEL_VOXELS = 0.01  # axes that drift apart by less than this over the whole grid count as parallel
EDGE_VOXELS = 1e-6  # rounding at a volume's edge
MAX_VOXELS = 2**29  # of a mask: two segments of 1,000 slices of 512 × 512; half a GiB when unpacked
COUCH_RADIUS_MM = 9.0  # an opening of this radius removes couch shells and cables, and keeps limbs


@dataclass(frozen=True)
class Grid:
    """An empty grid in patient space: `size` voxels along (x, y, z) and an affine as in `Volume`."""

    size: tuple[int, int, int]
    affine: np.ndarray


@dataclass(frozen=True)
class Volume:
    """A 3-D image in patient space.

    array: (z, y, x). affine: (4, 4), maps index (x, y, z, 1) to patient millimetres (DICOM LPS).
    unit: "HU", "SUV", "Bq/ml", or "1" for masks.
    """

    array: np.ndarray
    affine: np.ndarray
    unit: str

    @property
    def spacing_mm(self) -> np.ndarray:
        """Voxel size along x, y, z, (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def size(self) -> np.ndarray:
        """Number of voxels along x, y, z, (3,)."""
        return np.array(self.array.shape[::-1])

    @property
    def grid(self) -> Grid:
        """Its own grid, to bring other volumes to."""
        return Grid(tuple(int(n) for n in self.size), self.affine)

    def corners_mm(self) -> np.ndarray:
        """The eight outer corners (voxel edges, not centres) in patient space, (8, 3), mm."""
        unit_cube = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T
        index = unit_cube * self.size - 0.5
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]


def axial_affine(spacing_mm: tuple[float, float, float], origin_mm: np.ndarray) -> np.ndarray:
    """Affine (4, 4) of an axis-aligned LPS grid whose first voxel's centre is `origin_mm`."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin_mm
    return affine


def overlap_mm(volumes: list[Volume]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner, each (3,), mm, of the axis-aligned box that all volumes share.

    Raises ValueError where there is none.
    """
    low = np.max([v.corners_mm().min(axis=0) for v in volumes], axis=0)
    high = np.min([v.corners_mm().max(axis=0) for v in volumes], axis=0)
    if np.any(high <= low):
        raise ValueError(f"the volumes do not overlap: from {low.round(1)} to {high.round(1)} mm")
    return low, high


def axial_grid(low_mm: np.ndarray, high_mm: np.ndarray, size: int, fov_mm: float, slice_mm: float) -> Grid:
    """A square axial grid, `size` × `size` pixels over `fov_mm`, centred on the box, with slices inside its z range."""
    centre = (low_mm + high_mm) / 2
    slices = max(1, int((high_mm[2] - low_mm[2]) / slice_mm + 1e-6))
    pixel = fov_mm / size
    half = np.array([fov_mm - pixel, fov_mm - pixel, (slices - 1) * slice_mm]) / 2
    return Grid((size, size, slices), axial_affine((pixel, pixel, slice_mm), centre - half))


def resample(volume: Volume, grid: Grid, fill: float) -> Volume:
    """The volume on another grid, in patient space; `fill` outside it.

    Linear interpolation, after a Gaussian blur where the new grid is coarser (σ = 0.42 × the ratio, in old voxels, the
    usual rule against aliasing). Boolean volumes are interpolated as 0 and 1 and cut at one half. Grids whose axes are
    parallel, as nearly all are, are resampled axis by axis, any others as a whole; both give the same values.
    """
    to_index = np.linalg.inv(volume.affine) @ grid.affine  # new index → old index, (4, 4), in x, y, z
    # How far the new grid's steps reach along each old axis, in old voxels, whatever way either of them points.
    ratio = np.linalg.norm(to_index[:3, :3], axis=1)
    sigma = 0.42 * np.sqrt(np.where(ratio > 1 + 1e-3, ratio**2 - 1, 0))
    values = np.asarray(volume.array, np.float32)
    parallel = np.abs(to_index[:3, :3] - np.diag(np.diag(to_index[:3, :3]))) * np.array(grid.size) < PARALLEL_VOXELS
    transform = _by_axis if parallel.all() else _at_once
    out = transform(values, to_index, grid.size, sigma, fill)
    return Volume(out > 0.5 if volume.array.dtype == bool else out, grid.affine, volume.unit)


def _by_axis(values: np.ndarray, to_index: np.ndarray, size: tuple, sigma: np.ndarray, fill: float) -> np.ndarray:
    """One matrix an axis, the axis that shrinks most first; (z, y, x) in and out."""
    at = [to_index[a, 3] + to_index[a, a] * np.arange(size[a]) for a in range(3)]  # in old voxels
    matrices = [_weights(at[a], values.shape[2 - a], sigma[a]) for a in range(3)]
    for a in sorted(range(3), key=lambda a: size[a] / values.shape[2 - a]):
        values = _along(matrices[a], values, 2 - a)
    for a, n in enumerate(values.shape[::-1]):
        outside = ~_within(at[a], matrices[a].shape[1])
        if outside.any() and n:
            values[(slice(None),) * (2 - a) + (outside,)] = fill
    return values


def _weights(at: np.ndarray, count: int, sigma: float) -> "sparse.csr_array":
    """Blur, then linear interpolation at the positions `at`, (len(at), count); beyond the ends the last value holds."""
    from scipy import sparse  # slow to import, as all of scipy

    rows = np.arange(len(at))
    low = np.floor(at)
    interpolate = sparse.csr_array((len(at), count))
    for index, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
        column = np.clip(index, 0, count - 1).astype(int)
        interpolate = interpolate + sparse.csr_array((weight, (rows, column)), (len(at), count))
    if not sigma:
        return interpolate.astype(np.float32)
    reach = int(3 * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    from_index = np.clip(np.arange(count)[:, None] + taps, 0, count - 1)
    indices = np.repeat(np.arange(count), len(taps)), from_index.ravel()
    blur = sparse.csr_array((np.tile(kernel / kernel.sum(), count), indices), (count, count))
    return (interpolate @ blur).astype(np.float32).tocsr()


def _along(matrix: "sparse.csr_array", values: np.ndarray, axis: int) -> np.ndarray:
    """The matrix (new, old) applied to one axis of (z, y, x); no BLAS, whose threads fight with other processes."""
    if axis == 0:
        return (matrix @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
    shape = [*values.shape]
    shape[axis] = matrix.shape[0]
    out = np.empty(shape, np.float32)
    for new, old in zip(out, values, strict=True):
        new[:] = matrix @ old if axis == 1 else (matrix @ old.T).T
    return out


def _within(at: np.ndarray, count: int) -> np.ndarray:
    """Where positions (in voxels) lie inside an axis of `count` voxels, as ITK has it: the upper edge is outside."""
    return (at >= -0.5 - EDGE_VOXELS) & (at < count - 0.5 - EDGE_VOXELS)


def _at_once(values: np.ndarray, to_index: np.ndarray, size: tuple, sigma: np.ndarray, fill: float) -> np.ndarray:
    """Any two grids, turned or slanted; (z, y, x) in and out."""
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(values, sigma[::-1], truncate=3.0, mode="nearest") if sigma.any() else values
    matrix, offset = to_index[2::-1, 2::-1], to_index[2::-1, 3]  # in z, y, x
    out = ndimage.affine_transform(blurred, matrix, offset, tuple(size[::-1]), order=1, mode="nearest")
    return np.where(_in_extent(to_index, values.shape[::-1], size), out, np.float32(fill))


def _in_extent(to_index: np.ndarray, old_size: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Where voxels of a new grid lie in the old one, (z, y, x) bool."""
    x, y, z = (np.arange(n) for n in size)
    within = [
        _within(m[0] * x + m[1] * y[:, None] + m[2] * z[:, None, None] + m[3], n)
        for m, n in zip(to_index, old_size, strict=False)
    ]
    return within[0] & within[1] & within[2]


def extent_mask(volume: Volume, grid: Grid) -> np.ndarray:
    """True where a voxel of the grid lies in the volume's extent, (z, y, x) bool."""
    return _in_extent(np.linalg.inv(volume.affine) @ grid.affine, volume.size, grid.size)


def coarse_grid(volume: Volume, spacing_mm: float) -> Grid:
    """The volume's own extent and directions at about `spacing_mm`, never finer than it is."""
    factor = np.maximum(1, np.round(spacing_mm / volume.spacing_mm)).astype(int)
    size = np.maximum(1, volume.size // factor)
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, :3] * factor
    affine[:3, 3] += volume.affine[:3, :3] @ ((factor - 1) / 2)
    return Grid(tuple(int(n) for n in size), affine)


def cut_to_box(mask: Volume) -> Volume:
    """The part that is not empty, with one voxel of background around it: interpolation then ends where it should."""
    spans = [np.flatnonzero(mask.array.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    part = mask.array[tuple(slice(s[0], s[-1] + 1) for s in spans)]
    affine = mask.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s[0] - 1.0 for s in spans[::-1]]
    return Volume(np.pad(part, 1), affine, mask.unit)


def body_mask(ct: Volume) -> Volume:
    """The patient in a CT, lungs included, couch and air excluded; bool, at about 3 mm. For scoring only.

    Threshold, opening (couch shells go), the components that hold at least a tenth of the largest one's voxels, holes
    filled slice by slice, then one voxel of dilation so that the skin counts.
    """
    from scipy import ndimage

    small = resample(ct, coarse_grid(ct, MASK_SPACING_MM), AIR_HU)
    solid = small.array > BODY_THRESHOLD_HU
    opened = ndimage.binary_opening(np.pad(solid, 9, mode="edge"), _ball(COUCH_RADIUS_MM, small.spacing_mm[::-1]))
    labels, count = ndimage.label(opened[9:-9, 9:-9, 9:-9])
    if count == 0:
        return Volume(np.zeros(solid.shape, bool), small.affine, "1")
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    body = (sizes >= 0.1 * sizes.max())[labels]
    body = np.stack([ndimage.binary_fill_holes(s) for s in body])
    return Volume(ndimage.binary_dilation(body), small.affine, "1")


def _ball(radius_mm: float, spacing_mm: np.ndarray) -> np.ndarray:
    reach = np.minimum(np.maximum(1, np.round(radius_mm / spacing_mm)).astype(int), 9)
    z, y, x = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    return (z * spacing_mm[0]) ** 2 + (y * spacing_mm[1]) ** 2 + (x * spacing_mm[2]) ** 2 <= radius_mm**2
