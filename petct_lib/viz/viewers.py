"""Viewers to explore volumes with: widgets around pure drawing functions. A change is drawn in a few milliseconds.

Everything is drawn as (H, W, 3) uint8 pictures by colour tables, without matplotlib's figures, so that a slider moves
as fast as one can look. Arrays are (n, H, W), slices from the feet to the head, in HU and SUV.
"""

import io
from collections.abc import Sequence

import ipyevents
import ipywidgets
import numpy as np
import PIL.Image
from IPython.display import display
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from petct_lib import WARNING
from petct_lib.viz.panels import CT_WINDOW_HU, ERROR_WINDOW, PET_WINDOW_SUV, STYLE, TRUTH_WINDOWS_HU

WINDOWS_HU = {"lung and soft tissue": CT_WINDOW_HU, **TRUTH_WINDOWS_HU, "bone": (-500, 1300)}  # (low, high)
SHOWN_AS = ("fused", "CT", "PET")
PLANES = ("axial", "coronal", "sagittal")
CROSSHAIR = np.array((0, 158, 115), np.uint8)  # green of Okabe and Ito: seen by the colour-blind on grey and on hot
SIDE_PX = 288  # of the longest side of a plane
ERRORS = ("error", "spread")  # pictures by these names are drawn as errors


def apply_colours(image: np.ndarray, low: float, high: float, cmap: str = "gray") -> np.ndarray:
    """(H, W) in its unit → (H, W, 3) uint8; `low` and less is the first colour of the map, `high` and more the last."""
    return ScalarMappable(Normalize(low, high, clip=True), cmap).to_rgba(image, bytes=True)[..., :3]


def fuse(
    ct_hu: np.ndarray, pet_suv: np.ndarray, window_hu: tuple[float, float], suv_max: float, alpha: float
) -> np.ndarray:
    """PET in hot over CT in grey, (H, W) both → (H, W, 3) uint8. alpha: share of the PET, 0 to 1."""
    below, above = apply_colours(ct_hu, *window_hu), apply_colours(pet_suv, 0, suv_max, "hot")
    return np.rint((1 - alpha) * below + alpha * above).astype(np.uint8)


def magnify(picture: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) → (H, W, 3) of `size_px` (H, W), each pixel as a block: nothing is smoothed."""
    return np.asarray(PIL.Image.fromarray(picture).resize(size_px[::-1], PIL.Image.Resampling.NEAREST))


def encode_png(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as PNG, packed quickly rather than small."""
    data = io.BytesIO()
    PIL.Image.fromarray(picture).save(data, format="png", compress_level=1)
    return data.getvalue()


def take_plane(volume: np.ndarray, name: str, at: Sequence[int]) -> np.ndarray:
    """The axial, coronal or sagittal plane of (n, H, W) through the voxel `at` (z, y, x); head or front up."""
    z, y, x = at
    return {"axial": volume[z], "coronal": volume[::-1, y], "sagittal": volume[::-1, :, x]}[name]


def place_in_plane(name: str, at: Sequence[int], slices: int) -> tuple[int, int]:
    """Row and column of the voxel `at` (z, y, x) in a plane of a volume of so many slices."""
    z, y, x = at
    up = slices - 1 - z
    return {"axial": (y, x), "coronal": (up, x), "sagittal": (up, y)}[name]


def voxel_at(name: str, row: int, column: int, at: Sequence[int], slices: int) -> tuple[int, int, int]:
    """The inverse of `place_in_plane`: the voxel (z, y, x) at a row and column; what the plane hides is as in `at`."""
    z, y, x = at
    up = slices - 1 - row
    return {"axial": (z, row, column), "coronal": (up, y, column), "sagittal": (up, column, x)}[name]


def describe_values(ct_hu: np.ndarray, pet_suv: np.ndarray, at: Sequence[int]) -> str:
    """What lies at a voxel (z, y, x), in words and units."""
    z, y, x = (int(i) for i in at)
    return f"{ct_hu[z, y, x]:.0f} HU, SUV {pet_suv[z, y, x]:.2f} at slice {z}, row {y}, column {x}"


class _Viewer:
    """What has a `box` and is shown as that at the end of a cell."""

    box: ipywidgets.Box

    def _ipython_display_(self) -> None:
        display(self.box)


class VolumeViewer(_Viewer):
    """PET and CT in three planes with a crosshair; `box` is the widget.

    Sliders (mouse or arrow keys) move the crosshair, as do a click and, for the slices, the wheel; under the pointer,
    HU and SUV are read. ct_hu, pet_suv: (n, H, W) on one grid; spacing_mm: of z, y, x. synthetic: whether one of
    them was made by a network, which the viewer then says.
    """

    def __init__(
        self, ct_hu: np.ndarray, pet_suv: np.ndarray, spacing_mm: Sequence[float], synthetic: bool = False
    ) -> None:
        if ct_hu.shape != pet_suv.shape or ct_hu.ndim != 3:
            raise ValueError(f"CT {ct_hu.shape} and PET {pet_suv.shape} must be volumes (n, H, W) of one grid")
        self.ct, self.pet, self.warning = np.asarray(ct_hu), np.asarray(pet_suv), WARNING if synthetic else ""
        self.sizes_px = _sizes(self.ct.shape, spacing_mm)
        self.at = {
            axis: _slider(name, n // 2, n - 1)
            for axis, name, n in zip("zyx", ("slice", "row", "column"), self.ct.shape, strict=True)
        }
        self.shown = ipywidgets.ToggleButtons(options=SHOWN_AS, description="show", style={"button_width": "70px"})
        self.window = ipywidgets.Dropdown(options=list(WINDOWS_HU), description="CT window")
        self.suv_max = _slider("SUV up to", PET_WINDOW_SUV[1], 20, low=1)
        self.alpha = ipywidgets.FloatSlider(0.5, min=0, max=1, step=0.1, description="PET share")
        self.images = {name: _image() for name in PLANES}
        self.words = ipywidgets.HTML()
        self._listen()
        self.draw()
        self.box = self._box()

    @property
    def voxel(self) -> tuple[int, int, int]:
        """Where the crosshair is, (z, y, x)."""
        return tuple(slider.value for slider in self.at.values())

    def picture(self, name: str) -> np.ndarray:
        """One plane as it is shown, with its crosshair, (H, W, 3) uint8."""
        ct, pet = (take_plane(volume, name, self.voxel) for volume in (self.ct, self.pet))
        shown, window = self.shown.value, WINDOWS_HU[self.window.value]
        if shown == "PET":
            small = apply_colours(pet, 0, self.suv_max.value, "gray_r")  # inverted, as radiologists read PET
        else:
            small = fuse(ct, pet, window, self.suv_max.value, self.alpha.value if shown == "fused" else 0)
        large = magnify(small, self.sizes_px[name]).copy()
        return _with_crosshair(large, place_in_plane(name, self.voxel, len(self.ct)), small.shape[:2])

    def draw(self, _change: dict | None = None) -> None:
        """Draws the three planes and says what lies at the crosshair."""
        for name, image in self.images.items():
            image.value = encode_png(self.picture(name))
        self.say(self.voxel, "crosshair")

    def say(self, at: Sequence[int], where: str) -> None:
        """HU and SUV of a voxel under the pictures."""
        self.words.value = f"{where}: {describe_values(self.ct, self.pet, at)}" + (
            self.warning and f"<br>{self.warning}"
        )

    def figure(self) -> Figure:
        """What the viewer shows, as a figure that does not move."""
        pictures = {name: self.picture(name) for name in PLANES}
        return _figure(pictures, f"{describe_values(self.ct, self.pet, self.voxel)}\n{self.warning}".strip())

    def point(self, name: str, event: dict) -> None:
        """A mouse event on a plane: a click moves the crosshair, the wheel the slice; any other place is read out."""
        z = self.at["z"]
        if event["type"] == "wheel":
            z.value = np.clip(z.value + (-1 if event["deltaY"] > 0 else 1), z.min, z.max)
            return
        voxel = self._voxel_under(name, event)
        if event["type"] == "click":
            for slider, value in zip(self.at.values(), voxel, strict=True):
                slider.value = value
        else:
            self.say(voxel, "pointer")

    def _voxel_under(self, name: str, event: dict) -> tuple[int, int, int]:
        shape = take_plane(self.ct, name, self.voxel).shape
        pointer = (event["dataY"], event["dataX"])
        row, column = (
            int(np.clip(v * n // px, 0, n - 1)) for v, n, px in zip(pointer, shape, self.sizes_px[name], strict=True)
        )
        return voxel_at(name, row, column, self.voxel, len(self.ct))

    def _listen(self) -> None:
        for control in (*self.at.values(), self.shown, self.window, self.suv_max, self.alpha):
            control.observe(self.draw, "value")
        self.events = []  # kept: an event that nobody holds is collected
        for name, image in self.images.items():
            event = ipyevents.Event(
                source=image, watched_events=["click", "mousemove", "wheel"], wait=30, prevent_default_action=True
            )
            event.on_dom_event(lambda e, name=name: self.point(name, e))
            self.events.append(event)

    def _box(self) -> ipywidgets.VBox:
        titled = [ipywidgets.VBox([ipywidgets.HTML(name), image]) for name, image in self.images.items()]
        return ipywidgets.VBox([
            ipywidgets.HBox(titled), self.words, ipywidgets.HBox(list(self.at.values())),
            ipywidgets.HBox([self.shown, self.window]), ipywidgets.HBox([self.suv_max, self.alpha]),
        ])  # fmt: skip


class CompareViewer(_Viewer):
    """Two pictures of one slice under a wiping edge; `box` is the widget.

    images: (n, H, W) each by name, such as real, coarse, mean, error, spread; unit: "HU" or "SUV".
    `error` and `spread` are drawn in magma up to 400 HU or 2 SUV.
    """

    def __init__(self, images: dict[str, np.ndarray], unit: str) -> None:
        names = list(images)
        if len(names) < 2:
            raise ValueError(f"two images are needed to compare, got {names}")
        self.images, self.unit = images, unit
        n = len(images[names[0]])
        self.k = _slider("slice", n // 2, n - 1)
        self.edge = _slider("edge, %", 50, 100)
        self.left, self.right = (
            ipywidgets.Dropdown(options=names, value=name, description=side)
            for name, side in ((names[0], "left"), (names[-1], "right"))
        )
        self.image, self.words = _image(), ipywidgets.HTML()
        controls = (self.k, self.edge, self.left, self.right)
        for control in controls:
            control.observe(self.draw, "value")
        self.draw()
        self.box = ipywidgets.VBox(
            [ipywidgets.HBox(controls[2:]), self.image, self.words, ipywidgets.HBox(controls[:2])]
        )

    def picture(self) -> np.ndarray:
        """What is shown: left of the edge one image, right of it the other, (H, W, 3) uint8."""
        left, right = (self._draw_side(side.value) for side in (self.left, self.right))
        edge = round(self.edge.value / 100 * left.shape[1])
        both = np.concatenate([left[:, :edge], right[:, edge:]], axis=1)
        both[:, max(edge - 1, 0) : edge + 1] = CROSSHAIR
        return both

    def _draw_side(self, name: str) -> np.ndarray:
        return _wide(draw_image(self.images[name][self.k.value], name, self.unit))

    def draw(self, _change: dict | None = None) -> None:
        """Draws the picture, and says what is on which side."""
        self.image.value = encode_png(self.picture())
        self.words.value = f"left: {self.left.value}, right: {self.right.value}, slice {self.k.value}. {WARNING}"

    def figure(self) -> Figure:
        """All images of the slice side by side, as a figure that does not move."""
        pictures = {name: draw_image(image[self.k.value], name, self.unit) for name, image in self.images.items()}
        return _figure(pictures, f"slice {self.k.value}. {WARNING}")


def draw_image(image: np.ndarray, name: str, unit: str) -> np.ndarray:
    """(H, W) in "HU" or "SUV" as (H, W, 3) uint8, in the colours that a picture of this name has in all our figures."""
    if name in ERRORS:
        return apply_colours(image, *ERROR_WINDOW[unit], "magma")
    style = STYLE[unit]
    return apply_colours(image, style["vmin"], style["vmax"], style["cmap"])


def frames_viewer(images: dict[tuple, np.ndarray], names: Sequence[str], unit: str) -> ipywidgets.VBox:
    """A slider a name over synthetic images (H, W), by the values of all, such as (steps, sample).

    Raises ValueError where the images of some values are missing.
    """
    steps = [sorted({key[i] for key in images}) for i in range(len(names))]
    if len(images) != np.prod([len(values) for values in steps]):
        raise ValueError(f"{len(images)} images do not fill the sliders {dict(zip(names, steps, strict=True))}")
    sliders = [ipywidgets.SelectionSlider(options=v, description=name) for name, v in zip(names, steps, strict=True)]
    image, words = _image(), ipywidgets.HTML()

    def draw(_change: dict | None = None) -> None:
        values = tuple(slider.value for slider in sliders)
        image.value = encode_png(_wide(draw_image(images[values], "", unit)))
        shown = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
        words.value = f"{shown}. {WARNING}"

    for slider in sliders:
        slider.observe(draw, "value")
    draw()
    return ipywidgets.VBox([image, words, ipywidgets.HBox(sliders)])


def _wide(small: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) at SIDE_PX columns."""
    return magnify(small, (round(SIDE_PX * small.shape[0] / small.shape[1]), SIDE_PX))


def _image() -> ipywidgets.Image:
    """A picture of its own size: a box would stretch it over the notebook's width."""
    return ipywidgets.Image(format="png", layout={"align_self": "flex-start", "width": "auto"})


def _slider(name: str, value: int, high: int, low: int = 0) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value, low, high, description=name)


def _sizes(shape: tuple[int, int, int], spacing_mm: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Pixels (H, W) of each plane, so that a millimetre is as long in all of them."""
    depth, height, width = (n * mm for n, mm in zip(shape, spacing_mm, strict=True))
    per_mm = SIDE_PX / max(depth, height, width)
    sizes = {"axial": (height, width), "coronal": (depth, width), "sagittal": (depth, height)}
    return {name: (round(h * per_mm), round(w * per_mm)) for name, (h, w) in sizes.items()}


def _with_crosshair(large: np.ndarray, place: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Lines through the middle of the voxel at `place` of the (rows, columns) of `shape`."""
    row, column = ((2 * i + 1) * px // (2 * n) for i, px, n in zip(place, large.shape[:2], shape, strict=True))
    large[row], large[:, column] = CROSSHAIR, CROSSHAIR
    return large


def _figure(pictures: dict[str, np.ndarray], words: str) -> Figure:
    fig = Figure(figsize=(2.6 * len(pictures), 3.3), layout="constrained")
    for axis, (name, picture) in zip(fig.subplots(1, len(pictures)), pictures.items(), strict=True):
        axis.imshow(picture, interpolation="antialiased")
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    fig.supxlabel(words, fontsize=8)
    return fig
