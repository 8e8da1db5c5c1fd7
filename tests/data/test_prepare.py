"""Prepared slices: aligned, fingerprinted, written once."""

import json
import shutil

import numpy as np
import pytest

from petct_lib import InputError
from petct_lib.data.prepare import Prepared, SliceSettings, prepare

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
    assert [item["what"] for item in prepared.index["left_out"]] == ["15 files", "a file"]
    assert len({s["suv_rule"] for s in prepared.index["studies"]}) == 5  # a vendor's own way in each
    assert "PHANTOM" not in json.dumps(prepared.index)


def test_prepared_once_then_only_opened(prepared, phantom_dir, monkeypatch):
    monkeypatch.setattr("petct_lib.data.prepare.find_pairs", lambda *_, **__: pytest.fail("read again"))
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
    output = prepare(copy, tmp_path / "prepared", SETTINGS)
    assert len(output.patients) == 4
    assert any("image 4 of" in item["reason"] for item in output.index["left_out"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("bad", [{"size": 100}, {"size": 16}, {"slice_mm": 0}, {"fov_mm": -1}])
def test_impossible_grids_are_refused(bad):
    with pytest.raises(InputError, match=r"size|slice_mm"):
        SliceSettings(**bad)


def test_missing_slices_say_what_to_run(tmp_path):
    with pytest.raises(InputError, match="run 01_data_exploration first"):
        Prepared(tmp_path)
