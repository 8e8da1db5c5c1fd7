"""Cycle pairs: what they are made of, and that no real source image is."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_run import small_run

from petct_lib.data.datasets import PairedBatches
from petct_lib.data.splits import read_splits, refiner_patients
from petct_lib.imaging.directions import DIRECTIONS, SOURCE, TARGET
from petct_lib.models.checkpoints import load_cyclegan
from petct_lib.models.cycle_pairs import BACK, Perturbation, make_cycle_pair, perturb
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.training import train_refiner
from petct_lib.training.train_refiner import VARIANTS, load_cycle_pairs

NONE = Perturbation(noise=0.0, blur=False)


def images(n=6, size=32, channels=1, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rng(seed=0):
    return np.random.default_rng(seed)


def cyclegan(**settings):
    """Untrained, its averaged generators of other weights than its generators, and each other's."""
    stage = CycleGAN(CycleGANSettings(width=4, blocks=1, patch_layers=2, **settings))
    for seed, ema in enumerate(stage.ema.values()):
        for p in ema.module.parameters():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(seed))
    return stage


def test_back_is_the_other_direction():
    assert {d: (SOURCE[BACK[d]], TARGET[BACK[d]]) for d in DIRECTIONS} == {
        d: (TARGET[d], SOURCE[d]) for d in DIRECTIONS
    }


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_without_perturbation_a_pair_is_exactly_the_cycle(direction):
    stage, y = cyclegan(), images()
    x, c = make_cycle_pair(stage, y, direction, NONE, rng())
    expected_x = stage.generator(BACK[direction])(y)
    assert torch.equal(x, expected_x)
    assert torch.equal(c, stage.generator(direction)(expected_x))
    assert not torch.allclose(c, y, atol=0.1)
    assert not any(image.requires_grad for image in (x, c))


def test_with_perturbation_the_source_is_the_same_and_what_is_made_of_it_is_not():
    stage, y = cyclegan(), images()
    plain, first, again, other = (
        make_cycle_pair(stage, y, "pet2ct", *values)
        for values in ((NONE, rng()), (Perturbation(), rng()), (Perturbation(), rng()), (Perturbation(), rng(1)))
    )
    assert torch.equal(first[0], plain[0]), "F(y) itself is what stage 2 sees as the source"
    assert not torch.allclose(first[1], plain[1], atol=1e-3)
    assert torch.equal(first[1], again[1])
    assert not torch.allclose(first[1], other[1], atol=1e-3)


def test_variants_are_of_one_synthetic_source_and_of_perturbations_of_their_own():
    stage, y = cyclegan(), images()
    one, several = (make_cycle_pair(stage, y, "pet2ct", Perturbation(), rng(), n) for n in (1, 3))
    assert torch.equal(one[0], several[0])
    assert several[1].shape == (len(y), 3, *y.shape[2:])
    assert torch.equal(one[1], several[1][:, :1])
    assert not torch.allclose(several[1][:, 0], several[1][:, 1], atol=1e-3)


def test_generators_work_on_their_coarse_grid_and_pairs_have_the_slices_size():
    stage, y = cyclegan(coarse_size=16), images()
    x, c = make_cycle_pair(stage, y, "ct2pet", NONE, rng())
    small = stage.generator("pet2ct")(F.avg_pool2d(y, 2))
    up = {"size": (32, 32), "mode": "bilinear", "align_corners": False}
    assert torch.equal(x, F.interpolate(small, **up))
    assert torch.equal(c, F.interpolate(stage.generator("ct2pet")(small), **up))


def test_noise_is_bounded_and_of_another_strength_for_each_image():
    image = torch.zeros(400, 1, 32, 32)
    spread = perturb(image, Perturbation(noise=0.2, blur=False), rng()).std(dim=(1, 2, 3))
    assert spread.max() < 0.2 * 1.1, "1.1: the spread of 1024 numbers is not exactly theirs"
    assert spread.min() < 0.01
    assert spread.mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(perturb(image, NONE, rng()), image)


def test_what_is_perturbed_stays_in_range_and_keeps_the_original():
    image = images() * 0.1 + 0.9
    before = image.clamp(-1, 1).clone()
    out = perturb(image.clamp(-1, 1), Perturbation(noise=0.5), rng())
    assert out.abs().max() <= 1
    assert torch.equal(image.clamp(-1, 1), before)


def test_blur_is_a_share_of_the_mean_of_3_by_3():
    image = images(200)
    soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    out = perturb(image, Perturbation(noise=0.0), rng())
    share = ((out - image) / (soft - image)).flatten(1)
    shares = share.median(dim=1).values
    assert torch.allclose(out, torch.lerp(image, soft, shares[:, None, None, None]), atol=1e-5)
    assert 0 <= shares.min() < 0.05
    assert 0.95 < shares.max() <= 1
    flat = torch.full((3, 1, 8, 8), 0.5)
    assert torch.allclose(perturb(flat, Perturbation(noise=0.0), rng()), flat)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A run folder without a single source image of PET→CT."""
    folder = tmp_path_factory.mktemp("cycle")
    run = shutil.copytree(small_run(prepared, folder / "linked"), folder / "run")
    for pet in (run / "prepared").glob("*/pet.npy"):
        pet.unlink()
    return run


def test_pairs_of_a_run_are_made_without_any_source_image(run):
    pairs = load_cycle_pairs(run, "pet2ct", seed=0)
    assert pairs.slices.kinds == ("ct",)
    batch = PairedBatches(pairs.slices, pairs.coarse, "pet2ct", 4, sources=pairs.sources)(rng())
    assert {key: tuple(image.shape) for key, image in batch.items()} == dict.fromkeys(
        ("source", "coarse", "target"), (4, 1, 32, 32)
    )
    with pytest.raises(FileNotFoundError, match=r"pet\.npy"):
        train_refiner.load_real_pairs(run, "pet2ct")


def test_a_runs_pairs_are_the_cycles_of_its_own_slices_in_four_variants(run):
    pairs = load_cycle_pairs(run, "pet2ct", seed=0, perturbation=NONE)
    assert pairs.coarse.shape == (len(pairs.slices), VARIANTS, 32, 32)
    for first in (0, len(pairs.slices) - 1):  # in the first batch, and in the last
        y = pairs.slices[first]["ct"][None]
        x, c = make_cycle_pair(load_cyclegan(run / "checkpoints" / "cyclegan.pt"), y, "pet2ct", NONE, rng())
        assert np.allclose(pairs.sources[first], x[0], atol=1e-5)
        assert all(np.allclose(variant, c[0, 0], atol=1e-5) for variant in pairs.coarse[first])
    changed = load_cycle_pairs(run, "pet2ct", seed=0)
    assert np.array_equal(changed.sources, pairs.sources)
    variants = np.array(changed.coarse[0])
    assert all(np.abs(a - b).max() > 1e-4 for k, a in enumerate(variants) for b in variants[:k])


def test_pairs_of_a_seed_are_the_same_ones(run):
    first, again, other = (np.array(load_cycle_pairs(run, "pet2ct", seed=seed).coarse) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pairs_are_of_those_who_train_the_refiner(run):
    pairs, splits = load_cycle_pairs(run, "pet2ct", seed=0), read_splits(run)
    expected = refiner_patients(splits, "pet2ct")
    assert len(expected) == 2
    assert pairs.slices.studies == pairs_studies(run, expected)
    assert not set(pairs.slices.studies) & set(pairs_studies(run, splits["test"] + splits["train_pet"]))


def pairs_studies(run, patients):
    return train_refiner.Prepared(run / "prepared").studies(patients)
