"""Splits by patient, datasets, and the controls that need no network."""

import os
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from petct_lib import InputError
from petct_lib.common.files import read_json, write_json
from petct_lib.data.datasets import MixedBatches, PairedBatches, Slices, UnpairedBatches, spread_slices
from petct_lib.data.prepare import Prepared
from petct_lib.evaluation.methods import copy_source, mean_atlas
from petct_lib.imaging.intensity import Intensity
from petct_lib.training.train_refiner import write_coarse_images

SHIFT = 2


def pair_of_batches(prepared, size=4, shift=SHIFT, **options):
    a, b = prepared.patients[:2]
    parts = (Slices(prepared, [p], (k,), Intensity(), **options) for p, k in ((a, "pet"), (b, "ct")))
    return UnpairedBatches(*parts, size, shift)


def numbered_pairs(prepared, direction="pet2ct", size=4, shift=SHIFT, patient=0, **options):
    """Pairs whose coarse image k of slice i is i + k/10 everywhere."""
    slices = Slices(prepared, prepared.patients[patient : patient + 1], ("pet", "ct"), Intensity())
    numbers = np.arange(len(slices))[:, None] + np.arange(3) / 10
    coarse = np.broadcast_to(numbers[:, :, None, None], (len(slices), 3, 32, 32)).astype(np.float32)
    return PairedBatches(slices, coarse, direction, size, shift, **options)


def test_the_shares_of_two_processes_are_the_whole_batch(prepared):
    batches = pair_of_batches(prepared, shift=SHIFT)
    whole = batches(np.random.default_rng(1))
    shares = [batches(np.random.default_rng(1), rank, 2) for rank in (0, 1)]
    for kind in ("pet", "ct"):
        assert torch.equal(torch.cat([share[kind] for share in shares]), whole[kind])
    paired = numbered_pairs(prepared, crop=16)
    whole = paired(np.random.default_rng(1))
    shares = [paired(np.random.default_rng(1), rank, 2) for rank in (0, 1)]
    for key in ("source", "coarse", "target"):
        assert torch.equal(torch.cat([share[key] for share in shares]), whole[key])
    with pytest.raises(InputError, match="batch of 4 cannot be shared by 3 processes"):
        batches(np.random.default_rng(1), 0, 3)


def test_held_slices_are_those_on_the_disk_to_the_bit(prepared):
    disk, held = (pair_of_batches(prepared, shift=SHIFT, device=d) for d in (None, torch.device("cpu")))
    one, other = disk(np.random.default_rng(2)), held(np.random.default_rng(2))
    assert all(torch.equal(one[kind], other[kind]) for kind in ("pet", "ct"))
    assert disk.describe() == held.describe()
    slices = disk.slices["pet"]
    assert slices.nbytes == len(slices) * 32 * 32 * 4


def test_neighbours_are_of_the_same_study_and_repeated_at_its_ends(prepared):
    patients = prepared.patients[:2]
    single = Slices(prepared, patients, ("ct",), Intensity())
    slices = Slices(prepared, patients, ("ct",), Intensity(), neighbours=3)
    n = prepared.lengths(patients[0])[0]
    assert slices[1]["ct"].shape == (3, 32, 32)
    for i, around in ((1, (0, 1, 2)), (0, (0, 0, 1)), (n - 1, (n - 2, n - 1, n - 1)), (n, (n, n, n + 1))):
        assert torch.equal(slices[i]["ct"], torch.cat([single[j]["ct"] for j in around])), i
    with pytest.raises(InputError, match="neighbours 2"):
        Slices(prepared, patients, ("ct",), Intensity(), neighbours=2)


def test_names_are_those_of_the_slices_drawn(prepared):
    batches = pair_of_batches(prepared, shift=0)
    batch, names = batches(np.random.default_rng(3)), batches.names(np.random.default_rng(3))
    assert [name.split(":")[0] for name in names] == ["pet"] * 4 + ["ct"] * 4
    for image, name in zip(torch.cat([batch["pet"], batch["ct"]]), names, strict=True):
        kind, study, k = name.replace(": study ", "|").replace(", slice ", "|").split("|")
        item = batches.slices[kind]
        assert torch.equal(image, item[item.places.index((study, int(k)))][kind])


def test_what_changes_the_batches_is_described(prepared):
    plain = pair_of_batches(prepared).describe()
    assert pair_of_batches(prepared, shift=1).describe() != plain
    assert pair_of_batches(prepared, size=2).describe() != plain
    slices = Slices(prepared, prepared.patients[:1], ("pet", "ct"), Intensity())
    coarse = np.zeros((len(slices), 1, 32, 32), np.float32)
    one, other = (PairedBatches(slices, coarse, "pet2ct", 2, k).describe() for k in (0, 1))
    assert one != other
    changes = ({"crop": 16}, {"sources": coarse}, {"sources": coarse + 1})
    described = [one, *(PairedBatches(slices, coarse, "pet2ct", 2, **change).describe() for change in changes)]
    assert all(a != b for k, a in enumerate(described) for b in described[:k])


def test_paired_batches_have_the_neighbours_of_the_source_alone(prepared):
    one, three = (Slices(prepared, prepared.patients[:1], ("pet", "ct"), Intensity(), neighbours=n) for n in (1, 3))
    coarse = np.zeros((len(one), 1, 32, 32), np.float32)
    single, wide = (PairedBatches(s, coarse, "pet2ct", 4, SHIFT)(np.random.default_rng(0)) for s in (one, three))
    assert {key: image.shape[1] for key, image in wide.items()} == {"source": 3, "coarse": 1, "target": 1}
    assert torch.equal(wide["target"], single["target"])
    assert torch.equal(wide["source"][:, 1:2], single["source"])
    assert not torch.equal(wide["source"][:, :1], single["source"])


def test_a_training_knows_its_window_and_its_coarse_images(prepared):
    slices = [Slices(prepared, prepared.patients[:1], ("pet", "ct"), w) for w in (Intensity(), Intensity(suv_cap=9))]
    zeros = np.zeros((len(slices[0]), 1, 32, 32), np.float32)
    values = ((slices[0], zeros), (slices[1], zeros), (slices[0], zeros + 1))
    first, other, recoarsed = (PairedBatches(s, c, "pet2ct", 2).describe() for s, c in values)
    assert first != other
    assert first != recoarsed


def test_unpaired_batches_refuse_shared_patients(prepared):
    a, b = prepared.patients[:2]
    pet = Slices(prepared, [a, b], ("pet",), Intensity())
    with pytest.raises(ValueError, match="different patients"):
        UnpairedBatches(pet, Slices(prepared, [b], ("ct",), Intensity()), 2)


def test_unpaired_batch(prepared):
    a, b = prepared.patients[:2]
    batches = UnpairedBatches(*(Slices(prepared, [p], (k,), Intensity()) for p, k in ((a, "pet"), (b, "ct"))), 3, SHIFT)
    batch = batches(np.random.default_rng(5))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {"pet": (3, 1, 32, 32), "ct": (3, 1, 32, 32)}
    assert batch["ct"].min() >= -1
    assert batch["ct"].max() <= 1
    again, other = batches(np.random.default_rng(5)), batches(np.random.default_rng(6))
    assert torch.equal(batch["pet"], again["pet"])
    assert not torch.equal(batch["pet"], other["pet"])


def test_paired_batch_shifts_all_images_alike(prepared):
    slices = Slices(prepared, prepared.patients[:1], ("pet", "ct"), Intensity())
    coarse = np.stack([slices[i]["ct"].numpy() for i in range(len(slices))])
    batch = PairedBatches(slices, coarse, "pet2ct", 6, 4)(np.random.default_rng(0))
    assert torch.equal(batch["coarse"], batch["target"])
    assert set(batch) == {"source", "coarse", "target"}
    still = PairedBatches(slices, coarse, "pet2ct", 6)(np.random.default_rng(0))
    assert not torch.equal(batch["target"], still["target"])


@pytest.mark.parametrize(("direction", "kinds"), [("pet2ct", ("pet", "ct")), ("ct2pet", ("ct", "pet"))])
def test_a_pair_is_of_one_slice_and_any_of_its_coarse_images(prepared, direction, kinds):
    pairs, variants = numbered_pairs(prepared, direction, 8, 0), set()
    for seed in range(6):
        batch, names = (make(np.random.default_rng(seed)) for make in (pairs, pairs.names))
        for k, name in enumerate(names):
            number, variant = divmod(round(10 * batch["coarse"][k].mean().item()), 10)
            variants.add(variant)
            assert name == pairs.slices.name(number)
            assert torch.equal(batch["source"][k], pairs.slices[number][kinds[0]])
            assert torch.equal(batch["target"][k], pairs.slices[number][kinds[1]])
    assert variants == {0, 1, 2}


def test_sources_given_take_the_place_of_the_slices_own(prepared):
    slices = Slices(prepared, prepared.patients[:1], ("ct",), Intensity(), neighbours=3)
    sources = np.random.default_rng(0).uniform(-1, 1, (len(slices), 1, 32, 32)).astype(np.float32)
    batch = PairedBatches(slices, sources, "pet2ct", 6, SHIFT, sources)(np.random.default_rng(0))
    assert batch["source"].shape == batch["target"].shape == (6, 1, 32, 32)
    assert torch.equal(batch["source"], batch["coarse"])
    plain = PairedBatches(slices, sources, "pet2ct", 6, sources=sources)
    batch, names = (make(np.random.default_rng(1)) for make in (plain, plain.names))
    for k, name in enumerate(names):
        number = [slices.name(i) for i in range(len(slices))].index(name)
        assert np.array_equal(batch["source"][k], sources[number])
        assert torch.equal(batch["target"][k], slices[number]["ct"][1:2]), "the middle one of three"


def test_crops_are_aligned_squares_of_the_slices_around_the_target(prepared):
    slices = numbered_pairs(prepared).slices
    negative = np.stack([-slices[i]["ct"].numpy() for i in range(len(slices))])  # bright where the target is air
    whole, cropped = (numbered_pairs(prepared, size=48, sources=negative, crop=crop) for crop in (None, 12))
    big, small = (batches(np.random.default_rng(0)) for batches in (whole, cropped))
    places, inside = set(), 0
    for k in range(48):
        here = [
            (top, left) for top in range(21) for left in range(21)
            if all(torch.equal(big[key][k, :, top : top + 12, left : left + 12], small[key][k]) for key in big)
        ]  # fmt: skip
        assert here, "one place for source, coarse and target"
        top, left = here[0]
        places.add((top, left))
        if 0 < top < 20 and 0 < left < 20:  # not held back by the slice's edge
            inside += 1
            assert small["target"][k, 0, 6, 6] >= big["target"][k].mean()
    assert len(places) > 10
    assert inside > 10


def mixed(prepared):
    return MixedBatches([numbered_pairs(prepared, size=2), numbered_pairs(prepared, size=4, patient=1)])


def test_mixed_batches_are_the_parts_one_after_the_other(prepared):
    both = mixed(prepared)
    batch, rng = both(np.random.default_rng(0)), np.random.default_rng(0)
    expected = [part(rng) for part in both.parts]
    assert {key: len(images) for key, images in batch.items()} == {"source": 6, "coarse": 6, "target": 6}
    for key in batch:
        assert torch.equal(batch[key], torch.cat([part[key] for part in expected]))
    shares = [both(np.random.default_rng(0), rank, 2) for rank in (0, 1)]
    assert [len(share["source"]) for share in shares] == [3, 3]
    assert torch.equal(
        shares[1]["source"], torch.cat([part["source"][len(part["source"]) // 2 :] for part in expected])
    )


def test_mixed_batches_name_the_slices_of_all_parts(prepared):
    both = mixed(prepared)
    batch, names = (make(np.random.default_rng(5)) for make in (both, both.names))
    studies = [part.slices.studies[0] for part in both.parts]
    numbers = [int(image.max()) for image in batch["coarse"]]  # its moved edges are −1
    assert names == [
        f"study {study}, slice {number}"
        for study, number in zip([studies[0]] * 2 + [studies[1]] * 4, numbers, strict=True)
    ]


def test_mixed_batches_are_described_by_their_parts_and_fixed_ones_never_change(prepared):
    both = mixed(prepared)
    assert both.describe() == {"parts": [part.describe() for part in both.parts]}
    assert MixedBatches(both.parts[::-1]).describe() != both.describe()
    assert torch.equal(both.fixed()["coarse"], both.fixed()["coarse"])


def test_paired_batches_refuse_other_coarse_images(prepared):
    slices = Slices(prepared, prepared.patients[:1], ("pet", "ct"), Intensity())
    with pytest.raises(ValueError, match="1 coarse images for"):
        PairedBatches(slices, np.zeros((1, 1, 32, 32)), "pet2ct", 2)


def test_atlas_is_the_mean_of_the_training_targets(prepared):
    patients = prepared.patients[:2]
    stack = np.concatenate([prepared.patient_stack(p, "ct") for p in patients])
    assert np.allclose(mean_atlas(prepared, patients, "ct"), stack.mean(axis=0), atol=0.01)


def test_copy_shows_the_source_in_the_targets_range():
    suv = np.array([[[0.0, 15.0, 3.75]]])
    assert np.allclose(copy_source(suv, "pet2ct", Intensity()), [[[-1024, 1500, 238]]])


def test_spread_slices(prepared):
    pet, ct = spread_slices(prepared, prepared.patients[0], ("pet", "ct"), 3)
    assert pet.shape == ct.shape == (3, 32, 32)
    assert not np.array_equal(ct[0], ct[2])


def test_memory_of_a_training_does_not_grow_with_its_patients(prepared, tmp_path):
    """Twenty times the slices, the same peak: arrays and coarse images are memory-mapped."""
    copy = tmp_path / "many"
    shutil.copytree(prepared.folder, copy)
    index = read_json(copy / "index.json")
    first = index["studies"][0]
    many = [{**first, "id": f"s{k}", "patient": f"p{k}"} for k in range(100)]
    for row in many:
        os.symlink(copy / first["id"], copy / row["id"])
    write_json({**index, "studies": many}, copy / "index.json")
    cyclegan = SimpleNamespace(translate=lambda x, direction: x)

    def peak(patients):
        tracemalloc.start()
        slices = Slices(Prepared(copy), patients, ("pet", "ct"), Intensity())
        coarse = write_coarse_images(slices, cyclegan, "pet2ct", tmp_path / f"{len(patients)}.npy")
        batches, rng = PairedBatches(slices, coarse, "pet2ct", 4, SHIFT), np.random.default_rng(0)
        for _ in range(20):
            batches(rng)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, len(slices)

    peak([row["patient"] for row in many[:1]])  # what is imported and cached once
    (few, n), (lots, m) = peak([row["patient"] for row in many[:5]]), peak([row["patient"] for row in many])
    assert m == 20 * n
    arrays = (m - n) * 32 * 32 * 4 * 3
    assert lots - few < 0.1 * arrays, f"{lots - few} bytes more for {arrays} bytes of images"
