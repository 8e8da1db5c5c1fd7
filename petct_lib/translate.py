"""Slices and volumes through generator and refiner, with uncertainty; a trained run applied to a DICOM study."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from petct_lib import InputError, dicom, dicom_write
from petct_lib.cyclegan import DIRECTIONS, CycleGAN, CycleGANSettings
from petct_lib.data import FILL, SOURCE, TARGET, Prepared, Slices
from petct_lib.diffusion import Refiner, RefinerSettings
from petct_lib.files import read_json
from petct_lib.intensity import DECODE, ENCODE, Intensity
from petct_lib.suv import suv_factor
from petct_lib.train import load_checkpoint, restore
from petct_lib.volume import Volume, axial_grid, resample

BATCH = 16  # slices at a time: bounds the memory
UNIT = {"pet": "SUV", "ct": "HU"}


@dataclass(frozen=True)
class Translation:
    """One volume translated, in the target's unit, each (n, H, W): the GAN's image, the refined one, its spread."""

    coarse: np.ndarray
    refined: np.ndarray  # mean of the samples
    std: np.ndarray  # standard deviation of the samples: 0 with a single one


def load_cyclegan(path: Path) -> CycleGAN:
    """A trained CycleGAN from its checkpoint."""
    state = load_checkpoint(path)
    stage = CycleGAN(CycleGANSettings(**state["settings"]))
    restore(stage, state)
    for ema in stage.ema.values():
        ema.to(best_device())
    return stage


def load_refiner(path: Path) -> Refiner:
    """A trained refiner, or the control `refiner_l1`, from its checkpoint."""
    state = load_checkpoint(path)
    stage = Refiner(RefinerSettings(**{**state["settings"], "multipliers": tuple(state["settings"]["multipliers"])}))
    restore(stage, state)
    stage.ema["denoiser"].to(best_device())
    return stage


@torch.no_grad()
def coarse_images(generator: nn.Module, source: Tensor) -> Tensor:
    """The generator on (n, 1, H, W) encoded slices, a batch at a time, on the device that it is on."""
    device = next(generator.parameters()).device
    generator.eval()
    return torch.cat([generator(part.to(device)).cpu() for part in source.split(BATCH)])


def coarse_for(slices: Slices, generator: nn.Module, kind: str) -> Tensor:
    """Coarse images (n, 1, H, W) of all slices of a dataset, from its `kind` ("pet" or "ct")."""
    return coarse_images(generator, torch.stack([slices[i][kind] for i in range(len(slices))]))


@torch.no_grad()
def refine(
    refiner: Refiner, source: Tensor, coarse: Tensor, samples: int, seed: int, steps: int | None = None
) -> Tensor:
    """Samples of the refiner, (samples, n, 1, H, W), encoded. Sample k depends on seed and k, not on the batch."""
    out = []
    for k in range(samples):
        generator = torch.Generator().manual_seed(seed * 1000 + k)
        parts = [(x.to(refiner.device), c.to(refiner.device)) for x, c in _in_batches(source, coarse)]
        out.append(torch.cat([refiner.sample(x, c, generator, steps)[-1].clamp(-1, 1).cpu() for x, c in parts]))
    return torch.stack(out)


def translate_coarse(cyclegan: CycleGAN, source: np.ndarray, direction: str, window: Intensity) -> np.ndarray:
    """The generator alone on (n, H, W) in SUV or HU; the result in the target's unit."""
    x = torch.from_numpy(ENCODE[SOURCE[direction]](np.array(source), window))[:, None].float()
    return DECODE[TARGET[direction]](coarse_images(cyclegan.generator(direction), x), window)[:, 0].numpy()


def _in_batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Translator:
    """Both directions of a run: checkpoints, window and grid loaded from its folder."""

    def __init__(self, run_dir: Path) -> None:
        self.checkpoints = Path(run_dir) / "checkpoints"
        self.cyclegan = load_cyclegan(self.checkpoints / "cyclegan.pt")
        self.refiners = {d: load_refiner(self.checkpoints / f"refiner_{d}.pt") for d in DIRECTIONS}
        self.window = Intensity(**read_json(Path(run_dir) / "intensity.json"))
        self.grid = Prepared(Path(run_dir) / "prepared").index["grid"]

    def __call__(
        self, source: np.ndarray, direction: str, *, samples: int, seed: int, refiner: Refiner | None = None
    ) -> Translation:
        """source: (n, H, W) in SUV or HU, on the run's pixel size. refiner: another one (a control) in the run's place.

        Network evaluations a slice: 1 for the generator, and samples × steps.
        """
        x, coarse = self.encoded(source, direction)
        refined = refine(refiner or self.refiners[direction], x, coarse, samples, seed)
        images = self.decoded(refined, direction)  # (samples, n, H, W)
        return Translation(self.decoded(coarse, direction), images.mean(axis=0), images.std(axis=0))

    def encoded(self, source: np.ndarray, direction: str) -> tuple[Tensor, Tensor]:
        """Source (n, H, W) in SUV or HU → source and coarse image as the refiner takes them, (n, 1, H, W)."""
        x = torch.from_numpy(ENCODE[SOURCE[direction]](np.array(source), self.window))[:, None].float()
        return x, coarse_images(self.cyclegan.generator(direction), x)

    def decoded(self, image: Tensor, direction: str) -> np.ndarray:
        """(…, 1, H, W) in [−1, 1] → (…, H, W) in the target's unit."""
        return DECODE[TARGET[direction]](image.cpu(), self.window)[..., 0, :, :].numpy()


def export(
    translation: Translation, affine: np.ndarray, direction: str, folder: Path, subject: dicom_write.Subject, seed: str
) -> None:
    """Writes `refined/` and `uncertainty/` as derived DICOM series under `folder`, marked as synthetic."""
    kind = TARGET[direction]
    name = f"Synthetic {kind.upper()} from {SOURCE[direction].upper()}"
    for part, array, what in (
        ("refined", translation.refined, name),
        ("uncertainty", translation.std, f"Uncertainty (SD), {name}"),
    ):
        volume = Volume(array, affine, UNIT[kind])
        dicom_write.write_derived(volume, folder / part, subject, description=what, seed=seed)


def export_patient(run_dir: Path, prepared: Prepared, patient: str, result: Translation, direction: str) -> None:
    """A patient's translation, study by study, to `run_dir/synthetic/<patient>/<direction>/`."""
    folder, first = Path(run_dir) / "synthetic" / patient / direction, 0
    studies = prepared.studies([patient])
    for study in studies:
        row = prepared.row(study)
        part = slice(first, first + row["slices"])
        one = Translation(result.coarse[part], result.refined[part], result.std[part])
        seed = f"{prepared.fingerprint}|{study}|{direction}"
        subject = dicom_write.Subject(patient, dicom_write.make_uid("study", seed), row["frame_of_reference_uid"])
        place = folder / study if len(studies) > 1 else folder
        export(one, np.array(row["affine"]), direction, place, subject, seed)
        first = part.stop


def read_source(path: Path, direction: str) -> tuple[Volume, str, str, str]:
    """The source volume of a study, its frame of reference UID, the patient's pseudonym, and its series' UID.

    Only the source modality has to be there. Raises InputError where there is none, or several patients.
    """
    kind = SOURCE[direction]
    all_series, left_out = dicom.read_series(dicom.list_files(path))
    modality = {"pet": "PT", "ct": "CT"}[kind]
    usable = [s for s in all_series if s.modality == modality and not dicom.unusable(s)]
    if not usable:
        reasons = "; ".join(item.reason for item in left_out[:3]) or f"{len(all_series)} series of other kinds"
        raise InputError(f"{path}: no usable {modality} series for {direction} ({reasons})")
    if len({dicom.patient_of(s) for s in usable}) > 1:
        raise InputError(f"{path}: holds {modality} series of several patients; name the folder of one study")
    series = max(usable, key=lambda s: (len(s.files), s.uid))
    factor = suv_factor(series.headers).factor if kind == "pet" else 1.0
    volume = dicom.load_series(series, factor, UNIT[kind])
    patient = dicom.pseudonym(dicom.patient_of(series), series.uid)
    return volume, str(series.get("FrameOfReferenceUID")), patient, series.uid


def translate_study(
    path: Path, run_dir: Path, direction: str, out: Path, *, samples: int = 2, seed: int = 0
) -> tuple[np.ndarray, Translation]:
    """A trained run applied to a DICOM study: derived series under `out`. Returns the source on the run's grid, and the
    translation.

    The study is resampled to the run's grid (its pixel size stays in the files). Raises InputError for unusable input,
    a missing run, or an `out` that is not empty.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction {direction!r}: it must be one of {', '.join(DIRECTIONS)}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name another folder")
    translator = Translator(run_dir)
    volume, frame, patient, series_uid = read_source(path, direction)
    corners = volume.corners_mm()
    g = translator.grid
    grid = axial_grid(corners.min(axis=0), corners.max(axis=0), g["size"], g["fov_mm"], g["slice_mm"])
    source = resample(volume, grid, FILL[SOURCE[direction]]).array
    translation = translator(source, direction, samples=samples, seed=seed)
    made_from = f"{series_uid}|{translator.cyclegan.settings}|{seed}"
    subject = dicom_write.Subject(patient, dicom_write.make_uid("study", made_from), frame)
    export(translation, grid.affine, direction, out, subject, made_from)
    return source, translation
