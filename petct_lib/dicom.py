"""A DICOM folder, zip or folder of zips → studies of PET (SUV) and CT (HU), with reasons for what is left out."""

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from petct_lib import InputError
from petct_lib.dicom_files import FileRef, LeftOut, Series, list_files, read_dataset, read_series
from petct_lib.suv import SuvFactor, suv_factor
from petct_lib.volume import Volume, overlap_mm

GAP_TOLERANCE = 0.05  # slice distances may differ by this share of the median
SHEAR_TOLERANCE_MM = 0.5  # slices may be off the stack's axis by this much; a tilted gantry is off by far more


@dataclass(frozen=True)
class Pair:
    """A PET and a CT series of one study and one frame of reference. `id` and `patient` are pseudonyms."""

    id: str
    patient: str
    pet: Series
    ct: Series
    suv: SuvFactor


@dataclass(frozen=True)
class Study:
    """A pair with its pixels: PET in SUV, CT in HU, each on its own grid in one patient space."""

    id: str
    patient: str
    pet: Volume
    ct: Volume
    suv: SuvFactor
    units: str
    vendor: str
    frame_of_reference_uid: str

    def row(self) -> dict:
        """What `ingest` reports of a usable study: JSON-able, no identifying value."""
        low, high = overlap_mm([self.pet, self.ct])
        return {
            "id": self.id, "patient": self.patient, "vendor": self.vendor,
            "pet": {**_grid_row(self.pet), "units": self.units}, "ct": {**_grid_row(self.ct), "units": "HU"},
            "overlap_mm": (high - low).round(1).tolist(), "suv_factor": self.suv.factor, "suv_rule": self.suv.rule,
        }  # fmt: skip


def _grid_row(volume: Volume) -> dict:
    return {
        "size": volume.size.tolist(),
        "spacing_mm": volume.spacing_mm.round(4).tolist(),
        "extent_mm": (volume.size * volume.spacing_mm).round(1).tolist(),
    }


def unusable(series: Series) -> str | None:
    """Why a series can be neither PET nor CT of a pair, or None."""
    if series.modality not in ("PT", "CT"):
        return f"modality {series.modality} is not used"
    kinds = {str(k).upper() for k in (series.get("ImageType") or [])}
    if kinds & {"LOCALIZER", "MIP", "PROJECTION IMAGE", "SCREEN SAVE"}:
        return f"not an axial image: ImageType holds {', '.join(sorted(kinds))}"
    if any((h.get("NumberOfFrames") or 1) != 1 for h in series.headers):
        return "multi-frame files are not supported: convert them to one file a slice"
    if not all(isinstance(h.get(keyword), int) for h in series.headers for keyword in ("Rows", "Columns")):
        return "it has files without an image (Rows or Columns is missing)"
    corrected = series.get("CorrectedImage", None)
    if series.modality == "PT" and corrected and "ATTN" not in corrected:
        return "PET is not attenuation corrected (CorrectedImage has no ATTN)"
    return None


def find_pairs(path: Path, progress: Callable = iter) -> tuple[list[Pair], list[LeftOut]]:
    """PET/CT pairs in `path`, by patient and date, and what was left out.

    A PET is paired with a CT of the same study and frame of reference; among several PETs the one with most slices is
    taken, among several CTs the one that covers most of the PET. Raises InputError where nothing is there, or nothing
    is DICOM.
    """
    refs = list_files(path)
    all_series, left_out = read_series(progress(refs))
    if not all_series:
        raise InputError(f"{path}: no readable DICOM in {len(refs)} files; {reasons(left_out)}")
    salt = hashlib.sha256("|".join(sorted(s.uid for s in all_series)).encode()).hexdigest()
    pairs, studies = [], Counter()
    for patient_id, members in _by_study(all_series):
        patient = pseudonym(patient_id, salt)
        studies[patient] += 1
        usable = {"PT": [], "CT": []}
        for series in members:
            reason = unusable(series)
            if reason:
                left_out.append(LeftOut(f"{patient}: {series.label}", reason, series.where))
            else:
                usable[series.modality].append(series)
        pair, rest = _best_pair(usable["PT"], usable["CT"], patient, f"{patient}-{studies[patient]}")
        pairs.extend([pair] if pair else [])
        left_out.extend(LeftOut(f"{patient}: {s.label}", reason, s.where) for s, reason in rest)
    return pairs, left_out


def pseudonym(patient_id: str, salt: str) -> str:
    """A name that stands for a patient: the first 8 hex digits of SHA-256 over salt and ID.

    `find_pairs` makes the salt from all series UIDs of the input and stores it nowhere: the same data gives the same
    pseudonyms, and who has only the pseudonyms cannot try IDs.
    """
    return "p-" + hashlib.sha256(f"{salt}|{patient_id}".encode()).hexdigest()[:8]


def _by_study(all_series: list[Series]) -> list[tuple[str, list[Series]]]:
    """(patient's ID, series) of each study, sorted by patient and date. Only the study's UID makes a study."""
    groups = defaultdict(list)
    for series in all_series:
        groups[str(series.get("StudyInstanceUID"))].append(series)
    dated = [(study_patient(m), _first(m, "StudyDate"), uid, m) for uid, m in groups.items()]
    return [(patient, members) for patient, _, _, members in sorted(dated, key=lambda row: row[:3])]


def study_patient(members: list[Series]) -> str:
    """The real ID of a study's patient (the study's UID where no series has one): to group by, never to print."""
    return _first(members, "PatientID") or str(members[0].get("StudyInstanceUID"))


def _first(members: list[Series], keyword: str) -> str:
    return next((str(s.get(keyword)) for s in members if s.get(keyword)), "")


def reasons(left_out: list[LeftOut]) -> str:
    """The three commonest reasons, with how often each was given."""
    common = Counter(item.reason for item in left_out).most_common(3)
    return "; ".join(f"{count} × {reason}" for reason, count in common)


def _best_pair(pets: list[Series], cts: list[Series], patient: str, study_id: str) -> tuple[Pair | None, list]:
    rest, chosen = [], None
    for pet in sorted(pets, key=lambda s: (-len(s.files), s.uid)):
        if chosen:
            rest.append((pet, "another PET series of this study was chosen: it has at least as many slices"))
            continue
        try:
            chosen = Pair(study_id, patient, pet, _partner(pet, cts), suv_factor(pet.headers))
        except InputError as error:
            rest.append((pet, str(error)))
    for ct in cts:
        if not chosen or ct is not chosen.ct:
            why = "another CT series of this study was chosen" if chosen else "no usable PET of the same study"
            rest.append((ct, why))
    return chosen, rest


def _partner(pet: Series, cts: list[Series]) -> Series:
    """The CT in the PET's frame of reference that covers most of it; among equals, the one with most slices.

    Raises InputError where there is none, or where the PET's own slices make no stack.
    """
    frame = pet.get("FrameOfReferenceUID")
    same = [ct for ct in cts if frame and ct.get("FrameOfReferenceUID") == frame]
    if not same:
        raise InputError("no CT of the same study and frame of reference")
    normal = geometry(pet.headers)[1][:3, 2]
    return min(same, key=lambda ct: (-_covered(pet, ct, normal), -len(ct.files), ct.uid))


def _covered(pet: Series, ct: Series, normal: np.ndarray) -> float:
    """Share of the PET's slices between the CT's first and last, in tenths; −1 where the CT's slices make no stack.

    normal: (3,), as long as the PET's slice distance, mm.
    """
    try:
        geometry(ct.headers)
    except InputError:
        return -1.0
    at, ends = (np.array([h.ImagePositionPatient for h in s.headers], float) @ normal for s in (pet, ct))
    slack = normal @ normal  # one PET slice: the grids are offset
    return round(float(np.mean((at >= ends.min() - slack) & (at <= ends.max() + slack))), 1)


def load_pair(pair: Pair) -> Study:
    """Pixels of a pair as float32 SUV and HU. Raises InputError naming the file or the series at fault."""
    ct = load_series(pair.ct, 1.0, "HU")
    pet = load_series(pair.pet, pair.suv.factor, "SUV")
    study = Study(
        pair.id, pair.patient, pet, ct, pair.suv, str(pair.pet.get("Units")), str(pair.pet.get("Manufacturer")),
        str(pair.pet.get("FrameOfReferenceUID")),
    )  # fmt: skip
    try:
        overlap_mm([pet, ct])
    except ValueError as error:
        raise InputError(f"{pair.pet.label}: PET and CT share no space; {error}") from None
    return study


def load_series(series: Series, factor: float, unit: str) -> Volume:
    """One series, sorted along its normal, each slice rescaled by its own slope and intercept, times `factor`."""
    try:
        order, affine = geometry(series.headers)
        slices = [_load_slice(series.files[i], series.headers[i], factor) for i in order]
    except InputError as error:
        raise InputError(f"{series.label}: {error}") from None
    if len({s.shape for s in slices}) > 1:
        raise InputError(f"{series.label}: slices of different sizes {sorted({s.shape for s in slices})}")
    return Volume(np.stack(slices), affine, unit)


def _load_slice(ref: FileRef, header: Dataset, factor: float) -> np.ndarray:
    ds = read_dataset(ref)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stored = ds.pixel_array
        except Exception as error:  # missing, short or undecodable pixel data: whatever the decoder raises
            raise InputError(f"{ref.name}: pixel data cannot be decoded ({type(error).__name__})") from None
    if stored.ndim != 2:
        raise InputError(f"{ref.name}: one grey image is expected, not an array of shape {stored.shape}")
    slope, intercept = _number(header, "RescaleSlope", ref), _number(header, "RescaleIntercept", ref)
    return ((stored * slope + intercept) * factor).astype(np.float32)


def _number(header: Dataset, keyword: str, ref: FileRef) -> float:
    try:
        return float(header.get(keyword))
    except (TypeError, ValueError):
        raise InputError(f"{ref.name}: {keyword} is missing or not a number") from None


def geometry(headers: list[Dataset]) -> tuple[list[int], np.ndarray]:
    """Order of the slices along their normal, and the affine (4, 4) of the stack, from positions and cosines alone.

    Raises InputError for missing attributes, mixed orientations, duplicate positions, gaps and sheared stacks.
    Source: DICOM PS3.3 C.7.6.2.1.1.
    """
    cosines, positions, spacings = _placement(headers)
    if len(headers) < 2:
        raise InputError("a single slice has no spacing: at least 2 are needed")
    if np.abs(cosines - cosines[0]).max() > 1e-3:
        raise InputError("the slices have different orientations")
    if np.abs(spacings - spacings[0]).max() > 1e-3:
        raise InputError("the slices have different PixelSpacing")
    along_x, along_y = cosines[0, :3], cosines[0, 3:]
    normal = np.cross(along_x, along_y)
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    step = _even_step(depth[order])
    centred = positions[order] - positions[order[0]]
    if np.abs(centred - np.outer(centred @ normal, normal)).max() > SHEAR_TOLERANCE_MM:
        raise InputError("the slices are shifted against each other (tilted gantry?): the stack is not a box")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along_x * spacings[0, 1], along_y * spacings[0, 0], normal * step], axis=1)
    affine[:3, 3] = positions[order[0]]
    return order.tolist(), affine


def _placement(headers: list[Dataset]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction cosines (n, 6), positions (n, 3) and row and column spacing (n, 2) of the slices."""
    try:
        rows = [[*h.ImageOrientationPatient, *h.ImagePositionPatient, *h.PixelSpacing] for h in headers]
        table = np.array(rows, float)
    except (AttributeError, TypeError, ValueError):
        table = np.full((1, 11), np.nan)
    if table.shape[1] != 11 or not np.isfinite(table).all() or table[:, 9:].min() <= 0:
        raise InputError("ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing or broken")
    return table[:, :6], table[:, 6:9], table[:, 9:]


def _even_step(depth_mm: np.ndarray) -> float:
    steps = np.diff(depth_mm)
    step = float(np.median(steps))
    if steps.min() < 0.01:
        at = depth_mm[1:][steps < 0.01]
        raise InputError(f"{len(at)} duplicate slice positions, the first at {at[0]:.1f} mm")
    wide = np.abs(steps - step) > GAP_TOLERANCE * step
    if wide.any():
        places = ", ".join(f"{d:.1f}" for d in depth_mm[1:][wide][:5])
        raise InputError(f"{wide.sum()} gaps or uneven steps in z, before {places} mm; the usual step is {step:.2f} mm")
    return float(np.mean(steps))


def ingest(path: Path, progress: Callable = iter) -> dict:
    """What is in `path`: {"studies": [...], "left_out": [{"what", "reason"}]}; every pixel is read once.

    Raises InputError as `find_pairs` does.
    """
    pairs, left_out = find_pairs(path, progress)
    rows = []
    for pair in progress(pairs):
        try:
            rows.append(load_pair(pair).row())
        except InputError as error:
            left_out.append(LeftOut(pair.id, str(error), pair.pet.where))
    return {"studies": rows, "left_out": [item.shown() for item in left_out]}
