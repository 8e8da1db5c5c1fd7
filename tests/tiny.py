"""Trainings of a second that the tests of several modules share, and processes to run and kill them in."""

import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.regression import Regression, RegressionSettings
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow
from petct_lib.training.loop import FitSettings, fit
from petct_lib.training.update import Updates

GAN = CycleGANSettings(width=4, blocks=1, patch_layers=2, pool_size=3, ema_decay=0.9)
REGRESSION = RegressionSettings(width=8, multipliers=(1, 2), patch=2, ema_decay=0.9)
PIX2PIX = replace(REGRESSION, coarse_dropout=1.0, lambda_adversarial=1.0, patch_width=4, patch_layers=1)
FLOW = FlowSettings(residual_spectrum=(0.3,), width=8, multipliers=(1, 2), patch=2, ema_decay=0.9)
KINDS = ("gan", "regression", "pix2pix", "flow")
PAIRED = ("source", "coarse", "target")


class RandomBatches:
    """Batches that depend on the step's generator alone, as the real ones do; slices are numbered 0 to 99."""

    def __init__(self, keys: tuple[str, ...], size: int = 2) -> None:
        self.keys, self.size, self.seen = keys, size, 0

    def __call__(self, rng, rank=0, world=1):
        self.seen += 1
        images = {}
        for key in self.keys:
            slices = [np.random.default_rng(k).uniform(-1, 1, (1, 32, 32)) for k in self._drawn(rng)]
            images[key] = torch.from_numpy(np.stack(slices).astype(np.float32))
        return images

    def names(self, rng):
        return [f"{key} {k}" for key in self.keys for k in self._drawn(rng)]

    def _drawn(self, rng):
        return rng.integers(100, size=self.size)

    def describe(self):
        return {"size": self.size}


def stage_of(kind: str, **settings: object):
    """A new stage of one of KINDS, its batches."""
    if kind == "gan":
        return CycleGAN(CycleGANSettings(**asdict(GAN) | settings)), RandomBatches(("pet", "ct"))
    if kind == "flow":
        return ResidualFlow(replace(FLOW, **settings), answering(REGRESSION)), RandomBatches(PAIRED)
    return Regression(replace(REGRESSION if kind == "regression" else PIX2PIX, **settings)), RandomBatches(PAIRED)


def answering(settings: RegressionSettings, seed: int = 1) -> Regression:
    """A regression whose averaged network answers to what it sees, as an untrained one, which gives 0, does not."""
    regression = Regression(settings, seed)
    torch.nn.init.normal_(regression.ema["unet"].module.pixels[-1].weight, std=0.1)
    return regression


class Share(Updates):
    """The updates of process `rank` of `processes`, alone; `seen`: the batch of each optimiser's last update."""

    def __init__(self, stage: object, rank: int = 0, processes: int = 1, **values: object) -> None:
        super().__init__(stage.optimisers, **values)
        self.rank, self.processes, self.seen = rank, processes, {}

    def own(self, whole):
        share = len(whole) // self.processes
        return whole[self.rank * share : (self.rank + 1) * share]

    def everyone(self, images):
        return images

    def _average(self, parameters):
        pass

    def __call__(self, kind, loss_of, batch):
        self.seen[kind] = batch
        return super().__call__(kind, loss_of, batch)


def weights(net: torch.nn.Module) -> torch.Tensor:
    """All weights of a network, one after the other."""
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def score(stage) -> dict[str, float]:
    """A validation score that goes up and down with the weights."""
    weight = next(iter(stage.nets.values())).state_dict().popitem()[1].double().sum().item()
    return {"validation_score": float(np.sin(1e5 * weight))}


def train(path: Path, kind: str = "gan", steps: int = 16, every: int = 3, **values: object) -> list[dict]:
    """A training that saves every 3 steps; `prepare(stage)` may set a trap in it; the rest goes to `fit`."""
    stage, batches = values.pop("pair", None) or stage_of(kind)
    prepare: Callable = values.pop("prepare", lambda stage: None)
    prepare(stage)
    names = ("log_every", "mixed_precision", "channels_last", "keep", "preview_every")
    settings = {"log_every": 2} | {name: values.pop(name) for name in names if name in values}
    values = {"fingerprint": "f", "seed": 3, "validate": score, **values}
    return fit(stage, batches, FitSettings(steps, checkpoint_every=every, **settings), checkpoint=path, **values)


def before_step(stage: object, step: int, act: Callable[[], None]) -> None:
    """Calls `act` when step number `step` is about to be made."""
    make = stage.step

    def watched(batch, number, rng, update):
        if number == step:
            act()
        return make(batch, number, rng, update)

    stage.step = watched


def amid_step(stage: object, step: int, act: Callable[[], None]) -> None:
    """Calls `act` in step number `step`, after a network's update and before the averages'."""
    optimiser, count = list(stage.optimisers.values())[-1], iter(range(10**6))
    before_step(stage, step, lambda: optimiser.register_step_post_hook(lambda *_: act() if next(count) == 0 else None))


def in_process(work: Callable, *arguments: object) -> int:
    """The exit code of `work(*arguments)` in a process of its own; -9 where it was killed."""
    context = multiprocessing.get_context("forkserver")  # it has imported everything once, and computed nothing
    context.set_forkserver_preload(["petct_lib.training.loop", "petct_lib.models.residual_flow", "torch._dynamo"])
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def differences(a: object, b: object, place: str = "") -> list[str]:
    """Places where two checkpoints differ, in any bit, type or order."""
    if type(a) is not type(b):
        return [place]
    if isinstance(a, torch.Tensor):
        same = (
            a.dtype == b.dtype
            and a.shape == b.shape
            and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        )
        return [] if same else [place]
    if isinstance(a, dict):
        if list(a) != list(b):
            return [place]
        return [result for key in a for result in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [place]
        return [
            result for k, pair in enumerate(zip(a, b, strict=True)) for result in differences(*pair, f"{place}/{k}")
        ]
    return [] if a == b else [place]
