"""A trained (smoke) run applied to arrays and to DICOM studies."""

import shutil

import numpy as np
import pydicom
import pytest
import torch
from conftest import dicom_errors, petct

from petct_lib import WARNING, InputError
from petct_lib.archives import list_files
from petct_lib.checkpoints import load_checkpoint, save_checkpoint
from petct_lib.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.data import Slices
from petct_lib.dicom import find_pairs, load_series
from petct_lib.dicom_files import read_series
from petct_lib.dicom_write import make_uid
from petct_lib.files import read_json
from petct_lib.intensity import Intensity, decode_ct, encode_ct
from petct_lib.prepare import Prepared
from petct_lib.refiner import Refiner, RefinerSettings
from petct_lib.spectrum_matching import matched
from petct_lib.translate import (
    Translator,
    coarse_for,
    coarse_images,
    decoded,
    disagreement,
    encoded,
    load_cyclegan,
    load_refiner,
    middle,
    read_source,
    refine,
    shift_averaged,
    translate_coarse,
    translate_study,
)


@pytest.fixture(scope="module")
def translator(smoke_run):
    return Translator(smoke_run)


@pytest.fixture(scope="module")
def source(smoke_run):
    prepared = Prepared(smoke_run / "prepared")
    return np.array(prepared.of_patient(prepared.patients[0], "pet"))


def test_translation_is_in_the_targets_unit_and_window(translator, source):
    result = translator(source, "pet2ct", samples=2, seed=0)
    assert result.coarse.shape == result.refined.shape == result.uncertainty.shape == source.shape
    assert result.refined.min() >= -1024
    assert result.refined.max() <= 1500
    assert result.uncertainty.min() >= 0
    assert result.uncertainty.max() > 0
    assert not np.array_equal(result.coarse, result.refined)


def test_same_seed_same_translation(translator, source):
    a, b, c = (translator(source, "pet2ct", samples=1, seed=s).refined for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_refined_image_is_the_mean_of_the_samples(translator, source):
    x, c = translator.start(source, "pet2ct")
    images = decoded(refine(translator.refiners["pet2ct"], x, c, 3, 0), "ct", translator.window)
    result = translator(source, "pet2ct", samples=3, seed=0, alpha=1.0)
    assert images.shape == (3, *source.shape)
    assert np.allclose(result.refined, images.mean(axis=0))


def test_alpha_leads_from_the_regression_to_the_adversarial_image(translator, source):
    given = {"samples": 1, "seed": 0}
    regression, half, adversarial = (translator(source, "pet2ct", alpha=a, **given).refined for a in (0.0, 0.5, 1.0))
    x, c = translator.start(source, "pet2ct")
    expected = decoded(refine(translator.direct["pet2ct"], x, c, 1, 5), "ct", translator.window)[0]
    assert np.array_equal(regression, expected), "no noise in it, whatever the seed"
    assert np.allclose(half, (regression + adversarial) / 2, atol=1e-3)
    assert not np.allclose(regression, adversarial, atol=1.0)
    for bad in (-0.1, 1.6):
        with pytest.raises(InputError, match="alpha"):
            translator(source, "pet2ct", alpha=bad, **given)


def test_alpha_beyond_one_goes_on_along_the_line_within_the_networks_range(translator, source):
    given = {"samples": 1, "seed": 0}
    for direction, image in (("pet2ct", source), ("ct2pet", 200 * source - 1000)):
        at_0, at_1, beyond = (translator(image, direction, alpha=a, **given).refined for a in (0.0, 1.0, 1.5))
        window = translator.window
        low, high = (0.0, window.suv_cap) if direction == "ct2pet" else (window.ct_low_hu, window.ct_high_hu)
        assert np.allclose(beyond, np.clip(1.5 * at_1 - 0.5 * at_0, low, high), atol=0.01)
        assert not np.allclose(beyond, at_1)


def test_the_default_alpha_and_the_error_scale_are_the_runs_own(translator, source, monkeypatch):
    given = {"samples": 1, "seed": 0}
    monkeypatch.setattr(translator, "fitted", {"pet2ct": {"alpha": 0.25, "error_scale": 1.0}})
    once = translator(source, "pet2ct", **given)
    assert np.array_equal(once.refined, translator(source, "pet2ct", alpha=0.25, **given).refined)
    translator.fitted["pet2ct"]["error_scale"] = 2.0
    assert np.allclose(translator(source, "pet2ct", **given).uncertainty, 2 * once.uncertainty)
    assert (translator.alpha_of("ct2pet"), translator.alpha_of("ct2pet", "distortion")) == (1.0, 0.0), "not fitted"


def test_the_mode_default_alone_is_matched_with_the_runs_gains(translator, source, monkeypatch):
    given = {"samples": 1, "seed": 0}
    gains = np.linspace(1, 2, 46)
    fitted = {"alpha": 0.5, "alpha_distortion": 0.5, "gains": gains.tolist()}
    monkeypatch.setattr(translator, "fitted", {"pet2ct": fitted})
    by_mode = {alpha: translator(source, "pet2ct", alpha=alpha, **given).refined for alpha in ("default", "distortion")}
    plain = translator(source, "pet2ct", alpha=0.5, **given).refined
    expected = matched(encode_ct(plain, translator.window), gains)
    assert np.allclose(by_mode["default"], decode_ct(expected, translator.window), atol=0.01)
    assert np.array_equal(by_mode["distortion"], plain)
    assert not np.allclose(by_mode["default"], plain, atol=1)
    assert by_mode["default"].dtype == plain.dtype


def test_the_average_over_shifts_notices_where_a_pixel_lies_and_nothing_else():
    class Of(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer, self.weight = answer, torch.nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return self.answer(z)

    x = torch.rand((3, 1, 16, 20), generator=torch.Generator().manual_seed(0)) * 2 - 1
    equivariant, place = Of(lambda z: z / 2), Of(lambda z: torch.arange(20.0).expand_as(z))
    assert torch.allclose(shift_averaged(equivariant, x, coarse_images(equivariant, x)), x / 2)
    drawn = shift_averaged(place, x, coarse_images(place, x))
    assert torch.equal(drawn[..., :-2, :-2], torch.arange(18.0).expand(3, 1, 14, 18) + 1), "half of a shift of 2"
    assert torch.equal(drawn[..., -2:], torch.arange(18.0, 20).expand(3, 1, 16, 2))


def test_what_no_pair_goes_into_is_the_generators_average(translator, source):
    x, coarse = translator.start(source, "pet2ct")
    made = shift_averaged(translator.cyclegan.generator("pet2ct"), x, coarse)
    assert np.array_equal(translator.unpaired(x, coarse, "pet2ct"), decoded(made, "ct", translator.window))
    assert not torch.equal(made, coarse)


def test_modes_are_names_of_the_runs_own_alphas(translator, source, monkeypatch):
    monkeypatch.setattr(translator, "fitted", {"pet2ct": {"alpha": 0.75, "alpha_distortion": 0.25}})
    given = {"samples": 1, "seed": 0}
    for mode, alpha in (("default", 0.75), ("distortion", 0.25)):
        assert translator.alpha_of("pet2ct", mode) == alpha
        by_name, by_number = (translator(source, "pet2ct", alpha=a, **given).refined for a in (mode, alpha))
        assert np.array_equal(by_name, by_number)
    with pytest.raises(InputError, match="alpha best: must be default or distortion"):
        translator.alpha_of("pet2ct", "best")


def test_the_uncertainty_is_the_error_networks_and_the_disagreement_of_the_ends(translator, source):
    x, c = translator.start(source, "pet2ct")
    result = translator(source, "pet2ct", samples=1, seed=0, alpha=1.0)
    refined = refine(translator.refiners["pet2ct"], x, c, 1, 0)[0]
    b = translator.refiners["pet2ct"].expected_error(x[:4], c[:4], refined[:4])[:, 0].numpy()
    inside = (np.abs(refined[:4, 0].numpy()) + b < 1) & (b > 0)
    apart = disagreement(*translator.ends(x, c, "pet2ct", samples=1, seed=0))[:4]
    expected = translator.fitted["pet2ct"]["error_scale"] * (b * (1500 + 1024) / 2 + apart)
    assert apart.max() > 1
    assert np.allclose(result.uncertainty[:4][inside], expected[inside], rtol=1e-2, atol=0.5)


def test_without_an_error_network_the_uncertainty_is_the_disagreement_alone(translator, source, monkeypatch):
    monkeypatch.delitem(translator.refiners["pet2ct"].nets, "error")
    result = translator(source, "pet2ct", samples=1, seed=0, alpha=0.5)
    x, c = translator.start(source, "pet2ct")
    scale = translator.fitted["pet2ct"]["error_scale"]
    assert np.array_equal(result.uncertainty, scale * disagreement(*translator.ends(x, c, "pet2ct", samples=1, seed=0)))


def test_disagreement_is_smoothed_within_a_slice_and_not_across():
    one, other = np.zeros((3, 21, 21), np.float32), np.zeros((3, 21, 21), np.float32)
    one[1, 10, 10] = -8.0
    apart = disagreement(one, other)
    assert not apart[[0, 2]].any()
    assert apart[1].sum() == pytest.approx(8.0, rel=1e-5)
    assert apart[1, 10, 10] == pytest.approx(8.0 / (2 * np.pi), rel=0.02)  # a Gaussian of σ = 1 at its centre
    assert apart[1, 10, 11] / apart[1, 10, 10] == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert np.array_equal(disagreement(other, one), apart)


def test_a_refiner_whose_training_was_interrupted_does_not_translate(smoke_run, tmp_path):
    state = load_checkpoint(smoke_run / "checkpoints" / "refiner_pet2ct.pt")
    load_refiner(smoke_run / "checkpoints" / "refiner_pet2ct.pt")
    save_checkpoint({**state, "step": state["step"] - 1}, tmp_path / "refiner_pet2ct.pt")
    with pytest.raises(InputError, match="its training stopped after step"):
        load_refiner(tmp_path / "refiner_pet2ct.pt")


def test_slices_share_their_noise_across_batches(translator, source, monkeypatch):
    x, c = (z[:1].expand(5, -1, -1, -1) for z in translator.start(source, "pet2ct"))
    monkeypatch.setattr("petct_lib.translate.BATCH", 2)
    images = refine(translator.refiners["pet2ct"], x, c, 1, 0)[0]
    assert torch.allclose(images, images[:1].expand_as(images), atol=1e-5)


def test_batching_does_not_change_the_generators_images(monkeypatch):
    net, x = CycleGAN(CycleGANSettings(4, 1, 2)).generator("pet2ct"), torch.rand(5, 1, 16, 16)
    whole = coarse_images(net, x)
    monkeypatch.setattr("petct_lib.translate.BATCH", 2)
    assert torch.allclose(coarse_images(net, x), whole, atol=1e-5)


class FromBelow(torch.nn.Module):
    """Stands in for a 2.5-D generator: the middle channel out is the first one in, the others are 9."""

    def __init__(self):
        super().__init__()
        self.device = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        out = torch.full_like(x, 9.0)
        out[:, x.shape[1] // 2] = x[:, 0]
        return out


def stack(n):
    """Slices of known value: k × 100 HU is slice k."""
    return np.full((n, 4, 4), 100.0, np.float32) * np.arange(n, dtype=np.float32)[:, None, None]


def numbers(images):
    return [[round(float(v)) for v in row] for row in decode_ct(images, Intensity())[..., 0, 0] / 100]


def test_slices_are_encoded_with_their_neighbours_and_the_ends_repeated():
    assert numbers(encoded(stack(3), "ct", Intensity())) == [[0], [1], [2]]
    assert numbers(encoded(stack(3), "ct", Intensity(), 3)) == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]
    assert numbers(encoded(stack(2), "ct", Intensity(), 5)) == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_neighbours_are_never_of_another_study():
    x = encoded(stack(5), "ct", Intensity(), 3, lengths=[3, 2])
    assert numbers(x) == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 4], [3, 4, 4]]


@pytest.mark.parametrize("kind", ["pet", "ct"])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_the_networks_are_given_what_they_were_trained_on_to_the_bit(prepared, kind, neighbours):
    patient = prepared.patients[0]
    slices = Slices(prepared, [patient], (kind,), Intensity(), neighbours)
    x = encoded(prepared.of_patient(patient, kind), kind, Intensity(), neighbours, prepared.lengths(patient))
    assert torch.equal(x, torch.stack([slices[i][kind] for i in range(len(slices))]))


def test_the_middle_channel_is_the_translation(monkeypatch):
    monkeypatch.setattr("petct_lib.translate.BATCH", 2)
    x = encoded(stack(5), "ct", Intensity(), 3, lengths=[3, 2])
    coarse = coarse_images(FromBelow(), x)
    assert coarse.shape == (5, 1, 4, 4)
    assert numbers(coarse) == [[0], [0], [1], [3], [3]]
    assert numbers(middle(x)) == [[0], [1], [2], [3], [4]]


def test_coarse_images_on_the_disk_are_the_middle_ones(prepared, tmp_path):
    slices = Slices(prepared, prepared.patients[:2], ("ct",), Intensity(), neighbours=3)
    coarse = coarse_for(slices, FromBelow(), "ct", tmp_path / "coarse.npy")
    assert coarse.shape == (len(slices), 1, 32, 32)
    assert np.array_equal(coarse[:, 0], torch.stack([slices[i]["ct"][0] for i in range(len(slices))]).numpy())


def test_a_study_is_translated_with_the_neighbours_of_its_generator():
    stage = CycleGAN(CycleGANSettings(4, 1, 1, neighbours=3))
    source = np.random.default_rng(0).uniform(0, 5, (4, 16, 16)).astype(np.float32)
    whole, alone = (translate_coarse(stage, s, "pet2ct", Intensity()) for s in (source, source[1:2]))
    assert whole.shape == source.shape
    assert not np.allclose(whole[1:2], alone, atol=1.0)  # alone, a slice is its own neighbour
    assert np.allclose(whole[1:2], translate_coarse(stage, source[:3], "pet2ct", Intensity())[1:2], atol=0.1)


def test_a_translator_starts_from_slices_among_their_neighbours_and_coarse_images():
    translator = object.__new__(Translator)  # without a run
    translator.refiners = translator.direct = {"pet2ct": Refiner(RefinerSettings(width=8, neighbours=1))}
    translator.cyclegan, translator.window = CycleGAN(CycleGANSettings(4, 1, 1, neighbours=3)), Intensity()
    source = np.random.default_rng(0).uniform(0, 5, (5, 16, 16)).astype(np.float32)
    x, coarse = translator.start(source, "pet2ct", [3, 2])
    assert torch.equal(x, encoded(source, "pet", Intensity(), 3, [3, 2]))
    wider, same = translator.start(source, "pet2ct", [3, 2], neighbours=5)
    assert torch.equal(wider, encoded(source, "pet", Intensity(), 5, [3, 2]))
    assert torch.equal(coarse, same), "the generator sees what it always sees"
    parts = [translator.start(study, "pet2ct")[1] for study in (source[:3], source[3:])]
    assert torch.allclose(coarse, torch.cat(parts), atol=1e-5)
    assert not torch.allclose(coarse, translator.start(source, "pet2ct")[1], atol=1e-4)


def test_the_averaged_generator_translates(smoke_run, source):
    stage = load_cyclegan(smoke_run / "checkpoints" / "cyclegan.pt")
    before = translate_coarse(stage, source, "pet2ct", Intensity())
    for parameter in stage.nets["G_pet2ct"].parameters():
        torch.nn.init.zeros_(parameter)
    assert np.array_equal(translate_coarse(stage, source, "pet2ct", Intensity()), before)


@pytest.mark.parametrize(("direction", "modality", "unit"), [("pet2ct", "CT", "HU"), ("ct2pet", "PT", "GML")])
def test_translate_command_writes_derived_series(smoke_run, phantom_dir, tmp_path, direction, modality, unit):
    study, out = phantom_dir / "PHANTOM-0001", tmp_path / "out"
    done = petct("translate", str(study), "--run", str(smoke_run), "--direction", direction, "--out", str(out))
    assert done.returncode == 0, done.stderr
    original = find_pairs(study)[0][0].pet
    for part in ("refined", "uncertainty"):
        ds = pydicom.dcmread(sorted((out / part).iterdir())[0])
        assert ds.Modality == modality
        assert ds.ImageType[0] == "DERIVED"
        assert dicom_errors(sorted((out / part).iterdir())[0]) == []
        assert WARNING in ds.SeriesDescription
        assert ds.FrameOfReferenceUID == original.get("FrameOfReferenceUID")
        assert ds.StudyInstanceUID != original.get("StudyInstanceUID")
        assert (ds.RescaleType if modality == "CT" else ds.Units) == unit
    assert (out / "figures" / "preview.png").stat().st_size > 3000
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"PHANTOM-0001" not in written


def test_exported_values_are_those_of_the_translation(smoke_run, phantom_dir, tmp_path):
    source, result = translate_study(phantom_dir / "PHANTOM-0001", smoke_run, "pet2ct", tmp_path / "out")
    [series] = read_series(list_files(tmp_path / "out" / "refined"))[0]
    back = load_series(series, 1.0, "HU")
    assert np.abs(back.array - result.refined).max() <= 0.501  # half a unit, and the rounding of float32
    assert source.shape == result.refined.shape
    assert np.allclose(back.spacing_mm[:2], read_json(smoke_run / "prepared" / "index.json")["grid"]["pixel_mm"])


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


def test_other_weights_or_samples_give_other_uids(smoke_run, phantom_dir, tmp_path):
    def uids(name, run=smoke_run, **options):
        translate_study(phantom_dir / "PHANTOM-0001", run, "pet2ct", tmp_path / name, **options)
        return {str(pydicom.dcmread(p).SOPInstanceUID) for p in (tmp_path / name).rglob("*.dcm")}

    first = uids("first")
    assert uids("again") == first
    assert not uids("three", samples=3) & first
    other = shutil.copytree(smoke_run, tmp_path / "run", ignore=shutil.ignore_patterns("phantom", "logs", "synthetic"))
    shutil.copy(other / "checkpoints" / "refiner_ct2pet.pt", other / "checkpoints" / "refiner_pet2ct.pt")
    assert not uids("other", run=other) & first


def test_no_samples_are_refused():
    with pytest.raises(InputError, match="samples 0"):
        refine(Refiner(RefinerSettings(8, (1, 2))), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), 0, 0)


def test_translate_refuses_a_full_folder_and_a_missing_run(smoke_run, phantom_dir, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        translate_study(phantom_dir / "PHANTOM-0001", smoke_run, "pet2ct", tmp_path)
    with pytest.raises(InputError, match="no such checkpoint"):
        translate_study(phantom_dir / "PHANTOM-0001", tmp_path, "pet2ct", tmp_path / "out")
    with pytest.raises(InputError, match="direction 'ct2ct'"):
        translate_study(phantom_dir / "PHANTOM-0001", smoke_run, "ct2ct", tmp_path / "out")
    assert (tmp_path / "note.txt").read_text() == "mine"
