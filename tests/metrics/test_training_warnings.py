"""Signs of collapse and invention, with values known by hand."""

import numpy as np
import pytest

from petct_lib.metrics.training_warnings import (
    CYCLE_ROWS,
    RECENT_ROWS,
    diversity,
    find_exposed_tissue,
    find_invented_lung,
    find_warnings,
    invented_percent,
    lungs_in_lungless_slices,
)

PIXEL_MM = 5.0  # so that the margin of 10 mm is two pixels
N = 20


def body_of_tissue(slices=1):
    """A square body of soft tissue (40 HU), pixels 2 to 17 of 20, in air; no lung."""
    body = np.zeros((slices, N, N), bool)
    body[:, 2:18, 2:18] = True
    return np.where(body, 40.0, -1000.0), body, np.zeros_like(body)


def test_only_tissue_two_pixels_deep_is_exposed():
    real, body, lung = body_of_tissue()
    exposed = find_exposed_tissue(real, body, lung, PIXEL_MM)
    assert exposed[0, 3:17, 3:17].all()  # its nearest pixel outside is two pixels, 10 mm, away
    assert exposed.sum() == 14 * 14


@pytest.mark.parametrize(("as_lung", "hu"), [(True, 40.0), (True, -850.0), (False, -950.0)])
def test_lung_and_gas_keep_a_margin_around_them(as_lung, hu):
    real, body, lung = body_of_tissue()
    real[0, 10, 10], lung[0, 10, 10] = hu, as_lung  # a nodule in the lung, lung, gas in the stomach
    exposed = find_exposed_tissue(real, body, lung, PIXEL_MM)
    assert not exposed[0, 9:12, 9:12].any()
    assert exposed[0, 10, 12]
    assert exposed.sum() == 14 * 14 - 9


def test_a_body_without_an_outside_is_exposed_everywhere():
    body = np.ones((1, 4, 4), bool)
    assert find_exposed_tissue(np.zeros((1, 4, 4)), body, ~body, PIXEL_MM).all()


def test_lung_like_hu_far_from_lung_are_invented():
    real, body, lung = body_of_tissue()
    fake = real.copy()
    fake[0, 10, 8:12] = -1001, -1000, -501, -500  # the middle two are lung-like
    fake[0, 2, 5] = fake[0, 0, 0] = -800  # skin, and outside: where edges blur
    assert np.argwhere(find_invented_lung(fake, real, body, lung, PIXEL_MM)).tolist() == [[0, 10, 9], [0, 10, 10]]
    assert invented_percent(fake, real, body, lung, PIXEL_MM) == pytest.approx(100 * 2 / 14**2)


def test_the_truth_invents_nothing_and_lung_everywhere_all():
    real, body, lung = body_of_tissue()
    assert invented_percent(real, real, body, lung, PIXEL_MM) == 0
    assert invented_percent(np.full_like(real, -850), real, body, lung, PIXEL_MM) == 100


def test_a_true_lung_that_moved_by_less_than_the_margin_is_not_invented():
    real, body, lung = body_of_tissue()
    lung[0, 8:12, 8:12] = True
    real[lung] = -850
    for rows, marked in ((1, 0), (2, 4)):  # by 5 and 10 mm
        fake = np.where(np.roll(lung, rows, axis=1), -850.0, 40.0)
        assert find_invented_lung(fake, real, body, lung, PIXEL_MM).sum() == marked


def test_without_exposed_tissue_there_is_no_share():
    real, body, _ = body_of_tissue()
    assert invented_percent(real, real, body, body, PIXEL_MM) is None


def test_a_lungless_slice_counts_above_1000_mm2():
    real, body, lung = body_of_tissue(4)
    lung[3, 10, 10] = True  # the last slice has lung, and does not count
    fake = real.copy()
    fake[0, 5:9, 5:15] = -850  # 40 pixels of 25 mm²: 1000 mm², not more
    fake[1, 5:9, 5:15] = fake[1, 9, 5] = -850  # 41 pixels
    fake[3, 4:16, 4:16] = -850
    assert lungs_in_lungless_slices(fake, real, body, lung, PIXEL_MM) == pytest.approx(100 / 3)


def test_slices_without_body_do_not_count_as_lungless():
    real, body, lung = body_of_tissue(2)
    body[0], lung[1, 10, 10] = False, True
    assert lungs_in_lungless_slices(real, real, body, lung, PIXEL_MM) is None


def test_stacks_that_do_not_fit_are_refused():
    real, body, lung = body_of_tissue()
    with pytest.raises(ValueError, match="one shape"):
        find_invented_lung(real[:, :5], real, body, lung, PIXEL_MM)
    with pytest.raises(ValueError, match="empty mask"):
        find_invented_lung(real, real, lung, lung, PIXEL_MM)
    with pytest.raises(ValueError, match="alike"):
        find_invented_lung(real, real, body, lung[:, :5], PIXEL_MM)
    with pytest.raises(ValueError, match="alike"):
        find_invented_lung(real, real, body, lung.astype(float), PIXEL_MM)


def test_diversity_by_hand():
    reals = np.array([[[0.0, 0.0]], [[2.0, 4.0]]])  # SD 1 and 2
    assert diversity(reals, reals) == 1
    assert diversity(np.ones((3, 1, 2)), reals) == 0
    assert diversity(np.array([[[0.0, 7.0]], [[3.0, 7.0]]]), reals) == pytest.approx(0.5)  # SD 1.5 and 0
    assert diversity(reals + 100, reals) == 1


@pytest.mark.parametrize(
    ("fakes", "reals"), [((1, 2, 2), (2, 2, 2)), ((2, 2, 2), (1, 2, 2)), ((2, 2, 2), (2, 2, 3)), ((2, 2, 2), (2, 2, 2))]
)
def test_diversity_needs_different_images_of_one_size(fakes, reals):
    with pytest.raises(ValueError, match=r"alike|two images|all the same"):
        diversity(np.zeros(fakes), np.zeros(reals))


def rows(key, values):
    return [{"step": 10 * k, key: value} for k, value in enumerate(values)]


@pytest.mark.parametrize(
    ("value", "text"), [(0.98, "has won"), (0.97, None), (0.75, None), (0.51, None), (0.5, "has given up")]
)
@pytest.mark.parametrize("kind", ["ct", "pet"])
def test_a_discriminator_that_won_or_gave_up(kind, value, text):
    result = find_warnings(rows(f"accuracy_{kind}", [0.75] * 5 + [value] * RECENT_ROWS))
    assert len(result) == (text is not None)
    if text:
        assert text in result[0]
        assert f"D_{kind} is right in {100 * value:.0f} %" in result[0]


def test_a_discriminators_mean_counts_and_few_rows_tell_nothing():
    assert find_warnings(rows("accuracy_ct", [1.0] * (RECENT_ROWS - 1))) == []
    assert find_warnings(rows("accuracy_ct", [1.0] * (RECENT_ROWS - 1) + [0.3])) == []  # a mean of 0.965


@pytest.mark.parametrize(("last", "seen"), [(0.89, False), (0.91, True), (1.5, True)])
def test_a_cycle_loss_that_does_not_fall(last, seen):
    history = rows("cycle", [1.0] * (CYCLE_ROWS - RECENT_ROWS) + [last] * RECENT_ROWS)
    assert bool(find_warnings(history)) == seen
    assert find_warnings(history[1:]) == []  # too few rows


def test_the_last_validation_counts():
    keys = ("validation_diversity_ct", "validation_diversity_pet", "validation_invented_percent")
    bad, good = dict(zip(keys, (0.4, 0.3, 2.5), strict=True)), dict(zip(keys, (0.5, 0.9, 2.0), strict=True))
    ct, pet, lung = find_warnings([{"step": 0, **good}, {"step": 10, **bad}, {"step": 20}])
    assert "CT are alike: 40 %" in ct
    assert "PET are alike: 30 %" in pet
    assert "2.5 %" in lung
    assert find_warnings([{"step": 0, **bad}, {"step": 10, **good}]) == []


def test_nothing_logged_is_no_sign():
    assert find_warnings([]) == []
    assert find_warnings([{"step": k, "D_ct": 0.2} for k in range(100)]) == []
