"""Stage 1 of a run folder: plans, one process and two, and every way to start them."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import ROOT, petct

from petct_lib import InputError
from petct_lib.common.files import write_json
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.splits import split_patients
from petct_lib.experiments.profiles import notebook_parameters
from petct_lib.imaging.intensity import Intensity
from petct_lib.models.checkpoints import load_checkpoint
from petct_lib.training.train_cyclegan import leave_group, make_plan, train_cyclegan, unpaired_slices

TINY = {
    "steps": 3, "batch_size": 2, "width": 4, "blocks": 1, "patch_layers": 2, "checkpoint_every": 2,
    "ema_decay": 0.9,
}  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "petct_lib"]


@pytest.fixture
def run_dir(prepared, tmp_path) -> Path:
    """A run folder as notebook 01 leaves it."""
    shutil.copytree(prepared.folder, tmp_path / "run" / "prepared")
    write_json(split_patients(prepared.patients, 0), tmp_path / "run" / "splits.json")
    write_json(asdict(Intensity()), tmp_path / "run" / "intensity.json")
    return tmp_path / "run"


def plan(run_dir, **changes):
    parameters = {**notebook_parameters("02_cyclegan_training", "smoke"), **TINY, **changes}
    parameters.pop("processes")
    return make_plan(run_dir, **parameters)


def sets(**changes):
    return [f"--set=02_cyclegan_training.{key}={value}" for key, value in {**TINY, **changes}.items()]


def train(run_dir, *more, **changes):
    """The command under torchrun, two processes."""
    command = [sys.executable, *TORCHRUN, "train", str(run_dir), "--profile", "smoke", *sets(**changes), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def difference(one, other):
    """Largest difference of gradients (Adam's first moments) and logged values, relative, and of the pools' images.

    Of weights it is that which one in a thousand exceeds: where the gradient is nothing but rounding, Adam's first step
    still has the size of the rate, in either direction.
    """
    a, b = (load_checkpoint(RunFolder(folder).checkpoint("cyclegan")) for folder in (one, other))
    assert a["step"] == b["step"]
    moments = [(a["optimisers"][n]["state"][i], b["optimisers"][n]["state"][i]) for n in "GD" for i in range(8)]
    apart = [((x["exp_avg"] - y["exp_avg"]).abs().max() / x["exp_avg"].abs().max()).item() for x, y in moments]
    apart += [(x - y).abs().max().item() for k in a["pools"] for x, y in zip(a["pools"][k], b["pools"][k], strict=True)]
    for row, same in zip(a["history"], b["history"], strict=True):
        apart += [abs(row[k] - same[k]) / max(1, abs(row[k])) for k in row if not k.startswith("validation")]
    weights = [(a[p][n][k] - b[p][n][k]).abs().flatten() for p in ("nets", "ema") for n in a[p] for k in a[p][n]]
    return max(*apart, torch.cat(weights).quantile(0.999).item())


def test_every_parameter_of_notebook_02_is_a_setting(run_dir):
    output = plan(run_dir, shift=3, lambda_cycle=5.0, coarse_size=16)
    assert output.shift == 3
    assert (output.gan.coarse_size, plan(run_dir, coarse_size=None).gan.coarse_size) == (16, None)
    assert (output.gan.lambda_cycle, output.fit.steps, output.batch_size) == (5.0, 3, 2)
    with pytest.raises(InputError, match="stage 1 has no setting widht; it has beta1"):
        plan(run_dir, widht=3)


def test_epochs_count_the_larger_of_both_sets(run_dir):
    most = max(map(len, unpaired_slices(run_dir)))
    assert plan(run_dir, steps=None, epochs=3).fit.steps == 3 * (most // 2)


def test_one_process_leaves_checkpoints_validation_and_logs(run_dir):
    rows = train_cyclegan(run_dir, plan(run_dir, steps=4, keep=2), resume=False)
    assert [row["step"] for row in rows if "validation_score" in row] == [1, 3]
    assert {"accuracy_ct", "D_pet", "cycle", "validation_mae_hu"} <= set(rows[-1])
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    steps = {"cyclegan.step0000002.pt", "cyclegan.step0000004.pt"}
    assert names == {"cyclegan.pt", *steps}
    assert list((run_dir / "logs" / "cyclegan").glob("events*"))


def test_it_is_validated_on_patients_that_are_neither_trained_on_nor_tested(run_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "petct_lib.training.train_cyclegan.Validation", lambda p, patients, w: seen.extend(patients) or None
    )
    train_cyclegan(run_dir, plan(run_dir, steps=1), resume=False)
    assert seen == json.loads((run_dir / "splits.json").read_text())["refine"]


@pytest.mark.slow
def test_two_processes_at_half_the_batch_take_the_step_of_one(run_dir, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(run_dir, two)
    train_cyclegan(run_dir, plan(run_dir, steps=1), resume=False)
    train(two, steps=1)
    assert difference(run_dir, two) < 1e-5


@pytest.mark.slow
def test_the_notebooks_launcher_takes_the_same_step(run_dir, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(run_dir, two)
    train_cyclegan(run_dir, plan(run_dir, steps=1), resume=False)
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/training']\n"
        "from pathlib import Path\nimport test_train_cyclegan as t\n"
        f"run = Path({str(two)!r})\n"
        "rows = t.train_cyclegan(run, t.plan(run, steps=1), resume=False, processes=2)\n"
        "assert rows[-1]['step'] == 0 and 'validation_score' in rows[-1], rows\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert difference(run_dir, two) < 1e-5


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(run_dir, tmp_path):
    """Steps 0 and 1 by two processes, then 2 by one; against one process all the way."""
    mixed = tmp_path / "mixed"
    shutil.copytree(run_dir, mixed)
    rate = {"lr": 1e-6}  # Adam's first steps have the size of the rate, whatever the gradient: rounding shows as steps
    train_cyclegan(run_dir, plan(run_dir, steps=3, checkpoint_every=1, **rate), resume=False)
    train(mixed, steps=3, checkpoint_every=1, **rate)
    newest = mixed / "checkpoints" / "cyclegan.pt"
    shutil.copy(mixed / "checkpoints" / "cyclegan.step0000002.pt", newest)
    train_cyclegan(mixed, plan(mixed, steps=3, checkpoint_every=1, **rate), resume=True)
    assert difference(run_dir, mixed) < 1e-4
    shutil.copy(run_dir / "checkpoints" / "cyclegan.step0000002.pt", run_dir / "checkpoints" / "cyclegan.pt")
    train(run_dir, "--resume", steps=3, checkpoint_every=1, **rate)
    assert difference(run_dir, mixed) < 1e-4


def test_a_process_leaves_its_group_before_it_ends(tmp_path):
    leave_group()  # in none
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        leave_group()
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_the_train_command_refuses_what_would_lose_a_training(run_dir, tmp_path):
    empty = petct("train", str(tmp_path / "none"))
    assert empty.returncode == 2
    assert "run 01_data_exploration.ipynb first" in empty.stderr
    RunFolder(run_dir).checkpoint("cyclegan").parent.mkdir()
    torch.save({}, RunFolder(run_dir).checkpoint("cyclegan"))
    there = petct("train", str(run_dir))
    assert there.returncode == 2
    assert "pass --resume" in there.stderr
    assert load_checkpoint(RunFolder(run_dir).checkpoint("cyclegan")) == {}
