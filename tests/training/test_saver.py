"""The checkpoint of a training: the state comes back, another training's is refused."""

import pytest
import tiny
import torch
from accelerate import Accelerator

from petct_lib import InputError
from petct_lib.models.checkpoints import load_checkpoint, save_checkpoint
from petct_lib.training.saver import Saver, list_differences

ORIGIN = {"seed": 0, "settings": {"lr": 0.1, "width": 8}}


def saver_of(path, origin=ORIGIN, seed=0):
    stage, _ = tiny.stage_of("regression")
    torch.nn.init.normal_(stage.nets["unet"].pixels[-1].weight, generator=torch.Generator().manual_seed(seed))
    return Saver(stage, path, origin, 2, Accelerator(cpu=True))


def test_a_state_is_taken_up_where_it_was_left(tmp_path):
    first, second = saver_of(tmp_path / "c.pt"), saver_of(tmp_path / "c.pt", seed=1)
    assert first.resume() == 0
    assert first.last_good() == "there is no checkpoint yet"
    first.history.append({"step": 4, "l1": 0.5})
    first.save(5)
    assert second.resume() == second.saved == 5
    assert second.history == [{"step": 4, "l1": 0.5}]
    assert second.last_good().startswith("last good checkpoint: step 5, ")
    a, b = (tiny.weights(saver.stage.nets["unet"]) for saver in (first, second))
    assert torch.equal(a, b)


def test_other_settings_and_averages_alone_are_refused(tmp_path):
    saver_of(tmp_path / "c.pt").save(5)
    with pytest.raises(InputError, match=r"made with other settings: lr \(0\.1, now 0\.2\)\. Use another run folder"):
        saver_of(tmp_path / "c.pt", {**ORIGIN, "settings": {"lr": 0.2, "width": 8}}).resume()
    state = load_checkpoint(tmp_path / "c.pt")
    save_checkpoint({key: value for key, value in state.items() if key != "nets"}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="averaged weights alone"):
        saver_of(tmp_path / "c.pt").resume()


def test_differences_name_what_is_new_gone_or_another():
    assert list_differences(ORIGIN, ORIGIN) == []
    assert list_differences({"a": 1}, {"a": 2, "b": 3}) == ["a (1, now 2)", "b (None, now 3)"]
    assert list_differences({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}) == ["a: y (2, now None)"]
