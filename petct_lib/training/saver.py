"""The checkpoint of a training: what it was made with, its rows, and exact resume.

The files themselves, written whole or not at all, are the business of `models.checkpoints`.
"""

from pathlib import Path

from accelerate import Accelerator

from petct_lib import InputError
from petct_lib.models.checkpoints import clear_leftovers, load_checkpoint, restore, save_checkpoint
from petct_lib.models.stage import Stage


class Saver:
    """Writes a training's state to `path`, and takes it from there.

    origin: what decides the result (settings, data, seed): a checkpoint of another is never continued. keep: how many
    of the newest stay. `history`: the rows logged so far; `saved`: the step of the newest state, None before the first.
    """

    def __init__(self, stage: Stage, path: Path, origin: dict, keep: int, accelerator: Accelerator) -> None:
        self.stage, self.path, self.origin, self.keep, self.accelerator = stage, path, origin, keep, accelerator
        self.history: list[dict] = []
        self.saved: int | None = None

    def resume(self) -> int:
        """Takes the checkpoint's state into the stage, where there is one; gives the number of steps that it has made.

        InputError for one of other settings or data, and for one without what a training needs.
        """
        if not self.path.exists():
            return 0
        state = load_checkpoint(self.path)
        if differs := list_differences(state["origin"], self.origin):
            raise InputError(
                f"{self.path}: made with other {'; '.join(differs)}. Use another run folder, or train with resume=False"
            )
        if "nets" not in state:
            raise InputError(f"{self.path}: holds the averaged weights alone, which no training can go on from")
        restore(self.stage, state)
        self.history, self.saved = state["history"], state["step"]
        return state["step"]

    def clear_leftovers(self, start: int) -> None:
        """See `checkpoints.clear_leftovers`."""
        if self.accelerator.is_main_process:
            clear_leftovers(self.path, start)

    def save(self, done: int) -> None:
        """The state after so many steps: all that `resume` needs, and all that `translate` needs to load."""
        if self.accelerator.is_main_process:
            parts = {kind: getattr(self.stage, kind) for kind in ("nets", "ema", "optimisers")}
            states = {kind: {k: part.state_dict() for k, part in named.items()} for kind, named in parts.items()}
            state = {"step": done, "origin": self.origin, "history": self.history, **states}
            save_checkpoint({**state, **self.stage.extra_state()}, self.path, keep=self.keep)
        self.saved = done
        self.accelerator.wait_for_everyone()

    def last_good(self) -> str:
        """Where a training that went wrong can be taken up again, in words."""
        if self.saved is None:
            return "there is no checkpoint yet"
        return f"last good checkpoint: step {self.saved}, {self.path}"


def list_differences(before: dict, now: dict) -> list[str]:
    """What two origins differ in, with both values.

    >>> list_differences({"seed": 0, "lr": 0.1}, {"seed": 0, "lr": 0.2})
    ['lr (0.1, now 0.2)']
    """
    lines = []
    for key, value in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            lines += [f"{key}: {difference}" for difference in list_differences(old, {**dict.fromkeys(old), **value})]
        elif old != value:
            lines.append(f"{key} ({old!r}, now {value!r})")
    return lines
