"""Checkpoints: whole or absent, nothing in them executed, the newest kept."""

import os
import shutil
from dataclasses import asdict

import pytest
import torch

from petct_lib import InputError
from petct_lib.models.checkpoints import (
    clear_leftovers,
    list_earlier,
    load_checkpoint,
    load_cyclegan,
    save_checkpoint,
    step_path,
)
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings


def state(step, size=1000):
    return {"step": step, "weights": torch.full((size,), float(step))}


def step_in(path):
    return load_checkpoint(path)["step"]


def test_a_state_comes_back_with_its_types(tmp_path):
    held = {"step": 1, "settings": {"lr": 2e-4, "multipliers": [1, 2]}, "t": torch.tensor([1.5], dtype=torch.bfloat16)}
    save_checkpoint(held, tmp_path / "c.pt")
    back = load_checkpoint(tmp_path / "c.pt")
    assert back == held
    assert back["t"].dtype is torch.bfloat16


def test_the_last_n_stay(tmp_path):
    path = tmp_path / "c.pt"
    for step in range(1, 6):
        save_checkpoint(state(step), path, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c.pt", "c.step0000003.pt", "c.step0000004.pt", "c.step0000005.pt",
    ]  # fmt: skip
    assert [step_in(p) for p in list_earlier(path)] == [3, 4, 5]
    assert step_in(path) == 5
    assert path.samefile(step_path(path, 5))  # no space of its own


def test_one_kept_is_the_newest_alone(tmp_path):
    for step in (1, 2):
        save_checkpoint(state(step), tmp_path / "c.pt", keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(state(1), tmp_path / "c.pt", keep=2)
    assert [step_in(p) for p in (tmp_path / "c.pt", step_path(tmp_path / "c.pt", 1))] == [1, 1]


@pytest.mark.parametrize("size", [10, 10**6])  # within the file's buffer, beyond it
def test_a_full_disk_is_a_clear_error_and_the_previous_state_intact(tmp_path, size):
    path = tmp_path / "c.pt"
    save_checkpoint(state(1), path, keep=2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / f".c.pt.{os.getpid()}.part").symlink_to("/dev/full")  # what is written there meets a full disk
    with pytest.raises(InputError, match=r"step 2 cannot be written .*No space left.*one before it is whole.*Free"):
        save_checkpoint(state(2, size), path, keep=2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_at_the_first_checkpoint(tmp_path):
    (tmp_path / f".c.pt.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="there is none yet"):
        save_checkpoint(state(1), tmp_path / "c.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_the_disks_is_not_called_one(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        save_checkpoint(state(1), tmp_path / "c.pt")


def test_leftovers_go_and_another_trainings_states_only_at_step_0(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(state(3), path, keep=2)
    halves = [".c.pt.17.part", ".c.step0000006.pt.17.part"]
    for name in (*halves, ".d.pt.17.part"):
        (tmp_path / name).touch()
    clear_leftovers(path, 3)
    kept = {"c.pt", "c.step0000003.pt", ".d.pt.17.part"}
    assert {p.name for p in tmp_path.iterdir()} == kept
    clear_leftovers(path, 0)
    assert {p.name for p in tmp_path.iterdir()} == {"c.pt", ".d.pt.17.part"}


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_cannot_execute_code(tmp_path, capsys):
    torch.save({"step": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_broken_checkpoint_names_one_that_is_not_the_same_file(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(state(1), path, keep=2)
    save_checkpoint(state(2), path, keep=2)
    os.truncate(path, 100)  # its link of step 2 is as broken
    with pytest.raises(InputError, match=r"not a readable checkpoint .*copy c\.step0000001\.pt over it"):
        load_checkpoint(path)
    shutil.copy(step_path(path, 1), path)
    assert step_in(path) == 1


def test_a_broken_checkpoint_without_another(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"PK not really")
    with pytest.raises(InputError, match="remove it to train again"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_checkpoint_of_settings_that_are_no_more_is_refused_in_words(tmp_path):
    stage = CycleGAN(CycleGANSettings(width=4, blocks=1, patch_layers=2))
    held = {"step": 1, "nets": {}, "ema": {name: ema.state_dict() for name, ema in stage.ema.items()}}
    old = {**held, "settings": {**asdict(stage.settings), "stem": 7, "gan": "lsgan"}}
    save_checkpoint({**held, "settings": asdict(stage.settings)}, tmp_path / "new.pt")
    save_checkpoint(old, tmp_path / "old.pt")
    assert load_cyclegan(tmp_path / "new.pt").settings == stage.settings
    with pytest.raises(InputError, match=r"old\.pt: made by another version .*\(gan, stem\); use that version"):
        load_cyclegan(tmp_path / "old.pt")
