"""Where the slices of a series lie in patient space: their order and the stack's affine, from the headers alone."""

import numpy as np
from pydicom import Dataset

from petct_lib import InputError
from petct_lib.imaging.volume import Volume

GAP_TOLERANCE = 0.05  # slice distances may differ by this share of the median
SHIFT_TOLERANCE_MM = 0.5  # a slice may lie off the line through the others by this much
SAME_PLACE_MM = 0.01
SPACING_MM = (0.05, 100.0)  # of pixels and slices; a grid outside of it comes from a broken header
MAX_MM = 1e6  # of a position or spacing; beyond, arithmetic overflows
MAX_LENGTH_MM = 3000.0  # of a stack: no body is longer


def geometry(headers: list[Dataset]) -> tuple[list[int], np.ndarray]:
    """Order of the slices along their normal, and the affine (4, 4) of the stack, from positions and cosines alone.

    A stack may be turned any way, and slanted (tilted gantry): the affine's third column is the step from slice to
    slice, whatever its direction. Raises InputError for missing attributes, mixed orientations, duplicate positions,
    gaps, slices that do not lie on one line, and distances that no scanner makes. Source: DICOM PS3.3 C.7.6.2.1.1.
    """
    cosines, positions, spacings = _placement(headers)
    if len(headers) < 2:
        raise InputError("a single slice has no spacing: at least 2 are needed")
    if np.abs(cosines - cosines[0]).max() > 1e-3:
        raise InputError("the slices have different orientations")
    if np.abs(spacings - spacings[0]).max() > 1e-3:
        raise InputError("the slices have different PixelSpacing")
    along_x, along_y = cosines[0, :3], cosines[0, 3:]
    depth = positions @ np.cross(along_x, along_y)
    order = np.argsort(depth, kind="stable")
    _check_steps(depth[order])
    sorted_mm = positions[order]
    step = (sorted_mm[-1] - sorted_mm[0]) / (len(headers) - 1)
    off_line = sorted_mm - sorted_mm[0] - np.arange(len(headers))[:, None] * step
    off_line -= np.outer(off_line @ np.cross(along_x, along_y), np.cross(along_x, along_y))  # uneven steps: see above
    if np.abs(off_line).max() > SHIFT_TOLERANCE_MM:
        raise InputError(f"the slices are shifted against each other by up to {np.abs(off_line).max():.1f} mm")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along_x * spacings[0, 1], along_y * spacings[0, 0], step], axis=1)
    affine[:3, 3] = sorted_mm[0]
    _check_spacing(np.linalg.norm(affine[:3, :3], axis=0), len(headers))
    return order.tolist(), affine


def _placement(headers: list[Dataset]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction cosines (n, 6), positions (n, 3) and row and column spacing (n, 2) of the slices."""
    try:
        rows = [[*h.ImageOrientationPatient, *h.ImagePositionPatient, *h.PixelSpacing] for h in headers]
        table = np.array(rows, float)
    except (AttributeError, TypeError, ValueError):
        table = np.full((1, 11), np.nan)
    if table.shape[1] != 11 or not np.abs(table).max() <= MAX_MM or table[:, 9:].min() <= 0:
        raise InputError("ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing or broken")
    lengths, angle = np.linalg.norm(table[:, :6].reshape(-1, 2, 3), axis=2), (table[:, :3] * table[:, 3:6]).sum(axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or np.abs(angle).max() > 1e-2:
        raise InputError("ImageOrientationPatient holds no two directions at right angles")
    return table[:, :6], table[:, 6:9], table[:, 9:]


def _check_steps(depth_mm: np.ndarray) -> None:
    steps = np.diff(depth_mm)
    step = float(np.median(steps))
    if steps.min() < SAME_PLACE_MM:
        at = depth_mm[1:][steps < SAME_PLACE_MM]
        raise InputError(f"{len(at)} duplicate slice positions, the first at {at[0]:.1f} mm")
    wide = np.abs(steps - step) > GAP_TOLERANCE * step
    if wide.any():
        places = ", ".join(f"{d:.1f}" for d in depth_mm[1:][wide][:5])
        raise InputError(f"{wide.sum()} gaps or uneven steps in z, before {places} mm; the usual step is {step:.2f} mm")


def _check_spacing(spacing_mm: np.ndarray, slices: int) -> None:
    low, high = SPACING_MM
    if spacing_mm.min() < low or spacing_mm.max() > high or slices * spacing_mm[2] > MAX_LENGTH_MM:
        size = "×".join(f"{s:g}" for s in spacing_mm)
        limits = f"{low:g} to {high:g} mm, and a length of {MAX_LENGTH_MM:g} mm at most"
        raise InputError(f"{slices} slices of {size} mm voxels are no scanner's: the limits are {limits}")


def extent(headers: list[Dataset]) -> Volume:
    """The grid of a series as a volume without content (zeros that take no memory).

    InputError where the slices make no stack, see `geometry`.
    """
    order, affine = geometry(headers)
    shape = (len(order), int(headers[0].Rows), int(headers[0].Columns))
    return Volume(np.broadcast_to(np.float32(0), shape), affine, "1")


def length_mm(headers: list[Dataset]) -> float:
    """How far the stack reaches along its normal, mm; -1 where the slices make no stack."""
    try:
        _, affine = geometry(headers)
    except InputError:
        return -1.0
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return round(float(len(headers) * affine[:3, 2] @ normal / np.linalg.norm(normal)), 1)


def share_covered(inner: list[Dataset], outer: list[Dataset]) -> float:
    """Share of the slices of `inner` whose middle lies in the box of `outer`; -1 where `outer` makes no stack.

    However the two are turned against each other. Raises InputError where `inner` makes no stack.
    """
    slices = extent(inner)
    try:
        box = extent(outer)
    except InputError:
        return -1.0
    x, y, _ = (slices.size - 1) / 2
    to_box = np.linalg.inv(box.affine) @ slices.affine
    at = np.array([to_box @ [x, y, k, 1] for k in range(len(inner))])[:, :3]
    slack = np.abs(to_box[:3, 2]) + 1e-6  # one slice of `inner`: the grids are offset; and rounding
    return round(float(np.mean(((at >= -slack) & (at <= box.size - 1 + slack)).all(axis=1))), 2)
