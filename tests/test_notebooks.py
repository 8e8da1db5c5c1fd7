"""The committed notebooks: a lesson's parts, parameters, outputs kept, no machine paths, no widget state."""

import ast
import json
import re

import pytest
from conftest import ROOT

from petct_lib.experiments.profiles import NOTEBOOKS
from petct_lib.teaching import exercises

BOOKS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def source(cell):
    return "".join(cell["source"])


def code_cells(name):
    return [c for c in BOOKS[name]["cells"] if c["cell_type"] == "code"]


def test_the_series_begins_before_the_run_and_goes_on_after_it():
    assert list(BOOKS) == ["00_start_here", *NOTEBOOKS, "05_explore"]


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_is_a_lesson(name):
    cells = BOOKS[name]["cells"]
    text = "\n".join(source(c) for c in cells if c["cell_type"] == "markdown")
    assert source(cells[0]).startswith("# ")
    for part in ("What you will learn", "minute", "## Exercise", "## What we saw", "not for diagnosis"):
        assert part in text, part
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    assert "record(" in source(cells[-1])


@pytest.mark.parametrize("name", BOOKS)
def test_parameters_are_commented_literals(name):
    cell = source(BOOKS[name]["cells"][1])
    for node in ast.parse(cell).body:
        ast.literal_eval(node.value)  # raises for anything that is not a literal
    assert all("#" in line for line in cell.splitlines())


@pytest.mark.parametrize("name", BOOKS)
def test_cells_are_short_and_define_nothing_that_belongs_in_the_library(name):
    for cell in code_cells(name):
        tags = cell["metadata"].get("tags", [])
        lines = [line for line in source(cell).splitlines() if not re.match("from |import ", line)]
        assert len(lines) <= 18 or "parameters" in tags, source(cell)
        assert "sys.path" not in source(cell)
    names = re.findall(r"^def (\w+)", "\n".join(source(c) for c in code_cells(name)), re.M)
    assert len(names) <= 1


@pytest.mark.parametrize("name", BOOKS)
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


@pytest.mark.parametrize("name", BOOKS)
def test_nbval_has_something_to_compare(name):
    compared = [c for c in code_cells(name) if "nbval-ignore-output" not in c["metadata"].get("tags", [])]
    assert sum(bool(c["outputs"]) for c in compared) >= 3


@pytest.mark.parametrize("name", BOOKS)
def test_pictures_have_text_alternatives(name):
    for cell in code_cells(name):
        texts = re.findall(r'"[A-Z][^"]{15,}"\s*\)', source(cell))
        assert len(texts) >= source(cell).count("view.save("), source(cell)


@pytest.mark.parametrize("name", BOOKS)
def test_exercises_are_checked_and_their_solutions_hidden_but_run(name):
    cells = code_cells(name)
    request = [c for c in cells if re.search(r"^\w[\w, ]*= (None|None, None)  #", source(c), re.M)]
    request = [c for c in request if "parameters" not in c["metadata"].get("tags", [])]
    solved = [c for c in cells if "solution" in c["metadata"].get("tags", [])]
    assert 2 <= len(request) == len(solved) <= 4
    for ask, solution in zip(request, solved, strict=True):
        [check] = set(re.findall(r"check_\w+", source(ask)))
        assert hasattr(exercises, check)
        assert f"assert {check}(" in source(solution), "the solution must pass its own check"
        assert solution["metadata"]["jupyter"]["source_hidden"]
        text = "".join("".join(o.get("text", [])) for o in ask["outputs"])
        assert set(text.splitlines()) == {exercises.NO_ANSWER}
        assert "Right." in "".join("".join(o.get("text", [])) for o in solution["outputs"])
