"""Scores of synthetic images against real ones: by patient, then mean, interval and paired test over patients.

A mask is used for scoring only: no model ever sees one. The unit of the statistics is the patient, never the slice.
Arrays are a patient's stack (n, H, W) in physical units (HU or SUV); a mask is bool of that shape, or None for all.
"""

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.signal.windows import hann
from skimage.metrics import structural_similarity

from petct_lib.files import replacing, write_json

SCORE_COLUMNS = ("direction", "method", "patient", "region", "metric", "value", "unit", "mask")  # mask: its source
KEY_COLUMNS = SCORE_COLUMNS[:5]  # they name one score; a second row with the same five is an error
TABLE_COLUMNS = {"mae": "MAE", "rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM", "spectrum": "spectrum", "lpips": "LPIPS"}
FURTHER_COLUMNS = {
    "coherence": "coherence", "lesions": "lesions", "suvmax_error": "SUVmax error", "suvmean_error": "SUVmean error",
    "missed": "missed", "invented": "invented",
}  # fmt: skip
INTERVAL_COLUMNS = ("mae", "ssim")  # the table shows the interval of these two, and has no room for more
WANG_2004 = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # SSIM as it was published
POWER_FLOOR = 1e-12  # of the real images' strongest ring; power below it is the rounding of float32

Row = dict[str, Any]  # one score, by SCORE_COLUMNS


def checked(
    real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both stacks (n, H, W) as float64 and the mask as bool; ValueError if they cannot be scored."""
    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    if real.shape != synthetic.shape or real.ndim != 3:
        raise ValueError(f"real {real.shape} and synthetic {synthetic.shape} must have one shape (n, H, W)")
    mask = np.ones(real.shape, bool) if mask is None else np.asarray(mask)
    if mask.shape != real.shape or mask.dtype != bool:
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be bool, of the images' shape {real.shape}")
    if not mask.any():
        raise ValueError(f"empty mask: 0 of {mask.size} voxels to score")
    for name, image in (("real", real), ("synthetic", synthetic)):
        if bad := int(np.count_nonzero(~np.isfinite(image))):
            raise ValueError(f"{name} has {bad} non-finite values of {image.size}")
    return real, synthetic, mask


def check_range(name: str, low: float, high: float) -> None:
    """ValueError unless low < high, both finite."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must be finite and increasing, not {low} to {high}")


def mae(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error over the mask, in the images' unit.

    Stacks (n, H, W). ValueError for unequal shapes, an empty or non-bool mask, and non-finite values.
    """
    real, synthetic, mask = checked(real, synthetic, mask)
    return float(np.abs(real - synthetic)[mask].mean())


def mse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error over the mask, in the images' unit squared. Shapes and errors as for `mae`."""
    real, synthetic, mask = checked(real, synthetic, mask)
    return float(np.square(real - synthetic)[mask].mean())


def rmse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root of the mean squared error over the mask, in the images' unit. Shapes and errors as for `mae`."""
    return math.sqrt(mse(real, synthetic, mask))


def psnr(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio over the mask in dB, 10 log10(data_range² / MSE); inf for identical images.

    `data_range` is the width of the fixed clip, one for all patients, never an image's own maximum; it must be
    above 0. Shapes and errors as for `mae`.
    """
    check_range("0 to data_range", 0.0, data_range)
    error = mse(real, synthetic, mask)
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Structural similarity of slices (Wang et al. 2004: Gaussian window, sigma 1.5, 11x11); 1 for identical images.

    Each slice's map is averaged over the mask, the voxels of all slices pooled. Without a mask the 5 voxels at the
    border count too, which skimage's own mean leaves out. `data_range` as for `psnr`, shapes and errors as for
    `mae`; slices smaller than 11x11 are a ValueError.
    """
    check_range("0 to data_range", 0.0, data_range)
    real, synthetic, mask = checked(real, synthetic, mask)
    total = 0.0
    for i in np.flatnonzero(mask.any(axis=(1, 2))):
        _, local = structural_similarity(real[i], synthetic[i], data_range=data_range, full=True, **WANG_2004)  # (H, W)
        total += local[mask[i]].sum()
    return float(total / np.count_nonzero(mask))


def radial_power_spectrum(stack: np.ndarray) -> np.ndarray:
    """Power by spatial frequency, (n, H, W) -> (rings,), unit squared; ring r is r / min(H, W) cycles per voxel.

    The mean over slices of |FFT2|² under a Hann window, averaged in rings one step of frequency wide. They go on from
    Nyquist (r = min(H, W) // 2) to the corner of the plane, for that is where a checkerboard is. Each slice's mean is
    taken off first: the window would leak it into ring 1. Errors as for `mae`.
    """
    stack, _, _ = checked(stack, stack)
    n, height, width = stack.shape
    window = np.outer(hann(height, sym=False), hann(width, sym=False))  # (H, W)
    power = sum(np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 for image in stack) / n  # (H, W)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))  # (H, W), cycles per voxel
    ring = np.rint(frequency * min(height, width)).astype(int)
    return np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())


def spectrum_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Root mean square, over the rings but ring 0, of the difference of natural log power; no unit, 0 is perfect.

    It sees what errors between voxels reward: blur (high frequencies lack power) and checkerboards (a few have too
    much). It cannot tell structure from noise: noise of the right strength buys it, so read it beside MAE. Shapes
    and errors as for `mae`, and ValueError for constant real images. Power under the floor counts as the floor.
    """
    real, synthetic, _ = checked(real, synthetic)
    if not np.ptp(real, axis=(1, 2)).any():
        raise ValueError(f"real {real.shape} has constant slices only: no spectrum to compare with")
    power_real, power_synthetic = radial_power_spectrum(real)[1:], radial_power_spectrum(synthetic)[1:]
    floor = POWER_FLOOR * power_real.max()
    difference = np.log(np.maximum(power_real, floor)) - np.log(np.maximum(power_synthetic, floor))
    return float(np.sqrt(np.mean(difference**2)))


def score_patient(
    real: np.ndarray,
    synthetic: np.ndarray,
    mask: np.ndarray,
    *,
    data_range: float,
    unit: str,
    clip: tuple[float, float],
    source: str,
    lpips: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> list[Row]:
    """Scores of one patient's stack (n, H, W) in the body: rows of region, metric, value, unit and mask (`source`).

    Both stacks are clipped to `clip` (low, high). `spectrum` and `lpips` (of two stacks, see `perceptual.lpips`) need
    whole slices: they take those with some body, everything outside it set to low in both stacks, so that air and
    couch do not count. The mask is used for scoring only. Errors as for `mae`; no mask is one too.
    """
    if mask is None:
        raise ValueError("no mask: scores of the body would be swollen by air and couch")
    real, synthetic, mask = checked(real, synthetic, mask)
    check_range("clip", *clip)
    real, synthetic = np.clip(real, *clip), np.clip(synthetic, *clip)
    slices = mask.any(axis=(1, 2))
    real_body, synthetic_body = (np.where(mask, stack, clip[0])[slices] for stack in (real, synthetic))
    scores = [
        *_voxel_scores(real, synthetic, mask, data_range, unit),
        ("ssim", ssim(real, synthetic, data_range=data_range, mask=mask), "1"),
        ("spectrum", spectrum_distance(real_body, synthetic_body), "1"),
    ]
    if lpips is not None:
        scores.append(("lpips", lpips(real_body, synthetic_body), "1"))
    return [_row("body", source, *score) for score in scores]


def score_region(
    real: np.ndarray,
    synthetic: np.ndarray,
    mask: np.ndarray,
    *,
    region: str,
    data_range: float,
    unit: str,
    clip: tuple[float, float],
    source: str,
) -> list[Row]:
    """Scores of one patient's stack in a region other than the body: those that are sums over voxels.

    SSIM, spectrum and LPIPS look at neighbourhoods, which in a lesion or a rib are mostly something else. No rows for
    an empty mask: a patient may have no lung in the field. Shapes, clip and errors as for `score_patient`.
    """
    if not np.any(mask):
        return []
    real, synthetic, mask = checked(real, synthetic, mask)
    check_range("clip", *clip)
    real, synthetic = np.clip(real, *clip), np.clip(synthetic, *clip)
    return [_row(region, source, *score) for score in _voxel_scores(real, synthetic, mask, data_range, unit)]


def _voxel_scores(
    real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, data_range: float, unit: str
) -> list[tuple[str, float, str]]:
    return [
        ("mae", mae(real, synthetic, mask), unit),
        ("mse", mse(real, synthetic, mask), f"{unit}^2"),
        ("rmse", rmse(real, synthetic, mask), unit),
        ("psnr", psnr(real, synthetic, data_range=data_range, mask=mask), "dB"),
    ]


def _row(region: str, source: str, metric: str, value: float, unit: str) -> Row:
    return {"region": region, "metric": metric, "value": value, "unit": unit, "mask": source}


def _check_rows(rows: Iterable[Row]) -> None:
    """ValueError for a row with other columns, a repeated score, or one metric in two units."""
    seen: set[tuple[str, ...]] = set()
    units: dict[tuple[str, ...], str] = {}
    for row in rows:
        if set(row) != set(SCORE_COLUMNS) or None in row.values():
            raise ValueError(f"a row has {row}, not one value for each of {SCORE_COLUMNS}")
        key = tuple(row[column] for column in KEY_COLUMNS)
        if key in seen:
            raise ValueError(f"repeated score: {dict(zip(KEY_COLUMNS, key, strict=True))}")
        seen.add(key)
        quantity = (row["direction"], row["region"], row["metric"])
        if units.setdefault(quantity, row["unit"]) != row["unit"]:
            raise ValueError(f"{quantity} is in {units[quantity]} and in {row['unit']}")


def write_scores(rows: Sequence[Row], path: str | Path) -> None:
    """Write scores as csv, a row a score, under a temporary name first; ValueError for a repeated score."""
    _check_rows(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, SCORE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": float(row["value"])} for row in rows)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")


def read_scores(path: str | Path) -> list[Row]:
    """Scores as `write_scores` wrote them, the value as float; ValueError for other columns or a repeated score."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    _check_rows(rows)
    return [{**row, "value": float(row["value"])} for row in rows]


def write_metrics(rows: Sequence[Row], path: str | Path) -> None:
    """Write `aggregate(rows)` as JSON, under a temporary name first."""
    write_json(aggregate(rows), Path(path))


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean over patients by 9999 resamples: BCa (Efron 1987), or percentile where BCa is undefined.

    (nan, nan) for fewer than 2 patients or non-finite values.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa is undefined, which is handled here
            rng = np.random.default_rng(seed)
            result = stats.bootstrap((values,), np.mean, confidence_level=level, method=method, rng=rng)
        low, high = map(float, result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def aggregate(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """{direction: {method: {region: {metric: {"mean", "ci_low", "ci_high", "n"}}}}}, with n patients.

    What is not finite is None, for JSON has no name for it. ValueError for a repeated score.
    """
    _check_rows(rows)
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in ("direction", "method", "region", "metric")), []).append(row["value"])
    result: dict[str, Any] = {}
    for (direction, method, region, metric), values in groups.items():
        low, high = bootstrap_interval(values, seed)
        numbers = {"mean": float(np.mean(values)), "ci_low": low, "ci_high": high}
        cell = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        by_region = result.setdefault(direction, {}).setdefault(method, {})
        by_region.setdefault(region, {})[metric] = {**cell, "n": len(values)}
    return result


def paired_test(
    rows: Sequence[Row], direction: str, method_a: str, method_b: str, metric: str, region: str = "body"
) -> dict[str, float | int | None]:
    """Wilcoxon's signed-rank test (1945), two-sided, of a minus b over the n patients that both methods have.

    Returns {"mean_difference", "p_value", "n"}. With n patients p cannot be below 2^(1-n): 5 patients never reach
    0.05 (0.0625), 6 do (0.031). It is exact up to 50 patients, up to 13 if differences are 0 or tied. The p-value is
    None with fewer than 2 patients, all-zero or non-finite differences. ValueError for a repeated score.
    """
    _check_rows(rows)
    values: dict[str, dict[str, float]] = {method_a: {}, method_b: {}}
    for row in rows:
        if row["method"] in values and (row["direction"], row["metric"], row["region"]) == (direction, metric, region):
            values[row["method"]][row["patient"]] = row["value"]
    a, b = values[method_a], values[method_b]
    both = sorted(a.keys() & b.keys())
    difference = np.array([a[patient] - b[patient] for patient in both])
    finite = len(both) > 0 and bool(np.isfinite(difference).all())
    testable = finite and len(both) >= 2 and bool(difference.any())
    return {
        "mean_difference": float(difference.mean()) if finite else None,
        "p_value": float(stats.wilcoxon(difference).pvalue) if testable else None,
        "n": len(both),
    }


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[str]]]]:
    """By direction, the title and the lines of cells, the header first; scores of the body only."""
    body = [row for row in rows if row["region"] == "body" and row["metric"] in TABLE_COLUMNS]
    units = {(row["direction"], row["metric"]): f" ({row['unit']})" for row in body if row["unit"] != "1"}
    for direction, methods in aggregate(body).items():
        counts = {cell["n"] for regions in methods.values() for cell in regions["body"].values()}
        n = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        header = ["method", *(label + units.get((direction, name), "") for name, label in TABLE_COLUMNS.items())]
        lines = [
            [method, *(_cell(regions["body"].get(name), name in INTERVAL_COLUMNS) for name in TABLE_COLUMNS)]
            for method, regions in methods.items()
        ]
        yield f"{direction}, body, n = {n} patients, mean [95 % interval]", [header, *lines]


def format_regions(rows: Sequence[Row], metric: str = "mae") -> str:
    """One score by method and region as plain text: the mean over patients, how many, and where the masks come from."""
    tables = []
    for direction, methods in aggregate(rows).items():
        mine = [row for row in rows if row["direction"] == direction and row["metric"] == metric]
        regions: dict[str, list[Row]] = {}
        for row in mine:
            regions.setdefault(row["region"], []).append(row)
        masks = [" or ".join(sorted({row["mask"] for row in of})) for of in regions.values()]
        patients = [str(len({row["patient"] for row in of})) for of in regions.values()]
        lines = [["", *regions], ["mask by", *masks], ["patients", *patients]]
        for method, cells in methods.items():
            lines.append([method, *(_cell(cells.get(region, {}).get(metric), False) for region in regions)])
        tables.append(text_table(f"{direction}, {metric} ({mine[0]['unit']}) by region, mean", lines))
    return "\n\n".join(tables)


def format_further(rows: Sequence[Row]) -> str:
    """Coherence and the lesion scores by method as plain text: the mean over the patients that have the score."""
    tables = []
    for direction, methods in aggregate(rows).items():
        cells = {method: {**of.get("lesion", {}), **of["body"]} for method, of in methods.items()}
        names = [name for name in FURTHER_COLUMNS if any(name in of for of in cells.values())]
        patients = [str(max(of[name]["n"] for of in cells.values() if name in of)) for name in names]
        lines = [["", *(FURTHER_COLUMNS[name] for name in names)], ["patients", *patients]]
        lines += [[method, *(_cell(of.get(name), False) for name in names)] for method, of in cells.items()]
        tables.append(text_table(f"{direction}, mean", lines))
    return "\n\n".join(tables)


def text_table(title: str, lines: list[list[str]]) -> str:
    """The title above columns as wide as their widest cell; the first of `lines` is their head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([title, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])


def _cell(score: Row | None, with_interval: bool) -> str:
    if score is None:
        return "n/a"
    if score["mean"] is None:
        return "not finite"
    show_interval = with_interval and score["ci_low"] is not None
    interval = f" [{score['ci_low']:.4g}, {score['ci_high']:.4g}]" if show_interval else ""
    return f"{score['mean']:.4g}{interval}"


def format_table(rows: Sequence[Row]) -> str:
    """Scores of the body as plain text for a terminal: a table a direction, a line a method in first-seen order."""
    return "\n\n".join(text_table(title, lines) for title, lines in _tables(rows))
