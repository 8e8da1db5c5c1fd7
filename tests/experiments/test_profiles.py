"""Profiles: the parameters of the notebooks."""

import pytest
import yaml
from conftest import TINY, petct

from petct_lib import InputError
from petct_lib.experiments.profiles import NOTEBOOK_DIR, NOTEBOOKS, load_params, notebook_parameters
from petct_lib.models.cyclegan import CycleGANSettings


def test_unknown_parameters_profiles_and_notebooks_are_errors(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("02_cyclegan_training: {stepps: 10}")
    with pytest.raises(InputError, match=r"02_cyclegan_training has no parameter stepps"):
        load_params(str(path))
    done = petct("run", "--profile", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()
    path.write_text("05_else: {seed: 1}")
    with pytest.raises(InputError, match="05_else"):
        load_params(str(path))
    for text, message in (("a: [", "is not YAML"), ("[1, 2]", "must hold"), ("02_cyclegan_training: 5", "must hold")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_params(str(path))
    with pytest.raises(InputError, match="there are demo, full, gpu, quick, smoke"):
        load_params("fast")


@pytest.mark.parametrize("profile", ["smoke", "quick", "demo", "gpu", "full"])
def test_every_parameter_of_the_profiles_exists(profile):
    assert set(load_params(profile)) == set(NOTEBOOKS)


def test_overrides_win_over_the_profile_and_are_read_as_yaml():
    inputs = ("02_cyclegan_training.steps=2", "02_cyclegan_training.lr=1e-3", "02_cyclegan_training.epochs=null")
    gan = load_params("smoke", (*inputs, "03_diffusion_refinement.multipliers=[1, 2]"))
    assert gan["02_cyclegan_training"] == {
        **load_params("smoke")["02_cyclegan_training"], "steps": 2, "lr": 1e-3, "epochs": None,
    }  # fmt: skip
    assert gan["03_diffusion_refinement"]["multipliers"] == [1, 2]
    assert load_params("smoke", ["04_evaluation.seed=1", "04_evaluation.seed=2"])["04_evaluation"]["seed"] == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("02_cyclegan_training.stepps=2", "02_cyclegan_training has no parameter stepps"),
        ("02_cyclegan_training.run_dir=x", "has no parameter run_dir"),
        ("05_else.seed=2", "'05_else' is not one of"),
        ("steps=2", "must be NOTEBOOK.NAME=VALUE"),
        ("02_cyclegan_training.steps=[2", "is not YAML"),
    ],
)
def test_wrong_overrides_are_errors(inputs, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_params("smoke", [inputs])
    done = petct("run", "--profile", TINY, "--set", inputs, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_parameters_of_a_notebook_are_defaults_profile_and_overrides():
    gan = notebook_parameters("02_cyclegan_training", "quick", ["02_cyclegan_training.steps=7"])
    assert (gan["steps"], gan["width"], gan["lr"], gan["epochs"]) == (7, 16, 5e-4, None)
    assert not {"run_dir", "data", "resume"} & set(gan)


def test_smoke_is_what_the_committed_defaults_are():
    import papermill

    for notebook, values in load_params("smoke").items():
        defaults = papermill.inspect_notebook(str(NOTEBOOK_DIR / f"{notebook}.ipynb"))
        for key, value in values.items():
            assert yaml.safe_load(defaults[key]["default"].replace("None", "null")) == value, (notebook, key)


def test_full_is_the_papers_configuration():
    gan = load_params("full")["02_cyclegan_training"]
    paper = CycleGANSettings()
    assert (gan["epochs"], gan["batch_size"], gan["lr"]) == (200, 4, 2e-4)
    for key in ("width", "blocks", "patch_layers", "lambda_cycle", "lambda_identity", "lr"):
        assert gan[key] == getattr(paper, key)
    assert load_params("full")["01_data_exploration"]["size"] == 256
