"""A seeded digital thorax: CT and PET of one patient after another, with the truth, written as DICOM.

Anatomy is drawn on the CT grid as labels (see `anatomy`); labels become HU and SUV, each imaged on its own grid.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from scipy import ndimage

from petct_lib.anatomy import LABEL, NOMINAL_HALF_MM, ORGANS, Canvas, add_lesions, draw_anatomy, smooth_step
from petct_lib.dicom_write import Subject, Tracer, make_uid, write_ct, write_pet
from petct_lib.files import write_json
from petct_lib.volume import Volume, axial_affine

SCAN_TIME_S = 11 * 3600  # PET at 11:00; the CT is two minutes earlier


@dataclass(frozen=True)
class PhantomSettings:
    """Grids and imaging; the defaults are a clinical PET/CT's."""

    ct_pixel_mm: float = 1.4  # a 420 mm field at ct_size: the attenuation CT's usual 1.0-1.4 mm
    ct_size: int = 300
    ct_slice_mm: float = 3.0  # common for attenuation CT
    pet_pixel_mm: float = 4.07  # Siemens Biograph, 4.07 mm in a 168 matrix; here its middle
    pet_size: int = 104
    pet_slice_mm: float = 4.0
    extent_mm: float = 240.0  # lung apex to upper abdomen
    pet_fwhm_mm: float = 6.0  # clinical reconstruction with its filter: 5-7 mm
    pet_noise: float = 0.09  # 1σ in the liver as a fraction: acceptance limits are near 10 %
    pet_noise_fwhm_mm: float = 5.5  # noise after OSEM and its filter is correlated over about a voxel
    ct_noise_hu: float = 12.0  # low-dose attenuation CT with a smooth kernel
    ct_blur_voxels: float = 0.6  # in-plane 1σ of the kernel, image and noise alike
    breathing_mm: float = 6.0  # how much higher than in the CT the diaphragm lies at expiration; 0 turns it off
    couch: bool = True  # every CT has one, no PET does


DEFAULTS = PhantomSettings()


@dataclass(frozen=True)
class Patient:
    """One patient: ct in HU, pet_suv in SUV as measured (float32), truth as written to truth.json."""

    patient_id: str
    ct: Volume
    pet_suv: Volume
    truth: dict
    weight_kg: float
    size_m: float
    sex: str
    uptake_s: int
    dose_bq: float
    study_date: str  # YYYYMMDD


def make_patient(seed: int, index: int, settings: PhantomSettings = DEFAULTS) -> Patient:
    """The patient number `index` of a seed: the same pair gives the same bits."""
    rng, s = np.random.default_rng([seed, index]), settings
    sex = "F" if rng.random() < 0.4 else "M"
    width, depth = rng.uniform(320, 400), rng.uniform(210, 270)  # mm
    centre = np.array([rng.uniform(-6, 6), rng.uniform(-32, -24), rng.uniform(-900, -500)])
    scale = np.array([2 * NOMINAL_HALF_MM[0] / width, 2 * NOMINAL_HALF_MM[1] / depth, rng.uniform(0.94, 1.06)])
    bottom = centre[2] - s.extent_mm / 2
    ct_affine, ct_axes = _grid(s.ct_pixel_mm, s.ct_size, s.ct_slice_mm, s.extent_mm, bottom, 0.0)
    pet_affine, pet_axes = _grid(s.pet_pixel_mm, s.pet_size, s.pet_slice_mm, s.extent_mm, bottom, 2.0)
    canvas = _canvas(rng, ct_axes, centre, scale)
    draw_anatomy(canvas, rng, sex, depth / 2 if s.couch else None)
    hu, suv, organs = _lookup(rng)
    truth = {"lesions": add_lesions(canvas, rng, centre, hu, suv), "organs": organs}
    ct = Volume(_image_ct(canvas, hu, rng, s), ct_affine, "HU")
    pet = Volume(_image_pet(canvas, suv, rng, ct_axes, pet_axes, s), pet_affine, "SUV")
    size_m = round(float(rng.normal(1.74 if sex == "M" else 1.63, 0.06)), 2)
    weight_kg = round(float(74 * width * depth / (360 * 240) * size_m / 1.70 * rng.uniform(0.95, 1.05)), 1)
    uptake_s = round(np.clip(rng.normal(3600, 480), 2400, 5400))
    dose_bq = float(round(weight_kg * 4e6 * rng.uniform(0.9, 1.1)))
    study_date = f"{date(2016, 1, 4) + timedelta(days=int(rng.integers(0, 1200))):%Y%m%d}"
    return Patient(f"PHANTOM-{index:04d}", ct, pet, truth, weight_kg, size_m, sex, uptake_s, dose_bq, study_date)


def write_patient(patient: Patient, folder: Path, seed: int) -> None:
    """Two series of one study: <folder>/<patient_id>/CT in HU and /PT in Bq/ml.

    Bq/ml = SUV × dose decayed to the scan / weight in g: the inverse of SUV by body weight (QIBA).
    """
    p, name, root = patient, patient.patient_id, Path(folder) / patient.patient_id
    study, frame, ct, pt = (make_uid(seed, name, part) for part in ("study", "frame", "CT", "PT"))
    subject = Subject(name, study, frame, p.study_date, p.weight_kg, p.size_m, p.sex)
    tracer = Tracer(p.dose_bq, _clock(SCAN_TIME_S - p.uptake_s), _clock(SCAN_TIME_S))
    factor = p.dose_bq * 0.5 ** (p.uptake_s / tracer.half_life_s) / (p.weight_kg * 1000)
    write_ct(p.ct, root / "CT", subject, ct, _clock(SCAN_TIME_S - 120))
    activity = Volume(p.pet_suv.array * np.float64(factor), p.pet_suv.affine, "Bq/ml")
    write_pet(activity, root / "PT", subject, pt, tracer)


def write_phantom(
    folder: Path,
    patients: int,
    seed: int,
    settings: PhantomSettings = DEFAULTS,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Path:
    """Write patients 0 … patients − 1 and, last and atomically, truth.json. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for index in progress(range(patients)) if progress else range(patients):
        patient = make_patient(seed, index, settings)
        write_patient(patient, folder, seed)
        truth[patient.patient_id] = patient.truth
    write_json({"seed": seed, "patients": truth}, folder / "truth.json")
    return folder


def _grid(pixel: float, size: int, slice_mm: float, extent: float, bottom: float, shift: float) -> tuple:
    """Affine of a grid from `bottom` (z) upwards, its middle at `shift` (x, y), and its voxel centres x, y, z; mm."""
    first = shift - (size - 1) * pixel / 2
    affine = axial_affine((pixel, pixel, slice_mm), np.array([first, first, bottom + slice_mm / 2]))
    counts = (size, size, round(extent / slice_mm))
    return affine, [affine[a, 3] + affine[a, a] * np.arange(n) for a, n in enumerate(counts)]


def _canvas(rng: np.random.Generator, axes_mm: list, centre: np.ndarray, scale: np.ndarray) -> Canvas:
    axes = tuple(((a - o) * k).astype(np.float32) for a, o, k in zip(axes_mm, centre, scale, strict=True))
    shape = tuple(len(a) for a in axes[::-1])
    return Canvas(np.zeros(shape, np.uint8), axes, scale, _smooth_noise(rng, axes_mm, 9.0))


def _lookup(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict]:
    """HU and SUV by label, each (256,), with this patient's own SUV; and both by name for the truth."""
    hu, suv = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for name, (organ_hu, organ_suv, _, spread) in ORGANS.items():
        hu[LABEL[name]] = organ_hu
        suv[LABEL[name]] = round(organ_suv * (1 + spread * np.clip(rng.normal(), -2, 2)), 3)
    suv[LABEL["myocardium"]] = round(np.exp(rng.uniform(np.log(1.5), np.log(6))), 3)
    return hu, suv, {n: {"hu": float(hu[i]), "suv": round(float(suv[i]), 3)} for n, i in LABEL.items()}


def _image_ct(c: Canvas, hu: np.ndarray, rng: np.random.Generator, s: PhantomSettings) -> np.ndarray:
    """HU of the labels with texture, denser lung at the back, then noise and blur by one kernel; (z, y, x) float32."""
    spread = np.zeros(256, np.float32)
    spread[: len(ORGANS)] = [row[2] for row in ORGANS.values()]
    image = hu[c.labels] + spread[c.labels] * c.texture
    image += (c.labels == LABEL["lung"]) * (0.45 * c.axes[1][:, None])  # HU per mm: gravity, supine
    kernel = ndimage.gaussian_filter1d(np.eye(1, 9, 4)[0], s.ct_blur_voxels)
    gain = s.ct_noise_hu / np.sum(kernel**2)  # what the blur takes from white noise: √Σk² an axis
    image += np.float32(gain) * rng.standard_normal(image.shape, np.float32)
    for axis in (1, 2):
        image = ndimage.gaussian_filter1d(image, s.ct_blur_voxels, axis=axis, truncate=3.0)
    return np.maximum(image, -1024.0, out=image)


def _image_pet(
    c: Canvas, suv: np.ndarray, rng: np.random.Generator, ct_mm: list, pet_mm: list, s: PhantomSettings
) -> np.ndarray:
    """SUV as measured, (z, y, x) float32: point spread and resampling by a matrix an axis, breathing, noise ∝ √SUV."""
    source = suv[c.labels]
    source += (c.labels == LABEL["lung"]) * (0.0015 * suv[LABEL["lung"]] * c.axes[1][:, None])  # as the lung's density
    nominal_z = np.interp(pet_mm[2], ct_mm[2], c.axes[2])
    move = s.breathing_mm * (1 - smooth_step(nominal_z, -40, 60))  # full at the diaphragm, none at the apex
    mz = sum(_weights(pet_mm[2] - phase * move, ct_mm[2], s.pet_fwhm_mm) for phase in (0.0, 0.5, 1.0))
    mz /= mz.sum(axis=1, keepdims=True)  # the body goes on beyond the first and last slice
    mx, my = (_weights(pet_mm[a], ct_mm[a], s.pet_fwhm_mm) for a in (0, 1))
    clean = _separable(source, mz, my, mx)
    sigma = s.pet_noise * np.sqrt(np.maximum(clean, 0) * ORGANS["liver"][1])
    return np.maximum(clean + sigma * _smooth_noise(rng, pet_mm, s.pet_noise_fwhm_mm / 1.7), 0).astype(np.float32)


def _weights(to_mm: np.ndarray, from_mm: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Gaussian weights (to, from) of integral 1, so that beyond the samples there is 0."""
    sigma = fwhm_mm / 2.3548
    rows = np.exp(-0.5 * ((to_mm[:, None] - from_mm) / sigma) ** 2)
    return (rows * (from_mm[1] - from_mm[0]) / (sigma * np.sqrt(2 * np.pi))).astype(np.float32)


def _separable(image: np.ndarray, mz: np.ndarray, my: np.ndarray, mx: np.ndarray) -> np.ndarray:
    """Apply one matrix (to, from) to each axis of (z, y, x)."""
    return np.tensordot(mz, np.matmul(my, image @ mx.T), axes=1)


def _smooth_noise(rng: np.random.Generator, axes_mm: list, step_mm: float) -> np.ndarray:
    """Noise of variance 1, correlated with a FWHM of about 1.7 × step_mm, on the grid of axes x, y, z; (z, y, x)."""
    matrices = []
    for axis in axes_mm:
        nodes = np.arange(axis[0] - 2 * step_mm, axis[-1] + 3 * step_mm, step_mm)
        rows = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.72 * step_mm)) ** 2)
        matrices.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    coarse = rng.standard_normal([m.shape[1] for m in matrices[::-1]], np.float32)
    return _separable(coarse, *matrices[::-1])


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"
