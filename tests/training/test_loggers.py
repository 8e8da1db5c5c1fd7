"""What watchers of a training write and show."""

import io
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from petct_lib import WARNING
from petct_lib.common.progress import PLAIN
from petct_lib.metrics.training_warnings import RECENT_ROWS
from petct_lib.training import loggers
from petct_lib.training.loggers import LivePlot, TensorBoardLog

ROW = {"step": 0, "adversarial": 1.0, "cycle": 2.0, "accuracy_ct": 0.75}
PANEL = torch.linspace(0, 1, 12).view(1, 3, 4)


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_has_every_key_under_its_group(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.start("CycleGAN", 20, [])
    log.row(ROW)
    log.row({"step": 10, "cycle": 1.5, "validation_mae_hu": 80.0})
    log.picture(10, PANEL)
    log.close()
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss/adversarial", "loss/cycle", "watch/accuracy_ct", "validation/mae_hu"}
    assert [(e.step, e.value) for e in events.Scalars("loss/cycle")] == [(0, 2.0), (10, 1.5)]
    assert [(e.step, e.width, e.height) for e in events.Images(f"preview {WARNING}")] == [(10, 4, 3)]


def test_tensorboard_takes_back_what_was_written_after_the_checkpoint(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.start("CycleGAN", 30, [])
    for step in (0, 10, 20):
        log.row({"step": step, "cycle": 1.0})
    log.close()
    log = TensorBoardLog(tmp_path)
    log.start("CycleGAN", 30, [{"step": 0, "cycle": 1.0}])  # the checkpoint knows the first row only
    log.row({"step": 10, "cycle": 5.0})
    log.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss/cycle")] == [(0, 1.0), (10, 5.0)]


def test_tensorboard_closed_before_it_started(tmp_path):
    TensorBoardLog(tmp_path / "logs").close()
    assert not (tmp_path / "logs").exists()


@pytest.fixture
def notebook(monkeypatch):
    """As in a notebook, with a clock to set and a list of what was displayed."""
    here = SimpleNamespace(now=0.0, shown=[])
    monkeypatch.delenv(PLAIN, raising=False)
    monkeypatch.setattr(loggers, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(loggers, "display", here.shown.append)
    monkeypatch.setattr(loggers.time, "monotonic", lambda: here.now)
    return here


@pytest.fixture
def drawn(monkeypatch):
    """How many rows each drawing had."""
    seen = []
    monkeypatch.setattr(loggers.charts, "losses", lambda history, title: seen.append(len(history)))
    monkeypatch.setattr(loggers.panels, "figure_png", lambda fig: b"picture %d" % len(seen))
    return seen


def test_the_plot_is_displayed_once_and_drawn_every_two_seconds(notebook, drawn):
    plot = LivePlot()
    plot.start("CycleGAN", 100, [])
    for notebook.now in (0.0, 1.0, 1.9, 2.0, 2.5, 4.1):
        plot.row(ROW)
    assert drawn == [1, 4, 6]
    assert plot.curves.value == b"picture 3"
    plot.close()
    assert drawn == [1, 4, 6]  # nothing new
    assert notebook.shown == [plot.box]
    assert plot.box.children[0].children == (plot.curves, plot.samples)


def test_closing_draws_what_is_new(notebook, drawn):
    plot = LivePlot(every_s=60)
    plot.start("CycleGAN", 100, [])
    plot.row(ROW)
    plot.row(ROW)
    plot.close()
    assert drawn == [1, 2]


def test_drawing_takes_a_tenth_of_the_time_at_most(notebook, monkeypatch):
    drawn = []

    def slow(history, title):
        drawn.append(notebook.now)
        notebook.now += 1.0

    monkeypatch.setattr(loggers.charts, "losses", slow)
    monkeypatch.setattr(loggers.panels, "figure_png", lambda fig: b"")
    plot = LivePlot(every_s=2.0)
    plot.start("CycleGAN", 100, [])
    for _ in range(40):
        plot.row(ROW)
        notebook.now += 0.5
    assert drawn == [0.0, 10.0, 20.0]


def test_rows_before_a_resume_are_drawn_and_the_callers_list_is_left_alone(notebook, drawn):
    before = [ROW, ROW]
    plot = LivePlot()
    plot.start("CycleGAN", 100, before)
    before.append({**ROW, "step": 10})  # the training keeps its list itself
    plot.row(before[-1])
    assert drawn == [3]
    assert len(before) == 3


def test_real_drawings_are_png_pictures_and_the_panel_keeps_its_pixels(notebook):
    plot = LivePlot()
    plot.start("CycleGAN", 100, [])
    plot.picture(1, PANEL)
    plot.row(ROW)
    assert PIL.Image.open(io.BytesIO(plot.curves.value)).width > 300
    samples = PIL.Image.open(io.BytesIO(plot.samples.value))
    assert (samples.width, samples.height) == (4, 3)
    assert samples.getpixel((0, 0)) == 0
    assert samples.getpixel((3, 2)) == 255
    assert WARNING in plot.words.value


def test_the_words_tell_where_it_is_and_what_looks_bad(notebook, drawn):
    plot = LivePlot(every_s=0)
    plot.start("a < b", 100, [])
    assert "waiting" in plot.words.value
    for step in range(RECENT_ROWS):
        plot.row({"step": step, "accuracy_ct": 1.0})
        assert ("D_ct is right in 100 %" in plot.words.value) == (step + 1 == RECENT_ROWS)
    assert "a &lt; b: step 20 of 100" in plot.words.value
    assert "No early sign" not in plot.words.value
    plot.row({"step": RECENT_ROWS, "accuracy_ct": 0.0})
    assert "No early sign of collapse." in plot.words.value


@pytest.mark.parametrize("where", ["plain", "no kernel", "terminal"])
def test_without_a_notebook_nothing_is_displayed_or_drawn(notebook, drawn, monkeypatch, where):
    if where == "plain":
        monkeypatch.setenv(PLAIN, "1")
    else:
        monkeypatch.setattr(loggers, "get_ipython", lambda: None if where == "no kernel" else SimpleNamespace())
    plot = LivePlot()
    plot.start("CycleGAN", 100, [])
    plot.row(ROW)
    plot.picture(1, PANEL)
    plot.close()
    assert notebook.shown == drawn == []
    assert plot.box is None


def test_a_plot_survives_closing_without_rows(notebook, drawn):
    LivePlot().close()
    plot = LivePlot()
    plot.start("CycleGAN", 100, [])
    plot.close()
    assert drawn == []
    plot.picture(1, PANEL)
    plot.close()  # a picture alone is shown
    assert drawn == []
    assert PIL.Image.open(io.BytesIO(plot.samples.value)).width == 4
