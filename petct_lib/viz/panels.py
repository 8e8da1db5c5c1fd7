"""Pictures of slices. Every figure comes back from a function and is saved by name."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from petct_lib import WARNING
from petct_lib.common.files import atomic_write
from petct_lib.common.run_folder import RunFolder
from petct_lib.imaging.volume import Volume

if TYPE_CHECKING:
    from IPython.display import Image

CT_WINDOW_HU = (-1000, 400)  # lung and soft tissue both visible
PET_WINDOW_SUV = (0, 6)
ERROR_WINDOW = {"HU": (0, 400), "SUV": (0, 2)}  # and of the spread
TRUTH_WINDOWS_HU = {"lung": (-1150, 150), "soft tissue": (-160, 240)}
DPI = 72
PIXELS = {"interpolation": "nearest"}  # show the pixels that there are
STYLE = {
    "SUV": {**PIXELS, "cmap": "gray_r", "vmin": PET_WINDOW_SUV[0], "vmax": PET_WINDOW_SUV[1]},
    "HU": {**PIXELS, "cmap": "gray", "vmin": CT_WINDOW_HU[0], "vmax": CT_WINDOW_HU[1]},
}
ERROR_STYLE = {
    unit: {**PIXELS, "cmap": "magma", "vmin": low, "vmax": high} for unit, (low, high) in ERROR_WINDOW.items()
}


def save(fig: Figure, run_dir: Path, name: str, alt: str) -> "Image":
    """Writes `run_dir/figures/name.png` and returns it for display, with a text alternative."""
    from IPython.display import Image  # slow to import, and needed in notebooks only

    return Image(data=write_figure(fig, run_dir, name, alt), format="png", alt=alt)


def write_figure(fig: Figure, run_dir: Path, name: str, alt: str) -> bytes:
    """Writes `run_dir/figures/name.png`, with a text alternative; returns its bytes."""
    data = figure_png(fig, alt)
    with atomic_write(RunFolder(run_dir).figures / f"{name}.png") as temporary:
        temporary.write_bytes(data)
    return data


def figure_png(fig: Figure, alt: str = "") -> bytes:
    """The figure as a PNG of 80 colours: half of the size, so that notebooks keep their pictures and stay small.

    alt: the text alternative, kept in the file as its Description.
    """
    full, small = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png", dpi=DPI)
    picture = PIL.Image.open(full).convert("RGB").quantize(80, dither=PIL.Image.Dither.NONE)
    said = PIL.PngImagePlugin.PngInfo()
    said.add_itxt("Description", alt)
    picture.save(small, format="png", optimize=True, pnginfo=said)
    return small.getvalue()


def _panels(rows: int, columns: int, side: float = 1.9, synthetic: bool = False) -> tuple[Figure, np.ndarray]:
    fig = Figure(figsize=(side * columns, side * rows + 0.55), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    if synthetic:
        fig.supxlabel(WARNING, fontsize=7, color="#B00000")
    return fig, axes


def _show(axis: Axes, image: np.ndarray, unit: str, title: str = "") -> None:
    axis.imshow(image, **STYLE[unit])
    axis.set_title(title, fontsize=9)


def triptych(pet_suv: np.ndarray, ct_hu: np.ndarray, alpha: float = 0.5) -> Figure:
    """One slice: PET in inverted grey, CT, and PET in hot over CT. Both (H, W)."""
    fig, axes = _panels(1, 3, side=2.6)
    _show(axes[0, 0], pet_suv, "SUV", f"PET, SUV {PET_WINDOW_SUV[0]} to {PET_WINDOW_SUV[1]}")
    _show(axes[0, 1], ct_hu, "HU", f"CT, {CT_WINDOW_HU[0]} to {CT_WINDOW_HU[1]} HU")
    _show(axes[0, 2], ct_hu, "HU", "fused")
    axes[0, 2].imshow(pet_suv, cmap="hot", vmin=PET_WINDOW_SUV[0], vmax=PET_WINDOW_SUV[1], alpha=alpha, **PIXELS)
    return fig


def planes(ct: Volume, pet: Volume) -> Figure:
    """CT (HU) above PET (SUV): axial, coronal and sagittal through the middle, and the maximum seen from the front.

    Both in the CT's field, in patient mm; head up, the patient's right on the left.
    """
    fig = Figure(figsize=(10.4, 5.6), layout="constrained")
    axes = fig.subplots(2, 4)
    field = ct.corners_mm().min(axis=0), ct.corners_mm().max(axis=0)
    for row, volume in zip(axes, (ct, pet), strict=True):
        low, high = volume.corners_mm().min(axis=0), volume.corners_mm().max(axis=0)
        z, y, x = (n // 2 for n in volume.array.shape)
        views = (
            ("axial", volume.array[z], 0, 1), ("coronal", volume.array[:, y], 0, 2),
            ("sagittal", volume.array[:, :, x], 1, 2), ("maximum, front", volume.array.max(axis=1), 0, 2),
        )  # fmt: skip
        for axis, (name, image, across, up) in zip(row, views, strict=True):
            edges = (low[across], high[across], low[up], high[up])
            axis.imshow(image, **STYLE[volume.unit], origin="lower", extent=edges)
            limits = (field[0][up], field[1][up])
            axis.set(xlim=(field[0][across], field[1][across]), ylim=limits[::-1] if name == "axial" else limits)
            axis.set_title(f"{'CT' if volume is ct else 'PET'}, {name}", fontsize=9)
            axis.set_axis_off()
    axes[0, 3].images[0].set_clim(0, 1000)
    return fig


def truth(ct_hu: np.ndarray, pet_suv: np.ndarray, labels: np.ndarray, *, first_lesion: int) -> Figure:
    """One slice of the phantom in the windows of a reading room, and its labels in colours. All (H, W).

    first_lesion: labels from this number on are lesions, `tissues.FIRST_LESION`.
    """
    fig, axes = _panels(1, 4, side=2.9)
    for axis, (low, high), name in zip(axes[0], TRUTH_WINDOWS_HU.values(), TRUTH_WINDOWS_HU, strict=False):
        axis.imshow(ct_hu, cmap="gray", vmin=low, vmax=high, **PIXELS)
        axis.set_title(f"CT, {name} ({low} to {high} HU)", fontsize=9)
    _show(axes[0, 2], pet_suv, "SUV", f"PET, SUV {PET_WINDOW_SUV[0]} to {PET_WINDOW_SUV[1]}")
    colours = np.random.default_rng(3).uniform(0.25, 1, (256, 3))
    colours[0], colours[first_lesion:] = 0, (1, 0, 0)
    axes[0, 3].imshow(colours[labels], **PIXELS)
    axes[0, 3].set_title("truth: organs, lesions in red", fontsize=9)
    return fig


def montage(
    images: Sequence[np.ndarray], unit: str, titles: Sequence[str], synthetic: bool = False, side: float = 1.9
) -> Figure:
    """Slices of one unit side by side, each (H, W). side: inches of one."""
    fig, axes = _panels(1, len(images), side=side, synthetic=synthetic)
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        _show(axis, image, unit, title)
    return fig


def two_rows(
    top: np.ndarray, bottom: np.ndarray, units: tuple[str, str], titles: tuple[str, str], synthetic: bool = False
) -> Figure:
    """Slices above slices, each stack (n, H, W) in its own unit, such as PET above the CT of other patients."""
    fig, axes = _panels(2, len(top), side=1.7, synthetic=synthetic)
    for row, (stack, unit, title) in enumerate(zip((top, bottom), units, titles, strict=True)):
        for k, image in enumerate(stack):
            _show(axes[row, k], image, unit, title if k == 0 else "")
    return fig


def invented(real_hu: np.ndarray, fake_hu: np.ndarray, marked: np.ndarray) -> Figure:
    """Real CT, synthetic CT, and the synthetic one with what is marked in red, a column a slice; all (n, H, W).

    marked: bool, such as `training_warnings.find_invented_lung` gives.
    """
    fig, axes = _panels(3, len(real_hu), side=1.7, synthetic=True)
    titles = ("real CT", "synthetic CT", "in red: invented lung")
    for row, stack, title in zip(axes, (real_hu, fake_hu, fake_hu), titles, strict=True):
        for axis, image in zip(row, stack, strict=True):
            _show(axis, image, "HU")
        row[0].set_title(title, fontsize=9, loc="left")  # from the edge on: it may be wider than the slice
    for axis, mask in zip(axes[2], marked, strict=True):
        axis.imshow(mask[..., None] * np.array([1.0, 0.0, 0.0, 0.75]), **PIXELS)
    return fig


def translations(
    rows: Sequence[dict], source_unit: str, target_unit: str, error_of: str = "mean", side: float = 2.2
) -> Figure:
    """One row a slice: source, synthetic images, real, spread, |error_of − real|. Dicts of (H, W) images by name.

    "spread", where the dicts have it, is drawn in the colours of the error; "place" is the row and column to ring in
    all of them. side: inches of one image. Without rows the figure says so.
    """
    if not rows:
        fig = Figure(figsize=(4, 0.6))
        fig.text(0.5, 0.5, "none in this run", ha="center", va="center")
        return fig
    low, high = ERROR_WINDOW[target_unit]
    shown = [name for name in rows[0] if name not in ("source", "spread", "place")]
    errors = [*(["spread"] if "spread" in rows[0] else []), f"error of {error_of}"]
    fig, axes = _panels(len(rows), 1 + len(shown) + len(errors), side=side, synthetic=True)
    for line, row in zip(axes, rows, strict=True):
        images = {**row, errors[-1]: np.abs(row[error_of] - row["real"])}
        _show(line[0], row["source"], source_unit)
        for axis, name in zip(line[1:], [*shown, *errors], strict=True):
            axis.imshow(images[name], **(ERROR_STYLE if name in errors else STYLE)[target_unit])
        for axis in line if "place" in row else ():
            _ring(axis, row["place"], row["real"].shape)
    for axis, head in zip(axes[0], ["source", *shown, *errors], strict=True):
        axis.set_title(head, fontsize=9)
    axes[0, -1].set_title(f"{errors[-1]}, {low} to {high} {target_unit}", fontsize=7)
    return fig


def samples(row: dict, drawn: np.ndarray, source_unit: str, target_unit: str, side: float = 2.2) -> Figure:
    """A slice's source, regression, mean, spread and real image; below them every sample of it, eight in a row.

    row: images (H, W) by name, such as `cases.take_center_slice` gives. drawn: the samples, (N, H, W). side: of an
    image, in inches.
    """
    top = {name: row[name] for name in ("source", "regression", "mean", "spread", "real") if name in row}
    columns = max(len(top), min(len(drawn), 8))
    fig, axes = _panels(1 + -(-len(drawn) // columns), columns, side=side, synthetic=True)
    low, high = ERROR_WINDOW[target_unit]
    styles = {"source": STYLE[source_unit], "spread": ERROR_STYLE[target_unit]}
    for axis, (name, image) in zip(axes[0], top.items(), strict=False):
        axis.imshow(image, **styles.get(name, STYLE[target_unit]))
        axis.set_title(f"spread, {low} to {high} {target_unit}" if name == "spread" else name, fontsize=9)
    for k, (axis, image) in enumerate(zip(axes[1:].ravel(), drawn, strict=False)):
        _show(axis, image, target_unit, f"sample {k + 1}")
    return fig


def _ring(axis: Axes, place: tuple[int, int], shape: tuple[int, int]) -> None:
    """Orange around a pixel, wide enough to leave what is in it to be seen."""
    axis.add_patch(Circle(place[::-1], max(shape) / 12, fill=False, edgecolor="#E69F00", lw=1.2))


def preview(source: np.ndarray, image: np.ndarray, spread: np.ndarray, source_unit: str, target_unit: str) -> Figure:
    """One slice of a study that was translated: source, translation, and the spread of its samples. All (H, W)."""
    fig, axes = _panels(1, 3, side=2.6, synthetic=True)
    _show(axes[0, 0], source, source_unit, "source")
    _show(axes[0, 1], image, target_unit, "translation")
    axes[0, 2].imshow(spread, cmap="magma", vmin=0, **PIXELS)
    axes[0, 2].set_title(f"spread, 0 to {spread.max():.2g} {target_unit}", fontsize=9)
    return fig
