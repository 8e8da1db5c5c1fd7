"""The goals of stage 2, met or missed, from an ablation: each a value a seed, over the mean of the test patients.

    .venv/bin/python benchmarks/goals.py --ablation runs/ablation

A goal is met where every seed meets it. What the ablation has not run stands as "not run".
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean

from petct_lib.evaluation import tables
from petct_lib.evaluation.compare import values_by_patient
from petct_lib.imaging.directions import DIRECTIONS

Value = Callable[..., float]  # (method, metric, region "body") → mean of the patients
VARIANTS = ("steps8", "longer", "laplace", "cycle")
REGIONS = ("body", "lung", "soft_tissue", "bone")


@dataclass(frozen=True)
class Goal:
    """A value, and the range that it should lie in."""

    name: str
    direction: str
    low: float
    high: float
    value: Callable[[Value], float]

    def measure(self, look_up: Value) -> float | None:
        """The value; None where a score of it is missing."""
        try:
            return self.value(look_up)
        except KeyError:
            return None

    def limits(self) -> str:
        """The range in words."""
        return " ".join(f"{sign} {limit:g}" for sign, limit in (("≥", self.low), ("≤", self.high)) if abs(limit) < inf)


def ratio(method: str, peer: str, metric: str = "mae") -> Callable[[Value], float]:
    """A score of a method in units of its peer's."""
    return lambda look_up: look_up(method, metric) / look_up(peer, metric)


def more(method: str, peer: str, metric: str) -> Callable[[Value], float]:
    """By how much a score of a method is above its peer's."""
    return lambda look_up: look_up(method, metric) - look_up(peer, metric)


def score(method: str, metric: str) -> Callable[[Value], float]:
    """A score itself."""
    return lambda look_up: look_up(method, metric)


def against_map(metric: str, region: str = "body") -> Callable[[Value], float]:
    """CRPS of the samples in units of the Laplace map's, in the better of its two ways to take errors together."""
    ways = [metric] if metric == "crps" else [metric, f"{metric}_dependent"]
    return lambda look_up: look_up("mean", metric, region) / min(look_up("laplace/regression", w, region) for w in ways)


def goals() -> list[Goal]:
    """All, in the order of the issue that set them."""
    result, accuracy = [], "two_sample_accuracy"
    for d, realism, error in (("pet2ct", 0.55, 1.12), ("ct2pet", 0.60, 1.25)):
        result += [
            Goal("sample: two-sample accuracy, 8 evaluations", d, -inf, realism, score("sample", accuracy)),
            Goal("sample: two-sample accuracy, 8 steps − 4", d, -inf, 0, more("steps8/sample", "sample", accuracy)),
            Goal("sample: MAE / regression's", d, -inf, error, ratio("sample", "regression")),
            Goal("sample: spectrum distance / regression's", d, -inf, 0.5, ratio("sample", "regression", "spectrum")),
            Goal("mean of 8: MAE / equal compute's", d, -inf, 0.97, ratio("mean", "longer/regression")),
            Goal("mean of 8: SSIM − equal compute's", d, 0, inf, more("mean", "longer/regression", "ssim")),
            Goal("mean of 8: MAE / pix2pix's", d, -inf, 1, ratio("mean", "pix2pix")),
            Goal("CRPS / the error map's: voxels", d, -inf, 0.92, against_map("crps")),
            *(
                Goal(f"CRPS / the error map's: means of {n}×{n}", d, -inf, 0.95, against_map(f"crps_{n}"))
                for n in (4, 8)
            ),
            *(
                Goal(f"CRPS / the error map's: mean of {region}", d, -inf, 0.95, against_map("crps_mean", region))
                for region in REGIONS
            ),
            Goal("spread/skill", d, 0.85, 1.15, score("mean", "spread_skill")),
            Goal("coverage of 80 %", d, 0.72, 0.88, score("mean", "coverage_80")),
            Goal("rank correlation of spread and error", d, 0.5, inf, score("mean", "rank_correlation")),
        ]
    cycle = "cycle pairs, sample:"
    return [
        *result,
        Goal(f"{cycle} MAE / CycleGAN's", "pet2ct", -inf, 1, ratio("cycle/sample", "cyclegan")),
        Goal(f"{cycle} SSIM − CycleGAN's", "pet2ct", 0, inf, more("cycle/sample", "cyclegan", "ssim")),
        Goal(f"{cycle} spectrum / CycleGAN's", "pet2ct", -inf, 1, ratio("cycle/sample", "cyclegan", "spectrum")),
        Goal(f"{cycle} accuracy − CycleGAN's", "pet2ct", -inf, 0, more("cycle/sample", "cyclegan", accuracy)),
        Goal("cycle pairs, mean of 8: MAE / CycleGAN's", "pet2ct", -inf, 0.85, ratio("cycle/mean", "cyclegan")),
        Goal("cycle pairs, mean of 8: MAE / CycleGAN's", "ct2pet", -inf, 0.94, ratio("cycle/mean", "cyclegan")),
        Goal(f"{cycle} two-sample accuracy", "ct2pet", -inf, 0.70, score("cycle/sample", accuracy)),
        Goal(f"{cycle} MAE / CycleGAN's", "ct2pet", -inf, 1.07, ratio("cycle/sample", "cyclegan")),
    ]


def values(ablation: Path, seed: int, direction: str) -> Value:
    """What looks a score up, KeyError where there is none; mean of the test patients."""
    rows = tables.read_scores(ablation / f"seed{seed}" / "scores.csv")
    for variant in VARIANTS:
        path = ablation / (f"{variant}_seed{seed}" if seed else variant) / "scores.csv"
        for row in tables.read_scores(path) if path.exists() else ():
            rows.append({**row, "method": f"{variant}/{row['method']}"})

    def look_up(method: str, metric: str, region: str = "body") -> float:
        return mean(values_by_patient(rows, direction, metric, region)[method].values())

    return look_up


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ablation", type=Path, default=Path("runs/ablation"), help="its folder (%(default)s)")
    args = parser.parse_args()
    seeds = range(len(list(args.ablation.glob("seed[0-9]*/scores.csv"))))
    scores = {(seed, d): values(args.ablation, seed, d) for seed in seeds for d in DIRECTIONS}
    lines = [["", "direction", "goal", *(f"seed {seed}" for seed in seeds), ""]]
    for goal in goals():
        measured = [goal.measure(scores[seed, goal.direction]) for seed in seeds]
        there = [value for value in measured if value is not None]
        verdict = "met" if all(goal.low <= value <= goal.high for value in there) else "missed"
        cells = ["not run" if value is None else f"{value:.3f}" for value in measured]
        lines.append([goal.name, goal.direction, goal.limits(), *cells, verdict if there else ""])
    print(tables.text_table(f"goals, mean of the test patients, {len(seeds)} seeds", lines))


if __name__ == "__main__":
    main()
