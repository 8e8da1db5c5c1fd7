"""A `Volume` (array, affine, unit), resampling in patient space, and the masks used for scoring."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

AIR_HU = -1024.0
BODY_THRESHOLD_HU = -300.0  # between lung or fat and air; lungs are filled in afterwards
MASK_SPACING_MM = 3.0  # masks are made at about this spacing: fine enough for a body outline, fast enough for laptops
COUCH_RADIUS_MM = 9.0  # an opening of this radius removes couch shells and cables, and keeps limbs


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

    def corners_mm(self) -> np.ndarray:
        """The eight outer corners (voxel edges, not centres) in patient space, (8, 3), mm."""
        unit_cube = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T
        index = unit_cube * self.size - 0.5
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]


@dataclass(frozen=True)
class Grid:
    """An empty grid in patient space: `size` voxels along (x, y, z) and an affine as in `Volume`."""

    size: tuple[int, int, int]
    affine: np.ndarray


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


def to_sitk(volume: Volume) -> sitk.Image:
    """The same image for SimpleITK; origin, spacing and direction from the affine."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    image = sitk.GetImageFromArray(array)
    _set_geometry(image, volume.affine)
    return image


def _set_geometry(image: sitk.Image, affine: np.ndarray) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())


def resample(volume: Volume, grid: Grid, fill: float) -> Volume:
    """The volume on another grid, in patient space; `fill` outside it.

    Linear interpolation, after a Gaussian blur where the new grid is coarser (σ = 0.42 × the ratio, in old voxels, the
    usual rule against aliasing). Boolean volumes are interpolated as 0 and 1 and cut at one half.
    """
    is_mask = volume.array.dtype == bool
    values = volume.array.astype(np.float32)
    # How far the new grid's steps reach along each old axis, in old voxels, whatever way either of them points.
    ratio = np.linalg.norm(np.linalg.inv(volume.affine[:3, :3]) @ grid.affine[:3, :3], axis=1)
    sigma = 0.42 * np.sqrt(np.where(ratio > 1 + 1e-3, ratio**2 - 1, 0))[::-1]
    values = ndimage.gaussian_filter(values, sigma, truncate=3.0, mode="nearest") if sigma.any() else values
    reference = sitk.Image([int(n) for n in grid.size], sitk.sitkUInt8)
    _set_geometry(reference, grid.affine)
    image = to_sitk(Volume(values, volume.affine, volume.unit))
    out = sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, float(fill)))
    return Volume(out > 0.5 if is_mask else out, grid.affine, volume.unit)


def inside(volume: Volume, grid: Grid) -> np.ndarray:
    """True where a voxel of the grid lies in the volume's extent, (z, y, x) bool."""
    ones = Volume(np.ones(volume.array.shape, np.float32), volume.affine, "1")
    return resample(ones, grid, 0.0).array > 0.5


def coarse_grid(volume: Volume, spacing_mm: float) -> Grid:
    """The volume's own extent and directions at about `spacing_mm`, never finer than it is."""
    factor = np.maximum(1, np.round(spacing_mm / volume.spacing_mm)).astype(int)
    size = np.maximum(1, volume.size // factor)
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, :3] * factor
    affine[:3, 3] += volume.affine[:3, :3] @ ((factor - 1) / 2)
    return Grid(tuple(int(n) for n in size), affine)


def body_mask(ct: Volume) -> Volume:
    """The patient in a CT, lungs included, couch and air excluded; bool, at about 3 mm. For scoring only.

    Threshold, opening (couch shells go), the components that hold at least a tenth of the largest one's voxels, holes
    filled slice by slice, then one voxel of dilation so that the skin counts.
    """
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
