"""Each check takes the right answer, refuses wrong ones without giving the answer away, and waits for one."""

import numpy as np
import pytest

from petct_lib.imaging.intensity import Intensity
from petct_lib.teaching import exercises

RNG = np.random.default_rng(0)
REAL = RNG.uniform(0, 5, (3, 8, 8))
BODY = np.zeros(REAL.shape, bool)
BODY[:, 2:6, 2:6] = True
MARKED = np.zeros((4, 8, 8), bool)
MARKED[2, :3] = True
ROWS = [
    {"direction": "pet2ct", "method": "mean", "metric": metric, "region": region, "value": value}
    for metric, region, value in (
        ("psnr", "body", 30.0), ("psnr", "body", 32.0), ("psnr", "image", 37.0), ("psnr", "image", 36.0),
        ("mae", "image", 40.0), ("mae", "body", 80.0),
    )
]  # fmt: skip
DOSE = {"activity_bq_ml": 5000, "weight_kg": 70, "dose_bq": 300e6, "elapsed_s": 6588.0, "half_life_s": 6588.0}
CASES = {  # check: (its data, the right answer, wrong ones)
    "check_suv_max": ((REAL, BODY), REAL[BODY].max(), (REAL.max() + 1, 0.0)),
    "check_gain": ((REAL, REAL + 2.0, REAL + 0.5, BODY), 75.0, (0.75, 25.0)),
    "check_leak": ((["a", "a", "b"], ["b", "c", "d"]), {"b"}, ({"a"}, {"b", "c"}, set())),
    "check_grey_step": ((Intensity(-1024, 1526, 15.0),), 10.0, (9.96 * 2, 2550 / 250)),
    "check_hidden_source": ((), ["two-sample accuracy", "MAE against the patient's CT"], ([], ["cycle loss"])),
    "check_worst_slice": ((MARKED,), 2, (0, 4, -1)),
    "check_budget": ((6,), {(1, 1), (1, 2), (2, 1)}, ({(1, 1)}, {(1, 1), (1, 2), (2, 1), (2, 2)})),
    "check_sample_error": ((60.0, 1), 60 * 2**0.5, (60.0, 120.0)),
    "check_psnr": ((50.0, 4024.0), 38.11, (32.1, 76.2)),
    "check_smallest_p": ((5,), 0.0625, (0.05, 0.03125)),
    "check_flattery": ((ROWS, "pet2ct", "mean"), 5.5, (-5.5, 36.5)),
    "check_place": ((REAL,), tuple(int(i) for i in np.unravel_index(REAL.argmax(), REAL.shape)), ((0, 0, 0), (1, 2))),
}  # fmt: skip


def test_every_check_is_tried_here():
    there = {name for name in vars(exercises) if name.startswith("check_")}
    assert there == {*CASES, "check_suv"}


@pytest.mark.parametrize("name", CASES)
def test_a_check_knows_right_from_wrong_and_gives_nothing_away(name, capsys):
    check, (data, right, wrong) = getattr(exercises, name), CASES[name]
    assert check(right, *data)
    assert capsys.readouterr().out == "Right.\n"
    for answer in wrong:
        assert not check(answer, *data), answer
        text = capsys.readouterr().out
        assert text.startswith("Not yet. "), text
        assert str(right) not in text
    assert not check(None, *data)
    assert capsys.readouterr().out == exercises.NO_ANSWER + "\n"
    for nonsense in ("nonsense", 3 + 4j, object()):
        assert not check(nonsense, *data)


def test_suv_is_half_of_the_dose_after_a_half_life(capsys):
    assert exercises.check_suv(5000 * 70_000 / 150e6, **DOSE)
    assert not exercises.check_suv(5000 * 70_000 / 300e6, **DOSE), "without decay"
    assert not exercises.check_suv(5000 * 70 / 150e6, **DOSE), "in kilograms"
    assert not exercises.check_suv(None, **DOSE)


def test_missing_and_superfluous_answers_are_told_apart(capsys):
    exercises.check_leak(["x"], ["x", "y"], ["x", "y"])
    assert "some are missing" in capsys.readouterr().out
    exercises.check_leak(["x", "y", "z"], ["x", "y"], ["x", "y"])
    assert "too many" in capsys.readouterr().out
    assert exercises.check_budget([[1, 1]], 4), "pairs may be lists"
    assert exercises.check_budget([], 3), "generator and regression alone are too many"


def test_a_place_beside_the_maximum_is_near_enough():
    volume = np.zeros((5, 5, 5))
    volume[2, 2, 2] = 1
    assert exercises.check_place((1, 3, 2), volume)
    assert not exercises.check_place((0, 2, 2), volume)


def test_the_error_of_the_mean_of_a_few_perfect_samples():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(5, 20000))  # the real value and four samples of one distribution
    error = np.sqrt(np.mean((draws[1:].mean(axis=0) - draws[0]) ** 2))
    assert exercises.check_sample_error(error, 1.0, 4), "within a share of 2 %"
    assert not exercises.check_sample_error(error, 1.0, 1)
