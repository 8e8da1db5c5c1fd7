"""Fields against distances known by hand, the fine grid against the fields, and drawing that depends on no thread."""

import numpy as np
import pytest
from scipy.ndimage import label, map_coordinates

from petct_lib.phantom import shapes
from petct_lib.phantom.shapes import (
    ALL,
    FAR_MM,
    GRID,
    STEP_MM,
    X_MM,
    Y_MM,
    Z_MM,
    Canvas,
    draw_by_slabs,
    ellipsoid,
    fine_noise,
    interpolate,
    noise,
    sample,
    smooth_step,
    tube,
    union,
)

AT = np.stack(np.broadcast_arrays(*GRID))  # (3, z, y, x)
QUARTER_TURN = np.array([(0, 1, 0), (-1, 0, 0), (0, 0, 1)])  # about z


def blank(half_mm: float = 30.0, step: float = 1.0, fill: int = 1, centre: tuple = (0, 0, 0)) -> Canvas:
    """A cube of voxels of `step` mm around a place."""
    axes = tuple(np.arange(o - half_mm, o + half_mm + step / 2, step, np.float32) for o in centre)
    return Canvas(np.full([len(a) for a in axes[::-1]], fill, np.uint8), axes, axes[2].copy(), np.ones(3))


def at(field: np.ndarray, x: float, y: float, z: float) -> float:
    """A field's value at a node of the coarse grid."""
    return float(field[list(Z_MM).index(z), list(Y_MM).index(y), list(X_MM).index(x)])


def distance(c: Canvas, centre: tuple, inner: bool = True) -> np.ndarray:
    """Of each voxel to a place, (z, y, x)."""
    return np.sqrt(sum((g - o) ** 2 for g, o in zip(c.grid(inner=inner), centre, strict=True)))


# Fields.


def test_the_coarse_grid_has_one_step_and_holds_the_body():
    for axis in (X_MM, Y_MM, Z_MM):
        assert np.allclose(np.diff(axis), STEP_MM)
    assert X_MM[0] <= -250
    assert X_MM[-1] >= 250
    assert Y_MM[-1] - Y_MM[0] >= 350


def test_a_sphere_is_exact():
    centre, radius = (12.3, -31.0, 44.7), 35.0
    true = np.sqrt(((AT - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0)) - radius
    assert np.allclose(ellipsoid(AT, centre, (radius,) * 3), np.minimum(true, FAR_MM), rtol=0, atol=0.05)


def test_an_ellipsoid_is_right_on_its_axes():
    field = ellipsoid(AT, (2, 0, 0), (40, 28, 20))
    for place in ((42, 0, 0), (-38, 0, 0), (2, 28, 0), (2, -28, 0), (2, 0, 20), (2, 0, -20)):
        assert at(field, *place) == pytest.approx(0, abs=0.01)
    assert at(field, 46, 0, 0) == pytest.approx(4, abs=0.2)
    assert at(field, 2, 0, 16) == pytest.approx(-4, abs=0.6)
    assert at(field, 2, 0, 0) < -5
    assert at(field, -198, 0, 0) == FAR_MM


def surface(centre: np.ndarray, radii: np.ndarray, axes: np.ndarray, count: int = 20000) -> np.ndarray:
    """Random points on an ellipsoid, (n, 3)."""
    u = np.random.default_rng(0).standard_normal((count, 3))
    return centre + (u / np.linalg.norm(u, axis=1, keepdims=True) * radii) @ axes


def turned() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = np.radians(35), np.radians(-50)
    z = np.array([(np.cos(a), np.sin(a), 0), (-np.sin(a), np.cos(a), 0), (0, 0, 1)])
    x = np.array([(1, 0, 0), (0, np.cos(b), np.sin(b)), (0, -np.sin(b), np.cos(b))])
    return np.array((10.0, -20, 30)), np.array((48.0, 33, 25)), x @ z


def test_a_turned_ellipsoid_has_its_surface_where_it_should():
    centre, radii, axes = turned()
    field = ellipsoid(AT, centre, radii, axes)
    off = sample(field, surface(centre, radii, axes))
    assert np.abs(off).max() < 0.5
    assert np.abs(sample(ellipsoid(AT, centre, radii), surface(centre, radii, axes))).max() > 5


def test_an_ellipsoids_field_is_the_distance_near_its_surface():
    centre, radii, axes = turned()
    field = ellipsoid(AT, centre, radii, axes)
    points = surface(centre, radii, axes, 2000)
    outwards = ((points - centre) @ axes.T / radii**2) @ axes
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    for step in (-4.0, 4.0):
        assert sample(field, points + step * outwards) == pytest.approx(np.full(2000, step), abs=0.9)


def test_a_quarter_turn_swaps_two_radii():
    field = ellipsoid(AT, (2, 0, 0), (40, 24, 30), QUARTER_TURN)
    straight = ellipsoid(AT, (2, 0, 0), (24, 40, 30))
    near = np.minimum(field, straight) < 40  # far away the two fields are cut off at different boxes
    assert near.sum() > 5000
    assert np.allclose(field[near], straight[near], rtol=0, atol=0.02)


def test_a_straight_tube_has_round_ends():
    field = tube(AT, [(2, 0, -40), (2, 0, 40)], 8)
    for z in (-40, 0, 40):
        assert at(field, 2, 0, z) == pytest.approx(-8, abs=1e-4)
        assert at(field, 22, 0, z) == pytest.approx(12, abs=1e-4)
        assert at(field, 14, 16, z) == pytest.approx(12, abs=1e-4)  # 12, 16, 20
    assert at(field, 2, 0, 60) == pytest.approx(12, abs=1e-4)
    assert at(field, 14, 0, 56) == pytest.approx(12, abs=1e-4)
    assert at(field, 202, 0, 0) == FAR_MM


def test_a_cones_radius_goes_linearly_from_end_to_end():
    field = tube(AT, [(2, 0, -40), (2, 0, 40)], [4, 20])
    for z, radius in ((-60, -16), (-40, 4), (-20, 8), (0, 12), (20, 16), (40, 20)):
        assert at(field, 2, 0, z) == pytest.approx(-radius, abs=1e-4)
    assert at(field, 42, 0, 0) == pytest.approx(40 - 12, abs=1e-4)


def test_a_chain_is_the_union_of_its_pieces():
    points, radii = [(-50, -20, -30), (10, 16, 4), (40, 60, 90)], [6, 12, 3]
    pieces = tube(AT, points[:2], radii[:2]), tube(AT, points[1:], radii[1:])
    assert np.array_equal(tube(AT, points, radii), union(*pieces))


def test_a_plain_union_is_the_least():
    a, b = ellipsoid(AT, (-20, 0, 0), (30, 30, 30)), tube(AT, [(0, 0, 0), (60, 0, 0)], 12)
    assert np.array_equal(union(a, b), np.minimum(a, b))
    assert np.array_equal(union(a), a)


def test_a_smooth_union_fills_the_crease_and_nothing_else():
    a, b = ellipsoid(AT, (-24, 0, 0), (30, 30, 30)), ellipsoid(AT, (28, 0, 0), (30, 30, 30))
    both, least = union(a, b, smooth_mm=12), np.minimum(a, b)
    assert (both <= least + 1e-4).all()
    apart = np.abs(a - b) >= 12
    assert np.allclose(both[apart], least[apart], rtol=0, atol=1e-4)
    alike = np.abs(a - b)[:, :, list(X_MM).index(2)] < 0.01  # the plane between the two
    assert alike.all()
    assert np.allclose((least - both)[:, :, list(X_MM).index(2)], 12 / 4, rtol=0, atol=0.01)  # its depth: a quarter


def test_noise_has_variance_one_everywhere():
    rng = np.random.default_rng(3)
    many = np.stack([noise(rng, 60.0)[::10, ::10, ::10] for _ in range(60)])
    assert many.shape[1:] == tuple(-(-len(a) // 10) for a in (Z_MM, Y_MM, X_MM))
    assert many.mean() == pytest.approx(0, abs=0.05)
    assert many.var() == pytest.approx(1, abs=0.05)
    assert many[:, 0, 0].var() == pytest.approx(1, abs=0.35)  # at an edge too


def test_noise_is_correlated_over_its_length():
    rng, length = np.random.default_rng(4), 48.0

    def correlation(lag_mm: float) -> list[float]:
        step = round(lag_mm / STEP_MM)
        return [float((f[:, :, step:] * f[:, :, : len(X_MM) - step]).mean()) for f in fields]

    fields = [noise(rng, length) for _ in range(8)]
    # White noise blurred by a Gaussian of FWHM `length` correlates as one √2 times as wide: 1/2^(1/2) at half of it.
    assert np.mean(correlation(length / 2)) == pytest.approx(0.5**0.5, abs=0.06)
    assert np.mean(correlation(length)) == pytest.approx(0.25, abs=0.08)
    assert np.mean(correlation(3 * length)) == pytest.approx(0, abs=0.08)


def test_noise_repeats_by_its_generator():
    first, again, other = (noise(np.random.default_rng(seed), 80.0) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_sample_is_linear_interpolation():
    rng = np.random.default_rng(5)
    field = rng.standard_normal((len(Z_MM), len(Y_MM), len(X_MM))).astype(np.float32)
    points = rng.uniform((-269, -179, -199), (265, 195, 215), (500, 3))
    index = [(points[:, n] - a[0]) / STEP_MM for n, a in ((2, Z_MM), (1, Y_MM), (0, X_MM))]
    assert sample(field, points) == pytest.approx(map_coordinates(field, index, order=1), abs=1e-4)


def test_sample_is_exact_for_a_plane_and_clamps_beyond_the_ends():
    field = (2 * AT[0] - AT[1] + 0.5 * AT[2] + 7).astype(np.float32)
    assert sample(field, np.array([(10.3, -20.7, 33.1)])) == pytest.approx(2 * 10.3 + 20.7 + 0.5 * 33.1 + 7, abs=1e-3)
    far = sample(field, np.array([(1e4, -20.0, 32.0)]))
    assert far == pytest.approx(2 * X_MM[-1] + 20 + 16 + 7, abs=0.02)


def test_interpolate_is_linear_interpolation():
    rng = np.random.default_rng(6)
    coarse = tuple(np.arange(n, dtype=np.float32) * s for n, s in ((9, 3.0), (8, 2.0), (7, 5.0)))
    fine = tuple(
        np.linspace(a[0], a[-1] - 0.01, n, dtype=np.float32) for a, n in zip(coarse, (23, 31, 17), strict=True)
    )
    array = rng.standard_normal((7, 8, 9)).astype(np.float32)
    index = np.meshgrid(*(f / (c[1] - c[0]) for f, c in zip(fine[::-1], coarse[::-1], strict=True)), indexing="ij")
    out = interpolate(array, coarse, fine)
    assert out.shape == (17, 31, 23)
    assert out == pytest.approx(map_coordinates(array, index, order=1), abs=2e-3)


def test_interpolate_lets_the_end_go_on():
    coarse = tuple(np.arange(5, dtype=np.float32) for _ in range(3))
    ramp = np.broadcast_to(coarse[0], (5, 5, 5)).astype(np.float32)
    x = np.array([-9, 0, 1.25, 4, 40], np.float32)
    out = interpolate(ramp, coarse, (x, coarse[1], coarse[2]))
    assert out[2, 2] == pytest.approx([0, 0, 1.25, 4, 4], abs=0.002)


def test_smooth_step_goes_from_0_to_1():
    value = smooth_step(np.array([-5.0, 2, 3, 4, 9]), 2, 4)
    assert value == pytest.approx([0, 0, 0.5, 1, 1])
    assert (np.diff(smooth_step(np.linspace(0, 5, 99), 2, 4)) >= 0).all()


# The fine grid.


def test_a_painted_sphere_lies_where_its_surface_is():
    centre, radius = (3.3, -2.1, 4.6), 20.0
    c = blank()
    c.solid(ellipsoid(AT, centre, (radius,) * 3), 7)
    off, painted = distance(c, centre) - radius, c.labels == 7
    assert painted[off < -0.6].all()
    assert not painted[off > 0.6].any()
    assert painted.sum() == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)


def test_the_fine_field_is_the_coarse_one_between_its_nodes():
    c = blank(centre=(14, 22, -31))
    plane = (AT[0] - 2 * AT[1] + 3 * AT[2]).astype(np.float32)
    x, y, z = c.grid()
    assert np.allclose(c.fine(plane), x - 2 * y + 3 * z, rtol=0, atol=2e-3)
    part = slice(3, 9), slice(0, 20), slice(10, 30)
    assert np.allclose(c.fine(plane, part), c.fine(plane)[part], atol=2e-3)


def test_a_level_moves_the_surface():
    c = blank()
    c.solid(ellipsoid(AT, (0, 0, 0), (15, 15, 15)), 7, level=6.0)
    assert (c.labels == 7).sum() == pytest.approx(4 / 3 * np.pi * 21**3, rel=0.03)


def test_a_field_that_is_nowhere_paints_nothing():
    c = blank()
    assert c.around(ellipsoid(AT, (0, 0, 150), (10, 10, 10))) is None
    c.solid(ellipsoid(AT, (0, 0, 150), (10, 10, 10)), 7)
    assert (c.labels == 1).all()


def over(*labels: int) -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(labels)] = True
    return table


def test_solid_tubes_and_paint_respect_what_lies_there():
    sphere = ellipsoid(AT, (0, 0, 0), (20, 20, 20))
    for draw in (
        lambda c: c.solid(sphere, 7, over(2)),
        lambda c: c.tubes([(-20, 0, 0), (20, 0, 0)], 9, 7, over(2)),
        lambda c: c.paint(ALL, np.ones(c.labels.shape, bool), 7, over(2)),
    ):
        free, kept = blank(), blank()
        free.labels[:] = 2
        kept.labels[:, :, 30:] = 2
        draw(free)
        draw(kept)
        assert (free.labels == 7).any()
        assert (kept.labels[:, :, :30] == 1).all()
        assert np.array_equal(kept.labels[:, :, 30:], free.labels[:, :, 30:])


def test_tubes_have_their_volume():
    c = blank(40)
    c.tubes([(-25.2, 0.3, 0.4), (25.2, 0.3, 0.4)], 8, 7)
    assert (c.labels == 7).sum() == pytest.approx(np.pi * 8**2 * 50.4 + 4 / 3 * np.pi * 8**3, rel=0.03)
    cone = blank(40)
    cone.tubes([(0.3, 0.4, -25), (0.3, 0.4, 25)], [4, 10], 7)
    widths = np.sqrt((cone.labels == 7).sum(axis=(1, 2)) / np.pi)
    assert widths[[23, 40, 57]] == pytest.approx([5.0, 7.0, 9.0], abs=0.3)


def test_the_thinnest_tube_is_still_connected():
    c = blank()
    c.tubes([(-20, -11, -7), (20, 13, 9)], 0.1, 7)
    painted = c.labels == 7
    assert label(painted)[1] == 1
    assert painted.any(axis=(0, 1))[10:51].all()
    assert painted.sum() < 4 * 60  # and no thicker than needed


def test_a_part_shares_its_labels():
    c = blank()
    part = c.part(slice(20, 40))
    part.labels[:] = 9
    assert (c.labels[20:40] == 9).all()
    assert (c.labels[:20] == 1).all()
    assert np.array_equal(part.axes[2], c.axes[2][20:40])
    assert np.array_equal(part.inner_z, c.inner_z[20:40])


def test_what_breathes_is_placed_by_inner_z_and_what_does_not_is_not():
    c = blank()
    moved = Canvas(c.labels, c.axes, c.axes[2] - 10, c.scale)
    sphere = ellipsoid(AT, (2, 0, 0), (12, 12, 12))
    moved.solid(sphere, 7)
    assert np.nonzero(c.labels == 7)[0].mean() == pytest.approx(40, abs=0.2)  # voxel 30 is z = 0
    moved.solid(sphere, 8, inner=False)
    moved.tubes([(-9, 0, 0), (9, 0, 0)], 4, 9)
    assert np.nonzero(c.labels == 8)[0].mean() < 31
    assert np.nonzero(c.labels == 9)[0].mean() == pytest.approx(40, abs=0.2)


def test_a_box_holds_what_lies_between_its_corners():
    c = blank()
    where = c.box(np.array((-5.5, -100, 3.5)), np.array((5.5, 0.5, 100)))
    assert where == (slice(34, 61), slice(0, 31), slice(25, 36))


# Noise and threads.


def test_fine_noise_has_variance_one_and_is_the_same_in_any_slabs():
    c = blank(36, step=0.977)  # no part of the nodes' step: on the nodes themselves it is 1.4 times as much
    whole = fine_noise(np.random.default_rng(7), c)(slice(None))(ALL)
    assert whole.shape == c.labels.shape
    assert whole.mean() == pytest.approx(0, abs=0.05)
    assert whole.var() == pytest.approx(1, abs=0.1)
    for size in (1, 7, 30):
        of_slab, slabs = fine_noise(np.random.default_rng(7), c), []
        for k in range(0, len(whole), size):
            slabs.append(of_slab(slice(k, k + size))(ALL))
        assert np.allclose(np.concatenate(slabs), whole, atol=1e-4)
    part = slice(2, 20), slice(5, 9), slice(0, 40)
    assert np.allclose(fine_noise(np.random.default_rng(7), c)(slice(10, 40))(part), whole[10:40][part], atol=1e-4)


def test_fine_noise_is_uncorrelated_beyond_two_steps():
    n = fine_noise(np.random.default_rng(8), blank(36), 3.0)(slice(None))(ALL)
    assert (n[1:] * n[:-1]).mean() > 0.6
    assert (n[:, :, 7:] * n[:, :, :-7]).mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("slices", "size"), [(1, 8), (8, 8), (9, 8), (37, 5)])
def test_slabs_cover_every_slice_once(slices, size):
    times = np.zeros(slices, int)

    def count(slab: slice) -> None:
        assert slab.stop - slab.start <= size
        times[slab] += 1

    draw_by_slabs(count, slices, size)
    assert (times == 1).all()


def test_an_error_in_a_slab_is_not_lost():
    with pytest.raises(ZeroDivisionError):
        draw_by_slabs(lambda slab: 1 / (slab.start - 8), 20)


def test_drawing_does_not_depend_on_the_threads(monkeypatch):
    fields = ellipsoid(AT, (3, -2, 4), (22, 14, 25)), tube(AT, [(-20, 0, -20), (20, 5, 20)], [3, 9])

    def drawn(threads: int) -> np.ndarray:
        monkeypatch.setattr(shapes.os, "cpu_count", lambda: threads)
        c = blank()
        of_slab = fine_noise(np.random.default_rng(9), c)

        def slab(where: slice) -> None:
            part = c.part(where)
            part.solid(fields[0], 7)
            part.solid(fields[1], 8, over(7))
            part.tubes([(0, -20, -20), (3, 20, 22)], 4, 9)
            part.paint(ALL, of_slab(where)(ALL) > 2, 10)

        draw_by_slabs(slab, len(c.labels))
        return c.labels

    one = drawn(1)
    assert set(np.unique(one)) == {1, 7, 8, 9, 10}
    for threads in (2, 5):
        assert np.array_equal(drawn(threads), one)


def test_a_slab_is_drawn_as_it_is_in_the_whole():
    whole, cut = blank(), blank()
    field = ellipsoid(AT, (3, -2, 4), (22, 14, 25))
    whole.solid(field, 7)
    whole.tubes([(0, -20, -20), (3, 20, 22)], 4, 9)
    for k in range(0, len(cut.labels), 6):
        cut.part(slice(k, k + 6)).solid(field, 7)
        cut.part(slice(k, k + 6)).tubes([(0, -20, -20), (3, 20, 22)], 4, 9)
    assert np.array_equal(whole.labels, cut.labels)
