"""Small DICOM studies, how they are damaged, and what is read back from them."""

import random
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from petct_lib import InputError
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import Series, read_series
from petct_lib.dicom.studies import find_pairs, ingest, load_pair, load_series
from petct_lib.dicom.writer import Subject, Tracer, make_uid, write_ct, write_pet
from petct_lib.imaging.volume import Volume, axial_affine

MARKER = "ZQXMARKER"  # planted as the patient's name and ID: it may come out nowhere
AXIAL = (1, 0, 0, 0, 1, 0)


def affine_of(cosines: tuple, spacing_mm: tuple = (2.0, 3.0, 5.0), origin_mm: tuple = (-11.0, 7.0, -300.0)):
    x, y = np.array(cosines[:3], float), np.array(cosines[3:], float)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([x, y, np.cross(x, y)], axis=1) * spacing_mm
    affine[:3, 3] = origin_mm
    return affine


def ramp(points_mm: np.ndarray) -> np.ndarray:
    """A value linear in patient space, (..., 3) → (...)."""
    return 500.0 + np.asarray(points_mm) @ np.array([9.0, -7.0, 1.0])


def ramp_volume(affine: np.ndarray, unit: str = "HU", size: tuple = (6, 5, 4)) -> Volume:
    z, y, x = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    points = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    values = ramp(points) if unit == "HU" else np.abs(ramp(points))
    return Volume(values.astype(np.float32), affine, unit)


def subject(patient: str = "A", study: str = "1") -> Subject:
    return Subject(f"{MARKER}-{patient}", make_uid(patient, study), make_uid(patient, study, "frame"), "20190307", 70.0)


def add_ct(folder: Path, who: Subject, name: str = "ct", affine: np.ndarray | None = None, slices: int = 6) -> Path:
    affine = axial_affine((2, 3, 4), np.array([-6.0, -7.0, -100.0])) if affine is None else affine
    write_ct(ramp_volume(affine, size=(7, 6, slices)), folder, who, make_uid(who.study_uid, name))
    return folder


def add_pet(folder: Path, who: Subject, name: str = "pet", slices: int = 4) -> Path:
    """In Bq/ml; SUV = value × 70 000 g / 200 MBq, that is × 3.5e-4."""
    affine = axial_affine((4, 4, 5), np.array([-5.0, -6.0, -98.0]))
    tracer = Tracer(4e8, "090000", "100000", half_life_s=3600)
    write_pet(ramp_volume(affine, "Bq/ml", (4, 4, slices)), folder, who, make_uid(who.study_uid, name), tracer)
    return folder


def add_patient(root: Path, patient: str = "A", study: str = "1") -> Path:
    who, folder = subject(patient, study), root / f"{patient}{study}"
    add_ct(folder / "CT", who)
    add_pet(folder / "PT", who)
    return folder


def edit(folder: Path, **changes: object) -> None:
    """Sets attributes in every file of a folder; None removes one."""
    for path in folder.iterdir():
        edit_file(path, **changes)


def edit_file(path: Path, **changes: object) -> None:
    """Sets attributes in a file; None removes one."""
    ds = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.save_as(path)


def reasons(report: dict | str) -> str:
    return report if isinstance(report, str) else "; ".join(item["reason"] for item in report["left_out"])


def refusal(path: Path) -> str:
    """Why `ingest` finds nothing to use in a path; never with the patient's ID or name in it."""
    try:
        report = ingest(path)
        assert report["studies"] == []
        text = reasons(report)
    except InputError as error:
        text = str(error)
    assert MARKER not in text
    return text


def arrays(path: Path) -> list[np.ndarray]:
    studies = sorted((load_pair(p) for p in find_pairs(path)[0]), key=lambda s: s.id)
    return [v.array for s in studies for v in (s.pet, s.ct)]


def only_series(folder: Path) -> Series:
    [series], _ = read_series(list_files(folder))
    return series


# Broken input


def garble(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(3000))


def scribble(path: Path, tag: str | tuple[int, int], value: bytes) -> None:
    """Puts bytes into an attribute, unchecked."""
    ds, number = pydicom.dcmread(path), Tag(tag)
    vr = "UN" if number.is_private else dictionary_VR(number)
    ds[number] = RawDataElement(number, vr, len(value), value, 0, False, True)
    ds.save_as(path)


def centres_mm(size: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Voxel centres of a grid of `size` (x, y, z), (z, y, x, 3), mm."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    return np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def array_of(folder: Path) -> np.ndarray:
    """The HU of the one series in a folder."""
    return load_series(only_series(folder), 1.0, "HU").array
