"""Methods compared over the same patients: paired differences, their intervals, tests and effect sizes.

`python -m petct_lib compare runs/a runs/b …`: runs that differ in their seeds alone are averaged patient by patient,
for seeds are no patients and must not swell n; those of other settings stand beside each other as other methods.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petct_lib import InputError
from petct_lib.common.files import read_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.splits import read_splits
from petct_lib.evaluation.tables import read_scores, text_table
from petct_lib.metrics.rows import KEY_COLUMNS, Row, check_rows
from petct_lib.metrics.statistics import bootstrap_interval, holm, rank_biserial, wilcoxon_p

EVERYONE = "all"  # patient of a score of all test patients together, such as the two-sample accuracy
TRAINED_BY = ("02_cyclegan_training", "03_diffusion_refinement", "04_evaluation")  # whose `seed` is no other setting


@dataclass(frozen=True)
class Test:
    """A method against the reference, over the n patients that both have: method − reference."""

    method: str
    difference: float  # mean over patients
    low: float  # of its 95 % bootstrap interval
    high: float
    p: float | None  # Wilcoxon's
    p_holm: float | None  # adjusted for the other methods tested against the same reference
    effect: float | None  # rank-biserial correlation
    n: int


@dataclass(frozen=True)
class Scored:
    """A finished run's scores; patients are numbers in the order of the input, which runs of the same data share."""

    name: str
    rows: list[Row]
    settings: str  # all parameters but the seeds of the trainings, and the commit, as JSON
    fingerprint: str
    test: tuple[int, ...]
    seeds: tuple[int | None, ...] = ()  # of the trainings


def values_by_patient(
    rows: Sequence[Row], direction: str, metric: str, region: str = "body"
) -> dict[str, dict[str, float]]:
    """{method: {patient: value}} of one score; of a score of all patients together, the patient is EVERYONE."""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row["direction"], row["metric"], row["region"]) == (direction, metric, region):
            values.setdefault(row["method"], {})[row["patient"]] = row["value"]
    return values


def paired_tests(
    rows: Sequence[Row], direction: str, reference: str, metric: str = "mae", region: str = "body",
    methods: Sequence[str] | None = None,
) -> list[Test]:  # fmt: skip
    """Each method (None: all) against the reference. InputError where the reference has no such score."""
    check_rows(rows)
    values = values_by_patient(rows, direction, metric, region)
    if reference not in values:
        raise InputError(f"{reference}: has no {metric} of {region} in {direction}; there are {', '.join(values)}")
    baseline = values[reference]
    differences = {
        method: [value - baseline[patient] for patient, value in patients.items() if patient in baseline]
        for method, patients in values.items() if method != reference and (methods is None or method in methods)
    }  # fmt: skip
    p_values = {method: wilcoxon_p(d) for method, d in differences.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        Test(m, float(np.mean(d)), *bootstrap_interval(d), p_values[m], adjusted[m], rank_biserial(d), len(d))
        for m, d in differences.items() if d
    ]  # fmt: skip


def load_run(folder: Path) -> Scored:
    """A run's scores and what tells whether they may be compared. InputError for a folder that is no finished run."""
    run = RunFolder(folder)
    for path in (run.manifest, run.scores, run.splits, run.prepared / "index.json"):
        if not path.is_file():
            name = path.relative_to(folder)
            raise InputError(f"{folder}: has no {name}; it must be the folder of a finished run")
    manifest, index = read_json(run.manifest), read_json(run.prepared / "index.json")
    if not manifest["finished"]:
        raise InputError(f"{folder}: the run is not finished; `python -m petct_lib run --resume` resumes it")
    patients = list(dict.fromkeys(study["patient"] for study in index["studies"]))
    number = {patient: str(k) for k, patient in enumerate(patients)} | {EVERYONE: EVERYONE}
    rows, test = read_scores(run.scores), read_splits(folder)["test"]
    if others := {row["patient"] for row in rows} - {*test, EVERYONE}:
        raise InputError(f"{folder}: scores.csv has scores of {len(others)} patients who are not test patients")
    rows = [{**row, "patient": number[row["patient"]]} for row in rows]
    parameters = {
        notebook: {k: v for k, v in values.items() if not (k == "seed" and notebook in TRAINED_BY)}
        for notebook, values in manifest["parameters"].items()
    }
    code = manifest.get("commit"), manifest.get("uncommitted_changes")
    settings, held_out = json.dumps([parameters, code], sort_keys=True), tuple(sorted(int(number[p]) for p in test))
    seeds = tuple(manifest["parameters"].get(notebook, {}).get("seed") for notebook in TRAINED_BY)
    return Scored(folder.name, rows, settings, manifest["data_fingerprint"], held_out, seeds)


def merge_runs(runs: Sequence[Scored]) -> list[Row]:
    """The rows of all runs as one table: means over the runs of the same settings, patient by patient.

    With more than one setting a method is named `run/method`, the run being the first with this setting. InputError
    for runs of other data or with other test patients: their scores are of other images, and not comparable; and for
    runs of the same settings and seeds: one training twice is no second one.
    """
    first = runs[0]
    for other in runs[1:]:
        if other.fingerprint != first.fingerprint:
            raise InputError(
                f"{first.name} and {other.name}: of other data (fingerprints {first.fingerprint[:8]} and "
                f"{other.fingerprint[:8]}); scores of other images cannot be compared"
            )
        if other.test != first.test:
            raise InputError(f"{first.name} and {other.name}: with other test patients; use one seed for the split")
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    for group in groups.values():
        if len({run.seeds for run in group}) < len(group):
            raise InputError(f"{', '.join(run.name for run in group)}: two of them have the same settings and seeds")
    prefix = {settings: f"{group[0].name}/" if len(groups) > 1 else "" for settings, group in groups.items()}
    return [row for settings, group in groups.items() for row in _mean(group, prefix[settings])]


def _mean(runs: Sequence[Scored], prefix: str) -> list[Row]:
    """Rows that all the runs have, with their mean value."""
    values: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        for row in run.rows:
            values.setdefault(tuple(row[key] for key in KEY_COLUMNS), []).append(row["value"])
    return [
        {**row, "method": prefix + row["method"], "value": float(np.mean(each))}
        for row in runs[0].rows
        if len(each := values[tuple(row[key] for key in KEY_COLUMNS)]) == len(runs)
    ]


def comparison_table(rows: Sequence[Row], reference: str, metric: str = "mae", region: str = "body") -> str:
    """By direction, one score of all methods: mean and 95 % interval, and each against the reference.

    p: Wilcoxon's, and adjusted by Holm for the methods of the table. effect: rank-biserial correlation. InputError
    where there is no such score, or the reference has none.
    """
    tables = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        values = values_by_patient(rows, direction, metric, region)
        if not values:
            continue
        tests = {test.method: test for test in paired_tests(rows, direction, reference, metric, region)}
        unit = next(
            r["unit"] for r in rows if (r["direction"], r["metric"], r["region"]) == (direction, metric, region)
        )
        head = ["", "mean [95 %]", f"− {reference} [95 %]", "p", "p (Holm)", "effect", "patients"]
        lines = [head, *(_line(method, patients, tests.get(method)) for method, patients in values.items())]
        tables.append(text_table(f"{direction}, {metric} of {region}{f' ({unit})' if unit != '1' else ''}", lines))
    if not tables:
        raise InputError(f"no score {metric} of {region} in these runs")
    return "\n\n".join(tables)


def _line(method: str, by_patient: dict[str, float], test: Test | None) -> list[str]:
    values = list(by_patient.values())
    cells = [method, f"{np.mean(values):.4g}{_interval(*bootstrap_interval(values))}"]
    patients = EVERYONE if EVERYONE in by_patient else str(test.n if test else len(by_patient))
    if test is None:
        return [*cells, *["-"] * 4, patients]
    effect = test.effect if test.n > 1 else None
    numbers = ["-" if value is None else f"{value:.3g}" for value in (test.p, test.p_holm, effect)]
    return [*cells, f"{test.difference:+.4g}{_interval(test.low, test.high, '+')}", *numbers, patients]


def _interval(low: float, high: float, sign: str = "") -> str:
    """Nothing for a single value, which has none."""
    return "" if math.isnan(low) else f" [{low:{sign}.4g}, {high:{sign}.4g}]"


def compare_runs(folders: Sequence[Path], *, reference: str, metric: str, region: str) -> str:
    """What the command prints: how many runs were averaged, and `comparison_table` of them.

    InputError for a folder that is no finished run, for runs that cannot be compared, and where there is no such score.
    """
    runs = [load_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):  # runs/a/quick and runs/b/quick
        runs = [replace(run, name=str(folder)) for run, folder in zip(runs, folders, strict=True)]
    settings = [run.settings for run in runs]
    groups = [
        f"{name} ({settings.count(setting)})"
        for setting, name in {run.settings: run.name for run in runs[::-1]}.items()
    ]
    title = f"runs by their settings, and how many were averaged: {', '.join(groups[::-1])}"
    rows = merge_runs(runs)
    if len(groups) > 1 and not any(row["method"] == reference for row in rows):
        reference = f"{runs[0].name}/{reference}"
    return f"{title}; the unit of n is the patient\n\n{comparison_table(rows, reference, metric, region)}"
