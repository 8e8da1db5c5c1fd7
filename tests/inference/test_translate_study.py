"""A trained run applied to DICOM studies, and what is exported."""

import shutil

import numpy as np
import pydicom
import pytest
import small_run
from conftest import dicom_errors

from petct_lib import WARNING, InputError
from petct_lib.cli import main
from petct_lib.common.files import read_json
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import read_series
from petct_lib.dicom.studies import find_pairs, load_series
from petct_lib.dicom.writer import make_uid
from petct_lib.inference.translate_study import export_patient, read_source, translate_study
from petct_lib.inference.translator import Translation


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    return small_run.small_run(prepared, tmp_path_factory.mktemp("translate") / "run")


@pytest.fixture(scope="module")
def source(prepared):
    return np.array(prepared.patient_stack(prepared.patients[0], "pet"))[:5]


@pytest.mark.parametrize(("direction", "modality", "unit"), [("pet2ct", "CT", "HU"), ("ct2pet", "PT", "GML")])
def test_translate_command_writes_derived_series(run, phantom_dir, tmp_path, capsys, direction, modality, unit):
    study, out = phantom_dir / "PHANTOM-0001", tmp_path / "out"
    request = {"--run": run, "--direction": direction, "--out": out, "--samples": 2, "--steps": 1}
    assert main(["translate", str(study), *(str(part) for pair in request.items() for part in pair)]) == 0
    assert WARNING in capsys.readouterr().out
    original = find_pairs(study)[0][0].pet
    for part in ("image", "spread"):
        path = sorted((out / part).iterdir())[0]
        ds = pydicom.dcmread(path)
        assert ds.Modality == modality
        assert ds.ImageType[0] == "DERIVED"
        assert dicom_errors(path) == []
        assert WARNING in ds.SeriesDescription
        assert ("spread" in ds.SeriesDescription) == (part == "spread")
        assert ds.FrameOfReferenceUID == original.get("FrameOfReferenceUID")
        assert ds.StudyInstanceUID != original.get("StudyInstanceUID")
        assert (ds.RescaleType if modality == "CT" else ds.Units) == unit
    assert (out / "figures" / "preview.png").stat().st_size > 3000
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"PHANTOM-0001" not in written


def read_back(folder, unit="HU"):
    [series] = read_series(list_files(folder))[0]
    return load_series(series, 1.0, unit)


def test_exported_values_are_those_of_the_translation(run, phantom_dir, tmp_path):
    source, result = translate_study(phantom_dir / "PHANTOM-0001", run, "pet2ct", tmp_path / "out", samples=2, steps=1)
    for part in ("image", "spread"):
        back, expected = read_back(tmp_path / "out" / part), getattr(result, part)
        assert np.abs(back.array - expected).max() <= 0.501  # half a unit, and the rounding of float32
        assert np.allclose(back.spacing_mm[:2], read_json(run / "stages.json")["grid"]["pixel_mm"])
    assert source.shape == result.image.shape


def test_a_single_sample_has_a_series_of_no_spread(run, phantom_dir, tmp_path):
    translate_study(phantom_dir / "PHANTOM-0001", run, "ct2pet", tmp_path / "out", mode="sample", steps=1)
    assert not read_back(tmp_path / "out" / "spread", "SUV").array.any()
    assert dicom_errors(sorted((tmp_path / "out" / "spread").iterdir())[0]) == []


def test_a_patients_studies_are_exported_apart(prepared, tmp_path, monkeypatch):
    patient, n = prepared.patients[0], 3
    [study] = prepared.studies([patient])
    row = {**prepared.row(study), "slices": n}
    monkeypatch.setattr(prepared, "studies", lambda patients=None: ["first", "second"])
    monkeypatch.setattr(prepared, "row", lambda study: row)
    image = np.full((2 * n, 8, 8), 100.0, np.float32) * np.arange(2 * n)[:, None, None]
    result = Translation(image, image, image / 10)
    export_patient(tmp_path, prepared, patient, result, "pet2ct", "weights")
    folder = tmp_path / "synthetic" / patient / "pet2ct"
    assert np.allclose(read_back(folder / "second" / "image").array, image[n:])
    assert np.allclose(read_back(folder / "first" / "spread").array, image[:n] / 10, atol=0.5)
    uids = [
        {str(pydicom.dcmread(p).StudyInstanceUID) for p in (folder / s).rglob("*.dcm")} for s in ("first", "second")
    ]
    assert len(uids[0] | uids[1]) == 2


def test_the_source_modality_alone_is_enough(phantom_dir):
    volume, series = read_source(phantom_dir / "PHANTOM-0001" / "PT", "pet2ct")
    assert volume.unit == "SUV"
    assert series.modality == "PT"
    with pytest.raises(InputError, match="no usable CT series for ct2pet"):
        read_source(phantom_dir / "PHANTOM-0001" / "PT", "ct2pet")


def test_several_studies_are_refused(phantom_dir):
    with pytest.raises(InputError, match="several studies"):
        read_source(phantom_dir, "pet2ct")


def test_a_broken_series_gives_way_to_a_whole_one(phantom_dir, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(phantom_dir / "PHANTOM-0001" / "PT", tmp_path / name)
    for path in (tmp_path / "b").iterdir():
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID, ds.SOPInstanceUID = make_uid("b"), make_uid("b", path.name)
        ds.save_as(path)
    sorted((tmp_path / "a").iterdir())[-1].unlink()
    sorted((tmp_path / "b").iterdir())[3].unlink()  # as many slices, but with a gap
    _, series = read_source(tmp_path, "pet2ct")
    assert series.where == "a"


def test_other_weights_or_settings_give_other_uids(run, phantom_dir, tmp_path):
    def uids(name, run=run, **settings):
        settings = {"samples": 2, "steps": 1, **settings}
        translate_study(phantom_dir / "PHANTOM-0001", run, "pet2ct", tmp_path / name, **settings)
        return {str(pydicom.dcmread(p).SOPInstanceUID) for p in (tmp_path / name).rglob("*.dcm")}

    first = uids("first")
    assert uids("again") == first
    for name, value in {"samples": 3, "steps": 2, "seed": 1, "mode": "sample", "without_coarse": True}.items():
        assert not uids(name, **{name: value}) & first, name
    other = shutil.copytree(run, tmp_path / "run", symlinks=True)
    small_run.refiner(other, "pet2ct", 9)
    assert not uids("other", run=other) & first


def test_translate_refuses_a_full_folder_and_a_missing_run(run, phantom_dir, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        translate_study(phantom_dir / "PHANTOM-0001", run, "pet2ct", tmp_path)
    with pytest.raises(InputError, match="no such checkpoint"):
        translate_study(phantom_dir / "PHANTOM-0001", tmp_path, "pet2ct", tmp_path / "out")
    with pytest.raises(InputError, match="direction 'ct2ct'"):
        translate_study(phantom_dir / "PHANTOM-0001", run, "ct2ct", tmp_path / "out")
    assert (tmp_path / "note.txt").read_text() == "mine"
