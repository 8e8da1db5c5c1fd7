"""A test patient with images, masks and translations."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import numpy as np

from petct_lib.data.prepare import Prepared
from petct_lib.imaging.directions import SOURCE, TARGET

DIAPHRAGM_MM = 30.0  # chosen: domes move by 10 to 20 mm in quiet breathing, and are not flat


@dataclass(frozen=True)
class Case:
    """One test patient, all slices, in one direction; arrays (n, H, W) in SUV and HU."""

    patient: str
    source: np.ndarray | None  # None: not known, as for the images of other translators
    real: np.ndarray
    masks: dict[str, np.ndarray]  # bool by region, for scoring only
    sources: dict[str, str]  # where each mask comes from: SEG or HU threshold
    images: dict[str, np.ndarray]  # translations by method
    samples: dict[str, np.ndarray] = field(default_factory=dict)  # (N, n, H, W), by the method that is their mean
    scales: dict[str, np.ndarray] = field(default_factory=dict)  # Laplace scale of the error, by method
    spread: np.ndarray | None = None  # standard deviation of the samples of `mean`
    ranks: np.ndarray | None = None  # histogram of the real image's rank among half of them, (N / 2 + 1,)
    drawn: np.ndarray | None = None  # the middle slice of each of them, (N, H, W)
    lengths: tuple[int, ...] | None = None  # slices of each study, one after the other; None: one study
    voxel_mm: tuple[float, float, float] | None = None  # z, y, x; None: no lesions are counted
    kvp: float | None = None  # the real CT's tube voltage; None: not known, and no attenuation is scored

    @property
    def body(self) -> np.ndarray:
        """The body mask."""
        return self.masks["body"]


# what a part of a case goes without
PART = {"source": None, "samples": {}, "scales": {}, "spread": None, "ranks": None, "drawn": None, "lengths": None}


def load_case(prepared: Prepared, patient: str, direction: str) -> Case:
    """A test patient with real images and masks, before anything is translated.

    Masks: those of the prepared slices, and those of `add_regions`. kvp is None where the patient's studies differ in
    it.
    """
    source, real = (np.array(prepared.patient_stack(patient, kind)) for kind in (SOURCE[direction], TARGET[direction]))
    sources = prepared.regions(patient)
    masks = {region: np.array(prepared.patient_stack(patient, region)) for region in sources}
    grid = prepared.index["grid"]
    voxel_mm = grid["slice_mm"], grid["pixel_mm"], grid["pixel_mm"]
    lengths = tuple(prepared.lengths(patient))
    kvps = {prepared.row(study)["ct"].get("kvp") for study in prepared.studies([patient])}
    kvp = kvps.pop() if len(kvps) == 1 else None
    case = Case(patient, source, real, masks, sources, {}, lengths=lengths, voxel_mm=voxel_mm, kvp=kvp)
    return add_regions(case)


def add_regions(case: Case) -> Case:
    """The same with two regions more, to see what scores hide.

    "diaphragm": the body from DIAPHRAGM_MM below the height where the lungs end below to as much above, where breathing
    moves PET against CT (not where there is no lung, or the images end first); "image": everything, air and couch too,
    that swell a score.
    """
    masks = {**case.masks, "image": np.ones(case.real.shape, bool)}
    sources = {**case.sources, "image": "none"}
    if "lung" in case.masks and case.masks["lung"].any() and case.voxel_mm:
        near = _around_lung_bases(case)
        if near.any():
            masks["diaphragm"], sources["diaphragm"] = case.body & near[:, None, None], case.sources["lung"]
    return replace(case, masks=masks, sources=sources)


def _around_lung_bases(case: Case) -> np.ndarray:
    """Whether a slice is near the lungs' base of its study, (n,).

    The base: the median over the lungs' columns of the lowest slice with lung; the very lowest is behind.
    """
    near, reach = np.zeros(len(case.real), bool), round(DIAPHRAGM_MM / case.voxel_mm[0])
    for part in study_parts(case):
        lung = case.masks["lung"][part]
        base = int(np.median(lung.argmax(axis=0)[lung.any(axis=0)])) if lung.any() else 0
        if base > 0:
            near[part][max(0, base - reach) : base + reach + 1] = True
    return near


def split_studies(case: Case, image: np.ndarray) -> Iterator[tuple[Case, np.ndarray]]:
    """The patient's studies, each as a case of its own, and their parts of the image."""
    for part in study_parts(case):
        masks = {name: mask[part] for name, mask in case.masks.items()}
        yield replace(case, real=case.real[part], masks=masks, images={}, **PART), image[part]


def study_parts(case: Case) -> list[slice]:
    """Which slices of the stack each study has."""
    ends = accumulate(case.lengths or (len(case.real),), initial=0)
    return [slice(first, end) for first, end in pairwise(ends)]


def take_center_slice(case: Case) -> dict[str, np.ndarray]:
    """The middle slice of a patient, whatever it shows, for `panels.translations`: its images by name, (H, W) each."""
    return take_slice(case, len(case.real) // 2)


def take_slice(case: Case, k: int) -> dict[str, np.ndarray]:
    """Slice k of a case, for `panels.translations`: source, coarse, regression, sample, mean, spread, real."""
    names = {"coarse": "cyclegan", "regression": "regression", "sample": "sample", "mean": "mean"}
    images = {name: case.images[method] for name, method in names.items() if method in case.images}
    images |= {"spread": case.spread} if case.spread is not None else {}
    images = {"source": case.source, **images, "real": case.real}
    return {name: image[k] for name, image in images.items()}
