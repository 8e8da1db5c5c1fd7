"""Trainings killed by SIGKILL, at any step and amid a checkpoint's write, end where one that was left alone ends."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from petct_lib.common import files
from petct_lib.models import checkpoints
from petct_lib.models.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

STEPS, EVERY = 16, 3
WRITES = ("half", "unsynced", "written", "linked", "renaming", "renamed")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def deaths_of(seed):
    """Three deaths at random steps and two amid random checkpoints, in the order in which they come to pass."""
    rng = np.random.default_rng(seed)
    steps = [(int(step), ("before", "amid")[rng.integers(2)]) for step in rng.choice(STEPS, 3, replace=False)]
    saves = [(int(step), WRITES[rng.integers(len(WRITES))]) for step in rng.choice([3, 6, 9, 12, 15], 2, replace=False)]
    return sorted([*steps, *saves], key=lambda death: (death[0], death[1] not in WRITES))  # saved after 6 steps: step 6


def train_and_die(path, kind, step, where):
    """A training whose process is killed before or amid step `step`, or while the checkpoint after `step` is saved."""
    if where in WRITES:
        tiny.train(path, kind, prepare=lambda stage: tiny.before_step(stage, step - 1, lambda: die_saving(path, where)))
    else:
        trap = {"before": tiny.before_step, "amid": tiny.amid_step}[where]
        tiny.train(path, kind, prepare=lambda stage: trap(stage, step, die))


def die_saving(path, where):
    save, replace, sync, link = torch.save, os.replace, os.fsync, os.link

    def half(state, file):
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    def renaming(source, target):
        if Path(target) == path and where == "renaming":
            die()
        replace(source, target)
        if Path(target) == path:
            die()

    def then_die(function):
        return lambda *values: (function(*values), die())

    if where == "half":
        torch.save = half
    elif where == "unsynced":
        torch.save = then_die(save)
    elif where == "written":
        checkpoints.os.fsync = then_die(sync)
    elif where == "linked":
        checkpoints.os.link = then_die(link)
    else:
        files.os.replace = renaming


@pytest.fixture(scope="module", params=tiny.KINDS)
def uninterrupted(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "c.pt"
    assert tiny.in_process(tiny.train, path, request.param) == 0
    return request.param, path


def assert_the_same_files(path, whole):
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(p.name for p in whole.parent.iterdir())
    for file in whole.parent.iterdir():
        assert tiny.differences(load_checkpoint(file), load_checkpoint(path.with_name(file.name))) == []


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_and_resumed_it_ends_bit_for_bit_the_same(uninterrupted, tmp_path, seed):
    kind, whole = uninterrupted
    path = tmp_path / "c.pt"
    for death in deaths_of(seed):
        assert tiny.in_process(train_and_die, path, kind, *death) == -signal.SIGKILL, death
    assert tiny.in_process(tiny.train, path, kind) == 0
    assert_the_same_files(path, whole)


def test_killed_amid_checkpoints_there_is_a_whole_one_and_no_rest_of_the_others(uninterrupted, tmp_path):
    kind, whole = uninterrupted
    path = tmp_path / "c.pt"
    for step, where in zip((3, 3, 6, 6, 9, 9), WRITES, strict=True):
        assert tiny.in_process(train_and_die, path, kind, step, where) == -signal.SIGKILL
        reached = {"half": 0, "unsynced": 0, "written": 3, "linked": 3, "renaming": 6, "renamed": 9}
        assert (load_checkpoint(path)["step"] if path.exists() else 0) == reached[where]
        assert any(path.parent.glob(".*part")) == (where != "renamed")  # there is something to clear away
        if where in ("unsynced", "linked"):  # on to the next checkpoint
            assert tiny.in_process(train_and_die, path, kind, step, "renamed") == -signal.SIGKILL
            assert not any(path.parent.glob(".*part"))
    assert tiny.in_process(tiny.train, path, kind) == 0
    assert_the_same_files(path, whole)


def test_the_comparison_sees_every_part_of_a_checkpoint(uninterrupted):
    kind, whole = uninterrupted
    state = load_checkpoint(whole)
    assert {"step", "origin", "history", "nets", "ema", "optimisers"} < set(state)
    assert [row["step"] for row in state["history"]] == [0, 2, 4, 5, 6, 8, 10, 11, 12, 14, 15]
    if kind == "gan":
        assert [len(pool) for pool in state["pools"].values()] == [3, 3]
        other = load_checkpoint(whole)
        other["pools"]["ct"][1][0, 4, 5] += 1e-6
        other["history"][3]["cycle"] += 1e-12
        next(iter(other["optimisers"]["G"]["state"].values()))["exp_avg"].view(-1)[0] += 1e-3
        assert tiny.differences(state, other) == [
            "/history/3/cycle", "/optimisers/G/state/0/exp_avg", "/pools/ct/1",
        ]  # fmt: skip


def test_same_seed_same_weights_to_the_bit_in_two_processes(tmp_path):
    code = "import sys, tiny; from pathlib import Path; tiny.train(Path(sys.argv[1]), steps=6)"
    for name in ("one", "two"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": str(len(name) + ord(name[0])),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)], check=True, env=environment, capture_output=True
        )
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert tiny.differences(one, two) == []
    tiny.train(tmp_path / "other", steps=6, seed=4)
    assert tiny.differences(one["nets"], load_checkpoint(tmp_path / "other")["nets"]) != []
