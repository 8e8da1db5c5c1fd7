"""Checks of the notebooks' exercises: each works the answer out from the learner's own data and says right or not yet.

A check prints one line and returns whether the answer is right; a wrong one gets a hint, never the answer. `None` is
no answer yet.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from petct_lib.imaging.intensity import Intensity
from petct_lib.metrics import statistics, voxelwise

NO_ANSWER = "No answer yet: put it where None is, and run the cell again."


def _judge(right: bool, hint: str) -> bool:
    print("Right." if right else f"Not yet. {hint}")
    return right


def _ask_again() -> bool:
    print(NO_ANSWER)
    return False


def _number(answer: float | None, expected: float, hint: str, tolerance: float = 0.02) -> bool:
    """Right within a share of the expected value."""
    if answer is None:
        return _ask_again()
    try:
        number = float(answer)
    except (TypeError, ValueError):
        return _judge(False, f"A number is asked for, not {answer!r}.")
    return _judge(math.isclose(number, expected, rel_tol=tolerance, abs_tol=1e-12), hint)


def _set(answer: Collection | None, expected: set, hint: str) -> bool:
    if answer is None:
        return _ask_again()
    if isinstance(answer, str) or not isinstance(answer, Collection):
        return _judge(False, f"A set or list is asked for, not {answer!r}.")
    items = {tuple(a) if isinstance(a, list) else a for a in answer}
    if items < expected:
        return _judge(False, "All of these are right, but some are missing.")
    if items > expected:
        return _judge(False, "All are there, and some too many.")
    return _judge(items == expected, hint)


def check_suv_max(answer: float | None, pet_suv: np.ndarray, body: np.ndarray) -> bool:
    """The largest SUV within the body; arrays (n, H, W)."""
    hint = "Take the maximum of the PET where the body's mask is True, not of a single slice."
    return _number(answer, float(pet_suv[body].max()), hint)


def check_gain(answer: float | None, real: np.ndarray, coarse: np.ndarray, image: np.ndarray, body: np.ndarray) -> bool:
    """By how many per cent the MAE over the body is less for `image` than for `coarse`; arrays (n, H, W)."""
    before, after = (voxelwise.mae(real, one, body) for one in (coarse, image))
    return _number(answer, 100 * (1 - after / before), "100 · (1 − MAE after / MAE of coarse), over the body alone.")


def check_suv(
    answer: float | None, *, activity_bq_ml: float, weight_kg: float, dose_bq: float, elapsed_s: float,
    half_life_s: float,
) -> bool:  # fmt: skip
    """SUV by body weight of an activity, the dose decayed to the time of the scan (QIBA: 1 ml of tissue weighs 1 g)."""
    left_bq = dose_bq * 2 ** (-elapsed_s / half_life_s)
    hint = "How much of the dose is left at the scan? And the weight is in grams."
    return _number(answer, activity_bq_ml * weight_kg * 1000 / left_bq, hint)


def check_leak(answer: Collection[str] | None, train: Sequence[str], test: Sequence[str]) -> bool:
    """The patients that are on both sides of a split; train, test: the patient of every slice."""
    return _set(answer, set(train) & set(test), "Which names occur in both lists?")


def check_grey_step(answer: float | None, window: Intensity) -> bool:
    """HU between two neighbouring grey levels of an 8-bit image of the window."""
    step = (window.ct_high_hu - window.ct_low_hu) / 255
    return _number(answer, step, "256 levels have 255 steps between them.", 0.01)


def check_hidden_source(answer: Collection[str] | None) -> bool:
    """Which scores show that a CT is wrong though the PET can be read back from it (steganography, Chu et al. 2017)."""
    expected = {"MAE against the patient's CT", "two-sample accuracy"}
    hint = (
        "Which of them would look at the hidden noise, or at the patient's real CT? The losses of the cycle do neither."
    )
    return _set(answer, expected, hint)


def check_worst_slice(answer: int | None, marked: np.ndarray) -> bool:
    """The slice with most marked voxels, (n, H, W) bool; of several with as many, any."""
    count = np.asarray(marked).sum(axis=(1, 2))
    if answer is None:
        return _ask_again()
    if answer not in range(len(count)):
        return _judge(False, f"A slice number from 0 to {len(count) - 1} is asked for, not {answer!r}.")
    return _judge(bool(count[int(answer)] == count.max()), "Sum the marks of every slice, and take the largest.")


def check_budget(answer: Collection[tuple[int, int]] | None, budget: int) -> bool:
    """All (steps, samples) of the midpoint method with at most `budget` evaluations a slice.

    Generator and regression take one each, a sample of n steps 2·n of the flow.
    """
    left = budget - 2
    expected = {(n, m) for n in range(1, left + 1) for m in range(1, left + 1) if 2 * n * m <= left}
    hint = "Generator and regression take one each; each sample 2 · steps of the flow."
    return _set(answer, expected, hint)


def check_sample_error(answer: float | None, error_of_mean: float, samples: int) -> bool:
    """RMSE of the mean of N independent samples of a perfect posterior: √(1 + 1/N) times that of the mean of very many.

    The real image and each sample are then draws of one distribution (Fortin 2014, eq. 15).
    """
    hint = "The mean of N samples has 1/N of their variance, and that is added to the variance of the real image."
    return _number(answer, error_of_mean * math.sqrt(1 + 1 / samples), hint)


def check_psnr(answer: float | None, rmse: float, data_range: float) -> bool:
    """PSNR in dB of an RMSE, for a range of the data."""
    expected = voxelwise.psnr(np.zeros((1, 1, 1)), np.full((1, 1, 1), rmse), data_range=data_range)
    return _number(answer, expected, "PSNR = 20 · log10(range / RMSE).", 0.005)


def check_smallest_p(answer: float | None, patients: int) -> bool:
    """The least p that a two-sided Wilcoxon signed-rank test can give over so many patients: all better by far."""
    hint = "In how many of the 2^n ways of signs do all differences point the same way? There are two such ways."
    return _number(answer, statistics.wilcoxon_p(range(1, patients + 1)), hint)


def check_flattery(answer: float | None, rows: Sequence[dict], direction: str, method: str) -> bool:
    """By how many dB the mean PSNR of the whole image lies above that of the body, from rows of `scores.csv`."""
    by_region = {
        region: [
            row["value"] for row in rows
            if (row["direction"], row["method"], row["metric"], row["region"]) == (direction, method, "psnr", region)
        ]
        for region in ("image", "body")
    }  # fmt: skip
    expected = float(np.mean(by_region["image"]) - np.mean(by_region["body"]))
    return _number(answer, expected, "Mean PSNR of the column `image`, minus that of `body`.")


def check_place(answer: Sequence[int] | None, volume: np.ndarray, reach: int = 1) -> bool:
    """A voxel (z, y, x) at the maximum of (n, H, W), or up to `reach` voxels beside it."""
    if answer is None:
        return _ask_again()
    if not isinstance(answer, Sequence) or len(answer) != volume.ndim:
        return _judge(False, f"Three numbers are asked for, (slice, row, column), not {answer!r}.")
    place = np.unravel_index(int(np.argmax(volume)), volume.shape)
    near = all(abs(int(a) - int(p)) <= reach for a, p in zip(answer, place, strict=True))
    return _judge(near, "There is a voxel with a larger value somewhere else.")
