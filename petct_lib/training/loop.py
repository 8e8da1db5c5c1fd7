"""The training loop: devices, precision, schedule, watchers, exact resume, and what stops a training.

What is trained is a `models.stage.Stage`. Every step draws its batch and noise from a generator seeded by (seed, step):
that pair is the whole random state, so a resumed run sees what an uninterrupted one sees. All processes draw the same
numbers and keep the same state; each computes its share of the batch.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from petct_lib import InputError
from petct_lib.common.memory import keep_freed_memory
from petct_lib.common.progress import progress_bar
from petct_lib.models.stage import Stage
from petct_lib.training.interrupt import Interrupt
from petct_lib.training.nan_guard import Guard
from petct_lib.training.saver import Saver
from petct_lib.training.update import Updates

LOSSES_SHOWN = ("adversarial", "cycle", "l1", "mse")  # in the progress bar, which is short
CHANGES_THE_RESULT = ("steps", "decay_from", "mixed_precision")  # so: compared on resuming


class Batches(Protocol):
    """Where training data comes from."""

    def __call__(self, rng: np.random.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Share `rank` of `world` of one batch, (B, C, H, W) each; all randomness from `rng`."""

    def names(self, rng: np.random.Generator) -> list[str]:
        """The slices of the batch that an equal `rng` draws."""

    def describe(self) -> dict:
        """What would change the batches (size, augmentation, patients): compared when training resumes."""


class Watcher(Protocol):
    """Is told what happens: a log, a plot."""

    def start(self, name: str, total_steps: int, history: list[dict]) -> None:
        """history: the rows of the steps before, where a training resumes."""

    def row(self, row: dict) -> None:
        """What a step logged: "step", losses, and the validation's scores where there was one."""

    def picture(self, step: int, picture: Tensor) -> None:
        """A sample panel, (1, H, W) in [0, 1]."""

    def close(self) -> None:
        """The training has ended, or was stopped."""


@dataclass(frozen=True)
class FitSettings:
    """How long, how, and how often to log and save. InputError for settings out of their range."""

    steps: int
    decay_from: float = 0.5  # share of the steps at constant rate, then linear to 0 (Zhu 2017: 100 + 100 epochs)
    log_every: int = 10
    preview_every: int = 250
    checkpoint_every: int = 250  # and to validate
    keep: int = 2  # the newest checkpoints that stay
    mixed_precision: str = "no"  # "bf16" on a GPU that has it
    loss_limit: float = 1e4  # a loss beyond it has exploded: images lie in [−1, 1], sound losses below 100
    channels_last: bool = False  # memory layout that convolutions on a GPU are faster with

    def __post_init__(self) -> None:
        least = min(self.steps, self.log_every, self.preview_every, self.checkpoint_every, self.keep)
        if least < 1:
            raise InputError(f"steps, intervals and keep of a training must be at least 1: {self}")
        if self.mixed_precision not in ("no", "bf16"):
            raise InputError(
                f"mixed_precision {self.mixed_precision!r}: it must be no or bf16, whose range is float32's"
            )


def pick_settings(
    stage: str, settings: Mapping[str, object], *kinds: type, without: Collection[str] = ()
) -> list[dict[str, object]]:
    """Of `settings` by name, those that each dataclass has. InputError for one that none of them has.

    without: fields that nobody sets by name.
    """
    names = [{field.name for field in fields(kind)} - {"steps", *without} for kind in kinds]
    known = set().union(*names)
    if unknown := sorted(set(settings) - known):
        raise InputError(f"{stage} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return [{name: value for name, value in settings.items() if name in own} for own in names]


def count_steps(steps: int | None, epochs: int | None, slices: int, batch_size: int) -> int:
    """`steps`, or those in so many passes over the slices, for unpaired data the larger set (as in Zhu et al. 2017).

    InputError unless one of steps and epochs is None and the other is not, and for an empty batch.

    >>> count_steps(None, 200, slices=1000, batch_size=4)
    50000
    """
    if (steps is None) == (epochs is None) or batch_size < 1:
        raise InputError(f"give either steps or epochs, and a batch size: steps {steps}, epochs {epochs}, {batch_size}")
    return steps if epochs is None else epochs * max(1, slices // batch_size)


def linear_decay(step: int, steps: int, decay_from: float) -> float:
    """Factor on the learning rate at a step: 1, then linear to 0 after `decay_from` × steps (Zhu 2017, §4).

    >>> [linear_decay(step, 200, 0.5) for step in (0, 99, 150, 200)]
    [1.0, 1.0, 0.5, 0.0]
    """
    start = decay_from * steps
    return 1.0 if step < start else max(0.0, (steps - step) / max(1.0, steps - start))


def fit(
    stage: Stage, batches: Batches, settings: FitSettings, *, checkpoint: Path, fingerprint: str, seed: int,
    resume: bool = True, watchers: Sequence[Watcher] = (), preview: dict[str, Tensor] | None = None,
    validate: Callable[[Stage], dict[str, float]] | None = None, name: str = "training",
) -> list[dict]:  # fmt: skip
    """Train a stage for `settings.steps` steps and leave its checkpoint; returns the rows logged.

    preview: a fixed batch, whose translation the watchers are shown. validate: scores of the stage at every checkpoint,
    for the log. With `resume`, a checkpoint of the same settings and data is continued (and a finished one returned as
    it is); of others, InputError. Ctrl-C and SIGTERM end the step, save, and stop. A loss that is not finite, or has
    exploded, raises FloatingPointError.
    """
    torch.set_flush_denormal(True)  # denormals slow small networks on a CPU several times
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    origin = {"data": fingerprint, "seed": seed, **_origin(stage, batches, settings)}
    saver = Saver(stage, checkpoint, origin, settings.keep, accelerator)
    start = saver.resume() if resume else 0
    if start == settings.steps:
        return saver.history
    saver.clear_leftovers(start)
    _place(stage, settings, accelerator.device)
    guard = Guard(stage, batches.names, seed, settings.loss_limit, accelerator)
    log = _Log(watchers if accelerator.is_main_process else (), saver.history, accelerator)
    update = Updates(stage.optimisers, accelerator=accelerator, mixed_precision=settings.mixed_precision)
    numbers = range(start, settings.steps)
    steps = progress_bar(numbers, name, initial=start, total=settings.steps, disable=not accelerator.is_main_process)

    with Interrupt() as interrupt, log.open(name, settings.steps):
        drawn = _draw(batches, numbers, seed, accelerator, settings.channels_last)
        for step, (batch, rng) in zip(steps, drawn, strict=True):
            _set_rate(stage, linear_decay(step, settings.steps, settings.decay_from))
            losses = stage.step(batch, step, rng, update)
            guard.see(step, losses)
            done, last = step + 1, step + 1 == settings.steps
            saving = last or done % settings.checkpoint_every == 0
            if saving or step % settings.log_every == 0:
                guard.stop_if_bad(saver, saving)
                scores = validate(stage) if saving and validate and accelerator.is_main_process else {}
                row = log.row(step, losses, scores)
                steps.set_postfix({k: f"{v:.2f}" for k, v in row.items() if k in LOSSES_SHOWN}, refresh=False)
            if preview and (last or done % settings.preview_every == 0):
                log.picture(done, stage, preview)
            stopping = _asked_to_stop(interrupt, step, settings.log_every, accelerator)
            if stopping and not saving:
                guard.stop_if_bad(saver, saving=True)
            if stopping or saving:
                saver.save(done)
            if stopping:
                interrupt.stop(f"stopped after step {done} of {settings.steps}, saved in {checkpoint}")
    return saver.history


def _origin(stage: Stage, batches: Batches, settings: FitSettings) -> dict:
    """What decides the result of a training beside its data and seed: compared when it resumes."""
    changing = {name: value for name, value in asdict(settings).items() if name in CHANGES_THE_RESULT}
    return {"settings": stage.extra_state()["settings"], "batches": batches.describe(), **changing}


class _Log:
    """The rows of a training, and those who are told of them."""

    def __init__(self, watchers: Sequence[Watcher], history: list[dict], accelerator: Accelerator) -> None:
        self.watchers, self.history, self.accelerator = watchers, history, accelerator

    @contextmanager
    def open(self, name: str, steps: int) -> Iterator[None]:
        """Tells the watchers that a training of so many steps starts, and that it ends, however it does."""
        for watcher in self.watchers:
            watcher.start(name, steps, self.history)
        try:
            yield
        finally:
            for watcher in self.watchers:
                watcher.close()

    def row(self, step: int, losses: dict[str, Tensor], scores: dict[str, float]) -> dict:
        """A row of the losses, means over all processes, and of validation scores where there are some."""
        values = torch.stack([value.float() for value in losses.values()])
        mean = self.accelerator.reduce(values, reduction="mean") if self.accelerator.num_processes > 1 else values
        row = {"step": step, **dict(zip(losses, mean.tolist(), strict=True))}
        row |= {key: float(score) for key, score in scores.items()}
        self.history.append(row)
        for watcher in self.watchers:
            watcher.row(row)
        return row

    def picture(self, step: int, stage: Stage, batch: dict[str, Tensor]) -> None:
        """Shows the watchers, where there are some, what the batch is translated to."""
        if self.watchers:
            picture = stage.preview(batch)
            for watcher in self.watchers:
                watcher.picture(step, picture)


def _place(stage: Stage, settings: FitSettings, device: torch.device) -> None:
    """Networks and optimisers on the device, in the layout that the settings say."""
    keep_freed_memory()
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    for net in (*stage.nets.values(), *stage.ema.values()):
        net.to(device, memory_format=layout)
    for ema in stage.ema.values():
        ema.n_averaged = ema.n_averaged.cpu()  # it is read at every step, and a GPU would be waited for
    for optimiser in stage.optimisers.values():
        optimiser.load_state_dict(optimiser.state_dict())  # moves its state to where the parameters are now


def _draw(
    batches: Batches, steps: range, seed: int, accelerator: Accelerator, channels_last: bool
) -> Iterator[tuple[dict[str, Tensor], np.random.Generator]]:
    """The batch of each step on its device, and the step's generator; for a GPU, drawn during the step before."""
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def draw(step: int) -> tuple[dict[str, Tensor], np.random.Generator]:
        rng = np.random.default_rng([seed, step])
        batch = batches(rng, rank, world)
        return {k: v.to(device, non_blocking=True, memory_format=layout) for k, v in batch.items()}, rng

    return prefetch(draw, steps) if device.type != "cpu" else map(draw, steps)


def prefetch(draw: Callable, steps: range) -> Iterator:
    """`draw(step)` for each step in turn, the next one drawn by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(draw, steps[0])
        for step in steps:
            current = following.result()
            if step + 1 in steps:
                following = thread.submit(draw, step + 1)
            yield current


def _asked_to_stop(interrupt: Interrupt, step: int, log_every: int, accelerator: Accelerator) -> bool:
    """Several processes agree, at the steps that are logged: each may have been asked at another moment."""
    if accelerator.num_processes == 1:
        return interrupt.asked
    if step % log_every:
        return False
    flag = torch.tensor(float(interrupt.asked), device=accelerator.device)
    return bool(accelerator.reduce(flag) > 0)


def _set_rate(stage: Stage, factor: float) -> None:
    for optimiser in stage.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = stage.settings.lr * factor
