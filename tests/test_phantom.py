"""The phantom: reproducible, in the stated units, hot and dense where its truth says, and read back from DICOM."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import dicom_errors
from scipy import ndimage

from petct_lib import phantom
from petct_lib.phantom import PhantomSettings, make_patient, write_patient, write_phantom
from petct_lib.volume import Volume

SMALL = PhantomSettings(ct_pixel_mm=4.0, ct_size=104, ct_slice_mm=8.0, pet_slice_mm=8.0)
QUIET = replace(SMALL, ct_noise_hu=0.0, pet_noise=0.0, breathing_mm=0.0)
SEED = 11


@pytest.fixture(scope="module")
def cohort() -> list[phantom.Patient]:
    return [make_patient(SEED, index, SMALL) for index in range(24)]


@pytest.fixture(scope="module")
def quiet() -> list[phantom.Patient]:
    return [make_patient(SEED, index, QUIET) for index in range(24)]


def value_at(volume: Volume, point_mm: list[float]) -> float:
    x, y, z = (np.linalg.inv(volume.affine) @ [*point_mm, 1])[:3]
    return float(ndimage.map_coordinates(volume.array, [[z], [y], [x]], order=1, mode="nearest")[0])


def read_series(folder: Path) -> tuple[list[pydicom.Dataset], np.ndarray]:
    """Datasets feet to head and their rescaled values (z, y, x)."""
    files = sorted((pydicom.dcmread(p) for p in folder.glob("*.dcm")), key=lambda d: float(d.ImagePositionPatient[2]))
    return files, np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files])


def seconds(clock: str) -> int:
    return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:6])


def test_same_seed_same_bits(cohort):
    again = make_patient(SEED, 3, SMALL)
    assert again.ct.array.tobytes() == cohort[3].ct.array.tobytes()
    assert again.pet_suv.array.tobytes() == cohort[3].pet_suv.array.tobytes()
    assert again.truth == cohort[3].truth
    assert (again.dose_bq, again.uptake_s) == (cohort[3].dose_bq, cohort[3].uptake_s)


def test_other_index_or_seed_differs(cohort):
    for other in (cohort[4], make_patient(SEED + 1, 3, SMALL)):
        assert np.abs(other.ct.array - cohort[3].ct.array).mean() > 20


def test_grids_cover_the_same_extent_with_an_offset(cohort):
    ct, pet = cohort[0].ct, cohort[0].pet_suv
    assert (ct.unit, pet.unit, ct.array.dtype, pet.array.dtype) == ("HU", "SUV", np.float32, np.float32)
    assert ct.array.shape == (30, 104, 104)
    assert np.allclose(ct.spacing_mm, [4.0, 4.0, 8.0])
    assert np.allclose(pet.spacing_mm, [4.07, 4.07, 8.0])
    assert np.allclose(ct.corners_mm()[:, 2], pet.corners_mm()[:, 2])
    apart = pet.corners_mm().mean(axis=0)[:2] - ct.corners_mm().mean(axis=0)[:2]
    assert np.allclose(apart, 2.0)


def test_values_stay_in_range(cohort):
    for p in cohort:
        assert p.ct.array.min() >= -1024
        assert 350 < p.ct.array.max() < 1200
        assert p.pet_suv.array.min() >= 0
        assert p.pet_suv.array.max() < 16
        assert p.pet_suv.array[:, :4].max() < 0.05  # nothing in front of the patient


def test_lung_and_liver_have_their_values(cohort):
    for p in cohort:
        lung = (p.ct.array < -750) & (p.ct.array > -925)
        assert -885 < np.median(p.ct.array[lung]) < -810
        assert 2500 < lung.sum() * np.prod(p.ct.spacing_mm) / 1000 < 7500  # ml, both lungs at full inspiration
        liver = liver_block(p.ct), liver_block(p.pet_suv)
        assert abs(liver[0].mean() - 60) < 8  # its texture is smooth over centimetres
        assert abs(liver[1].mean() - p.truth["organs"]["liver"]["suv"]) < 0.15


def liver_block(volume: Volume) -> np.ndarray:
    """Voxels of a 30 mm block in the lower right of the trunk."""
    low, high = volume.corners_mm().min(axis=0), volume.corners_mm().max(axis=0)
    middle = np.array([-65.0, -35.0, low[2] + 16])
    assert middle[2] < high[2]
    x, y, z = (np.linalg.inv(volume.affine) @ [*middle, 1])[:3].round().astype(int)
    return volume.array[z - 1 : z + 2, y - 4 : y + 5, x - 4 : x + 5]


def test_noise_is_as_set(cohort, quiet):
    noise_ct = np.concatenate([liver_block(a.ct) - liver_block(b.ct) for a, b in zip(cohort, quiet, strict=True)])
    assert abs(noise_ct.std() - SMALL.ct_noise_hu) < 1.0
    still = replace(SMALL, breathing_mm=0.0)
    pairs = [(make_patient(SEED, i, still), quiet[i]) for i in range(8)]
    relative = [(liver_block(a.pet_suv) - liver_block(b.pet_suv)) / liver_block(b.pet_suv).mean() for a, b in pairs]
    assert 0.075 < np.std(relative) < 0.105


def test_lesions_are_hot_and_dense_where_the_truth_says(cohort):
    lesions = [(p, lesion) for p in cohort for lesion in p.truth["lesions"]]
    assert len(lesions) > 20
    for p, lesion in lesions:
        assert 3 <= lesion["suv"] <= 12
        assert 20 <= lesion["hu"] <= 60
        assert 5 <= lesion["radius_mm"] <= 20
        if lesion["radius_mm"] > 8:  # smaller ones are lost in 8 mm slices
            assert value_at(p.ct, lesion["centre_mm"]) > -150
            assert value_at(p.pet_suv, lesion["centre_mm"]) > 0.55 * lesion["suv"]
        if lesion["radius_mm"] > 14:
            assert abs(value_at(p.pet_suv, lesion["centre_mm"]) / lesion["suv"] - 1) < 0.3


def test_lesions_do_not_overlap_and_vary_in_number(cohort):
    counts = [len(p.truth["lesions"]) for p in cohort]
    assert 1 <= counts.count(0) <= 10
    assert max(counts) <= 4
    assert {lesion["site"] for p in cohort for lesion in p.truth["lesions"]} == {"lung", "hilum", "mediastinum"}
    for p in cohort:
        for i, a in enumerate(p.truth["lesions"]):
            for b in p.truth["lesions"][:i]:
                gap = np.linalg.norm(np.subtract(a["centre_mm"], b["centre_mm"]))
                assert gap > a["radius_mm"] + b["radius_mm"]


def test_patients_differ_in_size(cohort):
    widths = []
    for p in cohort:
        body = ndimage.binary_opening(p.ct.array[15] > -300, iterations=2)  # the couch's shells are thin
        widths.append(body.any(axis=0).sum() * p.ct.spacing_mm[0])
    assert 300 < min(widths) < 350
    assert 370 < max(widths) < 415
    assert np.std([p.weight_kg for p in cohort]) > 4
    assert {p.sex for p in cohort} == {"F", "M"}


def test_couch_is_in_the_ct_only():
    with_couch, without = (make_patient(SEED, 0, replace(QUIET, couch=c)) for c in (True, False))
    differs = np.abs(with_couch.ct.array - without.ct.array) > 20
    assert differs.sum() > 1000
    assert np.nonzero(differs)[1].min() > 55  # behind the middle of the field
    assert np.array_equal(with_couch.pet_suv.array, without.pet_suv.array)


def test_breathing_moves_the_diaphragm_not_the_apex():
    still, moving = (make_patient(SEED, 1, replace(QUIET, breathing_mm=mm)).pet_suv.array for mm in (0.0, 8.0))
    change = np.abs(moving - still).max(axis=(1, 2))
    assert change[8:12].max() > 0.5
    assert change[-5:].max() < 1e-5


def test_dicom_round_trip(tmp_path, cohort):
    p = cohort[2]
    write_patient(p, tmp_path, SEED)
    ct_files, hu = read_series(tmp_path / p.patient_id / "CT")
    pet_files, bq_ml = read_series(tmp_path / p.patient_id / "PT")
    assert np.abs(hu - p.ct.array).max() <= 0.5 + 1e-3
    first = pet_files[0]
    drug = first.RadiopharmaceuticalInformationSequence[0]
    assert (first.Units, first.DecayCorrection) == ("BQML", "START")
    uptake_s = seconds(first.SeriesTime) - seconds(drug.RadiopharmaceuticalStartTime)
    assert 2400 <= uptake_s <= 5400
    decayed = float(drug.RadionuclideTotalDose) * 2 ** (-uptake_s / float(drug.RadionuclideHalfLife))
    to_suv = float(first.PatientWeight) * 1000 / decayed
    step = np.array([float(d.RescaleSlope) for d in pet_files])[:, None, None] * to_suv
    assert np.all(np.abs(bq_ml * to_suv - p.pet_suv.array) <= step)
    assert 3e6 < float(drug.RadionuclideTotalDose) / float(first.PatientWeight) < 5e6
    position = p.pet_suv.affine @ [0, 0, 5, 1]
    assert np.allclose([float(v) for v in pet_files[5].ImagePositionPatient], position[:3], atol=1e-4)
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
        assert ct_files[0][tag].value == first[tag].value
    assert ct_files[0].SeriesInstanceUID != first.SeriesInstanceUID


def test_written_bytes_depend_on_the_seed_only(tmp_path, cohort):
    for name, seed in (("a", SEED), ("b", SEED), ("c", SEED + 1)):
        write_patient(cohort[0], tmp_path / name, seed)
    one = Path("PHANTOM-0000", "PT", "0003.dcm")
    assert (tmp_path / "a" / one).read_bytes() == (tmp_path / "b" / one).read_bytes()
    assert (tmp_path / "a" / one).read_bytes() != (tmp_path / "c" / one).read_bytes()


def test_write_phantom_writes_truth_last(tmp_path, cohort):
    seen = []

    def progress(indices):
        for index in indices:
            seen.append((index, (tmp_path / "data" / "truth.json").exists()))
            yield index

    folder = write_phantom(tmp_path / "data", 2, SEED, SMALL, progress)
    assert seen == [(0, False), (1, False)]
    assert sorted(p.name for p in folder.iterdir()) == ["PHANTOM-0000", "PHANTOM-0001", "truth.json"]
    written = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    assert written == {"seed": SEED, "patients": {p.patient_id: p.truth for p in cohort[:2]}}
    assert len(list((folder / "PHANTOM-0001" / "CT").iterdir())) == 30


def test_a_failed_run_leaves_no_truth(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "write_patient", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path, 1, SEED, SMALL)
    assert not list(tmp_path.iterdir())


def test_default_settings_make_clinical_grids():
    p = make_patient(SEED, 0)
    assert p.ct.array.shape == (80, 300, 300)
    assert p.pet_suv.array.shape == (60, 104, 104)
    assert (p.ct.array > 400).mean() > 0.004  # cortex is drawn, not lost between voxels


def test_dciodvfy_finds_no_error_in_its_dicom(phantom_dir):
    for part in ("CT", "PT"):
        assert dicom_errors(sorted((phantom_dir / "PHANTOM-0002" / part).iterdir())[4]) == []
