"""A DICOM folder, zip or folder of zips → studies of PET (SUV) and CT (HU), with reasons for what is left out."""

import hashlib
import io
import os
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset

from petct_lib import InputError
from petct_lib.suv import GE_SCAN_TIME, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR, SuvFactor, suv_factor
from petct_lib.volume import Volume, overlap_mm

MAX_MEMBER_BYTES = 2 * 1024**3  # no slice is larger: a zip member that unpacks to more is refused
GAP_TOLERANCE = 0.05  # slice distances may differ by this share of the median
SHEAR_TOLERANCE_MM = 0.5  # slices may be off the stack's axis by this much; a tilted gantry is off by far more
HEADER_TAGS = [
    "SOPClassUID", "Modality", "ImageType", "PatientID", "PatientWeight", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "FrameOfReferenceUID", "Manufacturer", "SeriesDate", "SeriesTime", "AcquisitionDate",
    "AcquisitionTime", "StudyDate", "FrameReferenceTime", "ActualFrameDuration", "DecayCorrection", "CorrectedImage",
    "Units", "SUVType", "RadiopharmaceuticalInformationSequence", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    GE_SCAN_TIME, PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR,
]  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """Something in the input that is not used, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class FileRef:
    """A file on disk, or a member of a zip (never unpacked to disk, so that no path can leave its folder)."""

    path: Path
    name: str  # relative to what the user named
    member: str | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Folder and suffix, which the files of a series share; in a UID as the name, no suffix."""
        folder = f"{self.path}:{os.path.dirname(self.member)}" if self.member else str(self.path.parent)
        suffix = Path(self.member or self.path).suffix.lower()
        return folder, "" if suffix[1:].isdigit() else suffix

    def open(self) -> io.BytesIO | str:
        """What `pydicom.dcmread` takes. Raises InputError for a zip member that is too large."""
        if self.member is None:
            return str(self.path)
        archive = _archive(self.path, self.path.stat().st_mtime_ns)
        if archive.getinfo(self.member).file_size > MAX_MEMBER_BYTES:
            raise InputError(f"{self.name}: unpacks to more than {MAX_MEMBER_BYTES >> 30} GiB")
        return io.BytesIO(archive.read(self.member))


@lru_cache(maxsize=4)
def _archive(path: Path, _mtime: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class Series:
    """The files of one series with their headers (pixel data not read yet), in no particular order."""

    uid: str
    files: list[FileRef]
    headers: list[Dataset]

    @property
    def modality(self) -> str:
        return str(self.headers[0].get("Modality", ""))

    def get(self, keyword: str, default: object = "") -> object:
        return self.headers[0].get(keyword, default)


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
    source_files: int

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


def pseudonym(patient_id: str, salt: str) -> str:
    """A name that stands for a patient: the first 8 hex digits of SHA-256 over salt and ID."""
    return "p-" + hashlib.sha256(f"{salt}|{patient_id}".encode()).hexdigest()[:8]


def list_files(path: Path) -> list[FileRef]:
    """All files of a folder, a zip, or a folder with zips, sorted. Raises InputError where there are none."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    base = path.parent if path.is_file() else path
    refs = []
    for p in paths:
        name = str(p.relative_to(base))
        refs.extend(_members(p, name) if p.suffix.lower() == ".zip" else [FileRef(p, name)])
    if not refs:
        raise InputError(f"{path}: the folder is empty")
    return refs


def _members(path: Path, name: str) -> list[FileRef]:
    try:
        infos = _archive(path, path.stat().st_mtime_ns).infolist()
    except (zipfile.BadZipFile, OSError):
        return [FileRef(path, name)]  # reported later as not DICOM
    return [FileRef(path, f"{name}:{i.filename}", i.filename) for i in infos if not i.is_dir()]


def read_header(ref: FileRef) -> Dataset:
    """The header attributes that this module needs. Raises InputError where the file is not readable DICOM."""
    header = _read(ref, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    for tag in list(header.keys()):
        try:
            header[tag]  # pydicom decodes a value when it is asked for
        except Exception:  # whatever the decoder raises: a broken attribute counts as missing
            del header[tag]
    if not header.get("SeriesInstanceUID") or not header.get("Modality"):
        raise InputError("not DICOM, or without SeriesInstanceUID and Modality")
    return header


def _read(ref: FileRef, **options: object) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may identify a patient
        try:
            return pydicom.dcmread(ref.open(), force=True, **options)
        except InputError:
            raise
        except Exception as error:  # a stranger's file may break any part of the parser; it costs its series only
            raise InputError(f"cannot be read as DICOM ({type(error).__name__})") from None


def read_series(refs: Iterable[FileRef]) -> tuple[list[Series], list[LeftOut]]:
    """Headers of all files, grouped by series. A broken file costs the series that shares its place alone."""
    groups, left_out, places, broken = defaultdict(list), [], defaultdict(set), {}
    for ref in refs:
        try:
            header = read_header(ref)
        except InputError as error:
            left_out.append(LeftOut(ref.name, str(error)))
            if not ref.name.endswith("DICOMDIR"):  # an index of the files beside it
                broken[ref.place] = ref.name
            continue
        groups[str(header.SeriesInstanceUID)].append((ref, header))
        places[ref.place].add(str(header.SeriesInstanceUID))
    lost = {uid: broken[p] for p, uids in places.items() if p in broken and len(uids) == 1 for uid in uids}
    series = []
    for uid, members in groups.items():
        one = Series(uid, [m[0] for m in members], [m[1] for m in members])
        if uid in lost:
            left_out.append(LeftOut(_label(one), f"its folder holds an unreadable file: {lost[uid]}"))
        else:
            series.append(one)
    return series, left_out


def _label(series: Series, patient: str = "") -> str:
    """Names a series without identifying anyone: where its files lie, its modality and number."""
    place = os.path.dirname(series.files[0].name) or series.files[0].name
    owner = f"{patient}: " if patient else ""
    return f"{owner}{series.modality} series {series.get('SeriesNumber', '?')} in {place} ({len(series.files)} files)"


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


def find_pairs(path: Path, progress: Callable = iter) -> tuple[list[Pair], list[LeftOut], str]:
    """PET/CT pairs in `path`, what was left out, and the salt of the pseudonyms.

    A PET is paired with a CT of the same study and frame of reference; among several PETs the one with most slices is
    taken, among several CTs the one that covers most of the PET.
    The salt comes from the series UIDs, so that the same data gives the same pseudonyms, and only who has the data can
    make them. Raises InputError where nothing is there, nothing is DICOM, or no PET/CT pair can be used.
    """
    refs = list_files(path)
    all_series, left_out = read_series(progress(refs))
    if not all_series:
        raise InputError(f"{path}: no readable DICOM in {len(refs)} files; {_reasons(left_out)}")
    salt = hashlib.sha256("|".join(sorted(s.uid for s in all_series)).encode()).hexdigest()[:16]
    groups = defaultdict(lambda: {"PT": [], "CT": []})
    for series in all_series:
        reason = unusable(series)
        if reason:
            left_out.append(LeftOut(_label(series, pseudonym(patient_of(series), salt)), reason))
        else:
            key = (patient_of(series), str(series.get("StudyDate")), str(series.get("StudyInstanceUID")))
            groups[key][series.modality].append(series)
    pairs = _pair_up(groups, salt, left_out)
    if not pairs:
        raise InputError(f"{path}: no usable PET/CT pair; {_reasons(left_out)}")
    return pairs, left_out, salt


def patient_of(series: Series) -> str:
    """The patient's real ID (the study's UID where there is none): to group by, never to print."""
    return str(series.get("PatientID") or series.get("StudyInstanceUID"))


def _reasons(left_out: list[LeftOut]) -> str:
    common = Counter(item.reason for item in left_out).most_common(3)
    return "; ".join(f"{count} × {reason}" for reason, count in common)


def _pair_up(groups: dict, salt: str, left_out: list[LeftOut]) -> list[Pair]:
    pairs, studies = [], Counter()
    for (patient_id, _, _), found in sorted(groups.items()):
        patient = pseudonym(patient_id, salt)
        studies[patient] += 1
        pair, rest = _best_pair(found["PT"], found["CT"], patient, f"{patient}-{studies[patient]}")
        pairs.extend([pair] if pair else [])
        left_out.extend(LeftOut(_label(s, patient), reason) for s, reason in rest)
    return pairs


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
        str(pair.pet.get("FrameOfReferenceUID")), len(pair.pet.files) + len(pair.ct.files),
    )  # fmt: skip
    try:
        overlap_mm([pet, ct])
    except ValueError as error:
        raise InputError(f"{_label(pair.pet, pair.patient)}: PET and CT share no space; {error}") from None
    return study


def load_series(series: Series, factor: float, unit: str) -> Volume:
    """One series, sorted along its normal, each slice rescaled by its own slope and intercept, times `factor`."""
    try:
        order, affine = geometry(series.headers)
        slices = [_load_slice(series.files[i], series.headers[i], factor) for i in order]
    except InputError as error:
        raise InputError(f"{_label(series)}: {error}") from None
    if len({s.shape for s in slices}) > 1:
        raise InputError(f"{_label(series)}: slices of different sizes {sorted({s.shape for s in slices})}")
    return Volume(np.stack(slices), affine, unit)


def _load_slice(ref: FileRef, header: Dataset, factor: float) -> np.ndarray:
    ds = _read(ref)
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
    pairs, left_out, _ = find_pairs(path, progress)
    rows = []
    for pair in progress(pairs):
        try:
            rows.append(load_pair(pair).row())
        except InputError as error:
            left_out.append(LeftOut(pair.id, str(error)))
    return {"studies": rows, "left_out": [vars(item) for item in left_out]}
