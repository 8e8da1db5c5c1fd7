"""DICOM files → series of images with their headers."""

import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.filereader import read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import FLOAT_VR, INT_VR, STR_VR, VR

from petct_lib import InputError
from petct_lib.dicom.archives import FileRef, explain_refusal, is_zip
from petct_lib.dicom.enhanced import FUNCTIONAL_GROUPS, frame_headers
from petct_lib.dicom.suv import GE_SCAN_TIME, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR, quote_code

DEFLATED = str(DeflatedExplicitVRLittleEndian)
HEAD_BYTES = 64 * 1024  # holds the header of nearly every slice; longer ones are read a second time
MAX_HEADER_BYTES = 64 * 1024**2  # a multi-frame header has some kB a frame
MAX_SEQUENCE_BYTES = 16 * 1024**2  # the functional groups of 5,000 frames
MAX_ITEMS = 200_000  # in all sequences within one; an enhanced image has some ten a frame
MAX_DEPTH = 16  # of sequences in sequences; enhanced images have three
MAX_READS = 1_000_000  # of the parser, some two for each attribute
MAX_INFLATED_BYTES = 512 * 1024**2  # a deflated file, unpacked: 1,000 slices of 512 × 512
STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # the first group of a file without preamble
NUMBER_VR = INT_VR | FLOAT_VR
ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
NOT_SLICES = {"DICOMDIR", "README", "LICENSE", "VERSION"}  # what lies, without a suffix, beside slices without one
PIXEL_TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
]  # fmt: skip
HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "PatientID", "PatientWeight", "PatientSize", "PatientSex",
    "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID", "KVP", "Manufacturer", "SeriesDate",
    "SeriesTime", "AcquisitionDate", "AcquisitionTime", "StudyDate", "TimezoneOffsetFromUTC", "FrameReferenceTime",
    "ActualFrameDuration", "DecayCorrection", "DecayCorrected", "DecayCorrectionDateTime", "CorrectedImage",
    "AttenuationCorrected", "Units", "SUVType", "RadiopharmaceuticalInformationSequence", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "DerivationDescription",
    "SeriesDescription", *FUNCTIONAL_GROUPS, *PIXEL_TAGS, GE_SCAN_TIME, PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR,
]  # fmt: skip
_TAGS = [Tag(name) for name in HEADER_TAGS]  # made once: pydicom would make them again for every file


@dataclass(frozen=True)
class LeftOut:
    """Something in the input that is not used, and why. `where`, folder or file, may name a patient: never stored."""

    what: str
    reason: str
    where: str = ""

    def shown(self) -> dict[str, str]:
        """For the person who owns the files: with folder and file."""
        return {"what": f"{self.what} ({self.where})" if self.where else self.what, "reason": self.reason}

    def stored(self) -> dict[str, str]:
        """For files that may be passed on: without."""
        return {"what": self.what, "reason": self.reason}


@dataclass(frozen=True)
class Image:
    """One slice: its header, and where its pixel data lies."""

    file: FileRef
    header: Dataset
    syntax: str  # the transfer syntax of the pixel data
    offset: int  # of the pixel data element in the file; in a deflated one, in its unpacked data set
    frame: int = 0  # in a multi-frame file


@dataclass(frozen=True)
class Series:
    """The images of one series (pixel data not read yet), in no particular order."""

    uid: str
    images: list[Image]

    @cached_property
    def headers(self) -> list[Dataset]:
        """Their headers."""
        return [image.header for image in self.images]

    @property
    def modality(self) -> str:
        """Modality of the first header: PT, CT, or another; "?" for what is no such code and may be anything."""
        return quote_code(str(self.get("Modality")))

    @property
    def where(self) -> str:
        """The folder of its first file, relative to what the user named."""
        return self.images[0].file.where

    @property
    def label(self) -> str:
        """Names the series without identifying anyone."""
        return f"{self.modality} series {self.get('SeriesNumber', '?')} ({len(self.images)} images)"

    def get(self, keyword: str, default: object = "") -> object:
        """An attribute of the first header."""
        return self.headers[0].get(keyword, default)


def read_images(ref: FileRef, memo: dict | None = None) -> list[Image]:
    """The images of a file: one, or one a frame. Raises InputError where the file is not readable DICOM.

    memo: decoded values shared between files (nearly all of a series' headers is the same in every slice).
    """
    if is_zip(ref):
        raise InputError(explain_refusal(ref))
    raw, offset, syntax = _read_header(ref)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _decode(raw, {} if memo is None else memo)
        if not header.get("SeriesInstanceUID") or not header.get("Modality"):
            raise InputError("not DICOM, or without SeriesInstanceUID and Modality")
        try:
            frames = frame_headers(header)
        except InputError:
            raise
        except Exception as error:  # values of a wrong kind in the functional groups
            raise InputError(f"its functional groups cannot be read ({type(error).__name__})") from None
    return [Image(ref, one, syntax, offset, k) for k, one in enumerate(frames)]


def _read_header(ref: FileRef) -> tuple[Dataset, int, str]:
    """The attributes of HEADER_TAGS, not decoded yet, the offset of the pixel data, and the transfer syntax."""
    try:
        head = ref.read(0, HEAD_BYTES)
        if DEFLATED.encode() in head[:1024]:
            return *_parse(inflate(ref.read())[:MAX_HEADER_BYTES]), DEFLATED
        try:
            raw, offset = _parse(head)
            complete = offset < len(head) or len(head) < HEAD_BYTES
        except InputError:
            raise
        except Exception:  # cut in the middle of a sequence, perhaps: more of the file decides
            complete = False
        if not complete:
            raw, offset = _parse(ref.read(0, MAX_HEADER_BYTES))
    except InputError:
        raise
    except Exception as error:  # a stranger's file may break any part of the parser; it costs its series only
        raise InputError(f"cannot be read as DICOM ({type(error).__name__})") from None
    return raw, offset, _syntax(raw)


def _parse(content: bytes) -> tuple[pydicom.FileDataset, int]:
    if content[128:132] != b"DICM" and content[:2] not in STARTS:
        raise InputError("not DICOM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may identify a patient
        file = _Metered(content)
        try:
            return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS), file.tell()
        except OSError:  # which pydicom makes of any error where it looks for an item
            file.check()
            raise


class _Metered(BytesIO):
    """Ends the work of the parser on what is no header: zeros without end, or a sequence of millions of items."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        """As BytesIO's. Raises InputError after MAX_READS calls."""
        self.reads += 1
        self.check()
        return super().read(size)

    def check(self) -> None:
        """InputError if there were more calls than any header needs."""
        if self.reads > MAX_READS:
            raise InputError("not DICOM, or with far more attributes than an image has")


def inflate(content: bytes) -> bytes:
    """The data set of a deflated file (PS3.5 A.5), which has explicit VR; without the meta information."""
    file = BytesIO(content)
    read_preamble(file, force=True)
    read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = inflate.decompress(content[file.tell() :], MAX_INFLATED_BYTES + 1)
    if len(unpacked) > MAX_INFLATED_BYTES:
        raise InputError(f"the deflated file is larger than {MAX_INFLATED_BYTES / 1024**3:g} GiB when unpacked")
    if not inflate.eof:
        raise zlib.error("cut short")
    return unpacked


def _syntax(raw: pydicom.FileDataset) -> str:
    """As the file says; for files without meta information, as they were read."""
    named = str(getattr(raw, "file_meta", {}).get("TransferSyntaxUID", ""))
    if named:
        return named
    implicit, little = raw.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _decode(dataset: Dataset, memo: dict, depth: int = 0) -> Dataset:
    """All values, in sequences too; one that cannot be decoded is left out: a broken attribute counts as missing."""
    if depth > MAX_DEPTH:
        raise ValueError
    elements = {}
    for tag, raw in dataset.items():
        try:
            elements[tag] = _element(raw, dataset, memo, depth)
        except Exception:  # whatever the decoder raises
            continue
    return Dataset(elements)


def _element(raw: RawDataElement | DataElement, dataset: Dataset, memo: dict, depth: int) -> DataElement:
    if isinstance(raw, RawDataElement):
        key, value = (raw.tag, raw.VR, raw.value, raw.is_little_endian), raw.value or b""
        if key in memo:
            return memo[key]
        if len(value) > MAX_SEQUENCE_BYTES or sum(value.count(mark) for mark in ITEMS) > MAX_ITEMS:
            raise ValueError
        element = _check_kind(convert_raw_data_element(_check_kind(raw), ds=dataset))  # pydicom may try other VRs
        if element.VR in (VR.DS, VR.IS) and any(v and isinstance(v, str) for v in _values(element)):
            raise ValueError  # pydicom leaves what is no number as text
        if element.VR != "SQ":
            memo[key] = element
            return element
    else:
        element = _check_kind(raw)
    items = [_decode(item, memo, depth + 1) for item in element.value] if element.VR == "SQ" else element.value
    return DataElement(element.tag, element.VR, items)


def _values(element: DataElement) -> Iterable:
    return element.value if isinstance(element.value, MultiValue) else [element.value]


def _check_kind(element: RawDataElement | DataElement) -> RawDataElement | DataElement:
    """With the VR of the dictionary where both are text: a weight "70" as LO is one.

    Raises ValueError where a VR is of another kind: who asks for a number, a text or a sequence gets one, or nothing.
    """
    known = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else ""
    if not known or element.VR in (None, VR.UN) or element.VR in known:
        return element
    if isinstance(element, RawDataElement) and element.VR in STR_VR and known in STR_VR:
        return element._replace(VR=known)
    if element.VR in NUMBER_VR and known[:2] in NUMBER_VR:
        return element
    raise ValueError


def read_series(refs: Iterable[FileRef]) -> tuple[list[Series], list[LeftOut]]:
    """The images of all files, grouped by series. A broken file costs the series that shares its place alone.

    Copies of an image (the same SOPInstanceUID again) are left out.
    """
    groups, left_out, places, broken, seen, memo = defaultdict(list), [], defaultdict(set), {}, set(), {}
    for ref in refs:
        try:
            images = read_images(ref, memo)
        except InputError as error:
            left_out.append(LeftOut("a file", str(error), ref.shown))
            if ref.name not in NOT_SLICES and not is_zip(ref):
                broken[ref.place] = ref.shown
            continue
        name, uid = (str(images[0].header.get(k) or ref.shown) for k in ("SOPInstanceUID", "SeriesInstanceUID"))
        if name in seen:
            left_out.append(LeftOut("a file", "a copy of an image that is there already", ref.shown))
            continue
        seen.add(name)
        groups[uid].extend(images)
        places[ref.place].add(uid)
    lost = {uid: broken[p] for p, uids in places.items() if p in broken and len(uids) == 1 for uid in uids}
    series = [Series(uid, images) for uid, images in groups.items()]
    left_out.extend(
        LeftOut(s.label, "its folder holds an unreadable file", lost[s.uid]) for s in series if s.uid in lost
    )
    return [s for s in series if s.uid not in lost], left_out
