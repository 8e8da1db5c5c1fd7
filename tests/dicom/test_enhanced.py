"""Enhanced CT and PET from three writers: by hand from the standard, highdicom's conversion, and dicom3tools."""

import copy
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_encodings import ENCODINGS
from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedPETImage
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage
from small_dicom import add_patient, edit_file, reasons, refusal
from small_enhanced import classic, enhanced_ct, enhanced_pet, item, mapping, save

from petct_lib import InputError
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.enhanced import UNITS, frame_headers
from petct_lib.dicom.headers import read_series
from petct_lib.dicom.studies import Study, find_pairs, ingest, load_pair
from petct_lib.dicom.writer import make_uid

DCMULTI = Path(sys.executable).parent / "dcmulti"  # of the test extra's dicom3tools, by another group than pydicom's
SUV_PER_BQ_ML = 3.5e-4  # 70 kg, 400 MBq, one half-life before the scan: see `add_pet`


def study_of(path: Path) -> Study:
    [pair], *_ = find_pairs(path)
    return load_pair(pair)


def write_both(root: Path, ct: list[Dataset], pet: list[Dataset], **options: object) -> Path:
    root.mkdir()
    save(enhanced_ct(ct), root / "ct.dcm")
    save(enhanced_pet(pet, **options), root / "pet.dcm")
    return root


@pytest.fixture
def slices(tmp_path) -> dict[str, list[Dataset]]:
    """A classic study's CT and PET, as written into the folder "classic"."""
    folder = add_patient(tmp_path / "classic")
    return {part: classic(folder / part) for part in ("CT", "PT")}


@pytest.fixture
def expected(slices, tmp_path) -> Study:
    return study_of(tmp_path / "classic")


def check_same(result: Study, expected: Study) -> None:
    for got, truth in ((result.ct, expected.ct), (result.pet, expected.pet)):
        assert got.array == pytest.approx(truth.array, rel=1e-6)
        assert got.affine == pytest.approx(truth.affine)
        assert got.unit == truth.unit


# By hand


def test_enhanced_files_come_back_as_the_classic_ones(tmp_path, slices, expected):
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"])
    result = study_of(root)
    check_same(result, expected)
    assert result.suv.factor == pytest.approx(SUV_PER_BQ_ML)
    assert result.suv.rule == "BQML: dose decayed to the decay correction time (0018,9701)"
    assert result.units == "BQML"
    report = ingest(root)
    assert report["left_out"] == []
    assert report["studies"][0]["pet"]["spacing_mm"] == [4, 4, 5]


def test_a_pet_that_is_mapped_to_suv_needs_no_dose(tmp_path, slices, expected):
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"], unit="{SUVbw}g/ml", scale=SUV_PER_BQ_ML)
    ds = pydicom.dcmread(root / "pet.dcm")
    del ds.RadiopharmaceuticalInformationSequence
    ds.save_as(root / "pet.dcm")
    result = study_of(root)
    check_same(result, expected)
    assert (result.suv.factor, result.suv.rule) == (1.0, "GML: stored as body-weight SUV")


@pytest.mark.parametrize("code", UNITS)
def test_every_unit_has_its_classic_name(slices, code):
    headers = frame_headers(enhanced_pet(slices["PT"], code))
    units, kind = UNITS[code]
    assert {(h.Units, h.get("SUVType")) for h in headers} == {(units, kind)}


def test_the_first_mapping_of_a_known_unit_counts(slices):
    ds = enhanced_pet(slices["PT"])
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        other = [mapping("{propcounts}", 9.0), mapping("{SUVbw}g/ml", 0.5 + k), mapping("Bq/ml", 3.0)]
        group.RealWorldValueMappingSequence = other
    headers = frame_headers(ds)
    assert [h.RescaleSlope for h in headers] == [0.5, 1.5, 2.5, 3.5]  # each its own
    assert {h.Units for h in headers} == {"GML"}


def test_a_mapping_of_another_unit_is_no_suv(tmp_path, slices):
    assert "Units are missing" in refusal(write_both(tmp_path / "in", slices["CT"], slices["PT"], unit="ml/min/g"))


def test_frames_may_come_in_any_order(tmp_path, slices, expected):
    shuffled = {part: random.Random(3).sample(frames, len(frames)) for part, frames in slices.items()}
    assert [s.InstanceNumber for s in shuffled["CT"]] != [s.InstanceNumber for s in slices["CT"]]
    check_same(study_of(write_both(tmp_path / "in", shuffled["CT"], shuffled["PT"])), expected)


def test_a_series_may_be_split_over_files(tmp_path, slices, expected):
    root = write_both(tmp_path / "in", slices["CT"][1::2], slices["PT"][:2])
    save(enhanced_ct(slices["CT"][::2]), root / "ct2.dcm")
    save(enhanced_pet(slices["PT"][2:]), root / "pet2.dcm")
    check_same(study_of(root), expected)


def test_groups_may_be_shared_or_given_for_each_frame(tmp_path, slices, expected):
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"])
    for path in root.iterdir():
        ds = pydicom.dcmread(path)
        shared = ds.SharedFunctionalGroupsSequence[0]
        for group in ds.PerFrameFunctionalGroupsSequence:
            group.update(copy.deepcopy(shared))
        del ds.SharedFunctionalGroupsSequence
        ds.save_as(path)
    check_same(study_of(root), expected)


@pytest.mark.parametrize("change", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_frames_come_out_of_every_encoding(tmp_path, change):
    """Larger slices than elsewhere: JPEG 2000 needs 32 pixels."""
    folder = add_patient(tmp_path / "classic")
    slices = {part: classic(folder / part) for part in ("CT", "PT")}
    for part, signed in (("CT", False), ("PT", True)):
        for k, ds in enumerate(slices[part]):
            ds.Rows, ds.Columns = 36, 40
            low, high = (-32768, 32768) if signed else (0, 65536)
            ds.PixelData = np.random.default_rng(k).integers(low, high, (36, 40)).astype("<i4").astype("<u2").tobytes()
            ds.save_as(folder / part / f"{k + 1:04d}.dcm")
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"])
    for path in root.iterdir():
        change(path)
    check_same(study_of(root), study_of(tmp_path / "classic"))


def test_a_frame_has_the_times_of_a_slice(tmp_path, slices):
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"])
    ds = pydicom.dcmread(root / "pet.dcm")
    del ds.DecayCorrectionDateTime
    ds.SeriesTime = "100000"
    ds.save_as(root / "pet.dcm")
    [series] = [s for s in read_series(list_files(root))[0] if s.modality == "PT"]
    assert {(h.AcquisitionDate, h.AcquisitionTime, h.ActualFrameDuration) for h in series.headers} == {
        ("20190307", "100000.25", 120000)
    }
    assert study_of(root).suv.rule == "BQML: dose decayed to the series time"


def test_a_localizer_among_the_frames_is_dropped(tmp_path, slices, expected):
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"])
    ds = enhanced_ct([*slices["CT"], slices["CT"][2]])
    scout = ds.PerFrameFunctionalGroupsSequence[-1]
    scout.CTImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])]
    scout.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])]
    save(ds, root / "ct.dcm")
    check_same(study_of(root), expected)
    assert reasons(ingest(root)) == "localizers among the slices of a series"


def test_the_frames_of_a_file_share_nothing(slices):
    """Neither with each other nor with the file's own header, which other files' headers share values with."""
    ds = enhanced_pet(slices["PT"])
    ds.CorrectedImage, ds.DecayCorrection, ds.Units = ["DECY"], "ADMIN", "CNTS"
    before = copy.deepcopy(ds)
    headers = frame_headers(ds)
    assert ds == before
    assert len({h.RescaleSlope for h in headers}) == len(headers)
    assert {(str(h.CorrectedImage), h.DecayCorrection, h.Units) for h in headers} == {("ATTN", "START", "BQML")}


# What is refused


def spoilt(tmp_path: Path, slices: dict, part: str, **changes: object) -> str:
    """Why nothing is found where the one file differs from a good one; None removes an attribute."""
    root = write_both(tmp_path / "in", slices["CT"], slices["PT"])
    edit_file(root / f"{part}.dcm", **changes)
    return refusal(root)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("pet", {"DecayCorrected": "NO"}, "DecayCorrection is 'NONE'"),
        ("pet", {"AttenuationCorrected": "NO"}, "PET is not attenuation corrected"),
        ("pet", {"RadiopharmaceuticalInformationSequence": None}, "RadiopharmaceuticalInformationSequence"),
        ("pet", {"PatientWeight": None}, "PatientWeight"),
        ("pet", {"NumberOfFrames": 3}, "a multi-frame file of 3 frames with functional groups for 4"),
        ("ct", {"NumberOfFrames": 7}, "a multi-frame file of 7 frames with functional groups for 6"),
        ("ct", {"PerFrameFunctionalGroupsSequence": None}, "a multi-frame file without functional groups"),
        ("ct", {"SharedFunctionalGroupsSequence": None}, "ImageOrientationPatient or PixelSpacing is missing"),
    ],
)
def test_what_is_missing_is_named(tmp_path, slices, part, changes, reason):
    assert reason in spoilt(tmp_path, slices, part, **changes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("PixelValueTransformationSequence", {}),
        ("PixelValueTransformationSequence", {"RescaleSlope": 1}),
        ("PlanePositionSequence", {}),
        ("PlanePositionSequence", {"ImagePositionPatient": [1, 2]}),
        ("FrameContentSequence", {"FrameAcquisitionDuration": [1.0, 2.0]}),
        ("PixelMeasuresSequence", {"PixelSpacing": 1}),
    ],
)
def test_a_broken_group_costs_its_series_alone(tmp_path, slices, name, content):
    groups = [copy.deepcopy(g) for g in enhanced_ct(slices["CT"]).PerFrameFunctionalGroupsSequence]
    setattr(groups[2], name, [item(**content)])
    shared = enhanced_ct(slices["CT"]).SharedFunctionalGroupsSequence
    if name == "PixelValueTransformationSequence":
        del shared[0].PixelValueTransformationSequence
    changes = {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": shared}
    assert spoilt(tmp_path, slices, "ct", **changes)
    add_patient(tmp_path / "in", "B")
    assert len(ingest(tmp_path / "in")["studies"]) == 1


def test_a_mapping_without_an_intercept_is_refused(tmp_path, slices):
    groups = enhanced_pet(slices["PT"]).PerFrameFunctionalGroupsSequence
    del groups[1].RealWorldValueMappingSequence[0].RealWorldValueIntercept
    reason = spoilt(tmp_path, slices, "pet", PerFrameFunctionalGroupsSequence=groups)
    assert "RescaleIntercept is missing" in reason


def test_two_volumes_in_one_file_are_duplicates(tmp_path, slices):
    """Two time points, energies or gates: which is meant is not guessed."""
    root = write_both(tmp_path / "in", slices["CT"], [*slices["PT"], *slices["PT"]])
    assert "4 duplicate slice positions, the first at -98.0 mm" in refusal(root)


def test_a_classic_header_is_returned_as_it_is(slices):
    assert frame_headers(slices["CT"][0]) == [slices["CT"][0]]
    with pytest.raises(InputError, match="without functional groups: its frames have no position"):
        frame_headers(item(NumberOfFrames=2))


# By others


@pytest.mark.filterwarnings("ignore")  # about the patient's name, which has one part
def convert(slices: list[Dataset], path: Path) -> None:
    for one in slices:
        one.ContentQualification, one.PatientName = "PRODUCT", "Nobody^"
    kind = LegacyConvertedEnhancedCTImage if slices[0].Modality == "CT" else LegacyConvertedEnhancedPETImage
    kind(slices, make_uid("legacy", slices[0].Modality), 1, make_uid("legacy image", path.name), 1).save_as(path)


def test_legacy_converted_files_of_highdicom(tmp_path, slices, expected):
    (tmp_path / "in").mkdir()
    for part, frames in slices.items():
        convert(random.Random(4).sample(frames, len(frames)), tmp_path / "in" / f"{part}.dcm")
    result = study_of(tmp_path / "in")
    check_same(result, expected)
    assert result.suv.factor == pytest.approx(SUV_PER_BQ_ML)
    assert result.suv.rule == expected.suv.rule
    assert ingest(tmp_path / "in")["left_out"] == []


@pytest.mark.parametrize("shared", [True, False])
def test_a_legacy_converted_pet_keeps_what_its_maker_added(tmp_path, slices, shared):
    """GE's own scan time: without it the dose would be decayed to the acquisition time instead."""
    (tmp_path / "in").mkdir()
    for k, one in enumerate(slices["PT"]):
        one.SeriesTime, one.AcquisitionTime = "113000", "100500"
        block = one.private_block(0x0009, "GEMS_PETD_01", create=True)
        block.add_new(0x0D, "DT", "20190307100000.00" if shared or k else "20190307100000.0")
    for part, frames in slices.items():
        convert(frames, tmp_path / "in" / f"{part}.dcm")
    result = study_of(tmp_path / "in")
    assert result.suv.rule == "BQML: dose decayed to the GE private scan time"
    assert result.suv.factor == pytest.approx(SUV_PER_BQ_ML)


def test_an_enhanced_ct_of_dicom3tools(tmp_path, slices, expected):
    """It knows no enhanced PET: that one stays classic."""
    folder = tmp_path / "classic" / "A1"
    files = [str(path) for path in sorted((folder / "CT").iterdir())]
    done = subprocess.run([DCMULTI, *files], capture_output=True, check=False)
    assert done.returncode == 0
    for path in files:
        Path(path).unlink()
    (folder / "CT" / "multi.dcm").write_bytes(done.stdout)
    assert pydicom.dcmread(folder / "CT" / "multi.dcm").SOPClassUID == EnhancedCTImageStorage
    check_same(study_of(tmp_path / "classic"), expected)
