"""Stage 2 on a run folder: plans, who it learns from, and that its trainings are validated, chained and resumed."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from small_run import small_run

from petct_lib import InputError
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.datasets import Slices
from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import read_splits, refiner_patients
from petct_lib.imaging.directions import DIRECTIONS
from petct_lib.imaging.intensity import Intensity
from petct_lib.imaging.spectrum import BANDS, filter_bands, spectrum
from petct_lib.inference.translator import coarse_images
from petct_lib.models.checkpoints import load_checkpoint, load_cyclegan, load_flow, load_regression, save_checkpoint
from petct_lib.models.cycle_pairs import Perturbation
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.regression import Regression
from petct_lib.models.residual_flow import ResidualFlow
from petct_lib.training import train_refiner
from petct_lib.training.loop import FitSettings
from petct_lib.training.train_refiner import (
    Stage2Plan,
    load_pairs,
    make_plans,
    measure_residual_spectrum,
    train_stage,
    validation_patients,
    write_coarse_images,
)

STEPS = {"regression_steps": 5, "pix2pix_steps": 4, "flow_steps": 6}
SMALL = {"width": 8, "multipliers": (1, 2), "ema_decay": 0.9}
FIT = FitSettings(4, checkpoint_every=2, log_every=1)
PLAN = Stage2Plan(tiny.REGRESSION, FIT, 1, 2, 0)
UNTRAINED = {"regression_pet2ct.pt", "flow_pet2ct.pt", "pix2pix_pet2ct.pt", "cyclegan.pt"}  # of `small_run`


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    return small_run(prepared, tmp_path_factory.mktemp("refiner") / "run")


@pytest.fixture(scope="module")
def pairs(run):
    return load_pairs(run, "pet2ct", "real", seed=0)


def test_plans_by_name_each_with_its_steps_and_what_it_builds_on():
    output = make_plans(256, seed=3, batch_size=8, **STEPS, **SMALL)
    assert {name: (item.fit.steps, item.start, item.regression) for name, item in output.items()} == {
        "regression": (5, None, None), "pix2pix": (4, "regression", None), "flow": (6, None, "regression"),
    }  # fmt: skip
    assert {(item.batch_size, item.seed, item.crop) for item in output.values()} == {(8, 3, None)}
    assert output["regression"].draws == 3
    assert output["pix2pix"].draws == output["flow"].draws == 4, "other batches than those that its regression saw"
    prefixed = make_plans(256, seed=3, batch_size=8, prefix="unpaired_", **{**STEPS, "pix2pix_steps": 0})
    assert {name: item.regression for name, item in prefixed.items()} == {
        "unpaired_regression": None, "unpaired_flow": "unpaired_regression",
    }  # fmt: skip


def test_without_the_source_there_is_no_pix2pix():
    output = make_plans(256, seed=3, batch_size=8, sees_source=False, **SMALL, **STEPS)
    assert list(output) == ["regression", "flow"]
    assert {item.stage.coarse_dropout for item in output.values()} == {0.0}, "the coarse image is all they see"


def test_a_setting_goes_to_everyone_who_has_it_and_to_nobody_else():
    values = {"neighbours": 3, "lr": 1e-3, "laplace": True, "coarse_dropout": 0.25}
    of_data = {"shift": 2, "crop": 32, "checkpoint_every": 7}
    output = make_plans(256, seed=0, batch_size=8, **STEPS, **SMALL, **values, **of_data)
    for item in output.values():
        stage = item.stage
        assert (stage.width, stage.multipliers, stage.neighbours, stage.lr) == (8, (1, 2), 3, 1e-3)
        assert item.shift == 2
        assert (item.fit.checkpoint_every, item.crop) == (7, 32)
    regression, pix2pix, flow = (item.stage for item in output.values())
    assert (regression.lambda_adversarial, pix2pix.lambda_adversarial) == (0.0, 0.05)
    assert (pix2pix.patch_width, pix2pix.patch_layers) == (4, 3)
    assert (regression.laplace, pix2pix.laplace) == (True, False)
    assert (regression.coarse_dropout, pix2pix.coarse_dropout, flow.coarse_dropout) == (0.25, 1.0, 0.25)


@pytest.mark.parametrize("unknown", ["sigma", "patch", "steps", "device", "patch_width", "scale"])
def test_an_unknown_setting_is_refused(unknown):
    with pytest.raises(InputError, match=f"stage 2 has no setting {unknown}; it has beta1, .*width"):
        make_plans(64, seed=0, batch_size=8, **STEPS, **{unknown: 2})


@pytest.mark.parametrize(("size", "patch"), [(32, 1), (64, 1), (96, 1), (128, 2), (192, 3), (256, 4), (512, 8)])
def test_the_space_to_depth_grid_has_64_pixels_or_a_little_more(size, patch):
    for item in make_plans(size, seed=0, batch_size=8, **STEPS, **SMALL).values():
        assert item.stage.patch == patch
    unet = Regression(make_plans(size, seed=0, batch_size=8, **STEPS, **SMALL)["regression"].stage).nets["unet"]
    assert unet(torch.zeros(1, 2, size, size), torch.zeros(1)).shape == (1, 1, size, size)


@pytest.mark.parametrize(("size", "crop", "unit"), [(100, None, 8), (208, None, 24), (256, 40, 32), (256, 24, 32)])
def test_a_size_that_the_networks_cannot_halve_is_refused(size, crop, unit):
    with pytest.raises(InputError, match=f"size {size}, crop {crop}: the networks need multiples of {unit} pixels"):
        make_plans(size, seed=0, batch_size=8, crop=crop, **STEPS)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nobody_validates_what_they_trained_and_nobody_of_the_test_does_either(run, direction):
    splits = read_splits(run)
    validating, training = set(validation_patients(splits, direction)), set(refiner_patients(splits, direction))
    assert validating
    assert not validating & training
    assert not (validating | training) & set(splits["test"])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pairs_of_each_kind_are_of_the_refiners_patients(run, direction):
    prepared, splits = Prepared(run / "prepared"), read_splits(run)
    expected = prepared.studies(refiner_patients(splits, direction))
    result = {kind: load_pairs(run, direction, kind, seed=0) for kind in train_refiner.KINDS}
    assert {kind: len(parts) for kind, parts in result.items()} == {"real": 1, "cycle": 1, "both": 2}
    for part in (part for parts in result.values() for part in parts):
        assert part.slices.studies == expected
        assert part.direction == direction
        assert len(part.coarse) == len(part.slices)
    assert [part.sources is None for part in result["both"]] == [True, False]
    assert result["real"][0].slices.kinds == ("pet", "ct")
    assert result["cycle"][0].slices.kinds == (direction.split("2")[1],)


def test_real_pairs_may_be_of_a_few_patients_and_cycle_pairs_are_of_all(run):
    prepared, patients = Prepared(run / "prepared"), refiner_patients(read_splits(run), "pet2ct")
    real, cycle = load_pairs(run, "pet2ct", "both", seed=0, paired_patients=1)
    assert real.slices.studies == prepared.studies(patients[:1])
    assert cycle.slices.studies == prepared.studies(patients)


def test_the_coarse_images_of_real_pairs_are_the_cyclegans_and_kept_in_the_run(run, pairs):
    [real] = pairs
    source = torch.stack([real.slices[i]["pet"] for i in range(len(real.slices))])
    expected = coarse_images(load_cyclegan(run / "checkpoints" / "cyclegan.pt"), source, "pet2ct")
    assert np.array_equal(real.coarse, expected)
    assert np.array_equal(np.load(run / "coarse" / "pet2ct.npy"), expected)


def test_cycle_pairs_take_the_perturbation_asked_for(run):
    [plain], [noisy] = (
        load_pairs(run, "pet2ct", "cycle", seed=0, perturbation=Perturbation(noise, blur=False)) for noise in (0.0, 0.3)
    )
    assert np.array_equal(plain.coarse[:, 0], plain.coarse[:, 1])
    assert not np.allclose(noisy.coarse[:, 0], noisy.coarse[:, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": "mixed"}, "pairs 'mixed': must be one of real, cycle, both"),
        ({"kind": "cycle", "neighbours": 3}, "cycle pairs have single slices, not neighbours 3"),
        ({"kind": "both", "neighbours": 3}, "cycle pairs have single slices, not neighbours 3"),
        ({"kind": "real", "paired_patients": 0}, "paired_patients 0 must be 1 or more, or None"),
    ],
)
def test_pairs_that_there_are_none_of_are_refused(run, bad, message):
    with pytest.raises(InputError, match=message):
        load_pairs(run, "pet2ct", seed=0, **bad)


def test_the_trainings_of_a_direction_one_after_the_other(prepared, tmp_path):
    """As notebook 03 makes them: each leaves a checkpoint that loads, and builds on the one before."""
    run = small_run(prepared, tmp_path / "run")
    for name in UNTRAINED - {"cyclegan.pt"}:
        (run / "checkpoints" / name).unlink()
    pairs = load_pairs(run, "pet2ct", "both", seed=0)
    plan = make_plans(32, seed=0, batch_size=2, crop=16, shift=1, **STEPS, **SMALL)
    rows = {name: train_stage(run, name, pairs, item, resume=False) for name, item in plan.items()}
    assert {name: set(item[-1]) - {"step"} for name, item in rows.items()} == {
        name: {*losses, "validation_mae_hu", "validation_score", "validation_spectrum"}
        for name, losses in (
            ("regression", {"l1"}), ("pix2pix", {"l1", "adversarial", "D_patch", "accuracy_patch"}), ("flow", {"mse"}),
        )
    }  # fmt: skip
    states = {name: load_checkpoint(run / "checkpoints" / f"{name}_pet2ct.pt") for name in plan}
    assert {name: (item["step"], item["origin"]["seed"]) for name, item in states.items()} == {
        "regression": (5, 0), "pix2pix": (4, 1), "flow": (6, 1),
    }  # fmt: skip
    assert all(list((run / "logs" / f"{name}_pet2ct").glob("events*")) for name in plan)
    regression = load_regression(run / "checkpoints" / "regression_pet2ct.pt")
    flow = load_flow(run / "checkpoints" / "flow_pet2ct.pt", regression)
    batches = train_refiner._batches(pairs, 2, plan["flow"].shift, 16)
    assert flow.settings.residual_spectrum == measure_residual_spectrum(regression, batches, 0)
    assert len(set(flow.settings.residual_spectrum)) > 1


def test_pix2pix_begins_with_the_weights_of_the_runs_regression(run, pairs):
    still = replace(tiny.PIX2PIX, patch=1, lr=0.0)
    train_stage(run, "begun", pairs, replace(PLAN, stage=still, start="regression"), resume=False)
    begun, regression = (load_regression(run / "checkpoints" / f"{name}_pet2ct.pt") for name in ("begun", "regression"))
    average = tiny.weights(regression.ema["unet"].module)
    assert torch.equal(tiny.weights(begun.nets["unet"]), average)
    assert not torch.equal(tiny.weights(Regression(still).nets["unet"]), average)


@pytest.mark.parametrize("kind", ["regression", "pix2pix", "flow"])
def test_a_training_resumes_exactly(run, pairs, kind):
    stage = {"regression": tiny.REGRESSION, "pix2pix": tiny.PIX2PIX, "flow": tiny.FLOW}[kind]
    plan = replace(PLAN, stage=replace(stage, patch=1), regression="regression" if kind == "flow" else None)
    whole = train_stage(run, f"whole_{kind}", pairs, plan, resume=False)
    assert [row["step"] for row in whole] == [0, 1, 2, 3]
    halfway = load_checkpoint(run / "checkpoints" / f"whole_{kind}_pet2ct.step0000002.pt")
    save_checkpoint(halfway, run / "checkpoints" / f"resumed_{kind}_pet2ct.pt")
    assert train_stage(run, f"resumed_{kind}", pairs, plan, resume=True) == whole
    a, b = (load_checkpoint(run / "checkpoints" / f"{name}_{kind}_pet2ct.pt") for name in ("whole", "resumed"))
    assert tiny.differences(a, b) == []


def test_another_seed_or_other_pairs_are_another_training(run, pairs):
    train_stage(run, "first", pairs, PLAN, resume=False)
    for other, named in ((replace(PLAN, seed=1), "other seed"), (replace(PLAN, crop=16), "other batches: crop")):
        with pytest.raises(InputError, match=named):
            train_stage(run, "first", pairs, other, resume=True)
    with pytest.raises(InputError, match="other batches"):
        train_stage(run, "first", load_pairs(run, "pet2ct", "real", seed=0, paired_patients=1), PLAN, resume=True)


def test_what_it_builds_on_must_be_there(run, pairs):
    for plan in (replace(PLAN, start="absent"), replace(PLAN, stage=tiny.FLOW, regression="absent")):
        with pytest.raises(InputError, match=r"absent_pet2ct\.pt: no such checkpoint"):
            train_stage(run, "none", pairs, plan, resume=False)
    other = replace(PLAN, stage=replace(tiny.REGRESSION, width=16), start="regression")
    with pytest.raises(InputError, match="weights of another network"):
        train_stage(run, "none", pairs, other, resume=False)


def validated(run, pairs, monkeypatch):
    """The patients that a training is validated on."""
    request = []

    def watched(run_dir, patients, direction, neighbours):
        request.append((patients, direction, neighbours))

    monkeypatch.setattr(train_refiner, "RefinerValidation", watched)
    train_stage(run, "watched", pairs, replace(PLAN, fit=FitSettings(1)), resume=False)
    return request


def test_it_is_validated_on_the_patients_held_out(run, monkeypatch):
    expected = validation_patients(read_splits(run), "pet2ct")
    wide = load_pairs(run, "pet2ct", "real", seed=0, neighbours=3)
    assert validated(run, wide, monkeypatch) == [(expected, "pet2ct", 3)]
    assert validated(run, load_pairs(run, "pet2ct", "cycle", seed=0), monkeypatch) == [(expected, "pet2ct", 1)]


def test_it_is_not_validated_on_anyone_it_learns_from(run, monkeypatch):
    splits = read_splits(run)
    everyone = train_refiner.load_real_pairs(run, "pet2ct", splits["refine"] + splits["train_pet"])
    assert validated(run, [everyone], monkeypatch) == []


def test_a_batch_that_kinds_of_pairs_cannot_share_is_refused(run):
    both = load_pairs(run, "pet2ct", "both", seed=0)
    with pytest.raises(InputError, match="a batch of 3 cannot be shared by 2 kinds of pairs; take a multiple"):
        train_stage(run, "none", both, replace(PLAN, batch_size=3), resume=False)


def test_kinds_of_pairs_share_each_batch_equally(run):
    real, cycle = load_pairs(run, "pet2ct", "both", seed=0)
    batch = train_refiner._batches([real, cycle], 4)(np.random.default_rng(0))
    for images, part in ((batch["source"][:2], real), (batch["source"][2:], cycle)):
        own = [part.slices[i]["pet"] for i in range(len(part.slices))] if part is real else list(part.sources)
        assert all(any(np.array_equal(image, one) for one in own) for image in images)


class Known:
    """Batches of which each image is 0.3 or 0.5 above what `Zero` predicts, one after the other."""

    def __init__(self):
        self.sizes = []

    def __call__(self, rng):
        self.sizes.append(0.3 if len(self.sizes) % 2 else 0.5)
        c = torch.from_numpy(rng.uniform(-1, 1, (2, 1, 8, 8)).astype(np.float32))
        return {"source": -c, "coarse": c, "target": c + self.sizes[-1]}


class Coarse:
    """A regression that predicts the coarse image."""

    def predict(self, source, coarse):
        assert torch.equal(source, -coarse)
        return coarse


def test_the_residuals_spectrum_is_that_of_what_is_left():
    batches = Known()
    bands = measure_residual_spectrum(Coarse(), batches, 0)
    # A constant of which √((0.3² + 0.5²) / 2) = 0.41231 is left is one coefficient, the first, of 8 · 0.41231.
    assert bands[0] == 3.3, "to three digits"
    assert set(bands[1:]) - {bands[1]} == {0.0033}, "no band is nothing"
    assert len(batches.sizes) == train_refiner.MEASURED


def test_a_flow_learns_residuals_of_unit_size_at_every_frequency(run, pairs):
    regression = load_regression(run / "checkpoints" / "regression_pet2ct.pt")
    batches = train_refiner._batches(pairs, 8)
    stage = train_refiner._stage(
        RunFolder(run), "pet2ct", replace(PLAN, stage=tiny.FLOW, regression="regression"), batches
    )
    assert isinstance(stage, ResidualFlow)
    residuals = []
    for k in range(20):
        batch = batches(np.random.default_rng(k))
        m = regression.predict(batch["source"], batch["coarse"])
        residuals.append(filter_bands(batch["target"] - m, [1 / s for s in stage.settings.residual_spectrum]))
    assert torch.cat(residuals).square().mean().sqrt().item() == pytest.approx(1, abs=0.1)
    assert spectrum(torch.cat(residuals)) == pytest.approx([1] * BANDS, abs=0.5), "at every frequency"


def test_coarse_images_on_the_disk_are_those_of_the_generator(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("petct_lib.training.train_refiner.BATCH", 2)
    cyclegan = CycleGAN(CycleGANSettings(4, 1, 1))
    slices = Slices(prepared, prepared.patients[:2], ("ct",), Intensity())
    coarse = write_coarse_images(slices, cyclegan, "ct2pet", tmp_path / "coarse.npy")
    assert coarse.shape == (len(slices), 1, 32, 32)
    ct = torch.stack([slices[i]["ct"] for i in range(len(slices))])
    assert np.allclose(coarse, coarse_images(cyclegan, ct, "ct2pet"), atol=1e-5)
