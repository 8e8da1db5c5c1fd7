"""Slices and volumes through all stages, with samples, mean and spread."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petct_lib import InputError
from petct_lib.common.files import read_json
from petct_lib.common.memory import keep_freed_memory
from petct_lib.common.run_folder import RunFolder
from petct_lib.imaging.directions import DIRECTIONS, SOURCE, TARGET
from petct_lib.imaging.intensity import DECODE, ENCODE, Intensity, read_window
from petct_lib.imaging.slices import center_slice, neighbour_indices
from petct_lib.metrics import distribution
from petct_lib.models.checkpoints import load_cyclegan, load_flow, load_regression
from petct_lib.models.cyclegan import CycleGAN
from petct_lib.models.residual_flow import ResidualFlow
from petct_lib.models.samplers import DEFAULT_SAMPLER

BATCH = 16  # slices at a time: bounds the memory
MODES = ("mean", "sample")
SAMPLES = {"mean": 8, "sample": 1}  # of a mode, where no number is given
STEPS = 4  # of the midpoint method, 8 evaluations a sample


@dataclass(frozen=True)
class Translation:
    """One volume translated, in the target's unit, each (n, H, W)."""

    coarse: np.ndarray  # the CycleGAN output
    image: np.ndarray  # mean of the samples, or the one sample
    spread: np.ndarray  # standard deviation over the samples; 0 for one


def map_batches(function: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """`function` on BATCH images at a time, (n, …) each, joined on the CPU."""
    return torch.cat([function(*parts).cpu() for parts in zip(*(i.split(BATCH) for i in images), strict=True)])


def coarse_images(cyclegan: CycleGAN, source: Tensor, direction: str) -> Tensor:
    """Coarse images (n, 1, H, W) of encoded slices (n, 1, H, W), a batch at a time, on the CPU."""
    return map_batches(lambda x: cyclegan.translate(x, direction), source)


def noise_like(images: Tensor, seed: int, sample: int, *, shared: bool = True) -> Tensor:
    """The noise that sample number `sample` starts from, of the images' shape (n, 1, H, W), on the CPU.

    Samples come in pairs (0, 1), (2, 3), …: the second has the first one's noise with the other sign, so that what is
    too bright in one is too dark in the other, and the mean of a pair has much less error than that of two others
    (antithetic variates: Hammersley and Morton 1956; of diffusion: Jia 2025). Pairs are independent of each other.
    shared: all slices have the same noise, so that neighbours differ as the patient does and not as noise does;
    False: each slice has its own. Neither depends on the device or the batch.
    """
    generator = torch.Generator().manual_seed(seed * 1000 + sample // 2)
    n = 1 if shared else len(images)
    noise = torch.randn((n, *images.shape[1:]), generator=generator)
    return (-noise if sample % 2 else noise).expand_as(images)


def encode_slices(
    image: np.ndarray, kind: str, window: Intensity, neighbours: int = 1, lengths: Sequence[int] | None = None
) -> Tensor:
    """Slices (n, H, W) in SUV or HU → (n, neighbours, H, W) as the networks take them.

    lengths: of the studies whose slices these are, one after the other; a slice's neighbours are of its own study.
    """
    x = ENCODE[kind](torch.from_numpy(np.array(image)), window).float()  # by torch, as training does: equal to the bit
    studies = x.split(list(lengths or [len(x)]))
    return torch.cat(
        [s[torch.tensor([neighbour_indices(k, len(s), neighbours) for k in range(len(s))])] for s in studies]
    )


def decode_images(image: Tensor, kind: str, window: Intensity) -> np.ndarray:
    """(…, 1, H, W) from a network → (…, H, W) in SUV or HU."""
    return DECODE[kind](image.cpu(), window)[..., 0, :, :].numpy()


def stage2_inputs(
    cyclegan: CycleGAN, source: np.ndarray, direction: str, window: Intensity, neighbours: int = 1,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Source (n, H, W) in SUV or HU → encoded source (n, neighbours, H, W) and coarse image (n, 1, H, W).

    lengths: see `encode_slices`.
    """
    x = encode_slices(source, SOURCE[direction], window, neighbours, lengths)
    return x, coarse_images(cyclegan, center_slice(x), direction)


def translate_coarse(cyclegan: CycleGAN, source: np.ndarray, direction: str, window: Intensity) -> np.ndarray:
    """The CycleGAN alone on slices (n, H, W) in SUV or HU; the result in the target's unit."""
    x = encode_slices(source, SOURCE[direction], window)
    return decode_images(coarse_images(cyclegan, x, direction), TARGET[direction], window)


def load_refiner(checkpoints: Path, direction: str, prefix: str = "") -> "Refiner":
    """Regression and flow of a direction from a run's folder of checkpoints.

    InputError where one is missing, cannot be read, or has not come to its end.
    """
    regression = load_regression(Path(checkpoints) / f"{prefix}regression_{direction}.pt")
    return Refiner(load_flow(Path(checkpoints) / f"{prefix}flow_{direction}.pt", regression))


class Refiner:
    """Regression and residual flow of one direction, stage 2, on encoded slices.

    x: (n, neighbours, H, W), c: (n, 1, H, W); c of zeros is "without the coarse image".
    """

    def __init__(self, flow: ResidualFlow) -> None:
        self.flow, self.regression = flow, flow.regression

    @property
    def neighbours(self) -> int:
        """How many slices of the source it looks at."""
        return max(self.regression.settings.neighbours, self.flow.settings.neighbours)

    def without(self, c: Tensor) -> Tensor:
        """What stands for coarse images where it is to do without. InputError where it was never trained without."""
        if not (self.regression.settings.coarse_dropout and self.flow.settings.coarse_dropout):
            raise InputError(
                "without the coarse image: this run's stage 2 was trained with it alone (coarse_dropout 0)"
            )
        return torch.zeros_like(c)

    def predict(self, x: Tensor, c: Tensor) -> Tensor:
        """The regression's image, (n, 1, H, W)."""
        return map_batches(self.regression.predict, x, c)

    def samples(
        self, x: Tensor, c: Tensor, *, samples: int, steps: int, seed: int, sampler: str = DEFAULT_SAMPLER,
        shared: bool = True, bf16: bool = False, progress: Callable[[Iterable], Iterable] = iter,
    ) -> Iterable[Tensor]:  # fmt: skip
        """Sample after sample, each (n, 1, H, W) in [−1, 1]. InputError for no samples.

        shared: see `noise_like`. bf16: the network computes with 8 bits of mantissa, in half of the time on a processor
        that has it (`update.choose_precision`); the state of the sampler and the image stay in float32.
        """
        if min(samples, steps) < 1:
            raise InputError(f"samples {samples}, steps {steps}: at least 1 of each is needed")
        mean = self.predict(x, c)
        for k in progress(range(samples)):
            noise = noise_like(c, seed, k, shared=shared)

            def last(*images: Tensor) -> Tensor:
                with torch.autocast(self.flow.device.type, torch.bfloat16, enabled=bf16):
                    return self.flow.sample(*images, steps=steps, sampler=sampler)[-1]

            yield map_batches(last, x, c, mean, noise).clamp(-1, 1)


class Translator:
    """Both directions of a run: checkpoints, window and grid loaded from its folder.

    InputError where a checkpoint is missing or is none.
    """

    def __init__(self, run_dir: Path) -> None:
        keep_freed_memory()
        run = RunFolder(run_dir)
        self.checkpoints = run.checkpoints
        self.cyclegan = load_cyclegan(run.checkpoint("cyclegan"))
        self.refiners = {d: load_refiner(self.checkpoints, d) for d in DIRECTIONS}
        self.window = read_window(run_dir)
        self.grid = read_json(run.stages)["grid"]

    def __call__(
        self, source: np.ndarray, direction: str, *, mode: str = "mean", samples: int | None = None, steps: int = STEPS,
        seed: int = 0, lengths: Sequence[int] | None = None, without_coarse: bool = False,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> Translation:  # fmt: skip
        """A stack of slices (n, H, W) in SUV or HU, on the run's pixel size, to its translation in the target's unit.

        mode: "mean" of the samples, which has less error, or "sample", the first of them, which looks real; the
        spread is that of all samples in either. samples: None takes SAMPLES. steps: of the midpoint method, 2 · steps
        evaluations of the network a sample. lengths: slices of its studies, where there are several. without_coarse:
        regression and flow do not see the CycleGAN output. InputError for another mode, and for no samples or steps.
        """
        if mode not in MODES:
            raise InputError(f"mode {mode!r}: it must be {' or '.join(MODES)}")
        x, coarse = self.start(source, direction, lengths)
        c = self.refiners[direction].without(coarse) if without_coarse else coarse
        n = SAMPLES[mode] if samples is None else samples
        stack = self.samples(x, c, direction, samples=n, steps=steps, seed=seed, progress=progress)
        image = stack[0] if mode == "sample" else stack.mean(axis=0)
        spread = distribution.spread(stack)
        return Translation(decode_images(coarse, TARGET[direction], self.window), image, spread)

    def start(self, source: np.ndarray, direction: str, lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """`stage2_inputs` with as many neighbours as any network of the direction looks at."""
        neighbours = self.refiners[direction].neighbours
        return stage2_inputs(self.cyclegan, source, direction, self.window, neighbours, lengths)

    def refiner(self, direction: str, prefix: str = "") -> Refiner | None:
        """The run's own, or the one of another prefix, such as "unpaired_", where the run has it."""
        if not prefix:
            return self.refiners[direction]
        there = (self.checkpoints / f"{prefix}flow_{direction}.pt").exists()
        return load_refiner(self.checkpoints, direction, prefix) if there else None

    def samples(self, x: Tensor, coarse: Tensor, direction: str, **drawing: object) -> np.ndarray:
        """All samples, (samples, n, H, W) in the target's unit; arguments as for `Refiner.samples`."""
        return self.decode(torch.stack(list(self.refiners[direction].samples(x, coarse, **drawing))), direction)

    def regression(self, x: Tensor, coarse: Tensor, direction: str) -> np.ndarray:
        """The regression's image, (n, H, W) in the target's unit."""
        return self.decode(self.refiners[direction].predict(x, coarse), direction)

    def error_scale(self, x: Tensor, coarse: Tensor, image: np.ndarray, direction: str) -> np.ndarray:
        """The Laplace scale of the regression's error, (n, H, W) in the target's unit; `image`: what it predicts.

        Half of the way between what image − b and image + b decode to, b being the network's answer in its own range.
        InputError where it was trained without.
        """
        y = encode_slices(image, TARGET[direction], self.window)
        b = map_batches(self.refiners[direction].regression.scale, x, coarse)
        return (self.decode(y + b, direction) - self.decode(y - b, direction)) / 2

    def decode(self, image: Tensor, direction: str) -> np.ndarray:
        """(…, 1, H, W) of a direction's networks → (…, H, W) in the target's unit."""
        return decode_images(image, TARGET[direction], self.window)

    def identity(self, direction: str) -> str:
        """SHA-256 over the checkpoints of a direction: what differs has another identity (and UIDs)."""
        digest = hashlib.sha256()
        for name in ("cyclegan.pt", f"regression_{direction}.pt", f"flow_{direction}.pt"):
            digest.update((self.checkpoints / name).read_bytes())
        return digest.hexdigest()
