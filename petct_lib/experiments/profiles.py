"""Profiles: the parameters of the notebooks."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from petct_lib import InputError

NOTEBOOK_DIR = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = ("01_data_exploration", "02_cyclegan_training", "03_diffusion_refinement", "04_evaluation")
FROM_COMMAND = {"run_dir", "data", "resume"}  # given by the command, not by a params file


def load_params(profile: str, overrides: Sequence[str] = ()) -> dict[str, dict]:
    """Parameters by notebook, from `notebooks/params/<profile>.yaml` or a YAML file named by its path.

    overrides: "NOTEBOOK.NAME=VALUE" each, VALUE as in YAML; they win over the file. Raises InputError for a missing
    file, an unknown notebook, or a parameter that the notebook does not have.
    """
    if not NOTEBOOK_DIR.is_dir():
        raise InputError("the notebooks are not part of the installed package: clone the repository, and run there")
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else NOTEBOOK_DIR / "params" / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (NOTEBOOK_DIR / "params").glob("*.yaml")))
        raise InputError(f"{path}: no such profile; there are {known}, or name a .yaml file")
    from_file = _read_yaml(path)
    for notebook, values in from_file.items():
        _check_parameters(str(path), notebook, set(values or {}))
    params = {notebook: dict(from_file.get(notebook) or {}) for notebook in NOTEBOOKS}
    for text in overrides:
        notebook, name, value = _read_override(text)
        _check_parameters(f"--set {text}", notebook, {name})
        params[notebook][name] = value
    return params


def notebook_parameters(notebook: str, profile: str, overrides: Sequence[str] = ()) -> dict:
    """All parameters of one notebook, as the command `run` would execute it: its defaults, the profile's, `overrides`.

    Without those that the command gives (`run_dir`, `data`, `resume`). Raises what `load_params` raises.
    """
    import papermill

    cell = papermill.inspect_notebook(str(NOTEBOOK_DIR / f"{notebook}.ipynb"))
    defaults = {name: ast.literal_eval(p["default"]) for name, p in cell.items() if name not in FROM_COMMAND}
    return {**defaults, **load_params(profile, overrides)[notebook]}


def _check_parameters(where: str, notebook: str, names: set[str]) -> None:
    import papermill

    if notebook not in NOTEBOOKS:
        raise InputError(f"{where}: {notebook!r} is not one of {', '.join(NOTEBOOKS)}")
    allowed = set(papermill.inspect_notebook(str(NOTEBOOK_DIR / f"{notebook}.ipynb"))) - FROM_COMMAND
    if unknown := sorted(names - allowed):
        raise InputError(
            f"{where}: {notebook} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(allowed))}"
        )


def _read_override(text: str) -> tuple[str, str, object]:
    """Notebook, name and value of "02_cyclegan_training.lr=2e-4"."""
    parts = re.fullmatch(r"(\w+)\.(\w+)=(.*)", text)
    if not parts:
        raise InputError(f"--set {text}: must be NOTEBOOK.NAME=VALUE, as 02_cyclegan_training.steps=500")
    notebook, name, value = parts.groups()
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not YAML ({error})") from None
    is_float = isinstance(read, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", read)  # 2e-4, where YAML wants 2.0e-4
    return notebook, name, float(read) if is_float else read


def _read_yaml(path: Path) -> dict[str, dict]:
    try:
        params = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML ({error})") from None
    if not isinstance(params, dict) or not all(isinstance(v, dict | None) for v in params.values()):
        raise InputError(f"{path}: must hold, for each notebook, its parameters as `name: value`")
    return params
