"""Every notebook in JupyterLab in Chromium, as a person uses it: run, and every slider moved with the keyboard.

At the sizes of TINY: what the cells print at their own is nbval's.
`make test-browser` runs it; `make test` does not, for want of a browser on every machine. BOOKS: the beginnings of the
names of the notebooks to run, such as "01 02". They share a folder, in which each finds what those before it made.
"""

import os
import shutil
from pathlib import Path
from statistics import median

import pytest
import yaml
from book import copied, name, opened, written
from lab import running_lab
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "tiny_run.yaml"
CHOSEN = tuple(os.environ.get("BOOKS", "").split()) or ("",)
NOTEBOOKS = [p.stem for p in sorted((ROOT / "notebooks").glob("0*.ipynb")) if p.stem.startswith(CHOSEN)]
assert NOTEBOOKS, f"no notebook begins with {CHOSEN}"
SHOTS = ROOT / os.environ.get("SHOTS", "runs/browser")
PRESSES = 3
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

DRAW = """
import io, ipywidgets, PIL.Image
def png(shade):
    data = io.BytesIO()
    PIL.Image.new("L", (64, 64), shade).save(data, format="png")
    return data.getvalue()
"""
SLIDER = """
slider = ipywidgets.IntSlider(3, 0, 9, description="shade")
picture = ipywidgets.Image(value=png(0), format="png", layout={{"align_self": "flex-start"}})
def draw(change):
    picture.value = png({shade})
slider.observe(draw, "value")
ipywidgets.VBox([slider, picture])
"""
UNSHOWN = """
def show(k):
    return IPython.display.Image(data=png(k))
import IPython
ipywidgets.interactive(show, k=ipywidgets.IntSlider(3, 0, 9, description="shade"))
"""
VIEWER = """
import numpy as np
from petct_lib.viz.viewers import VolumeViewer
viewer = VolumeViewer(np.zeros((6, 32, 32)), np.zeros((6, 32, 32)), (10, 4, 4))
viewer
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over copies of the notebooks: what they make and what is saved stays out of the repository."""
    served = tmp_path_factory.mktemp("served")
    shutil.copytree(ROOT / "notebooks", served / "notebooks", ignore=shutil.ignore_patterns("*.ipynb", ".*"))
    sizes = yaml.safe_load(TINY.read_text())
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        copied(path, served / "notebooks", sizes.get(path.stem, {}))
    with running_lab(served, tmp_path_factory.mktemp("private"), ROOT) as started:
        yield started


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, without a window; as root it has no sandbox."""
    result = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert result, "no Chromium: `make test-browser` installs it, CHROMIUM= names another"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=result, args=arguments)
        yield started
        started.close()


@pytest.fixture
def small(browser, lab):
    """Opens and runs a notebook of the given cells."""

    def run(path, *cells):
        book = new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata=KERNEL)
        return opened(browser, lab, written(book, lab.root / "small" / path))

    return run


def test_a_slider_is_moved_and_its_picture_seen_to_change(small):
    with small("good.ipynb", DRAW, SLIDER.format(shade="25 * change.new")) as book:
        book.run()
        assert book.problems() == []
        assert book.promises_sliders()
        [slider] = book.sliders()
        assert name(slider) == "shade"
        assert book.move(slider) > 0
        assert slider.get_attribute("aria-valuenow") == "4.0"


def test_a_cell_that_raises_and_those_after_it_are_problems(small):
    with small("raises.ipynb", "print(1)", "1 / 0", "print(2)") as book:
        book.run()
        raised, not_run, shown = book.problems()
    assert raised == "ZeroDivisionError: division by zero in 1 / 0"
    assert not_run == "not run: print(2)"
    assert "ZeroDivisionError" in shown


def test_a_dead_kernel_is_a_problem(small):
    with small("dies.ipynb", "import os; os._exit(1)", "print(2)") as book:
        book.run()
        assert "not run: print(2)" in book.problems()


def test_a_picture_that_stays_the_same_is_found_out(small):
    with small("stays.ipynb", DRAW, SLIDER.format(shade="0")) as book:
        book.run()
        with pytest.raises(AssertionError, match=r"shade: moved from 3\.0 to 4\.0, and no picture changed in 3 s"):
            book.move(*book.sliders(), seconds=3)


def test_a_viewer_without_a_picture_is_found_out(small):
    with small("unshown.ipynb", DRAW, UNSHOWN) as book:
        book.run()
        with pytest.raises(AssertionError, match="shade: no picture in its cell"):
            book.move(*book.sliders())


def test_a_picture_too_large_to_be_seen_with_its_slider_is_found_out(small):
    with small("large.ipynb", DRAW, SLIDER.format(shade="0"), "picture.layout.height = '1200px'") as book:
        book.run()
        with pytest.raises(AssertionError, match="shade: not in one window with a picture"):
            book.move(*book.sliders())


def test_an_error_inside_a_widget_is_a_problem(small):
    with small("inside.ipynb", "import ipywidgets", "ipywidgets.interactive(lambda k: 1 / k, k=(0, 2))") as book:
        book.run()
        assert book.problems() == []
        book.sliders()[0].press("ArrowLeft")
        book.page.wait_for_function("driver.errors().length")
        assert "ZeroDivisionError" in book.problems()[-1]


def test_a_widget_that_cannot_be_made_is_a_problem(small):
    with small("broken.ipynb", DRAW, "ipywidgets.Image(value=png(0), tooltip='breaks it in ipywidgets 8')") as book:
        book.run()
        [problem] = book.problems()
    assert "Failed to create view for 'ImageView'" in problem


def test_click_and_wheel_move_the_viewer_and_the_pointer_reads(small):
    with small("viewer.ipynb", VIEWER) as book:
        book.run()
        assert book.problems() == []
        axial, sliders = book.page.locator(".jp-OutputArea img").first, book.sliders()
        axial.click(position={"x": 9 * 4 + 4, "y": 9 * 2 + 4})  # 288 pixels show 32 voxels
        for slider, at in zip(sliders, ("3.0", "2.0", "4.0"), strict=False):
            expect(slider).to_have_attribute("aria-valuenow", at)
        book.page.mouse.wheel(0, -100)
        expect(sliders[0]).to_have_attribute("aria-valuenow", "4.0")
        axial.hover(position={"x": 9 * 30 + 4, "y": 9 * 31 + 4})
        expect(book.page.get_by_text("pointer: 0 HU, SUV 0.00 at slice 4, row 31, column 30")).to_be_visible()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs_and_its_sliders_move_pictures(notebook, browser, lab, capsys):
    with opened(browser, lab, lab.root / "notebooks" / f"{notebook}.ipynb") as book:
        book.run()
        book.keep_whole(SHOTS / f"{notebook}.png")
        assert_right(book)
        sliders = book.sliders()
        assert sliders or not book.promises_sliders(), "its sliders are not in the page"
        for k, slider in enumerate(sliders, start=1):
            try:
                times = [book.move(slider) for _ in range(PRESSES)]
            finally:  # what a failure looked like, too
                book.keep(SHOTS / f"{notebook}_slider{k}.png")
            with capsys.disabled():
                said = ", ".join(f"{ms:.0f}" for ms in times)
                print(f"\n{notebook}, {name(slider)}: key to picture {said} ms, median {median(times):.0f} ms", end="")
        assert_right(book)


def assert_right(book):
    """No problems; otherwise all of them, a line each, where pytest would shorten a list."""
    problems = "\n".join(book.problems())
    assert not problems, problems
