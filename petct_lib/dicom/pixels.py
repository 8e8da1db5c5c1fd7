"""The stored values of DICOM images."""

import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from pydicom import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from petct_lib import InputError
from petct_lib.dicom.headers import DEFLATED, Image, Series, inflate

MAX_SIDE = 4096  # pixels; no PET or CT scanner makes larger images
# GDCM crashes on damaged data, these do not; JPEG lossless and JPEG are left to it, see `may_crash`.
DECODERS = {
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pillow"),
    RLELossless: "pydicom",
}


def read_stored(images: list[Image]) -> Iterator[tuple[int, np.ndarray]]:
    """(index into `images`, stored values (rows, columns)), file by file. Raises InputError where one has none."""
    files = defaultdict(list)
    for k, image in enumerate(images):
        files[image.file].append(k)
    for ref, members in files.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield from zip(members, _frames([images[k] for k in members]), strict=True)
            except InputError as error:
                raise InputError(f"image {members[0] + 1} of {len(images)}: {error}", ref.shown) from None
            except Exception as error:  # missing, short or undecodable pixel data: whatever the decoder raises
                why = f"pixel data cannot be decoded ({type(error).__name__})"
                raise InputError(f"image {members[0] + 1} of {len(images)}: {why}", ref.shown) from None


def _frames(images: list[Image]) -> Iterator[np.ndarray]:
    """The frames of one file that are asked for, in their order."""
    first = images[0]
    decoder, value = get_decoder(first.syntax), _pixel_value(first)
    if not decoder.is_available:
        raise InputError("no decoder for its compression is installed: pip install 'petct-lib[codecs]'")
    options = {**_pixel_options(first.header), "decoding_plugin": DECODERS.get(first.syntax, "")}
    if first.syntax in JPEGLSTransferSyntaxes:
        _check_size(value, options["rows"], options["columns"])
    for image in images:
        yield decoder.as_array(value, index=image.frame, raw=True, **options)[0]


def may_crash(series: Series) -> bool:
    """Whether its pixel data, if damaged, may end the process that decodes it: GDCM alone reads JPEG lossless."""
    return any(image.syntax in JPEGTransferSyntaxes for image in series.images)


def decompress(dataset: Dataset) -> None:
    """Unpacks the pixel data of a data set in place. Raises InputError where GDCM alone could, which may crash."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in JPEGTransferSyntaxes:
        raise InputError(f"{syntax.name} is read for PET and CT only")
    if syntax in JPEGLSTransferSyntaxes:
        _check_size(dataset.PixelData, dataset.Rows, dataset.Columns)
    if syntax in DECODERS:
        dataset.decompress(decoding_plugin=DECODERS[syntax])


def _pixel_value(image: Image) -> bytes:
    """The value of the pixel data element."""
    deflated = image.syntax == DEFLATED
    content = inflate(image.file.read())[image.offset :] if deflated else image.file.read(image.offset)
    if len(content) < 12:
        raise InputError("there is no pixel data")
    endian = ">" if image.syntax == ExplicitVRBigEndian else "<"
    group, element = struct.unpack_from(f"{endian}HH", content)
    if (group, element) != (0x7FE0, 0x0010):
        raise InputError("there is no pixel data")
    short_form = image.syntax == ImplicitVRLittleEndian or content[4:6] not in (b"OW", b"OB", b"UN")
    start = 8 if short_form else 12
    (length,) = struct.unpack_from(f"{endian}L", content, start - 4)
    stop = len(content) if length == 0xFFFFFFFF else start + length
    return content[start:stop]


def _check_size(value: bytes, rows: int, columns: int) -> None:
    """Refuses JPEG-LS images that say that they are of another size (marker SOF55): the decoder allocates all of it."""
    for marker in re.finditer(b"\xff\xf7", value):
        actual = struct.unpack_from(">HH", value, marker.start() + 5)
        if actual != (rows, columns):
            raise InputError(f"the compressed image has {actual[0]}×{actual[1]} pixels, its header {rows}×{columns}")


def _pixel_options(header: Dataset) -> dict:
    """The Image Pixel module as pydicom's decoders want it. Raises InputError for anything but one grey image."""
    rows, columns = int(header.Rows), int(header.Columns)
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise InputError("a grey image is expected, not one in colour")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise InputError(f"an image of {rows}×{columns} pixels is no PET or CT slice")
    return {
        "rows": rows, "columns": columns, "samples_per_pixel": 1, "number_of_frames": header.get("NumberOfFrames") or 1,
        "photometric_interpretation": str(header.get("PhotometricInterpretation", "MONOCHROME2")),
        "bits_allocated": int(header.BitsAllocated), "bits_stored": int(header.get("BitsStored", header.BitsAllocated)),
        "pixel_representation": int(header.get("PixelRepresentation", 0)), "pixel_keyword": "PixelData",
    }  # fmt: skip
