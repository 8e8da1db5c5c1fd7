"""A marker in every identifying attribute of the input: nothing that a run writes or prints holds it."""

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import pydicom
import pytest
from conftest import SMALL, TINY, petct
from pydicom import Dataset

from petct_lib.common.files import read_json
from petct_lib.dicom.studies import pseudonym
from petct_lib.dicom.suv import GE_SCAN_TIME
from petct_lib.phantom.cohort import write_phantom

pytestmark = pytest.mark.slow

MARKER = "ZQXPRIVATE"
DAY = "19870613"  # of the scans: it has to stay a date, for SUV depends on it
FORBIDDEN = [MARKER, MARKER.lower(), DAY, "1987-06-13", "13.06.1987", "06/13/1987", "19450508"]
# Text attributes of the Basic Application Level Confidentiality Profile (DICOM PS3.15, table E.1-1).
TEXTS = [
    "AccessionNumber", "AcquisitionComments", "AcquisitionDeviceProcessingDescription",
    "AcquisitionProtocolDescription", "AdditionalPatientHistory", "AdmittingDiagnosesDescription", "Allergies",
    "BranchOfService", "CassetteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "CommentsOnThePerformedProcedureStep", "ContrastBolusAgent", "CountryOfResidence", "DetectorID",
    "DeviceSerialNumber", "EthnicGroup", "FillerOrderNumberImagingServiceRequest", "GantryID", "GeneratorID",
    "IdentifyingComments", "ImageComments", "InstitutionAddress", "InstitutionName", "InstitutionalDepartmentName",
    "InsurancePlanIdentification", "IssuerOfPatientID", "MedicalAlerts", "MedicalRecordLocator", "MilitaryRank",
    "NameOfPhysiciansReadingStudy", "Occupation", "OperatorsName", "OtherPatientIDs", "OtherPatientNames",
    "PatientAddress", "PatientBirthName", "PatientComments", "PatientID", "PatientMotherBirthName", "PatientName",
    "PatientReligiousPreference", "PatientTelephoneNumbers", "PerformedProcedureStepDescription",
    "PerformedProcedureStepID", "PerformingPhysicianName", "PhysiciansOfRecord", "PlateID", "ProtocolName",
    "ReasonForStudy", "ReferringPhysicianAddress", "ReferringPhysicianName", "ReferringPhysicianTelephoneNumbers",
    "RegionOfResidence", "RequestedProcedureDescription", "RequestedProcedureID", "RequestingPhysician",
    "RequestingService", "ResponsibleOrganization", "ResponsiblePerson", "ScheduledPerformingPhysicianName",
    "SeriesDescription", "SpecialNeeds", "StationName", "StudyComments", "StudyDescription", "StudyID",
    "RadiopharmaceuticalRoute", "Radiopharmaceutical", "TextComments", "TextString",
]  # fmt: skip
DATES = (
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate", "AcquisitionDateTime",
    "DateOfLastCalibration", "DateOfSecondaryCapture", "LastMenstrualDate", "PerformedProcedureStepStartDate",
    "ScheduledProcedureStepStartDate", "ScheduledProcedureStepEndDate", "DateOfGainCalibration", "CurveDate",
)  # fmt: skip
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def plant(path: Path, patient: int, uids: set[str]) -> None:
    """Marks one file of a patient; its UIDs are added to those to look for."""
    ds = pydicom.dcmread(path)
    for keyword in TEXTS:
        setattr(ds, keyword, f"{MARKER}{patient}")
    for keyword in DATES:
        setattr(ds, keyword, DAY)
    ds.PatientBirthDate = "19450508"
    ds.RequestAttributesSequence = [Dataset()]
    ds.RequestAttributesSequence[0].RequestedProcedureDescription = MARKER
    ds.private_block(0x0011, MARKER, create=True).add_new(1, "LO", MARKER)
    if ds.Modality == "PT":
        drug = ds.RadiopharmaceuticalInformationSequence[0]
        if "RadiopharmaceuticalStartDateTime" in drug:
            drug.RadiopharmaceuticalStartDateTime = DAY + drug.RadiopharmaceuticalStartDateTime[8:]
        drug.Radiopharmaceutical = MARKER
        if "DecayCorrectionDateTime" in ds:
            ds.DecayCorrectionDateTime = DAY + ds.DecayCorrectionDateTime[8:]
        if GE_SCAN_TIME in ds:
            ds[GE_SCAN_TIME].value = DAY + ds[GE_SCAN_TIME].value[8:]
    ds.save_as(path)
    uids.update(str(ds[keyword].value) for keyword in UIDS)


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> tuple[Path, set[str]]:
    """Seven marked patients, three of them unusable for reasons that are told; folders and files bear their names."""
    root, uids = tmp_path_factory.mktemp("privacy") / "data", set()
    write_phantom(root, 7, 0, SMALL)
    (root / "truth.json").unlink()
    shutil.rmtree(root / "truth")
    for k, folder in enumerate(sorted(root.iterdir())):
        for path in folder.rglob("*.dcm"):
            plant(path, k, uids)
            path.rename(path.with_name(f"{MARKER}_{path.name}"))
        folder.rename(root / f"{MARKER}_{k}")
    header, pixels, suv = (sorted((root / f"{MARKER}_{k}" / "PT").iterdir()) for k in (4, 5, 6))
    header[2].write_bytes(header[2].read_bytes()[:300])
    pixels[2].write_bytes(pixels[2].read_bytes()[:-500])
    for path in suv:
        ds = pydicom.dcmread(path)
        ds.Units = "PROPCNTS"
        ds.save_as(path)
    return root, uids


@pytest.fixture(scope="module")
def run(marked, tmp_path_factory) -> tuple[Path, str]:
    """A tiny run on them, and what it printed."""
    out = tmp_path_factory.mktemp("privacy_runs") / "run"
    done = petct("run", "--profile", TINY, "--data", str(marked[0]), "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done.stdout + done.stderr


def contents(path: Path) -> bytes:
    """A file's bytes, and those of its members where it is a zip, as checkpoints are."""
    raw = path.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            raw += b"".join(archive.read(name) for name in archive.namelist())
    return raw


def check(raw: bytes, uids: set[str], what: str) -> None:
    for text in FORBIDDEN:
        for encoding in ("utf-8", "utf-16-le"):
            assert text.encode(encoding) not in raw, f"{text} is in {what}"
    result = set(re.findall(rb"[0-9]+(?:\.[0-9]+){4,}", raw)) & {uid.encode() for uid in uids}
    assert not result, f"a UID of the input is in {what}"


def test_the_search_finds_what_it_looks_for(marked):
    root, uids = marked
    raw = next(root.rglob("*.dcm")).read_bytes()
    for planted in (raw, MARKER.encode("utf-16-le"), b"born 19450508"):
        with pytest.raises(AssertionError, match="is in it"):
            check(planted, set(), "it")
    with pytest.raises(AssertionError, match="a UID"):
        check(f"seen {sorted(uids)[0]} here".encode(), uids, "it")


def test_nothing_of_the_patients_is_in_what_a_run_writes(marked, run):
    files = [path for path in run[0].rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".dcm", ".json", ".csv", ".ipynb", ".png", ".npy", ".pt", ".txt"} <= kinds
    for path in files:
        check(contents(path), marked[1], path.name)
        check(str(path.relative_to(run[0])).encode(), marked[1], "a path")


def test_nothing_of_the_patients_is_in_what_a_run_prints(marked, run):
    check(run[1].encode(), marked[1], "the terminal")


def test_the_reasons_are_told_all_the_same(run):
    words = json.dumps(read_json(run[0] / "prepared" / "index.json")["left_out"])
    for reason in ("unreadable file", r"image \d+ of 38", "PROPCNTS"):
        assert re.search(reason, words)


def test_a_patient_is_found_by_the_salt_of_the_run(run):
    salt = (run[0] / "prepared" / "salt.txt").read_text().strip()
    members = {p for role in read_json(run[0] / "splits.json").values() for p in role}
    assert members == {pseudonym(f"{MARKER}{k}", salt) for k in range(4)}
    for path in run[0].rglob("*"):
        if path.is_file() and path.name != "salt.txt":
            assert salt.encode() not in contents(path), f"the salt is in {path.name}"


def test_ingest_shows_files_to_their_owner_and_nothing_else(marked):
    done = petct("ingest", str(marked[0]), "--json")
    report = json.loads(done.stdout)
    check(json.dumps(report["studies"]).encode(), marked[1], "the studies")
    for item in report["left_out"]:
        check(re.sub(r" \([^()]*\)$", "", item["what"]).encode(), marked[1], "what is left out")
        check(item["reason"].encode(), marked[1], "a reason")
    assert any(MARKER in item["what"] for item in report["left_out"]), "the owner sees which file it is"


def test_a_translation_holds_nothing_of_its_patient(marked, run, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(marked[0] / f"{MARKER}_1", study)
    done = petct("translate", str(study), "--run", str(run[0]), "--direction", "pet2ct", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    check((done.stdout + done.stderr).encode(), marked[1], "the terminal")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            check(contents(path), marked[1], path.name)


def test_errors_hold_nothing_of_the_patient(marked, tmp_path):
    for k in (4, 5, 6):
        folder = tmp_path / f"study{k}"
        shutil.copytree(marked[0] / f"{MARKER}_{k}", folder)
        for path in folder.rglob("*.dcm"):
            path.rename(path.with_name(path.name.removeprefix(f"{MARKER}_")))
        done = petct("ingest", str(folder))
        assert done.returncode == 2
        check((done.stdout + done.stderr).encode(), marked[1], "the error")
