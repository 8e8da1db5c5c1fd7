"""The methods that are compared, on a run with untrained networks."""

import numpy as np
import pytest
import small_run
import torch
from scored_cases import SAMPLED, translated

from petct_lib import InputError
from petct_lib.data.splits import read_splits
from petct_lib.evaluation.methods import METHODS, copy_source, mean_atlas, translate_patient
from petct_lib.inference.translator import Refiner, Translator, map_batches
from petct_lib.models.checkpoints import load_regression

UNPAIRED = ("unpaired_sample", "unpaired_mean")


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    return small_run.small_run(prepared, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def atlas(prepared, run):
    return mean_atlas(prepared, read_splits(run)["train_ct"], "ct")


@pytest.fixture(scope="module")
def case(prepared, run, atlas):
    """The first test patient by all methods, PET to CT."""
    return translated(prepared, run, atlas)


def test_methods_of_a_run_are_what_they_say(prepared, run, atlas, case):
    assert list(case.images) == list(METHODS)
    assert all(image.shape == case.source.shape for image in case.images.values())
    translator, images = Translator(run), case.images
    assert np.array_equal(images["copy"], copy_source(case.source, "pet2ct", translator.window))
    assert np.array_equal(images["atlas"][0], atlas)
    for mode in ("mean", "sample"):
        result = translator(case.source, "pet2ct", mode=mode, lengths=case.lengths, **SAMPLED)
        assert np.array_equal(images[mode], result.image), mode
        assert np.array_equal(images["cyclegan"], result.coarse)
    x, coarse = translator.start(case.source, "pet2ct", case.lengths)
    without = torch.zeros_like(coarse)
    assert np.array_equal(images["regression"], translator.regression(x, coarse, "pet2ct"))
    assert np.array_equal(images["regression_without_coarse"], translator.regression(x, without, "pet2ct"))
    pix2pix = load_regression(run / "checkpoints" / "pix2pix_pet2ct.pt")
    expected = translator.decode(map_batches(pix2pix.predict, x, without), "pet2ct")
    assert np.array_equal(images["pix2pix"], expected)
    unpaired = torch.stack(list(translator.refiner("pet2ct", "unpaired_").samples(x, coarse, **SAMPLED)))
    stack = translator.decode(unpaired, "pet2ct")
    assert np.array_equal(images["unpaired_sample"], stack[0])
    assert np.array_equal(images["unpaired_mean"], stack.mean(axis=0))
    differ = [tuple(image[0].ravel()) for image in images.values()]
    assert len(set(differ)) == len(METHODS)


def test_samples_are_kept_beside_their_mean(case):
    assert list(case.samples) == ["mean", "unpaired_mean"]
    for method, stack in case.samples.items():
        assert stack.shape == (8, *case.source.shape)
        assert np.array_equal(case.images[method], stack.mean(axis=0))
    assert not case.scales


def test_each_patient_has_noise_of_his_own(prepared, run, atlas, monkeypatch):
    seeds = []

    def samples(self, x, c, *, samples, seed, **values):
        seeds.append(seed)
        return c.expand(samples, *c.shape)

    monkeypatch.setattr(Refiner, "samples", samples)
    splits, translator = read_splits(run), Translator(run)
    for seed in (0, 1):
        for patient in splits["test"]:
            values = {**SAMPLED, "seed": seed, "atlas": atlas, "methods": ("mean",)}
            translate_patient(prepared, splits, patient, "pet2ct", translator, **values)
    assert len(splits["test"]) > 1
    assert len(set(seeds)) == len(seeds) == 2 * len(splits["test"])


def test_methods_that_a_run_does_not_have_are_left_out(prepared, run, tmp_path):
    ct = mean_atlas(prepared, read_splits(run)["train_pet"], "pet")
    assert list(translated(prepared, run, ct, "ct2pet").images) == [m for m in METHODS if m not in UNPAIRED]
    bare = small_run.small_run(prepared, tmp_path / "run")
    small_run.refiner(bare, "ct2pet", 0, coarse_dropout=0.0)
    (bare / "checkpoints" / "pix2pix_ct2pet.pt").unlink()
    there = ["copy", "atlas", "cyclegan", "regression", "sample", "mean"]
    assert list(translated(prepared, bare, ct, "ct2pet").images) == there


def test_only_the_methods_asked_for_are_made(prepared, run, atlas, case, monkeypatch):
    some = translated(prepared, run, atlas, methods=("cyclegan", "mean"))
    assert list(some.images) == ["cyclegan", "mean"]
    assert np.array_equal(some.images["mean"], case.images["mean"])
    monkeypatch.setattr(
        "petct_lib.inference.translator.Refiner.samples", lambda *_, **__: pytest.fail("nothing is sampled")
    )
    controls = translated(prepared, run, atlas, methods=("regression", "atlas"))
    assert list(controls.images) == ["atlas", "regression"]


def test_nobody_but_test_patients_is_translated(prepared, run, atlas):
    splits = read_splits(run)
    for role in ("train_pet", "train_ct", "refine"):
        with pytest.raises(InputError, match="is not one of the 2 test patients: no score is made"):
            translate_patient(
                prepared, splits, splits[role][0], "pet2ct", Translator(run), atlas=atlas, **SAMPLED
            )  # fmt: skip
