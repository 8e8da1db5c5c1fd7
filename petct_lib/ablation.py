"""The ablation: what each part of the refiner buys. All variants of a run's refiner, trained and scored like it.

`python -m petct_lib ablation` makes the run with several seeds, trains the variants on the first one's data and coarse
images, scores all on the same test patients, and draws every method on the plane of distortion and realism.
"""

import csv
import io
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petct_lib import InputError, charts, evaluate, scores, statistics, view
from petct_lib.augment import Augmentation
from petct_lib.bridge import interpolated
from petct_lib.checkpoints import load_checkpoint
from petct_lib.cyclegan import DIRECTIONS
from petct_lib.data import TARGET, read_splits, refiner_patients
from petct_lib.files import read_json, replacing, write_json
from petct_lib.intensity import read_window
from petct_lib.parallel import each, whole
from petct_lib.prepare import Prepared
from petct_lib.prior import Prior, PriorSettings
from petct_lib.progress import bar
from petct_lib.refiner import Refiner, RefinerSettings
from petct_lib.run import parameters_of, record, run_all
from petct_lib.train import FitSettings, steps_of
from petct_lib.train_refiner import Pairs, Plan, gains_of, held_out, held_out_slices, pairs_of, plans, train_refiner
from petct_lib.translate import Translator, decoded, load_cyclegan, load_refiner, translate_coarse
from petct_lib.variants import MEANS, SAMPLES, Variant, check_names, chosen, fewer, variants

ALPHAS = (0.25, 0.5, 0.75, 1.25)  # of the run's own refiner; 0 is `pix2pix`, 1 `refiner_gan`, 1.25 beyond it
LINE = ("pix2pix", *(f"refined_alpha{a:g}" for a in ALPHAS if a < 1), "refiner_gan",
        *(f"refined_alpha{a:g}" for a in ALPHAS if a > 1))  # fmt: skip
TABLE = {  # (metric, region): head of its column
    ("mae", "body"): "MAE", ("ssim", "body"): "SSIM", ("spectrum", "body"): "spectrum",
    ("two_sample_accuracy", "body"): "told", ("coherence", "body"): "coherence",
    ("rank_correlation", "body"): "rank corr.", ("suvmax_error", "lesion"): "SUVmax error",
    ("missed", "lesion"): "missed", ("invented", "lesion"): "invented",
}  # fmt: skip
METHODS = ("unet_l1", "pix2pix", "refiner_l1", "refiner")  # that notebook 03 trains for each direction


def plan_of(profile: str, run_dir: Path, direction: str, overrides: Sequence[str] = ()) -> tuple[Plan, float]:
    """The plan by which notebook 03 trains the refiner of a direction with these parameters, and its warm-up's share.

    InputError as for `run.parameters_of`, and for a run folder that notebook 01 has not prepared.
    """
    p = parameters_of("03_diffusion_refinement", profile, overrides)
    prepared, splits = Prepared(Path(run_dir) / "prepared"), read_splits(run_dir)
    slices = sum(sum(prepared.lengths(patient)) for patient in refiner_patients(splits, "pet2ct"))
    steps = steps_of(p["steps"], p["epochs"], slices, p["batch_size"])
    names = set(RefinerSettings.__dataclass_fields__) - {"steps", "multipliers", "sigma", "lambda_spectrum"}
    settings = RefinerSettings(
        steps=p["walk_steps"], sigma=p["sigma"][direction], lambda_spectrum=p["lambda_spectrum"][direction],
        multipliers=tuple(p["multipliers"]), **{name: p[name] for name in names if name in p},
    )  # fmt: skip
    fit = FitSettings(steps, mixed_precision=p["mixed_precision"], checkpoint_every=p["checkpoint_every"])
    plan = Plan(settings, fit, Augmentation(shift=p["shift"]), p["batch_size"], p["seed"])
    return plan, p["warmup"]


def train_variants(run_dir: Path, direction: str, plan: Plan, warmup: float, of: Sequence[Variant]) -> None:
    """Trains the variants of a direction into `checkpoints/<name>_<direction>.pt`, one a core, or one on the GPU.

    Those first from which others go on. Goes on where an earlier call stopped. InputError and FloatingPointError as for
    `train.fit`.
    """
    pairs = {whom: _pairs(run_dir, direction, *whom) for whom in {_of_whom(v) for v in of}}
    at_once, shown = 1 if torch.cuda.is_available() else None, partial(bar, desc=f"variants trained, {direction}")
    of_run = plans(plan, warmup, direction)
    for ready in ([v for v in of if not v.start], [v for v in of if v.start]):
        jobs = [(f"{v.name}_{direction}", pairs[_of_whom(v)], _plan(v, of_run, plan, direction)) for v in ready]
        seconds = whole(each(partial(_train, run_dir), jobs, jobs=at_once, progress=shown))
        record(run_dir, variant_seconds={name: of for (name, *_), of in zip(jobs, seconds, strict=True) if of})


def _plan(variant: Variant, of_run: dict[str, Plan], whole_plan: Plan, direction: str) -> Plan:
    """As long as the run's own training of its kind: a regression's, the refiner's after it, or, the prior's, both."""
    if isinstance(variant.settings, PriorSettings):
        return replace(whole_plan, stage=variant.settings)
    plan = of_run["refiner" if variant.start else "refiner_l1"]
    plan = replace(plan, stage=variant.settings, seed=plan.seed + variant.seed)
    return replace(plan, start=f"{variant.start}_{direction}") if variant.start else plan


def _of_whom(variant: Variant) -> tuple[int | None, bool, int]:
    """What its pairs depend on: how many patients, in-fold or not, neighbours."""
    return variant.patients, variant.in_fold, _neighbours(variant)


def _neighbours(variant: Variant) -> int:
    return variant.settings.neighbours if isinstance(variant.settings, RefinerSettings) else 1


def _pairs(run_dir: Path, direction: str, k: int | None, in_fold: bool, neighbours: int) -> Pairs:
    """Of the first k patients of the run's refiner, or of `held_out` ones; their coarse images under a name of both."""
    patients = (held_out if in_fold else refiner_patients)(read_splits(run_dir), direction)
    name = "_".join([direction, *(["in_fold"] if in_fold else []), *([str(k)] if k else [])])
    return pairs_of(run_dir, direction, patients[:k], name, neighbours)


def _train(run_dir: Path, job: tuple[str, Pairs, Plan]) -> float:
    """Its seconds; 0 where an earlier call has finished it."""
    name, pairs, plan = job
    path, start = run_dir / "checkpoints" / f"{name}.pt", time.monotonic()
    finished = path.exists() and load_checkpoint(path)["step"] == plan.fit.steps
    train_refiner(run_dir, name, pairs, plan, resume=True)
    return 0.0 if finished else round(time.monotonic() - start, 1)


def score_variants(
    run_dir: Path, direction: str, of: Sequence[Variant], seed: int, longer: Path | None = None
) -> list[scores.Row]:
    """Scores of a direction's variants on the test patients, one patient a core, or one on the GPU.

    longer: run folder of a CycleGAN trained for longer. InputError where a variant has no checkpoint.
    """
    patients = read_splits(run_dir)["test"]
    score = partial(_score, Path(run_dir), direction, of, seed, longer, _gains(run_dir, direction, seed))
    at_once = 1 if torch.cuda.is_available() else None
    scored = whole(each(score, patients, jobs=at_once, progress=partial(bar, desc=f"patients scored, {direction}")))
    cases = [case for _, case in scored]
    window = read_window(run_dir)
    told = evaluate.two_sample_accuracies(
        cases, list(cases[0].images), direction, window, seed, partial(bar, desc="classifiers")
    )
    found = [
        _row(direction, method, "all", "two_sample_accuracy", value)
        for method, value in told.items()
        if value is not None
    ]
    return [row for rows in (*(rows for rows, _ in scored), found) for row in rows]


def _score(
    run_dir: Path, direction: str, of: Sequence[Variant], seed: int, longer: Path | None,
    gains: dict[str, np.ndarray], patient: str,
) -> tuple[list[scores.Row], evaluate.Case]:  # fmt: skip
    """One patient: rows, and the few slices of the images that the two-sample test reads."""
    translator = Translator(run_dir)
    case = evaluate.load_case(Prepared(run_dir / "prepared"), patient, direction)
    seen = max((_neighbours(v) for v in of), default=1)
    x, coarse = translator.start(case.source, direction, case.lengths, seen)
    given = partial(translator.image, x=x, coarse=coarse, direction=direction, seed=seed)
    ends = translator.ends(x, coarse, direction, samples=1, seed=seed)
    images = {f"refined_alpha{alpha:g}": translator.between(*ends, alpha, direction) for alpha in ALPHAS}
    images["refiner_gan"] = ends[1]
    networks, samples = _networks(run_dir, direction, of, translator.refiners[direction])
    images |= {method: given(networks[method], samples=n) for method, n in samples.items()}
    images |= _means({**images, "pix2pix": ends[0]})
    plain = _plain(translator, x, coarse, direction, ends)
    images |= {f"{name}_matched": translator.matched(plain[name], of, direction) for name, of in gains.items()}
    if longer:
        cyclegan = load_cyclegan(longer / "checkpoints" / "cyclegan.pt")
        images["cyclegan_longer"] = translate_coarse(cyclegan, case.source, direction, translator.window)
    case = replace(case, images=images)
    rows = evaluate.score_case(case, direction, translator.window)
    for method in (name for name, network in networks.items() if "error" in network.nets):
        expected = translator.expected_error(networks[method], x, coarse, images[method], direction)
        known = evaluate.uncertainty_scores(replace(case, uncertainty=expected), method)["rank_correlation"]
        rows.append(_row(direction, method, patient, "rank_correlation", known))
    return rows, evaluate.few_slices(case)


def _networks(
    run_dir: Path, direction: str, of: Sequence[Variant], refiner: Refiner
) -> tuple[dict[str, Refiner | Prior], dict[str, int]]:
    """By method: its network, and how many of its samples are averaged; the run's refiner (α = 1) and the variants."""
    samples = {f"refiner_gan_samples{n}": n for n in SAMPLES if refiner.settings.sigma}
    networks = {"refiner_gan": refiner, **dict.fromkeys(samples, refiner)}
    for v in of:
        network = load_refiner(run_dir / "checkpoints" / f"{v.name}_{direction}.pt")
        for method, n, t0 in v.uses or ((v.name, 1, None),):
            networks[method], samples[method] = network if t0 is None else network.at(t0), n
    return networks, samples


def _means(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of MEANS whose two images are there."""
    there = {name: pair for name, pair in MEANS.items() if images.keys() >= set(pair)}
    return {name: interpolated(images[a], images[b], 0.5) for name, (a, b) in there.items()}


def _gains(run_dir: Path, direction: str, seed: int) -> dict[str, np.ndarray]:
    """Of the methods of `_plain`, fitted as `train_refiner.calibrate` fits those of the mode `default`."""
    translator, made, real = Translator(run_dir), [], []
    for of in held_out_slices(translator, run_dir, direction):
        ends = translator.ends(of.x, of.coarse, direction, samples=1, seed=seed)
        made.append(_plain(translator, of.x, of.coarse, direction, ends))
        real.append(of.real)
    return {name: gains_of(translator, direction, real, [images[name] for images in made]) for name in made[0]}


def _plain(
    translator: Translator, x: Tensor, coarse: Tensor, direction: str, ends: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The images whose spectrum is matched, too, as controls: does the filter do as well without the refiner?"""
    return {
        "cyclegan": decoded(coarse, TARGET[direction], translator.window),
        **evaluate.regressions(translator, x, coarse, direction),
        "pix2pix": ends[0],
        "refiner_gan": ends[1],
    }


def _row(direction: str, method: str, patient: str, metric: str, value: float) -> scores.Row:
    """A score of the whole body that has no unit. patient "all": of all test patients together."""
    where = {"region": "body", "metric": metric, "value": float(value), "unit": "1", "mask": "HU threshold"}
    return {"direction": direction, "method": method, "patient": patient, **where}


def recorded(run_dir: Path) -> list[scores.Row]:
    """Rows of what notebook 04 found of all test patients together: two-sample accuracies, and `refined`'s map."""
    held = read_json(Path(run_dir) / "stages.json")
    told, known = held.get("two_sample_accuracy", {}), held.get("uncertainty", {})
    found = [(d, name, "two_sample_accuracy", value) for d, of in told.items() for name, value in of.items()]
    found += [(d, "refined", metric, value) for d, of in known.items() for metric, value in of.items()]
    return [_row(d, method, "all", metric, value) for d, method, metric, value in found if value is not None]


def longer_setting(run_dir: Path, profile: str, overrides: Sequence[str]) -> str:
    """The override by which a CycleGAN takes the seconds of CycleGAN, refiners and regressions, as the run measured."""
    seconds = read_json(Path(run_dir) / "stages.json")["stage_seconds"]
    refiners = sum(seconds[f"{name}_{d} training"] for d in DIRECTIONS for name in METHODS)
    p = parameters_of("02_cyclegan_training", profile, overrides)
    unit = "epochs" if p["steps"] is None else "steps"
    return f"02_cyclegan_training.{unit}={round(p[unit] * (1 + refiners / seconds['cyclegan training']))}"


def run_ablation(
    profile: str, data: str, out: Path, *, seeds: int, overrides: Sequence[str] = (), only: str = ""
) -> str:
    """The whole ablation into `out`: `scores.csv` with a column for the seed, the plane's figures; returns its table.

    A run with each seed; the variants with seed 0, of which `only` is a regular expression that their whole names must
    match ("": all). Trainings that an earlier call has finished are not done again, scores are. Errors as for
    `run.run_all`, and for a wrong `only` or a seed among the overrides.
    """
    check_names(only)  # now, not after the first run
    rows: list[tuple[int, scores.Row]] = []
    first, asked = out / "seed0", [_seeded(overrides, seed) for seed in range(seeds)]
    for seed, settings in enumerate(asked):
        run_all(profile, data, out / f"seed{seed}", overrides=settings, resume=True)
        rows += [(seed, row) for row in scores.read_scores(out / f"seed{seed}" / "scores.csv")]
        rows += [(seed, row) for row in recorded(out / f"seed{seed}")]
    more = [*asked[0], _kept(out / "longer.json", longer_setting(first, profile, asked[0]))]
    run_all(profile, data, out / "longer", overrides=more, until="02_cyclegan_training", resume=True)
    splits = read_splits(first)
    paired = {d: len(refiner_patients(splits, d)) for d in DIRECTIONS}
    for direction in DIRECTIONS:
        plan, warmup = plan_of(profile, first, direction, asked[0])
        of = chosen(variants(plan.stage, paired[direction], len(held_out(splits, direction))), only)
        train_variants(first, direction, plan, warmup, of)
        rows += [(0, row) for row in score_variants(first, direction, of, 0, out / "longer")]
        for seed in range(1, seeds):
            rows += [(seed, row) for row in score_variants(out / f"seed{seed}", direction, [], seed)]
    write_seeds(rows, out / "scores.csv")
    for direction in DIRECTIONS:
        draw([row for seed, row in rows if seed == 0], direction, paired[direction], out)
    return table(rows)


def _kept(path: Path, setting: str) -> str:
    """The setting of the first call: a run that goes on has measured other seconds, and would ask for other steps."""
    if not path.exists():
        write_json({"setting": setting}, path)
    return read_json(path)["setting"]


def _seeded(overrides: Sequence[str], seed: int) -> list[str]:
    seeds = [f"{notebook}.seed=" for notebook in ("02_cyclegan_training", "03_diffusion_refinement")]
    if given := [setting for setting in overrides if setting.startswith(tuple(seeds))]:
        raise InputError(f"--set {given[0]}: the ablation sets the seeds itself, 0 and up; --seeds says how many")
    return [*overrides, *(f"{setting}{seed}" for setting in seeds)]


def draw(rows: Sequence[scores.Row], direction: str, patients: int, out: Path) -> None:
    """The plane of all methods that learned from all pairs, and the curve over the number of paired patients.

    The points of α, unfiltered, are joined. Averages of several samples lie where one does, and are in the table only.
    With no pair at all the refiner is `cyclegan_tta`.
    """
    whole = [row for row in rows if not re.search(r"_(k|samples)\d+$", row["method"])]
    view.save(
        charts.plane(whole, direction, line=LINE),
        out,
        f"ablation_plane_{direction}",
        "Every method that learned from all pairs: body MAE and spectrum distance",
    )
    lines = {"refined": "refiner_gan", "pix2pix": "pix2pix", "unet_l1": "unet_l1"}  # by their names with all pairs
    curves = {line: {**{k: f"{line}_k{k}" for k in fewer(patients)}, patients: of} for line, of in lines.items()}
    curves = {"refiner (0: cyclegan_tta)": {0: "cyclegan_tta", **curves.pop("refined")}, **curves}
    there = {row["method"] for row in rows if row["direction"] == direction}
    curves = {line: {k: of for k, of in points.items() if of in there} for line, points in curves.items()}
    curves = {line: points for line, points in curves.items() if points}
    view.save(charts.paired_curve(rows, direction, curves, "cyclegan"), out, f"ablation_paired_{direction}",
              "Body MAE and spectrum distance by the number of paired patients")  # fmt: skip


def write_seeds(rows: Sequence[tuple[int, scores.Row]], path: Path) -> None:
    """`scores.csv` of several trainings: the columns of a run's, and `seed` before them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seed", *scores.SCORE_COLUMNS))
    writer.writerows((seed, *(row[column] for column in scores.SCORE_COLUMNS)) for seed, row in rows)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def table(rows: Sequence[tuple[int, scores.Row]]) -> str:
    """All methods with seed 0, means over patients; where there are several seeds, below it what was made with all.

    told: two-sample accuracy; rank corr.: of expected and actual error, of `refined` with the distance of the line's
    ends, of all others what their error network says alone; missed, invented: lesions a patient. The last column is the
    mean difference of MAE to `refiner_gan` over the same patients, with its 95 % bootstrap interval. A dash: there is
    none.
    """
    tables = []
    for direction in DIRECTIONS:
        by_seed: dict[int, list[scores.Row]] = {}
        for seed, row in rows:
            if row["direction"] == direction:
                by_seed.setdefault(seed, []).append(row)
        if by_seed:
            tables.append(_table_of_first(by_seed[0], direction))
        if len(by_seed) > 1:
            tables.append(_table_of_seeds(by_seed, direction))
    return "\n\n".join(tables)


def _table_of_first(rows: list[scores.Row], direction: str) -> str:
    values = _values(rows)
    columns = [(key, head) for key, head in TABLE.items() if any(key in of for of in values.values())]
    n = len(next(iter(values.values()))["mae", "body"])
    lines = [["", *(head for _, head in columns), "MAE − refiner_gan"]]
    for method, of in values.items():
        means = [f"{np.mean(list(of[key].values())):.3g}" if key in of else "-" for key, _ in columns]
        lines.append(
            [method, *means, _difference(of["mae", "body"], values.get("refiner_gan", {}).get(("mae", "body")))]
        )
    return scores.text_table(f"{direction}, seed 0, mean of {n} patients", lines)


def _table_of_seeds(by_seed: dict[int, list[scores.Row]], direction: str) -> str:
    of_seeds = [_values(rows) for rows in by_seed.values()]
    lines = [["", *TABLE.values()]]
    for method in (name for name in of_seeds[0] if all(name in values for values in of_seeds)):
        cells = []
        for key in TABLE:
            means = [np.mean(list(values[method][key].values())) for values in of_seeds if key in values[method]]
            cells.append(f"{np.mean(means):.3g} [{min(means):.3g}, {max(means):.3g}]" if means else "-")
        lines.append([method, *cells])
    return scores.text_table(f"{direction}, mean of {len(of_seeds)} seeds [least, most]", lines)


def _values(rows: list[scores.Row]) -> dict[str, dict[tuple[str, str], dict[str, float]]]:
    """{method: {(metric, region): {patient: value}}}, of the columns of the table."""
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for row in rows:
        if (key := (row["metric"], row["region"])) in TABLE:
            found.setdefault(row["method"], {}).setdefault(key, {})[row["patient"]] = row["value"]
    return found


def _difference(mine: dict[str, float], reference: dict[str, float] | None) -> str:
    if reference in (None, mine):
        return "-"
    differences = [mine[patient] - reference[patient] for patient in mine]
    low, high = statistics.bootstrap_interval(differences)
    return f"{np.mean(differences):+.3g} [{low:+.3g}, {high:+.3g}]"
