"""Charts of losses and scores: what they draw is what the rows say."""

import numpy as np
import pytest

from petct_lib.viz import charts, panels


def test_patient_scores_plot_one_dot_a_patient():
    rows = [
        {"direction": "pet2ct", "method": m, "patient": p, "region": region, "metric": "mae", "value": v * scale}
        for region, scale in (("body", 1), ("lung", 10))
        for m, values in (("a", (1, 3)), ("b", (2, 2)))
        for p, v in zip("xy", values, strict=True)
    ]
    fig = charts.patient_scores(rows, "mae", {"pet2ct": "HU"})
    assert [line.get_ydata().tolist() for line in fig.axes[0].lines] == [[1, 3], [2, 2]]
    assert [bar.get_height() for bar in fig.axes[0].patches] == [2, 2]
    assert "n = 2 patients" in fig.axes[0].get_title()


def drawn(axis):
    """Points by label, without the limits."""
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_losses_draw_one_line_a_loss():
    fig = charts.losses([{"step": 0, "a": 1.0, "b": 2.0}, {"step": 1, "a": 0.5, "b": 1.0}], "losses")
    [axis] = fig.axes
    assert drawn(axis) == {"a": ([0, 1], [1.0, 0.5]), "b": ([0, 1], [2.0, 1.0])}
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("losses", "step", "loss")


def test_losses_take_each_key_where_it_is():
    fig = charts.losses([{"step": 0, "a": 1.0}, {"step": 5, "a": 2.0, "b": 3.0}, {"step": 9, "b": 4.0}], "losses")
    assert drawn(fig.axes[0]) == {"a": ([0, 5], [1.0, 2.0]), "b": ([5, 9], [3.0, 4.0])}


def test_losses_have_panels_for_accuracy_and_validation():
    history = [
        {"step": 0, "cycle": 1.0, "D_ct": 0.3, "accuracy_ct": 0.8, "accuracy_pet": 0.6},
        {"step": 9, "cycle": 1.0, "D_ct": 0.2, "accuracy_ct": 0.9, "accuracy_pet": 0.5, "validation_mae_suv": 0.4,
         "validation_mae_hu": 90.0, "validation_score": 0.1},
    ]  # fmt: skip
    loss, right, hu, suv = charts.losses(history, "CycleGAN").axes
    assert drawn(loss) == {"cycle": ([0, 9], [1.0, 1.0]), "D_ct": ([0, 9], [0.3, 0.2])}
    assert drawn(right) == {"D_ct": ([0, 9], [80.0, 90.0]), "D_pet": ([0, 9], [60.0, 50.0])}
    assert drawn(hu) == {"validation_mae_hu": ([9], [90.0])}
    assert drawn(suv) == {"validation_mae_suv": ([9], [0.4])}
    assert [axis.get_ylabel() for axis in (loss, right, hu, suv)] == ["loss", "D right, %", "MAE, HU", "MAE, SUV"]
    assert suv.yaxis.get_label_position() == "right"
    assert loss.lines[1].get_color() == right.lines[0].get_color()  # a discriminator has one colour
    assert loss.get_xlim() == hu.get_xlim()


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"accuracy_ct": 0.5}, ["loss", "D right, %"]), ({"validation_mae_suv": 0.5}, ["loss", "MAE, SUV"]),
        ({"validation_score": 0.5}, ["loss"]), ({}, ["loss"]),
    ],
)  # fmt: skip
def test_losses_have_no_empty_panel(row, labels, recwarn):
    fig = charts.losses([{"step": 0, **row}] if row else [], "losses")
    assert [axis.get_ylabel() for axis in fig.axes] == labels
    assert panels.figure_png(fig).startswith(b"\x89PNG")
    assert not recwarn.list


def test_losses_of_many_terms_have_a_line_each():
    row = {f"loss {k}": 1.0 for k in range(9)}
    assert len(drawn(charts.losses([{"step": 0, **row}], "losses").axes[0])) == 9


def rows_of(values):
    """Rows of two patients: {method: (MAE, spectrum distance)}."""
    rows = []
    for name, pair in values.items():
        for metric, value in zip(("mae", "spectrum"), pair, strict=True):
            row = {"direction": "pet2ct", "method": name, "region": "body", "metric": metric, "value": value}
            rows += [{**row, "patient": p, "unit": "HU" if metric == "mae" else "1", "mask": "SEG"} for p in "xy"]
    return rows


def test_paired_curve_draws_each_method_over_the_patients_beside_a_level():
    rows = rows_of({"cyclegan": (100, 0.2), "a_k1": (90, 0.5), "a_k4": (80, 0.4), "a": (70, 0.3)})
    fig = charts.paired_curve(rows, "pet2ct", {"a": {1: "a_k1", 4: "a_k4", 9: "a"}}, "cyclegan")
    mae, spectrum = fig.axes
    level, line, dots = mae.lines
    assert set(level.get_ydata()) == {100}
    assert list(line.get_xdata()) == [1, 4, 9]
    assert list(line.get_ydata()) == [90, 80, 70]
    values = [row["value"] for row in rows if row["metric"] == "mae" and row["method"] != "cyclegan"]
    assert sorted(dots.get_ydata()) == sorted(values), "every patient"
    [legend] = fig.legends
    assert "2 test patients" in legend.get_title().get_text()
    assert list(spectrum.lines[1].get_ydata()) == [0.5, 0.4, 0.3]
    assert "HU" in mae.get_ylabel()


def test_plane_joins_the_methods_that_no_other_beats():
    rows = rows_of({"a": (100, 0.2), "b": (80, 0.6), "c": (110, 0.7)})  # c is beaten in both
    rows += [{**rows[0], "patient": "all", "metric": "two_sample_accuracy", "unit": "1"}]
    [axis] = charts.error_and_spectrum(rows, "pet2ct").axes
    front = axis.lines[0]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(80, 0.6), (100, 0.2)]
    assert {text.get_text() for text in axis.texts} == {"a", "b", "c"}
    assert "2 test patients" in axis.get_title()
    assert "HU" in axis.get_xlabel()


def test_a_plane_of_many_methods_has_a_panel_for_those_near_the_least_error():
    rows = rows_of({f"m{k}": (100 + 2 * k, 0.9 - 0.01 * k) for k in range(20)})
    far, near = charts.error_and_spectrum(rows, "pet2ct").axes
    names = [{text.get_text() for text in axis.texts} for axis in (far, near)]
    assert names == [{f"m{k}" for k in range(7, 20)}, {f"m{k}" for k in range(7)}], "up to 1.12 times 100"
    assert near.get_xlim()[1] < 114


def test_rank_histogram_shows_shares_beside_the_flat_line():
    ranks = {"pet2ct": np.array([30, 10, 60]), "ct2pet": np.array([1, 1, 1])}
    fig = charts.rank_chart(ranks, patients=5)
    assert [[bar.get_height() for bar in axis.patches] for axis in fig.axes] == [
        [30, 10, 60], pytest.approx([100 / 3] * 3)
    ]  # fmt: skip
    for axis, direction in zip(fig.axes, ranks, strict=True):
        [flat] = axis.lines
        assert flat.get_ydata()[0] == pytest.approx(100 / 3)
        assert axis.get_title() == f"{direction} (n = 5 patients)"
        assert axis.get_xlabel() == "rank of the real voxel among 2 samples"
    assert [axis.get_title() for axis in charts.rank_chart(ranks).axes] == list(ranks)
    assert charts.rank_chart({}).texts[0].get_text() == "one sample, no ranks"


def test_bland_altman_shows_bias_and_limits_by_region():
    def row(patient, region, metric, value):
        return {"direction": "pet2ct", "method": "mean", "patient": patient, "region": region, "metric": metric,
                "value": value, "unit": "HU", "mask": "SEG"}  # fmt: skip

    rows = [row("x", "lung", "mean", -790.0), row("x", "lung", "me", 10.0), row("y", "lung", "mean", -770.0)]
    rows += [row("y", "lung", "me", 30.0), row("x", "lesion", "mean", 40.0), row("x", "lesion", "me", 1.0)]
    rows += [{**r, "method": "copy", "value": 9e9} for r in rows]
    fig = charts.bland_altman(rows, "pet2ct", "mean")
    [lung] = fig.axes  # one patient has a lesion: no limits of one
    dots, bias, low, high = lung.lines
    assert list(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [(-795.0, 10.0), (-785.0, 30.0)]
    assert bias.get_ydata()[0] == 20
    reach = 1.96 * np.std([10, 30], ddof=1)
    assert (low.get_ydata()[0], high.get_ydata()[0]) == pytest.approx((20 - reach, 20 + reach))
    assert lung.get_title() == "lung, n = 2 patients"
    assert "HU" in lung.get_xlabel()
