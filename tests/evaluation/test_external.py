"""Anyone's images: what is read, matched, masked and scored, in DICOM and NIfTI, and what is refused."""

import json

import nibabel
import numpy as np
import pytest

from petct_lib import InputError
from petct_lib.cli import main
from petct_lib.dicom.writer import Subject, make_uid, write_derived
from petct_lib.evaluation import external
from petct_lib.evaluation.tables import read_scores
from petct_lib.imaging.nifti import RAS_TO_LPS
from petct_lib.imaging.volume import Volume, axial_affine

AFFINE = axial_affine((6.0, 6.0, 5.0), np.array([-190.0, -190.0, -60.0]))


def chest(shift_hu=0.0):
    z, y, x = np.mgrid[:24, :64, :64] * 1.0
    body = ((y - 32) / 20) ** 2 + ((x - 32) / 26) ** 2 < 1
    lungs = (((y - 32) / 12) ** 2 + ((np.abs(x - 32) - 12) / 9) ** 2 < 1) & (z > 3) & (z < 20)
    hu = np.where(lungs, -850.0, np.where(body, 40.0, -1000.0)) + 10 * np.sin(x + y) * body
    return Volume((hu + shift_hu * body).astype(np.float32), AFFINE, "HU")


def nifti(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    nibabel.save(nibabel.Nifti1Image(array.T, RAS_TO_LPS @ volume.affine), path)
    return path


def series(volume, folder):
    """As this project's own `translate` writes: derived, and marked as synthetic."""
    subject = Subject("p-1", make_uid("study", str(folder)), make_uid("frame", "one"))
    write_derived(volume, folder, subject, description="test", seed=str(folder), number=1)
    return folder


def values(out):
    return {(r["region"], r["metric"]): r["value"] for r in read_scores(out / "scores.csv")}


def test_a_shift_is_its_mae_in_nifti_and_in_dicom(tmp_path, capsys):
    ref = nifti(chest(), tmp_path / "ref.nii.gz")
    shifted = chest(30)
    for k, pred in enumerate((nifti(shifted, tmp_path / "pred.nii.gz"), series(shifted, tmp_path / "pred"))):
        out = tmp_path / f"out{k}"
        assert main(["score", str(pred), str(ref), "--out", str(out)]) == 0
        result = values(out)
        inside = result["lung", "mae"], result["soft_tissue", "mae"]
        assert inside == pytest.approx((30, 30), abs=0.6)  # DICOM stores whole HU
        assert result["body", "me"] == pytest.approx(result["body", "mae"])
        assert {"ssim", "ms_ssim", "spectrum", "psnr"} <= {metric for _, metric in result}
        assert "1 of 1 patients" in capsys.readouterr().out
        assert {r["direction"] for r in read_scores(out / "scores.csv")} == {"ct"}


def test_another_grid_is_resampled_and_only_what_both_hold_counts(tmp_path):
    whole = chest()
    half = Volume(whole.array[12:] + 25, AFFINE.copy(), "HU")
    half.affine[2, 3] += 12 * 5.0
    fine = Volume(np.repeat(half.array, 2, axis=0), half.affine.copy(), "HU")
    fine.affine[2, 2], fine.affine[2, 3] = 2.5, half.affine[2, 3] - 1.25
    images = external.Images("1", nifti(fine, tmp_path / "pred.nii"), nifti(whole, tmp_path / "ref.nii"))
    case, coverage = external.load_patient(images, "ct")
    assert 0.45 < coverage < 0.55
    assert case.images["synthetic"].shape == whole.array.shape
    assert not case.body[:11].any()
    body = case.body & (whole.array > -950)
    assert np.median(np.abs(case.images["synthetic"] - case.real)[13:][body[13:]]) == pytest.approx(25, abs=0.1)


def test_a_mask_of_the_body_alone_is_enough_for_all_scores_but_those_of_regions(tmp_path):
    volume = chest()
    ref, pred = nifti(volume, tmp_path / "ref.nii.gz"), nifti(chest(20), tmp_path / "pred.nii.gz")
    inside = Volume((volume.array > -990).astype(np.float32), AFFINE, "1")
    out, mask = tmp_path / "out", nifti(inside, tmp_path / "mask.nii.gz")
    assert main(["score", str(pred), str(ref), "--mask", str(mask), "--out", str(out)]) == 0
    rows = read_scores(out / "scores.csv")
    assert {r["mask"] for r in rows if r["metric"] == "mae"} == {"mask file", "none"}
    assert {r["mask"] for r in rows if r["metric"] == "dice"} == {"HU threshold"}


def test_slices_from_the_head_downwards_have_the_same_scores(tmp_path):
    result = []
    for name in ("up", "down"):
        paths = []
        for k, volume in enumerate((chest(), chest(20))):
            volume.array[: 6 * k] += 100  # worse near the lungs' base
            paths.append(nifti(volume, tmp_path / f"{name}{k}.nii.gz"))
            image = nibabel.load(paths[k])
            if name == "down":
                flipped, affine = np.asarray(image.dataobj)[:, :, ::-1], image.affine.copy()
                affine[:3, 3] += affine[:3, 2] * (flipped.shape[2] - 1)
                affine[:3, 2] *= -1
                nibabel.save(nibabel.Nifti1Image(flipped, affine), paths[k])
        assert main(["score", str(paths[1]), str(paths[0]), "--out", str(tmp_path / name)]) == 0
        result.append(values(tmp_path / name))
    assert result[0]["diaphragm", "mae"] > result[0]["body", "mae"]
    assert result[0] == pytest.approx(result[1])


def test_what_part_of_the_body_was_scored_is_told(tmp_path, capsys):
    whole = chest()
    half = Volume(whole.array[12:] + 25, AFFINE.copy(), "HU")
    half.affine[:3, 3] += half.affine[:3, 2] * 12
    ref, pred = nifti(whole, tmp_path / "ref.nii.gz"), nifti(half, tmp_path / "pred.nii.gz")
    assert main(["score", str(pred), str(ref), "--out", str(tmp_path / "out")]) == 0
    covered = values(tmp_path / "out")["body", "coverage"]
    assert 45 < covered < 55
    assert f"patient 1: scored on the {covered:.0f} % of the body" in capsys.readouterr().out


def test_synthrads_protocol(tmp_path):
    ref, pred = nifti(chest(), tmp_path / "ref.nii"), nifti(chest(30), tmp_path / "pred.nii")
    mask = nifti(Volume((chest().array > -950).astype(np.uint8), AFFINE, "1"), tmp_path / "mask.nii")
    arguments = ["score", str(pred), str(ref), "--mask", str(mask), "--protocol", "synthrad2025"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    result = values(tmp_path / "out")
    assert set(result) == {("body", "mae"), ("body", "psnr"), ("body", "ms_ssim"), ("body", "coverage")}
    assert result["body", "mae"] == pytest.approx(30, abs=1e-3)
    assert result["body", "psnr"] == pytest.approx(20 * np.log10(4095 / 30), abs=1e-3)
    assert {r["mask"] for r in read_scores(tmp_path / "out" / "scores.csv")} == {"mask file"}
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["protocol"] == "synthrad2025"


def test_a_pet_is_scored_within_the_body_of_its_ct(tmp_path, capsys):
    ct = nifti(chest(), tmp_path / "ct.nii")
    heights = 1 + 0.1 * np.arange(24)[:, None, None]
    suv = np.where(chest().array > -950, heights, 0.0).astype(np.float32)
    ref = nifti(Volume(suv, AFFINE, "SUV"), tmp_path / "ref.nii")
    pred = nifti(Volume(suv + 0.5, AFFINE, "SUV"), tmp_path / "pred.nii")
    arguments = ["score", str(pred), str(ref), "--kind", "pet", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--ct" in capsys.readouterr().err
    assert main([*arguments, "--ct", str(ct)]) == 0
    result = values(tmp_path / "out")
    assert result["lung", "mae"] == pytest.approx(0.5)
    assert result["lesion", "invented"] == 0
    constant = nifti(Volume(np.ones_like(suv), AFFINE, "SUV"), tmp_path / "constant.nii")
    bad = ["score", str(pred), str(constant), "--kind", "pet", "--ct", str(ct), "--out", str(tmp_path / "bad")]
    assert main(bad) == 2
    assert "constant.nii: real (24, 64, 64)" in capsys.readouterr().err
    assert main([*arguments, "--ct", str(ct), "--protocol", "synthrad2025"]) == 2
    assert "is for CT" in capsys.readouterr().err


@pytest.fixture
def folders(tmp_path):
    """Three patients as NIfTI; each shifted by another amount, so that a mix-up would show."""
    for k, name in enumerate(("adams", "brown", "clark")):
        nifti(chest(), tmp_path / "ref" / f"{name}.nii.gz")
        nifti(chest(10 * (k + 1)), tmp_path / "pred" / f"{name}.nii.gz")
    return tmp_path / "pred", tmp_path / "ref"


def test_patients_are_matched_by_name_and_their_names_go_nowhere(folders, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["score", *map(str, folders), "--out", str(out)]) == 0
    lung = {
        r["patient"]: r["value"]
        for r in read_scores(out / "scores.csv")
        if r["region"] == "lung" and r["metric"] == "mae"
    }
    assert lung == pytest.approx({"1": 10, "2": 20, "3": 30}, abs=0.1)
    written = "".join(path.read_text() for path in out.iterdir()) + capsys.readouterr().out
    assert not any(name in written for name in ("adams", "brown", "clark"))


def test_a_damaged_patient_costs_itself_alone_and_is_named(folders, tmp_path, capsys):
    pred, ref = folders
    (pred / "brown.nii.gz").write_bytes(b"damaged")
    assert main(["score", str(pred), str(ref), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "left out: patient 2: brown.nii.gz: cannot be read as NIfTI" in shown
    assert "brown" not in (tmp_path / "out" / "protocol.json").read_text(), "files tell no names, the terminal does"
    assert "2 of 3 patients" in shown
    assert {r["patient"] for r in read_scores(tmp_path / "out" / "scores.csv")} == {"1", "3"}


def test_a_missing_patient_is_an_error_and_nothing_is_overwritten(folders, tmp_path, capsys):
    pred, ref = folders
    (pred / "brown.nii.gz").unlink()
    assert main(["score", str(pred), str(ref), "--out", str(tmp_path / "out")]) == 2
    assert "lacks 1 of REF's 3: brown" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "none"), str(ref), "--out", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(InputError, match="not empty"):
        external.score_all(external.find_images(ref, ref), ref, kind="ct")
    with pytest.raises(InputError, match="it must be one of petct, synthrad2025"):
        external.score_all(external.find_images(ref, ref), tmp_path / "out", kind="ct", protocol="synthrad2023")


def test_folders_of_dicom_and_of_several_series(tmp_path):
    for name in ("a", "b"):
        series(chest(), tmp_path / "ref" / name)
        series(chest(5), tmp_path / "pred" / name)
    images = external.find_images(tmp_path / "pred", tmp_path / "ref")
    assert [(i.patient, i.real.name) for i in images] == [("1", "a"), ("2", "b")]
    with pytest.raises(InputError, match="holds 2 CT series"):
        external.read_image(tmp_path / "ref", "ct")
    with pytest.raises(InputError, match="holds 0 PT series"):
        external.read_image(tmp_path / "ref" / "a", "pet")
