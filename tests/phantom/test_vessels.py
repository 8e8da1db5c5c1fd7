"""The lung's vessels: connected, thinner by Murray's law, filling the lung, and as much blood as their cones hold."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from petct_lib.phantom import vessels
from petct_lib.phantom.shapes import X_MM, Y_MM, Z_MM, Canvas, ellipsoid, sample, union
from petct_lib.phantom.vessels import LEAVES, MURRAY, ROOT_MM, Tree

AT = np.stack(np.broadcast_arrays(X_MM, Y_MM[:, None], Z_MM[:, None, None]))
HILA = {-1: (-40.0, 0.0, 0.0), 1: (40.0, 0.0, 0.0)}
ROOTS = 2 * len(LEAVES)


def blank(low: tuple, high: tuple, mm: tuple = (1.0, 1.0, 1.0)) -> Canvas:
    axes = tuple(
        np.arange(lo, hi + step / 2, step).astype(np.float32) for lo, hi, step in zip(low, high, mm, strict=True)
    )
    return Canvas(np.zeros([len(a) for a in axes[::-1]], np.uint8), axes, axes[2], np.ones(3))


@pytest.fixture(scope="module")
def lung() -> np.ndarray:
    """Two lungs of 1.7 l each: the tests ask what the trees do, not what lungs look like."""
    return union(*(ellipsoid(AT, (s * 82, 0, -20), (52, 72, 110)) for s in (-1, 1)))


@pytest.fixture(scope="module")
def tree(lung) -> Tree:
    return vessels.grow_vessels(np.random.default_rng(0), lung, HILA)


def rows(points: np.ndarray) -> list[tuple]:
    return [tuple(p) for p in points.tolist()]


def test_every_segment_but_four_begins_where_another_ends(tree):
    starts, ends = rows(tree.start), rows(tree.end)
    assert len(set(ends)) == len(ends)
    roots = set(starts) - set(ends)
    assert len(roots) == ROOTS
    for hilum in HILA.values():
        assert hilum in roots
    assert {side: sum(np.sign(r[0]) == side for r in roots) for side in HILA} == {-1: 2, 1: 2}


def test_it_ends_in_as_many_leaves_as_asked_for(tree):
    leaves = set(rows(tree.end)) - set(rows(tree.start))
    assert len(leaves) == 2 * sum(LEAVES.values())
    assert len(tree.start) == 2 * sum(2 * (2 * n - 1) for n in LEAVES.values())  # two segments a branch
    assert tree.start.shape == tree.end.shape == (len(tree.radius), 3)


def test_murrays_law_holds_at_every_branching(tree):
    served: dict[tuple, float] = {}
    count: dict[tuple, int] = {}
    for start, radius in zip(rows(tree.start), tree.radius, strict=True):
        served[start] = served.get(start, 0.0) + float(radius) ** MURRAY
        count[start] = count.get(start, 0) + 1
    inner = [(served[e], r, count[e]) for e, r in zip(rows(tree.end), tree.radius, strict=True) if e in served]
    assert {n for *_, n in inner} == {1, 2}  # a bend or a branching
    children, parents, _ = (np.array(column) for column in zip(*inner, strict=True))
    assert children == pytest.approx(parents**MURRAY, rel=1e-4)


def test_it_begins_with_the_roots_radii_and_gets_thinner(tree):
    radius = dict(zip(rows(tree.end), tree.radius, strict=True))
    for start, own in zip(rows(tree.start), tree.radius, strict=True):
        assert own <= radius.get(start, own) + 1e-6
    assert sorted(set(np.round(tree.radius, 3)))[-1] == max(ROOT_MM.values())
    for kind, leaves in LEAVES.items():
        assert np.isclose(tree.radius, ROOT_MM[kind] * leaves ** (-1 / MURRAY), rtol=1e-4).sum() >= 2 * leaves


def test_its_leaves_lie_in_the_lung_and_no_side_crosses_over(tree, lung):
    leaves = np.array(sorted(set(rows(tree.end)) - set(rows(tree.start))))
    depth = sample(lung, leaves)
    assert (depth < 0).mean() > 0.99
    assert depth.max() < 3
    assert np.mean(sample(lung, tree.end) < 0) > 0.97
    assert (np.sign(tree.start[:, 0]) == np.sign(tree.end[:, 0])).all()


def test_it_fills_the_lung(tree, lung):
    k, j, i = np.nonzero(lung < 0)
    places = np.stack([X_MM[i], Y_MM[j], Z_MM[k]], axis=1)
    gap = cKDTree(tree.end).query(places)[0]
    assert np.quantile(gap, 0.95) < 15
    assert np.median(gap) < 6
    assert gap.max() < 40


def test_the_same_seed_gives_the_same_tree(lung, tree):
    again, other = (vessels.grow_vessels(np.random.default_rng(seed), lung, HILA) for seed in (0, 1))
    assert np.array_equal(again.end, tree.end)
    assert not np.array_equal(other.end, tree.end)


def test_a_straight_vessel_holds_its_volume():
    for radius, tolerance in ((0.6, 0.10), (1.0, 0.08), (2.0, 0.08), (4.0, 0.12)):
        a, b = np.array([(-20.3, -10.2, -18.0)], np.float32), np.array([(20.1, 12.4, 20.2)], np.float32)
        one = Tree(a, b, np.array([radius], np.float32))
        true = np.pi * radius**2 * np.linalg.norm(b - a)
        for mm in ((1.0, 1.0, 1.0), (0.977, 0.977, 3.0)):
            share = vessels.blood_share(one, blank((-40,) * 3, (40,) * 3, mm))
            assert share.sum() / 255 * np.prod(mm) == pytest.approx(true, rel=tolerance), (radius, mm)


def test_a_vessel_lies_where_its_segment_is():
    one = Tree(*(np.array([p], np.float32) for p in ((5, -3, -15), (5, -3, 15))), np.array([3], np.float32))
    c = blank((-20,) * 3, (20,) * 3)
    share = vessels.blood_share(one, c)
    x, y, z = c.grid()
    gap = np.hypot(x - 5, y + 3) + 0 * z
    middle = (np.abs(z) < 12) & (gap >= 0)
    assert (share[middle & (gap < 2.4)] == 255).all()
    assert (share[gap > 3.6] == 0).all()
    assert (share[(np.abs(z) > 19) & (gap >= 0)] == 0).all()


def test_two_vessels_in_one_voxel_are_not_added():
    segment = [np.array([p], np.float32) for p in ((0, 0, -15), (0, 0, 15))]
    radius = np.array([2.0], np.float32)
    c = blank((-20,) * 3, (20,) * 3)
    one = vessels.blood_share(Tree(*segment, radius), c)
    two = vessels.blood_share(Tree(*(np.repeat(s, 2, axis=0) for s in segment), np.repeat(radius, 2)), c)
    assert np.array_equal(one, two)


def test_breathing_moves_the_vessels():
    one = Tree(*(np.array([p], np.float32) for p in ((-8, 0, 0), (8, 0, 0))), np.array([2], np.float32))
    still = blank((-20,) * 3, (20,) * 3)
    moved = Canvas(still.labels, still.axes, still.inner_z - 5, still.scale)
    assert np.array_equal(vessels.blood_share(one, still)[:-5], vessels.blood_share(one, moved)[5:])


@pytest.fixture(scope="module")
def share(tree) -> tuple[np.ndarray, Canvas]:
    c = blank((-150, -90, -140), (150, 90, 100))
    return vessels.blood_share(tree, c), c


def test_the_whole_tree_holds_the_blood_of_its_cones(tree, share):
    array, c = share
    assert array.dtype == np.uint8
    assert array.shape == c.labels.shape
    assert array.max() == 255
    assert array.min() == 0
    cones = np.pi * (tree.radius**2 * np.linalg.norm(tree.end - tree.start, axis=1)).sum()
    assert array.sum() / 255 == pytest.approx(cones, rel=0.25)  # where two overlap, the voxel counts once
    assert 0.01 < array.sum() / 255 / 3.4e6 < 0.15  # of the lung's 3.4 l


def test_cut_into_slabs_it_is_the_same(tree, share):
    whole, c = share
    for size in (13, 64):
        cut = np.concatenate(
            [vessels.blood_share(tree, c.part(slice(k, k + size))) for k in range(0, len(whole), size)]
        )
        off = np.abs(cut.astype(int) - whole)
        # Its origin is another, so a float32 may fall on the other side of a step of 1/255.
        assert off.max() <= 1
        assert (off > 0).sum() < 1e-3 * (whole > 0).sum()
