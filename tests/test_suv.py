"""SUV factors: every rule against a factor computed by hand, every refusal, and eight real headers."""

import json
from pathlib import Path

import pytest
from pydicom import Dataset

from petct_lib import InputError
from petct_lib.suv import GE_SCAN_TIME, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR, suv_factor

REAL = Path(__file__).parents[2] / "shared" / "data" / "suv_headers"
EXPECTED = json.loads((REAL / "expected_suvbw.json").read_text()) if REAL.is_dir() else {}
# 400 MBq, one half-life of an hour before the scan, in 70 kg: 70 000 g / 200 MBq.
FACTOR = 3.5e-4
SERIES = {
    "Units": "BQML", "DecayCorrection": "START", "PatientWeight": 70, "SeriesDate": "20190307",
    "SeriesTime": "101500", "AcquisitionDate": "20190307", "AcquisitionTime": "101730",
}  # fmt: skip
DRUG = {
    "RadionuclideTotalDose": 4e8, "RadionuclideHalfLife": 3600, "RadiopharmaceuticalStartTime": "091500",
}  # fmt: skip
LATE = {"SeriesTime": "120000"}  # after the acquisition: a reconstruction's time
PRIVATE = {GE_SCAN_TIME: "DT", PHILIPS_SUV_FACTOR: "DS", PHILIPS_ACTIVITY_FACTOR: "DS"}


def header(changes: dict | None = None) -> Dataset:
    """A valid BQML header with `changes`; None removes an attribute, attributes of the drug go into its item."""
    values = {**SERIES, **DRUG, **(changes or {})}
    ds, drug = Dataset(), Dataset()
    for key, value in values.items():
        if value is None:
            continue
        if key in PRIVATE:
            ds.add_new(key, "UN" if isinstance(value, bytes) else PRIVATE[key], value)
        else:
            setattr(drug if key.startswith("Radio") else ds, key, value)
    if values.get("sequence", True):
        ds.RadiopharmaceuticalInformationSequence = [drug]
    return ds


@pytest.mark.parametrize(
    ("changes", "factor", "rule"),
    [
        ({}, FACTOR, "series time"),
        ({"SeriesTime": "101500.0", "AcquisitionTime": "101500"}, FACTOR, "series time"),
        ({"RadiopharmaceuticalStartTime": "0915"}, FACTOR, "series time"),  # DICOM times may stop at the minute
        ({"RadiopharmaceuticalStartDateTime": "20190307081500.00+0100"}, 7e-4, "series time"),  # beats StartTime
        ({**LATE, GE_SCAN_TIME: "20190307101500.00"}, FACTOR, "GE private"),
        ({**LATE, GE_SCAN_TIME: b"20190307101500.00\0"}, FACTOR, "GE private"),  # implicit VR: bytes
        ({GE_SCAN_TIME: "20190307111500"}, FACTOR, "series time"),  # the series time is good: GE's is not needed
        # A frame of one half-life has its mean rate log2(2 ln 2) = 0.4712336 of it after its start, 1696.441 s; it
        # starts 150 s after the reference time, so its mean is 1846.441 s after it.
        ({**LATE, "FrameReferenceTime": 1846441, "ActualFrameDuration": 3600000}, FACTOR, "frame's offset"),
        (
            {**LATE, "AcquisitionTime": "101500", "FrameReferenceTime": 0, "ActualFrameDuration": 3600000},
            FACTOR,
            "frame",
        ),
        ({"DecayCorrection": "ADMIN"}, 1.75e-4, "administration"),
        ({"DecayCorrection": "ADMIN", "RadiopharmaceuticalStartTime": None}, 1.75e-4, "administration"),
        ({"Units": "GML", "sequence": False, "PatientWeight": None}, 1.0, "GML"),
        ({"Units": "GML", "SUVType": "BW"}, 1.0, "GML"),
        ({"Units": "CNTS", PHILIPS_SUV_FACTOR: "0.000551"}, 5.51e-4, "(7053,1000)"),
        ({"Units": "CNTS", PHILIPS_SUV_FACTOR: b"0.000551 "}, 5.51e-4, "(7053,1000)"),
        ({"Units": "CNTS", PHILIPS_SUV_FACTOR: "0.000551", PHILIPS_ACTIVITY_FACTOR: "1.6"}, 5.51e-4, "(7053,1000)"),
        ({"Units": "CNTS", PHILIPS_SUV_FACTOR: "0", PHILIPS_ACTIVITY_FACTOR: "1.6"}, 1.6 * FACTOR, "(7053,1009)"),
        ({PHILIPS_SUV_FACTOR: "0.000551", PHILIPS_ACTIVITY_FACTOR: "1.6"}, FACTOR, "BQML"),  # ignored in BQML
    ],
)
def test_known_factors(changes, factor, rule):
    found = suv_factor([header(changes)])
    assert found.factor == pytest.approx(factor, rel=1e-6)
    assert rule in found.rule


def test_the_earliest_slice_decides_what_the_series_time_is():
    """Slices of several beds: the series time may be before the acquisition of some and after that of others."""
    slices = [header({**LATE, "AcquisitionTime": t, GE_SCAN_TIME: "20190307101500"}) for t in ("130000", "101730")]
    assert "GE private" in suv_factor(slices).rule
    later = [header({"AcquisitionTime": t}) for t in ("103000", "101730")]
    assert suv_factor(later).factor == pytest.approx(FACTOR)


NIGHT = {"SeriesDate": "20190308", "SeriesTime": "003000", "AcquisitionDate": "20190308", "AcquisitionTime": "003130"}


def test_injection_before_midnight():
    with_date = header({**NIGHT, "RadiopharmaceuticalStartDateTime": "20190307233000"})
    assert suv_factor([with_date]).factor == pytest.approx(FACTOR)
    # The time alone takes the series' date: 23 hours after the scan.
    check_refusal({**NIGHT, "RadiopharmaceuticalStartTime": "233000"}, "StartTime")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"Units": None}, "Units"),
        ({"Units": ""}, "Units"),
        ({"Units": "PROPCNTS"}, "Units are 'PROPCNTS'"),
        ({"Units": "MYUNIT"}, "Units are 'MYUNIT'"),
        ({"Units": "CNTS"}, "(7053,1000) and (7053,1009)"),
        ({"Units": "CNTS", PHILIPS_SUV_FACTOR: "0", PHILIPS_ACTIVITY_FACTOR: "0"}, "(7053,1000) and (7053,1009)"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUVType 'LBM'"),
        ({"PatientWeight": None}, "PatientWeight"),
        ({"PatientWeight": 0}, "PatientWeight"),
        ({"Units": "CNTS", PHILIPS_ACTIVITY_FACTOR: "1.6", "PatientWeight": None}, "PatientWeight"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose"),
        ({"RadionuclideTotalDose": 0}, "RadionuclideTotalDose"),
        ({"RadionuclideTotalDose": -4e8}, "RadionuclideTotalDose"),
        ({"RadionuclideTotalDose": float("nan")}, "RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife"),
        ({"RadionuclideHalfLife": 0}, "RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartTime": "09"}, "RadiopharmaceuticalStartTime"),  # an hour is not a time
        ({"RadiopharmaceuticalStartTime": "091500.1x"}, "RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartTime": "101501"}, "RadiopharmaceuticalStart"),  # after the scan
        ({"RadiopharmaceuticalStartDateTime": "20190306101459"}, "RadiopharmaceuticalStart"),  # over 24 h before it
        ({"SeriesDate": None}, "SeriesDate"),
        ({"SeriesTime": None}, "SeriesTime"),
        ({"AcquisitionTime": None}, "AcquisitionTime"),
        ({**LATE, GE_SCAN_TIME: "yesterday"}, "(0009,100D)"),
        ({**LATE, "ActualFrameDuration": 120000}, "FrameReferenceTime"),
        ({**LATE, "FrameReferenceTime": 60000}, "ActualFrameDuration"),
        ({"DecayCorrection": None}, "DecayCorrection"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection is 'NONE'"),
        ({"sequence": False}, "RadiopharmaceuticalInformationSequence"),
    ],
)
def test_refusals_name_the_attribute(changes, named):
    check_refusal(changes, named)


def check_refusal(changes: dict, named: str) -> None:
    with pytest.raises(InputError) as caught:
        suv_factor([header(changes)])
    message = str(caught.value)
    assert named in message
    for value in ("2019", "0307", "1014", "1015", "1017", "0915", "1200", "2330", "yesterday"):
        assert value not in message, "a date or time of the patient's is in the message"


def from_json(values: dict) -> Dataset:
    private = values.get("PhilipsPETPrivateGroup", {})
    flat = {k: v for k, v in values.items() if k != "PhilipsPETPrivateGroup"}
    names = {"SUVScaleFactor": PHILIPS_SUV_FACTOR, "ActivityConcentrationScaleFactor": PHILIPS_ACTIVITY_FACTOR}
    drug = {key: None for key in DRUG}
    return header({**dict.fromkeys(SERIES), **drug, **flat, **{names[k]: v for k, v in private.items()}})


@pytest.mark.skipif(not EXPECTED, reason="real headers are not here: ../shared/data/suv_headers")
@pytest.mark.parametrize("name", EXPECTED or ["absent"])
def test_real_headers(name):
    headers = [from_json(h) for h in json.loads((REAL / f"{name}-instances.json").read_text())]
    assert len(headers) >= 2
    assert suv_factor(headers).factor == pytest.approx(EXPECTED[name], rel=1e-6)
