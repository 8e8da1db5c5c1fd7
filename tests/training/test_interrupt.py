"""Ctrl-C and SIGTERM: the step is finished and saved, the second one stops at once."""

import os
import signal
import threading
from functools import partial

import numpy as np
import pytest
import tiny

from petct_lib.models.checkpoints import load_checkpoint
from petct_lib.training.interrupt import Interrupt

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """A shell that starts a job in the background has it ignore SIGINT, and Python then has no handler of its own."""
    before = signal.signal(INT, signal.default_int_handler)
    yield
    signal.signal(INT, before)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_first_signal_is_a_wish_and_the_handlers_are_put_back():
    before = signal.getsignal(INT), signal.getsignal(TERM)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        send(INT)
        assert interrupt.asked
        assert (signal.getsignal(INT), signal.getsignal(TERM)) == before
    with Interrupt() as interrupt:
        assert signal.getsignal(INT) != before[0]
    assert (signal.getsignal(INT), signal.getsignal(TERM)) == before


def test_the_second_signal_is_the_one_before():
    seen = []
    before = signal.signal(TERM, lambda *_: seen.append("mine"))
    try:
        with Interrupt() as interrupt:
            send(TERM)
            assert (interrupt.asked, seen) == (True, [])
            send(TERM)
            assert seen == ["mine"]
    finally:
        signal.signal(TERM, before)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        send(INT, INT)


def test_stop_raises_what_the_signal_would_have(capsys):
    with Interrupt() as interrupt:
        send(INT)
        with pytest.raises(KeyboardInterrupt, match="saved in x; run it again with resume=True"):
            interrupt.stop("saved in x")
    with Interrupt() as interrupt:
        send(TERM)
        with pytest.raises(SystemExit) as stopped:
            interrupt.stop("saved in x")
    assert stopped.value.code == 143
    assert capsys.readouterr().out == "saved in x\n"


def test_in_another_thread_a_training_runs_and_handlers_stay(tmp_path):
    before, rows = signal.getsignal(INT), []
    thread = threading.Thread(target=lambda: rows.extend(tiny.train(tmp_path / "c.pt", "flow", steps=3)))
    thread.start()
    thread.join()
    assert [row["step"] for row in rows] == [0, 2]
    assert signal.getsignal(INT) is before


def interrupted(path, step, *numbers):
    signal.signal(INT, signal.default_int_handler)
    tiny.train(path, prepare=lambda stage: tiny.amid_step(stage, step, partial(send, *numbers)))


def test_ctrl_c_saves_the_step_leaves_a_usable_stage_and_resuming_is_exact(tmp_path):
    stages, path = [], tmp_path / "cut" / "c.pt"

    def prepare(stage):
        stages.append(stage)
        tiny.amid_step(stage, 7, partial(send, INT))

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 8 of 16, saved in .*c\.pt"):
        tiny.train(path, prepare=prepare)
    saved = load_checkpoint(path)
    assert saved["step"] == 8
    assert [row["step"] for row in saved["history"]] == [0, 2, 4, 5, 6]
    assert tiny.differences(dict(stages[0].nets["D_ct"].state_dict()), dict(saved["nets"]["D_ct"])) == []
    assert stages[0].preview(tiny.stage_of("gan")[1](np.random.default_rng(0))).isfinite().all()
    tiny.train(path)
    tiny.train(tmp_path / "whole" / "c.pt")
    assert tiny.differences(load_checkpoint(tmp_path / "whole" / "c.pt"), load_checkpoint(path)) == []


@pytest.mark.parametrize(("numbers", "code", "step"), [((TERM,), 143, 8), ((INT,), 1, 8), ((INT, INT), 1, 6)])
def test_signals_of_a_process(tmp_path, numbers, code, step):
    assert tiny.in_process(interrupted, tmp_path / "c.pt", 7, *numbers) == code
    assert load_checkpoint(tmp_path / "c.pt")["step"] == step
    assert not any(tmp_path.glob(".*part"))


def test_a_second_sigterm_kills(tmp_path):
    assert tiny.in_process(interrupted, tmp_path / "c.pt", 7, TERM, TERM) == -TERM
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 6
