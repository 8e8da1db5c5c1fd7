"""The committed notebooks: a lesson's parts, parameters, outputs kept, no machine paths, no widget state."""

import ast
import json
import re

import pytest
from conftest import ROOT

from petct_lib.run import NOTEBOOKS

BOOKS = {name: json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text()) for name in NOTEBOOKS}


def source(cell):
    return "".join(cell["source"])


def code_cells(name):
    return [c for c in BOOKS[name]["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_a_lesson(name):
    cells = BOOKS[name]["cells"]
    text = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
    assert source(cells[0]).startswith("# ")
    for part in ("What you will learn", "minute", "## Exercise", "## What we saw", "not for diagnosis"):
        assert part in text, part
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    assert "record(" in source(cells[-1])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_commented_literals(name):
    cell = source(BOOKS[name]["cells"][1])
    for node in ast.parse(cell).body:
        ast.literal_eval(node.value)  # raises for anything that is not a literal
    assert all("#" in line for line in cell.splitlines())


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short_and_define_nothing_that_belongs_in_the_library(name):
    for cell in code_cells(name):
        tags = cell["metadata"].get("tags", [])
        assert len(source(cell).splitlines()) <= 18 or "parameters" in tags, source(cell)
        assert "sys.path" not in source(cell)
    names = re.findall(r"^def (\w+)", "\n".join(source(c) for c in code_cells(name)), re.M)
    assert len(names) <= 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_kept_clean_and_small(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    text = path.read_text()
    assert path.stat().st_size <= 300_000
    assert "widgets" not in BOOKS[name]["metadata"]
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    outputs = [o for c in code_cells(name) for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    assert all(c["execution_count"] for c in code_cells(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nbval_has_something_to_compare(name):
    compared = [c for c in code_cells(name) if "nbval-ignore-output" not in c["metadata"].get("tags", [])]
    assert sum(bool(c["outputs"]) for c in compared) >= 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pictures_have_text_alternatives(name):
    for cell in code_cells(name):
        for call in re.findall(r"view\.save\((.*)\)", source(cell), re.S):
            assert re.search(r'"[A-Z][^"]{15,}"\s*$', call), call
