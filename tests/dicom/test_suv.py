"""SUV factors: every rule against a factor computed by hand, every refusal, and eight real headers."""

import copy
import json
import math
import re
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from petct_lib import InputError
from petct_lib.dicom.suv import GE_SCAN_TIME, KINDS, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR, normaliser, suv_factor

REAL = Path(__file__).parents[3] / "shared" / "data" / "suv_headers"
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
    """A valid BQML header with `changes`; None removes an attribute, attributes of the drug go into its item.

    `sequence` False leaves the drug's sequence out; `second` is a second item's difference from the first.
    """
    values = {**SERIES, **DRUG, **(changes or {})}
    ds, drug = Dataset(), Dataset()
    for key, value in values.items():
        if value is None or key in ("sequence", "second"):
            continue
        if key in PRIVATE:
            ds.add_new(key, "UN" if isinstance(value, bytes) else PRIVATE[key], value)
        else:
            setattr(drug if key.startswith("Radio") else ds, key, value)
    if values.get("sequence", True):
        items = [drug]
        if "second" in values:
            items.append(copy.deepcopy(drug))
            items[1].update(values["second"])
        ds.RadiopharmaceuticalInformationSequence = items
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
    result = suv_factor([header(changes)])
    assert result.factor == pytest.approx(factor, rel=1e-6)
    assert rule in result.rule


def test_the_earliest_slice_decides_what_the_series_time_is():
    """Slices of several beds: the series time may be before the acquisition of some and after that of others."""
    slices = [header({**LATE, "AcquisitionTime": t, GE_SCAN_TIME: "20190307101500"}) for t in ("130000", "101730")]
    assert "GE private" in suv_factor(slices).rule
    later = [header({"AcquisitionTime": t}) for t in ("103000", "101730")]
    assert suv_factor(later).factor == pytest.approx(FACTOR)


# Body-weight SUV of a patient of 80 kg: 80 000 g / 200 MBq. The other kinds by hand, for 2.00 m.
MAN = {"PatientWeight": 80, "PatientSize": 2.0, "PatientSex": "M"}
WOMAN = {**MAN, "PatientSex": "F"}
SIZES = [
    ("bw", "M", 80000), ("bw", "F", 80000),
    ("lbm_janma", "M", 67418.18182),  # 9270 × 80 / (6680 + 216 × 20) kg
    ("lbm_janma", "F", 54289.89751),  # 9270 × 80 / (8780 + 244 × 20) kg
    ("lbm_james", "M", 67520),  # 1.10 × 80 − 128 × 0.4² kg
    ("lbm_james", "F", 61920),  # 1.07 × 80 − 148 × 0.4² kg
    ("lbm_james120", "M", 68800),  # 1.10 × 80 − 120 × 0.4² kg
    ("lbm_james120", "F", 61920),
    ("bsa", "M", 21548.96), ("bsa", "F", 21548.96),  # 71.84 × e^(0.425 × 4.3820266 + 0.725 × 5.2983174) cm²
    ("ibw", "M", 98880),  # 48 + 1.06 × 48 kg
    ("ibw", "F", 89180),  # 45.5 + 0.91 × 48 kg
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sex", "size"), SIZES)
def test_normalisers_by_hand(kind, sex, size):
    assert normaliser(kind, 80, 2.0, sex) == pytest.approx(size, rel=1e-6)


def test_normalisers_need_only_what_their_formula_has():
    assert normaliser("bw", 80) == 80000
    assert normaliser("bsa", 80, 2.0) == pytest.approx(21548.96)
    assert normaliser("ibw", 40, 2.0, "M") == normaliser("ibw", 80, 2.0, "M")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("suvbw", 80, 2.0, "M"), "'suvbw' is unknown: it is one of bw, lbm_janma"),
        (("bw", 0), "PatientWeight"),
        (("bw", math.nan), "PatientWeight (the patient's weight in kg) is not finite"),
        (("bw", 80000), "surely it is in grams"),
        (("bsa", 80), "PatientSize"),
        (("bsa", 80, math.inf), "PatientSize (the patient's height in m) is not finite"),
        (("bsa", 80, 200), "surely it is in cm"),
        (("ibw", 80, 2.0), "PatientSex is missing"),
        (("ibw", 80, 2.0, "O"), "PatientSex is neither M nor F"),
        # The parabola's top: 1.10 × 200² / (2 × 128) = 171.875 kg (men), 1.07 × 200² / (2 × 148) = 144.59 kg (women).
        (("lbm_james", 172, 2.0, "M"), "ask for lbm_janma"),
        (("lbm_james", 145, 2.0, "F"), "ask for lbm_janma"),
        (("lbm_janma", 40, 2.0, "M"), "above the body weight"),  # BMI 10
        (("ibw", 20, 1.0, "M"), "ideal body weight (Sugawara 1999) of 0 or less"),  # 48 − 1.06 × 52
        (("ibw", 20, 1.0, "F"), "0 or less"),
    ],
)
def test_normalisers_refuse(arguments, named):
    with pytest.raises(InputError, match=re.escape(named)):
        normaliser(*arguments)


def test_james_up_to_its_top():
    assert normaliser("lbm_james", 171.8, 2.0, "M") == pytest.approx(94531, abs=1)  # 1.10² × 200² / (4 × 128) kg
    assert normaliser("lbm_james", 144.5, 2.0, "F") == pytest.approx(77358, abs=1)  # 1.07² × 200² / (4 × 148) kg


@pytest.mark.parametrize(("kind", "sex", "size"), [row for row in SIZES if row[0] in KINDS])
def test_each_kind_from_activity(kind, sex, size):
    result = suv_factor([header({**MAN, "PatientSex": sex})], kind)
    assert result.factor == pytest.approx(size / 2e8, rel=1e-6)
    assert result.rule.startswith("BQML: dose decayed to the series time")
    assert ("converted to" in result.rule) == (kind != "bw")


def test_kinds_have_units_and_body_weight_is_the_default():
    assert KINDS == {"bw": "g/ml", "lbm_janma": "g/ml", "lbm_james": "g/ml", "bsa": "cm2/ml", "ibw": "g/ml"}
    assert suv_factor([header(MAN)]) == suv_factor([header(MAN)], "bw")
    assert suv_factor([header(MAN)]).rule == "BQML: dose decayed to the series time"
    with pytest.raises(InputError, match="'lbm' is unknown: it is one of bw, lbm_janma, lbm_james, bsa, ibw"):
        suv_factor([header(MAN)], "lbm")


GML, CM2ML = {"Units": "GML", "sequence": False}, {"Units": "CM2ML", "sequence": False}


@pytest.mark.parametrize(
    ("changes", "kind", "factor", "rule"),
    [
        ({**GML, "SUVType": "LBMJANMA"}, "lbm_janma", 1, "GML: stored as SUV by lean body mass (Janmahasatian 2005)"),
        ({**GML, "SUVType": "LBMJAMES128"}, "lbm_james", 1, "GML: stored as SUV by lean body mass (James 1976, 128"),
        ({**GML, "SUVType": "IBW"}, "ibw", 1, "GML: stored as SUV by ideal body weight (Sugawara 1999)"),
        (CM2ML, "bsa", 1, "CM2ML: stored as SUV by body surface area (Du Bois 1916)"),
        ({**CM2ML, "SUVType": "BSA"}, "bsa", 1, "CM2ML: stored as SUV by body surface area"),
        ({**GML, **MAN}, "lbm_james", 67.52 / 80, "GML: stored as body-weight SUV; converted to lean body mass (James"),
        ({**GML, **WOMAN, "SUVType": "BW"}, "bsa", 21548.96 / 80000, "converted to body surface area"),
        ({**GML, **MAN, "SUVType": "LBM"}, "bw", 80 / 68.8, "(James, 120 for men); converted to body weight"),
        ({**GML, **MAN, "SUVType": "LBM"}, "lbm_james", 67.52 / 68.8, "120 for men); converted to lean body mass"),
        ({**GML, **WOMAN, "SUVType": "LBM"}, "lbm_james", 1, "converted to lean body mass"),
        ({**GML, **MAN, "SUVType": "LBMJAMES128"}, "bw", 80 / 67.52, "converted to body weight"),
        ({**GML, **WOMAN, "SUVType": "LBMJANMA"}, "bw", 80000 / 54289.89751, "converted to body weight"),
        ({**GML, **MAN, "SUVType": "IBW"}, "lbm_janma", 67418.18182 / 98880, "converted to lean body mass"),
        ({**CM2ML, **MAN}, "bw", 80000 / 21548.96, "converted to body weight"),
        ({**CM2ML, **MAN, "PatientSex": None}, "bw", 80000 / 21548.96, "converted to body weight"),
        (
            {**MAN, "Units": "CNTS", PHILIPS_SUV_FACTOR: "0.000551"},
            "lbm_james",
            5.51e-4 * 67.52 / 80,
            "(7053,1000); converted to lean body mass",
        ),
        (
            {**MAN, "Units": "CNTS", PHILIPS_ACTIVITY_FACTOR: "1.6"},
            "ibw",
            1.6 * 98880 / 2e8,
            "dose decayed to the series time; converted to ideal body weight",
        ),
        ({**MAN, "DecayCorrection": "ADMIN"}, "ibw", 98880 / 4e8, "administration; converted to ideal body weight"),
    ],
)
def test_stored_kind_to_asked_kind(changes, kind, factor, rule):
    result = suv_factor([header(changes)], kind)
    assert result.factor == pytest.approx(factor, rel=1e-6)
    assert rule in result.rule


NIGHT = {"SeriesDate": "20190308", "SeriesTime": "003000", "AcquisitionDate": "20190308", "AcquisitionTime": "003130"}
BEFORE = "; injection taken to be the day before"


@pytest.mark.parametrize(
    ("changes", "factor", "rule"),
    [
        ({**NIGHT, "RadiopharmaceuticalStartDateTime": "20190307233000"}, FACTOR, "the series time"),
        ({**NIGHT, "RadiopharmaceuticalStartTime": "233000"}, FACTOR, "the series time" + BEFORE),
        ({**NIGHT, "RadiopharmaceuticalStartTime": "183000"}, FACTOR * 32, "the series time" + BEFORE),  # 6 h
        # The series begins before midnight, its first slice after it.
        (
            {**NIGHT, "SeriesDate": "20190307", "SeriesTime": "235900", "RadiopharmaceuticalStartTime": "225900"},
            FACTOR,
            "the series time",
        ),
        (
            {
                **NIGHT,
                "SeriesDate": "20190307",
                "SeriesTime": "235900",
                "RadiopharmaceuticalStartTime": "225900",
                "AcquisitionDate": None,
            },
            FACTOR,
            "the series time",
        ),
        ({"AcquisitionDate": None}, FACTOR, "the series time"),
        # The series is reconstructed after midnight: its slices of before it lack a date, GE's time has one.
        (
            {
                **NIGHT,
                "AcquisitionDate": None,
                "AcquisitionTime": "235800",
                GE_SCAN_TIME: "20190307235700",
                "RadiopharmaceuticalStartTime": "225700",
            },
            FACTOR,
            "the GE private scan time" + BEFORE,
        ),
    ],
)
def test_past_midnight(changes, factor, rule):
    result = suv_factor([header(changes)])
    assert result.factor == pytest.approx(factor, rel=1e-6)
    assert result.rule == f"BQML: dose decayed to {rule}"


def test_past_midnight_refusals():
    check_refusal({**NIGHT, "RadiopharmaceuticalStartTime": "182900"}, "after the reference time")  # over 6 h
    check_refusal({**NIGHT, "RadiopharmaceuticalStartTime": "013000"}, "3600 s after the reference time")
    moved = {**NIGHT, "RadiopharmaceuticalStartDateTime": "20190308233000"}  # a day is given: it is not doubted
    check_refusal({**moved, "RadiopharmaceuticalStartTime": "233000"}, "after the reference time")


DECAY_TIME = {**LATE, "DecayCorrectionDateTime": "20190307101500"}


@pytest.mark.parametrize(
    "changes",
    [
        DECAY_TIME,
        {**DECAY_TIME, GE_SCAN_TIME: "20190307111500"},
        {**DECAY_TIME, "SeriesTime": None, "AcquisitionTime": None},
        {**DECAY_TIME, "SeriesTime": "095900"},  # beats a good series time
        {"DecayCorrectionDateTime": "20190307091500+0000", "TimezoneOffsetFromUTC": "+0100"},
    ],
)
def test_decay_correction_time_beats_the_others(changes):
    result = suv_factor([header(changes)])
    assert result.factor == pytest.approx(FACTOR, rel=1e-6)
    assert result.rule == "BQML: dose decayed to the decay correction time (0018,9701)"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("start", "zone"),
    [
        ("20190307081500+0000", "+0100"),  # 08:15 UTC is 09:15 in the series' zone
        ("20190307134500.00+0530", "+0100"),
        ("20190306231500-1000", "+0000"),
        ("20190307091500+0100", "+0100"),
        ("20190307091500+0000", None),  # one alone does not tell what the other is: local time, as it stands
        ("20190307091500", "+0100"),
        ("20190307091500+01", "+0200"),  # not an offset of DICOM's
    ],
)
def test_time_zones(start, zone):
    result = suv_factor([header({"RadiopharmaceuticalStartDateTime": start, "TimezoneOffsetFromUTC": zone})])
    assert result.factor == pytest.approx(FACTOR, rel=1e-6)


START, NOT_FINITE = "RadiopharmaceuticalStart", [math.nan, math.inf, "-inf"]
# What data.md says is an error: each has a message of its own.
REFUSED = [
    ({"Units": None}, "Units are missing"),
    ({"Units": "PROPCNTS"}, "Units are 'PROPCNTS'"),
    ({"Units": "MYUNIT"}, "Units are 'MYUNIT', which is unknown"),
    ({"Units": "CNTS"}, "(7053,1000) and (7053,1009) are missing"),
    ({"Units": "GML", "SUVType": "MUSCLE"}, "SUVType is 'MUSCLE', which is unknown"),
    ({"DecayCorrection": None}, "DecayCorrection is missing"),
    ({"DecayCorrection": "NONE"}, "DecayCorrection is 'NONE'"),
    ({"DecayCorrection": "LATER"}, "DecayCorrection is 'LATER', which is unknown"),
    ({"PatientWeight": None}, "PatientWeight (the patient's weight in kg) is missing"),
    ({"PatientWeight": 0}, "PatientWeight (the patient's weight in kg) is 0"),
    ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose (the injected dose in Bq) is missing"),
    ({"RadionuclideTotalDose": 0}, "RadionuclideTotalDose (the injected dose in Bq) is 0"),
    ({"RadionuclideTotalDose": -4e8}, "RadionuclideTotalDose (the injected dose in Bq) is negative"),
    ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife (the half-life in s) is missing"),
    ({f"{START}Time": None}, f"neither {START}DateTime nor {START}Time"),
    ({f"{START}Time": "101501"}, f"{START}DateTime or StartTime) is 1 s after the reference time"),
    ({f"{START}DateTime": "20190306101459"}, f"{START}DateTime or StartTime) is 86401 s before the reference time"),
    ({"SeriesTime": None}, "SeriesDate with SeriesTime is missing"),
    ({**LATE, "ActualFrameDuration": 120000}, "FrameReferenceTime (ms from the series' reference time) is missing"),
    ({"sequence": False}, "no RadiopharmaceuticalInformationSequence"),
]
REFUSED_TOO = [
    ({"Units": ""}, "Units are missing"),
    ({"Units": "CNTS", PHILIPS_SUV_FACTOR: "0", PHILIPS_ACTIVITY_FACTOR: "0"}, "(7053,1000) and (7053,1009)"),
    ({"Units": "CNTS", PHILIPS_SUV_FACTOR: "-1"}, "(7053,1000) is negative, not finite or absurd"),
    ({"Units": "CNTS", PHILIPS_SUV_FACTOR: b"nan "}, "(7053,1000) is negative, not finite or absurd"),
    ({"Units": "CNTS", PHILIPS_ACTIVITY_FACTOR: "inf"}, "(7053,1009) is negative, not finite or absurd"),
    ({"Units": "CNTS", PHILIPS_ACTIVITY_FACTOR: "1.6", "PatientWeight": None}, "PatientWeight"),
    ({"Units": "GML", "SUVType": "BSA"}, "Units are GML with SUVType 'BSA': they contradict"),
    ({"Units": "CM2ML", "SUVType": "BW"}, "Units are CM2ML with SUVType 'BW': they contradict"),
    ({"Units": "GML", "SUVType": "LBM"}, "PatientSize (the patient's height in m) is missing"),
    ({"Units": "CM2ML", "PatientWeight": None, "PatientSize": 2}, "PatientWeight (the patient's weight in kg) is mis"),
    *(({"PatientWeight": x}, "PatientWeight (the patient's weight in kg) is not finite") for x in NOT_FINITE),
    (
        {"PatientWeight": 70000},
        "PatientWeight (the patient's weight in kg) is outside 1 g to 1000 kg: surely it is in grams",
    ),
    ({"PatientWeight": [70, 71]}, "PatientWeight (the patient's weight in kg) is not a number"),
    *(({"RadionuclideTotalDose": x}, "(the injected dose in Bq) is not finite") for x in NOT_FINITE),
    ({"RadionuclideTotalDose": 400}, "(the injected dose in Bq) is outside 10 kBq to 1 TBq: surely not in Bq (MBq?)"),
    ({"RadionuclideTotalDose": 1e300}, "RadionuclideTotalDose"),
    ({"RadionuclideHalfLife": 0}, "RadionuclideHalfLife (the half-life in s) is 0"),
    *(({"RadionuclideHalfLife": x}, "RadionuclideHalfLife (the half-life in s) is not finite") for x in NOT_FINITE),
    ({"RadionuclideHalfLife": 1e-3}, "RadionuclideHalfLife (the half-life in s) is below 1 s"),
    ({"RadionuclideHalfLife": 100}, "RadionuclideHalfLife is over 20 times shorter than the uptake"),
    ({f"{START}Time": "09"}, f"{START}Time"),  # an hour is not a time
    ({f"{START}Time": "091500.1x"}, f"{START}Time"),
    ({f"{START}Time": "111500"}, f"{START}DateTime or StartTime) is 3600 s after"),
    ({f"{START}DateTime": "20190307111500"}, f"{START}DateTime or StartTime) is 3600 s after"),
    ({f"{START}DateTime": "00010101101500"}, f"{START}DateTime is missing or not a date and time"),
    ({f"{START}DateTime": "yesterday"}, f"{START}DateTime is missing or not a date and time"),
    ({"DecayCorrectionDateTime": "yesterday"}, "DecayCorrectionDateTime is missing or not a date and time"),
    ({**DECAY_TIME, "SeriesDate": None}, f"SeriesDate with {START}Time"),
    ({"SeriesDate": None}, "SeriesDate"),
    ({"AcquisitionTime": None}, "AcquisitionTime"),
    ({"AcquisitionTime": None, "AcquisitionDate": None}, "AcquisitionTime"),
    ({**LATE, GE_SCAN_TIME: "yesterday"}, "(0009,100D)"),
    ({**LATE, "FrameReferenceTime": 60000}, "ActualFrameDuration (the frame's duration in ms) is missing"),
    ({**LATE, "FrameReferenceTime": 1e300, "ActualFrameDuration": 1}, "FrameReferenceTime"),
    ({**LATE, "FrameReferenceTime": math.nan, "ActualFrameDuration": 1}, "FrameReferenceTime"),
    ({**LATE, "FrameReferenceTime": 60000, "ActualFrameDuration": 1e9}, "ActualFrameDuration"),
    ({"second": {"RadionuclideTotalDose": 1e8}}, "items that differ in RadionuclideTotalDose"),
    ({"second": {"RadionuclideHalfLife": 1223}}, "items that differ in RadionuclideHalfLife"),
    ({"second": {f"{START}Time": "093000"}}, f"items that differ in {START}Time"),
    ({"second": {f"{START}DateTime": "20190307091500"}}, f"items that differ in {START}DateTime"),
]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(("changes", "named"), REFUSED + REFUSED_TOO)
def test_refusals_name_the_attribute(changes, named):
    check_refusal(changes, named)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_number_that_a_file_has_as_text_is_refused():
    """pydicom gives what it cannot read as its VR as something else: text or bytes."""
    file = DicomBytesIO()
    file.is_little_endian = file.is_implicit_VR = True
    write_dataset(file, header({"PatientWeight": "71"}))
    read = read_dataset(BytesIO(file.getvalue().replace(b"71", b"7x")), True, True)
    assert refusal([read]) == "PET PatientWeight (the patient's weight in kg) is not a number"


def test_every_refusal_has_its_own_message():
    messages = [refusal([header(changes)]) for changes, _ in REFUSED]
    assert len(set(messages)) == len(messages) >= 15
    for k, (_, named) in enumerate(REFUSED):
        assert [named in message for message in messages].count(True) == 1, f"{named} is not only in message {k}"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"PatientSize": None}, "bsa", "PatientSize (the patient's height in m) is missing"),
        ({"PatientSize": 0}, "bsa", "PatientSize (the patient's height in m) is 0"),
        ({"PatientSize": -1.8}, "ibw", "PatientSize (the patient's height in m) is negative"),
        (
            {"PatientSize": 180},
            "lbm_janma",
            "PatientSize (the patient's height in m) is outside 1 cm to 3 m: surely it is in cm",
        ),
        ({"PatientSize": math.nan}, "lbm_james", "PatientSize (the patient's height in m) is not finite"),
        ({"PatientSex": None}, "lbm_janma", "PatientSex is missing"),
        ({"PatientSex": "O"}, "lbm_james", "PatientSex is neither M nor F"),
        ({"PatientSex": ""}, "ibw", "PatientSex is missing"),
        ({"PatientWeight": None}, "ibw", "PatientWeight (the patient's weight in kg) is missing"),
        ({"PatientWeight": 200}, "lbm_james", "James' lean body mass falls with it: ask for lbm_janma"),
        ({"PatientSize": 1.0}, "ibw", "ideal body weight (Sugawara 1999) of 0 or less"),
    ],
)
@pytest.mark.parametrize("stored", [{}, {"Units": "CNTS", PHILIPS_SUV_FACTOR: "0.000551"}, {"Units": "GML"}])
def test_other_kinds_need_the_patient(changes, kind, named, stored):
    check_refusal({**MAN, **stored, **changes}, named, kind)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("Units", ("BQML", "CNTS")),
        ("SUVType", ("BW", "LBM")),
        ("DecayCorrection", ("START", "ADMIN")),
        ("DecayCorrectionDateTime", ("20190307101500", "20190307103000")),
        ("PatientWeight", (70, 71)),
        ("PatientWeight", (70, None)),
        ("RadionuclideTotalDose", (4e8, 4.1e8)),
    ],
)
def test_a_mixed_series_is_refused(keyword, values):
    message = refusal([header({keyword: value}) for value in values])
    assert message == f"PET {keyword} differs between the slices: it is a mixed series"


def test_the_same_written_otherwise_is_no_difference():
    slices = [header({"PatientWeight": "70"}), header({"PatientWeight": "70.00", "RadionuclideTotalDose": "4e8"})]
    assert suv_factor(slices).factor == pytest.approx(FACTOR)
    assert suv_factor([header({"second": {}})]).factor == pytest.approx(FACTOR)  # an item twice


def check_refusal(changes: dict, named: str, kind: str = "bw") -> None:
    message = refusal([header(changes)], kind)
    assert named in message
    for value in ("2019", "0306", "0307", "0308", "1014", "1015", "1017", "0915", "1200", "2330", "yesterday"):
        assert value not in message, "a date or time of the patient's is in the message"


def refusal(headers: list[Dataset], kind: str = "bw") -> str:
    with pytest.raises(InputError) as caught:
        suv_factor(headers, kind)
    return str(caught.value)


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
