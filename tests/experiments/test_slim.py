"""A run made small enough to ship."""

import numpy as np
import pytest
import torch
from small_run import small_run

from petct_lib import InputError
from petct_lib.cli import main
from petct_lib.common.files import read_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.experiments import slim as slimming
from petct_lib.imaging.directions import DIRECTIONS, SOURCE
from petct_lib.inference.translator import Translator
from petct_lib.models.checkpoints import load_checkpoint


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = small_run(prepared, tmp_path_factory.mktemp("demo") / "run")
    RunFolder(folder).model_card.write_text("# Model card")
    return folder


@pytest.fixture(scope="module")
def slim(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("slim") / "run"
    return out, slimming.slim(run, out)


def test_a_slim_run_translates_as_the_whole_one_but_for_half_precision(run, slim, prepared):
    whole, small = Translator(run), Translator(slim[0])
    for direction in DIRECTIONS:
        source = np.array(prepared.array(prepared.studies()[0], SOURCE[direction]))
        a, b = (t(source, direction, samples=2, steps=2) for t in (whole, small))
        scale = np.ptp(a.image)
        for name in ("coarse", "image", "spread"):
            assert np.abs(getattr(a, name) - getattr(b, name)).max() < 0.02 * scale, (direction, name)


def test_a_slim_run_is_small_and_holds_no_patient(run, slim):
    out, size = slim
    assert size == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert size < sum((run / "checkpoints" / f"{name}.pt").stat().st_size for name in slimming.NETWORKS) / 3
    kept = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    weights = {f"checkpoints/{name}.pt" for name in slimming.NETWORKS}
    assert kept == weights | {"stages.json", "intensity.json", "model_card.md"}
    assert set(read_json(out / "stages.json")) == set(slimming.KEPT_STAGES)


def test_no_training_goes_on_from_a_slim_checkpoint(tmp_path):
    import tiny

    path = tmp_path / "gan.pt"
    tiny.train(path, steps=3)
    torch.save(slimming._slim_state(load_checkpoint(path)), path)
    with pytest.raises(InputError, match="averaged weights alone"):
        tiny.train(path, steps=3, resume=True)


def test_slim_refuses_an_unfinished_run_and_a_folder_that_is_there(run, slim, tmp_path, capsys):
    with pytest.raises(InputError, match=r"is not a finished run, intensity\.json"):
        slimming.slim(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="exists"):
        slimming.slim(run, slim[0])
    assert main(["slim", str(run), "--out", str(tmp_path / "small")]) == 0
    assert "MB" in capsys.readouterr().out
