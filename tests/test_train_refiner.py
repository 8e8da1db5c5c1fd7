"""Stage 2 on a run folder: who it learns from, that it resumes, and what `calibrate` fits."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny

from petct_lib import metrics, train_refiner
from petct_lib.augment import Augmentation
from petct_lib.bridge import interpolated
from petct_lib.checkpoints import load_checkpoint
from petct_lib.cyclegan import DIRECTIONS
from petct_lib.data import refiner_patients
from petct_lib.files import read_json
from petct_lib.prepare import Prepared
from petct_lib.prior import Prior, PriorSettings
from petct_lib.train import FitSettings
from petct_lib.train_refiner import ALPHAS, Plan, calibrate, held_out, pairs_of
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


def test_calibrate_takes_the_largest_alpha_within_the_margin_on_the_validation_patients(run):
    prepared, splits, translator = Prepared(run / "prepared"), read_json(run / "splits.json"), Translator(run)
    maes = {alpha: [] for alpha in ALPHAS}
    for patient in held_out(splits, "pet2ct"):
        pet, ct, body = (np.array(prepared.of_patient(patient, kind)) for kind in ("pet", "ct", "body"))
        ends = translator.ends(*translator.start(pet, "pet2ct"), "pet2ct", samples=1, seed=0)
        some = spread(len(pet))
        for alpha in ALPHAS:
            maes[alpha].append(metrics.mae(ct[some], interpolated(*ends, alpha)[some], body[some]))
    by_hand = {alpha: np.mean(of) for alpha, of in maes.items()}
    for margin in (1.0001, 1.02, 10.0):
        fitted = calibrate(run, "pet2ct", samples=1, seed=0, margin=margin)
        assert fitted["mae"] == {str(a): pytest.approx(v, abs=1e-3) for a, v in by_hand.items()}
        assert fitted["alpha"] == max(a for a in ALPHAS if by_hand[a] <= margin * by_hand[0.0])
    assert fitted["alpha"] == 1.0
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
