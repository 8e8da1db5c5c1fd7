"""A DICOM folder, zip or folder of zips → studies of PET (SUV) and CT (HU), with reasons for what is left out."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset

from petct_lib import WARNING, InputError
from petct_lib.common.parallel import parallel_map, run_isolated
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.geometry import geometry, length_mm, share_covered
from petct_lib.dicom.headers import Image, LeftOut, Series, read_series
from petct_lib.dicom.pixels import may_crash, read_stored
from petct_lib.dicom.seg import choose_versions
from petct_lib.dicom.suv import SuvFactor, suv_factor
from petct_lib.imaging.volume import AIR_HU, Volume, overlap_mm

MAX_VOLUME_BYTES = 8 * 1024**3  # one series as float32; a whole body at 512×512 and 1 mm is 2 GiB
NOT_DICOM = "not DICOM"  # the reason for a file that does not begin as DICOM does
SLICE_SUFFIXES = {"", ".dcm", ".dicom", ".ima", ".img"}  # and numbers, as the last part of a UID
MANY_FILES = 3  # of one kind in one folder: one row for all
MASKS = ("SEG", "RTSTRUCT")  # modalities of series that hold regions, not images
NOT_AXIAL = {"LOCALIZER", "MIP", "PROJECTION IMAGE", "SCREEN SAVE"}


@dataclass(frozen=True)
class Pair:
    """A PET and a CT series of one study and one frame of reference. `id` and `patient` are pseudonyms."""

    id: str
    patient: str
    pet: Series
    ct: Series
    suv: SuvFactor
    chosen: str  # out of how many series, and why these
    segments: tuple[Series, ...] = ()  # SEG and RTSTRUCT series of the same study and frame of reference


class Pairing(NamedTuple):
    """The PET/CT pairs of an input, and what was left out.

    Whoever knows the salt can find a patient's pseudonym: see `pseudonym`.
    """

    pairs: list[Pair]
    left_out: list[LeftOut]
    salt: str


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
    chosen: str
    kvp: float | None  # the tube voltage of the CT; None: the header does not say

    def row(self) -> dict:
        """What `ingest` reports of a usable study: JSON-able, no identifying value."""
        low, high = overlap_mm([self.pet, self.ct])
        pet_low, pet_high = overlap_mm([self.pet])
        return {
            "id": self.id, "patient": self.patient, "vendor": self.vendor,
            "pet": {**_grid_row(self.pet), "units": self.units},
            "ct": {**_grid_row(self.ct), "units": "HU", "kvp": self.kvp},
            "overlap_mm": (high - low).round(1).tolist(),
            "pet_length_in_ct": round(float((high - low)[2] / (pet_high - pet_low)[2]), 3),
            "suv_factor": self.suv.factor, "suv_rule": self.suv.rule, "chosen": self.chosen,
        }  # fmt: skip


def _grid_row(volume: Volume) -> dict:
    return {
        "size": volume.size.tolist(),
        "spacing_mm": volume.spacing_mm.round(4).tolist(),
        "extent_mm": (volume.size * volume.spacing_mm).round(1).tolist(),
    }


def find_pairs(path: Path, progress: Callable = iter, *, suv_kind: str = "bw") -> Pairing:
    """PET/CT pairs in `path`, by patient and date, what was left out, and the salt of the pseudonyms. Headers only.

    A PET is paired with a CT of the same study and frame of reference. Of several PETs the longest that is attenuation
    corrected is taken, of several CTs the one that covers most of the PET. suv_kind: a name of `suv.KINDS`. The salt is
    made from all series UIDs, so that the same data gives the same pseudonyms. Raises InputError where nothing is
    there, or nothing is DICOM.
    """
    refs = list_files(path)
    all_series, left_out = read_series(progress(refs))
    if not all_series:
        raise InputError(f"{path}: no readable DICOM in {len(refs)} files; {count_reasons(left_out)}")
    left_out = _together(left_out)
    salt = hashlib.sha256("|".join(sorted(s.uid for s in all_series)).encode()).hexdigest()
    pairs, studies = [], Counter()
    for patient_id, members in _by_study(all_series):
        patient = pseudonym(patient_id, salt)
        studies[patient] += 1
        pair, rest = _best_pair(members, patient, f"{patient}-{studies[patient]}", suv_kind)
        pairs.extend([pair] if pair else [])
        left_out.extend(LeftOut(f"{patient}: {s.label}", reason, s.where) for s, reason in rest)
    return Pairing(pairs, left_out, salt)


def pseudonym(patient_id: str, salt: str) -> str:
    """A name that stands for a patient: the first 8 hex digits of SHA-256 over salt and ID.

    Who has only the pseudonyms cannot try IDs; who has the salt too (it lies in the run folder) can find a patient.
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


def count_reasons(left_out: list[LeftOut]) -> str:
    """The three commonest reasons, with how often each was given."""
    common = Counter(item.reason for item in left_out).most_common(3)
    return "; ".join(f"{count} × {reason}" for reason, count in common)


def _together(left_out: list[LeftOut]) -> list[LeftOut]:
    """Many files of one folder and one ending that never were DICOM in one row: "60 files (truth/*.nii.gz)".

    Endings that slices have keep a row each, because such a file may be a damaged slice.
    """
    groups = defaultdict(list)
    for item in left_out:
        folder, name = re.fullmatch(r"(.*[/:\\])?(.*)", item.where, re.DOTALL).groups()
        suffix = Path(name.lower()).suffix
        plain = item.reason == NOT_DICOM and suffix not in SLICE_SUFFIXES and not suffix[1:].isdigit()
        ending = "".join(Path(name.lower()).suffixes[-2:]) if suffix == ".gz" else suffix
        groups[f"{folder or ''}*{ending}" if plain else id(item)].append(item)
    rows = []
    for shown, items in groups.items():
        many = [LeftOut(f"{len(items)} files", items[0].reason, str(shown))]
        rows.extend(many if len(items) >= MANY_FILES else items)
    return rows


def remove_localizers(series: Series) -> tuple[Series, list[tuple[Series, str]]]:
    """A series less the localizers among its slices, and those with the reason."""
    plain = [image for image in series.images if not _kinds(image.header) & {"LOCALIZER"}]
    if not plain or len(plain) == len(series.images):
        return series, []
    scouts = [image for image in series.images if _kinds(image.header) & {"LOCALIZER"}]
    return Series(series.uid, plain), [(Series(series.uid, scouts), "localizers among the slices of a series")]


def _kinds(header: Dataset) -> set[str]:
    values = header.get("ImageType") or []
    return {str(v).strip().upper() for v in ([values] if isinstance(values, str) else values)}


def explain_unusable(series: Series) -> str | None:
    """Why a series can be neither PET nor CT of a pair, or None."""
    if series.modality not in ("PT", "CT"):
        return f"modality {series.modality} is not used"
    kinds = _kinds(series.headers[0]) & NOT_AXIAL
    if kinds:
        return f"not an axial image: ImageType holds {', '.join(sorted(kinds))}"
    if WARNING in str(series.get("DerivationDescription")):
        return "a synthetic series that petct_lib made: it is nobody's scan"
    if not all(isinstance(h.get(keyword), int) for h in series.headers for keyword in ("Rows", "Columns")):
        return "it has files without an image (Rows or Columns is missing)"
    corrected = series.get("CorrectedImage", None)
    if series.modality == "PT" and corrected and "ATTN" not in corrected:
        return "PET is not attenuation corrected (CorrectedImage has no ATTN)"
    return None


def _best_pair(
    members: list[Series], patient: str, study_id: str, suv_kind: str
) -> tuple[Pair | None, list[tuple[Series, str]]]:
    """The pair of a study, or None, and every series that is not in it with the reason."""
    rest, usable = [], {"PT": [], "CT": []}
    for series, scouts in map(remove_localizers, members):
        rest.extend(scouts)
        reason = None if series.modality in MASKS else explain_unusable(series)
        if reason:
            rest.append((series, reason))
        elif series.modality not in MASKS:
            usable[series.modality].append(series)
    segments, chosen = [s for s in members if s.modality in MASKS], None
    for pet in sorted(usable["PT"], key=_rank):
        if chosen:
            rest.append((pet, _fault(pet) or f"another PET series of its study was chosen ({chosen.chosen})"))
            continue
        try:
            suv, ct = suv_factor(pet.headers, suv_kind), _partner(pet, usable["CT"])
        except InputError as error:
            rest.append((pet, str(error)))
            continue
        same = [s for s in segments if _in_same_frame(pet, s)]
        chosen = Pair(study_id, patient, pet, ct, suv, _choice(pet, ct, usable), tuple(choose_versions(same)))
    why = (
        f"another CT series of its study was chosen ({chosen.chosen})" if chosen else "no usable PET of the same study"
    )
    rest.extend((ct, _fault(ct) or why) for ct in usable["CT"] if not chosen or ct is not chosen.ct)
    why = "region masks of another frame of reference, or another version of those that are used"
    rest.extend((s, why) for s in segments if not chosen or s not in chosen.segments)
    return chosen, rest


def _in_same_frame(pet: Series, masks: Series) -> bool:
    """An RTSTRUCT need not say its frame at the top; `rtstruct.read_structures` checks that of each structure."""
    frame = masks.get("FrameOfReferenceUID")
    return frame == pet.get("FrameOfReferenceUID") or (masks.modality == "RTSTRUCT" and not frame)


def _rank(pet: Series) -> tuple:
    """Surely attenuation corrected before unknown, then the longest, then the one with most slices."""
    return "ATTN" not in (pet.get("CorrectedImage") or ()), -length_mm(pet.headers), -len(pet.images), pet.uid


def _fault(series: Series) -> str | None:
    try:
        geometry(series.headers)
    except InputError as error:
        return str(error)
    return None


def _choice(pet: Series, ct: Series, usable: dict[str, list[Series]]) -> str:
    covers = f"CT holds {max(share_covered(pet.headers, ct.headers), 0):.0%} of the PET's slices"
    if len(usable["PT"]) == len(usable["CT"]) == 1:
        return f"the only PET and CT; {covers}"
    length = f"{length_mm(pet.headers):.0f} mm long"
    return f"1 of {len(usable['PT'])} PET, {length}, and 1 of {len(usable['CT'])} CT; {covers}"


def _partner(pet: Series, cts: list[Series]) -> Series:
    """The CT in the PET's frame of reference that covers most of it; among equals, the one with most slices.

    Raises InputError where there is none, or where the PET's own slices make no stack.
    """
    frame = pet.get("FrameOfReferenceUID")
    same = [ct for ct in cts if frame and ct.get("FrameOfReferenceUID") == frame]
    if not same:
        raise InputError("no CT of the same study and frame of reference")
    covered = {ct.uid: round(share_covered(pet.headers, ct.headers), 1) for ct in same}
    return min(same, key=lambda ct: (-covered[ct.uid], -len(ct.images), ct.uid))


def load_pair(pair: Pair) -> Study:
    """Pixels of a pair as float32 SUV and HU. Raises InputError naming the series at fault, and the file in `where`."""
    ct = load_series(pair.ct, 1.0, "HU")
    np.maximum(ct.array, AIR_HU, out=ct.array)  # scanners pad with −2000 or −3024: there is nothing below air
    pet = load_series(pair.pet, pair.suv.factor, "SUV")
    study = Study(
        pair.id, pair.patient, pet, ct, pair.suv, str(pair.pet.get("Units")), str(pair.pet.get("Manufacturer")),
        str(pair.pet.get("FrameOfReferenceUID")), pair.chosen, tube_voltage(pair.ct),
    )  # fmt: skip
    try:
        overlap_mm([pet, ct])
    except ValueError as error:
        raise InputError(f"{pair.pet.label}: PET and CT share no space; {error}") from None
    return study


def tube_voltage(series: Series) -> float | None:
    """KVP of a CT series; None where the header has none, or no number."""
    try:
        return float(series.get("KVP", None))
    except (TypeError, ValueError):
        return None


def load_series(series: Series, factor: float, unit: str) -> Volume:
    """One series, sorted along its normal, each slice rescaled by its own slope and intercept, times `factor`.

    Raises InputError, which names the file in `where`; also where damaged data makes the decoder crash.
    """
    if not may_crash(series):
        return _load(series, factor, unit)
    result = run_isolated(partial(_load, factor=factor, unit=unit), series)
    if isinstance(result, InputError):
        raise InputError(str(result), result.where or series.where) from None
    return result


def _load(series: Series, factor: float, unit: str) -> Volume:
    try:
        order, affine = geometry(series.headers)
        images = [series.images[i] for i in order]
        array, work = None, None
        for k, stored in read_stored(images):
            if array is None:
                array, work = _empty(len(images), stored.shape), np.empty(stored.shape)
            if stored.shape != work.shape:
                raise InputError(f"slices of different sizes {work.shape} and {stored.shape}", images[k].file.shown)
            slope, intercept = _rescale(images[k], factor)
            np.multiply(stored, slope, out=work)
            work += intercept
            work *= factor
            array[k] = work
    except InputError as error:
        raise InputError(f"{series.label}: {error}", error.where) from None
    return Volume(array, affine, unit)


def _empty(slices: int, shape: tuple[int, int]) -> np.ndarray:
    size = 4 * slices * shape[0] * shape[1]
    if size > MAX_VOLUME_BYTES:
        raise InputError(f"a volume of {size / 1024**3:.0f} GiB: the limit is {MAX_VOLUME_BYTES / 1024**3:.0f}")
    return np.empty((slices, *shape), np.float32)


def _rescale(image: Image, factor: float) -> tuple[float, float]:
    """Slope and intercept. Raises InputError where one is missing, or gives values that float32 cannot hold."""
    numbers = []
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        try:
            numbers.append(float(image.header.get(keyword)))
        except (TypeError, ValueError):
            raise InputError(f"{keyword} is missing or not a number", image.file.shown) from None
    largest = (abs(numbers[0]) * 2.0**32 + abs(numbers[1])) * factor
    if not largest <= np.finfo(np.float32).max:
        raise InputError("RescaleSlope or RescaleIntercept gives values without bounds", image.file.shown)
    return numbers[0], numbers[1]


def ingest(path: Path, progress: Callable = iter, *, suv_kind: str = "bw", jobs: int | None = None) -> dict:
    """What is in `path`: {"studies": [...], "left_out": [{"what", "reason"}]}; every pixel is read once.

    jobs: processes; None: one a core. InputError where nothing is there, or nothing is DICOM.
    """
    pairs, left_out, _ = find_pairs(path, progress, suv_kind=suv_kind)
    rows = parallel_map(_row, pairs, jobs=jobs, progress=progress)
    for pair, row in zip(pairs, rows, strict=True):
        if isinstance(row, InputError):
            left_out.append(LeftOut(pair.id, str(row), row.where or pair.pet.where))
    studies = [row for row in rows if not isinstance(row, InputError)]
    return {"studies": studies, "left_out": [item.shown() for item in left_out]}


def _row(pair: Pair) -> dict:
    return load_pair(pair).row()
