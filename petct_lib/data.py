"""Patient splits, unpaired and paired datasets of prepared slices, and the controls that need no network."""

import hashlib
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from petct_lib import InputError
from petct_lib.intensity import DECODE, ENCODE, Intensity
from petct_lib.prepare import Prepared

ROLES = ("train_pet", "train_ct", "refine", "test")
SOURCE = {"pet2ct": "pet", "ct2pet": "ct"}
TARGET = {"pet2ct": "ct", "ct2pet": "pet"}


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
    """Batches of aligned source, coarse and target slices of the same patients; coarse: (n, 1, H, W), encoded."""

    def __init__(self, slices: Slices, coarse: np.ndarray, direction: str, size: int, shift: int = 0) -> None:
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
            "coarse": hashlib.sha256(self.coarse).hexdigest(),
        }  # fmt: skip


class _Joined(Dataset):
    def __init__(self, slices: Slices, coarse: np.ndarray) -> None:
        self.slices, self.coarse = slices, coarse

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {**self.slices[i], "coarse": torch.from_numpy(np.array(self.coarse[i]))}


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
