"""The thorax phantom: seeded CT and PET of one patient after another, with the truth, written as DICOM.

A person's shapes (`person`, `anatomy`, `skeleton`, `vessels`, `lesions`, `benign_uptake`) are painted as labels on the
CT grid at the moment of the breath that the CT shows; labels become HU and SUV (`tissues`, `voxel_values`); a CT and a
PET scanner image these (`scanner`), and the images are written as three vendors' scanners write them
(`vendor_headers`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np

from petct_lib import InputError
from petct_lib.common.files import write_json
from petct_lib.common.parallel import parallel_map
from petct_lib.dicom.studies import Pair, load_pair
from petct_lib.dicom.writer import Subject, Tracer, make_uid
from petct_lib.imaging.nifti import read_nifti
from petct_lib.imaging.volume import Volume, axial_affine, resample
from petct_lib.phantom import benign_uptake, lesions
from petct_lib.phantom.person import Person, draw_person
from petct_lib.phantom.reference_values import organ_means
from petct_lib.phantom.scanner import CtScanner, PetScanner, image_ct, image_pet
from petct_lib.phantom.shapes import Canvas, smooth_step
from petct_lib.phantom.tissues import FIRST_LESION, LABEL, LUNG
from petct_lib.phantom.truth import write_nifti, write_seg
from petct_lib.phantom.vendor_headers import VARIANTS, format_time, write_study_ct, write_study_pet
from petct_lib.phantom.voxel_values import draw_values, paint_values

SCAN_TIME_S = 11 * 3600  # PET at 11:00; the CT is two minutes earlier
DIFFICULTIES = ("easy", "realistic")
BREATH = np.cos(np.pi * (np.arange(4) + 0.5) / 8) ** 4  # inspiration at four equal times (Lujan 1999, Med Phys 26:715)


@dataclass(frozen=True)
class PhantomSettings:
    """Grids, patients and imaging; the defaults are a clinical PET/CT's. InputError for an unknown difficulty."""

    difficulty: str = "realistic"  # "easy": few and hot solid lesions, no benign uptake, little noise and breathing
    ct_pixel_mm: float = 0.977  # a 500 mm field at 512
    ct_size: int = 512
    ct_slice_mm: float = 3.0  # common for attenuation CT
    pet_pixel_mm: float = 4.07  # Siemens Biograph's 168 matrix
    pet_size: int = 168
    pet_slice_mm: float = 4.0
    extent_mm: float = 300.0  # from the shoulders to the kidneys
    breathing_mm: float = 11.0  # way of the diaphragm: lower lobes 12 ± 2 mm (Seppenwoolde 2002); 0 turns it off
    couch: bool = True  # every CT has one; PET sees it only as attenuation
    follow_ups: float = 0.25  # share of patients with a second study
    ct: CtScanner = field(default_factory=CtScanner)
    pet: PetScanner = field(default_factory=PetScanner)

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise InputError(f"difficulty {self.difficulty!r} is unknown: it is one of {', '.join(DIFFICULTIES)}")


def phantom_settings(difficulty: str = "realistic", **changes: object) -> PhantomSettings:
    """The settings of a difficulty; changes: fields of PhantomSettings. Raises InputError for an unknown difficulty."""
    if difficulty != "easy":
        return PhantomSettings(difficulty, **changes)
    calm = {
        "breathing_mm": 4.0,
        "follow_ups": 0.0,
        "ct": CtScanner(dose=4.0),
        "pet": PetScanner(counts=4 * PetScanner().counts),
    }
    return PhantomSettings(difficulty, **{**calm, **changes})


DEFAULTS = PhantomSettings()


@dataclass(frozen=True)
class Patient:
    """One study of one patient: the images as measured, the truth before imaging on the CT's grid, and the header.

    ct, hu: HU. pet_suv, suv: SUV by body weight. labels: uint8, see `truth`, which is what truth.json says.
    """

    patient_id: str
    visit: int
    ct: Volume
    pet_suv: Volume
    labels: Volume
    hu: Volume
    suv: Volume
    truth: dict
    weight_kg: float
    size_m: float
    sex: str
    uptake_s: int
    dose_bq: float
    study_date: str  # YYYYMMDD
    variant: str  # whose headers the DICOM files have, see `vendor_headers.VARIANTS`


def make_patient(seed: int, index: int, settings: PhantomSettings = DEFAULTS, visit: int = 0) -> Patient:
    """Study number `visit` (0 or 1) of patient number `index` of a seed: the same numbers give the same bits."""
    person = draw_person(np.random.default_rng([seed, index]), settings.difficulty, settings.breathing_mm)
    return _study(person, np.random.default_rng([seed, index, 1 + visit]), seed, index, settings, visit)


def has_follow_up(seed: int, index: int, settings: PhantomSettings = DEFAULTS) -> bool:
    """Whether a patient has a second study."""
    return bool(np.random.default_rng([seed, index, 99]).random() < settings.follow_ups)


def _study(person: Person, rng: np.random.Generator, seed: int, index: int, s: PhantomSettings, visit: int) -> Patient:
    response, plan = lesions.follow_up(rng, person.lesions) if visit else (None, person.lesions)
    centre = np.array([rng.uniform(-6, 6), rng.uniform(-30, -22), rng.uniform(-900, -500)])
    breath = rng.uniform(-0.5, 0.3)  # of the CT: mostly taken near expiration
    ct_affine, ct_mm = _grid(s.ct_pixel_mm, s.ct_size, s.ct_slice_mm, s.extent_mm, centre[2], 0.0)
    pet_affine, pet_mm = _grid(s.pet_pixel_mm, s.pet_size, s.pet_slice_mm, s.extent_mm, centre[2], 2.0)
    canvas = _canvas(person, ct_mm, centre, breath)
    hot = benign_uptake.draw_benign_plan(rng, person.anatomy) if s.difficulty != "easy" else []
    values = draw_values(rng, person, plan, hot)
    hu, suv, moving = paint_values(rng, person, canvas, values, plan, hot, s.couch)
    nominal_z = (pet_mm[2] - centre[2]) * person.scale[2]
    shifts = person.amplitude_mm * (breath - (BREATH[:, None] - 0.5)) * _reach(nominal_z)
    ct = image_ct(hu, ct_mm, rng, s.ct)
    pet = image_pet(suv, hu, moving, ct_mm, pet_mm, shifts, rng, s.pet)
    truth = _truth(person, canvas, centre, values, plan, hot, breath)
    if visit:
        truth = {"response": response, **truth}
    uptake_s = round(np.clip(rng.normal(3600, 480), 2400, 5400))
    day = person.first_date + timedelta(days=visit * int(rng.integers(49, 120)))
    volumes = Volume(ct, ct_affine, "HU"), Volume(pet, pet_affine, "SUV"), Volume(canvas.labels, ct_affine, "1")
    kg = round(person.weight_kg * rng.uniform(0.94, 1.02) if visit else person.weight_kg, 1)
    return Patient(
        f"PHANTOM-{index:04d}", visit, *volumes, Volume(hu, ct_affine, "HU"), Volume(suv, ct_affine, "SUV"), truth,
        kg, person.size_m, person.build.sex, uptake_s, float(round(kg * 4e6 * rng.uniform(0.85, 1.15))),
        f"{day:%Y%m%d}", _variant(seed, index),
    )  # fmt: skip


def _variant(seed: int, index: int) -> str:
    """Whose headers: at random, but any eight patients in a row have all eight."""
    order = np.random.default_rng([seed, 2**31]).permutation(len(VARIANTS))
    return VARIANTS[order[index % len(VARIANTS)]]


def write_patient(p: Patient, folder: Path, seed: int) -> dict:
    """One study: <folder>/<patient_id>[-follow-up]/CT, /PT and /SEG, and <folder>/truth/…nii.gz; returns its truth.

    The labels, and HU and SUV before imaging, are the CT's size and lie in its space.
    """
    name = p.patient_id + "-follow-up" * p.visit
    root, volumes = Path(folder) / name, Path(folder) / "truth"
    study, frame, ct, pt = (make_uid(seed, name, part) for part in ("study", "frame", "CT", "PT"))
    subject = Subject(p.patient_id, study, frame, p.study_date, p.weight_kg, p.size_m, p.sex)
    tracer = Tracer(p.dose_bq, format_time(SCAN_TIME_S - p.uptake_s), format_time(SCAN_TIME_S))
    ct_files = write_study_ct(p.ct, root / "CT", subject, ct, format_time(SCAN_TIME_S - 120), p.variant)
    write_study_pet(p.pet_suv, root / "PT", subject, pt, tracer, p.variant)
    segments = [("lung", tuple(LABEL[n] for n in LUNG), "lung")]
    segments += [(f"lesion {n + 1}", tuple(one["labels"]), "lesion") for n, one in enumerate(p.truth["lesions"])]
    write_seg(p.labels, segments, ct_files, root / "SEG" / "0001.dcm", f"{seed}|{name}")
    for kind, volume in (("labels", p.labels), ("hu", p.hu), ("suv", p.suv)):
        write_nifti(volume, volumes / f"{name}.{kind}.nii.gz")
    return {"study_date": p.study_date, "headers": p.variant, "volumes": f"truth/{name}.*.nii.gz", **p.truth}


def write_phantom(
    folder: Path,
    patients: int,
    seed: int,
    settings: PhantomSettings = DEFAULTS,
    progress: Callable = iter,
    jobs: int | None = None,
) -> Path:
    """Write patients 0 … patients − 1, several at a time, and, last and atomically, truth.json. Returns the folder.

    A follow-up is a study of its own under the same PatientID; truth.json has it as "follow_up" of its patient.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    visits = [(i, v) for i in range(patients) for v in range(1 + has_follow_up(seed, i, settings))]
    work = partial(_write_one, folder=folder, seed=seed, settings=settings)
    truth = {}
    for (index, visit), one in zip(visits, parallel_map(work, visits, jobs=jobs, progress=progress), strict=True):
        if visit:
            truth[f"PHANTOM-{index:04d}"]["follow_up"] = one
        else:
            truth[f"PHANTOM-{index:04d}"] = one
    write_json({"seed": seed, "difficulty": settings.difficulty, "patients": truth}, folder / "truth.json")
    return folder


def measure_organs(pair: Pair, folder: Path) -> dict[str, tuple[float, float, float]]:
    """`organ_means` of a study that `write_phantom` wrote to `folder`, as it is read back from DICOM."""
    study = load_pair(pair)
    return organ_means(_study_labels(pair, folder), study.ct, study.pet)


def slice_through_largest_lesion(pairs: list[Pair], folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One axial slice of the first study with a lesion: HU, SUV and labels (H, W) on the CT's grid.

    pairs: of what `write_phantom` wrote to `folder`. Without any lesion it is a middle slice.
    """
    for pair in pairs:
        labels = _study_labels(pair, folder)
        area = (labels.array >= FIRST_LESION).sum(axis=(1, 2))
        if area.any():
            break
    k = int(area.argmax()) if area.any() else len(area) // 2
    study = load_pair(pair)
    pet = resample(study.pet, labels.grid, 0.0)
    return study.ct.array[k], pet.array[k], labels.array[k]


def _study_labels(pair: Pair, folder: Path) -> Volume:
    name = pair.ct.images[0].file.path.parent.parent.name
    labels = read_nifti(Path(folder) / "truth" / f"{name}.labels.nii.gz", "1")
    return Volume(labels.array.astype(np.uint8), labels.affine, labels.unit)


def _write_one(which: tuple[int, int], folder: Path, seed: int, settings: PhantomSettings) -> dict:
    index, visit = which
    return write_patient(make_patient(seed, index, settings, visit), folder, seed)


# Geometry.


def _grid(pixel: float, size: int, slice_mm: float, extent: float, centre_z: float, shift: float) -> tuple:
    """Affine of a grid around the nominal origin's height, its middle at `shift` (x, y), and its voxel centres; mm."""
    first = shift - (size - 1) * pixel / 2
    affine = axial_affine((pixel, pixel, slice_mm), np.array([first, first, centre_z - 0.55 * extent + slice_mm / 2]))
    counts = (size, size, round(extent / slice_mm))
    return affine, [affine[a, 3] + affine[a, a] * np.arange(n) for a, n in enumerate(counts)]


def _reach(nominal_z: np.ndarray) -> np.ndarray:
    """How much of the diaphragm's way a height makes: all at its domes, none at the apex.

    Source: Seppenwoolde 2002, Int J Radiat Oncol Biol Phys 53:822.
    """
    return 1 - smooth_step(nominal_z, -50, 80)


def _canvas(person: Person, ct_mm: list, centre: np.ndarray, breath: float) -> Canvas:
    axes = tuple(((a - o) * k).astype(np.float32) for a, o, k in zip(ct_mm, centre, person.scale, strict=True))
    way = person.amplitude_mm * person.scale[2] * breath * _reach(axes[2])
    return Canvas(
        np.zeros([len(a) for a in axes[::-1]], np.uint8), axes, (axes[2] + way).astype(np.float32), person.scale
    )


# Truth.


def _truth(
    person: Person, canvas: Canvas, centre: np.ndarray, values: tuple, plan: list, hot: list, breath: float
) -> dict:
    """What truth.json says: lesions, benign uptake and organs with HU, SUV and volume before imaging; breathing."""
    ml = np.bincount(canvas.labels.ravel(), minlength=256) * _voxel_ml(canvas)
    hu, suv = values
    organs = {
        name: {
            "label": i,
            "hu": round(float(hu[i]), 1),
            "suv": round(float(suv[i]), 3),
            "volume_ml": round(float(ml[i]), 2),
        }
        for name, i in LABEL.items()
        if ml[i]
    }
    rows = []
    for one in plan:
        row = {k: v for k, v in asdict(one).items() if k not in ("label", "centre", "shape_seed")}
        labels = [one.label, one.label + 1] if one.core else [one.label]
        volume = round(float(ml[labels].sum()), 3)
        z = np.interp(one.centre[2], canvas.inner_z, canvas.axes[2])
        place = np.array([*one.centre[:2], z]) / person.scale + centre
        rows.append({"centre_mm": [round(float(v), 2) for v in place], "volume_ml": volume, "labels": labels, **row})
    uptake = [{"what": u.what, "suv": u.suv, "volume_ml": organs.get(u.what, {}).get("volume_ml", 0.0)} for u in hot]
    breathing = {"amplitude_mm": round(person.amplitude_mm, 2), "ct_phase": round(float(breath + 0.5), 3)}
    build = asdict(person.build) | {"fat_mm": round(person.build.fat_mm, 1), "muscle": round(person.build.muscle, 2)}
    return {"lesions": rows, "benign_uptake": uptake, "organs": organs, "breathing": breathing, "build": build}


def _voxel_ml(c: Canvas) -> float:
    return float(np.prod([(a[1] - a[0]) / k for a, k in zip(c.axes, c.scale, strict=True)])) / 1000
