"""The stored values of DICOM images, in every encoding."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from dicom_encodings import (
    COMPRESSED,
    ENCODINGS,
    big_endian,
    compress,
    deflated,
    implicit,
    with_long_header,
    write_series,
)
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from small_dicom import array_of, edit

from petct_lib import InputError
from petct_lib.dicom import pixels
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import HEAD_BYTES, read_images
from petct_lib.dicom.pixels import read_stored


@pytest.mark.parametrize("kind", ["CT", "PT"])
@pytest.mark.parametrize("change", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_every_encoding_gives_the_same_values(tmp_path, kind, change):
    folder = write_series(kind, tmp_path / "in")
    expected = array_of(folder)
    for path in folder.iterdir():
        plain = path.read_bytes()
        change(path)
        assert path.read_bytes() != plain
    assert np.array_equal(array_of(folder), expected)
    assert np.ptp(expected) > 30000 or kind == "PT", "all 16 bits are in use"
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    assert np.array_equal(array_of(tmp_path / "all.zip"), expected)


def test_a_series_may_mix_encodings(tmp_path):
    folder = write_series("PT", tmp_path)
    expected = array_of(folder)
    for path, change in zip(sorted(folder.iterdir()), (implicit, big_endian, deflated), strict=False):
        change(path)
    assert np.array_equal(array_of(folder), expected)


@pytest.mark.parametrize("excess", range(-14, 14, 2))
def test_pixels_that_begin_where_the_first_read_ends(tmp_path, excess):
    path = write_series("CT", tmp_path, slices=1) / "0001.dcm"
    expected = pydicom.dcmread(path).pixel_array
    with_long_header(path, 0)
    with_long_header(path, HEAD_BYTES - path.read_bytes().rindex(b"\xe0\x7f\x10\x00OW") + excess)
    assert path.read_bytes().index(b"\xe0\x7f\x10\x00OW") == HEAD_BYTES + excess
    assert np.array_equal(next(read_stored(read_images(list_files(path)[0])))[1], expected)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("rubbish", [False, True])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=str)
def test_bits_above_those_stored_do_not_count(tmp_path, signed, rubbish, syntax):
    """Twelve bits of sixteen; old scanners kept overlays in the others, and negative values lose their sign there."""
    path = write_series("CT", tmp_path, slices=1) / "0001.dcm"
    values = np.random.default_rng(7).integers(-2048, 2048, (36, 40)) + (0 if signed else 2048)
    ds = pydicom.dcmread(path)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, signed
    stored = values.astype("<i2").view("<u2")
    ds.PixelData = (stored & 0x0FFF | 0xA000 if rubbish else stored).tobytes()
    ds.save_as(path)
    if syntax:
        compress(path, syntax)
    assert np.array_equal(next(read_stored(read_images(list_files(path)[0])))[1], values)


@pytest.mark.parametrize("has_table", [False, True])
def test_a_compressed_image_may_come_in_pieces(tmp_path, has_table):
    folder = write_series("CT", tmp_path)
    expected = array_of(folder)
    for path in folder.iterdir():
        compress(path, JPEGLSLossless)
        ds = pydicom.dcmread(path)
        ds.PixelData = encapsulate(list(generate_frames(ds.PixelData)), fragments_per_frame=3, has_bot=has_table)
        ds.save_as(path)
    assert np.array_equal(array_of(folder), expected)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda uid: uid.name)
def test_half_a_compressed_image_is_refused(tmp_path, syntax):
    folder = write_series("CT", tmp_path)
    path = folder / "0002.dcm"
    compress(path, syntax)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(InputError, match=r"CT series 1 \(4 images\): image 2 of 4: pixel data cannot be decoded"):
        array_of(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SamplesPerPixel": 3}, "a grey image is expected, not one in colour"),
        ({"Rows": 5000}, "an image of 5000×40 pixels is no PET or CT slice"),
        ({"Columns": 0}, "an image of 36×0 pixels"),
        ({"BitsAllocated": None}, "cannot be decoded"),
        ({"Rows": 37}, "cannot be decoded"),
    ],
)
def test_images_that_are_no_slices_are_refused(tmp_path, changes, reason):
    edit(write_series("CT", tmp_path), **changes)
    with pytest.raises(InputError, match=reason) as caught:
        array_of(tmp_path)
    assert caught.value.where == "0001.dcm"


def test_pixels_of_floating_point_are_refused(tmp_path):
    path = write_series("CT", tmp_path) / "0001.dcm"
    ds = pydicom.dcmread(path)
    ds.FloatPixelData = ds.pixel_array.astype("<f4").tobytes()
    del ds.PixelData
    ds.save_as(path)
    with pytest.raises(InputError, match="image 1 of 4: there is no pixel data"):
        array_of(tmp_path)


def test_a_compression_without_a_decoder_names_the_extra(tmp_path, monkeypatch):
    images = read_images(list_files(write_series("CT", tmp_path / "in"))[0])
    monkeypatch.setattr(pixels, "get_decoder", lambda syntax: SimpleNamespace(is_available=False))
    with pytest.raises(InputError, match=r"image 1 of 1: no decoder .*pip install 'petct-lib\[codecs\]'"):
        list(read_stored(images))
