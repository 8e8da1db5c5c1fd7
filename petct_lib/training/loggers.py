"""Watchers of a training: TensorBoard's files, and a plot in the notebook that lives while the training runs."""

import html
import io
import math
import os
import time
from pathlib import Path

import PIL.Image
from IPython import get_ipython
from IPython.display import display
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from petct_lib import WARNING
from petct_lib.common.progress import PLAIN
from petct_lib.metrics import training_warnings
from petct_lib.viz import charts, panels


class TensorBoardLog:
    """Writes what a training logs to a folder for `tensorboard --logdir`: loss/…, watch/…, validation/…, preview."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.writer: SummaryWriter | None = None

    def start(self, name: str, total_steps: int, history: list[dict]) -> None:
        """history: the rows before a resume; what an interrupted run wrote after them is taken back."""
        purge_step = history[-1]["step"] + 1 if history else 0
        self.writer = SummaryWriter(str(self.folder), purge_step=purge_step)

    def row(self, row: dict) -> None:
        """One row of losses, with "step"."""
        for key, value in row.items():
            if key != "step":
                self.writer.add_scalar(_tag(key), value, row["step"])

    def picture(self, step: int, picture: Tensor) -> None:
        """A panel of samples, (1, H, W) in [0, 1]."""
        self.writer.add_image(f"preview {WARNING}", picture, step)

    def close(self) -> None:
        """Writes out what is left."""
        if self.writer:
            self.writer.close()


def _tag(key: str) -> str:
    if key.startswith("validation_"):
        return "validation/" + key.removeprefix("validation_")
    return ("watch/" if key.startswith("accuracy_") else "loss/") + key


class LivePlot:
    """Loss curves, samples and signs of collapse under the notebook's cell, redrawn while the training runs.

    It shows nothing without a notebook, or where `progress.PLAIN` is set: a headless run must not fill its notebook
    with pictures. every_s: seconds between drawings, at least; more where drawing would take over a tenth of the time.
    """

    def __init__(self, every_s: float = 2.0) -> None:
        self.every_s = every_s
        self.box = None  # these four are widgets from `start` on, in a notebook
        self.curves = self.samples = self.words = None
        self.history: list[dict] = []
        self._panel, self._due, self._new = b"", -math.inf, False

    def start(self, name: str, total_steps: int, history: list[dict]) -> None:
        """Shows the box once. history: the rows before a resume."""
        self.name, self.total_steps, self.history = name, total_steps, list(history)  # a copy: the caller's list grows
        self._panel, self._due, self._new = b"", -math.inf, bool(history)
        if os.environ.get(PLAIN) or getattr(get_ipython(), "kernel", None) is None:
            return
        import ipywidgets  # slow to import, and needed in notebooks only

        blank = _picture_png(PIL.Image.new("L", (1, 1), 255))  # an Image without data shows as a broken one
        self.curves, self.samples = (ipywidgets.Image(value=blank, format="png") for _ in range(2))
        self.samples.layout.max_width = self.samples.layout.max_height = "420px"
        self.words = ipywidgets.HTML(f"{html.escape(name)}: waiting for the first row")
        pictures = ipywidgets.HBox([self.curves, self.samples])
        self.box = ipywidgets.VBox([pictures, self.words])
        display(self.box)

    def row(self, row: dict) -> None:
        """One row of losses, with "step"."""
        self.history.append(row)
        self._new = True
        if time.monotonic() >= self._due:
            self._draw()

    def picture(self, step: int, picture: Tensor) -> None:
        """A panel of samples, (1, H, W) in [0, 1]; it is shown with the next drawing."""
        if self.box is not None:
            pixels = (picture[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
            self._panel, self._new = _picture_png(PIL.Image.fromarray(pixels)), True

    def close(self) -> None:
        """Draws what came since the last drawing."""
        self._draw()

    def _draw(self) -> None:
        if self.box is None or not self._new:
            return
        began = time.monotonic()
        if self.history:
            self.curves.value = panels.figure_png(charts.losses(self.history, self.name))
            self.words.value = self._describe()
        if self._panel:
            self.samples.value = self._panel
        self._new = False
        now = time.monotonic()
        self._due = now + max(self.every_s, 9 * (now - began))  # a long history takes a second to draw

    def _describe(self) -> str:
        """HTML: where the training is, and the signs of collapse."""
        signs = training_warnings.find_warnings(self.history)
        lines = [f"{self.name}: step {self.history[-1]['step'] + 1} of {self.total_steps}. Samples: {WARNING}"]
        lines += [f"Look out: {sign}." for sign in signs] or ["No early sign of collapse."]
        return "<br>".join(html.escape(line) for line in lines)


def _picture_png(picture: PIL.Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="png")
    return data.getvalue()
