"""Stage 2 on a run folder: who it learns from, that it resumes, and what `calibrate` fits."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny

from petct_lib import InputError, metrics, train_refiner
from petct_lib.ablation import plan_of
from petct_lib.augment import Augmentation
from petct_lib.checkpoints import load_checkpoint, save_checkpoint
from petct_lib.cyclegan import DIRECTIONS
from petct_lib.data import refiner_patients
from petct_lib.files import read_json
from petct_lib.intensity import encode_ct
from petct_lib.prepare import Prepared
from petct_lib.prior import Prior, PriorSettings
from petct_lib.spectrum_matching import fit_gains
from petct_lib.train import FitSettings
from petct_lib.train_refiner import ALPHAS, Plan, calibrate, held_out, pairs_of, plans
from petct_lib.translate import FITTED, Translator, load_refiner

PLAN = Plan(tiny.ADVERSARIAL, FitSettings(4, checkpoint_every=2, log_every=1), Augmentation(shift=1), 2, 0)


@pytest.fixture(scope="module")
def run(smoke_run, tmp_path_factory):
    """A copy of the smoke run that may be changed."""
    ignored = shutil.ignore_patterns("phantom", "logs", "synthetic", "notebooks", "figures")
    return shutil.copytree(smoke_run, tmp_path_factory.mktemp("refiner") / "run", ignore=ignored)


def spread(n):
    """The slices that `calibrate` takes of n."""
    return np.unique(np.linspace(0, n - 1, train_refiner.CALIBRATED).round().astype(int))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nobody_validates_what_they_trained_and_nobody_of_the_test_does_either(run, direction):
    splits = read_json(run / "splits.json")
    validating, training = set(held_out(splits, direction)), set(refiner_patients(splits, direction))
    assert validating
    assert not validating & training
    assert not (validating | training) & set(splits["test"])


def test_pairs_are_those_of_the_patients_asked_for(run):
    prepared, splits = Prepared(run / "prepared"), read_json(run / "splits.json")
    one = pairs_of(run, "pet2ct", splits["refine"][:1], name="one")
    assert one.slices.studies == prepared.studies(splits["refine"][:1])
    assert len(one.coarse) == len(one.slices)
    assert (run / "coarse" / "one.npy").exists()
    everyone = pairs_of(run, "pet2ct")
    assert everyone.slices.studies == prepared.studies(refiner_patients(splits, "pet2ct"))


def test_a_training_is_validated_logged_and_resumed(run):
    pairs = pairs_of(run, "pet2ct")
    whole = train_refiner.train_refiner(run, "whole", pairs, PLAN, resume=False)
    assert {"validation_mae_hu", "validation_score", "validation_spectrum"} <= set(whole[-1])
    assert list((run / "logs" / "whole").glob("events*"))

    class Stop(Exception):
        pass

    class Stops:
        def row(self, row):
            if row["step"] == 2:
                raise Stop

        start = picture = close = lambda self, *_: None

    with pytest.raises(Stop):
        train_refiner.train_refiner(run, "parts", pairs, PLAN, resume=False, watchers=[Stops()])
    parts = train_refiner.train_refiner(run, "parts", pairs, PLAN, resume=True)
    assert parts == whole
    a, b = (load_checkpoint(run / "checkpoints" / f"{name}.pt") for name in ("whole", "parts"))
    assert tiny.differences(a, b) == []


def test_a_refiner_goes_on_from_the_runs_regression_and_resumes(run):
    pairs, plan = pairs_of(run, "pet2ct"), plan_of("smoke", run, "pet2ct")[0]
    few = replace(plan, fit=replace(plan.fit, steps=4, checkpoint_every=2), start="refiner_l1_pet2ct")
    whole = train_refiner.train_refiner(run, "goes_on", pairs, few, resume=False)
    fresh = train_refiner.train_refiner(run, "fresh", pairs, replace(few, start=None), resume=False)
    assert whole[0]["l1"] < fresh[0]["l1"], "it has learned already"
    halfway = load_checkpoint(run / "checkpoints" / "goes_on.step0000002.pt")
    save_checkpoint(halfway, run / "checkpoints" / "resumed.pt")
    assert train_refiner.train_refiner(run, "resumed", pairs, few, resume=True) == whole
    a, b = (load_checkpoint(run / "checkpoints" / f"{name}.pt") for name in ("goes_on", "resumed"))
    assert tiny.differences(a, b) == []


def test_the_steps_are_shared_between_regressions_and_refiner():
    plan = Plan(tiny.ADVERSARIAL, FitSettings(12), Augmentation(), 2, 0)
    made = plans(plan, 0.75, "ct2pet")
    assert {name: (of.fit.steps, of.start) for name, of in made.items()} == {
        "unet_l1": (9, None), "pix2pix": (3, "unet_l1_ct2pet"),
        "refiner_l1": (9, None), "refiner": (3, "refiner_l1_ct2pet"),
    }  # fmt: skip
    assert made["refiner"].stage == plan.stage
    assert made["pix2pix"].stage == plan.stage.direct()
    assert made["refiner_l1"].stage == plan.stage.regression()
    assert made["unet_l1"].stage == replace(plan.stage.regression(), sees_coarse=False, error_width=0)
    assert made["refiner"].draws != made["refiner_l1"].draws, "other batches than those it began with"
    for nothing_left in (0.0, 1.0, 0.01, 1.5):
        with pytest.raises(InputError, match="warmup"):
            plans(plan, nothing_left, "ct2pet")


def test_a_prior_trains_and_loads_in_the_same_way(run):
    settings = PriorSettings(width=8, multipliers=(1, 2), steps=2)
    rows = train_refiner.train_refiner(
        run, "prior", pairs_of(run, "ct2pet"), replace(PLAN, stage=settings), resume=False
    )
    assert "mse" in rows[0]
    assert "validation_mae_suv" in rows[-1]
    prior = load_refiner(run / "checkpoints" / "prior.pt")
    assert isinstance(prior, Prior)
    translator = Translator(run)
    x, c = translator.start(np.zeros((3, 64, 64), np.float32), "ct2pet")
    image = translator.image(prior, x, c, "ct2pet", samples=2, seed=0)
    assert image.shape == (3, 64, 64)
    assert np.isfinite(image).all()


def test_calibrate_takes_the_nearest_spectrum_within_the_margin_on_the_validation_patients(run):
    prepared, splits, translator = Prepared(run / "prepared"), read_json(run / "splits.json"), Translator(run)
    control = load_refiner(run / "checkpoints" / "refiner_l1_pet2ct.pt")
    of_control, seen, encode = [], [], partial(encode_ct, window=translator.window)
    for patient in held_out(splits, "pet2ct"):
        pet, ct, body = (np.array(prepared.of_patient(patient, kind)) for kind in ("pet", "ct", "body"))
        start, given = translator.start(pet, "pet2ct"), {"samples": 1, "seed": 0}
        ends, some = translator.ends(*start, "pet2ct", **given), spread(len(pet))
        regression = translator.image(control, *start, "pet2ct", **given)
        of_control.append(metrics.mae(ct[some], regression[some], body[some]))
        seen.append(([end[some] for end in ends], ct[some], body[some]))
    line, filtered, gains = {}, {}, {}
    for alpha in ALPHAS:
        made = [translator.between(*ends, alpha, "pet2ct") for ends, _, _ in seen]
        gains[alpha] = fit_gains([encode(ct) for _, ct, _ in seen], [encode(image) for image in made])
        sharp = [translator.matched(image, gains[alpha], "pet2ct") for image in made]
        for found, images in ((line, made), (filtered, sharp)):
            scores = [
                (
                    metrics.mae(ct, image, body),
                    metrics.spectrum_distance(np.where(body, ct, -1024.0), np.where(body, image, -1024.0)),
                )
                for image, (_, ct, body) in zip(images, seen, strict=True)
            ]
            found[alpha] = np.mean(scores, axis=0)
    least = min(line, key=lambda a: line[a][0])
    points = [(*of[a], a, of is filtered) for of in (line, filtered) for a in ALPHAS]
    chosen = []
    for margin in (0.01, 1.0001, 1.2, 10.0):
        fitted = calibrate(run, "pet2ct", samples=1, seed=0, margin=margin)
        for name, found, k in (("mae", line, 0), ("mae_matched", filtered, 0), ("spectrum", line, 1)):
            assert fitted[name] == {str(a): pytest.approx(of[k], abs=2e-3) for a, of in found.items()}, name
        assert fitted["mae_refiner_l1"] == pytest.approx(np.mean(of_control), abs=1e-3)
        assert fitted["alpha_distortion"] == least
        within = [
            (spectrum, a, is_matched) for mae, spectrum, a, is_matched in points if mae <= margin * np.mean(of_control)
        ]
        _, alpha, is_matched = min(within, default=(0, least, False))
        assert (fitted["alpha"], fitted["gains"] is not None) == (alpha, is_matched)
        assert not is_matched or fitted["gains"] == pytest.approx(gains[alpha], abs=1e-3)
        chosen.append((alpha, is_matched))
    assert len(set(chosen)) > 1, "the margin matters"
    assert read_json(run / FITTED)["pet2ct"] == fitted


def test_calibrated_expected_errors_are_as_large_as_the_errors(run):
    splits, prepared = read_json(run / "splits.json"), Prepared(run / "prepared")
    calibrate(run, "pet2ct", samples=1, seed=0)
    translator, ratios = Translator(run), []
    for patient in held_out(splits, "pet2ct"):
        pet, ct, body = (np.array(prepared.of_patient(patient, kind)) for kind in ("pet", "ct", "body"))
        result = translator(pet, "pet2ct", samples=1, seed=0)
        some, error = spread(len(pet)), np.abs(result.refined - ct)
        ratios.append(error[some][body[some]].sum() / result.uncertainty[some][body[some]].sum())
    assert np.mean(ratios) == pytest.approx(1, rel=1e-3)
