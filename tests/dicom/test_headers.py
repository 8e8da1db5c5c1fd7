"""Files in every encoding: compressed, big endian, implicit, deflated, without meta; and which images make a series."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_encodings import big_endian, deflated, implicit, write_series
from small_dicom import add_ct, add_patient, add_pet, array_of, edit, only_series, reasons, subject

from petct_lib import InputError
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import read_series
from petct_lib.dicom.studies import find_pairs, ingest, load_pair
from petct_lib.dicom.writer import Subject, Tracer, make_uid, write_derived, write_pet
from petct_lib.imaging.volume import Volume, axial_affine


def test_slices_of_different_sizes_are_refused(tmp_path):
    folder = write_series("CT", tmp_path)
    ds = pydicom.dcmread(folder / "0003.dcm")
    ds.Rows, ds.PixelData = 35, ds.PixelData[: 35 * 40 * 2]
    ds.save_as(folder / "0003.dcm")
    with pytest.raises(InputError, match=r"slices of different sizes \(36, 40\) and \(35, 40\)"):
        array_of(folder)


def test_a_header_that_breaks_the_parser_costs_its_series_alone(tmp_path):
    path = write_series("CT", tmp_path / "in") / "0001.dcm"
    deflated(path)
    path.write_bytes(path.read_bytes()[:700])
    result, left_out = read_series(list_files(tmp_path))
    assert result == []
    assert left_out[0].reason == "cannot be read as DICOM (error)"  # zlib's own name for it


def test_files_and_volumes_that_are_too_large_are_refused(tmp_path, monkeypatch):
    folder = write_series("CT", tmp_path)
    monkeypatch.setattr("petct_lib.dicom.studies.MAX_VOLUME_BYTES", 4 * 4 * 36 * 40 - 1)
    with pytest.raises(InputError, match="the limit is"):
        array_of(folder)
    monkeypatch.setattr("petct_lib.dicom.archives.MAX_MEMBER_BYTES", 1000)
    result, left_out = read_series(list_files(folder))
    assert result == []
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
