"""Schedule, what is saved when, what stops a training, and what its watchers are told."""

import math
import resource
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from petct_lib import InputError
from petct_lib.models.checkpoints import list_earlier, load_checkpoint
from petct_lib.training.loop import FitSettings, count_steps, fit, linear_decay, prefetch


def test_linear_decay():
    assert [linear_decay(s, 10, 0.5) for s in (0, 4, 5, 6, 9)] == pytest.approx([1, 1, 1, 0.8, 0.2])
    assert linear_decay(10, 10, 0.5) == 0
    assert linear_decay(9, 10, 1.0) == 1


def test_an_epoch_is_one_pass_over_the_larger_set():
    assert count_steps(None, 200, 1000, 4) == 50_000
    assert count_steps(None, 3, 2, 4) == 3
    assert count_steps(7, None, 1000, 4) == 7


@pytest.mark.parametrize(("steps", "epochs"), [(None, None), (5, 5)])
def test_steps_or_epochs_but_one_of_them(steps, epochs):
    with pytest.raises(InputError, match="either steps or epochs"):
        count_steps(steps, epochs, 10, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"keep": 0}, "keep"),
        ({"mixed_precision": "fp16"}, "'fp16': it must be no or bf16"),
    ],
)
def test_bad_settings_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        FitSettings(**{"steps": 3, **bad})


def test_the_rate_decays_with_the_steps(tmp_path):
    stage, batches = tiny.stage_of("regression")
    rates, make = [], stage.step
    stage.step = lambda *values: rates.append(stage.optimisers["unet"].param_groups[0]["lr"]) or make(*values)
    tiny.train(tmp_path / "c.pt", steps=4, pair=(stage, batches))
    assert rates == pytest.approx([4e-4, 4e-4, 4e-4, 2e-4])


def test_a_finished_training_is_not_repeated(tmp_path):
    history = tiny.train(tmp_path / "c.pt", "regression", steps=4)
    stage, batches = tiny.stage_of("regression")
    assert tiny.train(tmp_path / "c.pt", steps=4, pair=(stage, batches)) == history
    assert batches.seen == 0
    assert tiny.differences(dict(stage.nets["unet"].state_dict()), weights(tmp_path / "c.pt")) == []


def weights(path):
    return dict(load_checkpoint(path)["nets"]["unet"])


def test_without_resume_it_starts_again(tmp_path):
    tiny.train(tmp_path / "c.pt", "regression", steps=4)
    rows = tiny.train(tmp_path / "c.pt", "regression", steps=5, resume=False)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert [load_checkpoint(p)["step"] for p in list_earlier(tmp_path / "c.pt")] == [3, 5]


class Other(tiny.RandomBatches):
    def describe(self):
        return {"size": 4}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fingerprint": "g"}, r"other data \('f', now 'g'\)"),
        ({"seed": 4}, r"other seed \(3, now 4\)"),
        ({"steps": 9}, r"other steps \(4, now 9\)"),
        ({"mixed_precision": "bf16"}, r"other mixed_precision \('no', now 'bf16'\)"),
        ({"pair": (tiny.stage_of("gan", lr=1e-3, pool_size=2)[0], tiny.RandomBatches(("pet", "ct")))},
         r"other settings: pool_size \(3, now 2\); settings: lr \(0\.0002, now 0\.001\)"),
        ({"pair": (tiny.stage_of("gan")[0], Other(("pet", "ct")))}, r"other batches: size \(2, now 4\)"),
    ],
)  # fmt: skip
def test_resuming_with_something_else_names_it(tmp_path, change, named):
    tiny.train(tmp_path / "c.pt", steps=4)
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(InputError, match=named + r".*another run folder, or train with resume=False"):
        tiny.train(tmp_path / "c.pt", **{"steps": 4, **change})
    assert (tmp_path / "c.pt").read_bytes() == before


def test_what_does_not_change_the_result_may_differ(tmp_path):
    tiny.train(tmp_path / "a" / "c.pt", "regression", steps=6, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tmp_path / "b" / "c.pt", "regression", steps=6, prepare=interrupted_at(3))
    tiny.train(tmp_path / "b" / "c.pt", "regression", steps=6, every=5, keep=3)
    assert tiny.differences(weights(tmp_path / "a" / "c.pt"), weights(tmp_path / "b" / "c.pt")) == []


def interrupted_at(step):
    def stop():
        raise KeyboardInterrupt

    return lambda stage: tiny.before_step(stage, step, stop)


def test_a_checkpoint_carries_settings_data_and_batches(tmp_path):
    tiny.train(tmp_path / "c.pt", steps=1)
    state = load_checkpoint(tmp_path / "c.pt")
    assert state["origin"]["data"] == "f"
    assert state["origin"]["batches"] == {"size": 2}
    assert state["origin"]["settings"] == state["settings"]
    assert state["settings"]["pool_size"] == 3


def test_the_last_ones_are_kept_and_the_rows_have_the_validation(tmp_path):
    scores = iter([0.5, math.nan, np.float64(0.2), 0.3, 0.2, 0.9])
    validate = lambda _: {"validation_score": next(scores)}  # noqa: E731
    rows = tiny.train(tmp_path / "c.pt", "regression", steps=12, every=2, validate=validate)
    assert [row["validation_score"] for row in rows if "validation_score" in row][2:] == [0.2, 0.3, 0.2, 0.9]
    assert [load_checkpoint(p)["step"] for p in list_earlier(tmp_path / "c.pt")] == [10, 12]


def spoiled(step, value):
    """Step number `step` logs `value` as its loss."""

    def prepare(stage):
        make = stage.step
        stage.step = lambda b, k, *rest: make(b, k, *rest) | ({"l1": torch.tensor(value)} if k == step else {})

    return prepare


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e4])
def test_a_bad_loss_stops_with_its_step_slices_and_the_last_good_checkpoint(tmp_path, value):
    path = tmp_path / "c.pt"
    with pytest.raises(FloatingPointError) as stopped:
        tiny.train(path, "regression", every=5, log_every=5, steps=20, prepare=spoiled(7, value))
    rng, drawn = np.random.default_rng([3, 7]), []
    for key in ("source", "coarse", "target"):
        drawn += [f"{key} {k}" for k in rng.integers(100, size=2)]
    assert str(stopped.value).startswith(
        f"step 7: l1 not finite or beyond 10000; last good checkpoint: step 5, {path};"
    )
    assert f"the batch's slices: {'; '.join(drawn)}. " in str(stopped.value)
    assert [load_checkpoint(p)["step"] for p in (path, *list_earlier(path))] == [5, 5]


def test_an_older_trainings_checkpoint_is_not_called_the_last_good_one(tmp_path):
    tiny.train(tmp_path / "c.pt", "regression", steps=3)
    with pytest.raises(FloatingPointError, match=r"step 1: l1 .*there is no checkpoint yet"):
        tiny.train(tmp_path / "c.pt", "regression", resume=False, prepare=spoiled(1, math.nan))


def overflows(step):
    """From step `step` on, a gradient is infinite, while that step's losses are finite."""

    def prepare(stage):
        parameter = next(next(iter(stage.nets.values())).parameters())
        tiny.before_step(stage, step, lambda: parameter.register_hook(lambda gradient: gradient * math.inf))

    return prepare


def finite_score(stage):
    assert all(p.isfinite().all() for net in stage.nets.values() for p in net.parameters())
    return tiny.score(stage)


@pytest.mark.parametrize(
    ("kind", "net"), [("gan", "G_pet2ct"), ("regression", "unet"), ("pix2pix", "unet"), ("flow", "velocity")]
)
def test_weights_that_are_not_finite_are_not_saved_though_the_losses_are(tmp_path, kind, net):
    with pytest.raises(FloatingPointError, match=f"step 5: weights of {net}.*last good checkpoint: step 3"):
        tiny.train(tmp_path / "c.pt", kind, prepare=overflows(5), validate=finite_score)
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 3


def test_an_optimiser_that_overflowed_is_not_saved_though_the_weights_are_finite(tmp_path):
    def prepare(stage):
        parameter = next(stage.nets["unet"].parameters())
        tiny.before_step(stage, 5, lambda: parameter.register_hook(lambda gradient: torch.full_like(gradient, 1e30)))

    with pytest.raises(FloatingPointError, match="step 5: state of optimiser unet not finite"):
        tiny.train(tmp_path / "c.pt", "regression", prepare=prepare, validate=None)


def train_in_little_space(path):
    """A process that may write no file beyond half a checkpoint's size once the first one is there."""

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        half = path.stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    try:
        tiny.train(path, prepare=lambda stage: tiny.before_step(stage, 4, fill))
    except InputError as error:
        (path.parent / "error").write_text(str(error))


def test_a_disk_that_fills_up_stops_with_a_clear_error_and_the_checkpoint_before_goes_on(tmp_path):
    path = tmp_path / "cut" / "c.pt"
    assert tiny.in_process(train_in_little_space, path) == 0
    error = (path.parent / "error").read_text()
    assert "checkpoint of step 6 cannot be written ([Errno 27] File too large); the one before it is whole" in error
    assert load_checkpoint(path)["step"] == 3
    assert not any(path.parent.glob(".*part"))
    tiny.train(path)
    tiny.train(tmp_path / "whole" / "c.pt")
    assert tiny.differences(load_checkpoint(tmp_path / "whole" / "c.pt"), load_checkpoint(path)) == []


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("setting", [{"mixed_precision": "bf16"}, {"channels_last": True}])
def test_other_ways_of_computing_stay_close_for_a_step_and_resume_exactly(tmp_path, kind, setting):
    plain = tiny.train(tmp_path / "plain.pt", kind, steps=1)[0]
    row = tiny.train(tmp_path / "one.pt", kind, steps=1, **setting)[0]
    assert {k: v for k, v in row.items() if k[:3] not in ("acc", "val")} == pytest.approx(
        {k: v for k, v in plain.items() if k[:3] not in ("acc", "val")}, rel=0.02
    )
    whole = tiny.train(tmp_path / "whole" / "c.pt", kind, steps=5, **setting)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tmp_path / "cut" / "c.pt", kind, steps=5, prepare=interrupted_at(4), **setting)
    assert tiny.train(tmp_path / "cut" / "c.pt", kind, steps=5, **setting) == whole
    assert all(np.isfinite(list(row.values())).all() for row in whole)
    assert tiny.differences(*(load_checkpoint(tmp_path / n / "c.pt") for n in ("whole", "cut"))) == []


def test_ahead_gives_a_plain_loops_batches_from_a_thread():
    threads = []

    def draw(step):
        threads.append(threading.current_thread())
        return np.random.default_rng(step).random(3)

    drawn = list(prefetch(draw, range(4, 9)))
    assert np.array_equal(drawn, [np.random.default_rng(k).random(3) for k in range(4, 9)])
    assert threading.main_thread() not in threads
    assert len(threads) == 5


def test_ahead_draws_one_in_advance_and_passes_an_exception_on():
    request = []

    def draw(step):
        request.append(step)
        return 1 // (2 - step)

    drawn = prefetch(draw, range(5))
    assert [next(drawn), next(drawn)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(drawn)
    assert request[:3] == [0, 1, 2]
    assert 4 not in request


class Told:
    """A watcher that writes down what it is told."""

    def __init__(self):
        self.told = []

    def start(self, name, total_steps, history):
        self.told.append(("start", name, total_steps, [row["step"] for row in history]))

    def row(self, row):
        self.told.append(("row", row["step"]))

    def picture(self, step, picture):
        assert picture.shape == (1, 128, 64)
        self.told.append(("picture", step))

    def close(self):
        self.told.append(("close",))


def test_watchers_are_told_in_order_also_after_an_exception(tmp_path):
    values = {"steps": 6, "preview_every": 2, "preview": tiny.stage_of("gan")[1](np.random.default_rng(0)), "name": "x"}
    cut, rest = Told(), Told()
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tmp_path / "c.pt", watchers=[cut], prepare=interrupted_at(4), **values)
    assert cut.told == [
        ("start", "x", 6, []), ("row", 0), ("picture", 2), ("row", 2), ("picture", 4), ("close",),
    ]  # fmt: skip
    tiny.train(tmp_path / "c.pt", watchers=[rest], **values)
    assert rest.told == [
        ("start", "x", 6, [0, 2]), ("picture", 4), ("row", 4), ("row", 5), ("picture", 6), ("close",),
    ]  # fmt: skip


def test_rows_hold_what_the_step_logged_and_the_scores(tmp_path):
    rows = tiny.train(tmp_path / "c.pt", "regression", steps=6)
    assert [set(row) for row in rows] == [
        {"step", "l1"} | ({"validation_score"} if k in (1, 3) else set()) for k in range(4)
    ]
    assert [row["step"] for row in rows] == [0, 2, 4, 5]


def test_a_stage_needs_no_more_than_the_docstring_says(tmp_path):
    stage = SimpleNamespace(
        nets={}, ema={}, optimisers={}, settings=SimpleNamespace(lr=1.0), extra_state=lambda: {"settings": {}},
        load_extra_state=lambda state: None, step=lambda *_: {"loss": torch.tensor(0.5)},
    )  # fmt: skip
    rows = fit(stage, tiny.RandomBatches(("x",)), FitSettings(2), checkpoint=tmp_path / "c.pt", fingerprint="", seed=0)
    assert rows == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.5}]
