"""One notebook in the browser: opened, run, looked at, its sliders moved with the keyboard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from lab import Lab
from playwright.sync_api import Browser, Locator, Page
from playwright.sync_api import TimeoutError as TooLate

WINDOW = {"width": 1440, "height": 900}
HIGHEST = 16_000  # pixels; Chromium's own limit of a picture is 16384
OPEN_SECONDS, RUN_SECONDS, PICTURE_SECONDS = 180, 1800, 60
SLIDERS = ".jp-Notebook [role=slider]:visible"
WIDGET = "application/vnd.jupyter.widget-view+json"
DRIVER = Path(__file__).parent / "page.js"


def copied(notebook: Path, folder: Path, values: dict[str, object]) -> Path:
    """A copy without its outputs and with some parameters changed: what the browser shows is of this run."""
    book = nbformat.read(notebook, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join([cell.source, *(f"{name} = {value!r}" for name, value in values.items())])
    return written(book, folder / notebook.name)


def written(book: nbformat.NotebookNode, path: Path) -> Path:
    """A notebook as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


@contextmanager
def opened(browser: Browser, lab: Lab, path: Path) -> Iterator["Book"]:
    """The notebook in a page of its own, with a kernel that ends with it."""
    context = browser.new_context(viewport=WINDOW)
    context.set_default_timeout(1000 * OPEN_SECONDS)
    context.add_init_script(path=DRIVER)
    page = context.new_page()
    try:
        page.goto(lab.address(path))
        page.wait_for_function("driver.opened()")
        yield Book(page, path)
    finally:
        page.evaluate("driver.panel()?.sessionContext.shutdown()")
        context.close()


class Book:
    """A notebook that is open in `page`; `path` is its file."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.path = page, path

    def run(self) -> None:
        """Runs all cells, waits until the kernel rests, and saves."""
        self.page.evaluate("driver.runAll()")
        self.page.wait_for_function("!driver.running()", polling=250, timeout=1000 * RUN_SECONDS)
        self.page.evaluate("jupyterapp.commands.execute('docmanager:save')")

    def problems(self) -> list[str]:
        """Whatever went wrong: a dead kernel, cells that raised or did not run, errors that a widget shows."""
        state = self.page.evaluate("driver.kernel()")
        dead = [] if state == "idle" else [f"the kernel is {state}"]
        cells = [c for c in self._saved() if c.source.strip()]
        not_run = [f"not run: {c.source[:80]}" for c in cells if not c.execution_count]
        missing = self._promised() - self.page.evaluate("driver.widgets()")
        unseen = [f"{missing} widgets do not appear"] if missing > 0 else []
        return dead + _raised(cells) + not_run + unseen + self.page.evaluate("driver.errors()")

    def _saved(self) -> list[nbformat.NotebookNode]:
        """The code cells of the file."""
        return [c for c in nbformat.read(self.path, as_version=4).cells if c.cell_type == "code"]

    def _promised(self) -> int:
        """How many outputs of the file are widgets."""
        return sum(WIDGET in o.get("data", {}) for c in self._saved() for o in c.outputs)

    def promises_sliders(self) -> bool:
        """Whether the text that stands for a widget where none can be shown names sliders."""
        outputs = [o.get("data", {}) for c in self._saved() for o in c.outputs]
        return any("Slider(" in data.get("text/plain", "") for data in outputs)

    def sliders(self) -> list[Locator]:
        """The handles that can be moved, from top to bottom."""
        handles = self.page.locator(SLIDERS).all()
        return [h for h in handles if h.get_attribute("aria-valuemin") != h.get_attribute("aria-valuemax")]

    def move(self, slider: Locator, seconds: float = PICTURE_SECONDS) -> float:
        """One step by the keyboard; the ms from the key press to the changed picture. AssertionError where none is."""
        slider.focus()
        before = slider.get_attribute("aria-valuenow")
        assert slider.evaluate("handle => driver.watch(handle)"), f"{name(slider)}: no picture in its cell"
        assert slider.evaluate("handle => driver.together(handle)"), f"{name(slider)}: not in one window with a picture"
        self.page.keyboard.press("ArrowLeft" if before == slider.get_attribute("aria-valuemax") else "ArrowRight")
        try:
            self.page.wait_for_function("driver.elapsed !== null", timeout=1000 * seconds)
        except TooLate:
            moved = f"moved from {before} to {slider.get_attribute('aria-valuenow')}"
            raise AssertionError(f"{name(slider)}: {moved}, and no picture changed in {seconds} s") from None
        assert slider.get_attribute("aria-valuenow") != before, f"{name(slider)}: did not move"
        self.page.wait_for_function("driver.kernel() === 'idle'")
        return self.page.evaluate("driver.elapsed")

    def keep_whole(self, picture: Path) -> None:
        """Every cell as one picture."""
        self.page.set_viewport_size({**WINDOW, "height": min(HIGHEST, self.page.evaluate("driver.height()"))})
        self.page.evaluate("driver.toTop()")
        self.keep(picture)
        self.page.set_viewport_size(WINDOW)

    def keep(self, picture: Path) -> None:
        """What a person sees without scrolling."""
        picture.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=picture)


def _raised(cells: list[nbformat.NotebookNode]) -> list[str]:
    errors = [(c, o) for c in cells for o in c.outputs if o.output_type == "error"]
    return [f"{o.ename}: {o.evalue} in {c.source[:80]}" for c, o in errors]


def name(slider: Locator) -> str:
    """What stands beside a slider."""
    return slider.evaluate("handle => handle.closest('.widget-slider').querySelector('.widget-label').textContent")
