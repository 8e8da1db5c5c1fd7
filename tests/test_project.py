"""What holds the project together: pins, imports one way, files that other tools read, the contributors' page."""

import ast
import importlib
import pkgutil
import re
import subprocess
import tomllib
from itertools import chain

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

import petct_lib
from petct_lib.cli import main
from petct_lib.experiments.variants import all_variants, choose_variants

BASE = {"common", "imaging"}
MAY_IMPORT = {  # packages, in the order in which data flows; beside the package itself
    "common": set(),
    "imaging": {"common"},
    "dicom": BASE,
    "phantom": BASE | {"dicom"},
    "data": BASE | {"dicom"},
    "models": BASE,
    "metrics": {"imaging"},
    "inference": BASE | {"dicom", "data", "models", "metrics"},
    "viz": BASE | {"metrics"},
    "training": BASE | {"data", "models", "metrics", "inference", "viz"},
    "evaluation": BASE | {"dicom", "data", "models", "metrics", "inference"},
    "experiments": BASE | {"dicom", "data", "models", "metrics", "inference", "viz", "training", "evaluation"},
    "teaching": BASE | {"phantom", "data", "metrics", "inference"},
}
LIBRARY = ROOT / "petct_lib"
MODULES = {p.relative_to(LIBRARY).with_suffix("").parts: p for p in LIBRARY.glob("*/*.py") if p.stem != "__init__"}


def test_everything_that_pyproject_needs_is_pinned_in_environment_yml_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pins] = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert environment["dependencies"][0] == "python=3.11"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    request = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    needed = [Requirement(text) for text in request if not text.startswith("petct-lib[")]
    pinned = {name: version for name, version in (pin.split("==") for pin in pins)}
    assert {requirement.name for requirement in needed} == set(pinned)
    for requirement in needed:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_fixed_packages_are_there():
    pins = (ROOT / "environment.yml").read_text()
    for name in ("torch", "jupyterlab", "matplotlib", "pydicom", "scikit-image", "lpips", "ipywidgets", "nbval"):
        assert f"- {name}==" in pins
    assert "- papermill==" in pins


def imports_of(path):
    """(package, module) of everything of the library that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petct_lib."):
            _, package, *module = node.module.split(".")
            yield from ((package, module[0]),) if module else ((package, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("petct_lib."))


def test_packages_import_those_before_them():
    assert {package for package, _ in MODULES} == set(MAY_IMPORT)
    order = list(MAY_IMPORT)
    for package, may in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(package) for other in may)
    for (package, name), path in MODULES.items():
        for other, module in imports_of(path):
            assert (other, module) in MODULES, f"{package}.{name} imports {other}.{module}"
            assert other in MAY_IMPORT[package] | {package}, f"{package}.{name} imports {other}.{module}"


def test_no_modules_import_each_other_in_a_circle():
    left = {module: set(imports_of(path)) for module, path in MODULES.items()}
    while free := [module for module, imported in left.items() if not imported & set(left)]:
        for module in free:
            del left[module]
    assert not left


def test_no_variable_has_a_name_that_says_nothing():
    for path in chain(LIBRARY.rglob("*.py"), (ROOT / "tests").rglob("*.py"), (ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.arg if isinstance(node, ast.arg) else getattr(node, "id", None)
            assert name not in {"of", "told", "made", "given", "found", "asked"}, f"{path}:{node.lineno} {name}"


def test_help_names_every_package_and_every_module_once():
    packages = re.findall(r"^    (\w+)  ", petct_lib.__doc__, re.MULTILINE)
    assert packages == [*MAY_IMPORT, "cli"]
    for package in MAY_IMPORT:
        doc = importlib.import_module(f"petct_lib.{package}").__doc__
        named = re.findall(r"^(\w+)  +\S", doc, re.MULTILINE)
        assert sorted(named) == sorted(name for one, name in MODULES if one == package), package


def test_every_module_has_a_test_file_in_the_folder_of_its_package():
    for package, name in MODULES:
        assert (ROOT / "tests" / package / f"test_{name}.py").exists(), f"{package}.{name}"


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == petct_lib.__version__
    assert f"## {petct_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert any("10.7937/tcia.2019.zjjwb9ip" in str(r.get("doi")) for r in citation["references"])


def test_make_help_lists_the_targets():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "run", "test", "check", "test-browser", "lab", "figures"):
        assert re.search(rf"make {target}\s", text)


def test_only_its_own_target_needs_a_browser():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "browser" in options["norecursedirs"]
    recipe = subprocess.run(
        ["make", "-n", "--no-print-directory", "test-browser"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "chromium" in recipe
    assert recipe.rstrip().endswith("-m pytest tests/browser")


def test_ci_calls_the_readmes_test_command_and_the_rest_of_the_check():
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("\nmake test\nmake slow")
    assert re.search(r"^check: test slow\b", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"make test", "make check"} <= set(
        re.findall(r"^make [a-z]+", (ROOT / "README.md").read_text(), re.MULTILINE)
    )


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
    request = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`+[^`]+`+", PAGE))))
    assert {"lint", "test", "notebooks", "ablation"} <= request <= targets
    for command in set(re.findall(r"-m petct_lib (\w+)", PAGE)):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    for variant in re.findall(r"ONLY=(\w+)", PAGE):
        assert choose_variants(all_variants(longer_steps=1), variant)
