"""Files in every encoding: compressed, big endian, implicit, deflated, without meta; and which images make a series."""

import zipfile
from pathlib import Path

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
from small_dicom import add_ct, add_patient, add_pet, edit, only_series, reasons, subject

from petct_lib import InputError
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import HEAD_BYTES, read_images, read_series
from petct_lib.dicom.pixels import read_stored
from petct_lib.dicom.studies import find_pairs, ingest, load_pair, load_series
from petct_lib.dicom.writer import Subject, Tracer, make_uid, write_derived, write_pet
from petct_lib.imaging.volume import Volume, axial_affine


def array_of(folder: Path) -> np.ndarray:
    return load_series(only_series(folder), 1.0, "HU").array


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


def test_slices_of_different_sizes_are_refused(tmp_path):
    folder = write_series("CT", tmp_path)
    ds = pydicom.dcmread(folder / "0003.dcm")
    ds.Rows, ds.PixelData = 35, ds.PixelData[: 35 * 40 * 2]
    ds.save_as(folder / "0003.dcm")
    with pytest.raises(InputError, match=r"slices of different sizes \(36, 40\) and \(35, 40\)"):
        array_of(folder)


def test_pixels_of_floating_point_are_refused(tmp_path):
    path = write_series("CT", tmp_path) / "0001.dcm"
    ds = pydicom.dcmread(path)
    ds.FloatPixelData = ds.pixel_array.astype("<f4").tobytes()
    del ds.PixelData
    ds.save_as(path)
    with pytest.raises(InputError, match="image 1 of 4: there is no pixel data"):
        array_of(tmp_path)


def test_a_header_that_breaks_the_parser_costs_its_series_alone(tmp_path):
    path = write_series("CT", tmp_path / "in") / "0001.dcm"
    deflated(path)
    path.write_bytes(path.read_bytes()[:700])
    found, left_out = read_series(list_files(tmp_path))
    assert found == []
    assert left_out[0].reason == "cannot be read as DICOM (error)"  # zlib's own name for it


def test_files_and_volumes_that_are_too_large_are_refused(tmp_path, monkeypatch):
    folder = write_series("CT", tmp_path)
    monkeypatch.setattr("petct_lib.dicom.studies.MAX_VOLUME_BYTES", 4 * 4 * 36 * 40 - 1)
    with pytest.raises(InputError, match="the limit is"):
        array_of(folder)
    monkeypatch.setattr("petct_lib.dicom.archives.MAX_MEMBER_BYTES", 1000)
    found, left_out = read_series(list_files(folder))
    assert found == []
    assert "the file is larger than" in left_out[0].reason


def test_series_read_together_are_as_read_alone(tmp_path):
    """What is decoded once for many files is never another file's."""
    for k, change in enumerate([lambda path: None, implicit, big_endian]):
        folder = add_patient(tmp_path, str(k))
        edit(folder / "PT", PatientWeight=60 + k, SeriesTime=f"10000{k}", ImageType=["ORIGINAL", f"K{k}"])
        for path in (folder / "PT").iterdir():
            change(path)
    together, left_out = read_series(list_files(tmp_path))
    assert left_out == []
    assert len(together) == 6
    for series in together:
        folder = series.images[0].file.path.parent
        for one, other in zip(series.images, only_series(folder).images, strict=True):
            assert one.header == other.header
            assert str(one.header.ImageType) == str(pydicom.dcmread(one.file.path).ImageType)


# Which of several series


def test_localizers_among_the_slices_of_a_series_are_dropped(tmp_path):
    folder = add_patient(tmp_path)
    for name in ("0001.dcm", "0004.dcm"):
        ds = pydicom.dcmread(folder / "CT" / name)
        ds.ImageType, ds.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], make_uid("scout", name)
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        ds.save_as(folder / "CT" / f"scout{name}")
    report = ingest(tmp_path)
    assert report["studies"][0]["ct"]["size"] == [7, 6, 6]
    assert [i["reason"] for i in report["left_out"]] == ["localizers among the slices of a series"]
    assert "CT series 1 (2 images)" in report["left_out"][0]["what"]


def pet_of(folder: Path, name: str, spacing_mm: float, slices: int) -> Path:
    affine = axial_affine((4, 4, spacing_mm), np.array([-5.0, -6.0, -98.0]))
    volume = Volume(np.ones((slices, 4, 4), np.float32), affine, "Bq/ml")
    write_pet(volume, folder, subject(), make_uid(subject().study_uid, name), Tracer(4e8, "090000", "100000"))
    return folder


def test_the_pet_of_the_whole_extent_wins_over_the_one_with_more_slices(tmp_path):
    add_ct(tmp_path / "ct", subject())
    pet_of(tmp_path / "bed", "bed", 2.0, 9)  # 18 mm
    pet_of(tmp_path / "whole", "whole", 5.0, 4)  # 20 mm
    report = ingest(tmp_path)
    [row] = report["studies"]
    assert row["pet"]["size"] == [4, 4, 4]
    assert row["chosen"] == "1 of 2 PET, 20 mm long, and 1 of 1 CT; CT holds 100% of the PET's slices"
    assert reasons(report) == f"another PET series of its study was chosen ({row['chosen']})"


def test_a_pet_that_is_surely_attenuation_corrected_wins_over_a_longer_one(tmp_path):
    folder = add_patient(tmp_path)
    edit(add_pet(folder / "long", subject(), "long", slices=5), CorrectedImage=None)
    assert ingest(tmp_path)["studies"][0]["pet"]["size"] == [4, 4, 4]
    edit(folder / "PT", CorrectedImage=None)
    assert ingest(tmp_path)["studies"][0]["pet"]["size"] == [4, 4, 5]


def test_of_several_cts_it_is_said_which_was_chosen(tmp_path):
    folder = add_patient(tmp_path)
    add_ct(folder / "part", subject(), "part", axial_affine((2, 3, 1), np.array([-6.0, -7.0, -100.0])), slices=8)
    report = ingest(tmp_path)
    [row] = report["studies"]
    assert row["chosen"] == "1 of 1 PET, 20 mm long, and 1 of 2 CT; CT holds 100% of the PET's slices"
    assert reasons(report) == f"another CT series of its study was chosen ({row['chosen']})"


def test_how_much_of_the_pet_the_ct_holds_is_said(tmp_path):
    """The PET reaches from −100.5 to −50.5 mm, the CT from −102 to −78 mm."""
    add_pet(tmp_path / "pet", subject(), slices=10)
    add_ct(tmp_path / "ct", subject())
    [row] = ingest(tmp_path)["studies"]
    assert row["overlap_mm"] == [14.0, 16.0, 22.5]
    assert row["pet_length_in_ct"] == 0.45
    assert row["chosen"] == "the only PET and CT; CT holds 50% of the PET's slices"  # −98 … −78 of −98 … −53


def test_synthetic_series_are_left_out(tmp_path):
    """Whatever is newer or longer: a translation must not be taken for a scan and translated back."""
    add_patient(tmp_path)
    who = subject()
    there = Subject(who.patient_id, who.study_uid, who.frame_of_reference_uid)
    for name, unit in (("sct", "HU"), ("spet", "SUV")):
        affine = axial_affine((2, 2, 2), np.array([-6.0, -7.0, -110.0]))
        volume = Volume(np.ones((30, 9, 9), np.float32), affine, unit)
        write_derived(volume, tmp_path / name, there, description="synthetic", seed=name)
    [pair], left_out, _ = find_pairs(tmp_path)
    assert load_pair(pair).chosen == "the only PET and CT; CT holds 100% of the PET's slices"
    assert [item.reason for item in left_out] == ["a synthetic series that petct_lib made: it is nobody's scan"] * 2
