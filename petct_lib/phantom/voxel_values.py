"""The phantom's labels on a CT grid, and what they mean before imaging: HU and SUV of every voxel."""

from collections.abc import Callable

import numpy as np

from petct_lib.phantom import anatomy, benign_uptake, lesions, vessels
from petct_lib.phantom.person import Person
from petct_lib.phantom.shapes import X_MM, Y_MM, Z_MM, Canvas, draw_by_slabs, fine_noise, noise
from petct_lib.phantom.tissues import LABEL, LOBES, LUNG, TISSUES, label_table

LUNG_GRAIN_HU = 24.0  # 1σ of vessels and septa that are too small to be drawn
BONY = label_table("cortex", "endplate", "marrow", "disc", "cord", "cartilage")


def draw_values(
    rng: np.random.Generator, person: Person, plan: list[lesions.Lesion], hot: list[benign_uptake.Uptake]
) -> tuple[np.ndarray, np.ndarray]:
    """HU and SUV by label, each (256,) float32, of this study."""
    hu, suv = person.hu.copy(), np.zeros(256, np.float32)
    for name, tissue in TISSUES.items():
        suv[LABEL[name]] = round(tissue.suv * np.exp(tissue.suv_spread * np.clip(rng.normal(), -2, 2)), 3)
    suv[[LABEL[name] for name in LUNG]] = round(rng.uniform(0.3, 0.54), 3)
    fasting = rng.random() < 0.45  # then the heart burns fat; SUVmax 1 to 22 in patients (10.4103/0972-3919.110678)
    suv[LABEL["myocardium"]] = round(np.exp(rng.uniform(*np.log((1.5, 2.6) if fasting else (2.6, 9.0)))), 3)
    for uptake in hot:
        suv[LABEL[uptake.what]] = uptake.suv
    for lesion in plan:
        hu[lesion.label], suv[lesion.label] = lesion.hu, lesion.suv
        if lesion.core:
            hu[lesion.label + 1], suv[lesion.label + 1] = lesion.core["hu"], lesion.core["suv"]
    return hu, suv


def paint_values(
    rng: np.random.Generator, person: Person, canvas: Canvas, values: tuple, plan: list, hot: list, couch: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints the labels; returns HU and SUV before imaging (z, y, x) float32, and what moves with breathing, bool."""
    hu, suv = np.empty(canvas.labels.shape, np.float32), np.empty(canvas.labels.shape, np.float32)
    moving = np.zeros(canvas.labels.shape, bool)
    smooth, grain = noise(rng, 10.0), fine_noise(rng, canvas)
    couch_y = _couch_top(person) if couch else None

    def slab(part: slice) -> None:
        c = canvas.part(part)
        anatomy.paint_anatomy(person.anatomy, c)
        for uptake in hot:
            benign_uptake.paint_benign_uptake(uptake, c)
        for lesion in plan:
            lesions.paint_lesions(lesion, c)
        if couch:
            _draw_couch(c, couch_y)
        hu[part], suv[part] = _fill(person, c, values, smooth, grain(part))
        moving[part] = (c.fine(person.anatomy.fields["wall"], inner=False) < 0) & ~BONY[c.labels]

    draw_by_slabs(slab, len(canvas.labels))
    return hu, suv, moving


def _fill(
    person: Person, c: Canvas, values: tuple, smooth: np.ndarray, grain: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """HU and SUV of the labels: texture by tissue; in the lung the patient's densities and the vessels' share."""
    hu, suv = (table[c.labels] for table in values)
    body = c.around(person.anatomy.fields["body"], inner=False)
    if body is None:
        return hu, suv
    spread = np.zeros(256, np.float32)
    spread[: len(TISSUES)] = [t.hu_texture for t in TISSUES.values()]
    labels, fine = c.labels[body], grain(body)
    hu[body] += spread[labels] * (0.6 * c.fine(smooth, body) + 0.8 * fine)
    lung = label_table(*LOBES)[labels]
    mean, (blood_hu, blood_suv) = values[0][LABEL[LOBES[0]]], (table[LABEL["blood"]] for table in values)
    share = vessels.blood_share(person.anatomy.vessels, c)[body][lung] * np.float32(1 / 255)
    air = np.clip(mean + c.fine(person.lung_hu, body)[lung] + LUNG_GRAIN_HU * fine[lung], -985, -250)
    tissue = suv[body][lung] * (air + 1000) / (mean + 1000)  # what is not air takes up FDG
    hu[body][lung] = air + share * (blood_hu - air)
    suv[body][lung] = tissue + share * (blood_suv - tissue)
    return hu, suv


def _couch_top(person: Person) -> float:
    """Nominal y of the couch: as low as the trunk's back reaches."""
    trunk = person.anatomy.fields["body"][np.abs(Z_MM) < 120][:, :, np.abs(X_MM) < 120]
    return float(Y_MM[(trunk < 0).any(axis=(0, 2))].max()) + 6


def _draw_couch(c: Canvas, top: float) -> None:
    """A curved shell with foam inside, the same for every patient."""
    rows = c.axes[1] > top - 60
    x, y = c.axes[0] / c.scale[0], (c.axes[1][rows, None] - top) / c.scale[1]  # patient mm
    upper = 1 - x**2 / 900
    lower = upper + 38 * (1 - (x / 210) ** 2)
    where = (slice(None), slice(int(np.argmax(rows)), None), slice(None))
    for name, margin in (("couch shell", 1.6), ("couch foam", 0.0)):
        mask = (y > upper - margin) & (y < lower + margin) & (np.abs(x) < 215)
        c.paint(where, np.broadcast_to(mask, c.labels[where].shape), LABEL[name], label_table("air", "couch shell"))
