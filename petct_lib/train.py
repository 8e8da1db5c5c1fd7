"""The training loop on accelerate: devices, precision, schedule, EMA, logs, atomic checkpoints, exact resume.

A stage (`CycleGAN`, `Refiner`) has `nets`, `ema` and `optimisers` (by name), `step(batch, rng, backward) → losses`,
`preview(batch) → picture`, and `extra_state` / `load_extra_state`. Every step draws its batch and noise from a
generator seeded by (seed, step), so a resumed run sees what an uninterrupted one sees.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from petct_lib import InputError
from petct_lib.files import replacing
from petct_lib.progress import bar


class Batches(Protocol):
    """Where training data comes from."""

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """One batch, (B, 1, H, W) each; all randomness from `rng`."""

    def describe(self) -> dict:
        """What would change the batches (size, augmentation, patients): compared when training resumes."""


@dataclass(frozen=True)
class FitSettings:
    """How long, and how often to log and save."""

    steps: int
    decay_from: float = 0.5  # share of the steps at constant rate, then linear to 0 (Zhu 2017: 100 + 100 epochs)
    log_every: int = 10
    preview_every: int = 250
    checkpoint_every: int = 250
    mixed_precision: str = "no"  # "bf16" on a GPU that has it

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.preview_every, self.checkpoint_every) < 1:
            raise InputError(f"steps and intervals of a training must be at least 1: {self}")


def steps_of(steps: int | None, epochs: int | None, slices: int, batch_size: int) -> int:
    """`steps`, or those in so many passes over the slices, for unpaired data the larger set (as in Zhu et al. 2017)."""
    if (steps is None) == (epochs is None) or batch_size < 1:
        raise InputError(f"give either steps or epochs, and a batch size: steps {steps}, epochs {epochs}, {batch_size}")
    return steps if epochs is None else epochs * max(1, slices // batch_size)


def linear_decay(step: int, steps: int, decay_from: float) -> float:
    """Factor on the learning rate at a step: 1, then linear to 0 after `decay_from` × steps (Zhu 2017, §4)."""
    start = decay_from * steps
    return 1.0 if step < start else max(0.0, (steps - step) / max(1.0, steps - start))


def save_checkpoint(state: dict, path: Path) -> None:
    """torch.save to a temporary name, then rename: the old checkpoint stays whole until the new one is."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's tensors and plain values; nothing in it is executed. Raises InputError where it is not one."""
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); remove it to train again"
        ) from None


def state_of(stage: object, step: int, history: list[dict], origin: dict, accelerator: Accelerator) -> dict:
    """All that `fit` needs to go on, and all that `translate` needs to load."""
    return {
        "step": step,
        "origin": origin,
        "history": history,
        "nets": {name: accelerator.unwrap_model(net).state_dict() for name, net in stage.nets.items()},
        "ema": {name: net.state_dict() for name, net in stage.ema.items()},
        "optimisers": {name: optimiser.state_dict() for name, optimiser in stage.optimisers.items()},
        **stage.extra_state(),
    }


def restore(stage: object, state: dict) -> None:
    """Weights, averages, optimisers and the rest from a checkpoint into a stage of the same settings."""
    for part in ("nets", "ema", "optimisers"):
        for name, value in state[part].items():
            getattr(stage, part)[name].load_state_dict(value)
    stage.load_extra_state(state)


def fit(
    stage: object, batches: Batches, settings: FitSettings, *, checkpoint: Path, logs: Path, fingerprint: str,
    seed: int, resume: bool = True, preview: dict[str, Tensor] | None = None, name: str = "training",
) -> list[dict]:  # fmt: skip
    """Train a stage for `settings.steps` steps and leave its checkpoint; returns the losses logged, one dict a row.

    preview: a fixed batch, whose translation TensorBoard shows. With `resume`, a checkpoint of
    the same settings and data is continued (and a finished one returned as it is); of others, InputError.
    """
    torch.set_flush_denormal(True)  # denormals slow small networks on a CPU several times
    origin = {
        "settings": stage.extra_state()["settings"], "data": fingerprint, "seed": seed, "batch": batches.describe(),
        "steps": settings.steps, "decay": settings.decay_from, "precision": settings.mixed_precision,
    }  # fmt: skip
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    start, history = _resume(stage, checkpoint, origin) if resume else (0, [])
    if start >= settings.steps:
        return history
    _prepare(stage, accelerator)
    writer = SummaryWriter(str(logs), purge_step=start) if accelerator.is_main_process else None
    steps = bar(range(start, settings.steps), name, initial=start, total=settings.steps, disable=writer is None)
    for step in steps:
        _set_rate(stage, linear_decay(step, settings.steps, settings.decay_from))
        rng = np.random.default_rng([seed, step, accelerator.process_index])
        batch = {k: v.to(accelerator.device) for k, v in batches(rng).items()}
        losses = stage.step(batch, rng, accelerator.backward)
        if step % settings.log_every == 0 or step + 1 == settings.steps:
            history.append(_log(writer, steps, step, losses, checkpoint))
        if preview and writer and (step + 1) % settings.preview_every == 0:
            writer.add_image("preview", stage.preview(preview), step + 1)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            if accelerator.is_main_process:
                save_checkpoint(state_of(stage, step + 1, history, origin, accelerator), checkpoint)
            accelerator.wait_for_everyone()
    if writer:
        writer.close()
    return history


def _resume(stage: object, checkpoint: Path, origin: dict) -> tuple[int, list[dict]]:
    if not checkpoint.exists():
        return 0, []
    state = load_checkpoint(checkpoint)
    differs = [key for key, value in origin.items() if state["origin"].get(key) != value]
    if differs:
        raise InputError(
            f"{checkpoint}: made with other {', '.join(differs)}; use another run folder, or train with resume=False"
        )
    restore(stage, state)
    return state["step"], state["history"]


def _prepare(stage: object, accelerator: Accelerator) -> None:
    for kind in ("nets", "optimisers"):
        parts = getattr(stage, kind)
        parts.update({name: accelerator.prepare(part) for name, part in parts.items()})
    for ema in stage.ema.values():
        ema.to(accelerator.device)


def _set_rate(stage: object, factor: float) -> None:
    for optimiser in stage.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = stage.settings.lr * factor


def _log(writer: SummaryWriter | None, steps: tqdm, step: int, losses: dict[str, Tensor], checkpoint: Path) -> dict:
    row = {key: float(value.detach()) for key, value in losses.items()}
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if bad:
        saved = checkpoint if checkpoint.exists() else "none yet"
        raise FloatingPointError(f"step {step}: loss {', '.join(bad)} is not finite; last good checkpoint: {saved}")
    steps.set_postfix({key: f"{value:.3f}" for key, value in row.items()}, refresh=False)
    if writer:
        for key, value in row.items():
            writer.add_scalar(f"loss/{key}", value, step)
    return {"step": step, **row}
