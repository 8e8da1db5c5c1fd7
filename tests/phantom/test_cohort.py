"""The phantom: reproducible, in the stated units, hot and dense where its truth says, and read back from DICOM."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import SMALL, dicom_errors
from scipy import ndimage

from petct_lib import InputError
from petct_lib.common.parallel import parallel_map
from petct_lib.dicom.seg import read_segments
from petct_lib.dicom.studies import find_pairs, load_pair
from petct_lib.imaging.nifti import read_nifti
from petct_lib.imaging.volume import Volume, resample
from petct_lib.phantom import cohort as cohort_module
from petct_lib.phantom.cohort import (
    BREATH,
    Patient,
    PhantomSettings,
    has_follow_up,
    make_patient,
    phantom_settings,
    write_phantom,
)
from petct_lib.phantom.reference_values import PUBLISHED, organ_means
from petct_lib.phantom.scanner import CtScanner, PetScanner
from petct_lib.phantom.tissues import LABEL, LUNG
from petct_lib.phantom.vendor_headers import VARIANTS

HARD = replace(SMALL, difficulty="realistic", breathing_mm=10.0, follow_ups=0.25)  # coarse grids, all else as in life
QUIET = replace(HARD, ct=CtScanner(noise_hu=0.0), pet=PetScanner(counts=None))
SEED, COUNT = 11, 16


def cohort_of(settings: PhantomSettings) -> list[Patient]:
    return parallel_map(partial(make_patient, SEED, settings=settings), range(COUNT))


@pytest.fixture(scope="module")
def cohort() -> list[Patient]:
    return cohort_of(HARD)


@pytest.fixture(scope="module")
def clinical() -> Patient:
    """One patient with the quick profile's grids, still and without noise."""
    scanners = {"ct": CtScanner(noise_hu=0.0), "pet": PetScanner(counts=None)}
    return make_patient(SEED, 2, phantom_settings(ct_pixel_mm=1.4, ct_size=320, breathing_mm=0.0, **scanners))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Nine patients as DICOM, at the coarsest grids, every second one with a follow-up."""
    folder = tmp_path_factory.mktemp("written") / "data"
    return write_phantom(folder, 9, SEED, replace(HARD, follow_ups=0.5))


def same_pixels(a: cohort_module.Patient, b: cohort_module.Patient) -> bool:
    return all(
        getattr(a, n).array.tobytes() == getattr(b, n).array.tobytes() for n in ("ct", "pet_suv", "labels", "hu")
    )


# Reproducible.


def test_same_seed_same_bits_in_any_process(cohort):
    again = make_patient(SEED, 3, HARD)  # the cohort was made in worker processes
    assert same_pixels(again, cohort[3])
    assert again.truth == cohort[3].truth
    assert (again.dose_bq, again.uptake_s, again.variant) == (cohort[3].dose_bq, cohort[3].uptake_s, cohort[3].variant)


@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_threads_changes_nothing(cohort, monkeypatch, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert same_pixels(make_patient(SEED, 3, HARD), cohort[3])


def test_other_index_or_seed_differs(cohort):
    for other in (cohort[4], make_patient(SEED + 1, 3, HARD)):
        assert np.abs(other.ct.array - cohort[3].ct.array).mean() > 20


def test_an_unknown_difficulty_is_refused():
    with pytest.raises(InputError, match="'hard' is unknown: it is one of easy, realistic"):
        phantom_settings("hard")


# Grids and values.


def test_grids_cover_the_same_extent_with_an_offset(cohort):
    ct, pet = cohort[0].ct, cohort[0].pet_suv
    assert (ct.unit, pet.unit, ct.array.dtype, pet.array.dtype) == ("HU", "SUV", np.float32, np.float32)
    assert ct.array.shape == (38, 112, 112)
    assert np.allclose(ct.spacing_mm, [4.0, 4.0, 8.0])
    assert np.allclose(pet.spacing_mm, [4.07, 4.07, 8.0])
    assert np.allclose(ct.corners_mm()[:, 2], pet.corners_mm()[:, 2])
    apart = pet.corners_mm().mean(axis=0)[:2] - ct.corners_mm().mean(axis=0)[:2]
    assert np.allclose(apart, 2.0)


def test_default_settings_make_clinical_grids():
    s = PhantomSettings()
    assert (s.ct_size, s.ct_pixel_mm, s.pet_size, s.pet_pixel_mm) == (512, 0.977, 168, 4.07)
    assert s.extent_mm / s.ct_slice_mm == 100


def test_values_stay_in_range(cohort):
    for p in cohort:
        assert p.ct.array.min() >= -1024
        assert 300 < p.ct.array.max() < 1300
        assert p.pet_suv.array.min() >= 0
        assert p.pet_suv.array.max() < 20
        assert p.pet_suv.array[:, :4].max() < 0.05  # nothing in front of the patient


def test_organs_have_their_published_means(cohort):
    """The table of notebook 01: means over eroded organs, over 16 patients, within what others measured in people."""
    rows = [organ_means(p.labels, p.ct, p.pet_suv, erode_mm=8.0) for p in cohort]
    for name, (hu, suv, _) in PUBLISHED.items():
        measured = np.array([row[name][:2] for row in rows if name in row])
        assert len(measured) >= COUNT // 2, name
        assert hu[0] <= measured[:, 0].mean() <= hu[1], (name, "HU", measured[:, 0])
        assert suv[0] <= measured[:, 1].mean() <= suv[1], (name, "SUV", measured[:, 1])


def test_lungs_are_as_large_and_as_dense_as_in_people_and_denser_at_the_back(cohort):
    for p in cohort:
        lung = np.isin(p.labels.array, [LABEL[n] for n in LUNG])
        litres = lung.sum() * np.prod(p.labels.spacing_mm) / 1e6
        assert 1.8 < litres < 7, litres
        core = ndimage.binary_erosion(lung, iterations=2)
        assert -900 < np.median(p.ct.array[core]) < -720
    front, back = [], []
    for p in cohort:
        y = np.nonzero(p.labels.array == LABEL["right lower lobe"])[1]
        for part, result in (
            (slice(0, int(np.quantile(y, 0.3))), front),
            (slice(int(np.quantile(y, 0.7)), None), back),
        ):
            inside = p.labels.array[:, part] == LABEL["right lower lobe"]
            result.append(np.median(p.hu.array[:, part][inside]))
    assert np.mean(back) - np.mean(front) > 25


def test_patients_differ(cohort):
    assert {p.sex for p in cohort} == {"F", "M"}
    assert np.std([p.weight_kg for p in cohort]) > 6
    assert np.std([p.truth["organs"]["fat"]["volume_ml"] for p in cohort]) > 1000
    assert all(("breast gland" in p.truth["organs"]) == (p.sex == "F") for p in cohort)
    hearts = [p.truth["organs"]["myocardium"]["suv"] for p in cohort]
    assert min(hearts) < 2.6 < 4 < max(hearts)


def test_dose_and_uptake_are_clinical(cohort):
    for p in cohort:
        assert 3.3e6 < p.dose_bq / p.weight_kg < 4.7e6
        assert 2400 <= p.uptake_s <= 5400


# Imaging.


def test_noise_follows_dose_and_counts():
    base = make_patient(SEED, 1, replace(QUIET, breathing_mm=0.0))
    liver = ndimage.binary_erosion(base.labels.array == LABEL["liver"], iterations=2)
    inside = resample(Volume(liver, base.labels.affine, "1"), base.pet_suv.grid, 0.0).array
    spread = {}
    for factor in (1, 4):
        scanners = {"ct": CtScanner(dose=factor), "pet": PetScanner(counts=factor * PetScanner().counts)}
        p = make_patient(SEED, 1, replace(HARD, breathing_mm=0.0, **scanners))
        spread[factor] = (p.ct.array - base.ct.array)[liver].std(), (p.pet_suv.array - base.pet_suv.array)[inside].std()
    assert spread[1][0] == pytest.approx(2 * spread[4][0], rel=0.1)
    assert spread[1][1] == pytest.approx(2 * spread[4][1], rel=0.25)


def test_easy_is_quieter_than_realistic():
    easy, hard = phantom_settings("easy"), phantom_settings("realistic")
    assert easy.ct.dose > hard.ct.dose
    assert easy.pet.counts > hard.pet.counts
    assert easy.breathing_mm < hard.breathing_mm
    assert easy.follow_ups == 0 < hard.follow_ups


def test_easy_lesions_are_solid_hot_and_seen_on_both():
    for p in parallel_map(partial(make_patient, SEED, settings=SMALL), range(8)):
        assert p.truth["benign_uptake"] == []
        for lesion in p.truth["lesions"]:
            assert (lesion["kind"], lesion["seen_on"]) == ("solid", ("CT", "PT"))
            assert lesion["radius_mm"] >= 8
            assert lesion["suv"] >= 4


def test_couch_is_in_the_ct_only():
    with_couch, without = (make_patient(SEED, 0, replace(QUIET, couch=c)) for c in (True, False))
    differs = np.abs(with_couch.ct.array - without.ct.array) > 20
    assert differs.sum() > 1000
    assert np.nonzero(differs)[1].min() > 56  # behind the middle of the field
    assert (
        with_couch.suv.array[np.isin(with_couch.labels.array, [LABEL["couch shell"], LABEL["couch foam"]])].max() == 0
    )
    change = np.abs(with_couch.pet_suv.array - without.pet_suv.array)
    assert change.max() < 0.1 * without.pet_suv.array.max()  # as attenuation alone


def test_breathing_moves_the_diaphragm_not_the_apex_nor_the_spine():
    still, moving = (make_patient(SEED, 1, replace(QUIET, breathing_mm=mm)) for mm in (0.0, 14.0))
    change = np.abs(moving.pet_suv.array - still.pet_suv.array).max(axis=(1, 2))
    assert change[10:18].max() > 0.5
    assert change[-4:].max() < 0.05
    for name in ("cord", "skin", "cortex"):
        same = (moving.labels.array == LABEL[name]) == (still.labels.array == LABEL[name])
        assert same.mean() > 0.9995, name
    liver = [(p.labels.array == LABEL["liver"]).any(axis=(1, 2)).nonzero()[0].max() for p in (still, moving)]
    assert moving.truth["breathing"]["amplitude_mm"] > 7
    assert abs(liver[0] - liver[1]) <= 2


def test_breath_is_longest_near_expiration():
    assert np.all(np.diff(BREATH) < 0)
    assert np.mean(BREATH) == pytest.approx(3 / 8, abs=0.01)  # mean of cos⁴


# Lesions.


def value_near(volume: Volume, point_mm: list[float], reach: int = 1) -> float:
    """Largest value around a point, for lesions that are uneven."""
    x, y, z = (np.linalg.inv(volume.affine) @ [*point_mm, 1])[:3].round().astype(int)
    part = volume.array[z - reach : z + reach + 1, y - reach : y + reach + 1, x - reach : x + reach + 1]
    return float(part.max())


def test_lesions_lie_where_the_truth_says(cohort):
    lesions = [(p, one) for p in cohort for one in p.truth["lesions"]]
    assert len(lesions) > 15
    seen = 0
    for p, one in lesions:
        where = np.argwhere(np.isin(p.labels.array, one["labels"]))
        if one["radius_mm"] < 8:
            continue  # hardly a voxel of these grids
        seen += 1
        centre = (p.labels.affine @ [*where.mean(axis=0)[::-1], 1])[:3]
        assert np.linalg.norm(centre - one["centre_mm"]) < 0.7 * one["radius_mm"] + 4
        sphere_ml = 4 / 3 * np.pi * one["radius_mm"] ** 3 / 1000
        assert one["volume_ml"] == pytest.approx(len(where) * np.prod(p.labels.spacing_mm) / 1000, abs=1e-3)
        assert 0.15 < one["volume_ml"] / sphere_ml < 2.2
        if "PT" in one["seen_on"] and not one["core"]:
            assert value_near(p.pet_suv, one["centre_mm"]) > 0.4 * one["suv"]
    assert seen > 5


@pytest.mark.slow
def test_one_modality_lesions_are_invisible_on_the_other():
    kinds = {}
    for p in parallel_map(partial(make_patient, 5, settings=QUIET), range(24)):
        for one in p.truth["lesions"]:
            kinds.setdefault(tuple(one["seen_on"]), []).append((p, one))
    assert set(kinds) == {("CT", "PT"), ("CT",), ("PT",)}
    for _, one in kinds[("CT",)]:
        assert one["suv"] < 2
    for p, one in kinds[("PT",)]:
        assert one["suv"] >= 3
        assert abs(one["hu"] - p.truth["organs"]["marrow"]["hu"]) < 150


def centres_mm(volume: Volume) -> list[np.ndarray]:
    return [volume.affine[a, 3] + volume.affine[a, a] * np.arange(n) for a, n in enumerate(volume.size)]


def width_mm(profile: np.ndarray, step_mm: float) -> float:
    """Full width at half maximum, from a Gaussian through the largest value and its neighbours."""
    k = int(profile.argmax())
    low, top, high = np.log(profile[k - 1 : k + 2])
    return 2.3548 * step_mm / np.sqrt(2 * top - low - high)


def test_resolution_as_measured_on_a_lesion(clinical):
    """A very small, very hot lesion in the lung, imaged with and without: the difference is the point spread."""
    p, hot = clinical, clinical.suv.array.copy()
    ct_mm, pet_mm = centres_mm(p.suv), centres_mm(p.pet_suv)
    lung = np.argwhere(ndimage.binary_erosion(p.labels.array == LABEL["left lower lobe"], iterations=7))
    hot[tuple(lung[len(lung) // 2])] += 2000
    still = np.zeros((1, len(pet_mm[2])))
    images = [
        cohort_module.image_pet(
            suv, p.hu.array, p.hu.array > 1e9, ct_mm, pet_mm, still, np.random.default_rng(0), PetScanner(counts=None)
        )
        for suv in (hot, p.suv.array)
    ]
    seen = images[0] - images[1]
    k, j, i = np.unravel_index(seen.argmax(), seen.shape)
    widths = width_mm(seen[:, j, i], 4.0), width_mm(seen[k, :, i], 4.07), width_mm(seen[k, j], 4.07)
    assert all(4.5 < w < 7.5 for w in widths), widths
    assert 5 < np.mean(widths) < 7, widths


# Follow-ups.


def test_follow_ups_are_the_same_person_with_other_lesions():
    index = next(i for i in range(40) if has_follow_up(SEED, i, HARD))
    first, second = (make_patient(SEED, index, HARD, visit) for visit in (0, 1))
    assert first.patient_id == second.patient_id
    assert second.truth["response"] in ("complete", "partial", "stable", "progression")
    assert second.study_date > first.study_date
    assert (second.size_m, second.sex, second.variant) == (first.size_m, first.sex, first.variant)
    assert second.truth["build"] == first.truth["build"]
    bones = [p.truth["organs"]["cortex"]["volume_ml"] for p in (first, second)]
    assert bones[0] == pytest.approx(bones[1], rel=0.03)
    assert not np.array_equal(first.labels.array, second.labels.array)


def test_a_share_of_patients_has_follow_ups():
    share = np.mean([has_follow_up(3, i, HARD) for i in range(400)])
    assert 0.2 < share < 0.3
    assert not any(has_follow_up(3, i, SMALL) for i in range(50))


# Files.


def test_every_suv_rule_is_exercised(written):
    result = find_pairs(written)
    rules = {}
    truth = json.loads((written / "truth.json").read_text())["patients"]
    for pair in result.pairs:
        rules[pair.suv.rule] = pair.suv.factor
    assert len(rules) == len(VARIANTS) == 8
    assert {one["headers"] for one in truth.values()} == set(VARIANTS)


def test_dicom_round_trip(written):
    pairs = {pair.pet.images[0].file.path.parent.parent.name: pair for pair in find_pairs(written).pairs}
    for index in range(0, 9, 2):
        p = make_patient(SEED, index, replace(HARD, follow_ups=0.5))
        study = load_pair(pairs[p.patient_id])
        assert np.abs(study.ct.array - p.ct.array).max() <= 0.5 + 1e-3
        assert np.abs(study.pet.array - p.pet_suv.array).max() < 2e-4 * p.pet_suv.array.max()
        assert np.allclose(study.ct.affine, p.ct.affine, atol=1e-4)
        assert np.allclose(study.pet.affine, p.pet_suv.affine, atol=1e-4)


def test_truth_volumes_and_seg_are_beside_the_series(written):
    truth = json.loads((written / "truth.json").read_text())
    assert (truth["seed"], truth["difficulty"], len(truth["patients"])) == (SEED, "realistic", 9)
    assert len(list((written / "truth").iterdir())) == 3 * sum(
        1 + ("follow_up" in t) for t in truth["patients"].values()
    )
    settings = replace(HARD, follow_ups=0.5)
    for index in (0, 1):
        p = make_patient(SEED, index, settings)
        stored = {
            kind: read_nifti(written / "truth" / f"{p.patient_id}.{kind}.nii.gz", "1")
            for kind in ("labels", "hu", "suv")
        }
        assert np.array_equal(stored["labels"].array, p.labels.array)
        assert np.abs(stored["hu"].array - p.hu.array).max() <= 0.5 + 1e-3
        assert np.abs(stored["suv"].array - p.suv.array).max() < 1e-3
        assert np.allclose(stored["labels"].affine, p.labels.affine, atol=1e-3)


def test_the_seg_holds_lungs_and_lesions(written):
    for pair in find_pairs(written).pairs:
        [series] = pair.segments
        masks = read_segments([image.file for image in series.images])
        name = pair.pet.images[0].file.path.parent.parent.name
        labels = read_nifti(written / "truth" / f"{name}.labels.nii.gz", "1")
        lung = resample(masks["lung"][0], labels.grid, 0.0).array
        assert np.array_equal(lung, np.isin(labels.array, [LABEL[n] for n in LUNG]))
        lesions = sum(m.array.sum() for m in masks.get("lesion", []))
        assert lesions == (labels.array >= 100).sum()


def test_written_bytes_depend_on_the_seed_only(tmp_path, written):
    settings = replace(HARD, follow_ups=0.5)
    again = write_phantom(tmp_path / "again", 2, SEED, settings, jobs=1)
    files = [p.relative_to(again) for p in again.rglob("*") if p.is_file() and p.name != "truth.json"]
    assert len(files) > 100
    for file in files:
        assert (again / file).read_bytes() == (written / file).read_bytes(), file


def test_truth_comes_last_and_a_failed_run_leaves_none(tmp_path, monkeypatch):
    seen = []

    def progress(items):
        for item in items:
            seen.append((tmp_path / "data" / "truth.json").exists())
            yield item

    folder = write_phantom(tmp_path / "data", 2, SEED, SMALL, progress, jobs=1)
    assert seen == [False, False]
    assert (folder / "truth.json").exists()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cohort_module, "write_patient", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path / "other", 1, SEED, SMALL, jobs=1)
    assert not list((tmp_path / "other").iterdir())


def test_dciodvfy_finds_no_error_in_its_dicom(written):
    for part in ("CT", "PT"):
        for patient in range(8):
            files = sorted((written / f"PHANTOM-{patient:04d}" / part).iterdir())
            assert dicom_errors(files[4]) == []


def test_no_header_names_more_than_the_pseudonym(written):
    header = pydicom.dcmread(next((written / "PHANTOM-0000" / "SEG").iterdir()), stop_before_pixels=True)
    assert header.PatientID == "PHANTOM-0000"
    assert str(header.PatientName) == "PHANTOM-0000"


def test_the_slice_through_the_largest_lesion(written):
    pairs = find_pairs(written).pairs
    ct, pet, labels = cohort_module.slice_through_largest_lesion(pairs, written)
    assert ct.shape == pet.shape == labels.shape == (112, 112)
    names = [pair.pet.images[0].file.path.parent.parent.name for pair in pairs]
    areas = [(read_nifti(written / "truth" / f"{n}.labels.nii.gz", "1").array >= 100).sum(axis=(1, 2)) for n in names]
    assert (labels >= 100).sum() == next(a.max() for a in areas if a.any())


def test_organs_are_measured_from_dicom(written):
    pair = find_pairs(written).pairs[0]
    means = cohort_module.measure_organs(pair, written)
    assert -900 < means["lung"][0] < -650
    assert 30 < means["liver"][0] < 80
