"""Patient splits, unpaired and paired datasets of prepared slices, and the controls that need no network."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from petct_lib import InputError
from petct_lib.augment import Augmentation, Change, crop, draw, move
from petct_lib.files import read_json
from petct_lib.intensity import DECODE, ENCODE, Intensity
from petct_lib.nets import middle
from petct_lib.prepare import Prepared

ROLES = ("train_pet", "train_ct", "refine", "test")
SOURCE = {"pet2ct": "pet", "ct2pet": "ct"}
TARGET = {"pet2ct": "ct", "ct2pet": "pet"}


def split_patients(patients: list[str], seed: int) -> dict[str, list[str]]:
    """Patients → the four roles, by patient: a quarter to test, an eighth to refine, the rest half PET and half CT.

    Each role gets at least one patient; raises InputError for fewer than 4. The order given and the seed decide alone.

    >>> split = split_patients([f"p-{k}" for k in range(16)], seed=0)
    >>> {role: len(patients) for role, patients in split.items()}
    {'train_pet': 5, 'train_ct': 5, 'refine': 2, 'test': 4}
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


def read_splits(run_dir: Path) -> dict[str, list[str]]:
    """The patients of a run by role, from its `splits.json`. InputError as for `check_splits`."""
    path = Path(run_dir) / "splits.json"
    splits = read_json(path)
    try:
        check_splits(splits, Prepared(Path(run_dir) / "prepared").patients)
    except InputError as error:
        raise InputError(f"{path}: {error}; run notebook 01 again") from None
    return splits


def check_splits(splits: dict[str, list[str]], patients: Collection[str]) -> None:
    """InputError where roles are missing, or where it is not a split by patient of these patients.

    Slices or studies as members, that is also a follow-up apart from its patient's first scan, are no patients; a
    patient in two roles would be tested with what was learned from him.
    """
    if set(splits) != set(ROLES):
        raise InputError(f"the split has the roles {', '.join(splits)}, not {', '.join(ROLES)}")
    members = [member for role in ROLES for member in splits[role]]
    if strangers := sorted(set(members) - set(patients)):
        raise InputError(
            f"{len(strangers)} members of the split are no patients of the run ({strangers[0]}); a split is by "
            "patient, never by slice or study"
        )
    if doubled := sorted({member for member in members if members.count(member) > 1}):
        roles = [role for role in ROLES if doubled[0] in splits[role]]
        raise InputError(f"{len(doubled)} patients are in the split more than once ({doubled[0]}: {', '.join(roles)})")


def refiner_patients(splits: dict[str, list[str]], direction: str) -> list[str]:
    """Who trains the refiner of a direction: `refine`, and those whose source images the CycleGAN never saw.

    PET→CT: the patients of `train_ct`, whose PET no generator was fitted on, and the other way round. So the coarse
    images that the refiner learns to mend are out-of-fold, as they are for a new patient; the CycleGAN did see the
    targets of these patients, unpaired.
    """
    return splits["refine"] + splits["train_" + TARGET[direction]]


class Slices(Dataset):
    """Encoded slices of some patients: item i is {kind: (neighbours, H, W) float32 in [−1, 1]} for each kind asked for.

    neighbours: 1, or 3 or 5 slices of the same study around slice i, which is the middle one; beyond a study's end its
    last slice is repeated. device: where all slices are held as they were measured, so that batches are cut there;
    None: they stay on the disk, memory-mapped. InputError for another number of neighbours.
    """

    def __init__(
        self, prepared: Prepared, patients: list[str], kinds: tuple[str, ...], window: Intensity, neighbours: int = 1,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        if neighbours not in (1, 3, 5):
            raise InputError(f"neighbours {neighbours}: slices come alone, or as 3 or 5 neighbours")
        self.kinds, self.window, self.neighbours, self.device = kinds, window, neighbours, device
        self.studies = prepared.studies(patients)
        self.arrays = {(s, kind): prepared.array(s, kind) for s in self.studies for kind in kinds}
        self.nbytes = sum(array.nbytes for array in self.arrays.values())
        if device is not None:
            self.arrays = {key: torch.from_numpy(np.array(a)).to(device) for key, a in self.arrays.items()}
        self.places = [(s, i) for s in self.studies for i in range(prepared.row(s)["slices"])]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.item(i)

    def item(self, i: int, suv_factor: float = 1.0) -> dict[str, Tensor]:
        """Slice i; its SUV, not its HU, times a factor before they are encoded."""
        study, k = self.places[i]
        images = {}
        for kind in self.kinds:
            array = self.arrays[study, kind]
            rows = neighbours_of(k, len(array), self.neighbours)
            raw = array[rows] if self.device is not None else torch.from_numpy(np.array(array[rows]))
            images[kind] = ENCODE[kind](raw * suv_factor if kind == "pet" else raw, self.window).float()
        return images

    def name(self, i: int) -> str:
        """Where slice i comes from; studies are known by pseudonyms."""
        study, k = self.places[i]
        return f"study {study}, slice {k}"


def neighbours_of(k: int, slices: int, neighbours: int) -> list[int]:
    """Numbers of the slices around slice k of a study, the study's first and last repeated beyond its ends.

    >>> neighbours_of(0, slices=10, neighbours=5)
    [0, 0, 0, 1, 2]
    """
    half = neighbours // 2
    return [min(max(j, 0), slices - 1) for j in range(k - half, k + half + 1)]


class UnpairedBatches:
    """Batches of PET slices of some patients and CT slices of others. ValueError where a study is in both."""

    def __init__(self, pet: Slices, ct: Slices, size: int, augmentation: Augmentation | None = None) -> None:
        if set(pet.studies) & set(ct.studies):
            raise ValueError("unpaired training needs different patients for PET and for CT")
        self.slices, self.size, self.augmentation = {"pet": pet, "ct": ct}, size, augmentation or Augmentation()

    def __call__(self, rng: np.random.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """{"pet", "ct"}: (B, neighbours, H, W), independent slices, each changed at random.

        Of a batch drawn by `rng`, the share of process `rank` of `world`, B = size / world.
        """
        own = _share(self.size, rank, world)
        drawn = self._drawn(rng)
        return {
            kind: torch.stack([move(of.item(i, c.suv_factor)[kind], c) for i, c in drawn[kind][own]])
            for kind, of in self.slices.items()
        }

    def _drawn(self, rng: np.random.Generator) -> dict[str, list[tuple[int, Change]]]:
        return {kind: _draw(len(of), self.size, self.augmentation, rng) for kind, of in self.slices.items()}

    def names(self, rng: np.random.Generator) -> list[str]:
        """Which slices the batch of an equal generator holds."""
        drawn = self._drawn(rng)
        return [f"{kind}: {of.name(i)}" for kind, of in self.slices.items() for i, _ in drawn[kind]]

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `train.Batches`."""
        pet = self.slices["pet"]
        return {
            **{kind: of.studies for kind, of in self.slices.items()}, "size": self.size, "neighbours": pet.neighbours,
            "augmentation": asdict(self.augmentation), "window": asdict(pet.window),
        }  # fmt: skip


class PairedBatches:
    """Batches of aligned source, coarse and target slices; coarse: (n, variants, H, W), encoded, one of which is drawn.

    sources: (n, 1, H, W), in place of the slices' own, as cycle pairs have them; the slices then need the target only.
    crop: size of the squares around the patient that are drawn from the slices, in pixels; None: whole slices.
    Where the slices come with neighbours, the source does; coarse and target are of the middle one. ValueError where
    there are more or fewer coarse images than slices, InputError for an augmentation that scales the SUV.
    """

    def __init__(
        self, slices: Slices, coarse: np.ndarray, direction: str, size: int, augmentation: Augmentation | None = None,
        sources: np.ndarray | None = None, crop: int | None = None,
    ) -> None:  # fmt: skip
        self.slices, self.coarse, self.direction, self.size = slices, coarse, direction, size
        self.sources, self.crop = sources, crop
        self.augmentation = augmentation or Augmentation()
        if len(coarse) != len(slices):
            raise ValueError(f"{len(coarse)} coarse images for {len(slices)} slices")
        if self.augmentation.suv_scale:
            raise InputError(
                f"suv_scale {self.augmentation.suv_scale}: coarse images were made of unscaled SUV, so pairs cannot be "
                "scaled; leave it at 0"
            )

    def __call__(self, rng: np.random.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """{"source" (B, neighbours, H, W), "coarse", "target" (B, 1, H, W)}, all three changed alike.

        Of a batch drawn by `rng`, the share of process `rank` of `world`.
        """
        own = _share(self.size, rank, world)
        items = []
        for (i, change), variant, chance in self._drawn(rng)[own]:
            images = {name: move(image, change) for name, image in self._images(i, variant).items()}
            items.append(crop(images, self.crop, "target", chance) if self.crop else images)
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _drawn(self, rng: np.random.Generator) -> list[tuple[tuple[int, Change], int, float]]:
        """Of each image: its slice and change, the coarse image's variant, and the chance that places the square."""
        drawn = _draw(len(self.slices), self.size, self.augmentation, rng)
        variants, chances = rng.integers(self.coarse.shape[1], size=self.size), rng.random(self.size)
        return list(zip(drawn, variants.tolist(), chances.tolist(), strict=True))

    def _images(self, i: int, variant: int) -> dict[str, Tensor]:
        images = self.slices[i]
        target = middle(images[TARGET[self.direction]][None])[0]
        own = images[SOURCE[self.direction]] if self.sources is None else torch.from_numpy(np.array(self.sources[i]))
        coarse = torch.from_numpy(np.array(self.coarse[i, variant : variant + 1]))
        return {"source": own, "coarse": coarse, "target": target}

    def names(self, rng: np.random.Generator) -> list[str]:
        """Which slices the batch of an equal generator holds."""
        return [self.slices.name(i) for (i, _), _, _ in self._drawn(rng)]

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `train.Batches`."""
        images = {"coarse": self.coarse, "sources": self.sources}
        return {
            "studies": self.slices.studies, "size": self.size, "augmentation": asdict(self.augmentation),
            "direction": self.direction, "window": asdict(self.slices.window), "crop": self.crop,
            **{key: hashlib.sha256(of).hexdigest() for key, of in images.items() if of is not None},
        }  # fmt: skip


class MixedBatches:
    """Batches of which each part comes from other pairs, of the same shapes."""

    def __init__(self, parts: Sequence[PairedBatches]) -> None:
        self.parts = list(parts)

    def __call__(self, rng: np.random.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The parts' batches, one after the other; see `PairedBatches`."""
        batches = [part(rng, rank, world) for part in self.parts]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def names(self, rng: np.random.Generator) -> list[str]:
        """Which slices the batch of an equal generator holds."""
        return [name for part in self.parts for name in part.names(rng)]

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `train.Batches`."""
        return {"parts": [part.describe() for part in self.parts]}


def _draw(count: int, size: int, augmentation: Augmentation, rng: np.random.Generator) -> list[tuple[int, Change]]:
    """`size` random items of `count`, each with its own change; all of them, whichever process will load them."""
    return [(int(i), draw(augmentation, rng)) for i in rng.integers(count, size=size)]


def _share(size: int, rank: int, world: int) -> slice:
    if size % world:
        raise InputError(f"a batch of {size} cannot be shared by {world} processes; take a multiple of {world}")
    return slice(rank * size // world, (rank + 1) * size // world)


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
