"""Benign uptake: as often as said, as hot as said, where it belongs and no larger than it is in patients."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from petct_lib.phantom import anatomy, benign_uptake
from petct_lib.phantom.anatomy import Anatomy, Build
from petct_lib.phantom.benign_uptake import FREQUENCY, OVER, SHAPES, Uptake
from petct_lib.phantom.shapes import X_MM, Y_MM, Z_MM, Canvas
from petct_lib.phantom.tissues import LABEL, TISSUES

MM = 3.0
VOLUMES_ML = {  # in all, of what the field shows
    "brown fat": (10, 300),
    "active muscle": (3, 300),
    "reactive node": (0.2, 30),
    "inflamed lung": (3, 400),
    "inflamed joint": (5, 120),
}


@pytest.fixture(scope="module")
def patients() -> list[tuple[Anatomy, Canvas]]:
    """Anatomies and their labels, arms up and down."""
    out = []
    for n, build in enumerate((Build("M", 18.0, 1.0, True), Build("F", 24.0, 0.9, False))):
        a = anatomy.grow_anatomy(np.random.default_rng(n), build)
        x, z = np.arange(-249, 250, MM, np.float32), np.arange(-150, 160, MM, np.float32)
        c = Canvas(np.zeros((len(z), len(x), len(x)), np.uint8), (x, x, z), z, np.ones(3))
        anatomy.paint_anatomy(a, c)
        out.append((a, c))
    return out


def drawn(what: str, field: np.ndarray, c: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """What an uptake changed, (z, y, x), and all labels after it."""
    after = Canvas(c.labels.copy(), c.axes, c.inner_z, c.scale)
    benign_uptake.paint_benign_uptake(Uptake(what, 3.0, field), after)
    return after.labels != c.labels, after.labels


def test_every_uptake_has_a_tissue_and_all_but_the_oesophagus_a_shape():
    assert set(FREQUENCY) <= set(TISSUES)
    assert set(SHAPES) == set(OVER) == set(FREQUENCY) - {"oesophagus"}
    for share, (low, high) in FREQUENCY.values():
        assert 0 < share < 0.3
        assert 1 < low < high < 12


def test_frequencies_and_uptake_are_as_said(patients, monkeypatch):
    for what in SHAPES:  # the shapes cost most of the time and none of the luck that is counted
        monkeypatch.setitem(SHAPES, what, lambda rng, a: np.zeros(1))
    rng, draws = np.random.default_rng(0), 6000
    result: Counter = Counter()
    suvs, together = defaultdict(list), []
    for _ in range(draws):
        plan = benign_uptake.draw_benign_plan(rng, patients[0][0])
        together.append(len(plan))
        assert len({u.what for u in plan}) == len(plan)
        for u in plan:
            result[u.what] += 1
            suvs[u.what].append(u.suv)
    for what, (share, (low, high)) in FREQUENCY.items():
        assert result[what] / draws == pytest.approx(share, abs=0.02)  # four standard deviations
        assert low - 0.01 <= min(suvs[what]) < 1.05 * low
        assert 0.95 * high < max(suvs[what]) <= high + 0.01
        assert np.median(suvs[what]) == pytest.approx(np.sqrt(low * high), rel=0.08)  # log-uniform
    assert np.mean(np.array(together) <= 1) > 0.8  # in most there is none or one


def test_a_plan_repeats_by_its_generator_and_its_fields_fit_the_grid(patients):
    a, seen = patients[0][0], set()
    for seed in range(40):
        plan, again = (benign_uptake.draw_benign_plan(np.random.default_rng(seed), a) for _ in range(2))
        assert [(u.what, u.suv) for u in plan] == [(u.what, u.suv) for u in again]
        for one, same in zip(plan, again, strict=True):
            seen.add(one.what)
            assert (one.field is None) == (one.what == "oesophagus")
            if one.field is not None:
                assert np.array_equal(one.field, same.field)
                assert one.field.shape == (len(Z_MM), len(Y_MM), len(X_MM))
                assert one.field.dtype == np.float32
    assert len(seen) >= 4


def test_the_oesophagus_is_painted_by_the_anatomy(patients):
    _, c = patients[0]
    after = Canvas(c.labels.copy(), c.axes, c.inner_z, c.scale)
    benign_uptake.paint_benign_uptake(Uptake("oesophagus", 3.0, None), after)
    assert np.array_equal(after.labels, c.labels)
    assert (c.labels == LABEL["oesophagus"]).any()


@pytest.mark.parametrize("what", SHAPES)
def test_each_paints_its_own_tissues_and_a_sensible_volume(what, patients):
    low, high = VOLUMES_ML[what]
    for a, c in patients:
        for seed in range(8):
            changed, after = drawn(what, SHAPES[what](np.random.default_rng(seed), a).astype(np.float32), c)
            assert (after[changed] == LABEL[what]).all()
            assert OVER[what][c.labels[changed]].all()
            assert low < changed.sum() * MM**3 / 1000 < high, (what, seed)


def x_of(mask: np.ndarray, c: Canvas) -> np.ndarray:
    return c.axes[0][np.nonzero(mask)[2]]


def test_brown_fat_and_nodes_are_on_both_sides_and_the_rest_on_one(patients):
    a, c = patients[0]
    sides = defaultdict(set)
    for what, shape in SHAPES.items():
        for seed in range(10):
            changed, _ = drawn(what, shape(np.random.default_rng(seed), a).astype(np.float32), c)
            x = x_of(changed, c)
            left = (x > 0).mean()
            if what in ("brown fat", "reactive node"):
                assert (x < 0).any()
                assert (x > 0).any()
            else:
                assert left in (0, 1)
                sides[what].add(left)
    assert all(result == {0, 1} for result in sides.values())
    assert len(sides) == 3


def test_the_joint_is_at_the_shoulder_and_the_nodes_at_the_hila(patients):
    for a, c in patients:
        rng = np.random.default_rng(1)
        joint, _ = drawn("inflamed joint", SHAPES["inflamed joint"](rng, a).astype(np.float32), c)
        assert np.abs(x_of(joint, c)).mean() == pytest.approx(152, abs=12)
        assert c.axes[2][np.nonzero(joint)[0]].mean() == pytest.approx(96, abs=12)
        nodes, _ = drawn("reactive node", SHAPES["reactive node"](rng, a).astype(np.float32), c)
        assert np.abs(x_of(nodes, c)).max() < 75
        assert np.abs(c.axes[2][np.nonzero(nodes)[0]]).max() < 35
