"""Schedule, checkpoints, exact resume, and what stops a training."""

import numpy as np
import pytest
import torch

from petct_lib import InputError
from petct_lib.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.diffusion import Refiner, RefinerSettings
from petct_lib.train import FitSettings, fit, linear_decay, load_checkpoint, save_checkpoint, steps_of

GAN = CycleGANSettings(width=4, blocks=1, patch_layers=2, pool_size=3, ema_decay=0.9)
REFINER = RefinerSettings(width=8, multipliers=(1, 2), steps=2)


class RandomBatches:
    """Batches that depend on the step's generator alone, as the real ones do."""

    def __init__(self, keys, size=2):
        self.keys, self.size, self.seen = keys, size, 0

    def __call__(self, rng):
        self.seen += 1
        shape = (self.size, 1, 32, 32)
        return {key: torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32)) for key in self.keys}

    def describe(self):
        return {"size": self.size}


def stage_of(kind):
    if kind == "gan":
        return CycleGAN(GAN), RandomBatches(("pet", "ct"))
    return Refiner(REFINER), RandomBatches(("source", "coarse", "target"))


def run(tmp_path, kind, steps=12, stop_at=None, resume=True, every=4, **changes):
    stage, batches = stage_of(kind)
    if stop_at:
        batches = Interrupted(batches, stop_at)
    given = {"fingerprint": "f", "seed": 3, **changes}
    settings = FitSettings(steps, log_every=1, checkpoint_every=every, preview_every=5)
    history = fit(stage, batches, settings, checkpoint=tmp_path / "c.pt", logs=tmp_path / "logs", resume=resume,
                  preview=batches(np.random.default_rng(0)), **given)  # fmt: skip
    return stage, history


class Interrupted(RandomBatches):
    """Stops like a Ctrl-C in the middle of a step."""

    def __init__(self, batches, at):
        super().__init__(batches.keys, batches.size)
        self.at = at

    def __call__(self, rng):
        if self.seen == self.at:
            raise KeyboardInterrupt
        return super().__call__(rng)


def test_linear_decay():
    assert [linear_decay(s, 10, 0.5) for s in (0, 4, 5, 6, 9)] == pytest.approx([1, 1, 1, 0.8, 0.2])
    assert linear_decay(10, 10, 0.5) == 0
    assert linear_decay(9, 10, 1.0) == 1


def test_an_epoch_is_one_pass_over_the_larger_set():
    assert steps_of(None, 200, 1000, 4) == 50_000
    assert steps_of(None, 3, 2, 4) == 3
    assert steps_of(7, None, 1000, 4) == 7


@pytest.mark.parametrize(("steps", "epochs"), [(None, None), (5, 5)])
def test_steps_or_epochs_but_one_of_them(steps, epochs):
    with pytest.raises(InputError, match="either steps or epochs"):
        steps_of(steps, epochs, 10, 2)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        FitSettings(0)


def tensors_of(state):
    """Every tensor of a checkpoint with its place in it."""
    if isinstance(state, torch.Tensor):
        return {"": state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {f"{key}/{place}": tensor for key, value in pairs for place, tensor in tensors_of(value).items()}


@pytest.mark.parametrize("kind", ["gan", "refiner"])
def test_resumed_training_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, kind):
    _, history = run(tmp_path / "whole", kind)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", kind, stop_at=7)
    assert load_checkpoint(tmp_path / "cut" / "c.pt")["step"] == 4
    _, resumed_history = run(tmp_path / "cut", kind)
    a, b = (load_checkpoint(tmp_path / name / "c.pt") for name in ("whole", "cut"))
    assert a["history"] == b["history"] == history == resumed_history
    one, other = tensors_of(a), tensors_of(b)
    assert set(one) == set(other)
    assert all(torch.equal(one[place], other[place]) for place in one)
    assert any("optimisers" in place for place in one)
    assert any("ema" in place for place in one)


def test_the_rate_decays_to_the_settings_share(tmp_path):
    stage, _ = run(tmp_path, "refiner", steps=10)
    rate = stage.optimisers["denoiser"].param_groups[0]["lr"]
    assert rate == pytest.approx(REFINER.lr * linear_decay(9, 10, 0.5))


def test_a_finished_training_is_not_repeated(tmp_path):
    _, history = run(tmp_path, "refiner")
    stage, batches = stage_of("refiner")
    again = fit(stage, batches, FitSettings(12, log_every=1, checkpoint_every=4), checkpoint=tmp_path / "c.pt",
                logs=tmp_path / "logs", fingerprint="f", seed=3)  # fmt: skip
    assert batches.seen == 0
    assert again == history


def test_without_resume_it_starts_again(tmp_path):
    run(tmp_path, "refiner", steps=4)
    _, history = run(tmp_path, "refiner", steps=6, resume=False)
    assert [row["step"] for row in history] == list(range(6))


@pytest.mark.parametrize(
    ("change", "named"), [({"fingerprint": "g"}, "data"), ({"seed": 4}, "seed"), ({"steps": 9}, "steps")]
)
def test_resuming_with_something_else_is_refused(tmp_path, change, named):
    run(tmp_path, "refiner", steps=4)
    with pytest.raises(InputError, match=named):
        run(tmp_path, "refiner", **{"steps": 4, **change})


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    stage, batches = stage_of("refiner")
    stage.step = lambda *_: {"l1": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match="step 0: loss l1 is not finite"):
        fit(stage, batches, FitSettings(3), checkpoint=tmp_path / "c.pt", logs=tmp_path / "l", fingerprint="f", seed=0)
    assert not (tmp_path / "c.pt").exists()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint({"step": 1}, path)

    def full_disk(state, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint({"step": 2}, path)
    assert load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_cannot_execute_code(tmp_path, capsys):
    torch.save({"step": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


def test_missing_and_broken_checkpoints(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(b"PK not really")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_tensorboard_gets_losses_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, "gan", steps=6)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert {f"loss/{k}" for k in ("adversarial", "cycle", "identity", "D_ct", "D_pet")} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss/cycle")) == 6
    assert events.Tags()["images"] == ["preview"]
