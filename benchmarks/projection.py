"""Time and memory of the `full` profile for 44 studies on one H200: a projection, not a measurement.

Operations, bytes moved and bytes kept for the backward pass are counted on one step of the real code with fake tensors,
at the profile's size and precision; hours follow from shares of the GPU's peak that are assumed, and printed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import flops
import numpy as np
import torch
from report import into_readme, markdown, provenance
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from petct_lib.data.splits import split_patients
from petct_lib.experiments.profiles import notebook_parameters
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.regression import Regression, RegressionSettings
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow
from petct_lib.training.loop import count_steps
from petct_lib.training.train_refiner import make_plans

STUDIES = 44
SCAN_MM = 1000.0  # skull base to the middle of the thigh, about a metre: an assumption
PEAK_TFLOP_S, BANDWIDTH_TB_S, MEMORY_GB = 989.0, 4.8, 141  # NVIDIA's data sheet of the H200 SXM; bfloat16, dense
COMPUTE_SHARE, BANDWIDTH_SHARE = (0.4, 0.15), (0.8, 0.5)  # of the peak that is sustained, best and worst: assumptions
DIRECTIONS = 2


class Bytes(TorchDispatchMode):
    """Adds up what every operation reads and writes; views move nothing."""

    moved = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.moved += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out


class Kept:
    """Bytes that autograd keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = storage.nbytes()
        return tensor


class Pass:
    """An `Update` that runs forward and backward and changes no weight; remembers the most that was kept at a time."""

    processes = 1

    def __init__(self, bf16: bool) -> None:
        self.bf16, self.kept = bf16, 0

    def __call__(self, _kind: str, loss_of: Callable, batch: dict) -> tuple[dict, dict]:
        kept = Kept()
        hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            losses, others = loss_of(batch)
            total = sum(losses.values())
        self.kept = max(self.kept, sum(kept.storages.values()))
        total.backward()
        return losses, {key: value.detach() for key, value in others.items()}

    def everyone(self, images: torch.Tensor) -> torch.Tensor:
        """There is one process."""
        return images

    own = everyone


@dataclass(frozen=True)
class Count:
    """One step of a stage."""

    flop: int
    moved: int  # bytes
    weights: int  # bytes of weights, gradients, Adam's two moments and averages
    kept: int  # bytes


def counted(make: Callable, names: tuple[str, ...], batch: int, size: int, bf16: bool) -> Count:
    """A step of the stage that `make()` gives, on a batch of images of these names, without computing anything."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage = make()
        averaged = sum(p.nbytes for ema in stage.ema.values() for p in ema.module.parameters())
        weights = 4 * sum(p.nbytes for net in stage.nets.values() for p in net.parameters()) + averaged
        images = {name: torch.zeros(batch, 1, size, size) for name in names}
        update = Pass(bf16)
        stage.ema = _NoAverages()  # whether it is the first time depends on a value, which fake tensors have not
        moved = Bytes()
        with moved:
            flop = flops.count(lambda: stage.step(images, 0, np.random.default_rng(0), update))
    return Count(flop, moved.moved, weights, update.kept)


class _NoAverages(dict):
    def __missing__(self, _name: str) -> "_NoAverages":
        return self

    def update_parameters(self, _net: object) -> None:
        """Nothing."""


def settings_of(kind: type, params: dict, **more: object) -> object:
    """A settings object from a notebook's parameters."""
    values = {f.name: params[f.name] for f in fields(kind) if f.name in params}
    return kind(**{**values, **more})


def hours(steps: int, step: Count) -> tuple[float, float]:
    """Best and worst: arithmetic at a share of the peak, then all bytes at a share of the bandwidth."""
    return tuple(
        steps * (step.flop / (PEAK_TFLOP_S * 1e12 * c) + step.moved / (BANDWIDTH_TB_S * 1e12 * b)) / 3600
        for c, b in zip(COMPUTE_SHARE, BANDWIDTH_SHARE, strict=True)
    )


def stage2_settings(p: dict) -> tuple[RegressionSettings, RegressionSettings, FlowSettings]:
    """Of regression, pix2pix and flow, from notebook 03's parameters."""
    plans = make_plans(
        256, seed=0, batch_size=p["batch_size"], width=p["width"], multipliers=tuple(p["multipliers"]),
        **{f"{name}_steps": 1 for name in ("regression", "pix2pix", "flow")},
    )  # fmt: skip
    return tuple(plans[name].stage for name in ("regression", "pix2pix", "flow"))


def stages() -> list[tuple[str, int, int, Count]]:
    """Name, how many are trained, steps of each, and one step's count, for CycleGAN, regression, pix2pix and flow."""
    size, slice_mm = (notebook_parameters("01_data_exploration", "full")[key] for key in ("size", "slice_mm"))
    gan, p = notebook_parameters("02_cyclegan_training", "full"), notebook_parameters("03_diffusion_refinement", "full")
    splits, per_study = split_patients([str(i) for i in range(STUDIES)], 0), round(SCAN_MM / slice_mm)
    larger = max(len(splits["train_pet"]), len(splits["train_ct"])) * per_study
    plain, direct, flow = stage2_settings(p)

    def step(stage: Callable) -> Count:
        return counted(stage, ("source", "coarse", "target"), p["batch_size"], p["crop"], p["mixed_precision"] != "no")

    gan_step = counted(
        lambda: CycleGAN(settings_of(CycleGANSettings, gan)), ("pet", "ct"), gan["batch_size"], size,
        gan["mixed_precision"] != "no",
    )  # fmt: skip
    refiners = DIRECTIONS * (1 + p["unpaired"])
    return [
        ("CycleGAN", 1, count_steps(gan["steps"], gan["epochs"], larger, gan["batch_size"]), gan_step),
        ("regression", refiners, p["regression_steps"], step(lambda: Regression(plain))),
        ("pix2pix", DIRECTIONS, p["pix2pix_steps"], step(lambda: Regression(direct))),
        ("flow", refiners, p["flow_steps"], step(lambda: ResidualFlow(flow, Regression(plain)))),
    ]


def measured(batch: int = 1) -> str:
    """Seconds of one real step of the full CycleGAN on this machine, as a sentence."""
    params = notebook_parameters("02_cyclegan_training", "full")
    size = notebook_parameters("01_data_exploration", "full")["size"]
    stage = CycleGAN(settings_of(CycleGANSettings, params))
    images = {kind: torch.zeros(batch, 1, size, size) for kind in ("pet", "ct")}
    start = time.perf_counter()
    operations = flops.count(lambda: stage.step(images, 0, np.random.default_rng(0), Pass(bf16=False)))
    seconds = time.perf_counter() - start
    return (
        f"Measured on this machine's CPU: a step of {batch} slice of each kind, float32, {operations / 1e12:.2f} "
        f"TFLOP in {seconds:.0f} s, {operations / seconds / 1e9:.0f} GFLOP/s."
    )


def report() -> str:
    """The projection as Markdown."""
    lines, totals = [], [0.0, 0.0]
    for name, count, steps, step in stages():
        span = [count * h for h in hours(steps, step)]
        totals = [a + b for a, b in zip(totals, span, strict=True)]
        memory = f"{step.weights / 1e9:.2f} + {step.kept / 1e9:.1f} GB"
        lines.append([
            name, f"{count} × {steps:,}", f"{step.flop / 1e12:.2f}", f"{step.moved / 1e9:.0f}", memory,
            f"{span[0]:.1f} to {span[1]:.1f}",
        ])  # fmt: skip
    lines.append(["together", "", "", "", "", f"{totals[0]:.1f} to {totals[1]:.1f}"])
    heads = ("", "steps", "TFLOP a step", "GB moved a step", "weights, Adam, averages + kept for backward", "hours")
    c, b = ([f"{100 * share:.0f} %" for share in shares] for shares in (COMPUTE_SHARE, BANDWIDTH_SHARE))
    return (
        f"{markdown(heads, lines)}\n\n"
        f"A projection, not a measurement: nothing of this ran on a GPU. Assumed: {STUDIES} studies of as many "
        f"patients, {SCAN_MM / 1000:g} m scanned each; one H200 ({PEAK_TFLOP_S:g} TFLOP/s bfloat16 dense, "
        f"{BANDWIDTH_TB_S} TB/s, {MEMORY_GB} GB: NVIDIA's data sheet), of whose arithmetic {c[0]} (best) to {c[1]} "
        f"(worst) is sustained, and of whose bandwidth {b[0]} to {b[1]}, one after the other. Without the time to "
        "prepare, validate, save and score, and without CUDA's own memory and workspaces of a few GB."
    )


def main() -> None:
    """Prints the projection and writes it into the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="also time one real step here: a minute or two")
    args = parser.parse_args()
    flops.check()
    text = "\n\n".join([report(), *([measured()] if args.measure else []), provenance()])
    print(text)
    into_readme("projection", text)


if __name__ == "__main__":
    main()
