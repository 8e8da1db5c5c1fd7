"""A trained run applied to arrays and to DICOM studies; its networks have random weights (see `small_run`)."""

import shutil

import numpy as np
import pytest
import small_run
import torch

from petct_lib import InputError
from petct_lib.data.datasets import Slices
from petct_lib.imaging.intensity import Intensity, decode_ct
from petct_lib.imaging.slices import center_slice
from petct_lib.inference import translator as translator_module
from petct_lib.inference.translator import (
    Translator,
    coarse_images,
    decode_images,
    encode_slices,
    load_refiner,
    noise_like,
    stage2_inputs,
    translate_coarse,
)
from petct_lib.models.checkpoints import load_cyclegan, load_flow, load_regression
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    return small_run.small_run(prepared, tmp_path_factory.mktemp("translate") / "run")


@pytest.fixture(scope="module")
def translator(run):
    return Translator(run)


@pytest.fixture(scope="module")
def source(prepared):
    return np.array(prepared.patient_stack(prepared.patients[0], "pet"))[:5]


@pytest.fixture(scope="module")
def stack(translator, source):
    """Four samples (4, n, H, W) in HU."""
    return translator.samples(*translator.start(source, "pet2ct"), "pet2ct", samples=4, steps=2, seed=0)


def test_translation_is_in_the_targets_unit_and_window(translator, source):
    result = translator(source, "pet2ct", samples=2, steps=1)
    assert result.coarse.shape == result.image.shape == result.spread.shape == source.shape
    assert result.image.min() >= -1024
    assert result.image.max() <= 1500
    assert result.spread.min() >= 0
    assert result.spread.max() > 0
    assert not np.array_equal(result.coarse, result.image)
    assert np.array_equal(result.coarse, translate_coarse(translator.cyclegan, source, "pet2ct", translator.window))


def test_modes_are_the_mean_and_the_first_of_the_samples_beside_their_spread(translator, source, stack):
    by_mode = {m: translator(source, "pet2ct", mode=m, samples=4, steps=2) for m in translator_module.MODES}
    assert np.array_equal(by_mode["mean"].image, stack.mean(axis=0))
    assert np.array_equal(by_mode["sample"].image, stack[0])
    differences = np.square(stack[0] - stack[2]), np.square(stack[1] - stack[3])
    expected = np.sqrt(sum(differences) / 4)  # the variance of two is half of their squared difference
    for result in by_mode.values():
        assert np.allclose(result.spread, expected, rtol=1e-4, atol=1e-2)


def test_a_mode_has_its_own_number_of_samples(translator, source, monkeypatch):
    monkeypatch.setattr(translator_module, "SAMPLES", {"mean": 2, "sample": 1})
    one, two = (translator(source[:2], "pet2ct", mode=mode, steps=1) for mode in ("sample", "mean"))
    assert not one.spread.any()
    assert two.spread.any()
    again = translator(source[:2], "pet2ct", samples=2, steps=1)
    assert np.array_equal(two.image, again.image)


def test_the_same_seed_gives_the_same_samples(translator, source):
    a, b, c = (translator(source, "pet2ct", mode="sample", steps=1, seed=seed).image for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_sample_depends_neither_on_how_many_there_are_nor_on_the_batch(translator, source, stack, monkeypatch):
    assert not np.allclose(stack[0], stack[1], atol=1)
    x, coarse = translator.start(source, "pet2ct")
    fewer = translator.samples(x, coarse, "pet2ct", samples=2, steps=2, seed=0)
    assert np.array_equal(fewer, stack[:2])
    monkeypatch.setattr(translator_module, "BATCH", 2)
    assert np.allclose(translator.samples(x, coarse, "pet2ct", samples=4, steps=2, seed=0), stack, atol=0.1)


def test_bf16_changes_a_sample_by_rounding_alone(translator, source, stack):
    values = {"samples": 4, "steps": 2, "seed": 0}
    rounded = translator.samples(*translator.start(source, "pet2ct"), "pet2ct", **values, bf16=True)
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, stack)
    assert np.abs(rounded - stack).mean() < 0.02 * np.abs(stack[0] - stack[1]).mean()


def test_slices_of_a_sample_share_their_noise_unless_each_is_to_have_its_own(translator, source):
    x, coarse = (images[:1].expand(3, -1, -1, -1) for images in translator.start(source, "pet2ct"))
    refiner = translator.refiners["pet2ct"]
    [alike], [apart] = (list(refiner.samples(x, coarse, samples=1, steps=1, seed=0, shared=s)) for s in (True, False))
    assert torch.allclose(alike, alike[:1].expand_as(alike), atol=1e-5)
    assert not torch.allclose(apart[0], apart[1], atol=1e-2)
    noises = [noise_like(coarse, seed, sample) for seed, sample in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(noises[0], noises[1])
    assert not any(torch.equal(noises[0], other) for other in noises[2:])


def test_steps_and_samplers_change_a_sample(translator, source):
    x, coarse = translator.start(source[:1], "pet2ct")
    refiner, images = translator.refiners["pet2ct"], []
    for steps, sampler in ((1, "heun"), (1, "euler"), (3, "heun"), (3, "euler")):
        images += refiner.samples(x, coarse, samples=1, steps=steps, seed=0, sampler=sampler)
    assert torch.equal(images[0], images[1]), "the last step is Euler's"
    assert not torch.allclose(images[0], images[2], atol=1e-3)
    assert not torch.allclose(images[2], images[3], atol=1e-3)


def test_a_sample_is_the_regression_and_its_flows_residual(translator, source, stack):
    x, coarse = translator.start(source, "pet2ct")
    refiner = translator.refiners["pet2ct"]
    mean = refiner.predict(x, coarse)
    expected = refiner.flow.sample(x, coarse, mean, noise_like(coarse, 0, 1), steps=2)[-1].clamp(-1, 1)
    assert np.allclose(stack[1], decode_images(expected, "ct", translator.window), atol=0.1)
    assert np.array_equal(translator.regression(x, coarse, "pet2ct"), decode_images(mean, "ct", translator.window))


def test_a_stage_2_that_knows_the_coarse_image_alone_cannot_do_without(run):
    unpaired = Translator(run).refiner("pet2ct", "unpaired_")
    with pytest.raises(InputError, match=r"without the coarse image: .* trained with it alone"):
        unpaired.without(torch.zeros(1, 1, 32, 32))


def test_without_the_coarse_image_stage_2_sees_zeros_and_stage_1_stays(translator, source, stack):
    result = translator(source, "pet2ct", mode="sample", samples=1, steps=2, without_coarse=True)
    x, coarse = translator.start(source, "pet2ct")
    blind = translator.samples(x, torch.zeros_like(coarse), "pet2ct", samples=1, steps=2, seed=0)
    assert np.array_equal(result.image, blind[0])
    assert not np.allclose(result.image, stack[0], atol=1)
    assert np.array_equal(result.coarse, decode_images(coarse, "ct", translator.window))


def test_what_cannot_be_drawn_is_refused(translator, source):
    for request, message in (
        ({"mode": "median"}, "mode 'median': it must be mean or sample"), ({"samples": 0}, "samples 0, steps 4"),
        ({"steps": 0}, "samples 8, steps 0: at least 1 of each"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            translator(source, "pet2ct", **request)
    x, coarse = translator.start(source[:1], "pet2ct")
    with pytest.raises(InputError, match="sampler 'ddim'"):
        list(translator.refiners["pet2ct"].samples(x, coarse, samples=1, steps=1, seed=0, sampler="ddim"))


def test_the_scale_of_the_error_is_in_the_targets_unit(prepared, source, tmp_path):
    run = small_run.small_run(prepared, tmp_path / "run")
    translator = Translator(run)
    x, coarse = translator.start(source, "pet2ct")
    with pytest.raises(InputError, match="trained without a Laplace scale"):
        translator.error_scale(x, coarse, source, "pet2ct")
    small_run.refiner(run, "pet2ct", 0, laplace=True)
    translator = Translator(run)
    image, b = translator.regression(x, coarse, "pet2ct"), translator.refiners["pet2ct"].regression.scale(x, coarse)
    scale = translator.error_scale(x, coarse, image, "pet2ct")
    inside = np.abs(encode_slices(image, "ct", translator.window)[:, 0].numpy()) + b[:, 0].numpy() < 1
    assert inside.any()
    assert np.allclose(scale[inside], b[:, 0].numpy()[inside] * (1500 + 1024) / 2, rtol=1e-3)


def test_networks_of_cycle_pairs_are_there_where_they_were_trained(translator):
    assert translator.refiner("pet2ct") is translator.refiners["pet2ct"]
    assert not translator.refiner("pet2ct", "unpaired_").regression.settings.sees_source
    assert translator.refiner("ct2pet", "unpaired_") is None


@pytest.mark.parametrize("kind", ["regression", "flow"])
def test_an_unfinished_training_does_not_translate(run, tmp_path, kind):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    name = f"checkpoints/{kind}_pet2ct.pt"
    regression = load_regression(run / "checkpoints" / "regression_pet2ct.pt")
    load_flow(run / "checkpoints" / "flow_pet2ct.pt", regression)
    small_run.unfinished(run / name, tmp_path / name)
    with pytest.raises(InputError, match=f"{kind}_pet2ct.pt: its training stopped after step 2 of 3; resume it"):
        load_refiner(tmp_path / "checkpoints", "pet2ct")


@pytest.mark.parametrize("kind", ["cyclegan", "regression_pet2ct", "flow_pet2ct"])
def test_other_weights_have_another_identity(run, translator, tmp_path, kind):
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    small_run.unfinished(run / "checkpoints" / "pix2pix_ct2pet.pt", tmp_path / "run" / "checkpoints" / f"{kind}.pt")
    before = {d: translator.identity(d) for d in ("pet2ct", "ct2pet")}
    translator = Translator(run)
    translator.checkpoints = tmp_path / "run" / "checkpoints"
    assert translator.identity("pet2ct") != before["pet2ct"] != before["ct2pet"]
    assert (translator.identity("ct2pet") == before["ct2pet"]) == (kind != "cyclegan")


def test_batching_does_not_change_the_generators_images(monkeypatch):
    net, x = CycleGAN(CycleGANSettings(4, 1, 2)), torch.rand(5, 1, 16, 16)
    whole = coarse_images(net, x, "pet2ct")
    monkeypatch.setattr(translator_module, "BATCH", 2)
    assert torch.allclose(coarse_images(net, x, "pet2ct"), whole, atol=1e-5)


def levels(n):
    """Slices of known value: k × 100 HU is slice k."""
    return np.full((n, 4, 4), 100.0, np.float32) * np.arange(n, dtype=np.float32)[:, None, None]


def numbers(images):
    return [[round(float(v)) for v in row] for row in decode_ct(images, Intensity())[..., 0, 0] / 100]


def test_slices_are_encoded_with_their_neighbours_and_the_ends_repeated():
    assert numbers(encode_slices(levels(3), "ct", Intensity())) == [[0], [1], [2]]
    assert numbers(encode_slices(levels(3), "ct", Intensity(), 3)) == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]
    assert numbers(encode_slices(levels(2), "ct", Intensity(), 5)) == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_neighbours_are_never_of_another_study():
    x = encode_slices(levels(5), "ct", Intensity(), 3, lengths=[3, 2])
    assert numbers(x) == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 4], [3, 4, 4]]


@pytest.mark.parametrize("kind", ["pet", "ct"])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_the_networks_are_given_what_they_were_trained_on_to_the_bit(prepared, kind, neighbours):
    patient = prepared.patients[0]
    slices = Slices(prepared, [patient], (kind,), Intensity(), neighbours)
    x = encode_slices(prepared.patient_stack(patient, kind), kind, Intensity(), neighbours, prepared.lengths(patient))
    assert torch.equal(x, torch.stack([slices[i][kind] for i in range(len(slices))]))


def test_stage_2_starts_from_slices_among_their_neighbours_and_coarse_images():
    cyclegan, window = CycleGAN(CycleGANSettings(4, 1, 1)), Intensity()
    source = np.random.default_rng(0).uniform(0, 5, (5, 16, 16)).astype(np.float32)
    x, coarse = stage2_inputs(cyclegan, source, "pet2ct", window, 3, [3, 2])
    assert torch.equal(x, encode_slices(source, "pet", window, 3, [3, 2]))
    alone, same = stage2_inputs(cyclegan, source, "pet2ct", window)
    assert torch.equal(alone, center_slice(x))
    assert torch.allclose(coarse, same, atol=1e-5), "the generator sees single slices"
    assert np.allclose(translate_coarse(cyclegan, source, "pet2ct", window), decode_images(coarse, "ct", window))


def test_a_refiner_of_many_neighbours_is_given_them(prepared, source, tmp_path):
    run = small_run.small_run(prepared, tmp_path / "run")
    small_run.refiner(run, "pet2ct", 0, neighbours=3)
    translator = Translator(run)
    x, _ = translator.start(source, "pet2ct", [3, 2])
    assert torch.equal(x, encode_slices(source, "pet", translator.window, 3, [3, 2]))
    whole = translator(source, "pet2ct", samples=1, steps=1, lengths=[3, 2]).image
    parts = [translator(study, "pet2ct", samples=1, steps=1).image for study in (source[:3], source[3:])]
    assert np.allclose(whole, np.concatenate(parts), atol=0.1)
    assert not np.allclose(whole, translator(source, "pet2ct", samples=1, steps=1).image, atol=1)


def test_the_averaged_generator_translates(run, source):
    stage = load_cyclegan(run / "checkpoints" / "cyclegan.pt")
    before = translate_coarse(stage, source, "pet2ct", Intensity())
    for parameter in stage.nets["G_pet2ct"].parameters():
        torch.nn.init.zeros_(parameter)
    assert np.array_equal(translate_coarse(stage, source, "pet2ct", Intensity()), before)
