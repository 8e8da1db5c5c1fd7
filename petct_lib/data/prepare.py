"""Studies → aligned slices on one grid, written once and memory-mapped, with the masks that the scores use."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from petct_lib import InputError
from petct_lib.common.files import atomic_write, read_json, write_json
from petct_lib.common.parallel import parallel_map
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.geometry import extent
from petct_lib.dicom.headers import LeftOut, Series
from petct_lib.dicom.rtstruct import FROM_RTSTRUCT, read_structures
from petct_lib.dicom.seg import read_segments
from petct_lib.dicom.studies import Pair, Pairing, Study, count_reasons, find_pairs, load_pair
from petct_lib.imaging.masks import FROM_SEG, Region, find_regions
from petct_lib.imaging.volume import AIR_HU, Volume, axial_grid, body_mask, extent_mask, overlap_mm, resample

FILL = {"ct": AIR_HU, "pet": 0.0}  # outside a volume's extent
MIN_BODY_SHARE = 0.02  # slices with less body than this are left out: there is nothing to learn or to score
MAX_FOV_MM = 500.0
SALT_FILE = "salt.txt"
FORMAT = 2  # of the folder: to be raised when its content changes, so that an older one is not taken for a new one


@dataclass(frozen=True)
class SliceSettings:
    """The grid that every study is resampled to, and the kind of SUV. InputError for a grid that no network takes."""

    size: int = 256  # pixels along x and y
    fov_mm: float | None = None  # None: the largest PET/CT overlap among the studies, at most 500 mm
    slice_mm: float = 3.0  # distance of slices
    suv_kind: str = "bw"  # a name of suv.KINDS; body weight is what the literature reports

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 16:
            raise InputError(
                f"size {self.size}: the networks halve it up to four times; take a multiple of 16, 32 or more"
            )
        if self.slice_mm <= 0 or (self.fov_mm is not None and self.fov_mm <= 0):
            raise InputError(f"slice_mm {self.slice_mm} and fov_mm {self.fov_mm} must be above 0")


class Prepared:
    """Prepared studies in a folder: aligned PET (SUV), CT (HU) and masks as memory-mapped (n, H, W) arrays.

    InputError for a folder that holds none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "index.json").exists():
            raise InputError(f"{self.folder}: no prepared slices; run 01_data_exploration first")
        self.index = read_json(self.folder / "index.json")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all arrays: the same data and settings give the same one."""
        return self.index["fingerprint"]

    @cached_property
    def patients(self) -> list[str]:
        """Pseudonyms in the order of the input (the order does not depend on the pseudonyms)."""
        return list(dict.fromkeys(study["patient"] for study in self.index["studies"]))

    def studies(self, patients: list[str] | None = None) -> list[str]:
        """Ids of the studies of some patients, or of all."""
        return [s["id"] for s in self.index["studies"] if patients is None or s["patient"] in patients]

    def array(self, study: str, kind: str) -> np.ndarray:
        """kind: "pet" (SUV), "ct" (HU), or a region (bool, for scoring only); (n, H, W), read-only, memory-mapped."""
        return np.load(self.folder / study / f"{kind}.npy", mmap_mode="r")

    def patient_stack(self, patient: str, kind: str) -> np.ndarray:
        """All slices of a patient, the studies one after the other, (n, H, W)."""
        return np.concatenate([self.array(study, kind) for study in self.studies([patient])])

    def lengths(self, patient: str) -> list[int]:
        """How many slices each study of a patient has, in the order of `patient_stack`."""
        return [self.row(study)["slices"] for study in self.studies([patient])]

    def regions(self, patient: str) -> dict[str, str]:
        """The regions that all studies of a patient have masks of, and where the masks come from."""
        sources = [self.row(study)["regions"] for study in self.studies([patient])]
        shared = [name for name in sources[0] if all(name in one for one in sources)]
        return {name: " and ".join(sorted({one[name] for one in sources})) for name in shared}

    def row(self, study: str) -> dict:
        """What the index says of a study."""
        return next(s for s in self.index["studies"] if s["id"] == study)


def prepare(
    path: Path,
    folder: Path,
    settings: SliceSettings,
    *,
    pairing: Pairing | None = None,
    jobs: int | None = None,
    progress: Callable = iter,
) -> Prepared:
    """DICOM in `path` → prepared slices in `folder`; where they are there already, they are only opened.

    found: what `find_pairs(path)` gave, where it was called already. jobs: processes, each with one study in memory;
    None: one a core. Studies that cannot be read are left out with a reason. The pseudonyms' salt is kept in `folder`.
    Raises InputError where the folder holds slices of other data or settings, or where nothing can be used.
    """
    key = hashlib.sha256(json.dumps([FORMAT, input_key(path), asdict(settings)]).encode()).hexdigest()
    if (folder / "index.json").exists():
        prepared = Prepared(folder)
        if prepared.index["input_key"] != key:
            raise InputError(f"{folder}: holds slices of other data or settings; use another run folder or remove it")
        return prepared
    pairing = pairing or find_pairs(path, progress, suv_kind=settings.suv_kind)
    fov_mm = settings.fov_mm or _largest_overlap_mm(pairing.pairs)
    with atomic_write(folder.resolve()) as temporary:
        temporary.mkdir()
        work = partial(_prepare_study, folder=temporary, settings=settings, fov_mm=fov_mm)
        results = parallel_map(work, pairing.pairs, jobs=jobs, progress=progress)
        failed = [
            LeftOut(p.id, str(r)) for p, r in zip(pairing.pairs, results, strict=True) if isinstance(r, InputError)
        ]
        done = [result for result in results if not isinstance(result, InputError)]
        left_out = [*pairing.left_out, *failed, *(item for one in done for item in one.left_out)]
        if not done:
            raise InputError(f"{path}: no usable PET/CT pair; {count_reasons(left_out)}")
        index = {
            "input_key": key, "fingerprint": hashlib.sha256("".join(one.digest for one in done).encode()).hexdigest(),
            "grid": {**asdict(settings), "fov_mm": fov_mm, "pixel_mm": fov_mm / settings.size},
            "studies": [one.row for one in done], "left_out": [item.stored() for item in left_out],
        }  # fmt: skip
        (temporary / SALT_FILE).write_text(pairing.salt + "\n")
        write_json(index, temporary / "index.json")
    return Prepared(folder)


def input_key(path: Path) -> str:
    """Changes when a file of the input is added, removed or rewritten. Reads no file's content."""
    paths = {ref.path for ref in list_files(path)}
    stats = {p: p.stat() for p in paths}
    listing = sorted(
        (str(p.relative_to(path) if p != path else p.name), s.st_size, s.st_mtime_ns) for p, s in stats.items()
    )
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _largest_overlap_mm(pairs: list[Pair]) -> float:
    """Largest in-plane side of the PET/CT overlaps, from the headers alone; pairs that cannot be read are skipped."""
    sides = []
    for pair in pairs:
        try:
            low, high = overlap_mm([extent(series.headers) for series in (pair.pet, pair.ct)])
            sides.append(float((high - low)[:2].max()))
        except (InputError, ValueError):
            continue
    return round(min(max(sides, default=MAX_FOV_MM), MAX_FOV_MM), 2)


def align(
    study: Study, segments: dict[str, list[Region]], settings: SliceSettings, fov_mm: float
) -> tuple[dict[str, Volume], dict[str, str]]:
    """PET, CT and the masks of a study by name, on one axial grid over their overlap; and where each mask comes from.

    segments: masks from DICOM SEG and RTSTRUCT by region, see `regions`. A mask is True only where both PET and CT were
    measured. ValueError where PET and CT do not overlap.
    """
    grid = axial_grid(*overlap_mm([study.pet, study.ct]), settings.size, fov_mm, settings.slice_mm)
    seen = extent_mask(study.pet, grid) & extent_mask(study.ct, grid)
    volumes = {"pet": resample(study.pet, grid, FILL["pet"]), "ct": resample(study.ct, grid, FILL["ct"])}
    regions = find_regions(study.ct, body_mask(study.ct), segments)
    for name, region in regions.items():
        volumes[name] = Volume(resample(region.mask, grid, 0.0).array & seen, grid.affine, "1")
    return volumes, {name: region.source for name, region in regions.items()}


@dataclass(frozen=True)
class _Done:
    """A study that was written: its row of the index, the SHA-256 of its arrays, and what of it was left out."""

    row: dict
    digest: str
    left_out: list[LeftOut]


def _prepare_study(pair: Pair, folder: Path, settings: SliceSettings, fov_mm: float) -> _Done:
    study = load_pair(pair)
    segments, left_out = _segments(pair, float(study.ct.spacing_mm[2]))
    volumes, sources = align(study, segments, settings, fov_mm)
    keep = np.flatnonzero(volumes["body"].array.mean(axis=(1, 2)) > MIN_BODY_SHARE)
    if len(keep) == 0:
        raise InputError("no slice shows a body in the CT")
    first, last = int(keep[0]), int(keep[-1]) + 1  # a contiguous block, so that it stays a volume
    digest = _write(volumes, folder / study.id, first, last)
    affine = volumes["ct"].affine.copy()
    affine[:3, 3] = (affine @ [0, 0, first, 1])[:3]
    row = {
        **study.row(), "slices": last - first, "affine": affine.tolist(), "regions": sources,
        "frame_of_reference_uid": study.frame_of_reference_uid,
    }  # fmt: skip
    return _Done(row, digest, left_out)


def _write(volumes: dict[str, Volume], folder: Path, first: int, last: int) -> str:
    folder.mkdir(parents=True)
    digest = hashlib.sha256()
    for kind, volume in volumes.items():
        array = np.ascontiguousarray(volume.array[first:last])
        digest.update(array)
        np.save(folder / f"{kind}.npy", array)
    return digest.hexdigest()


def _segments(pair: Pair, slice_mm: float) -> tuple[dict[str, list[Region]], list[LeftOut]]:
    """Region masks from the pair's SEG and RTSTRUCT series; one that cannot be read is left out, and the study goes on.

    slice_mm: the CT's distance of slices, for structures with one contour alone.
    """
    segments, left_out = {}, []
    for series in pair.segments:
        try:
            for name, masks in _drawn_regions(series, str(pair.pet.get("FrameOfReferenceUID")), slice_mm):
                segments.setdefault(name, []).extend(masks)
        except InputError as error:
            left_out.append(LeftOut(f"{pair.id}: {series.label}", str(error)))
    return segments, left_out


def _drawn_regions(series: Series, frame_of_reference_uid: str, slice_mm: float) -> Iterator[tuple[str, list[Region]]]:
    """Name and masks of the lungs and lesions in one SEG or RTSTRUCT series."""
    if series.modality == "SEG":
        for name, masks in read_segments([image.file for image in series.images]).items():
            yield name, [Region(mask, FROM_SEG) for mask in masks]
        return
    for image in series.images:
        for name, masks in read_structures(image.file, frame_of_reference_uid, slice_mm).items():
            yield name, [Region(mask, FROM_RTSTRUCT) for mask in masks]
