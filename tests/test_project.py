"""What holds the project together: pins, imports one way, files that other tools read, the contributors' page."""

import ast
import importlib
import pkgutil
import re
import subprocess
import tomllib

import numpy as np
import pytest
import yaml
from conftest import ROOT

import petct_lib
from petct_lib.__main__ import main
from petct_lib.run import parameters_of
from petct_lib.variants import chosen, variants

ORDER = (  # imports point upwards only
    ("files", "progress", "volume", "suv", "intensity", "nets", "archives", "enhanced", "parallel", "statistics"),
    ("scores",),
    ("augment", "interrupt", "memory", "spectrum", "updates"),
    ("canvas", "tissues"),
    ("metrics", "distribution", "dicom_files", "geometry", "dicom_write", "cyclegan", "checkpoints", "download"),
    ("diffusion", "regression", "cycle_pairs", "realism", "lesion_scores", "synthrad", "collapse", "train"),
    ("residual_flow",),
    ("variants",),
    ("charts",),
    ("regions", "vendors", "truth", "scanner", "skeleton", "trees", "organs"),
    ("anatomy", "structures", "downstream"),
    ("lesions", "benign"),
    ("person",),
    ("materials",),
    ("dicom",),
    ("perceptual", "phantom", "prepare"),
    ("data",),
    ("translate", "view"),
    ("explore", "exercises", "pitfalls", "demo"),
    ("evaluate", "validation", "logs", "compare"),
    ("score_files", "failures", "report"),
    ("train_cyclegan",),
    ("train_refiner",),
    ("run",),
    ("ablation",),
    ("__main__",),
)


def test_pyproject_repeats_the_pins_of_environment_yml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pins] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert environment["dependencies"][0] == "python=3.11"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(project["dependencies"]) == sorted(pins)
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins)


def test_the_fixed_packages_are_there():
    pins = (ROOT / "environment.yml").read_text()
    for name in ("torch", "jupyterlab", "matplotlib", "pydicom", "scikit-image", "lpips", "ipywidgets", "nbval"):
        assert f"- {name}==" in pins
    assert "- papermill==" in pins


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("petct_lib"):
            parts = node.module.split(".")
            yield from parts[1:2] or [alias.name for alias in node.names if alias.name.islower()]
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("petct_lib."))


def test_imports_point_one_way():
    rank = {name: level for level, names in enumerate(ORDER) for name in names}
    modules = {p.stem: p for p in (ROOT / "petct_lib").glob("*.py") if p.stem != "__init__"}
    assert set(modules) == set(rank)
    for name, path in modules.items():
        for imported in imports_of(path):
            if imported not in rank:  # a name of the package itself
                continue
            assert rank[imported] <= rank[name], f"{name} imports {imported}"
            assert name not in imports_of(modules[imported]), f"{name} and {imported} import each other"


def test_help_of_the_package_names_every_module_once():
    named = re.findall(r"^    (\w+) ", petct_lib.__doc__, re.MULTILINE)
    assert sorted(named) == sorted({p.stem for p in (ROOT / "petct_lib").glob("*.py")} - {"__init__"})


def test_every_module_has_a_test_file():
    tested = {p.stem.removeprefix("test_") for p in (ROOT / "tests").glob("test_*.py")}
    modules = {p.stem.strip("_") for p in (ROOT / "petct_lib").glob("*.py")} - {"init"}
    assert modules <= tested


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == petct_lib.__version__
    assert f"## {petct_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert any("10.7937/tcia.2019.zjjwb9ip" in str(r.get("doi")) for r in citation["references"])


def test_make_help_lists_the_targets():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "run", "test", "test-browser", "lab", "figures"):
        assert re.search(rf"make {target}\s", text)


def test_only_its_own_target_needs_a_browser():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "browser" in options["norecursedirs"]
    recipe = subprocess.run(
        ["make", "-n", "--no-print-directory", "test-browser"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "chromium" in recipe
    assert recipe.rstrip().endswith("-m pytest tests/browser")


def test_ci_calls_the_readmes_test_command():
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("\nmake test BROWSER=1")
    assert "make test" in (ROOT / "README.md").read_text()


def test_pictures_of_the_readme_exist():
    pictures = re.findall(r"\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text())
    assert len(pictures) >= 3
    assert {ROOT / p for p in pictures} == set((ROOT / "figures").glob("*.png"))


PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_files_and_names_of_the_contributors_page_exist():
    paths = re.findall(r"(?:petct_lib|tests|notebooks|\.ci)/[\w./]*\w|\b[\w-]+\.(?:toml|yml|md)\b", PAGE)
    names = set(re.findall(r"\bpetct_lib(?:\.\w+)+", PAGE))
    assert len(paths) > 10
    assert len(names) > 20
    for path in paths:
        assert (ROOT / path).exists(), path
    for name in names:
        pkgutil.resolve_name(name)  # raises where there is no such name


def test_commands_of_the_contributors_page_exist(capsys):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`+[^`]+`+", PAGE))))
    assert {"lint", "test", "notebooks", "ablation"} <= asked <= targets
    for command in set(re.findall(r"-m petct_lib (\w+)", PAGE)):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    for variant in re.findall(r"ONLY=(\w+)", PAGE):
        assert chosen(variants(longer_steps=1), variant)


def test_benchmarks_build_the_networks_that_the_profiles_name(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    projection, translate = (importlib.import_module(name) for name in ("projection", "translate"))
    params = parameters_of("03_diffusion_refinement", "full")
    plain, direct, flow = projection.stage2_settings(params)  # operations are counted by the script: fake tensors crash
    assert plain.width == direct.width == flow.width == params["width"]
    assert direct.lambda_adversarial > plain.lambda_adversarial == 0
    translate.ours(np.zeros((2, 64, 64), np.float32))
    assert "parameters" in capsys.readouterr().out
