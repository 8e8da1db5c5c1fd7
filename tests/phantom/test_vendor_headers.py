"""Every vendor's variant comes back as the SUV that was written, each by a rule of its own, and is valid DICOM."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import dicom_errors

from petct_lib.dicom.studies import find_pairs, load_pair
from petct_lib.dicom.suv import suv_factor
from petct_lib.dicom.writer import Subject, Tracer, make_uid
from petct_lib.imaging.volume import Volume, axial_affine
from petct_lib.phantom.vendor_headers import VARIANTS, write_study_ct, write_study_pet

SUBJECT = Subject("p-12345678", make_uid("study"), make_uid("frame"), "20200202", 71.234, 1.8, "F")
TRACER = Tracer(2.873e8, "090107", "100312")
RULES = {
    "siemens_series_time": "BQML: dose decayed to the series time",
    "siemens_acquisition_time": "BQML: dose decayed to the acquisition time less the frame's offset",
    "ge_scan_time": "BQML: dose decayed to the GE private scan time",
    "ge_admin": "BQML: decay corrected to administration",
    "philips_suv": "CNTS: Philips private SUV factor (7053,1000)",
    "philips_activity": "CNTS with Philips private Bq/ml factor (7053,1009): dose decayed to the series time",
    "philips_decay_time": "BQML: dose decayed to the decay correction time (0018,9701)",
    "gml": "GML: stored as body-weight SUV",
}


def pet() -> Volume:
    """SUV from 0 to 20, the slices of very different heights; (6, 7, 8), 300 mm long: two bed positions."""
    noise = np.random.default_rng(5).uniform(0, 20, (6, 7, 8)) * np.array([1, 0.1, 0, 0.5, 0.01, 1])[:, None, None]
    return Volume(noise.astype(np.float32), axial_affine((4, 4, 50), np.array([-15.0, -12.0, -400.0])), "SUV")


def ct() -> Volume:
    noise = np.random.default_rng(6).uniform(-1024, 2000, (6, 9, 9))
    return Volume(noise.astype(np.float32), axial_affine((4, 4, 50), np.array([-17.0, -16.0, -400.0])), "HU")


def write_pet_of(variant: str, folder: Path) -> list[Path]:
    return write_study_pet(pet(), folder, SUBJECT, make_uid("pet"), TRACER, variant)


def write_ct_of(variant: str, folder: Path) -> list[Path]:
    return write_study_ct(ct(), folder, SUBJECT, make_uid("ct"), "100100", variant)


def headers(paths: list[Path]) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p) for p in paths]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_comes_back_by_its_own_rule(tmp_path, variant):
    slices = headers(write_pet_of(variant, tmp_path / "PT"))
    write_ct_of(variant, tmp_path / "CT")
    [pair], left_out, _ = find_pairs(tmp_path)
    study = load_pair(pair)
    assert left_out == []
    assert study.suv.rule == RULES[variant]
    steps = np.array([float(h.RescaleSlope) for h in slices])[:, None, None] * study.suv.factor
    assert np.all(np.abs(study.pet.array - pet().array) <= 0.502 * steps + 1e-6 * pet().array)
    assert np.all(steps <= 1.01 * 20 / 32767)
    assert np.abs(study.ct.array - ct().array).max() <= 0.5
    assert np.allclose(study.pet.affine, pet().affine)
    assert np.allclose(study.ct.affine, ct().affine)


def test_there_is_a_variant_for_every_rule():
    assert set(VARIANTS) == set(RULES)
    assert len(set(RULES.values())) == len(VARIANTS) == 8


def test_the_numbers_stored_are_the_hand_reckoned_ones(tmp_path):
    """Half of 400 MBq is left after one half-life; 80 kg: 2500 Bq/ml an SUV, at the injection twice that."""
    subject = Subject("p-1", make_uid("s"), make_uid("f"), weight_kg=80.0)
    tracer = Tracer(4e8, "090000", "100000", half_life_s=3600.0)
    expected = {"siemens_series_time": 2500, "ge_admin": 5000, "philips_activity": 2500 / 1.6, "gml": 1}
    for variant, per_suv in expected.items():
        paths = write_study_pet(pet(), tmp_path / variant, subject, make_uid("p"), tracer, variant)
        ds = headers(paths)[0]
        peak = float(ds.RescaleSlope) * ds.pixel_array.max()
        assert peak / pet().array[0].max() == pytest.approx(per_suv, rel=1e-4), variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_look_as_their_vendors_make_them(tmp_path, variant):
    pets, cts = headers(write_pet_of(variant, tmp_path / "pt")), headers(write_ct_of(variant, tmp_path / "ct"))
    assert {h.Manufacturer for h in pets + cts} == {pets[0].Manufacturer}
    assert {h.ManufacturerModelName for h in pets + cts} == {pets[0].ManufacturerModelName}
    assert variant.split("_")[0] in f"{pets[0].Manufacturer} {pets[0].Units}".lower()
    assert RULES[variant].startswith(pets[0].Units)
    assert all("petct_lib" in h.SoftwareVersions for h in pets + cts), "a header that is not a scanner's says so"
    assert len({float(h.RescaleSlope) for h in pets}) == (1 if variant in ("gml", "philips_decay_time") else 6)
    times = [h.AcquisitionTime for h in pets]
    assert times == sorted(times)
    assert len(set(times)) == 2, "two bed positions"
    for series in (pets, cts):
        numbers = [h.InstanceNumber for h in series]
        assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
        z = np.array([h.ImagePositionPatient[2] for h in series], float)
        assert np.all(np.diff(z) > 0), "the paths go from feet to head, whatever the numbers"
        assert cts[0].InstanceNumber == pets[0].InstanceNumber


def test_both_orders_of_instance_numbers_occur(tmp_path):
    assert {headers(write_pet_of(v, tmp_path / v))[0].InstanceNumber for v in VARIANTS} == {1, 6}


@pytest.mark.parametrize(
    ("variant", "wrong", "changed"),
    [
        ("siemens_acquisition_time", {"FrameReferenceTime": 0}, True),
        ("ge_scan_time", {(0x0009, 0x100D): "20200202102812.00"}, True),  # its series time
        ("philips_decay_time", {"DecayCorrectionDateTime": None}, True),
        ("philips_decay_time", {(0x7053, 0x1000): "0.1", (0x7053, 0x1009): "9"}, False),
        ("gml", {"DecayCorrection": "NONE"}, False),
    ],
)
def test_the_attribute_of_the_rule_decides(tmp_path, variant, wrong, changed):
    slices = headers(write_pet_of(variant, tmp_path))
    right = suv_factor(slices).factor
    for ds in slices:
        for key, value in wrong.items():
            if value is None:
                del ds[key]
            else:
                ds[key].value = value
    assert (abs(suv_factor(slices).factor / right - 1) > 1e-3) == changed


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("write", [write_pet_of, write_ct_of])
def test_dciodvfy_finds_no_error(tmp_path, write, variant):
    assert dicom_errors(write(variant, tmp_path)[4]) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_arguments_write_the_same_bytes(tmp_path, variant):
    for write in (write_pet_of, write_ct_of):
        once, again = write(variant, tmp_path / "a"), write(variant, tmp_path / "b")
        assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'toshiba' is unknown: it is one of siemens_series_time, "):
        write_pet_of("toshiba", tmp_path)
    with pytest.raises(ValueError, match="'toshiba' is unknown"):
        write_ct_of("toshiba", tmp_path)
    with pytest.raises(ValueError, match=r"not 'HU' and 71\.234 kg"):
        write_study_pet(ct(), tmp_path, SUBJECT, make_uid("p"), TRACER, "gml")
    with pytest.raises(ValueError, match="not 'SUV' and None kg"):
        write_study_pet(pet(), tmp_path, Subject("p", "1.2", "1.3"), make_uid("p"), TRACER, "gml")
    with pytest.raises(ValueError, match="the injection at 110000 is after the scan at 100000"):
        write_study_pet(pet(), tmp_path, SUBJECT, make_uid("p"), Tracer(1e8, "110000", "100000"), "ge_scan_time")
    assert not list(tmp_path.iterdir())
