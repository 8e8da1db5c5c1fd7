"""The reader: rescaling, pairing, what is left out and why, broken input, zips and pseudonyms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian
from small_dicom import (
    AXIAL,
    MARKER,
    add_ct,
    add_patient,
    add_pet,
    affine_of,
    edit,
    garble,
    only_series,
    ramp_volume,
    reasons,
    refusal,
    scribble,
    subject,
)

from petct_lib import InputError
from petct_lib.dicom.headers import HEADER_TAGS
from petct_lib.dicom.studies import find_pairs, ingest, load_pair, load_series, pseudonym
from petct_lib.dicom.writer import make_uid, write_ct
from petct_lib.imaging.volume import axial_affine

REAL_ZIP = Path(__file__).parents[3] / "shared" / "data" / "sts" / "STS_008.zip"


# Values at physical points


def test_every_slice_has_its_own_slope_and_intercept(tmp_path):
    write_ct(ramp_volume(affine_of(AXIAL)), tmp_path, subject(), make_uid("ct"))
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        ds = pydicom.dcmread(path)
        ds.PixelData = np.full((5, 6), 100, "<u2").tobytes()
        ds.RescaleSlope, ds.RescaleIntercept = [0.5, 1, 2, 4][k], [0, -10, 0, 1][k]
        ds.save_as(path)
    volume = load_series(only_series(tmp_path), 10.0, "SUV")
    assert volume.array[:, 2, 2].tolist() == [500, 900, 2000, 4010]
    assert volume.array.dtype == np.float32


def test_a_study_comes_back_in_suv_and_hu(tmp_path):
    add_patient(tmp_path)
    [pair], left_out, _ = find_pairs(tmp_path)
    study = load_pair(pair)
    assert not left_out
    assert (study.pet.unit, study.ct.unit, study.units) == ("SUV", "HU", "BQML")
    assert study.suv.factor == pytest.approx(3.5e-4)
    # The PET's voxel (1, 2, 3) lies at (−1, 2, −83): ramp 394; the CT's voxel (2, 3, 4) at (−2, 2, −84): 384.
    assert study.pet.array[3, 2, 1] == pytest.approx(394 * 3.5e-4, rel=1e-3)
    assert study.ct.array[4, 3, 2] == 384


# Pairing


def test_the_report_of_a_study(tmp_path):
    add_patient(tmp_path)
    report = json.loads(json.dumps(ingest(tmp_path)))
    [row] = report["studies"]
    assert set(row) >= {"id", "pet", "ct", "suv_factor", "suv_rule"}
    assert row["pet"] == {"size": [4, 4, 4], "spacing_mm": [4, 4, 5], "extent_mm": [16, 16, 20], "units": "BQML"}
    assert row["ct"] == {
        "size": [7, 6, 6],
        "spacing_mm": [2, 3, 4],
        "extent_mm": [14, 18, 24],
        "units": "HU",
        "kvp": 120,
    }
    assert row["overlap_mm"] == [14.0, 16.0, 20.0]
    assert row["suv_factor"] == pytest.approx(3.5e-4)
    assert row["suv_rule"] == "BQML: dose decayed to the series time"
    assert report["left_out"] == []


def test_two_studies_of_one_patient_are_one_patient(tmp_path):
    add_patient(tmp_path, "A", "1")
    add_patient(tmp_path, "A", "2")
    add_patient(tmp_path, "B")
    pairs, *_ = find_pairs(tmp_path)
    mine, other = pairs[0].patient, pairs[2].patient
    assert mine != other
    assert [p.id for p in pairs] == [f"{mine}-1", f"{mine}-2", f"{other}-1"]
    assert [p.patient for p in pairs] == [mine, mine, other]


def test_the_frame_of_reference_decides(tmp_path):
    who = subject()
    add_pet(tmp_path / "pet", who)
    add_ct(tmp_path / "good", who, "good")
    add_ct(tmp_path / "foreign", who, "foreign", slices=20)
    edit(tmp_path / "foreign", FrameOfReferenceUID=make_uid("elsewhere"))
    [pair], left_out, _ = find_pairs(tmp_path)
    assert pair.ct.uid == make_uid(who.study_uid, "good")
    assert [item.where for item in left_out] == ["foreign"]
    shutil.rmtree(tmp_path / "good")
    assert "no CT of the same study and frame of reference" in refusal(tmp_path)


def test_series_without_a_frame_of_reference_are_not_paired(tmp_path):
    folder = add_patient(tmp_path)
    for part in ("CT", "PT"):
        edit(folder / part, FrameOfReferenceUID=None)
    assert "no CT of the same study and frame of reference" in refusal(tmp_path)


def test_studies_are_not_mixed(tmp_path):
    add_pet(tmp_path / "pet", subject())
    add_ct(tmp_path / "ct", subject())
    edit(tmp_path / "ct", StudyInstanceUID=make_uid("another study"))
    message = refusal(tmp_path)
    assert "no CT of the same study" in message
    assert "no usable PET of the same study" in message


@pytest.mark.parametrize(("add", "reason"), [(add_pet, "no CT of the same"), (add_ct, "no usable PET of the same")])
def test_one_modality_alone(tmp_path, add, reason):
    add(tmp_path / "alone", subject())
    assert reason in refusal(tmp_path)
    add_patient(tmp_path, "B")
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert reason in reasons(report)


def test_the_pet_with_more_slices_wins(tmp_path):
    folder = add_patient(tmp_path)
    add_pet(folder / "long", subject(), "long", slices=5)
    [pair], left_out, _ = find_pairs(tmp_path)
    assert pair.pet.uid == make_uid(subject().study_uid, "long")
    assert ["another PET series" in item.reason for item in left_out] == [True]


@pytest.mark.parametrize("fault", ["no dose", "gap"])
def test_a_faulty_pet_gives_way_to_another(tmp_path, fault):
    folder = add_patient(tmp_path)
    add_pet(folder / "faulty", subject(), "faulty", slices=7)
    if fault == "gap":
        (folder / "faulty" / "0003.dcm").unlink()
    else:
        edit(folder / "faulty", RadiopharmaceuticalInformationSequence=None)
    report = ingest(tmp_path)
    assert report["studies"][0]["pet"]["size"] == [4, 4, 4]
    assert {"no dose": "RadiopharmaceuticalInformationSequence", "gap": "gaps"}[fault] in reasons(report)


def test_the_ct_that_covers_the_pet_wins(tmp_path):
    """A diagnostic CT of thin slices has more of them, and shows a part of the body alone."""
    folder = add_patient(tmp_path)
    thin = axial_affine((2, 3, 1), np.array([-6.0, -7.0, -100.0]))
    add_ct(folder / "thin", subject(), "thin", thin, slices=8)
    assert find_pairs(tmp_path)[0][0].ct.uid == make_uid(subject().study_uid, "ct")
    add_ct(folder / "both", subject(), "both", thin, slices=20)
    assert find_pairs(tmp_path)[0][0].ct.uid == make_uid(subject().study_uid, "both")


def test_a_ct_with_a_gap_gives_way_to_another(tmp_path):
    folder = add_patient(tmp_path)
    add_ct(folder / "faulty", subject(), "faulty", slices=12)
    (folder / "faulty" / "0005.dcm").unlink()
    assert find_pairs(tmp_path)[0][0].ct.uid == make_uid(subject().study_uid, "ct")


def test_pet_and_ct_that_share_no_space(tmp_path):
    folder = add_patient(tmp_path)
    shutil.rmtree(folder / "CT")
    add_ct(folder / "CT", subject(), affine=axial_affine((2, 3, 4), np.array([-6.0, -7.0, 900.0])))
    report = ingest(tmp_path)
    assert not report["studies"]
    assert "PET and CT share no space" in reasons(report)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("CT", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "ImageType holds LOCALIZER"),
        ("PT", {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "MIP"),
        ("PT", {"CorrectedImage": ["DECY", "SCAT"]}, "not attenuation corrected"),
        ("PT", {"CorrectedImage": "DECY"}, "not attenuation corrected"),
        ("PT", {"NumberOfFrames": 3}, "multi-frame"),
        ("CT", {"Modality": "MR"}, "modality MR is not used"),
        ("CT", {"Rows": None}, "without an image"),
        ("CT", {"Columns": None}, "without an image"),
        ("PT", {"PatientWeight": None}, "PatientWeight"),
        ("PT", {"Units": "PROPCNTS"}, "PROPCNTS"),
        ("PT", {"DecayCorrection": "NONE"}, "DecayCorrection"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_reason(tmp_path, part, changes, reason):
    add_patient(tmp_path, "A")
    edit(add_patient(tmp_path, "B") / part, **changes)
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert reason in reasons(report)
    assert all(f"B1/{part}" in i["what"] for i in report["left_out"] if reason in i["reason"])


def test_the_nac_pet_beside_the_corrected_one(tmp_path):
    folder = add_patient(tmp_path)
    add_pet(folder / "NAC", subject(), "nac", slices=9)
    edit(folder / "NAC", CorrectedImage=["DECY"])
    report = ingest(tmp_path)
    assert report["studies"][0]["pet"]["size"] == [4, 4, 4]
    assert [i["reason"] for i in report["left_out"]] == [
        "PET is not attenuation corrected (CorrectedImage has no ATTN)"
    ]


def test_ge_private_time_in_implicit_vr(tmp_path):
    """Private values of implicit VR files have no type: they are read as bytes."""
    folder = add_patient(tmp_path) / "PT"
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.SeriesTime = "113000"  # of the reconstruction, after the acquisition
        ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20190307100000.00")
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        ds.save_as(path, implicit_vr=True, little_endian=True)
    [row] = ingest(tmp_path)["studies"]
    assert "GE private" in row["suv_rule"]
    assert row["suv_factor"] == pytest.approx(3.5e-4)


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def cut_pixels(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def drop_pixels(path: Path) -> None:
    ds = pydicom.dcmread(path)
    del ds.PixelData
    ds.save_as(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def drop_slope(path: Path) -> None:
    ds = pydicom.dcmread(path)
    del ds.RescaleSlope
    ds.save_as(path)


@pytest.mark.parametrize("spoil", [garble, cut_header, cut_pixels, drop_pixels, empty, drop_slope])
@pytest.mark.parametrize("part", ["CT", "PT"])
def test_one_broken_file_costs_its_own_study_alone(tmp_path, spoil, part):
    spoil(add_patient(tmp_path, "A") / part / "0004.dcm")  # the PET's last: no gap gives it away
    add_patient(tmp_path, "B")
    report = ingest(tmp_path)
    [row] = report["studies"]
    assert row["pet"]["size"] == [4, 4, 4]
    assert row["patient"] == ingest(tmp_path)["studies"][0]["patient"]
    assert "0004.dcm" in json.dumps(report["left_out"])
    assert MARKER not in json.dumps(report)


def test_a_broken_file_between_two_series_costs_neither(tmp_path):
    """It cannot be said whose it was; a gap would be found."""
    folder = add_patient(tmp_path)
    for path in (folder / "PT").iterdir():
        path.rename(folder / "CT" / f"pt{path.name}")
    garble(folder / "CT" / "0006.dcm")
    report = ingest(tmp_path)
    assert report["studies"][0]["ct"]["size"] == [7, 6, 5]
    assert [i["what"] for i in report["left_out"]] == ["a file (A1/CT/0006.dcm)"]


def test_a_broken_file_without_a_suffix_costs_its_series_too(tmp_path):
    folder = add_patient(tmp_path)
    for path in (folder / "PT").iterdir():
        path.rename(path.with_suffix(""))
    garble(folder / "PT" / "0004")
    assert "unreadable file" in refusal(tmp_path)


def test_an_index_beside_the_slices_costs_nothing(tmp_path):
    folder = add_patient(tmp_path)
    for path in (folder / "PT").iterdir():
        path.rename(path.with_suffix(""))
    garble(folder / "PT" / "0004")
    (folder / "PT" / "0004").rename(folder / "PT" / "DICOMDIR")
    [row] = ingest(tmp_path)["studies"]
    assert row["pet"]["size"] == [4, 4, 3]


def test_hidden_files_do_not_count(tmp_path):
    folder = add_patient(tmp_path)
    for path in (folder / "PT").iterdir():
        path.rename(path.with_suffix(""))
    for name in (".DS_Store", "._0001.dcm", "README"):
        (folder / "PT" / name).write_bytes(b"nothing that a scanner has written" * 20)
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert [i["what"] for i in report["left_out"]] == ["a file (A1/PT/README)"]


def test_copies_of_images_are_left_out(tmp_path):
    shutil.copytree(add_patient(tmp_path / "in"), tmp_path / "in" / "again")
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert {i["reason"] for i in report["left_out"]} == {"a copy of an image that is there already"}
    assert len(report["left_out"]) == 10


def test_a_study_whose_series_differ_in_id_and_date_is_one_study(tmp_path):
    edit(add_patient(tmp_path, "A", "1") / "CT", PatientID="", StudyDate=None)
    edit(add_patient(tmp_path, "A", "2") / "PT", PatientID="", StudyDate=None)
    pairs, left_out, _ = find_pairs(tmp_path)
    assert left_out == []
    assert len(pairs) == 2
    assert len({pair.patient for pair in pairs}) == 1


def test_files_that_never_were_dicom_cost_nothing(tmp_path):
    folder = add_patient(tmp_path)
    names = ["Thumbs.db", "desktop.ini", "notes.docx", "broken.zip", "LICENSE", "truth.json"]
    for name in names:
        (folder / "PT" / name).write_bytes(b"nothing that a scanner has written" * 20)
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert sorted(i["what"] for i in report["left_out"]) == sorted(f"a file (A1/PT/{name})" for name in names)


def test_many_files_of_one_folder_and_ending_are_one_row(tmp_path):
    add_patient(tmp_path)
    names = ["truth/a_ct.nii.gz", "truth/a_pet.nii.gz", "truth/b_ct.nii.gz", "truth/a.json", "truth/b.json"]
    names += ["other/a.nii.gz", "other/x.1.CSV", "other/x.2.csv", "other/x.3.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing that a scanner has written" * 20)
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "truth")
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert {i["reason"] for i in report["left_out"]} == {"not DICOM"}
    assert sorted(i["what"] for i in report["left_out"]) == [
        "3 files (all.zip:truth/*.nii.gz)", "3 files (other/*.csv)", "3 files (truth/*.nii.gz)",
        "a file (all.zip:truth/a.json)", "a file (all.zip:truth/b.json)", "a file (other/a.nii.gz)",
        "a file (truth/a.json)", "a file (truth/b.json)",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA", ".1234"])
def test_damaged_slices_keep_a_row_each(tmp_path, suffix):
    add_patient(tmp_path, "A")
    for path in (add_patient(tmp_path, "B") / "CT").iterdir():
        garble(path)
        path.rename(path.with_suffix(suffix))
    left_out = [i["what"] for i in ingest(tmp_path)["left_out"]]
    assert [w for w in left_out if "file" in w] == [f"a file (B1/CT/000{k}{suffix})" for k in range(1, 7)]


@pytest.mark.parametrize("keyword", ["RadionuclideTotalDose", "RadiopharmaceuticalStartDateTime"])
def test_nonsense_in_the_dose_costs_its_study_and_is_not_repeated(tmp_path, keyword, recwarn):
    add_patient(tmp_path, "A")
    for path in (add_patient(tmp_path, "B") / "PT").iterdir():
        ds = pydicom.dcmread(path)
        tag = Tag(keyword)
        value = b"20190307090000 and more"
        ds.RadiopharmaceuticalInformationSequence[0][tag] = RawDataElement(tag, "FL", len(value), value, 0, False, True)
        ds.save_as(path)
    recwarn.clear()
    report = ingest(tmp_path)
    assert len(report["studies"]) >= 1
    assert "20190307" not in json.dumps(report)
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Value length")
@pytest.mark.parametrize("value", [b"\xff?1x,\\", b"1\\2 "], ids=["no value", "two values"])
@pytest.mark.parametrize("tag", HEADER_TAGS, ids=str)
def test_nonsense_in_any_attribute_never_stops_the_run(tmp_path, tag, value):
    add_patient(tmp_path, "A")
    bad = add_patient(tmp_path, "B")
    for path in [*(bad / "PT").iterdir(), *(bad / "CT").iterdir()]:
        scribble(path, tag, value)
    report = ingest(tmp_path)
    assert 1 <= len(report["studies"]) <= 2
    assert json.loads(json.dumps(report)) == report


def test_an_empty_folder(tmp_path):
    assert "the folder is empty" in refusal(tmp_path)


def test_a_missing_folder(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nowhere")


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "readme.txt").write_text("hello " * 100)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    message = refusal(tmp_path)
    assert "no readable DICOM in 2 files" in message
    assert "not DICOM" in message


def test_a_single_slice_file_is_no_study(tmp_path):
    path = add_patient(tmp_path) / "PT" / "0001.dcm"
    assert "no CT of the same study" in refusal(path)


# Pseudonyms


def test_folder_names_are_shown_to_the_owner_and_never_stored(tmp_path):
    garble(add_patient(tmp_path / "DOE_JOHN") / "CT" / "0002.dcm")
    pairs, left_out, _ = find_pairs(tmp_path)
    assert pairs == []
    assert all("DOE_JOHN" in item.shown()["what"] for item in left_out)
    assert "DOE_JOHN" not in json.dumps([item.stored() for item in left_out])
    cut_pixels(add_patient(tmp_path / "ROE_JANE", "B") / "CT" / "0002.dcm")
    [pair], *_ = find_pairs(tmp_path)
    with pytest.raises(InputError) as caught:
        load_pair(pair)
    assert "ROE_JANE" not in str(caught.value)


def test_the_patient_never_comes_out(tmp_path):
    good = add_patient(tmp_path, "A")
    assert all(str(pydicom.dcmread(p).PatientName).startswith(MARKER) for p in (good / "PT").iterdir())
    for k, changes in enumerate([{"PatientWeight": None}, {"CorrectedImage": ["DECY"]}, {"Units": "CNTS"}]):
        edit(add_patient(tmp_path, f"bad{k}") / "PT", **changes)
    cut_pixels(add_patient(tmp_path, "short") / "PT" / "0002.dcm")
    report = ingest(tmp_path)
    assert len(report["studies"]) == 1
    assert len(report["left_out"]) == 7  # three PETs, their CTs, and the short one's study
    assert MARKER not in json.dumps(report)
    assert "2019" not in json.dumps(report), "nor a date"
    shutil.rmtree(good)
    shutil.rmtree(tmp_path / "short1")
    refusal(tmp_path)


def test_load_errors_do_not_name_the_patient(tmp_path):
    drop_pixels(add_patient(tmp_path) / "CT" / "0002.dcm")
    [pair], *_ = find_pairs(tmp_path)
    with pytest.raises(InputError, match=r"image 2 of 6: there is no pixel data") as caught:
        load_pair(pair)
    assert MARKER not in str(caught.value)


def test_pseudonyms_are_stable_and_salted(tmp_path):
    add_patient(tmp_path / "one", "A")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first, second = (ingest(tmp_path / name)["studies"][0]["id"] for name in ("one", "two"))
    assert first == second
    add_patient(tmp_path / "two", "B")
    assert first not in [row["id"] for row in ingest(tmp_path / "two")["studies"]]  # another collection, another name
    assert pseudonym("A", "salt") == "p-06e1a895"


# Real data


@pytest.mark.skipif(not REAL_ZIP.exists(), reason="real study is not here: ../shared/data/sts")
def test_a_real_zip():
    report = ingest(REAL_ZIP)
    [row] = report["studies"]
    assert row["pet"]["units"] == "GML"
    assert row["suv_factor"] == 1.0
    assert row["ct"]["spacing_mm"] == pytest.approx([0.977, 0.977, 3.27], abs=0.01)
    assert report["left_out"] == [], "the contours of the tumour are used, for scoring"
    assert "STS" not in json.dumps(report["studies"])
    study = load_pair(find_pairs(REAL_ZIP)[0][0])
    assert -1100 < study.ct.array.min() < -900
    assert 0 < study.pet.array.max() < 60
