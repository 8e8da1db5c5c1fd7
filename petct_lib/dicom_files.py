"""Files of a folder, a zip, or a folder of zips → DICOM series with their headers. Pixel data is not read here."""

import io
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom import Dataset

from petct_lib import InputError
from petct_lib.suv import GE_SCAN_TIME, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR

MAX_MEMBER_BYTES = 2 * 1024**3  # no slice is larger: a zip member that unpacks to more is refused
NOT_SLICES = {"DICOMDIR", "README", "LICENSE", "VERSION"}  # what lies, without a suffix, beside slices without one
HEADER_TAGS = [
    "SOPInstanceUID", "Modality", "ImageType", "PatientID", "PatientWeight", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "FrameOfReferenceUID", "Manufacturer", "SeriesDate", "SeriesTime", "AcquisitionDate",
    "AcquisitionTime", "StudyDate", "FrameReferenceTime", "ActualFrameDuration", "DecayCorrection", "CorrectedImage",
    "Units", "SUVType", "RadiopharmaceuticalInformationSequence", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    GE_SCAN_TIME, PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR,
]  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """Something in the input that is not used, and why. `where`, a folder, may name a patient: it is never stored."""

    what: str
    reason: str
    where: str = ""

    def shown(self) -> dict[str, str]:
        """For the person who owns the files: with the folder."""
        return {"what": f"{self.what} in {self.where}" if self.where else self.what, "reason": self.reason}

    def stored(self) -> dict[str, str]:
        """For files that may be passed on: without the folder."""
        return {"what": self.what, "reason": self.reason}


@dataclass(frozen=True)
class FileRef:
    """A file on disk, or a member of a zip (never unpacked to disk, so that no path can leave its folder)."""

    path: Path
    shown: str  # relative to what the user named
    member: str | None = None

    @property
    def name(self) -> str:
        """The last part, without folders."""
        return Path(self.member or self.path).name

    @property
    def where(self) -> str:
        """The folder, relative to what the user named."""
        return self.shown[: -len(self.name)].rstrip("/:")

    @property
    def place(self) -> tuple[str, str]:
        """Folder and suffix, which the files of a series share; in a UID as the name, no suffix."""
        suffix = Path(self.name).suffix.lower()
        return f"{self.path if self.member else self.path.parent}:{self.where}", "" if suffix[1:].isdigit() else suffix

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
        """Modality of the first header: PT, CT, or another."""
        return str(self.headers[0].get("Modality", ""))

    @property
    def where(self) -> str:
        """The folder of its first file, relative to what the user named."""
        return self.files[0].where

    @property
    def label(self) -> str:
        """Names the series without identifying anyone."""
        return f"{self.modality} series {self.get('SeriesNumber', '?')} ({len(self.files)} files)"

    def get(self, keyword: str, default: object = "") -> object:
        """An attribute of the first header."""
        return self.headers[0].get(keyword, default)


def list_files(path: Path) -> list[FileRef]:
    """All files of a folder, a zip, or a folder with zips, sorted; hidden ones (.DS_Store, ._x) do not count.

    Raises InputError where there are none.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    base = path.parent if path.is_file() else path
    refs = []
    for p in paths:
        shown = str(p.relative_to(base))
        refs.extend(_members(p, shown) if p.suffix.lower() == ".zip" else [FileRef(p, shown)])
    refs = [ref for ref in refs if not ref.name.startswith(".")]
    if not refs:
        raise InputError(f"{path}: the folder is empty")
    return refs


def _members(path: Path, shown: str) -> list[FileRef]:
    try:
        infos = _archive(path, path.stat().st_mtime_ns).infolist()
    except (zipfile.BadZipFile, OSError):
        return [FileRef(path, shown)]  # reported later as not DICOM
    return [FileRef(path, f"{shown}:{i.filename}", i.filename) for i in infos if not i.is_dir()]


def read_header(ref: FileRef) -> Dataset:
    """The header attributes that this package needs. Raises InputError where the file is not readable DICOM."""
    header = read_dataset(ref, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _drop_broken(header)
    if not header.get("SeriesInstanceUID") or not header.get("Modality"):
        raise InputError("not DICOM, or without SeriesInstanceUID and Modality")
    return header


def _drop_broken(header: Dataset) -> None:
    """Deletes what cannot be decoded, in sequences too: a broken attribute counts as missing."""
    for tag in list(header.keys()):
        try:
            element = header[tag]  # pydicom decodes a value when it is asked for
            for item in element.value if element.VR == "SQ" else ():
                _drop_broken(item)
        except Exception:  # whatever the decoder raises
            del header[tag]


def read_dataset(ref: FileRef, **options: object) -> Dataset:
    """`pydicom.dcmread`, silent. Raises InputError where it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may identify a patient
        try:
            return pydicom.dcmread(ref.open(), force=True, **options)
        except InputError:
            raise
        except Exception as error:  # a stranger's file may break any part of the parser; it costs its series only
            raise InputError(f"cannot be read as DICOM ({type(error).__name__})") from None


def read_series(refs: Iterable[FileRef]) -> tuple[list[Series], list[LeftOut]]:
    """Headers of all files, grouped by series. A broken file costs the series that shares its place alone.

    Copies of an image (the same SOPInstanceUID again) are left out.
    """
    groups, left_out, places, broken, seen = defaultdict(list), [], defaultdict(set), {}, set()
    for ref in refs:
        try:
            header = read_header(ref)
            image = str(header.get("SOPInstanceUID") or ref.shown)
            if image in seen:
                left_out.append(LeftOut(ref.name, "a copy of an image that is there already", ref.where))
                continue
        except InputError as error:
            left_out.append(LeftOut(ref.name, str(error), ref.where))
            if ref.name not in NOT_SLICES:
                broken[ref.place] = ref.name
            continue
        seen.add(image)
        groups[str(header.SeriesInstanceUID)].append((ref, header))
        places[ref.place].add(str(header.SeriesInstanceUID))
    lost = {uid: broken[p] for p, uids in places.items() if p in broken and len(uids) == 1 for uid in uids}
    series = [Series(uid, *map(list, zip(*members, strict=True))) for uid, members in groups.items()]
    for one in series:
        if one.uid in lost:
            reason = f"its folder holds an unreadable file: {lost[one.uid]}"
            left_out.append(LeftOut(one.label, reason, one.where))
    return [one for one in series if one.uid not in lost], left_out
