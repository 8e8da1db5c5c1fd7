"""The ablation: what each part of stage 2 contributes, and how much chance there is in a training.

`python -m petct_lib ablation` makes the run with several seeds, then forks of the first one, each with one setting
changed (`all_variants`). They are runs like any other: `compare` puts their scores together, on the same test patients.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from petct_lib import InputError
from petct_lib.common.files import read_json, write_json
from petct_lib.common.parallel import parallel_map, require_all
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.splits import read_splits, refiner_patients
from petct_lib.evaluation import compare, tables
from petct_lib.experiments.pipeline import fork, run_all
from petct_lib.experiments.profiles import notebook_parameters
from petct_lib.experiments.variants import (
    OURS,
    PAIRED,
    SCORING,
    SHOWN_SAMPLES,
    SHOWN_STEPS,
    TRAINING,
    Variant,
    all_variants,
    choose_variants,
)
from petct_lib.imaging.directions import DIRECTIONS
from petct_lib.metrics.rows import Row
from petct_lib.viz import charts, panels

PREPARATION = "01_data_exploration"
COLUMNS = {  # metric of the body: head of its column
    "mae": "MAE", "ssim": "SSIM", "spectrum": "spectrum", "two_sample_accuracy": "two-sample", "crps": "CRPS",
    "crps_4": "CRPS 4×4", "crps_8": "CRPS 8×8", "spread_skill": "spread/skill", "coverage_80": "coverage",
    "rank_correlation": "rank corr.", "coherence": "coherence",
}  # fmt: skip


def run_ablation(
    profile: str, data: str, out: Path, *, seeds: int, overrides: Sequence[str] = (), only: str = "", jobs: int = 1
) -> str:
    """The whole ablation into `out`; returns its tables, which are in `ablation.txt`, too, beside `scores.csv`.

    A run with each seed; forks of the first, or of each where a variant says so, of which `only` is a regular
    expression that their whole names must match ("": all). jobs: runs at a time, which share the cores. What an earlier
    call finished is not done again. InputError for bad input, for runs of other settings in `out`, for a wrong `only`,
    and for a seed among the overrides.
    """
    choose_variants(all_variants(longer_steps=1), only)  # a wrong name is an error now, not after the first run
    shown = (f"{SCORING}.samples={SHOWN_SAMPLES}", f"{SCORING}.steps={SHOWN_STEPS}", f"{SCORING}.export=false")
    settings = [[*shown, *_with_seed(overrides, seed)] for seed in range(seeds)]
    run_all(profile, data, out / "seed0", overrides=settings[0], until=PREPARATION, resume=True)
    at_a_time = partial(parallel_map, jobs=jobs)
    require_all(at_a_time(partial(_run_seed, profile, data, out), list(enumerate(settings))))
    selected = choose_variants(all_variants(_longer_steps(out, profile, settings[0])), only)
    forks = [(v, *one) for v in selected for one in list(enumerate(settings))[: None if v.every_seed else 1]]
    require_all(at_a_time(partial(_run_variant, profile, data, out), forks))
    rows = _rows(out, selected)
    tables.write_scores(rows, out / "scores.csv")
    text = "\n\n".join([*(ablation_table(rows, d) for d in DIRECTIONS), *_seeds_tables(out, seeds, selected)])
    (out / "ablation.txt").write_text(text + "\n", encoding="utf-8")
    save_charts(rows, len(refiner_patients(read_splits(out / "seed0"), "pet2ct")), out)
    return text


def _run_seed(profile: str, data: str, out: Path, seeded: tuple[int, Sequence[str]]) -> None:
    """A run with a seed; all have the slices of the first."""
    seed, overrides = seeded
    folder = out / f"seed{seed}"
    if not folder.exists():
        fork(out / "seed0", folder, profile, data, overrides, until=PREPARATION)
    run_all(profile, data, folder, overrides=overrides, resume=True)


def _with_seed(overrides: Sequence[str], seed: int) -> list[str]:
    seeds = [f"{notebook}.seed=" for notebook in ("02_cyclegan_training", TRAINING)]
    if forbidden := [setting for setting in overrides if setting.startswith(tuple(seeds))]:
        raise InputError(f"--set {forbidden[0]}: the ablation sets the seeds itself, 0 and up; --seeds says how many")
    return [*overrides, *(f"{setting}{seed}" for setting in seeds)]


def _longer_steps(out: Path, profile: str, overrides: Sequence[str]) -> int:
    """Steps of a regression that takes the seconds of regression and flow together, as the first run measured them.

    The number of the first call is kept: measured again, it would be another, and the finished fork another run.
    """
    path = out / "longer.json"
    if not path.exists():
        seconds = read_json(RunFolder(out / "seed0").stages)["stage_seconds"]
        regression, flow = (sum(seconds[f"{name}_{d} training"] for d in DIRECTIONS) for name in ("regression", "flow"))
        steps = notebook_parameters(TRAINING, profile, overrides)["regression_steps"]
        write_json({"steps": round(steps * (1 + flow / regression))}, path)
    return read_json(path)["steps"]


def _folder(out: Path, variant: Variant, seed: int) -> Path:
    return out / (f"{variant.name}_seed{seed}" if seed else variant.name)


def _run_variant(profile: str, data: str, out: Path, job: tuple[Variant, int, Sequence[str]]) -> None:
    variant, seed, settings = job
    changed = {text.split("=")[0] for text in variant.overrides}
    kept = [text for text in settings if text.split("=")[0] not in changed]
    methods = ", ".join(dict.fromkeys((*variant.methods, *OURS)))  # notebook 04 draws ours
    overrides = [*kept, *variant.overrides, f"{SCORING}.methods=[{methods}]"]
    folder, until = _folder(out, variant, seed), "02_cyclegan_training" if variant.trained else TRAINING
    if not folder.exists():
        fork(out / f"seed{seed}", folder, profile, data, overrides, until=until)
    run_all(profile, data, folder, overrides=overrides, resume=True)


def _rows(out: Path, selected: Sequence[Variant], seed: int = 0) -> list[Row]:
    """The rows of a seed's run, and each variant's of its methods, which are then called `variant/method`."""
    rows = tables.read_scores(RunFolder(out / f"seed{seed}").scores)
    for variant in selected:
        rows += [
            {**row, "method": f"{variant.name}/{row['method']}"}
            for row in tables.read_scores(RunFolder(_folder(out, variant, seed)).scores)
            if row["method"] in variant.methods
        ]
    return rows


def ablation_table(rows: Sequence[Row], direction: str) -> str:
    """All methods of a direction, means over the test patients of the scores in COLUMNS. A dash: there is none."""
    values = {metric: compare.values_by_patient(rows, direction, metric) for metric in COLUMNS}
    methods = list(values["mae"])
    lines = [["", *COLUMNS.values()]]
    for method in methods:
        lines.append([method, *(_mean(values[metric].get(method)) for metric in COLUMNS)])
    n = len(values["mae"][methods[0]])
    return tables.text_table(f"{direction}, body, seed 0, mean of {n} patients", lines)


def _mean(by_patient: dict[str, float] | None) -> str:
    return f"{sum(by_patient.values()) / len(by_patient):.3g}" if by_patient else "-"


def _seeds_tables(out: Path, seeds: int, selected: Sequence[Variant]) -> list[str]:
    """The table of what there is of all seeds: mean of the seeds' means, and the least and most of them."""
    if seeds < 2:
        return []
    everywhere = [variant for variant in selected if variant.every_seed]
    of_seeds = [_rows(out, everywhere, seed) for seed in range(seeds)]
    seed_tables = []
    for direction in DIRECTIONS:
        lines = [["", *COLUMNS.values()]]
        values = [{m: compare.values_by_patient(rows, direction, m) for m in COLUMNS} for rows in of_seeds]
        for method in values[0]["mae"]:
            lines.append(
                [method, *(_range([by_metric[metric].get(method) for by_metric in values]) for metric in COLUMNS)]
            )
        seed_tables.append(tables.text_table(f"{direction}, body, mean of {seeds} seeds [least, most]", lines))
    return seed_tables


def _range(of_seeds: Sequence[dict[str, float] | None]) -> str:
    if not all(of_seeds):
        return "-"
    means = [sum(values.values()) / len(values) for values in of_seeds]
    return f"{sum(means) / len(means):.3g} [{min(means):.3g}, {max(means):.3g}]"


def save_charts(rows: Sequence[Row], patients: int, out: Path) -> None:
    """The plane of each direction, and the curve over the number of paired patients where its variants are there."""
    for direction in DIRECTIONS:
        mine = [row for row in rows if row["direction"] == direction]
        plane = [row for row in mine if not re.match(r"pairs\d", row["method"])]
        panels.save(charts.error_and_spectrum(plane, direction), out, f"ablation_plane_{direction}",
                  "Every method by body MAE and spectrum distance")  # fmt: skip
        there = {row["method"] for row in mine}
        curves = {}
        for method in ("regression", "sample", "mean"):
            points = {
                0: f"cycle/{method}",
                **{k: f"pairs{k}/{method}" for k in PAIRED if k < patients},
                patients: method,
            }
            curves[method] = {k: name for k, name in points.items() if name in there}
        if len(curves["mean"]) > 2:
            panels.save(charts.paired_curve(rows, direction, curves, "cyclegan"), out, f"ablation_paired_{direction}",
                      "Body MAE and spectrum distance by the number of paired patients; 0: cycle pairs")  # fmt: skip
