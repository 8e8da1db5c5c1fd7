"""The bones, drawn into a chest of muscle alone: ribs that fall, a closed canal, discs, a sternum, cortex outside."""

import numpy as np
import pytest
from scipy import ndimage

from petct_lib.phantom import anatomy, skeleton
from petct_lib.phantom.anatomy import Build
from petct_lib.phantom.shapes import Canvas
from petct_lib.phantom.skeleton import CURVE, RIB_HALF_MM, VERTEBRA_MM, Bones, spine_at
from petct_lib.phantom.tissues import LABEL, TISSUES, label_table

BONE = label_table("cortex", "marrow", "endplate")


def muscle(low: tuple, high: tuple, mm: tuple) -> Canvas:
    """Nothing but muscle between two corners."""
    axes = tuple(np.arange(lo, hi, step).astype(np.float32) for lo, hi, step in zip(low, high, mm, strict=True))
    return Canvas(np.full([len(a) for a in axes[::-1]], LABEL["muscle"], np.uint8), axes, axes[2], np.ones(3))


@pytest.fixture(scope="module", params=[0, 1, 2])
def grown(request) -> tuple[Bones, np.ndarray]:
    """Bones, and the field of the cage's inner surface that they follow."""
    a = anatomy.grow_anatomy(np.random.default_rng(request.param), Build("MF"[request.param % 2], 15.0, 1.0, True))
    return a.bones, a.fields["wall"]


@pytest.fixture(scope="module")
def drawn(grown) -> tuple[Bones, Canvas]:
    c = muscle((-240, -135, -190), (240, 135, 140), (1.5, 1.5, 2))
    skeleton.paint_skeleton(grown[0], c, grown[1])
    return grown[0], c


def label_mask(c: Canvas, *names: str) -> np.ndarray:
    return label_table(*names)[c.labels]


def nearest(axis: np.ndarray, place: float) -> int:
    return int(np.argmin(np.abs(axis - place)))


def mid_vertebrae(b: Bones, c: Canvas) -> list[int]:
    """Slices through the middle of each vertebra."""
    z = c.axes[2]
    return [nearest(z, h) for h in b.disc_z + VERTEBRA_MM * (np.arange(-12, 12) + 0.5) if z[0] + 8 < h < z[-1] - 8]


# Numbers.


def test_the_same_seed_grows_the_same_bones_within_their_limits():
    for seed in range(50):
        b = skeleton.grow_skeleton(np.random.default_rng(seed), True)
        assert b == skeleton.grow_skeleton(np.random.default_rng(seed), True)
        assert 0 <= b.disc_z < VERTEBRA_MM
        assert abs(b.scoliosis_mm) <= 5
        assert 66 <= b.rib_fall_mm <= 90
        assert 14 <= b.sternum_half_mm <= 19
        assert all(abs(z) <= 2 for z in b.rib_z)
    assert b != skeleton.grow_skeleton(np.random.default_rng(0), True)
    assert skeleton.grow_skeleton(np.random.default_rng(0), False).arms_up is False


def test_spine_at_follows_the_curve_and_the_scoliosis():
    b = Bones(True, 4.0, 10.0, 3.0, 80.0, (0.0, 0.0), 16.0)
    heights, depths = (np.array(v, float) for v in zip(*CURVE, strict=True))
    assert spine_at(b, heights)[1] == pytest.approx(depths)
    assert spine_at(b, np.array([10.0, 10 + 30 * np.pi, 10 + 60 * np.pi]))[0] == pytest.approx([4, 0, -4], abs=1e-9)
    between = spine_at(b, np.linspace(-60, 60, 50))[1]
    assert (np.diff(between) <= 1e-9).all()  # kyphosis: from its hindmost place on it comes forward
    assert between.max() == 46


# Ribs.


def test_nine_to_twelve_ribs_cross_the_mid_axillary_line(drawn):
    _, c = drawn
    x, y, z = c.axes
    bone = label_mask(c, "cortex", "marrow")[:, nearest(y, 0)]
    side = bone & ((z < 75)[:, None])  # above are shoulder and first ribs
    for sign in (-1, 1):
        pieces, count = ndimage.label(side & (sign * x > 60)[None])
        assert 9 <= count <= 12
        heights = sorted(z[0] + 2 * h for h, _ in ndimage.center_of_mass(side, pieces, range(1, count + 1)))
        steps = np.diff(heights)[1:-1]  # the first and the last piece may be cut by the edge
        assert (np.abs(steps[steps < 30] - VERTEBRA_MM) < 5).all()
        assert np.median(steps) == pytest.approx(VERTEBRA_MM, abs=1.5)


def test_a_ribs_section_is_that_of_a_rib(drawn):
    _, c = drawn
    x, y, z = c.axes
    side = label_mask(c, "cortex", "marrow")[:, nearest(y, 0)]
    window = ((z > -150) & (z < 0))[:, None]
    for sign in (-1, 1):
        pieces, count = ndimage.label(side & window & (sign * x > 60)[None])
        areas = np.bincount(pieces.ravel())[1:] * 3.0
        boxes = [s for s, area in zip(ndimage.find_objects(pieces), areas, strict=True) if area > 0.7 * areas.max()]
        assert len(boxes) >= count - 2
        assert np.median(areas) == pytest.approx(np.pi * RIB_HALF_MM[0] * RIB_HALF_MM[1], rel=0.3)
        for rows, columns in boxes:
            assert 8 <= 2 * (rows.stop - rows.start) <= 20
            assert 4 <= 1.5 * (columns.stop - columns.start) <= 13


def test_a_rib_is_lower_in_front_than_at_the_back(drawn):
    _, c = drawn
    x, y, z = c.axes
    spine = ((y > 0)[:, None] & (np.abs(x) < 46)[None])[None]
    bone = label_mask(c, "cortex", "marrow")
    ribs = bone & ~spine & (np.abs(x) < 165) & (z < -30)[:, None, None]  # the scapula is above
    pieces, _ = ndimage.label(ribs)
    falls = []
    for n, box in enumerate(ndimage.find_objects(pieces), 1):
        k, j, i = np.nonzero(pieces[box] == n)
        k, j, i = k + box[0].start, j + box[1].start, i + box[2].start
        if y[j.max()] > 75 and y[j.min()] < -40 and z[k.min()] > z[0] + 2:  # all of it in the field
            falls.append(z[k[j >= j.max() - 2]].mean() - z[k[j <= j.min() + 2]].mean())
            assert abs(np.sign(x[i]).mean()) == 1  # one side only
    assert len(falls) >= 2
    assert all(40 < fall < 100 for fall in falls)


def test_cartilage_is_in_front_and_rises_to_the_sternum(drawn):
    _, c = drawn
    x, y, z = c.axes
    cartilage = label_mask(c, "cartilage")
    k, j, i = np.nonzero(cartilage)
    assert np.quantile(y[j], 0.95) < 0
    window = (z[k] > -60) & (z[k] < 20)
    assert np.abs(x[i][window]).max() < 130
    touching = ndimage.binary_dilation(cartilage)
    assert (touching & label_mask(c, "cortex") & (np.abs(x) < 30)).any()  # it reaches the sternum


# Spine.


def test_the_canal_is_ringed_by_bone_in_the_middle_of_each_vertebra(drawn):
    b, c = drawn
    slices = mid_vertebrae(b, c)
    assert len(slices) >= 11
    for k in slices:
        canal = label_mask(c, "cord", "fat")[k]
        assert ndimage.label(canal)[1] == 1
        assert 150 < canal.sum() * 2.25 < 350  # 15-20 mm wide
        assert BONE[c.labels[k][ndimage.binary_dilation(canal) & ~canal]].all()


def test_the_cord_runs_through_without_a_break_behind_the_bodies(drawn):
    b, c = drawn
    cord = label_mask(c, "cord")
    assert cord.any(axis=(1, 2)).all()
    assert ndimage.label(cord)[1] == 1
    assert set(np.unique(c.labels[ndimage.binary_dilation(cord) & ~cord])) == {LABEL["fat"]}
    x, y = spine_at(b, c.axes[2])
    middle = [ndimage.center_of_mass(plane) for plane in cord]
    assert [c.axes[1][0] + 1.5 * m[0] for m in middle] == pytest.approx(list(y + 20.5), abs=1)
    assert [c.axes[0][0] + 1.5 * m[1] for m in middle] == pytest.approx(list(x), abs=1)


def test_discs_lie_between_the_bodies_one_vertebra_apart(grown):
    b, wall = grown
    c = muscle((-8, 20, -120), (9, 60, 120), (1, 1, 0.5))
    skeleton.paint_skeleton(b, c, wall)
    axis_x, axis_y, z = c.axes
    x, y = spine_at(b, z)
    column = [c.labels[k, nearest(axis_y, y[k]), nearest(axis_x, x[k])] for k in range(len(z))]
    names = [list(TISSUES)[n] for n in column]
    order = [name for name, before in zip(names, ["", *names], strict=False) if name != before]
    assert set(order) == {"disc", "endplate", "marrow"}
    around = [order[n - 1 : n + 2] for n in range(1, len(order) - 1) if order[n] == "disc"]
    assert around
    assert all(triple == ["endplate", "disc", "endplate"] for triple in around)
    pieces, count = ndimage.label(np.array(names) == "disc")
    middle = [z[0] + 0.5 * m[0] for m in ndimage.center_of_mass(pieces > 0, pieces, range(1, count + 1))]
    inside = [m for m in middle if z[0] + 6 < m < z[-1] - 6]
    assert np.diff(inside) == pytest.approx(np.full(len(inside) - 1, VERTEBRA_MM), abs=0.6)
    nearest_disc = b.disc_z + VERTEBRA_MM * np.round((np.array(inside) - b.disc_z) / VERTEBRA_MM)
    assert inside == pytest.approx(list(nearest_disc), abs=0.6)


def test_a_body_is_as_wide_as_a_thoracic_one(drawn):
    b, c = drawn
    axis_x, axis_y, z = c.axes
    for k in mid_vertebrae(b, c):
        x, y = (float(v) for v in spine_at(b, z[k]))
        row = BONE[c.labels[k, nearest(axis_y, y - 4)]] & (np.abs(axis_x - x) < 25)
        assert 21 < row.sum() * 1.5 < 40
        column = BONE[c.labels[k, :, nearest(axis_x, x)]] & (axis_y > y - 25) & (axis_y < y + 12)
        assert 18 < column.sum() * 1.5 < 32


# Sternum and arms.


def test_the_sternum_is_in_front_in_the_midline(drawn):
    _, c = drawn
    x, y, z = c.axes
    column = label_mask(c, "cortex", "marrow")[:, :, nearest(x, 0)]
    for height in (-40, -10, 15, 45, 60):
        k = nearest(z, height)
        front = np.flatnonzero(column[k] & (y < 0))
        assert y[front].max() < -55
        assert 6 < 1.5 * len(front) < 16  # mm thick
        row = label_mask(c, "cortex", "marrow")[k, front[len(front) // 2]] & (np.abs(x) < 50)
        assert 18 < 1.5 * row.sum() < 75  # mm wide, the manubrium 50-60
        assert abs(x[row].mean()) < 2
    gap = column[nearest(z, 34)] & (y < 0)
    assert not gap.any()  # between manubrium and body


def test_arms_are_bone_above_or_beside_the_chest():
    a = anatomy.grow_anatomy(np.random.default_rng(0), Build("M", 15.0, 1.0, True))
    for up in (True, False):
        c = muscle((-240, -60, -100), (240, 80, 180), (3, 3, 4))
        skeleton.paint_skeleton(skeleton.grow_skeleton(np.random.default_rng(0), up), c, a.fields["wall"])
        x, _, z = c.axes
        bone = label_mask(c, "cortex", "marrow") & (np.abs(x) > 162)
        for sign in (-1, 1):
            side = bone[:, :, sign * x > 0]
            assert side[nearest(z, 165)].any() == up
            assert side[nearest(z, -60)].any() != up


# Cortex.


def bare(c: Canvas, where: np.ndarray) -> float:
    """The share of the marrow in a place that touches muscle."""
    marrow = label_mask(c, "marrow") & where
    assert marrow.sum() > 200
    return float((ndimage.binary_dilation(label_mask(c, "muscle")) & marrow).sum() / marrow.sum())


def test_cortex_surrounds_marrow(grown):
    b, wall = grown
    ribs = muscle((70, -40, -110), (165, 60, -50), (0.6, 0.6, 0.6))
    skeleton.paint_skeleton(b, ribs, wall)
    assert bare(ribs, np.ones(ribs.labels.shape, bool)) < 0.01
    # Of the bodies, that is: the marrow of a pedicle lies bare to the canal's fat.
    body = muscle((-30, 5, -60), (30, 55, -20), (1.0, 1.0, 1.0))
    skeleton.paint_skeleton(b, body, wall)
    x, y, _ = body.grid()
    assert bare(body, (np.abs(x) < 30) & (y < 50) & np.ones(body.labels.shape, bool)) < 0.01


def test_slabs_give_the_same_bones(grown):
    b, wall = grown
    whole, cut = (muscle((-160, -130, -100), (160, 130, 60), (3, 3, 4)) for _ in range(2))
    skeleton.paint_skeleton(b, whole, wall)
    for k in range(0, len(cut.labels), 7):
        skeleton.paint_skeleton(b, cut.part(slice(k, k + 7)), wall)
    assert (whole.labels != cut.labels).sum() <= 5  # float32 at a surface
