"""Plans of lesions within their limits and apart, drawn as what they are, and followed up as RECIST's words say."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from petct_lib.phantom import anatomy, lesions
from petct_lib.phantom.anatomy import Anatomy, Build
from petct_lib.phantom.lesions import (
    COUNTS,
    EASY,
    GAP_MM,
    KINDS,
    PAINTED_OVER,
    RESPONSES,
    SITES,
    Lesion,
    draw_lesion_plan,
    follow_up,
)
from petct_lib.phantom.shapes import Canvas, sample
from petct_lib.phantom.tissues import FIRST_LESION, LABEL, LOBES, TISSUES

SCALE = np.array([1.06, 0.94, 1.02])
PATIENTS = 240
ONE = Lesion(FIRST_LESION, "lung", "solid", ("CT", "PT"), (0.3, 0.2, 0.1), 12.0, 40.0, 5.0, None, 0)


@pytest.fixture(scope="module")
def patients() -> list[Anatomy]:
    builds = [Build("M", 15.0, 1.0, True), Build("F", 22.0, 0.9, True), Build("M", 25.0, 1.1, False)]
    return [anatomy.grow_anatomy(np.random.default_rng(n), b) for n, b in enumerate(builds)]


def many(patients: list[Anatomy], difficulty: str, seed: int = 0) -> list[list[Lesion]]:
    rng = np.random.default_rng(seed)
    return [draw_lesion_plan(rng, patients[n % len(patients)], SCALE, difficulty) for n in range(PATIENTS)]


@pytest.fixture(scope="module")
def plans(patients) -> list[list[Lesion]]:
    return many(patients, "realistic")


@pytest.fixture(scope="module")
def easy(patients) -> list[list[Lesion]]:
    return many(patients, "easy")


@pytest.fixture(scope="module")
def bodies(patients) -> list[Canvas]:
    """The patients at 3 mm, without lesions."""
    out = []
    for a in patients:
        x = np.arange(-249, 250, 3, np.float32)
        z = np.arange(-190, 150, 3, np.float32)
        out.append(Canvas(np.zeros((len(z), len(x), len(x)), np.uint8), (x, x, z), z, np.ones(3)))
        anatomy.paint_anatomy(a, out[-1])
    return out


def filled(name: str = "right lower lobe", scale: tuple = (1.0, 1.0, 1.0), half_mm: int = 45) -> Canvas:
    """A block of one tissue, 1 mm in nominal space."""
    x = np.arange(-half_mm, half_mm + 1, dtype=np.float32)
    return Canvas(np.full((len(x),) * 3, LABEL[name], np.uint8), (x, x, x), x, np.array(scale))


def painted(lesion: Lesion, c: Canvas | None = None) -> Canvas:
    c = c or filled()
    lesions.paint_lesions(lesion, c)
    return c


def sphere_ml(radius: float) -> float:
    return 4 / 3 * np.pi * radius**3


# The tables.


@pytest.mark.parametrize("difficulty", ["easy", "realistic"])
def test_probabilities_sum_to_one(difficulty):
    assert sum(COUNTS[difficulty]) == pytest.approx(1)
    assert sum(SITES[difficulty].values()) == pytest.approx(1)
    assert sum(RESPONSES.values()) == pytest.approx(1)
    for kinds in (KINDS if difficulty == "realistic" else EASY).values():
        assert sum(k.share for k in kinds.values()) == pytest.approx(1)
    assert set(SITES[difficulty]) <= set(KINDS) & set(PAINTED_OVER)


@pytest.mark.parametrize(("site", "name"), [(site, name) for site, kinds in KINDS.items() for name in kinds])
def test_limits_are_ordered_and_physical(site, name):
    kind = KINDS[site][name]
    for low, high in filter(None, (kind.radius_mm, kind.hu, kind.suv, kind.core_hu, kind.core_suv, kind.core_share)):
        assert low <= high
    assert 2 <= kind.radius_mm[0] <= kind.radius_mm[1] <= 30
    assert -700 <= kind.hu[0] <= kind.hu[1] <= 1000
    assert 0 < kind.suv[0] <= kind.suv[1] <= 20
    assert (kind.core_hu is None) == (kind.core_suv is None)
    assert set(kind.seen_on) <= {"CT", "PT"}
    assert kind.seen_on


# Plans.


def test_counts_are_drawn_as_often_as_said(plans, easy):
    for result, difficulty in ((plans, "realistic"), (easy, "easy")):
        counts = Counter(len(plan) for plan in result)
        assert set(counts) == set(range(len(COUNTS[difficulty])))  # none to the most
        # Four standard deviations; a crowded patient may lose one lesion.
        assert counts[0] / PATIENTS == pytest.approx(COUNTS[difficulty][0], abs=0.11)
        mean = np.average(range(len(COUNTS[difficulty])), weights=COUNTS[difficulty])
        assert np.mean([len(plan) for plan in result]) == pytest.approx(mean, abs=0.45)


def test_every_site_and_kind_occurs_about_as_often_as_said(plans):
    result = Counter((one.site, one.kind) for plan in plans for one in plan)
    assert set(result) == {(site, name) for site, kinds in KINDS.items() for name in kinds}
    total = sum(result.values())
    for site, share in SITES["realistic"].items():
        assert sum(n for (s, _), n in result.items() if s == site) / total == pytest.approx(share, abs=0.09)


def test_some_lesions_are_seen_by_one_scanner_only(plans):
    seen = Counter(one.seen_on for plan in plans for one in plan)
    assert set(seen) == {("CT", "PT"), ("CT",), ("PT",)}
    assert seen["CT", "PT"] > 0.6 * sum(seen.values())
    for plan in plans:
        for one in plan:
            assert one.seen_on == KINDS[one.site][one.kind].seen_on
            if "CT" not in one.seen_on:
                assert one.hu == TISSUES["marrow"].hu  # as dense as what it lies in
            if "PT" not in one.seen_on:
                assert one.suv < TISSUES["blood"].suv


@pytest.mark.parametrize("difficulty", ["easy", "realistic"])
def test_values_lie_within_the_limits_of_their_kind(difficulty, plans, easy):
    table = KINDS if difficulty == "realistic" else EASY
    for one in (one for plan in (plans if difficulty == "realistic" else easy) for one in plan):
        kind = table[one.site][one.kind]
        for value, (low, high) in ((one.radius_mm, kind.radius_mm), (one.suv, kind.suv)):
            assert low - 0.01 <= value <= high + 0.01
        assert kind.hu[0] - 0.1 <= one.hu <= kind.hu[1] + 0.1
        assert (one.core is None) == (kind.core_hu is None)
        if one.core:
            assert kind.core_hu[0] - 0.01 <= one.core["hu"] <= kind.core_hu[1] + 0.01
            assert kind.core_suv[0] - 0.01 <= one.core["suv"] <= kind.core_suv[1] + 0.01
            share = one.core["radius_mm"] / one.radius_mm
            assert kind.core_share[0] - 0.01 <= share <= kind.core_share[1] + 0.01


def test_sizes_and_uptake_are_spread_over_their_limits(plans):
    solid = [one for plan in plans for one in plan if (one.site, one.kind) == ("lung", "solid")]
    low, high = KINDS["lung"]["solid"].radius_mm
    radii = [one.radius_mm for one in solid]
    assert min(radii) < 1.4 * low
    assert max(radii) > 0.75 * high
    # Log-uniform: as many below the geometric mean as above it.
    assert 0.3 < np.mean(np.array(radii) < np.sqrt(low * high)) < 0.7


def test_easy_lesions_are_solid_hot_and_large(easy):
    result = [one for plan in easy for one in plan]
    assert result
    assert {one.kind for one in result} == {"solid"}
    assert {one.site for one in result} == set(SITES["easy"])
    assert min(one.radius_mm for one in result) >= 8
    assert min(one.suv for one in result) >= 4
    assert {one.seen_on for one in result} == {("CT", "PT")}


def test_no_two_lesions_come_close(plans, easy):
    pairs = 0
    for plan in plans + easy:
        for n, one in enumerate(plan):
            for other in plan[:n]:
                apart = np.linalg.norm(np.subtract(one.centre, other.centre) / SCALE)
                assert apart - 1.3 * (one.radius_mm + other.radius_mm) > GAP_MM - 0.05
                pairs += 1
    assert pairs > 200


def test_labels_are_two_a_lesion_from_the_first_on(plans):
    for plan in plans:
        assert [one.label for one in plan] == [FIRST_LESION + 2 * n for n in range(len(plan))]


def test_lung_lesions_lie_in_the_lung_and_bone_ones_in_the_spine(patients):
    for n, a in enumerate(patients):
        rng = np.random.default_rng(n)
        result = [one for _ in range(60) for one in draw_lesion_plan(rng, a, SCALE, "realistic")]
        lung = np.array([one.centre for one in result if one.site == "lung"])
        assert (sample(a.fields["lung"], lung) < 1).all()
        bone = np.array([one.centre for one in result if one.site == "bone"])
        assert np.abs(bone[:, 0]).max() < 15
        assert ((bone[:, 1] > 20) & (bone[:, 1] < 55)).all()
        pleura = np.array([one.centre for one in result if one.site == "pleura"])
        assert np.abs(sample(a.fields["wall"], pleura) + 3).max() < 7


def test_the_same_generator_gives_the_same_plan(patients):
    first, again, other = (
        [draw_lesion_plan(rng, patients[0], SCALE, "realistic") for _ in range(10)]
        for rng in map(np.random.default_rng, (5, 5, 6))
    )
    assert first == again
    assert first != other


# Shapes.


@pytest.mark.parametrize("kind", ["solid", "spiculated"])
def test_a_lesion_has_the_volume_of_a_ball_of_its_radius(kind):
    lesions = [replace(ONE, kind=kind, shape_seed=n) for n in range(20)]
    share = [(painted(one).labels == one.label).sum() / sphere_ml(12) for one in lesions]
    assert share == pytest.approx([1.0] * 20, abs=0.03)
    assert len({int(1e6 * s) for s in share}) > 10  # and yet another shape each


def test_volume_goes_with_the_cube_of_the_radius():
    for seed in range(3):
        small, large = (
            (painted(replace(ONE, radius_mm=r, shape_seed=seed)).labels == ONE.label).sum() for r in (10.0, 20.0)
        )
        assert large / small == pytest.approx(8, rel=0.03)


def test_a_lesion_is_one_piece_around_its_centre():
    for kind in ("solid", "spiculated"):
        c = painted(replace(ONE, kind=kind, centre=(5.0, -8.0, 11.0)))
        mask = c.labels == ONE.label
        assert ndimage.label(mask)[1] == 1
        assert mask[45 + 11, 45 - 8, 45 + 5]
        assert np.subtract(ndimage.center_of_mass(mask), 45) == pytest.approx((11, -8, 5), abs=4)


def test_spikes_add_surface():
    def roughness(lesion: Lesion) -> float:
        mask = painted(lesion).labels == ONE.label
        faces = sum(np.count_nonzero(np.diff(mask, axis=n)) for n in range(3))
        return float(faces / mask.sum() ** (2 / 3))  # the same for any size of one shape

    for seed in range(6):
        plain = replace(ONE, shape_seed=seed)
        assert roughness(replace(plain, kind="spiculated")) > 1.15 * roughness(plain)


def test_a_core_lies_inside_its_rim():
    core = {"radius_mm": 7.0, "hu": 15.0, "suv": 1.0}
    for seed in range(4):
        c = painted(replace(ONE, core=core, shape_seed=seed))
        inner = c.labels == ONE.label + 1
        beside = ndimage.binary_dilation(inner) & ~inner
        assert set(np.unique(c.labels[beside])) == {ONE.label}
        whole = inner.sum() + (c.labels == ONE.label).sum()
        assert inner.sum() / whole == pytest.approx((7 / 12) ** 3, rel=0.05)
        alone = painted(replace(ONE, shape_seed=seed)).labels == ONE.label
        assert np.array_equal(alone, c.labels >= FIRST_LESION)  # the core takes nothing from outside


def test_a_lesion_is_round_in_patient_millimetres():
    c = painted(replace(ONE, radius_mm=15.0), filled(scale=(1.3, 1.0, 0.8)))
    plain = painted(replace(ONE, radius_mm=15.0))
    assert (c.labels == ONE.label).sum() == pytest.approx((plain.labels == ONE.label).sum() * 1.3 * 0.8, rel=0.03)
    size = [np.ptp(np.flatnonzero((c.labels == ONE.label).any(axis=axes))) for axes in ((0, 1), (1, 2))]
    same = [np.ptp(np.flatnonzero((plain.labels == ONE.label).any(axis=axes))) for axes in ((0, 1), (1, 2))]
    assert np.divide(size, same) == pytest.approx([1.3, 0.8], abs=0.08)


def test_the_same_seed_draws_the_same_shape_and_a_lesion_outside_paints_nothing():
    assert np.array_equal(painted(ONE).labels, painted(ONE).labels)
    assert not np.array_equal(painted(ONE).labels, painted(replace(ONE, shape_seed=1)).labels)
    away = painted(replace(ONE, centre=(0.0, 0.0, 500.0)))
    assert (away.labels == LABEL["right lower lobe"]).all()


def test_drawn_in_slabs_it_is_the_same():
    lesion = replace(ONE, kind="spiculated", core={"radius_mm": 6.0, "hu": 0.0, "suv": 1.0})
    whole, cut = painted(lesion), filled()
    for k in range(0, len(cut.labels), 9):
        lesions.paint_lesions(lesion, cut.part(slice(k, k + 9)))
    assert np.array_equal(whole.labels, cut.labels)


@pytest.mark.parametrize("site", PAINTED_OVER)
def test_a_lesion_takes_the_tissues_of_its_site_only(site):
    for name in TISSUES:
        c = painted(replace(ONE, site=site), filled(name, half_mm=16))
        assert (c.labels >= FIRST_LESION).any() == PAINTED_OVER[site][LABEL[name]], name
    assert not PAINTED_OVER[site][[LABEL["air"], LABEL["skin"], LABEL["cord"]]].any()
    assert PAINTED_OVER[site].any()


def test_planned_lesions_are_all_painted_and_none_into_another(plans, bodies):
    for n, plan in enumerate(plans[:45]):
        c = bodies[n % len(bodies)]
        bare = c.labels.copy()
        drawn = Canvas(bare.copy(), c.axes, c.inner_z, c.scale)
        for one in plan:
            before = drawn.labels.copy()
            lesions.paint_lesions(one, drawn)
            new = drawn.labels != before
            assert PAINTED_OVER[one.site][bare[new]].all()
            volume = new.sum() * 27
            if one.radius_mm > 5:
                assert 0.3 < volume / sphere_ml(one.radius_mm) < 3.5, one
            else:
                assert volume > 0, one
        assert (drawn.labels[bare != drawn.labels] >= FIRST_LESION).all()


def test_lobes_are_what_most_lung_lesions_take(plans, bodies):
    taken: Counter = Counter()
    for n, plan in enumerate(plans[:45]):
        c = bodies[n % len(bodies)]
        for one in (one for one in plan if one.site == "lung"):
            drawn = Canvas(c.labels.copy(), c.axes, c.inner_z, c.scale)
            lesions.paint_lesions(one, drawn)
            taken.update(c.labels[drawn.labels != c.labels].tolist())
    assert sum(taken[LABEL[name]] for name in LOBES) > 0.9 * taken.total()


# Follow-up.


@pytest.fixture(scope="module")
def followed(plans) -> dict[str, list[tuple[list[Lesion], list[Lesion]]]]:
    """By response: before and after."""
    out: dict = {name: [] for name in RESPONSES}
    rng = np.random.default_rng(11)
    for _ in range(3):
        for plan in plans:
            response, after = follow_up(rng, plan)
            out[response].append((plan, after))
    return out


def test_responses_come_as_often_as_said(followed):
    total = sum(len(cases) for cases in followed.values())
    for name, share in RESPONSES.items():
        assert len(followed[name]) / total == pytest.approx(share, abs=0.07)


def malignant(plan: list[Lesion]) -> list[Lesion]:
    return [one for one in plan if "PT" in one.seen_on]


def test_benign_lesions_stay_as_they_were(followed):
    stayed = 0
    for cases in followed.values():
        for before, after in cases:
            benign = [one for one in before if "PT" not in one.seen_on]
            assert [one for one in after if "PT" not in one.seen_on] == benign
            stayed += len(benign)
    assert stayed > 50


def test_a_complete_response_leaves_only_benign_ones(followed):
    assert any(malignant(before) for before, _ in followed["complete"])
    assert not any(malignant(after) for _, after in followed["complete"])


@pytest.mark.parametrize(
    ("response", "size", "uptake"),
    [
        ("partial", (0.45, 0.70), (0.3, 0.6)),
        ("stable", (0.9, 1.1), (0.8, 1.2)),
        ("progression", (1.2, 1.5), (1.0, 1.5)),
    ],
)
def test_each_response_changes_size_and_uptake_as_it_says(followed, response, size, uptake):
    sizes, heats = [], []
    for before, after in followed[response]:
        assert len(before) == len(after)
        rows = list(zip(malignant(before), malignant(after), strict=True))
        grown = [new.radius_mm / old.radius_mm for old, new in rows]
        for (old, new), ratio in zip(rows, grown, strict=True):
            assert size[0] * 0.92 - 0.01 < ratio < size[1] * 1.08 + 0.01
            assert uptake[0] * 0.85 - 0.01 < new.suv / old.suv < uptake[1] * 1.15 + 0.01
            heats.append(new.suv / old.suv)
            if old.core:
                assert new.core["radius_mm"] / old.core["radius_mm"] == pytest.approx(ratio, rel=0.01)
                assert new.core["suv"] / old.core["suv"] == pytest.approx(new.suv / old.suv, rel=0.03)
        if len(grown) > 1:
            assert max(grown) / min(grown) < 1.08 / 0.92 + 0.02  # one patient's lesions respond alike
        sizes += grown
    assert np.mean(sizes) == pytest.approx(np.mean(size), rel=0.06)
    assert np.mean(heats) == pytest.approx(np.mean(uptake), rel=0.1)


def test_what_remains_keeps_its_place_label_and_shape(followed):
    for cases in followed.values():
        for before, after in cases:
            old = {one.label: one for one in before}
            for new in after:
                same = ("label", "site", "kind", "seen_on", "centre", "hu", "shape_seed")
                assert all(getattr(new, name) == getattr(old[new.label], name) for name in same)


def test_a_follow_up_repeats_by_its_generator(plans):
    first, again = ([follow_up(rng, plan) for plan in plans] for rng in map(np.random.default_rng, (3, 3)))
    assert first == again
    assert follow_up(np.random.default_rng(0), [])[1] == []
