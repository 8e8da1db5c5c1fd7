"""What is not finite ends a training before it reaches a checkpoint, and is named."""

import math

import pytest
import tiny
import torch
from accelerate import Accelerator

from petct_lib.training.nan_guard import Guard
from petct_lib.training.saver import Saver


@pytest.fixture
def guarded(tmp_path):
    stage, batches = tiny.stage_of("regression")
    accelerator = Accelerator(cpu=True)
    return (
        stage,
        Guard(stage, batches.names, 3, 100.0, accelerator),
        Saver(stage, tmp_path / "c.pt", {}, 1, accelerator),
    )


def test_sound_losses_and_weights_pass(guarded):
    _, guard, saver = guarded
    for step in range(5):
        guard.see(step, {"l1": torch.tensor(-99.0), "adversarial": torch.tensor(0.0)})
        guard.stop_if_bad(saver, saving=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 100.5])
def test_the_first_bad_step_and_its_losses_are_named_though_later_ones_are_sound(guarded, value):
    _, guard, saver = guarded
    for step in range(6):
        bad = value if step in (2, 4) else 1.0
        guard.see(step, {"l1": torch.tensor(bad), "adversarial": torch.tensor(1.0)})
    with pytest.raises(FloatingPointError, match=r"^step 2: l1 not finite or beyond 100; there is no checkpoint yet"):
        guard.stop_if_bad(saver, saving=False)


def test_weights_are_looked_at_before_they_are_saved(guarded):
    stage, guard, saver = guarded
    guard.see(7, {"l1": torch.tensor(1.0)})
    with torch.no_grad():
        next(stage.nets["unet"].parameters()).view(-1)[0] = math.nan
    guard.stop_if_bad(saver, saving=False)
    with pytest.raises(FloatingPointError, match=r"step 7: weights of unet not finite.*source"):
        guard.stop_if_bad(saver, saving=True)
