"""Rows of scores, one a score."""

from collections.abc import Iterable
from typing import Any

SCORE_COLUMNS = ("direction", "method", "patient", "region", "metric", "value", "unit", "mask")  # mask: its source
KEY_COLUMNS = SCORE_COLUMNS[:5]  # they name one score; a second row with the same five is an error

Row = dict[str, Any]  # one score, by SCORE_COLUMNS


def check_rows(rows: Iterable[Row]) -> None:
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
