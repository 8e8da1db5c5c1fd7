"""The variants, their training and scoring on a copy of the smoke run, and the tables of several seeds."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny

from petct_lib import InputError, ablation, scores
from petct_lib.ablation import longer_setting, plan_of, score_variants, table, train_variants
from petct_lib.augment import Augmentation
from petct_lib.checkpoints import load_checkpoint
from petct_lib.data import refiner_patients
from petct_lib.files import read_json, write_json
from petct_lib.prior import PriorSettings
from petct_lib.refiner import Refiner
from petct_lib.run import parameters_of
from petct_lib.train import FitSettings
from petct_lib.train_refiner import Plan, held_out, plans
from petct_lib.variants import Variant


@pytest.fixture(scope="module")
def run(smoke_run, tmp_path_factory):
    ignored = shutil.ignore_patterns("phantom", "logs", "synthetic", "notebooks", "figures")
    return shutil.copytree(smoke_run, tmp_path_factory.mktemp("ablation") / "run", ignore=ignored)


def test_the_plan_is_that_of_notebook_03(run):
    (plan, warmup), asked = plan_of("smoke", run, "pet2ct"), parameters_of("03_diffusion_refinement", "smoke")
    held = read_json(run / "stages.json")["refiner"]
    assert (plan.fit.steps, plan.stage.lambda_l1, plan.stage.sigma) == (
        held["steps"], held["lambda_l1"], held["sigma"]["pet2ct"],
    )  # fmt: skip
    assert plan_of("smoke", run, "ct2pet")[0].stage.sigma == held["sigma"]["ct2pet"] == 0
    assert plan.stage.lambda_spectrum == held["lambda_spectrum"]["pet2ct"] > 0
    assert warmup == asked["warmup"]
    for name, made in plans(plan, warmup, "pet2ct").items():
        origin = load_checkpoint(run / "checkpoints" / f"{name}_pet2ct.pt")["origin"]
        assert (origin["steps"], origin["seed"]) == (made.fit.steps, made.draws), name
        assert origin["settings"] == Refiner(made.stage).extra_state()["settings"], name
    assert plan.stage.error_width == asked["error_width"]


def test_another_seed_gives_a_variant_other_weights_and_other_batches(run):
    plan, warmup = plan_of("smoke", run, "pet2ct")
    of_run = plans(plan, warmup, "pet2ct")
    for start in (None, "unet_l1"):
        first, other = (
            ablation._plan(Variant("", plan.stage.direct(), start=start, seed=seed), of_run, plan, "pet2ct")
            for seed in (0, 100)
        )
        assert (other.seed, other.draws) == (first.seed + 100, first.draws + 100)


def test_variants_are_trained_once_and_scored_on_the_test_patients(run):
    few = replace(tiny.ADVERSARIAL, steps=1)
    of = [
        Variant("pix2pix_other", few.direct(), seed=100),
        Variant("pix2pix_k1", few.direct()),
        Variant("refiner_l1_k1", few.regression(), 1),
        Variant("refined_k1", few, 1, start="refiner_l1_k1"),
        Variant("refined_in_fold_k1", few, 1, in_fold=True),
        Variant("refined_neighbours3", replace(few, neighbours=3)),
        Variant(
            "unpaired", PriorSettings(8, (1, 2), steps=2), uses=(("unpaired_t0.1", 1, 0.1), ("unpaired_t0.5", 1, 0.5))
        ),
    ]
    plan = Plan(few, FitSettings(2), Augmentation(), 2, 0)
    train_variants(run, "ct2pet", plan, 0.5, of)
    checkpoints = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").glob("*_k1_*.pt")}
    final = {p.name for p in checkpoints if "step" not in p.name and "best" not in p.name}
    assert final == {f"{v.name}_ct2pet.pt" for v in of if v.name.endswith("_k1")}
    splits = read_json(run / "splits.json")
    assert not set(held_out(splits, "ct2pet")) & set(refiner_patients(splits, "ct2pet"))
    in_fold, out = (np.load(run / "coarse" / f"ct2pet_{name}.npy", mmap_mode="r") for name in ("in_fold_1", "1"))
    assert in_fold.shape != out.shape or not np.array_equal(in_fold, out), "other patients"
    seconds = read_json(run / "stages.json")["variant_seconds"]
    assert seconds.keys() == {f"{v.name}_ct2pet" for v in of}
    train_variants(run, "ct2pet", plan, 0.5, of)
    assert read_json(run / "stages.json")["variant_seconds"] == seconds
    assert {p: p.stat().st_mtime_ns for p in checkpoints} == checkpoints, "finished trainings stay as they are"
    rows = score_variants(run, "ct2pet", of, 0, longer=run)
    alphas = {f"refined_alpha{a:g}" for a in ablation.ALPHAS}
    expected = {
        "refiner_gan",
        "pix2pix_k1",
        "refiner_l1_k1",
        "refined_k1",
        "refined_in_fold_k1",
        "cyclegan_longer",
    } | alphas
    means = {
        "pix2pix_mean",
        "pix2pix_refiner_mean",
        *(f"{name}_matched" for name in ("cyclegan", "unet_l1", "pix2pix", "refiner_l1", "refiner_gan")),
    }
    expected |= {"pix2pix_other", "refined_neighbours3", "unpaired_t0.1", "unpaired_t0.5"} | means
    assert {row["method"] for row in rows} == expected
    test = set(read_json(run / "splits.json")["test"])
    assert {row["patient"] for row in rows} - {"all"} == test
    told = [row for row in rows if row["metric"] == "two_sample_accuracy"]
    assert {row["patient"] for row in told} == ({"all"} if len(test) > 1 else set()), "a single patient has none"
    with_errors = {row["method"] for row in rows if row["metric"] == "rank_correlation"}
    assert with_errors == expected - alphas - means - {
        "cyclegan_longer", "unpaired_t0.1", "unpaired_t0.5",
    }, "the prior has no error network"  # fmt: skip
    assert {row["direction"] for row in rows} == {"ct2pet"}
    mae = {(r["method"], r["direction"]): r["value"] for r in rows if (r["metric"], r["region"]) == ("mae", "body")}
    assert mae["unpaired_t0.1", "ct2pet"] != mae["unpaired_t0.5", "ct2pet"]


def test_what_notebook_04_found_of_all_patients_becomes_rows(tmp_path):
    told = {"pet2ct": {"cyclegan": 0.9, "refined": None}}
    write_json(
        {"two_sample_accuracy": told, "uncertainty": {"pet2ct": {"rank_correlation": 0.5}}}, tmp_path / "stages.json"
    )
    rows = [(row["method"], row["patient"], row["metric"], row["value"]) for row in ablation.recorded(tmp_path)]
    assert rows == [
        ("cyclegan", "all", "two_sample_accuracy", 0.9), ("refined", "all", "rank_correlation", 0.5)
    ]  # fmt: skip


def test_a_cyclegan_trained_for_longer_gets_the_refiners_seconds(tmp_path):
    seconds = {"refiner_pet2ct": 30.0, "refiner_ct2pet": 30.0, "refiner_l1_pet2ct": 10.0, "refiner_l1_ct2pet": 10.0}
    seconds |= {f"{name}_{d}": 5.0 for name in ("unet_l1", "pix2pix") for d in ("pet2ct", "ct2pet")}
    seconds = {f"{name} training": value for name, value in {"cyclegan": 200.0, **seconds}.items()}
    write_json({"stage_seconds": seconds}, tmp_path / "stages.json")
    assert longer_setting(tmp_path, "smoke", ["02_cyclegan_training.steps=1000"]) == "02_cyclegan_training.steps=1500"
    by_epochs = ["02_cyclegan_training.steps=null", "02_cyclegan_training.epochs=200"]
    assert longer_setting(tmp_path, "smoke", by_epochs) == "02_cyclegan_training.epochs=300"


def test_a_seed_among_the_overrides_is_an_error_and_not_overruled(tmp_path):
    with pytest.raises(InputError, match="the ablation sets the seeds itself"):
        ablation.run_ablation(
            "smoke", "phantom", tmp_path / "out", seeds=1, overrides=["03_diffusion_refinement.seed=7"]
        )
    assert not (tmp_path / "out").exists()


def test_an_ablation_that_goes_on_keeps_the_longer_training_of_its_first_call(tmp_path):
    first, later = (f"02_cyclegan_training.steps={n}" for n in (1500, 1503))
    assert ablation._kept(tmp_path / "longer.json", first) == first
    assert ablation._kept(tmp_path / "longer.json", later) == first


def test_seeds_get_a_column_and_the_table_their_range(tmp_path):
    def row(value, patient):
        return {"direction": "pet2ct", "method": "refined", "patient": patient, "region": "body", "metric": "mae",
                "value": value, "unit": "HU", "mask": "HU threshold"}  # fmt: skip

    rows = [(0, row(1.0, "a")), (0, row(3.0, "b")), (1, row(6.0, "a")), (1, row(6.0, "b"))]
    ablation.write_seeds(rows, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["seed", *scores.SCORE_COLUMNS]
    assert [(r["seed"], float(r["value"])) for r in read] == [("0", 1.0), ("0", 3.0), ("1", 6.0), ("1", 6.0)]
    first, seeds = (block.splitlines() for block in table(rows).split("\n\n"))
    assert first[0] == "pet2ct, seed 0, mean of 2 patients"
    assert first[2].split() == ["refined", "2", "-"]
    assert seeds[0] == "pet2ct, mean of 2 seeds [least, most]"
    assert seeds[2].split()[:4] == ["refined", "4", "[2,", "6]"]


def test_the_table_compares_each_patient_with_the_reference():
    row = {"direction": "ct2pet", "region": "body", "metric": "mae", "unit": "SUV", "mask": "SEG"}
    values = {"refiner_gan": (1.0, 3.0), "worse": (2.0, 5.0)}
    rows = [
        (0, {**row, "method": name, "patient": "ab"[k], "value": v})
        for name, of in values.items() for k, v in enumerate(of)
    ]  # fmt: skip
    [_, head, reference, worse] = table(rows).splitlines()
    assert head.endswith("MAE − refiner_gan")
    assert reference.split() == ["refiner_gan", "2", "-"]
    assert worse.split() == ["worse", "3.5", "+1.5", "[+1,", "+2]"]
