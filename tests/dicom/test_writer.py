"""What is written comes back through the reader, says that it is synthetic, and is valid DICOM."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import dicom_errors
from pydicom.uid import UID

from petct_lib import WARNING, InputError
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import read_series
from petct_lib.dicom.studies import load_series
from petct_lib.dicom.suv import suv_factor
from petct_lib.dicom.writer import Subject, Tracer, make_uid, write_ct, write_derived, write_pet
from petct_lib.imaging.volume import Volume

SUBJECT = Subject("p-12345678", make_uid("study"), make_uid("frame"), "20200202", 80.0, 1.8, "F")
DERIVED = Subject("p-12345678", make_uid("new study"), make_uid("frame"))
TRACER = Tracer(4e8, "090000", "100000", half_life_s=3600.0)
FACTOR = 80000 / 2e8  # 80 kg; half of 400 MBq is left after an hour
TURN = np.radians(20)
OBLIQUE = np.array(
    [
        [2 * np.cos(TURN), -3 * np.sin(TURN), 0, -100.123456],
        [2 * np.sin(TURN), 3 * np.cos(TURN), 0, 50.25],
        [0, 0, 4, -712.5],
        [0, 0, 0, 1],
    ]
)


def volume(unit: str, low: float, high: float) -> Volume:
    """Noise between low and high, ten times weaker in every next slice; (5, 6, 7), oblique."""
    noise = np.random.default_rng(5).uniform(low, high, (5, 6, 7))
    scale = 0.1 ** np.arange(5) if unit != "HU" else np.ones(5)
    return Volume((noise * scale[:, None, None]).astype(np.float32), OBLIQUE, unit)


def write(kind: str, folder: Path) -> list[Path]:
    """One small series of every kind that the module writes."""
    if kind == "ct":
        return write_ct(volume("HU", -1024, 2000), folder, SUBJECT, make_uid("ct"))
    if kind == "pet":
        return write_pet(volume("Bq/ml", 0, 40000), folder, SUBJECT, make_uid("pet"), TRACER)
    source = volume("HU", -1024, 2000) if kind == "derived ct" else volume("SUV", 0, 15)
    return write_derived(source, folder, DERIVED, description="Synthetic, from a test", seed="1")


KINDS = ["ct", "pet", "derived ct", "derived pet"]


def read_back(folder: Path, factor: float, unit: str) -> Volume:
    [series], left_out = read_series(list_files(folder))
    assert not left_out
    return load_series(series, factor, unit)


def headers(paths: list[Path]) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p) for p in paths]


@pytest.mark.parametrize("kind", ["ct", "derived ct"])
def test_hu_come_back(tmp_path, kind):
    write(kind, tmp_path)
    back, source = read_back(tmp_path, 1.0, "HU"), volume("HU", -1024, 2000)
    assert np.abs(back.array - source.array).max() <= 0.5
    assert np.allclose(back.affine, source.affine, atol=1e-4)


def test_hu_below_air_are_stored_as_air(tmp_path):
    write_ct(volume("HU", -3000, -2000), tmp_path, SUBJECT, make_uid("ct"))
    assert np.all(read_back(tmp_path, 1.0, "HU").array == -1024)


def test_activity_comes_back_as_suv(tmp_path):
    paths = write("pet", tmp_path)
    result = suv_factor(headers(paths))
    assert result.factor == pytest.approx(FACTOR, rel=1e-9)
    back, source = read_back(tmp_path, result.factor, "SUV"), volume("Bq/ml", 0, 40000)
    steps = np.array([float(h.RescaleSlope) for h in headers(paths)])
    assert len(set(steps)) == 5, "every slice has its own slope"
    assert np.all(np.abs(back.array - source.array * FACTOR) <= 0.51 * FACTOR * steps[:, None, None])
    assert np.all(steps <= 1.01 * source.array.max(axis=(1, 2)) / 32767)
    assert np.allclose(back.affine, source.affine, atol=1e-4)


def test_derived_suv_come_back(tmp_path):
    paths = write("derived pet", tmp_path)
    assert suv_factor(headers(paths)).factor == 1.0
    steps = np.array([float(h.RescaleSlope) for h in headers(paths)])[:, None, None]
    assert np.all(np.abs(read_back(tmp_path, 1.0, "SUV").array - volume("SUV", 0, 15).array) <= 0.51 * steps)


@pytest.mark.parametrize(("kind", "units", "name"), [("lbm_janma", "GML", "LBMJANMA"), ("bsa", "CM2ML", "BSA")])
def test_derived_pet_says_its_kind_of_suv(tmp_path, kind, units, name):
    paths = write_derived(volume("SUV", 0, 15), tmp_path, DERIVED, description="x", seed="1", suv_kind=kind)
    assert (headers(paths)[0].Units, headers(paths)[0].SUVType) == (units, name)
    assert suv_factor(headers(paths), kind).factor == 1.0
    with pytest.raises(InputError, match="PatientWeight"):
        suv_factor(headers(paths))  # to body weight, it would take the weight


def test_negative_pet_is_not_clipped(tmp_path):
    """Iterative reconstructions have none, filtered back projection has many."""
    source = volume("SUV", -4, 1)
    write_derived(source, tmp_path, DERIVED, description="Negative", seed="1")
    assert np.allclose(read_back(tmp_path, 1.0, "SUV").array, source.array, atol=1e-3)


def test_an_empty_slice_can_be_stored(tmp_path):
    empty = Volume(np.zeros((2, 3, 3), np.float32), OBLIQUE, "SUV")
    write_derived(empty, tmp_path, DERIVED, description="Empty", seed="1")
    assert not read_back(tmp_path, 1.0, "SUV").array.any()


@pytest.mark.parametrize("kind", ["derived ct", "derived pet"])
def test_a_derived_series_says_what_it_is(tmp_path, kind):
    originals = headers(write("ct", tmp_path / "ct") + write("pet", tmp_path / "pet"))
    derived = headers(write(kind, tmp_path / "derived"))
    for ds in derived:
        assert list(ds.ImageType)[:2] == ["DERIVED", "SECONDARY" if kind == "derived ct" else "PRIMARY"]
        assert WARNING in ds.SeriesDescription
        assert ds.SeriesDescription.startswith("Synthetic, from a test")
        assert WARNING in ds.ImageComments
        assert "Synthetic, from a test" in ds.DerivationDescription
        assert WARNING in ds.DerivationDescription
        assert ds.FrameOfReferenceUID == originals[0].FrameOfReferenceUID == SUBJECT.frame_of_reference_uid
        assert ds.StudyDate == "20000101"
        assert ds.PatientID == "p-12345678"
        assert "PatientWeight" not in ds
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert not {ds[keyword].value for ds in derived} & {ds[keyword].value for ds in originals}
    assert not any("DERIVED" in ds.ImageType for ds in originals)


def test_a_long_description_does_not_cost_the_warning(tmp_path):
    description = "Uncertainty (SD) of many samples, synthetic CT from PET"
    [ds, *_] = headers(write_derived(volume("HU", 0, 1), tmp_path, DERIVED, description=description, seed="1"))
    assert len(ds.SeriesDescription) <= 64  # VR LO
    assert ds.SeriesDescription.startswith("Uncertainty (SD)")
    assert ds.SeriesDescription.endswith(WARNING)
    assert description in ds.DerivationDescription


def test_uids_depend_on_their_parts_alone():
    assert make_uid("seed", 1) == make_uid("seed", 1)
    assert len({make_uid(*parts) for parts in [("seed", 1), ("seed", 2), ("other", 1), ("seed",)]}) == 4
    assert UID(make_uid("seed", 1)).is_valid


@pytest.mark.parametrize("kind", KINDS)
def test_uids_are_valid_and_one_for_each_slice(tmp_path, kind):
    files = headers(write(kind, tmp_path))
    assert len({ds.SOPInstanceUID for ds in files}) == len(files) == 5
    assert len({(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID) for ds in files}) == 1
    for ds in files:
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        for element in ds:
            assert element.VR != "UI" or UID(element.value).is_valid


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_write_the_same_bytes(tmp_path, kind):
    once, again = write(kind, tmp_path / "a"), write(kind, tmp_path / "b")
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]


def test_series_of_other_seeds_or_descriptions_have_other_uids(tmp_path):
    uids = set()
    for description, seed in (("a", "1"), ("a", "2"), ("b", "1")):
        folder = tmp_path / f"{description}{seed}"
        [ds, *_] = headers(write_derived(volume("HU", 0, 1), folder, DERIVED, description=description, seed=seed))
        uids |= {ds.SeriesInstanceUID, ds.SOPInstanceUID}
    assert len(uids) == 6


def test_wrong_units_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Bq/ml, not 'SUV'"):
        write_pet(volume("SUV", 0, 1), tmp_path, SUBJECT, make_uid("pet"), TRACER)
    with pytest.raises(ValueError, match="HU or SUV, not 'Bq/ml'"):
        write_derived(volume("Bq/ml", 0, 1), tmp_path, DERIVED, description="x", seed="1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(tmp_path, kind):
    assert dicom_errors(write(kind, tmp_path)[2]) == []
