"""Prepared slices, splits by patient, datasets."""

import json
import shutil

import numpy as np
import pytest
import torch

from petct_lib import InputError
from petct_lib.data import (
    ROLES,
    PairedBatches,
    Prepared,
    Slices,
    SliceSettings,
    UnpairedBatches,
    align,
    copied,
    mean_atlas,
    prepare,
    refiner_patients,
    split_patients,
    spread_slices,
)
from petct_lib.dicom import Study
from petct_lib.intensity import Intensity
from petct_lib.suv import SuvFactor
from petct_lib.volume import Volume, axial_affine

SETTINGS = SliceSettings(32, None, 16.0)


def test_prepared_arrays_are_physical_aligned_and_memory_mapped(prepared):
    study = prepared.studies()[0]
    pet, ct, body = (prepared.array(study, kind) for kind in ("pet", "ct", "body"))
    assert isinstance(ct, np.memmap)
    assert pet.dtype == ct.dtype == np.float32
    assert body.dtype == bool
    assert pet.shape == ct.shape == body.shape == (prepared.row(study)["slices"], 32, 32)
    assert -1100 < ct.min() < -900
    assert pet[body].mean() > 5 * pet[~body].mean()
    assert np.abs(np.median(ct[body & (ct > -200) & (ct < 200)])) < 80  # soft tissue and fat


def test_index_says_what_was_used_and_what_was_left_out(prepared):
    assert [item["what"] for item in prepared.index["left_out"]] == ["truth.json"]
    assert all(s["suv_rule"].startswith("BQML") for s in prepared.index["studies"])
    assert "PHANTOM" not in json.dumps(prepared.index)


def test_prepared_once_then_only_opened(prepared, phantom_dir, monkeypatch):
    monkeypatch.setattr("petct_lib.data.load_pair", lambda pair: pytest.fail("read again"))
    assert prepare(phantom_dir, prepared.folder, SETTINGS).fingerprint == prepared.fingerprint


def test_other_settings_do_not_overwrite(prepared, phantom_dir):
    with pytest.raises(InputError, match="other data or settings"):
        prepare(phantom_dir, prepared.folder, SliceSettings(64, None, 16.0))


def test_same_data_same_fingerprint_other_grid_another(prepared, phantom_dir, tmp_path):
    assert prepare(phantom_dir, tmp_path / "a", SETTINGS).fingerprint == prepared.fingerprint
    assert prepare(phantom_dir, tmp_path / "b", SliceSettings(32, None, 20.0)).fingerprint != prepared.fingerprint


def test_a_broken_series_costs_its_patient_only_and_nothing_half_written_stays(phantom_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantom_dir, copy)
    victim = sorted((copy / "PHANTOM-0001" / "CT").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-2000])
    made = prepare(copy, tmp_path / "prepared", SETTINGS)
    assert len(made.patients) == 4
    assert any(victim.name in item["reason"] for item in made.index["left_out"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_padding_of_the_ct_does_not_darken_the_body(prepared):
    y, x = np.ogrid[:64, :64]
    disc = np.broadcast_to((y - 31.5) ** 2 + (x - 31.5) ** 2 < 30**2, (8, 64, 64))
    affine = axial_affine((4, 4, 4), np.zeros(3))
    pet = Volume(disc.astype(np.float32), affine, "SUV")
    bodies = []
    for padding in (-1024.0, -3024.0):
        ct = Volume(np.where(disc, 40.0, padding).astype(np.float32), affine, "HU")
        study = Study("s", "p", pet, ct, SuvFactor(1.0, ""), "GML", "", "1.2")
        bodies.append(align(study, SliceSettings(32, None, 4.0), 256.0)[1].array)
    assert np.array_equal(*bodies)


def test_a_training_knows_its_window_and_its_coarse_images(prepared):
    slices = [Slices(prepared, prepared.patients[:1], ("pet", "ct"), w) for w in (Intensity(), Intensity(suv_cap=9))]
    zeros = torch.zeros(len(slices[0]), 1, 32, 32)
    given = ((slices[0], zeros), (slices[1], zeros), (slices[0], zeros + 1))
    first, other, recoarsed = (PairedBatches(s, c, "pet2ct", 2).describe() for s, c in given)
    assert first != other
    assert first != recoarsed


@pytest.mark.parametrize("bad", [{"size": 100}, {"size": 16}, {"slice_mm": 0}, {"fov_mm": -1}])
def test_impossible_grids_are_refused(bad):
    with pytest.raises(InputError, match=r"size|slice_mm"):
        SliceSettings(**bad)


def test_missing_slices_say_what_to_run(tmp_path):
    with pytest.raises(InputError, match="run 01_data_exploration first"):
        Prepared(tmp_path)


@pytest.mark.parametrize(("n", "sizes"), [(4, [1, 1, 1, 1]), (5, [2, 1, 1, 1]), (12, [4, 3, 2, 3]), (20, [7, 6, 2, 5])])
def test_split_sizes(n, sizes):
    splits = split_patients([f"p{i}" for i in range(n)], 0)
    assert [len(splits[role]) for role in ROLES] == sizes


def test_every_patient_has_exactly_one_role_and_the_seed_decides():
    patients = [f"p{i}" for i in range(17)]
    splits = split_patients(patients, 1)
    assert sorted(p for members in splits.values() for p in members) == sorted(patients)
    assert splits == split_patients(patients, 1)
    assert splits != split_patients(patients, 2)


def test_too_few_patients():
    with pytest.raises(InputError, match="3 usable patients"):
        split_patients(["a", "b", "c"], 0)


def test_refiner_never_learns_from_test_or_from_sources_the_cyclegan_saw():
    splits = split_patients([f"p{i}" for i in range(12)], 0)
    for direction, seen in (("pet2ct", "train_pet"), ("ct2pet", "train_ct")):
        members = set(refiner_patients(splits, direction))
        assert set(splits["refine"]) <= members
        assert not members & set(splits["test"])
        assert not members & set(splits[seen])


def test_unpaired_batches_refuse_shared_patients(prepared):
    a, b = prepared.patients[:2]
    pet = Slices(prepared, [a, b], ("pet",), Intensity())
    with pytest.raises(ValueError, match="different patients"):
        UnpairedBatches(pet, Slices(prepared, [b], ("ct",), Intensity()), 2)


def test_unpaired_batch(prepared):
    a, b = prepared.patients[:2]
    batches = UnpairedBatches(*(Slices(prepared, [p], (k,), Intensity()) for p, k in ((a, "pet"), (b, "ct"))), 3, 2)
    batch = batches(np.random.default_rng(5))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {"pet": (3, 1, 32, 32), "ct": (3, 1, 32, 32)}
    assert batch["ct"].min() >= -1
    assert batch["ct"].max() <= 1
    again, other = batches(np.random.default_rng(5)), batches(np.random.default_rng(6))
    assert torch.equal(batch["pet"], again["pet"])
    assert not torch.equal(batch["pet"], other["pet"])


def test_paired_batch_shifts_all_images_alike(prepared):
    slices = Slices(prepared, prepared.patients[:1], ("pet", "ct"), Intensity())
    coarse = torch.stack([slices[i]["ct"] for i in range(len(slices))])
    batch = PairedBatches(slices, coarse, "pet2ct", 6, 4)(np.random.default_rng(0))
    assert torch.equal(batch["coarse"], batch["target"])
    assert set(batch) == {"source", "coarse", "target"}
    still = PairedBatches(slices, coarse, "pet2ct", 6, 0)(np.random.default_rng(0))
    assert not torch.equal(batch["target"], still["target"])


def test_shifted_slices_bring_in_air(prepared):
    from petct_lib.data import _moved

    image = torch.arange(12.0).view(1, 3, 4)
    assert _moved(image, 1, -1)[0].tolist() == [[-1, -1, -1, -1], [1, 2, 3, -1], [5, 6, 7, -1]]
    assert torch.equal(_moved(image, 0, 0), image)


def test_paired_batches_refuse_other_coarse_images(prepared):
    slices = Slices(prepared, prepared.patients[:1], ("pet", "ct"), Intensity())
    with pytest.raises(ValueError, match="1 coarse images for"):
        PairedBatches(slices, torch.zeros(1, 1, 32, 32), "pet2ct", 2)


def test_atlas_is_the_mean_of_the_training_targets(prepared):
    patients = prepared.patients[:2]
    stack = np.concatenate([prepared.of_patient(p, "ct") for p in patients])
    assert np.allclose(mean_atlas(prepared, patients, "ct"), stack.mean(axis=0), atol=0.01)


def test_copy_shows_the_source_in_the_targets_range():
    suv = np.array([[[0.0, 15.0, 3.75]]])
    assert np.allclose(copied(suv, "pet2ct", Intensity()), [[[-1024, 1500, 238]]])


def test_spread_slices(prepared):
    pet, ct = spread_slices(prepared, prepared.patients[0], ("pet", "ct"), 3)
    assert pet.shape == ct.shape == (3, 32, 32)
    assert not np.array_equal(ct[0], ct[2])
