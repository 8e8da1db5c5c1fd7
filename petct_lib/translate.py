"""Slices and volumes through generator and refiner, with uncertainty; a trained run applied to a DICOM study."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from petct_lib import InputError, dicom, dicom_write
from petct_lib.archives import list_files
from petct_lib.bridge import interpolated
from petct_lib.checkpoints import load_checkpoint
from petct_lib.cyclegan import DIRECTIONS, CycleGAN, CycleGANSettings
from petct_lib.data import SOURCE, TARGET, Slices, neighbours_of
from petct_lib.dicom_files import LeftOut, Series, read_series
from petct_lib.files import read_json, replacing
from petct_lib.intensity import DECODE, ENCODE, Intensity, read_window
from petct_lib.nets import middle
from petct_lib.prepare import FILL, Prepared
from petct_lib.prior import Prior, PriorSettings
from petct_lib.refiner import Refiner, RefinerSettings
from petct_lib.spectrum_matching import matched
from petct_lib.suv import suv_factor
from petct_lib.train import restore
from petct_lib.volume import Volume, axial_grid, resample

BATCH = 16  # slices at a time: bounds the memory
UNIT = {"pet": "SUV", "ct": "HU"}
MODALITY = {"pet": "PT", "ct": "CT"}  # DICOM's
MODES = {  # by mode: what `train_refiner.calibrate` calls its α, and the α where it fitted none
    "default": ("alpha", 1.0), "distortion": ("alpha_distortion", 0.0),
}  # fmt: skip
ALPHA_LIMIT = 1.5  # beyond 1 the line goes on: more texture than the refiner's own, at more error
FITTED = "refiner.json"  # in a run's folder, by direction: α of the modes, gains, factor on the uncertainty map
HALF_STRIDE = 2  # pixels: the generator halves its images twice


@dataclass(frozen=True)
class Translation:
    """One volume translated, in the target's unit, each (n, H, W)."""

    coarse: np.ndarray  # the GAN's image
    refined: np.ndarray  # mean of the samples
    uncertainty: np.ndarray  # the absolute error to be expected of `refined`


def load_cyclegan(path: Path) -> CycleGAN:
    """A trained CycleGAN from its checkpoint, on `best_device`. InputError as for `checkpoints.load_checkpoint`."""
    state = load_checkpoint(path)
    stage = CycleGAN(CycleGANSettings(**state["settings"]))
    restore(stage, state)
    for ema in stage.ema.values():
        ema.to(best_device())
    return stage


def load_refiner(path: Path) -> Refiner | Prior:
    """A trained refiner, a control of the same network, or a prior, from its checkpoint, on `best_device`.

    InputError as for `checkpoints.load_checkpoint`, and for one whose training has not come to its end.
    """
    state = load_checkpoint(path)
    if (done := state["step"]) < (asked := state["origin"]["steps"]):
        raise InputError(f"{path}: its training stopped after step {done} of {asked}; go on with it (--resume) first")
    settings = {**state["settings"], "multipliers": tuple(state["settings"]["multipliers"])}
    stage = Prior(PriorSettings(**settings)) if "t0" in settings else Refiner(RefinerSettings(**settings))
    restore(stage, state)
    for ema in stage.ema.values():
        ema.to(best_device())
    return stage


@torch.no_grad()
def coarse_images(generator: nn.Module, source: Tensor) -> Tensor:
    """The generator on (n, neighbours, H, W) encoded slices, a batch at a time, on its device; (n, 1, H, W)."""
    device = next(generator.parameters()).device
    generator.eval()
    return torch.cat([middle(generator(part.to(device))).cpu() for part in source.split(BATCH)])


def shift_averaged(generator: nn.Module, source: Tensor, coarse: Tensor) -> Tensor:
    """`coarse`, averaged with the generator's image of the slices moved by half of its stride, moved back.

    Test-time augmentation: what depends on where a pixel lies on the generator's strides is averaged away. The last two
    rows and columns, which leave the moved slice, stay as they are. Shapes as for `coarse_images`, which made `coarse`.
    """
    height, width = source.shape[-2:]
    moved = nn.functional.pad(source, (HALF_STRIDE, 0, HALF_STRIDE, 0), mode="reflect")[..., :height, :width]
    back = coarse_images(generator, moved)[..., HALF_STRIDE:, HALF_STRIDE:]
    averaged = coarse.clone()
    averaged[..., :-HALF_STRIDE, :-HALF_STRIDE] = (coarse[..., :-HALF_STRIDE, :-HALF_STRIDE] + back) / 2
    return averaged


def coarse_for(slices: Slices, generator: nn.Module, kind: str, path: Path) -> np.ndarray:
    """Coarse images (n, 1, H, W) of all slices of a dataset, from its `kind` ("pet" or "ct"), written to `path` (.npy).

    Memory-mapped, encoded, float32: what a training holds in memory does not grow with its patients.
    """
    with replacing(path) as temporary:
        shape = (len(slices), 1, *slices[0][kind].shape[1:])
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        for first in range(0, len(slices), BATCH):
            part = range(first, min(first + BATCH, len(slices)))
            out[part.start : part.stop] = coarse_images(generator, torch.stack([slices[i][kind] for i in part])).numpy()
        out.flush()
    return np.load(path, mmap_mode="r")


def refine(refiner: Refiner | Prior, source: Tensor, coarse: Tensor, samples: int, seed: int) -> Tensor:
    """Samples of the refiner, (samples, n, 1, H, W), encoded. Sample k depends on seed and k, not on the batch.

    All slices of a sample share their noise, so that neighbours differ as the patient does and not as noise does.
    source: (n, neighbours, H, W); coarse: (n, 1, H, W). InputError for no samples.
    """
    if samples < 1:
        raise InputError(f"samples {samples}: at least 1 is needed")
    out = []
    for k in range(samples):
        noise = [torch.Generator().manual_seed(seed * 1000 + k) for _ in source.split(BATCH)]
        parts = zip(source.split(BATCH), coarse.split(BATCH), noise, strict=True)
        out.append(torch.cat([refiner.sample(x, c, generator)[-1].clamp(-1, 1).cpu() for x, c, generator in parts]))
    return torch.stack(out)


def encoded(
    image: np.ndarray, kind: str, window: Intensity, neighbours: int = 1, lengths: Sequence[int] | None = None
) -> Tensor:
    """Slices (n, H, W) in SUV or HU → (n, neighbours, H, W) as the networks take them.

    lengths: of the studies whose slices these are, one after the other; a slice's neighbours are of its own study.
    """
    x = ENCODE[kind](torch.from_numpy(np.array(image)), window).float()  # by torch, as training does: equal to the bit
    studies = x.split(list(lengths or [len(x)]))
    return torch.cat([s[torch.tensor([neighbours_of(k, len(s), neighbours) for k in range(len(s))])] for s in studies])


def decoded(image: Tensor, kind: str, window: Intensity) -> np.ndarray:
    """(…, 1, H, W) from a network → (…, H, W) in SUV or HU."""
    return DECODE[kind](image.cpu(), window)[..., 0, :, :].numpy()


def translate_coarse(cyclegan: CycleGAN, source: np.ndarray, direction: str, window: Intensity) -> np.ndarray:
    """The generator alone on a study, (n, H, W) in SUV or HU; the result in the target's unit."""
    x = encoded(source, SOURCE[direction], window, cyclegan.settings.neighbours)
    return decoded(coarse_images(cyclegan.generator(direction), x), TARGET[direction], window)


def disagreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|one − other| of two networks' images, (n, H, W), smoothed within each slice by a Gaussian of σ = 1 pixel.

    After deep ensembles (Lakshminarayanan 2017): where networks differ, one of them is wrong at least. Smoothed,
    because both may be wrong alike at a pixel beside.
    """
    return ndimage.gaussian_filter(np.abs(one - other), (0, 1, 1))


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Translator:
    """Both directions of a run: checkpoints, window and grid loaded from its folder.

    InputError where a checkpoint is missing or is none.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir = Path(run_dir)
        self.checkpoints = run_dir / "checkpoints"
        self.cyclegan = load_cyclegan(self.checkpoints / "cyclegan.pt")
        self.refiners = {d: load_refiner(self.checkpoints / f"refiner_{d}.pt") for d in DIRECTIONS}
        self.direct = {d: load_refiner(self.checkpoints / f"pix2pix_{d}.pt") for d in DIRECTIONS}
        self.window = read_window(run_dir)
        self.grid = read_json(run_dir / "stages.json")["grid"]
        self.fitted = read_json(run_dir / FITTED) if (run_dir / FITTED).exists() else {}

    def __call__(
        self, source: np.ndarray, direction: str, *, samples: int, seed: int, lengths: Sequence[int] | None = None,
        alpha: float | str = "default",
    ) -> Translation:  # fmt: skip
        """A stack of slices (n, H, W) in SUV or HU, on the run's pixel size, to its translation in the target's unit.

        lengths: slices of its studies, where there are several. samples: of which `refined` is the mean. alpha: one of
        MODES, or a number from 0, the network from the source alone, over 1, the refiner's image, to ALPHA_LIMIT.
        InputError for another alpha, and for no samples.
        Network evaluations a slice: 1 for the generator, samples × steps for the refiner, 1 for the direct network, and
        1 of the error network, which is smaller.
        """
        x, coarse = self.start(source, direction, lengths)
        return self.refined(x, coarse, direction, samples=samples, seed=seed, alpha=alpha)

    def start(
        self, source: np.ndarray, direction: str, lengths: Sequence[int] | None = None, neighbours: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Source (n, H, W) in SUV or HU → source and coarse image as the refiner takes them.

        The source comes with as many neighbours, (n, neighbours, H, W), as any network of the direction looks at, or
        with `neighbours` if those are more: a refiner that looks at fewer takes the middle ones.
        """
        of_generator = self.cyclegan.settings.neighbours
        refiners = self.refiners[direction], self.direct[direction]
        seen = max(of_generator, neighbours, *(refiner.settings.neighbours for refiner in refiners))
        x = encoded(source, SOURCE[direction], self.window, seen, lengths)
        return x, coarse_images(self.cyclegan.generator(direction), middle(x, of_generator))

    def refined(
        self, x: Tensor, coarse: Tensor, direction: str, *, samples: int, seed: int, alpha: float | str = "default"
    ) -> Translation:
        """From source and coarse image on. alpha: as for the call; see `between`.

        The uncertainty is calibrated for the mode `default`; elsewhere its size is that of there. x, coarse: as `start`
        gives them. InputError as for the call.
        """
        ends = self.ends(x, coarse, direction, samples=samples, seed=seed)
        return self.at(alpha, ends, x, coarse, direction)

    def at(
        self, alpha: float | str, ends: Sequence[np.ndarray], x: Tensor, coarse: Tensor, direction: str
    ) -> Translation:  # fmt: skip
        """The translation at a point of the line between the two `ends`; as `refined`.

        Its uncertainty is what the error network expects and how far the ends are apart, added up: the network learned
        the errors of patients whom the refiner knew, and two networks agree less about one that is new to both. Of a
        refiner that was trained without error network (error_width 0), it is the distance of the ends alone.
        """
        image, refiner = self.between(*ends, alpha, direction), self.refiners[direction]
        expected = disagreement(*ends)
        if "error" in refiner.nets:
            expected = self.expected_error(refiner, x, coarse, image, direction) + expected
        scale = self.fitted.get(direction, {}).get("error_scale", 1.0)
        return Translation(decoded(coarse, TARGET[direction], self.window), image, scale * expected)

    def ends(self, x: Tensor, coarse: Tensor, direction: str, *, samples: int, seed: int) -> list[np.ndarray]:
        """The images of the direct network and of the refiner, (n, H, W) each, in the target's unit."""
        networks = self.direct[direction], self.refiners[direction]
        return [self.image(network, x, coarse, direction, samples=samples, seed=seed) for network in networks]

    def between(self, distortion: np.ndarray, perceptual: np.ndarray, alpha: float | str, direction: str) -> np.ndarray:
        """`bridge.interpolated` of the two `ends`, kept in the networks' range: beyond 1 the line may leave it.

        In the mode `default` its spectrum is then matched with the gains that `train_refiner.calibrate` fitted; a
        number, and the mode `distortion`, is the line's point as it is. InputError as for the call.
        """
        low, high = decoded(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), TARGET[direction], self.window).ravel()
        image = interpolated(distortion, perceptual, self.alpha_of(direction, alpha)).clip(low, high)
        gains = self.fitted.get(direction, {}).get("gains") if alpha == "default" else None
        return image if gains is None else self.matched(image, gains, direction)

    def matched(self, image: np.ndarray, gains: np.ndarray, direction: str) -> np.ndarray:
        """`spectrum_matching.matched` of an image in the target's unit, (n, H, W), which it keeps."""
        kind = TARGET[direction]
        return DECODE[kind](matched(np.asarray(ENCODE[kind](image, self.window), np.float32), gains), self.window)

    def unpaired(self, x: Tensor, coarse: Tensor, direction: str) -> np.ndarray:
        """`shift_averaged`, (n, H, W) in the target's unit: the best that no pair goes into. x, coarse: see `start`."""
        source, generator = middle(x, self.cyclegan.settings.neighbours), self.cyclegan.generator(direction)
        return decoded(shift_averaged(generator, source, coarse), TARGET[direction], self.window)

    def alpha_of(self, direction: str, alpha: float | str = "default") -> float:
        """The α of a mode, as `train_refiner.calibrate` fitted it, or the number given. InputError for another."""
        if alpha in MODES:
            name, unfitted = MODES[alpha]
            return self.fitted.get(direction, {}).get(name, unfitted)
        if isinstance(alpha, str) or not 0 <= alpha <= ALPHA_LIMIT:
            raise InputError(
                f"alpha {alpha}: must be {' or '.join(MODES)}, or lie between 0 (the direct network) and {ALPHA_LIMIT} "
                "(1 is the refiner's)"
            )
        return alpha

    def image(
        self, refiner: Refiner | Prior, x: Tensor, coarse: Tensor, direction: str, *, samples: int, seed: int
    ) -> np.ndarray:
        """The mean of one network's samples, (n, H, W) in the target's unit; of a network without noise, of one."""
        samples = samples if getattr(refiner.settings, "sigma", 1) else 1
        return decoded(refine(refiner, x, coarse, samples, seed), TARGET[direction], self.window).mean(axis=0)

    def expected_error(
        self, refiner: Refiner, x: Tensor, coarse: Tensor, image: np.ndarray, direction: str
    ) -> np.ndarray:
        """What a refiner's error network says of an image, (n, H, W) both, in the target's unit; not yet calibrated.

        Half of the way between what x − e and x + e decode to, e being the network's answer in its own range.
        InputError where the refiner has no error network.
        """
        kind = TARGET[direction]
        again = ENCODE[kind](torch.from_numpy(image), self.window)[:, None].float()
        parts = zip(x.split(BATCH), coarse.split(BATCH), again.split(BATCH), strict=True)
        error = torch.cat([refiner.expected_error(*part).cpu() for part in parts])
        high, low = decoded(again + error, kind, self.window), decoded(again - error, kind, self.window)
        return (high - low) / 2

    def identity(self, direction: str) -> str:
        """SHA-256 over checkpoints and calibration of a direction: what differs has another identity (and UIDs)."""
        digest = hashlib.sha256(json.dumps(self.fitted.get(direction), sort_keys=True).encode())
        for name in ("cyclegan.pt", f"refiner_{direction}.pt", f"pix2pix_{direction}.pt"):
            digest.update((self.checkpoints / name).read_bytes())
        return digest.hexdigest()


def export(
    translation: Translation, affine: np.ndarray, direction: str, folder: Path, subject: dicom_write.Subject, seed: str,
    suv_kind: str,
) -> None:  # fmt: skip
    """Writes `refined/` and `uncertainty/` as derived DICOM series under `folder`, marked as synthetic."""
    kind = TARGET[direction]
    name = f"{kind.upper()} from {SOURCE[direction].upper()}"
    for number, (part, array, what) in enumerate(
        (("refined", translation.refined, name), ("uncertainty", translation.uncertainty, f"error of {name}")), start=1
    ):
        volume = Volume(array, affine, UNIT[kind])
        dicom_write.write_derived(
            volume, folder / part, subject, description=what, seed=seed, number=number, suv_kind=suv_kind
        )


def export_patient(
    run_dir: Path, prepared: Prepared, patient: str, result: Translation, direction: str, made_by: str
) -> None:
    """A patient's translation, study by study, to `run_dir/synthetic/<patient>/<direction>/`.

    made_by: all that the pixels depend on beside the study (weights, samples, seed): it goes into the UIDs.
    """
    folder, first = Path(run_dir) / "synthetic" / patient / direction, 0
    studies = prepared.studies([patient])
    for study in studies:
        row = prepared.row(study)
        part = slice(first, first + row["slices"])
        one = Translation(result.coarse[part], result.refined[part], result.uncertainty[part])
        seed = f"{prepared.fingerprint}|{study}|{direction}|{made_by}"
        subject = dicom_write.Subject(patient, dicom_write.make_uid("study", seed), row["frame_of_reference_uid"])
        place = folder / study if len(studies) > 1 else folder
        export(one, np.array(row["affine"]), direction, place, subject, seed, prepared.index["grid"]["suv_kind"])
        first = part.stop


def read_source(path: Path, direction: str, suv_kind: str = "bw") -> tuple[Volume, Series]:
    """The source volume of a study and its series; only the source modality has to be there.

    Of several series the one with most slices is taken that can be read. Raises InputError where there is none, or
    where `path` holds several studies.
    """
    modality = MODALITY[SOURCE[direction]]
    all_series, left_out = read_series(list_files(path))
    usable = [
        s for s, _ in map(dicom.without_localizers, all_series) if s.modality == modality and not dicom.unusable(s)
    ]
    if len({s.get("StudyInstanceUID") for s in usable}) > 1:
        raise InputError(f"{path}: holds {modality} series of several studies; name the folder of one study")
    for series in sorted(usable, key=lambda s: (-len(s.images), s.uid)):
        try:
            factor = suv_factor(series.headers, suv_kind).factor if modality == "PT" else 1.0
            return dicom.load_series(series, factor, UNIT[SOURCE[direction]]), series
        except InputError as error:
            left_out.append(LeftOut(series.label, str(error)))
    why = dicom.reasons(left_out) or f"{len(all_series)} series of other kinds"
    raise InputError(f"{path}: no usable {modality} series for {direction} ({why})")


def translate_study(
    path: Path, run_dir: Path, direction: str, out: Path, *, samples: int = 2, seed: int = 0,
    alpha: float | str = "default",
) -> tuple[np.ndarray, Translation]:  # fmt: skip
    """A trained run applied to a DICOM study: derived series under `out`; returns the source and the translation.

    The study is resampled to the run's grid, on which both come back, (n, H, W) in SUV and HU (its pixel size stays in
    the files). samples, alpha: see `Translator`. Raises InputError for unusable input, a missing run, or an `out` that
    is not empty.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction {direction!r}: it must be one of {', '.join(DIRECTIONS)}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name another folder")
    translator = Translator(run_dir)
    g = translator.grid
    volume, series = read_source(path, direction, g["suv_kind"])
    corners = volume.corners_mm()
    grid = axial_grid(corners.min(axis=0), corners.max(axis=0), g["size"], g["fov_mm"], g["slice_mm"])
    source = resample(volume, grid, FILL[SOURCE[direction]]).array
    translation = translator(source, direction, samples=samples, seed=seed, alpha=alpha)
    made_from = f"{series.uid}|{translator.identity(direction)}|{samples}|{seed}|{alpha}"  # a mode's is in the identity
    patient = dicom.pseudonym(dicom.study_patient([series]), series.uid)
    frame = str(series.get("FrameOfReferenceUID"))
    subject = dicom_write.Subject(patient, dicom_write.make_uid("study", made_from), frame)
    export(translation, grid.affine, direction, out, subject, made_from, g["suv_kind"])
    return source, translation
