"""Unpaired and paired datasets of prepared slices."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from petct_lib import InputError
from petct_lib.data.augmentation import Shift, crop, draw_shift, shift_image
from petct_lib.data.prepare import Prepared
from petct_lib.imaging.directions import SOURCE, TARGET
from petct_lib.imaging.intensity import ENCODE, Intensity
from petct_lib.imaging.slices import center_slice, evenly_spaced, neighbour_indices


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
        study, k = self.places[i]
        images = {}
        for kind in self.kinds:
            array = self.arrays[study, kind]
            rows = neighbour_indices(k, len(array), self.neighbours)
            raw = array[rows] if self.device is not None else torch.from_numpy(np.array(array[rows]))
            images[kind] = ENCODE[kind](raw, self.window).float()
        return images

    def name(self, i: int) -> str:
        """Where slice i comes from; studies are known by pseudonyms."""
        study, k = self.places[i]
        return f"study {study}, slice {k}"


class UnpairedBatches:
    """Batches of PET slices of some patients and CT slices of others. ValueError where a study is in both."""

    def __init__(self, pet: Slices, ct: Slices, size: int, shift: int = 0) -> None:
        if set(pet.studies) & set(ct.studies):
            raise ValueError("unpaired training needs different patients for PET and for CT")
        self.slices, self.size, self.shift = {"pet": pet, "ct": ct}, size, shift

    def __call__(self, rng: np.random.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """{"pet", "ct"}: (B, 1, H, W), independent slices, each shifted at random.

        Of a batch drawn by `rng`, the share of process `rank` of `world`, B = size / world.
        """
        own = _share(self.size, rank, world)
        drawn = self._draw_all(rng)
        return {
            kind: torch.stack([shift_image(stack[i][kind], shift) for i, shift in drawn[kind][own]])
            for kind, stack in self.slices.items()
        }

    def _draw_all(self, rng: np.random.Generator) -> dict[str, list[tuple[int, Shift]]]:
        return {kind: _draw(len(stack), self.size, self.shift, rng) for kind, stack in self.slices.items()}

    def names(self, rng: np.random.Generator) -> list[str]:
        """Which slices the batch of an equal generator holds."""
        drawn = self._draw_all(rng)
        return [f"{kind}: {stack.name(i)}" for kind, stack in self.slices.items() for i, _ in drawn[kind]]

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `loop.Batches`."""
        return {
            **{kind: stack.studies for kind, stack in self.slices.items()}, "size": self.size,
            "shift": self.shift, "window": asdict(self.slices["pet"].window),
        }  # fmt: skip


class PairedBatches:
    """Batches of aligned source, coarse and target slices; coarse: (n, variants, H, W), encoded, one of which is drawn.

    sources: (n, 1, H, W), in place of the slices' own, as cycle pairs have them; the slices then need the target only.
    crop: size of the squares around the patient that are drawn from the slices, in pixels; None: whole slices. Where
    the slices come with neighbours, the source does; coarse and target are of the middle one. ValueError where there
    are more or fewer coarse images than slices.
    """

    def __init__(
        self, slices: Slices, coarse: np.ndarray, direction: str, size: int, shift: int = 0,
        sources: np.ndarray | None = None, crop: int | None = None,
    ) -> None:  # fmt: skip
        self.slices, self.coarse, self.direction, self.size = slices, coarse, direction, size
        self.shift, self.sources, self.crop = shift, sources, crop
        if len(coarse) != len(slices):
            raise ValueError(f"{len(coarse)} coarse images for {len(slices)} slices")

    def __call__(self, rng: np.random.Generator, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """{"source" (B, neighbours, H, W), "coarse", "target" (B, 1, H, W)}, all three shifted alike.

        Of a batch drawn by `rng`, the share of process `rank` of `world`.
        """
        own = _share(self.size, rank, world)
        items = []
        for (i, shift), variant, chance in self._draw_all(rng)[own]:
            images = {name: shift_image(image, shift) for name, image in self._images(i, variant).items()}
            items.append(crop(images, self.crop, "target", chance) if self.crop else images)
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _draw_all(self, rng: np.random.Generator) -> list[tuple[tuple[int, Shift], int, float]]:
        """Of each image: its slice and shift, the coarse image's variant, and the chance that places the square."""
        drawn = _draw(len(self.slices), self.size, self.shift, rng)
        variants, chances = rng.integers(self.coarse.shape[1], size=self.size), rng.random(self.size)
        return list(zip(drawn, variants.tolist(), chances.tolist(), strict=True))

    def _images(self, i: int, variant: int) -> dict[str, Tensor]:
        images = self.slices[i]
        target = center_slice(images[TARGET[self.direction]][None])[0]
        own = images[SOURCE[self.direction]] if self.sources is None else torch.from_numpy(np.array(self.sources[i]))
        coarse = torch.from_numpy(np.array(self.coarse[i, variant : variant + 1]))
        return {"source": own, "coarse": coarse, "target": target}

    def names(self, rng: np.random.Generator) -> list[str]:
        """Which slices the batch of an equal generator holds."""
        return [self.slices.name(i) for (i, _), _, _ in self._draw_all(rng)]

    def fixed(self) -> dict[str, Tensor]:
        """A batch that never changes, for previews."""
        return self(np.random.default_rng(0))

    def describe(self) -> dict:
        """What would change the batches; see `loop.Batches`."""
        images = {"coarse": self.coarse, "sources": self.sources}
        return {
            "studies": self.slices.studies, "size": self.size, "shift": self.shift,
            "direction": self.direction, "window": asdict(self.slices.window), "crop": self.crop,
            **{key: hashlib.sha256(image).hexdigest() for key, image in images.items() if image is not None},
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
        """What would change the batches; see `loop.Batches`."""
        return {"parts": [part.describe() for part in self.parts]}


def _draw(count: int, size: int, shift: int, rng: np.random.Generator) -> list[tuple[int, Shift]]:
    """`size` random items of `count`, each with its own shift; all of them, whichever process will load them."""
    return [(int(i), draw_shift(shift, rng)) for i in rng.integers(count, size=size)]


def _share(size: int, rank: int, world: int) -> slice:
    if size % world:
        raise InputError(f"a batch of {size} cannot be shared by {world} processes; take a multiple of {world}")
    return slice(rank * size // world, (rank + 1) * size // world)


def spread_slices(prepared: Prepared, patient: str, kinds: tuple[str, ...], count: int) -> list[np.ndarray]:
    """Some slices of a patient's first study, evenly spread from the feet upwards, (count, H, W) for each kind."""
    study = prepared.studies([patient])[0]
    k = evenly_spaced(prepared.row(study)["slices"], count, ends=False)
    return [np.array(prepared.array(study, kind)[k]) for kind in kinds]
