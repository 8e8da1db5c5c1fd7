"""Rows of scores, one a score: their file, their means over patients, and their tables as text.

The unit of the statistics is the patient, never the slice.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petct_lib.common.files import atomic_write, write_json
from petct_lib.metrics.rows import SCORE_COLUMNS, Row, check_rows
from petct_lib.metrics.statistics import bootstrap_interval

TABLE_COLUMNS = {
    "mae": "MAE",
    "rmse": "RMSE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "spectrum": "spectrum",
    "two_sample_accuracy": "two-sample",
    "lpips": "LPIPS",
}
DISTRIBUTION_COLUMNS = {
    "crps": "CRPS",
    "crps_4": "CRPS 4×4",
    "crps_8": "CRPS 8×8",
    "crps_mean": "CRPS mean",
    "coverage_80": "coverage",
    "spread_skill": "spread/skill",
    "rank_correlation": "rank corr.",
}
FURTHER_COLUMNS = {
    "mu_error": "µ error %",
    "mu_bias": "µ bias %",
    "dice": "lung Dice",
    "shift_gain": "shift gain %",
    "coherence": "coherence",
    "lesions": "lesions",
    "suvmax_error": "SUVmax error",
    "suvmean_error": "SUVmean error",
    "suvpeak_error": "SUVpeak error",
    "overlap": "overlap",
    "missed": "missed",
    "invented": "invented",
}
INTERVAL_COLUMNS = ("mae", "ssim")  # the table shows the interval of these two, and has no room for more


def write_scores(rows: Sequence[Row], path: str | Path) -> None:
    """Write scores as csv, a row a score, under a temporary name first; ValueError for a repeated score."""
    check_rows(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, SCORE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": float(row["value"])} for row in rows)
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")


def read_scores(path: str | Path) -> list[Row]:
    """Scores as `write_scores` wrote them, the value as float; ValueError for other columns or a repeated score."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    check_rows(rows)
    return [{**row, "value": float(row["value"])} for row in rows]


def write_metrics(rows: Sequence[Row], path: str | Path) -> None:
    """Write `aggregate(rows)` as JSON, under a temporary name first."""
    write_json(aggregate(rows), Path(path))


def aggregate(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """{direction: {method: {region: {metric: {"mean", "ci_low", "ci_high", "n"}}}}}, with n patients.

    What is not finite is None, for JSON has no name for it. ValueError for a repeated score.
    """
    check_rows(rows)
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


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[str]]]]:
    """By direction, the title and the lines of cells, the header first; scores of the body only."""
    body = [row for row in rows if row["region"] == "body" and row["metric"] in TABLE_COLUMNS]
    units = {(row["direction"], row["metric"]): f" ({row['unit']})" for row in body if row["unit"] != "1"}
    for direction, methods in aggregate(body).items():
        counts = {  # a two-sample accuracy is one of all patients together
            cell["n"] for regions in methods.values() for name, cell in regions["body"].items()
            if name != "two_sample_accuracy"
        }  # fmt: skip
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
        masks = [" or ".join(sorted({row["mask"] for row in scores})) for scores in regions.values()]
        patients = [str(len({row["patient"] for row in scores})) for scores in regions.values()]
        lines = [["", *regions], ["mask by", *masks], ["patients", *patients]]
        for method, cells in methods.items():
            lines.append([method, *(_cell(cells.get(region, {}).get(metric), False) for region in regions)])
        tables.append(text_table(f"{direction}, {metric} ({mine[0]['unit']}) by region, mean", lines))
    return "\n\n".join(tables)


def format_further(rows: Sequence[Row]) -> str:
    """Coherence and the lesion scores by method as plain text: the mean over the patients that have the score."""
    tables = []
    for direction, methods in aggregate(rows).items():
        cells = {
            method: {**by_name.get("lung", {}), **by_name.get("lesion", {}), **by_name["body"]}
            for method, by_name in methods.items()
        }
        names = [name for name in FURTHER_COLUMNS if any(name in by_name for by_name in cells.values())]
        patients = [str(max(by_name[name]["n"] for by_name in cells.values() if name in by_name)) for name in names]
        lines = [["", *(FURTHER_COLUMNS[name] for name in names)], ["patients", *patients]]
        lines += [[method, *(_cell(by_name.get(name), False) for name in names)] for method, by_name in cells.items()]
        tables.append(text_table(f"{direction}, mean", lines))
    return "\n\n".join(tables)


def format_distribution(rows: Sequence[Row]) -> str:
    """Scores of the samples over the body as plain text, beside the MAE of methods that give one image.

    For one image the CRPS is the MAE. "-": no such score. Directions without samples are left out.
    """
    tables = []
    for direction, methods in aggregate(rows).items():
        unit = next(row["unit"] for row in rows if row["direction"] == direction and row["metric"] == "mae")
        lines = [["", f"MAE ({unit})", *DISTRIBUTION_COLUMNS.values()]]
        for method, regions in methods.items():
            cells = [regions["body"].get(name) for name in ("mae", *DISTRIBUTION_COLUMNS)]
            lines.append([method, *(_cell(cell, False) if cell else "-" for cell in cells)])
        if any("crps" in regions["body"] for regions in methods.values()):
            tables.append(text_table(f"{direction}, body, mean over patients", lines))
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
