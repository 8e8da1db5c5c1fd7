"""The encodings of DICOM files, and series written in them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from small_dicom import AXIAL, affine_of, subject

from petct_lib.dicom.headers import HEAD_BYTES
from petct_lib.dicom.writer import Tracer, make_uid, write_ct, write_pet
from petct_lib.imaging.volume import Volume

COMPRESSED = {
    RLELossless: gdcm.TransferSyntax.RLELossless,
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
}


def write_series(kind: str, folder: Path, slices: int = 4) -> Path:
    """Noise over nearly all 16 bits: unsigned CT with one rescale, signed PET with a slope for each slice."""
    noise = np.random.default_rng(6).uniform(-1, 1, (slices, 36, 40)).astype(np.float32)
    affine = affine_of(AXIAL)
    if kind == "CT":
        write_ct(Volume(noise * 30000 + 30000, affine, "HU"), folder, subject(), make_uid("ct"))
    else:
        scale = 10.0 ** np.arange(slices)[:, None, None]
        volume = Volume((noise * scale).astype(np.float32), affine, "Bq/ml")
        write_pet(volume, folder, subject(), make_uid("pet"), Tracer(4e8, "090000", "100000"))
    return folder


# Ways to write the same file again.


def compress(path: Path, syntax: str) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(COMPRESSED[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def implicit(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(path, implicit_vr=True, little_endian=True)


def deflated(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path)


def big_endian(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.decode()
    ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False)


def without_meta(path: Path, syntax: str = ImplicitVRLittleEndian) -> None:
    """The data set alone, as it goes over a network."""
    ds = pydicom.dcmread(path)
    ds.decode()
    file = pydicom.filebase.DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    if not syntax.is_little_endian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    write_dataset(file, pydicom.Dataset(ds))
    path.write_bytes(file.getvalue())


def padded(path: Path) -> None:
    """Data Set Trailing Padding after the pixels, as the standard allows, and zeros to a full block, as it does not."""
    ds = pydicom.dcmread(path)
    ds.add_new((0xFFFC, 0xFFFC), "OB", bytes(100))
    ds.save_as(path)
    path.write_bytes(path.read_bytes() + bytes(300))


def with_long_header(path: Path, size: int = HEAD_BYTES + 1000) -> None:
    ds = pydicom.dcmread(path)
    ds.private_block(0x0029, "SOME SCANNER", create=True).add_new(0x10, "OB", bytes(size))
    ds.save_as(path)


def both(*changes: Callable) -> Callable:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


ENCODINGS = {
    **{uid.name: partial(compress, syntax=uid) for uid in COMPRESSED},
    "implicit": implicit,
    "big endian": big_endian,
    "deflated": deflated,
    "without meta, implicit": without_meta,
    "without meta, explicit": partial(without_meta, syntax=ExplicitVRLittleEndian),
    "without meta, big endian": partial(without_meta, syntax=ExplicitVRBigEndian),
    "padded": padded,
    "padded RLE": both(partial(compress, syntax=RLELossless), padded),
    "long header": with_long_header,
    "long header, implicit": both(with_long_header, implicit),
    "long header, deflated": both(with_long_header, deflated),
    "long header, JPEG-LS": both(partial(compress, syntax=JPEGLSLossless), with_long_header),
}
