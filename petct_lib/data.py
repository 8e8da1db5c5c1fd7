"""Prepared slices on disk (written once, memory-mapped), patient splits, unpaired and paired datasets."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from petct_lib import InputError
from petct_lib.dicom import Pair, Study, find_pairs, geometry, load_pair, reasons
from petct_lib.dicom_files import LeftOut, list_files
from petct_lib.files import read_json, replacing, write_json
from petct_lib.intensity import DECODE, ENCODE, Intensity
from petct_lib.volume import AIR_HU, Volume, axial_grid, body_mask, inside, overlap_mm, resample

FILL = {"ct": AIR_HU, "pet": 0.0}  # outside a volume's extent
MIN_BODY_SHARE = 0.02  # slices with less body than this are left out: there is nothing to learn or to score
MAX_FOV_MM = 500.0
ROLES = ("train_pet", "train_ct", "refine", "test")
SOURCE = {"pet2ct": "pet", "ct2pet": "ct"}
TARGET = {"pet2ct": "ct", "ct2pet": "pet"}


@dataclass(frozen=True)
class SliceSettings:
    """The grid that every study is resampled to."""

    size: int = 256  # pixels along x and y
    fov_mm: float | None = None  # None: the largest PET/CT overlap among the studies, at most 500 mm
    slice_mm: float = 3.0  # distance of slices

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 16:
            raise InputError(
                f"size {self.size}: the networks halve it up to four times; take a multiple of 16, 32 or more"
            )
        if self.slice_mm <= 0 or (self.fov_mm is not None and self.fov_mm <= 0):
            raise InputError(f"slice_mm {self.slice_mm} and fov_mm {self.fov_mm} must be above 0")


class Prepared:
    """Prepared studies in a folder: aligned PET (SUV), CT (HU) and body mask as memory-mapped (n, H, W) arrays."""

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
        """kind: "pet" (SUV), "ct" (HU) or "body" (bool, for scoring only); (n, H, W), read-only, memory-mapped."""
        return np.load(self.folder / study / f"{kind}.npy", mmap_mode="r")

    def of_patient(self, patient: str, kind: str) -> np.ndarray:
        """All slices of a patient, the studies one after the other, (n, H, W)."""
        return np.concatenate([self.array(study, kind) for study in self.studies([patient])])

    def row(self, study: str) -> dict:
        """What the index says of a study."""
        return next(s for s in self.index["studies"] if s["id"] == study)


def prepare(
    path: Path, folder: Path, settings: SliceSettings, *, found: tuple | None = None, progress: Callable = iter
) -> Prepared:
    """DICOM in `path` → prepared slices in `folder`; where they are there already, they are only opened.

    found: what `find_pairs(path)` gave, where it was called already. Studies that cannot be read are left out with a
    reason. Raises InputError where the folder holds slices of other data or settings, or where nothing can be used.
    """
    key = hashlib.sha256(json.dumps([input_key(path), asdict(settings)]).encode()).hexdigest()
    if (folder / "index.json").exists():
        prepared = Prepared(folder)
        if prepared.index["input_key"] != key:
            raise InputError(f"{folder}: holds slices of other data or settings; use another run folder or remove it")
        return prepared
    pairs, left_out = found or find_pairs(path, progress)
    left_out = list(left_out)
    fov_mm = settings.fov_mm or _largest_overlap_mm(pairs)
    rows, digest = [], hashlib.sha256()
    with replacing(folder) as temporary:
        for pair in progress(pairs):
            try:
                rows.append(_prepare_study(load_pair(pair), temporary, settings, fov_mm, digest))
            except InputError as error:
                left_out.append(LeftOut(pair.id, str(error)))
        if not rows:
            raise InputError(f"{path}: no usable PET/CT pair; {reasons(left_out)}")
        index = {
            "input_key": key, "fingerprint": digest.hexdigest(),
            "grid": {**asdict(settings), "fov_mm": fov_mm, "pixel_mm": fov_mm / settings.size},
            "studies": rows, "left_out": [item.stored() for item in left_out],
        }  # fmt: skip
        write_json(index, temporary / "index.json")
    return Prepared(folder)


def input_key(path: Path) -> str:
    """Changes when a file of the input is added, removed or rewritten. Reads no file's content."""
    files = {(ref.path, ref.path.stat().st_size, ref.path.stat().st_mtime_ns) for ref in list_files(path)}
    listing = sorted((str(p.relative_to(path) if p != path else p.name), size, time) for p, size, time in files)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _largest_overlap_mm(pairs: list[Pair]) -> float:
    """Largest in-plane side of the PET/CT overlaps, from the headers alone; pairs that cannot be read are skipped."""
    sides = []
    for pair in pairs:
        try:
            low, high = overlap_mm([_extent(series.headers) for series in (pair.pet, pair.ct)])
            sides.append(float((high - low)[:2].max()))
        except (InputError, ValueError):
            continue
    return round(min(max(sides, default=MAX_FOV_MM), MAX_FOV_MM), 2)


def _extent(headers: list) -> Volume:
    order, affine = geometry(headers)
    shape = (len(order), int(headers[0].Rows), int(headers[0].Columns))
    return Volume(np.broadcast_to(np.float32(0), shape), affine, "1")


def align(study: Study, settings: SliceSettings, fov_mm: float) -> tuple[Volume, Volume, Volume]:
    """PET, CT and body mask of a study on one axial grid over their overlap."""
    grid = axial_grid(*overlap_mm([study.pet, study.ct]), settings.size, fov_mm, settings.slice_mm)
    padded = Volume(np.maximum(study.ct.array, AIR_HU), study.ct.affine, "HU")  # scanners pad with −2000 or −3024
    pet, ct = resample(study.pet, grid, FILL["pet"]), resample(padded, grid, FILL["ct"])
    body = resample(body_mask(padded), grid, 0.0)
    seen = inside(study.pet, grid) & inside(study.ct, grid)
    return pet, ct, Volume(body.array & seen, grid.affine, "1")


def _prepare_study(study: Study, folder: Path, settings: SliceSettings, fov_mm: float, digest: object) -> dict:
    pet, ct, body = align(study, settings, fov_mm)
    keep = np.flatnonzero(body.array.mean(axis=(1, 2)) > MIN_BODY_SHARE)
    if len(keep) == 0:
        raise InputError("no slice shows a body in the CT")
    first, last = int(keep[0]), int(keep[-1]) + 1  # a contiguous block, so that it stays a volume
    (folder / study.id).mkdir(parents=True)
    for kind, volume in (("pet", pet), ("ct", ct), ("body", body)):
        array = np.ascontiguousarray(volume.array[first:last])
        digest.update(array.tobytes())
        np.save(folder / study.id / f"{kind}.npy", array)
    affine = pet.affine.copy()
    affine[:3, 3] = (affine @ [0, 0, first, 1])[:3]
    return {
        **study.row(), "slices": last - first, "affine": affine.tolist(),
        "frame_of_reference_uid": study.frame_of_reference_uid,
    }  # fmt: skip


def split_patients(patients: list[str], seed: int) -> dict[str, list[str]]:
    """Patients → the four roles, by patient: a quarter to test, an eighth to refine, the rest half PET and half CT.

    Each role gets at least one patient; raises InputError for fewer than 4. The order given and the seed decide alone.
    """
    n = len(patients)
    if n < len(ROLES):
        raise InputError(f"{n} usable patients: the split into {', '.join(ROLES)} needs at least {len(ROLES)}")
    shuffled = [patients[i] for i in np.random.default_rng(seed).permutation(n)]
    test, refine = max(1, round(n / 4)), max(1, round(n / 8))
    pet = (n - test - refine + 1) // 2
    bounds = np.cumsum([pet, n - test - refine - pet, refine, test])
    parts = np.split(np.array(shuffled, dtype=object), bounds[:-1])
    return {role: part.tolist() for role, part in zip(ROLES, parts, strict=True)}


def refiner_patients(splits: dict[str, list[str]], direction: str) -> list[str]:
    """Who trains the refiner of a direction: `refine`, and those whose source images the CycleGAN never saw.

    PET→CT: the patients of `train_ct`, whose PET no generator was fitted on, and the other way round. So the coarse
    images that the refiner learns to mend are out-of-fold, as they are for a new patient; the CycleGAN did see the
    targets of these patients, unpaired.
    """
    return splits["refine"] + splits["train_" + TARGET[direction]]


class Slices(Dataset):
    """Encoded slices of some patients: item i is {kind: (1, H, W) float32 in [−1, 1]} for each kind asked for."""

    def __init__(self, prepared: Prepared, patients: list[str], kinds: tuple[str, ...], window: Intensity) -> None:
        self.kinds, self.window = kinds, window
        self.studies = prepared.studies(patients)
        self.arrays = {(s, kind): prepared.array(s, kind) for s in self.studies for kind in kinds}
        self.places = [(s, i) for s in self.studies for i in range(prepared.row(s)["slices"])]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        study, k = self.places[i]
        return {
            kind: torch.from_numpy(ENCODE[kind](np.array(self.arrays[study, kind][k]), self.window))[None].float()
            for kind in self.kinds
        }


class UnpairedBatches:
    """Batches of PET slices of some patients and CT slices of others."""

    def __init__(self, pet: Slices, ct: Slices, size: int, shift: int = 0) -> None:
        if set(pet.studies) & set(ct.studies):
            raise ValueError("unpaired training needs different patients for PET and for CT")
        self.pet, self.ct, self.size, self.shift = pet, ct, size, shift

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """{"pet", "ct"}: (B, 1, H, W), independent slices, shifted at random by up to `shift` pixels."""
        return {kind: _draw(getattr(self, kind), self.size, self.shift, rng)[kind] for kind in ("pet", "ct")}

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `train.Batches`."""
        studies = {"pet": self.pet.studies, "ct": self.ct.studies}
        return {**studies, "size": self.size, "shift": self.shift, "window": asdict(self.pet.window)}


class PairedBatches:
    """Batches of aligned source, coarse and target slices of the same patients."""

    def __init__(self, slices: Slices, coarse: Tensor, direction: str, size: int, shift: int = 0) -> None:
        if len(coarse) != len(slices):
            raise ValueError(f"{len(coarse)} coarse images for {len(slices)} slices")
        self.slices, self.coarse, self.direction, self.size, self.shift = slices, coarse, direction, size, shift

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """{"source", "coarse", "target"}: (B, 1, H, W), all three shifted alike."""
        batch = _draw(_Joined(self.slices, self.coarse), self.size, self.shift, rng)
        source, target = batch[SOURCE[self.direction]], batch[TARGET[self.direction]]
        return {"source": source, "coarse": batch["coarse"], "target": target}

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `train.Batches`."""
        return {
            "studies": self.slices.studies, "size": self.size, "shift": self.shift, "direction": self.direction,
            "window": asdict(self.slices.window),
            "coarse": hashlib.sha256(self.coarse.numpy().tobytes()).hexdigest(),
        }  # fmt: skip


class _Joined(Dataset):
    def __init__(self, slices: Slices, coarse: Tensor) -> None:
        self.slices, self.coarse = slices, coarse

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {**self.slices[i], "coarse": self.coarse[i]}


def _draw(dataset: Dataset, size: int, shift: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """`size` random items as a batch, each moved by its own random (dy, dx), the same for all its images."""
    items = []
    for i in rng.integers(len(dataset), size=size):
        dy, dx = rng.integers(-shift, shift + 1, size=2).tolist()
        items.append({key: _moved(image, dy, dx) for key, image in dataset[int(i)].items()})
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def _moved(image: Tensor, dy: int, dx: int) -> Tensor:
    """(1, H, W) moved down by dy and right by dx pixels; −1 (air, no uptake) comes in at the edge."""
    if dy == 0 and dx == 0:
        return image
    out = torch.full_like(image, -1.0)
    height, width = image.shape[-2:]
    out[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        :, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


def spread_slices(prepared: Prepared, patient: str, kinds: tuple[str, ...], count: int) -> list[np.ndarray]:
    """`count` slices of a patient's first study, evenly spread from the feet upwards, (count, H, W) for each kind."""
    study = prepared.studies([patient])[0]
    k = np.linspace(0, prepared.row(study)["slices"] - 1, count + 2).round().astype(int)[1:-1]
    return [np.array(prepared.array(study, kind)[k]) for kind in kinds]


def mean_atlas(prepared: Prepared, patients: list[str], kind: str) -> np.ndarray:
    """Mean of all slices of some patients, (H, W), in HU or SUV: the `atlas` control."""
    total, count = 0.0, 0
    for study in prepared.studies(patients):
        array = prepared.array(study, kind)
        total, count = total + array.sum(axis=0, dtype=np.float64), count + len(array)
    return (total / count).astype(np.float32)


def copied(source: np.ndarray, direction: str, window: Intensity) -> np.ndarray:
    """The source given as the translation, through the network's range: the `copy` control, in the target's unit."""
    return DECODE[TARGET[direction]](ENCODE[SOURCE[direction]](source, window), window)
