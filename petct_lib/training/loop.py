"""The training loop: devices, precision, schedule, watchers, exact resume, and what stops a training.

What is trained is a `models.stage.Stage`. Every step draws its batch and noise from a generator seeded by (seed, step):
that pair is the whole random state, so a resumed run sees what an uninterrupted one sees. All processes draw the same
numbers and keep the same state; each computes its share of the batch.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from petct_lib import InputError
from petct_lib.common.memory import keep_freed_memory
from petct_lib.common.progress import bar
from petct_lib.models.checkpoints import clear_leftovers, load_checkpoint, restore, save_checkpoint
from petct_lib.models.stage import Stage
from petct_lib.training.interrupt import Interrupt
from petct_lib.training.update import Updates

LOSSES_SHOWN = ("adversarial", "cycle", "l1", "mse")  # in the progress bar, which is short
CHANGES_THE_RESULT = ("steps", "decay_from", "mixed_precision", "accumulate", "clip_norm")  # so: compared on resuming
SCORE = "validation_score"  # what `validate` is to give: lower is better


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
    keep: int = 2  # the newest checkpoints that stay, beside the best
    mixed_precision: str = "no"  # "bf16" on a GPU that has it
    accumulate: int = 1  # parts that a batch goes through in: less memory, the same gradient
    clip_norm: float | None = None  # longest gradient of an update; None: any
    loss_limit: float = 1e4  # a loss beyond it has exploded: images lie in [−1, 1], sound losses below 100
    channels_last: bool = False  # memory layout that convolutions on a GPU are faster with
    compile: bool = False  # torch.compile: minutes at the start, fewer later; for a GPU

    def __post_init__(self) -> None:
        least = min(self.steps, self.log_every, self.preview_every, self.checkpoint_every, self.keep, self.accumulate)
        if least < 1:
            raise InputError(f"steps, intervals, keep and accumulate of a training must be at least 1: {self}")
        if self.mixed_precision not in ("no", "bf16"):
            raise InputError(
                f"mixed_precision {self.mixed_precision!r}: it must be no or bf16, whose range is float32's"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError(f"clip_norm {self.clip_norm} must be above 0, or None")


def steps_of(steps: int | None, epochs: int | None, slices: int, batch_size: int) -> int:
    """`steps`, or those in so many passes over the slices, for unpaired data the larger set (as in Zhu et al. 2017).

    InputError unless one of steps and epochs is None and the other is not, and for an empty batch.

    >>> steps_of(None, 200, slices=1000, batch_size=4)
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
    with a `validation_score` by which the best is kept. With `resume`, a checkpoint of the same settings and data is
    continued (and a finished one returned as it is); of others, InputError. Ctrl-C and SIGTERM end the step, save, and
    stop. A loss that is not finite, or has exploded, raises FloatingPointError.
    """
    torch.set_flush_denormal(True)  # denormals slow small networks on a CPU several times
    training = _Training(stage, batches, settings, checkpoint, fingerprint, seed)
    if resume:
        training.resume()
    if training.done < settings.steps:
        training.run(watchers if training.is_main else (), preview, validate, name)
    return training.history


class _Training:
    """What one call of `fit` holds."""

    def __init__(
        self, stage: Stage, batches: Batches, settings: FitSettings, checkpoint: Path, fingerprint: str, seed: int
    ) -> None:
        self.stage, self.batches, self.settings, self.checkpoint, self.seed = stage, batches, settings, checkpoint, seed
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.is_main = self.accelerator.is_main_process
        changing = {k: v for k, v in asdict(settings).items() if k in CHANGES_THE_RESULT}
        stage_settings = stage.extra_state()["settings"]
        self.origin = {
            "settings": stage_settings, "data": fingerprint, "seed": seed, "batches": batches.describe(), **changing,
        }  # fmt: skip
        self.done, self.history = 0, []
        self.saved: int | None = None  # the step whose checkpoint is the newest of this training

    def resume(self) -> None:
        """Goes on where the checkpoint ended, if there is one."""
        if not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint)
        if differs := _differences(state["origin"], self.origin):
            raise InputError(
                f"{self.checkpoint}: made with other {'; '.join(differs)}. Use another run folder, or train with "
                "resume=False"
            )
        if "nets" not in state:
            raise InputError(f"{self.checkpoint}: holds the averaged weights alone, which no training can go on from")
        restore(self.stage, state)
        self.done, self.history, self.saved = state["step"], state["history"], state["step"]

    def run(self, watchers: Sequence[Watcher], preview: dict | None, validate: Callable | None, name: str) -> None:
        """From the step that was reached to the last."""
        settings, start = self.settings, self.done
        if self.is_main:
            clear_leftovers(self.checkpoint, start)
        self._place()
        self.guard = _Guard(settings.loss_limit, self.accelerator)
        update = Updates(
            self.stage.optimisers, accelerator=self.accelerator, accumulate=settings.accumulate,
            clip_norm=settings.clip_norm, mixed_precision=settings.mixed_precision,
        )  # fmt: skip
        for watcher in watchers:
            watcher.start(name, settings.steps, self.history)
        numbers = range(start, settings.steps)
        steps = bar(numbers, name, initial=start, total=settings.steps, disable=not self.is_main)
        try:
            with Interrupt() as interrupt:
                for step, (batch, rng) in zip(steps, self._draw(numbers), strict=True):
                    _set_rate(self.stage, linear_decay(step, settings.steps, settings.decay_from))
                    self._after(step, self.stage.step(batch, step, rng, update), steps, watchers, preview, validate)
                    if self._asked_to_stop(interrupt, step):
                        self._save(None)
                        interrupt.stop(
                            f"stopped after step {self.done} of {settings.steps}, saved in {self.checkpoint}"
                        )
        finally:
            for watcher in watchers:
                watcher.close()

    def _place(self) -> None:
        keep_freed_memory()
        layout = torch.channels_last if self.settings.channels_last else torch.preserve_format
        for net in (*self.stage.nets.values(), *self.stage.ema.values()):
            net.to(self.accelerator.device, memory_format=layout)
        for ema in self.stage.ema.values():
            ema.n_averaged = ema.n_averaged.cpu()  # it is read at every step, and a GPU would be waited for
        for optimiser in self.stage.optimisers.values():
            optimiser.load_state_dict(optimiser.state_dict())  # moves its state to where the parameters are now
        if self.settings.compile:
            for net in self.stage.nets.values():
                net.compile()

    def _draw(self, steps: range) -> Iterator[tuple[dict[str, Tensor], np.random.Generator]]:
        """The batch of each step on its device, and the step's generator; for a GPU, drawn during the step before."""
        rank, world, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format

        def draw(step: int) -> tuple[dict[str, Tensor], np.random.Generator]:
            rng = np.random.default_rng([self.seed, step])
            batch = self.batches(rng, rank, world)
            return {k: v.to(device, non_blocking=True, memory_format=layout) for k, v in batch.items()}, rng

        return ahead(draw, steps) if device.type != "cpu" else map(draw, steps)

    def _after(
        self, step: int, logged: dict[str, Tensor], steps: tqdm, watchers: Sequence[Watcher], preview: dict | None,
        validate: Callable | None,
    ) -> None:  # fmt: skip
        """What follows a step: the guard, logs, pictures, checkpoint."""
        settings, last = self.settings, step + 1 == self.settings.steps
        self.done = step + 1
        self.guard.see(step, logged)
        to_save = last or self.done % settings.checkpoint_every == 0
        if step % settings.log_every == 0 or to_save:
            self._stop_if_bad(to_save)
            row = self._row(step, logged)
            steps.set_postfix({k: f"{v:.2f}" for k, v in row.items() if k in LOSSES_SHOWN}, refresh=False)
            if to_save and validate and self.is_main:
                row |= {key: float(score) for key, score in validate(self.stage).items()}
            self.history.append(row)
            for watcher in watchers:
                watcher.row(row)
        if preview and watchers and (last or self.done % settings.preview_every == 0):
            picture = self.stage.preview(preview)
            for watcher in watchers:
                watcher.picture(self.done, picture)
        if to_save:
            self._save(validate)

    def _row(self, step: int, logged: dict[str, Tensor]) -> dict:
        values = torch.stack([value.float() for value in logged.values()])
        mean = self.accelerator.reduce(values, reduction="mean") if self.accelerator.num_processes > 1 else values
        return {"step": step, **dict(zip(logged, mean.tolist(), strict=True))}

    def _stop_if_bad(self, saving: bool) -> None:
        if saving:
            self.guard.see(self.done - 1, self._zeros())
        if found := self.guard.first():
            step, losses = found
            slices = self.batches.names(np.random.default_rng([self.seed, step]))
            good = "there is no checkpoint yet"
            if self.saved is not None:
                good = f"last good checkpoint: step {self.saved}, {self.checkpoint}"
            raise FloatingPointError(
                f"step {step}: {', '.join(losses)} not finite or beyond {self.settings.loss_limit:g}; {good}; the "
                f"batch's slices: {'; '.join(slices)}. Try a smaller lr, or clip_norm"
            )

    def _zeros(self) -> dict[str, Tensor]:
        """0 for the weights of each network and each optimiser's state, NaN where they are not finite.

        A gradient may overflow while the losses are finite, and would be seen in the next step's only.
        """
        held = {f"weights of {name}": list(net.parameters()) for name, net in self.stage.nets.items()}
        for name, optimiser in self.stage.optimisers.items():
            states = itertools.chain(*(state.values() for state in optimiser.state.values()))
            held[f"state of optimiser {name}"] = [value for value in states if isinstance(value, Tensor)]
        return {key: sum(0.0 * value.detach().sum() for value in values) for key, values in held.items() if values}

    def _asked_to_stop(self, interrupt: Interrupt, step: int) -> bool:
        """Several processes agree, at the steps that are logged: each may have been asked at another moment."""
        if self.accelerator.num_processes == 1:
            return interrupt.asked
        if step % self.settings.log_every:
            return False
        flag = torch.tensor(float(interrupt.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def _save(self, validate: Callable | None) -> None:
        self._stop_if_bad(saving=True)
        if self.is_main:
            scores = [row[SCORE] for row in self.history if math.isfinite(row.get(SCORE, math.nan))]
            best = validate is not None and self.history[-1].get(SCORE) == min(scores, default=math.nan)
            save_checkpoint(self.state(), self.checkpoint, keep=self.settings.keep, best=best)
        self.saved = self.done
        self.accelerator.wait_for_everyone()

    def state(self) -> dict:
        """All that `resume` needs, and all that `translate` needs to load."""
        parts = {kind: getattr(self.stage, kind) for kind in ("nets", "ema", "optimisers")}
        states = {kind: {name: part.state_dict() for name, part in of.items()} for kind, of in parts.items()}
        return {
            "step": self.done, "origin": self.origin, "history": self.history, **states, **self.stage.extra_state(),
        }  # fmt: skip


def _differences(before: dict, now: dict) -> list[str]:
    """What a checkpoint's origin and the present one differ in, with both values."""
    found = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            found += [f"{key}: {difference}" for difference in _differences(old, {**dict.fromkeys(old), **value})]
        elif old != value:
            found.append(f"{key} ({old!r}, now {value!r})")
    return found


def ahead(draw: Callable, steps: range) -> Iterator:
    """`draw(step)` for each step in turn, the next one drawn by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(draw, steps[0])
        for step in steps:
            current = following.result()
            if step + 1 in steps:
                following = thread.submit(draw, step + 1)
            yield current


class _Guard:
    """Remembers, on the device, the first step at which each loss was not finite or beyond the limit.

    So a GPU is not waited for at each step, and the step named is still the right one.
    """

    def __init__(self, limit: float, accelerator: Accelerator) -> None:
        self.limit, self.accelerator = limit, accelerator
        self.bad: dict[str, Tensor] = {}

    def see(self, step: int, losses: dict[str, Tensor]) -> None:
        """Takes a step's losses in."""
        for key, value in losses.items():
            now = torch.where(value.abs() <= self.limit, math.inf, float(step))  # NaN is not ≤ anything
            self.bad[key] = torch.minimum(self.bad.get(key, now), now)

    def first(self) -> tuple[int, list[str]] | None:
        """The first bad step and its losses; the same answer in all processes."""
        earliest = torch.stack(list(self.bad.values()))
        if self.accelerator.num_processes > 1:
            earliest = self.accelerator.gather(earliest[None]).amin(0)
        step = earliest.min().item()
        names = [key for key, value in zip(self.bad, earliest.tolist(), strict=True) if value == step]
        return (int(step), names) if math.isfinite(step) else None


def _set_rate(stage: Stage, factor: float) -> None:
    for optimiser in stage.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = stage.settings.lr * factor
