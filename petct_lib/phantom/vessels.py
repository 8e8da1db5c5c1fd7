"""The lung's vessels: two trees a side that fill the lung, from the hilum to a few millimetres under the pleura."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from petct_lib.phantom.shapes import X_MM, Y_MM, Z_MM, Canvas

LEAVES = {"artery": 2048, "vein": 1024}  # ends a lung: about one a cm³ or two
ROOT_MM = {"artery": 6.5, "vein": 5.5}  # radius at the hilum; lobar arteries are 10-14 mm wide
MARGIN_MM = 7.5  # more than the thickest vessel's radius
MURRAY = 3.0  # exponent of the law r^m = r1^m + r2^m: 2.3-3 in pulmonary arteries (Huang 1996, J Appl Physiol 81:2123)


@dataclass(frozen=True)
class Tree:
    """Segments as cones: start and end (n, 3) nominal mm, radius (n,) mm."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray


def grow_vessels(rng: np.random.Generator, lung: np.ndarray, hila: dict[int, tuple]) -> Tree:
    """Arteries and veins of both lungs. lung: its field; hila: where the trees of a side (−1, 1) begin."""
    parts = []
    for side, hilum in hila.items():
        inside = np.argwhere((lung < -4) & (np.sign(X_MM) == side)[None, None])
        for kind, leaves in LEAVES.items():
            chosen = inside[rng.choice(len(inside), leaves, replace=False)]
            targets = np.stack([a[chosen[:, n]] for a, n in ((X_MM, 2), (Y_MM, 1), (Z_MM, 0))], axis=1)
            targets = targets + rng.uniform(-2, 2, targets.shape)
            root = np.array(hilum) + ((0, 0, 0) if kind == "artery" else (-6 * side, 2, -12))
            parts.append(_split(rng, root, targets, ROOT_MM[kind]))
    return Tree(*(np.concatenate(arrays).astype(np.float32) for arrays in zip(*parts, strict=True)))


def _split(rng: np.random.Generator, root: np.ndarray, targets: np.ndarray, radius: float) -> tuple:
    """Start, end and radius of a tree over targets (2^k, 3): each branch divides its targets across their longest axis.

    A branch goes part of the way to the middle of what it serves (Kitaoka 1999, J Appl Physiol 87:2207).
    """
    groups, starts, parts = targets[None], root[None].astype(float), []
    while True:
        members = groups.shape[1]
        share = 1.0 if members == 1 else rng.uniform(0.45, 0.65, (len(groups), 1))
        ends = starts + share * (groups.mean(axis=1) - starts)
        length = np.linalg.norm(ends - starts, axis=1, keepdims=True)
        middle = (starts + ends) / 2 + rng.normal(0, 0.06, starts.shape) * length
        wide = np.full(len(groups), radius * (members / len(targets)) ** (1 / MURRAY))
        parts += [(starts, middle, wide), (middle, ends, wide)]
        if members == 1:
            return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        centred = groups - groups.mean(axis=1, keepdims=True)
        axis = np.linalg.eigh(np.einsum("gmi,gmj->gij", centred, centred))[1][:, :, -1]
        order = np.argsort(np.einsum("gmi,gi->gm", centred, axis), axis=1)
        groups = np.take_along_axis(groups, order[..., None], axis=1).reshape(-1, members // 2, 3)
        starts = np.repeat(ends, 2, axis=0)


def blood_share(tree: Tree, c: Canvas) -> np.ndarray:
    """How much of each voxel is a vessel, (z, y, x) uint8 of 255: most vessels are thinner than a voxel."""
    share = np.zeros(c.labels.size, np.uint8)
    axes = c.places(True)
    steps = np.array([a[1] - a[0] for a in axes], np.float32)  # nominal mm a voxel
    first = np.array([a[0] for a in axes], np.float32)
    points, radius = _points(tree, (axes[2][0] - MARGIN_MM, axes[2][-1] + MARGIN_MM), steps.min())
    for low, high in pairwise((0, 0.7, 1.0, 1.5, 2.2, 3.2, 4.8, MARGIN_MM)):
        chosen = (radius >= low) & (radius < high)
        if chosen.any():
            _stamp(share, c.labels.shape, first, steps, points[chosen], radius[chosen], high)
    return share.reshape(c.labels.shape)


def _points(tree: Tree, heights: tuple[float, float], step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Places along the segments, at most `step_mm` (or a third of the radius) apart, at some heights; their radii."""
    z = tree.start[:, 2], tree.end[:, 2]
    keep = (np.maximum(*z) > heights[0]) & (np.minimum(*z) < heights[1])
    start, end, radius = tree.start[keep], tree.end[keep], tree.radius[keep]
    length = np.linalg.norm(end - start, axis=1)
    count = np.ceil(length / np.maximum(step_mm, radius / 3)).astype(int) + 1
    which = np.repeat(np.arange(len(count)), count)
    rank = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    along = (rank / count[which]).astype(np.float32)[:, None]
    return start[which] + along * (end - start)[which], radius[which]


def _stamp(
    share: np.ndarray,
    shape: tuple,
    first: np.ndarray,
    steps: np.ndarray,
    points: np.ndarray,
    radius: np.ndarray,
    reach: float,
) -> None:
    """Balls of radii up to `reach` mm into the flat array, each voxel keeping the largest share."""
    half = [int(np.ceil((reach + 0.5 * steps[0]) / s)) for s in steps]
    offsets = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij"), axis=-1).reshape(-1, 3)
    place = (points - first) / steps
    inside = (place[:, 2] > -half[2] - 1) & (place[:, 2] < shape[0] + half[2])
    place, radius = place[inside], radius[inside]
    nearest = np.rint(place).astype(np.int32)
    rest = ((nearest - place) * steps).T
    # A vessel thinner than the voxel fills it in part: its cross-section over the voxel's.
    most = 255 * np.minimum(1, np.pi * radius**2 / (steps[0] * steps[1]))
    limit = (radius + 0.5 * steps[0]) ** 2
    nearest = nearest.T
    for offset in offsets[np.linalg.norm(offsets * steps, axis=1) < reach + 0.5 * steps[0] + np.linalg.norm(steps) / 2]:
        gap = sum((r + o * s) ** 2 for r, o, s in zip(rest, offset, steps, strict=True))
        near = np.flatnonzero(gap < limit)
        i, j, k = nearest[:, near] + offset[:, None]
        good = (k >= 0) & (k < shape[0]) & (i >= 0) & (i < shape[2]) & (j >= 0) & (j < shape[1])
        near = near[good]
        filled = np.clip((radius[near] - np.sqrt(gap[near])) / steps[0] + 0.5, 0, 1) * most[near]
        np.maximum.at(share, (k[good] * shape[1] + j[good]) * shape[2] + i[good], filled.astype(np.uint8))
