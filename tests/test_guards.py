"""The field's mistakes, each tried: none of them gives a score."""

from dataclasses import replace

import numpy as np
import pytest
from small_run import small_run

from petct_lib import InputError
from petct_lib.common.files import read_json, write_json
from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import check_splits, read_splits, split_patients
from petct_lib.evaluation import cases, compare
from petct_lib.evaluation.cases import Case, load_case
from petct_lib.evaluation.methods import translate_patient
from petct_lib.evaluation.scoring import score_case
from petct_lib.evaluation.tables import read_scores, write_scores
from petct_lib.imaging.intensity import Intensity
from petct_lib.inference.translator import Translator, decode_images
from petct_lib.metrics import structure, voxelwise
from petct_lib.metrics.rows import SCORE_COLUMNS

PATIENTS = [f"p{k}" for k in range(8)]
ROLES = {"train_pet": PATIENTS[:3], "train_ct": PATIENTS[3:5], "refine": PATIENTS[5:6], "test": PATIENTS[6:]}
DRAWN = {"samples": 1, "steps": 1, "seed": 0, "atlas": np.zeros((32, 32), np.float32)}


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A run folder with scores of its test patients, finished."""
    folder = small_run(prepared, tmp_path_factory.mktemp("guards") / "run")
    rows = [
        dict(zip(SCORE_COLUMNS, ("pet2ct", "mean", patient, "body", "mae", 100.0, "HU", "SEG"), strict=True))
        for patient in read_splits(folder)["test"]
    ]
    write_scores(rows, folder / "scores.csv")
    manifest = {"finished": True, "parameters": {}, "data_fingerprint": prepared.fingerprint}
    write_json(manifest, folder / "manifest.json")
    return folder


def test_a_split_by_patient_passes():
    check_splits(ROLES, PATIENTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": ["p6/slice 3", "p7"]}, "no patients of the run .p6/slice 3.; a split is by patient"),
        ({"test": ["p6", "p0-follow-up"]}, "no patients of the run .p0-follow-up."),
        ({"test": ["p6", "p7", "p0"]}, "p0: train_pet, test"),
        ({"refine": ["p5", "p5"]}, "more than once .p5: refine"),
    ],
)
def test_split_by_slice_a_follow_up_apart_and_a_patient_on_both_sides(change, message):
    with pytest.raises(InputError, match=message):
        check_splits(ROLES | change, PATIENTS)


def test_a_split_without_a_role():
    with pytest.raises(InputError, match="the split has the roles train_pet, test, not"):
        check_splits({"train_pet": PATIENTS[:4], "test": PATIENTS[4:]}, PATIENTS)


def test_a_runs_split_that_was_changed_by_hand_is_read_by_nothing(prepared, tmp_path):
    (tmp_path / "prepared").symlink_to(prepared.folder, target_is_directory=True)
    studies = prepared.studies()
    write_json({**{role: [] for role in ROLES}, "test": studies}, tmp_path / "splits.json")
    with pytest.raises(InputError, match=r"splits\.json: .* are no patients of the run"):
        read_splits(tmp_path)


def test_both_time_points_of_a_patient_are_on_one_side(tmp_path):
    studies = [{"id": f"p{k}-{visit}", "patient": f"p{k}"} for k in range(8) for visit in (1, 2)[: 1 + k % 2]]
    write_json({"studies": studies}, tmp_path / "index.json")
    prepared = Prepared(tmp_path)
    splits = split_patients(prepared.patients, 0)
    check_splits(splits, prepared.patients)
    sides = {study: role for role, members in splits.items() for study in prepared.studies(members)}
    assert len(sides) == len(studies) == 12
    assert all(sides[f"p{k}-1"] == sides[f"p{k}-2"] for k in range(1, 8, 2))


def test_a_patient_of_the_training_is_not_scored(run):
    prepared, splits = Prepared(run / "prepared"), read_splits(run)
    for role in ("train_pet", "train_ct", "refine"):
        with pytest.raises(InputError, match="is not one of the 2 test patients"):
            translate_patient(prepared, splits, splits[role][0], "pet2ct", Translator(run), **DRAWN)


def test_scores_of_a_patient_of_the_training_are_not_compared(run, tmp_path):
    for name in ("manifest.json", "splits.json", "prepared"):
        (tmp_path / name).symlink_to(run / name)
    stranger = read_splits(run)["refine"][0]
    write_scores([{**row, "patient": stranger} for row in read_scores(run / "scores.csv")
                  if row["patient"] == read_splits(run)["test"][0]], tmp_path / "scores.csv")  # fmt: skip
    assert len(compare.load_run(run).rows) == 2
    with pytest.raises(InputError, match="patients who are not test patients"):
        compare.load_run(tmp_path)


def test_runs_of_other_data_are_not_mixed(run, tmp_path):
    for name in ("scores.csv", "splits.json", "prepared"):
        (tmp_path / name).symlink_to(run / name)
    manifest = read_json(run / "manifest.json")
    write_json({**manifest, "data_fingerprint": "0" * 64}, tmp_path / "manifest.json")
    with pytest.raises(InputError, match="of other data"):
        compare.merge_runs([compare.load_run(run), compare.load_run(tmp_path)])


def test_a_cycles_reconstruction_is_not_scored_as_a_translation(run):
    prepared, splits, translator = Prepared(run / "prepared"), read_splits(run), Translator(run)
    case = load_case(prepared, splits["test"][0], "pet2ct")
    x = translator.start(case.real, "ct2pet")[0]
    again = translator.cyclegan.translate(translator.cyclegan.translate(x, "ct2pet"), "pet2ct")
    reconstruction = decode_images(again, "ct", translator.window)
    with pytest.raises(InputError, match="a reconstruction is not scored"):
        score_case(replace(case, source=case.real, images={"cycle": reconstruction}), "pet2ct", translator.window)


def test_a_translation_knows_nothing_of_the_target(run, monkeypatch):
    splits, translator = read_splits(run), Translator(run)
    prepared = Prepared(run / "prepared")
    values = splits, splits["test"][0], "pet2ct", translator
    first = translate_patient(prepared, *values, **DRAWN)
    load = cases.load_case

    def other_target(*arguments):
        case = load(*arguments)
        noise = np.random.default_rng(0).uniform(-1000, 1000, case.real.shape)
        return replace(case, real=noise, masks={name: np.zeros_like(mask) for name, mask in case.masks.items()})

    monkeypatch.setattr(cases, "load_case", other_target)
    second = translate_patient(prepared, *values, **DRAWN)
    assert {"cyclegan", "regression", "pix2pix", "sample", "mean", "unpaired_mean"} < set(first.images)
    for method, image in first.images.items():
        assert np.array_equal(image, second.images[method]), method


def test_the_range_is_the_same_for_every_patient():
    rng = np.random.default_rng(0)
    body = np.ones((8, 32, 32), bool)
    result = []
    for brightest in (300.0, 1500.0):  # a patient without and one with dense bone, the same error of 50 HU
        real = rng.uniform(-900, 0, body.shape)
        real[2, 3:6, 3:6] = brightest
        case = Case("p", None, real, {"body": body}, {"body": "HU threshold"}, {"m": real + 50})
        result += [r["value"] for r in score_case(case, "pet2ct", Intensity()) if r["metric"] == "psnr"]
    assert result == pytest.approx([20 * np.log10(4024 / 50)] * 2)
    for score in (voxelwise.psnr, structure.ssim):
        with pytest.raises(TypeError, match="data_range"):
            score(real, real + 50)
