"""The textbook CycleGAN step against ours: images a second, time, operations and memory to the textbook's quality.

`make bench` runs it. The textbook (`textbook.py`) trains for a fixed number of steps; then each contender, on the same
patients, until its body MAE on validation patients is the textbook's or better in both directions, or until half of
the textbook's seconds are gone. Each is a process of its own; the time for validation is in nobody's seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import flops
import numpy as np
import torch
from report import in_process, into_readme, markdown, peak_mb, provenance, row, show_and_save
from textbook import Textbook

from petct_lib.data.datasets import Slices, UnpairedBatches
from petct_lib.data.prepare import Prepared, SliceSettings, prepare
from petct_lib.data.splits import split_patients
from petct_lib.experiments.profiles import load_params, notebook_parameters
from petct_lib.imaging.directions import DIRECTIONS
from petct_lib.imaging.intensity import Intensity
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.training.loop import FitSettings, fit, prefetch
from petct_lib.training.update import Updates
from petct_lib.training.validation import Validation

NOTEBOOK = "02_cyclegan_training"
HOW = ("mixed_precision", "channels_last")  # FitSettings that cost time or memory
CHECKS = 20  # validations of a contender on its way
VALIDATED = 16  # slices of each validation patient
PROBED = 8  # steps that peak memory and speed are read from before a training
SEED = 0
HEADS = (
    "", "M parameters", "batch", "GFLOP an image", "images/s", "MAE HU", "MAE SUV", "steps", "s to quality",
    "TFLOP to quality", "peak MB",
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """What trains, and how. gan: None for the textbook."""

    gan: CycleGANSettings | None
    batch_size: int
    how: dict = field(default_factory=dict)  # fields of FitSettings


def contenders(profile: str, batch: int | None) -> dict[str, Contender]:
    """The textbook; ours, as the profile has it; and ours with one thing changed at a time."""
    params = notebook_parameters(NOTEBOOK, profile)
    gan = CycleGANSettings(**{f.name: params[f.name] for f in fields(CycleGANSettings) if f.name in params})
    ours = Contender(gan, batch or params["batch_size"], {name: params[name] for name in HOW if name in params})
    changes = {
        "identity loss on every step": {"identity_every": 1}, "no identity loss": {"lambda_identity": 0.0},
        "one block fewer": {"blocks": gan.blocks - 1}, "half the width": {"width": gan.width // 2},
        "the paper's rate": {"lr": CycleGANSettings.lr}, "twice the rate": {"lr": 2 * gan.lr},
        "no EMA": {"ema_decay": 0.0},
    }  # fmt: skip
    others = {name: replace(ours, gan=replace(gan, **change)) for name, change in changes.items()}
    others |= {"batch 1": replace(ours, batch_size=1), "twice the batch": replace(ours, batch_size=2 * ours.batch_size)}
    return {"textbook": Contender(None, batch or 1), "ours": ours} | {k: v for k, v in others.items() if v != ours}


@dataclass(frozen=True)
class Job:
    """One measurement, as it is handed to its process."""

    task: str  # "probe", "train" or "loader"
    name: str  # of the contender
    profile: str
    batch: int | None
    prepared: str
    device: str
    steps: int = PROBED
    checks: int = CHECKS
    target: tuple[float, float] | None = None  # body MAE in HU and SUV to stop at
    budget_s: float | None = None

    def run(self) -> dict:
        """What the task finds."""
        torch.set_flush_denormal(True)  # for all alike; `fit` does it
        return {"probe": probe, "train": train, "loader": loader}[self.task](self)

    @property
    def contender(self) -> Contender:
        return contenders(self.profile, self.batch)[self.name]

    def data(self) -> tuple[UnpairedBatches, Validation]:
        """Batches of the training patients and scores on the validation patients; the same for all contenders."""
        prepared, window, device = Prepared(Path(self.prepared)), Intensity(), torch.device(self.device)
        splits = split_patients(prepared.patients, SEED)
        held = device if device.type == "cuda" else None
        pet, ct = (Slices(prepared, splits[f"train_{kind}"], (kind,), window, device=held) for kind in ("pet", "ct"))
        params = notebook_parameters(NOTEBOOK, self.profile)
        batches = UnpairedBatches(pet, ct, self.contender.batch_size, params["shift"])
        return batches, Validation(prepared, splits["refine"], window, slices=VALIDATED)


def stepper(contender: Contender, steps: int, device: torch.device) -> tuple[object, Callable]:
    """A new stage, and `step(batch, number)` that trains it."""
    if contender.gan is None:
        stage = Textbook(steps, device, SEED)
        return stage, lambda batch, _: stage.train_step(batch["pet"], batch["ct"])
    stage, how = CycleGAN(contender.gan, SEED), contender.how
    layout = torch.channels_last if how.get("channels_last") else torch.preserve_format
    for net in (*stage.nets.values(), *(ema.module for ema in stage.ema.values())):
        net.to(device, memory_format=layout)
    known = {name: how[name] for name in ("mixed_precision",) if name in how}
    update = Updates(stage.optimisers, **known)
    return stage, lambda batch, k: stage.step(batch, k, np.random.default_rng([SEED, k]), update)


def draw(batches: UnpairedBatches, device: torch.device, step: int) -> dict[str, torch.Tensor]:
    """The batch of a step on its device, the same for all contenders of a batch size."""
    return {kind: image.to(device) for kind, image in batches(np.random.default_rng([SEED, step])).items()}


def probe(job: Job) -> dict:
    """Seconds, operations and peak memory of a step, and parameters. Operations are counted once memory is read."""
    device, (batches, _) = torch.device(job.device), job.data()
    stage, step = stepper(job.contender, job.steps, device)
    seconds = [timed(lambda k=k: step(draw(batches, device, k), k), device) for k in range(job.steps)]
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_mb()
    period, batch = job.contender.gan.identity_every if job.contender.gan else 1, draw(batches, device, 0)
    operations = flops.count(lambda: [step(batch, k) for k in range(period)]) / period
    return {
        "step_s": statistics.median(seconds[job.steps // 4 :]), "peak_mb": memory, "gflop": operations / 1e9,
        "parameters": sum(p.numel() for d in DIRECTIONS for p in stage.generator(d).parameters()),
    }  # fmt: skip


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work()`, a GPU's included."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Checks:
    """Validation on the way, the clock stopped meanwhile; ends a training that has its target or no time left."""

    class Enough(Exception):
        """The training need not go on."""

    def __init__(self, job: Job, validation: Validation) -> None:
        self.job, self.validation, self.rows, self.reached = job, validation, [], False
        self.every = max(1, job.steps // job.checks)
        self.start = time.perf_counter()

    def __call__(self, stage: object) -> dict[str, float]:
        wait_for(torch.device(self.job.device))
        now = time.perf_counter()
        scores = self.validation(stage)
        step, seconds = min((len(self.rows) + 1) * self.every, self.job.steps), now - self.start
        self.start += time.perf_counter() - now
        maes = scores["validation_mae_hu"], scores["validation_mae_suv"]
        self.rows.append({"step": step, "seconds": seconds, "hu": maes[0], "suv": maes[1]})
        self.reached = self.job.target is not None and all(a <= b for a, b in zip(maes, self.job.target, strict=True))
        if self.reached or (self.job.budget_s is not None and seconds > self.job.budget_s):
            raise self.Enough
        return scores


def train(job: Job) -> dict:
    """A training with its validations; ours through `petct_lib.training.loop.fit`, as a user trains."""
    batches, validation = job.data()
    checks = Checks(job, validation)
    try:
        if job.contender.gan is None:
            _train_textbook(job, batches, checks)
        else:
            with tempfile.TemporaryDirectory() as folder:
                settings = FitSettings(job.steps, checkpoint_every=checks.every, keep=1, **job.contender.how)
                fit(
                    CycleGAN(job.contender.gan, SEED), batches, settings, checkpoint=Path(folder) / "cyclegan.pt",
                    fingerprint="", seed=SEED, validate=checks, name=job.name,
                )  # fmt: skip
    except Checks.Enough:
        pass
    return {"rows": checks.rows, "reached": checks.reached}


def _train_textbook(job: Job, batches: UnpairedBatches, checks: Checks) -> None:
    device = torch.device(job.device)
    stage, step = stepper(job.contender, job.steps, device)
    for k in range(job.steps):
        step(draw(batches, device, k), k)
        if (k + 1) % checks.every == 0 or k + 1 == job.steps:
            checks(stage)


def loader(job: Job) -> dict:
    """Seconds of a step with batches as they are drawn, and with one and the same, in blocks that take turns."""
    device, (batches, _) = torch.device(job.device), job.data()
    _, step = stepper(job.contender, job.steps, device)
    constant, seconds, block = draw(batches, device, 0), {"real": [], "constant": []}, 5
    for first in range(0, job.steps, block):
        for kind, taken in seconds.items():
            numbers = range(first, first + block)
            one = (lambda k: draw(batches, device, k)) if kind == "real" else (lambda _: constant)
            drawn = prefetch(one, numbers) if device.type == "cuda" else map(one, numbers)  # as `fit` draws
            taken += [timed(lambda k=k, drawn=drawn: step(next(drawn), k), device) for k in numbers]
    return {kind: statistics.median(taken[block:]) for kind, taken in seconds.items()}


def phantom(args: argparse.Namespace, folder: Path) -> Path:
    """Prepared slices of the profile's phantom in `folder`; `--phantom`: of one that is there already."""
    from petct_lib.phantom.cohort import phantom_settings, write_phantom

    p = load_params(args.profile)["01_data_exploration"]
    if args.quick:
        p |= {"patients": 5, "ct_size": 128, "ct_pixel_mm": 3.9, "size": 32, "slice_mm": 20.0}
    settings = phantom_settings(p["difficulty"], ct_size=p["ct_size"], ct_pixel_mm=p["ct_pixel_mm"])
    source = args.phantom or write_phantom(folder / "phantom", p["patients"], p["seed"], settings)
    prepare(source, folder / "prepared", SliceSettings(args.size or p["size"], p["fov_mm"], p["slice_mm"]))
    return folder / "prepared"


def compare(args: argparse.Namespace, prepared: Path) -> dict[str, dict | str]:
    """What was found for each contender, the textbook first; for one that did not end, why."""
    result, names = {}, list(contenders(args.profile, args.batch))
    names = names[:2] + [name for name in names[2:] if args.only is None or name in args.only]
    for name in names:
        shared = {"name": name, "profile": args.profile, "batch": args.batch, "device": args.device}
        shared["prepared"] = str(prepared)
        try:
            one = measure(Job("probe", steps=2 if args.quick else PROBED, **shared), args.limit_s)
            if name == "textbook":
                plan = {"steps": args.textbook_steps, "checks": 1 if args.quick else CHECKS // 2}
            else:
                end = result["textbook"]["rows"][-1]
                budget_s = end["seconds"] / 2
                plan = {"steps": max(4, int(budget_s / one["step_s"])), "target": (end["hu"], end["suv"])}
                plan["budget_s"] = budget_s
            result[name] = one | measure(Job("train", **plan, **shared), args.limit_s)
        except subprocess.SubprocessError as error:  # a training that explodes is a result, too
            if name in ("textbook", "ours"):
                raise
            result[name] = "time limit" if isinstance(error, subprocess.TimeoutExpired) else "failed"
        print(f"{name}: {result[name]}", flush=True)
    return result


def measure(job: Job, limit_s: float | None) -> dict:
    """A job in a process of its own."""
    return in_process(__file__, "--measure", json.dumps(asdict(job)), limit_s=limit_s)


def quality(result: dict, target: dict) -> tuple[float, float] | None:
    """Seconds and TFLOP to the first validation with the target's body MAE in both directions; None: never."""
    rows = (r for r in result["rows"] if r["hu"] <= target["hu"] and r["suv"] <= target["suv"])
    first = next(rows, None)
    return first and (first["seconds"], first["step"] * result["gflop"] / 1e3)


def table(result: dict[str, dict | str], args: argparse.Namespace) -> str:
    """The trade-off, one line a contender."""
    target, lines = result["textbook"]["rows"][-1], []
    for name, one in result.items():
        if isinstance(one, str):
            lines.append([name, *[one] * (len(HEADS) - 1)])
            continue
        size, end, spent = contenders(args.profile, args.batch)[name].batch_size, one["rows"][-1], quality(one, target)
        to_quality = [f"{spent[0]:.0f}", f"{spent[1]:.1f}"] if spent else ["not reached"] * 2
        lines.append([
            name, f"{one['parameters'] / 1e6:.3f}", str(size), f"{one['gflop'] / size:.2f}",
            f"{size * end['step'] / end['seconds']:.2f}", f"{end['hu']:.1f}", f"{end['suv']:.3f}", str(end["step"]),
            *to_quality, f"{one['peak_mb']:.0f}",
        ])  # fmt: skip
    return markdown(HEADS, lines)


def rows_of(result: dict[str, dict], step: dict, args: argparse.Namespace) -> list[dict]:
    """Ours against the textbook, and real against constant data, for results.json. step: what `loader` found."""
    sizes = {name: contenders(args.profile, args.batch)[name].batch_size for name in ("ours", "textbook")}
    ends = {name: result[name]["rows"][-1] for name in sizes}
    speed = {name: sizes[name] * ends[name]["step"] / ends[name]["seconds"] for name in sizes}
    mine, peer = (quality(result[name], ends["textbook"]) for name in ("ours", "textbook"))
    what, on = "textbook CycleGAN", "_gpu" if args.device == "cuda" else ""
    return [
        row(f"train_images_per_s{on}", speed["ours"], speed["textbook"], what, "1/s", more_is_better=True),
        row(f"train_time_to_quality{on}", mine and mine[0], peer[0], what, "s"),
        row(f"train_flops_to_quality{on}", mine and mine[1], peer[1], what, "TFLOP"),
        row(f"train_peak_mb{on}", result["ours"]["peak_mb"], result["textbook"]["peak_mb"], what, "MB"),
        row(f"train_step_real_data{on}", step["real"], step["constant"], "ours, constant data", "s"),
    ]


def bench(args: argparse.Namespace) -> None:
    """All of it: the checks of the counter, the trade-off table, the loader; results.json and the README."""
    flops.check()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `fit` takes a GPU wherever it sees one
    with tempfile.TemporaryDirectory() as folder:
        prepared = phantom(args, Path(folder))
        result = compare(args, prepared)
        job = Job("loader", "ours", args.profile, args.batch, str(prepared), args.device, 10 if args.quick else 40)
        step = measure(job, args.limit_s)
    text = table(result, args)
    way = ", ".join(f"{r['hu']:.1f} HU and {r['suv']:.3f} after {r['step']}" for r in result["textbook"]["rows"])
    text += f"\n\nThe textbook on its way: {way} steps.\n\n{provenance()}"
    print(f"\n{text}\n\na step of ours: {step['real']:.4f} s with real, {step['constant']:.4f} s with constant data")
    if not args.quick:
        into_readme("training on a GPU" if args.device == "cuda" else "training", text)
        show_and_save(rows_of(result, step, args))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick", help="whose phantom and settings are ours (%(default)s)")
    parser.add_argument("--phantom", type=Path, metavar="FOLDER", help="use this phantom instead of writing one")
    parser.add_argument("--size", type=int, help="pixels along x and y (default: the profile's)")
    parser.add_argument("--batch", type=int, help="slices of each kind a step (default: 1 against the profile's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--textbook-steps", type=int, default=240, help="about 5 minutes on 2 cores (%(default)s)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these of our variants; none: ours alone")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="of one measurement (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="seconds, to try it out; writes no results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(Job(**json.loads(args.measure)).run()))
        return
    if args.quick:
        args.textbook_steps, args.only = 2, args.only or ["half the width"]
    bench(args)


if __name__ == "__main__":
    main()
