"""Charts of losses and scores. n is patients, never slices."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from petct_lib.metrics.statistics import agreement
from petct_lib.metrics.training_warnings import GIVEN_UP_ACCURACY, WON_ACCURACY

VALIDATION_MAE = {"validation_mae_hu": "HU", "validation_mae_suv": "SUV"}  # the keys of `validation.Validation`
MANY, NEAR = 12, 1.12  # chosen: methods on one plane; times the least error that gets a panel of its own
APART = 1.05  # chosen: factor between the heights of two names on the plane
METHOD_COLOURS = ("#999999", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: colour-blind safe


def losses(history: list[dict], title: str) -> Figure:
    """The rows that `loop.fit` returned, over the steps: each key where a row has it, panels only for what there is.

    Losses; below them how often the discriminators are right, %, with the limits of `training_warnings.find_warnings`
    dotted; below that the body MAE of the validation, HU on the left and SUV on the right axis. Other scores of the
    validation are left out.
    """
    keys = list(dict.fromkeys(key for row in history for key in row if key != "step"))
    accuracy = [key for key in keys if key.startswith("accuracy_")]
    maes = [key for key in VALIDATION_MAE if key in keys]
    others = [key for key in keys if key not in accuracy and not key.startswith("validation_")]
    heights = [2.3] + [1.4] * (bool(accuracy) + bool(maes))
    fig = Figure(figsize=(7, sum(heights) + 0.3), layout="constrained")
    axes = list(fig.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    axes[0].set(ylabel="loss", title=title)
    axes[-1].set_xlabel("step")
    colours = {key: METHOD_COLOURS[k % len(METHOD_COLOURS)] for k, key in enumerate(others)}
    for key in others:
        _curve(axes[0], history, key, key, colours[key])
    if others and all(row.get(key, 1) > 0 for row in history for key in others):  # a log likelihood may be negative
        axes[0].set_yscale("log")
    if accuracy:
        _accuracy(axes[1], history, accuracy, colours)
    if maes:
        _validation(axes[-1], history, maes)
    for axis in axes[: 1 + bool(accuracy)]:
        if axis.lines:
            axis.legend(fontsize=8, ncols=3, frameon=False)
    fig.align_ylabels(axes)
    return fig


def _curve(
    axis: Axes, history: list[dict], key: str, label: str, colour: str, scale: float = 1.0, marker: str = ""
) -> None:
    points = [(row["step"], scale * row[key]) for row in history if key in row]
    axis.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, lw=1, ms=3)


def _accuracy(axis: Axes, history: list[dict], keys: list[str], colours: dict[str, str]) -> None:
    """colours: of the losses by name, so that a discriminator has one colour."""
    for key, spare in zip(keys, METHOD_COLOURS, strict=False):
        name = f"D_{key.removeprefix('accuracy_')}"
        _curve(axis, history, key, name, colours.get(name, spare), scale=100)
    for limit in (WON_ACCURACY, GIVEN_UP_ACCURACY):
        axis.axhline(100 * limit, color="black", lw=0.7, ls=":")
    axis.set(ylim=(0, 104), yticks=(0, 50, 100), ylabel="D right, %")


def _validation(left: Axes, history: list[dict], keys: list[str]) -> None:
    """One axis a unit, named and coloured as its curve; a single unit stands on the left."""
    for k, (key, colour, marker) in enumerate(zip(keys, ("black", METHOD_COLOURS[5]), "os", strict=False)):
        axis = left.twinx() if k else left
        _curve(axis, history, key, key, colour, marker=marker)
        axis.set_ylabel(f"MAE, {VALIDATION_MAE[key]}", color=colour)
        axis.tick_params(axis="y", colors=colour)
        axis.margins(y=0.2)


def patient_scores(rows: list[dict], metric: str, unit: dict[str, str], region: str = "body") -> Figure:
    """One dot a test patient for every method, one panel a direction; the mean as a bar. n is patients, not slices."""
    directions = list(dict.fromkeys(r["direction"] for r in rows))
    fig = Figure(figsize=(4.2 * len(directions), 3.0), layout="constrained")
    for axis, direction in zip(fig.subplots(1, len(directions), squeeze=False)[0], directions, strict=True):
        chosen = [r for r in rows if (r["direction"], r["metric"], r["region"]) == (direction, metric, region)]
        methods = list(dict.fromkeys(r["method"] for r in chosen))
        for k, method in enumerate(methods):
            values = [r["value"] for r in chosen if r["method"] == method]
            axis.bar(k, np.mean(values), color=METHOD_COLOURS[k % 6], alpha=0.5)
            axis.plot([k] * len(values), values, "o", color="black", ms=3)
        axis.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=8)
        axis.set(title=f"{direction} (n = {len(values)} patients)", ylabel=f"{region} {metric}, {unit[direction]}")
    return fig


def error_and_spectrum(rows: list[dict], direction: str, whose: str = "test") -> Figure:
    """Every method of a direction by distortion (body MAE) and realism (spectrum distance), means over patients.

    Towards the lower left is better in both; the methods that no other beats in both are joined by a line, the front.
    Where there are many, those near the least error have a panel of their own.
    """
    mine = [row for row in rows if row["direction"] == direction and row["region"] == "body"]
    methods = dict.fromkeys(row["method"] for row in mine)
    points = {method: (_mean(mine, method, "mae"), _mean(mine, method, "spectrum")) for method in methods}
    best = min(mae for mae, _ in points.values())
    near = {name for name, (mae, _) in points.items() if mae <= NEAR * best} if len(points) > MANY else set()
    panels = [set(points) - near, near] if near else [set(points)]
    fig = Figure(figsize=(8.4 if not near else 11.2, 6), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for axis, labelled in zip(axes, panels, strict=True):
        _points(axis, points, labelled)
    if near:
        axes[1].set_xlim(0.98 * best, 1.01 * NEAR * best)
        axes[1].set_title(f"near the least error: up to {NEAR:g} times", fontsize=10)
    [unit] = {row["unit"] for row in mine if row["metric"] == "mae"}
    patients = len({row["patient"] for row in mine if row["metric"] == "mae"})
    for axis in axes:
        axis.set(yscale="log", xlabel=f"distortion: body MAE, {unit}")
        _plain_numbers(axis.yaxis)
    axes[0].set(xscale="log", ylabel="realism: spectrum distance")
    _plain_numbers(axes[0].xaxis)
    axes[0].set_title(f"{direction}, means over {patients} {whose} patients; lower left is better", fontsize=10)
    return fig


def _plain_numbers(axis: Axis) -> None:
    """0.5 and 200 on a logarithmic axis, as on a linear one, and not 5×10⁻¹; of the digits, those that have room."""

    def label(x: float, _place: int) -> str:
        low, high = axis.get_view_interval()
        return f"{x:g}" if f"{x:e}"[0] in ("23456789" if high < 4 * low else "2357") else ""

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(label)


def _points(axis: Axes, points: dict[str, tuple[float, float]], labelled: set[str]) -> None:
    """All points, the front, and names of some, moved apart upwards where they would cover each other."""
    front = sorted(p for p in points.values() if not any(q[0] < p[0] and q[1] < p[1] for q in points.values()))
    axis.plot(*zip(*front, strict=True), color=METHOD_COLOURS[0], lw=1, zorder=0)
    for k, (x, y) in enumerate(points.values()):
        axis.plot(x, y, "osD^v"[k % 5], color=METHOD_COLOURS[2], ms=5)
    reached = 0.0
    for method in sorted(labelled, key=lambda name: points[name][1]):
        x, y = points[method]
        reached = max(y, APART * reached)
        axis.plot((x, x), (y, reached), color=METHOD_COLOURS[0], lw=0.4, zorder=0)
        axis.annotate(method, (x, reached), xytext=(6, 0), textcoords="offset points", fontsize=7, va="center")


def _mean(rows: list[dict], method: str, metric: str) -> float:
    return float(np.mean(_values(rows, method, metric)))


def _values(rows: list[dict], method: str, metric: str) -> list[float]:
    """Of each patient."""
    return [row["value"] for row in rows if (row["method"], row["metric"]) == (method, metric)]


def paired_curve(rows: list[dict], direction: str, methods: dict[str, dict[int, str]], beside: str) -> Figure:
    """Body MAE and spectrum distance by the number of paired patients learned from; below is better in both.

    A line through the means over test patients, a dot each patient. methods: {line: {paired patients: method in
    `rows`}}; beside: a method that learned from no pairs, a level line.
    """
    mine = [row for row in rows if row["direction"] == direction and row["region"] == "body"]
    [unit] = {row["unit"] for row in mine if row["metric"] == "mae"}
    fig = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axis, metric, name in zip(
        fig.subplots(1, 2), ("mae", "spectrum"), (f"body MAE, {unit}", "spectrum distance"), strict=True
    ):
        axis.axhline(_mean(mine, beside, metric), color=METHOD_COLOURS[0], ls="--", label=f"{beside} (no pairs)")
        for line, (label, points) in enumerate(methods.items()):
            colour, aside = METHOD_COLOURS[line + 1], 1.04 ** (line - 1)  # so that dots of one k do not cover others'
            axis.plot(
                list(points), [_mean(mine, names, metric) for names in points.values()], color=colour, label=label
            )
            dots = [(k * aside, value) for k, names in points.items() for value in _values(mine, names, metric)]
            axis.plot(*zip(*dots, strict=True), "o", color=colour, ms=3, alpha=0.7)
        ticks = sorted({k for points in methods.values() for k in points})
        axis.set_xscale("symlog", linthresh=1)  # 0 has a place
        axis.set(xlabel=f"{direction}: paired patients to learn from", ylabel=name)
        room = [following > 1.2 * k for k, following in zip(ticks, [*ticks[1:], math.inf], strict=True)]
        axis.set_xticks(ticks, [str(k) if has else "" for k, has in zip(ticks, room, strict=True)])
        axis.minorticks_off()
    title = f"mean and each of\n{len(_values(mine, beside, 'mae'))} test patients"
    fig.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8, title=title, title_fontsize=8)
    return fig


def rank_chart(ranks: dict[str, np.ndarray], patients: int | None = None) -> Figure:
    """How often the real voxel has each rank among its N samples, a panel a direction; flat: the spread is calibrated.

    ranks: by direction, counts by rank of `distribution.rank_histogram`, summed over the patients. High at both ends:
    the samples are too narrow; high at one end: they have a bias (Hamill 2001). Without ranks the figure says so.
    """
    fig = Figure(figsize=(3.6 * max(len(ranks), 1), 2.8), layout="constrained")
    if not ranks:
        fig.text(0.5, 0.5, "one sample, no ranks", ha="center", va="center")
        return fig
    count = "" if patients is None else f" (n = {patients} patients)"
    for axis, (direction, counts) in zip(fig.subplots(1, len(ranks), squeeze=False)[0], ranks.items(), strict=True):
        axis.bar(range(len(counts)), 100 * counts / counts.sum(), color=METHOD_COLOURS[2], alpha=0.7)
        axis.axhline(100 / len(counts), color="black", ls="--", lw=0.8)
        axis.set(title=f"{direction}{count}", xlabel=f"rank of the real voxel among {len(counts) - 1} samples")
        axis.set(xticks=range(len(counts)), ylabel="share of the voxels, %")
    return fig


def bland_altman(rows: Sequence[dict], direction: str, method: str) -> Figure:
    """Mean of each region, synthetic − real over the mean of both, a dot a patient; bias and limits of agreement.

    Of the rows `mean` and `me` of one method (Bland and Altman 1986); a panel a region that two patients or more have.
    """
    mine = [row for row in rows if (row["direction"], row["method"]) == (direction, method)]
    [unit] = {row["unit"] for row in mine if row["metric"] == "me"}
    regions = {
        region: pairs
        for region in dict.fromkeys(row["region"] for row in mine if row["region"] != "image")  # with air and couch
        if len(pairs := _real_and_synthetic(mine, region)) >= 2
    }
    fig = Figure(figsize=(2.5 * max(len(regions), 1), 2.7), layout="constrained")
    for axis, (region, pairs) in zip(
        np.atleast_1d(fig.subplots(1, max(len(regions), 1))), regions.items(), strict=False
    ):
        real, synthetic = np.array(pairs).T
        limits = agreement(real, synthetic)
        axis.plot((real + synthetic) / 2, synthetic - real, "o", color=METHOD_COLOURS[2], ms=4)
        axis.axhline(limits.bias, color=METHOD_COLOURS[3], label=f"bias {limits.bias:+.3g}")
        for limit in (limits.low, limits.high):
            axis.axhline(limit, color=METHOD_COLOURS[3], ls="--", lw=0.8)
        axis.set(title=f"{region}, n = {limits.n} patients", xlabel=f"mean of both, {unit}")
        axis.legend(fontsize=7, title=f"limits {limits.low:+.3g} to {limits.high:+.3g}", title_fontsize=7)
    fig.supylabel(f"{method} − real, {unit}", fontsize=9)
    fig.suptitle(f"{direction}: agreement of the mean of each region", fontsize=10)
    return fig


def _real_and_synthetic(rows: list[dict], region: str) -> list[tuple[float, float]]:
    """Mean of the real and of the synthetic image over a region, by patient."""
    means = {
        metric: {r["patient"]: r["value"] for r in rows if (r["region"], r["metric"]) == (region, metric)}
        for metric in ("mean", "me")
    }
    return [(mean - means["me"][patient], mean) for patient, mean in means["mean"].items() if patient in means["me"]]
