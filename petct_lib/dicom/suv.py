"""SUV factors from PET headers: the QIBA vendor-neutral rules (ACR `vendor_neutral_SUV_calculation`)."""

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom import Dataset

from petct_lib import InputError

KINDS = {"bw": "g/ml", "lbm_janma": "g/ml", "lbm_james": "g/ml", "bsa": "cm2/ml", "ibw": "g/ml"}
LABELS = {
    "bw": "body weight",
    "lbm_janma": "lean body mass (Janmahasatian 2005)",
    "lbm_james": "lean body mass (James 1976, 128 for men)",
    "lbm_james120": "lean body mass (James, 120 for men)",  # only as stored: what DICOM's SUVType LBM means
    "bsa": "body surface area (Du Bois 1916)",
    "ibw": "ideal body weight (Sugawara 1999)",
}
# SUVType (0054,1006), PS3.3 table C.8-60. Its LBM is James' formula, its LBMJAMES128 the same "using a multiplier of
# 128 for males": so LBM is taken as the one with 120. For women they do not differ.
SUV_TYPES = {
    "BW": "bw", "LBM": "lbm_james120", "LBMJAMES128": "lbm_james", "LBMJANMA": "lbm_janma", "BSA": "bsa", "IBW": "ibw",
}  # fmt: skip
GE_SCAN_TIME = (0x0009, 0x100D)  # GE private: scan start, the time decay was corrected to
PHILIPS_SUV_FACTOR = (0x7053, 0x1000)  # Philips private: counts → SUV
PHILIPS_ACTIVITY_FACTOR = (0x7053, 0x1009)  # Philips private: counts → Bq/ml
MAX_UPTAKE = timedelta(hours=24)
MAX_UPTAKE_FROM_DAY_BEFORE = timedelta(hours=6)  # longer than any F-18 protocol: beyond it the time is wrong
MAX_HALF_LIVES = 20  # a millionth of the dose is left: no image can show it
DAY = timedelta(days=1)
# What each number means, its range, and what one outside of it is.
LIMITS = {
    "PatientWeight": ("the patient's weight in kg", 1e-3, 1000, "outside 1 g to 1000 kg: surely it is in grams"),
    "PatientSize": ("the patient's height in m", 0.01, 3, "outside 1 cm to 3 m: surely it is in cm"),
    "RadionuclideTotalDose": ("the injected dose in Bq", 1e4, 1e12, "outside 10 kBq to 1 TBq: surely not in Bq (MBq?)"),
    "RadionuclideHalfLife": ("the half-life in s", 1, math.inf, "below 1 s: no such tracer can be imaged"),
    "ActualFrameDuration": ("the frame's duration in ms", 0, 86.4e6, "over 24 h: surely it is not in ms"),
    "FrameReferenceTime": ("ms from the series' reference time", -86.4e6, 86.4e6, "over 24 h: surely it is not in ms"),
}
ONE_VALUE = ("Units", "SUVType", "DecayCorrection", "DecayCorrectionDateTime", "PatientWeight")  # in all slices


@dataclass(frozen=True)
class SuvFactor:
    """SUV (in the unit that `KINDS` gives) = rescaled stored value × `factor`; `rule` says how it was found."""

    factor: float
    rule: str


def suv_factor(headers: list[Dataset], kind: str = "bw") -> SuvFactor:
    """SUV factor of one PET series from the headers of its slices; `kind` is one of `KINDS`.

    Raises InputError, saying which attribute is at fault, wherever a rule would have to guess: unknown or proportional
    units, decay correction absent or NONE, weight, dose, half-life or injection time missing or impossible, slices
    that disagree; for another kind than bw, also height or sex missing or a formula out of its range.
    Source: QIBA vendor-neutral SUV pseudo-code, 2018-06 "happy path" and "alternative" paths.

    70 kg and 350 MBq, in activity that is decay corrected to the injection: 1 kBq/ml is SUV 0.2.

    >>> drug = Dataset()
    >>> drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 350e6, 6588.0
    >>> header = Dataset()
    >>> header.Units, header.DecayCorrection, header.PatientWeight = "BQML", "ADMIN", 70.0
    >>> header.RadiopharmaceuticalInformationSequence = [drug]
    >>> factor = suv_factor([header])
    >>> round(1000 * factor.factor, 6), factor.rule
    (0.2, 'BQML: decay corrected to administration')
    """
    if kind not in KINDS:
        raise InputError(f"SUV kind {kind!r} is unknown: it is one of {', '.join(KINDS)}")
    _check_one_series(headers)
    factor, stored = _as_stored(headers)
    if kind == stored:
        return factor
    ratio = _header_normaliser(headers[0], kind) / _header_normaliser(headers[0], stored)
    return SuvFactor(factor.factor * ratio, f"{factor.rule}; converted to {LABELS[kind]}")


def normaliser(kind: str, weight_kg: float, height_m: float | None = None, sex: str = "") -> float:
    """What activity per dose is multiplied by: g of the body, cm² for bsa; `kind` as in `LABELS`, sex M or F.

    All but bw need a height, all but bw and bsa a sex. Raises InputError where one is missing or impossible, and where
    a formula is out of its range: James' falls with weight from a BMI of 43 (men; 36, women) on.
    Source: DICOM PS3.16 codes 126410 (bw), 126411 and 126415 (James, Research on Obesity, 1976, with 120 and 128),
    126412 (bsa: Du Bois, Arch Intern Med 17:863, 1916), 126413 (ibw: Sugawara et al., Radiology 213:521, 1999), 126414
    (Janmahasatian et al., Clin Pharmacokinet 44:1051, 2005).

    >>> normaliser("bw", 70.0), round(normaliser("bsa", 70.0, 1.75)), round(normaliser("lbm_janma", 70.0, 1.75, "F"))
    (70000.0, 18481, 45197)
    """
    if kind not in LABELS:
        raise InputError(f"SUV kind {kind!r} is unknown: it is one of {', '.join(LABELS)}")
    weight_g = 1000 * _check_value("PatientWeight", weight_kg)
    if kind == "bw":
        return weight_g
    height_cm = 100 * _check_value("PatientSize", math.nan if height_m is None else height_m)
    if kind == "bsa":
        return 71.84 * weight_kg**0.425 * height_cm**0.725  # 0.007184 m²
    if sex not in ("M", "F"):
        fault = "is neither M nor F" if sex else "is missing"
        raise InputError(f"PET PatientSex {fault}: {LABELS[kind]} has a formula for each of these only")
    size_g = 1000 * _sexed_kg(kind, weight_kg, height_cm, sex == "M")
    if size_g <= 0 or (kind != "ibw" and size_g > weight_g):
        fault = "0 or less" if size_g <= 0 else "above the body weight"
        raise InputError(f"PET PatientSize and PatientWeight give {LABELS[kind]} of {fault}: ask for another kind")
    return size_g


def _sexed_kg(kind: str, weight_kg: float, height_cm: float, male: bool) -> float:
    if kind == "ibw":
        return 48.0 + 1.06 * (height_cm - 152) if male else 45.5 + 0.91 * (height_cm - 152)
    if kind == "lbm_janma":
        bmi = weight_kg / (height_cm / 100) ** 2
        return 9270 * weight_kg / (6680 + 216 * bmi if male else 8780 + 244 * bmi)
    slope, bend = (1.10, 120 if kind == "lbm_james120" else 128) if male else (1.07, 148)
    if weight_kg > slope * height_cm**2 / (2 * bend):
        raise InputError(
            "PET PatientWeight is so high for PatientSize that James' lean body mass falls with it: ask for lbm_janma"
        )
    return slope * weight_kg - bend * (weight_kg / height_cm) ** 2


def _header_normaliser(header: Dataset, kind: str) -> float:
    height_m = None if kind == "bw" else _number(header, "PatientSize")
    return normaliser(kind, _number(header, "PatientWeight"), height_m, _code(header, "PatientSex"))


def _check_one_series(headers: list[Dataset]) -> None:
    drugs = [(h.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0] for h in headers]
    sources = [(headers, keyword) for keyword in ONE_VALUE] + [(drugs, "RadionuclideTotalDose")]
    for datasets, keyword in sources:
        if _differ(datasets, keyword):
            raise InputError(f"PET {keyword} differs between the slices: it is a mixed series")


def _differ(datasets: list[Dataset], keyword: str) -> bool:
    return len({_comparable(ds, keyword) for ds in datasets}) > 1


def _comparable(ds: Dataset, keyword: str) -> str:
    """The number where it is one ("70" is 70.0), else the text."""
    try:
        return str(float(ds.get(keyword, "")))
    except (TypeError, ValueError):
        return _code(ds, keyword)


def _code(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip().upper()


def quote_code(value: str) -> str:
    """A value of VR CS as an error may quote it; "?" where it is none: a broken header may hold a name there."""
    return value if re.fullmatch(r"[A-Z0-9_ ]{1,16}", value) else "?"


def _as_stored(headers: list[Dataset]) -> tuple[SuvFactor, str]:
    """The factor to the kind of SUV that the file itself leads to, and that kind."""
    units = _code(headers[0], "Units")
    if units in ("GML", "CM2ML"):
        return _from_suv(headers[0], units)
    if units == "BQML":
        return _from_activity(headers, 1.0, "BQML"), "bw"
    if units == "CNTS":
        return _from_counts(headers), "bw"
    if units == "PROPCNTS":
        raise InputError("PET Units are 'PROPCNTS': counts that are only proportional carry no calibration to Bq/ml")
    fault = f"{quote_code(units)!r}, which is unknown" if units else "missing"
    raise InputError(f"PET Units are {fault}: only BQML, GML, CM2ML and Philips CNTS can be turned into SUV")


def _from_suv(header: Dataset, units: str) -> tuple[SuvFactor, str]:
    suv_type = _code(header, "SUVType") or ("BW" if units == "GML" else "BSA")
    if suv_type not in SUV_TYPES:
        shown = quote_code(suv_type)
        raise InputError(f"PET SUVType is {shown!r}, which is unknown: it is one of {', '.join(SUV_TYPES)}")
    if (suv_type == "BSA") != (units == "CM2ML"):
        raise InputError(f"PET Units are {units} with SUVType {suv_type!r}: they contradict each other")
    stored = SUV_TYPES[suv_type]
    name = "body-weight SUV" if stored == "bw" else f"SUV by {LABELS[stored]}"
    return SuvFactor(1.0, f"{units}: stored as {name}"), stored


def _from_counts(headers: list[Dataset]) -> SuvFactor:
    to_suv, to_activity = (_private_number(headers[0], tag) for tag in (PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR))
    if to_suv:
        return SuvFactor(to_suv, "CNTS: Philips private SUV factor (7053,1000)")
    if to_activity:
        return _from_activity(headers, to_activity, "CNTS with Philips private Bq/ml factor (7053,1009)")
    raise InputError("PET Units are CNTS and the Philips private factors (7053,1000) and (7053,1009) are missing or 0")


def _private_number(header: Dataset, tag: tuple[int, int]) -> float | None:
    try:
        value = float(_private_text(header, tag))
    except ValueError:
        return None
    if not (value == 0 or 1e-12 < value < 1e12):
        raise InputError(f"PET Philips private factor ({tag[0]:04x},{tag[1]:04x}) is negative, not finite or absurd")
    return value


def _private_text(header: Dataset, tag: tuple[int, int]) -> str:
    """In implicit VR files private values arrive as bytes."""
    value = header[tag].value if tag in header else ""
    return value.decode("ascii", "ignore").strip("\0 ") if isinstance(value, bytes) else str(value)


def _from_activity(headers: list[Dataset], scale: float, label: str) -> SuvFactor:
    """Body-weight SUV from Bq/ml × `scale`."""
    first = headers[0]
    weight_g = _header_normaliser(first, "bw")
    drug = _radiopharmaceutical(first)
    dose_bq = _check_value("RadionuclideTotalDose", _number(drug, "RadionuclideTotalDose"))
    half_life_s = _check_value("RadionuclideHalfLife", _number(drug, "RadionuclideHalfLife"))
    if _decay_correction(first) == "ADMIN":
        return SuvFactor(scale * weight_g / dose_bq, f"{label}: decay corrected to administration")
    reference, how = _reference_time(headers, half_life_s)
    uptake, note = _uptake(first, drug, reference)
    half_lives = uptake.total_seconds() / half_life_s
    if half_lives > MAX_HALF_LIVES:
        raise InputError(f"PET RadionuclideHalfLife is over {MAX_HALF_LIVES} times shorter than the uptake")
    decayed_bq = dose_bq * 2**-half_lives
    return SuvFactor(scale * weight_g / decayed_bq, f"{label}: dose decayed to {how}{note}")


def _radiopharmaceutical(header: Dataset) -> Dataset:
    sequence = header.get("RadiopharmaceuticalInformationSequence")
    if not sequence:
        raise InputError("PET has no RadiopharmaceuticalInformationSequence: dose and injection time are unknown")
    times = ("RadiopharmaceuticalStartTime", "RadiopharmaceuticalStartDateTime")
    for keyword in ("RadionuclideTotalDose", "RadionuclideHalfLife", *times):
        if _differ(list(sequence), keyword):
            raise InputError(
                f"PET RadiopharmaceuticalInformationSequence has items that differ in {keyword}: which injection the "
                "image shows is unknown"
            )
    return sequence[0]


def _decay_correction(header: Dataset) -> str:
    correction = _code(header, "DecayCorrection")
    if correction in ("START", "ADMIN"):
        return correction
    if correction == "NONE":
        raise InputError("PET DecayCorrection is 'NONE': without a correction the slices have no time in common")
    fault = f"is {quote_code(correction)!r}, which is unknown" if correction else "is missing"
    raise InputError(f"PET DecayCorrection {fault}: START or ADMIN is needed")


def _number(ds: Dataset, keyword: str) -> float:
    try:
        value = ds.get(keyword)
        if value not in (None, ""):
            return float(value)
    except (TypeError, ValueError):
        raise InputError(f"PET {keyword} ({LIMITS[keyword][0]}) is not a number") from None
    raise InputError(f"PET {keyword} ({LIMITS[keyword][0]}) is missing")


def _check_value(keyword: str, value: float) -> float:
    """The value, which must be finite, in its range, and above 0 unless the range goes below it."""
    meaning, low, high, fault = LIMITS[keyword]
    if not math.isfinite(value):
        raise InputError(f"PET {keyword} ({meaning}) is not finite")
    if value <= 0 <= low:
        raise InputError(f"PET {keyword} ({meaning}) is {'negative' if value else '0'}: it must be above 0")
    if not low <= value <= high:
        raise InputError(f"PET {keyword} ({meaning}) is {fault}")
    return value


def _reference_time(headers: list[Dataset], half_life_s: float) -> tuple[datetime, str]:
    """The moment that a START-corrected series is decay corrected to, and its name."""
    first = headers[0]
    if first.get("DecayCorrectionDateTime"):
        return _stamp(first, first, "DecayCorrectionDateTime"), "the decay correction time (0018,9701)"
    series = _parse(f"{first.get('SeriesDate', '')}{first.get('SeriesTime', '')}", "SeriesDate with SeriesTime")
    acquisition, earliest = min(((_acquisition_time(h, series), h) for h in headers), key=lambda pair: pair[0])
    if series <= acquisition:
        return series, "the series time"
    if GE_SCAN_TIME in first:
        scan = _parse(_private_text(first, GE_SCAN_TIME), "GE private scan time (0009,100D)", _zone(first))
        return scan, "the GE private scan time"
    return acquisition - _frame_offset(earliest, half_life_s), "the acquisition time less the frame's offset"


def _acquisition_time(header: Dataset, series: datetime) -> datetime:
    """Without a date: the moment of that time that is nearest to the series'."""
    time = header.get("AcquisitionTime", "")
    if header.get("AcquisitionDate"):
        return _parse(f"{header.AcquisitionDate}{time}", "AcquisitionDate with AcquisitionTime")
    same_day = _parse(f"{series:%Y%m%d}{time}", "AcquisitionTime")
    return same_day + DAY * round((series - same_day) / DAY)


def _frame_offset(header: Dataset, half_life_s: float) -> timedelta:
    """FrameReferenceTime less the time of average count rate in the frame, both from the acquisition's start."""
    reference_s = _check_value("FrameReferenceTime", _number(header, "FrameReferenceTime")) / 1000
    if reference_s == 0:  # not the time of a mean: CPS scanners write 0 and correct to the earliest acquisition
        return timedelta(0)
    duration_s = _check_value("ActualFrameDuration", _number(header, "ActualFrameDuration")) / 1000
    decay = math.log(2) / half_life_s
    x = decay * duration_s
    average_s = math.log(x / -math.expm1(-x)) / decay
    return timedelta(seconds=reference_s - average_s)


def _uptake(header: Dataset, drug: Dataset, reference: datetime) -> tuple[timedelta, str]:
    """Time from injection to reference, and what the rule has to say of it."""
    uptake, note = reference - _injection_time(header, drug), ""
    undated = not drug.get("RadiopharmaceuticalStartDateTime")
    if undated and uptake < timedelta(0) and uptake + DAY <= MAX_UPTAKE_FROM_DAY_BEFORE:
        uptake, note = uptake + DAY, "; injection taken to be the day before"
    name = "PET injection (RadiopharmaceuticalStartDateTime or StartTime)"
    if uptake < timedelta(0):
        raise InputError(f"{name} is {-uptake.total_seconds():.0f} s after the reference time, not before it")
    if uptake > MAX_UPTAKE:
        raise InputError(f"{name} is {uptake.total_seconds():.0f} s before the reference time: that is more than 24 h")
    return uptake, note


def _injection_time(header: Dataset, drug: Dataset) -> datetime:
    if drug.get("RadiopharmaceuticalStartDateTime"):
        return _stamp(header, drug, "RadiopharmaceuticalStartDateTime")
    if not drug.get("RadiopharmaceuticalStartTime"):
        raise InputError("PET has neither RadiopharmaceuticalStartDateTime nor RadiopharmaceuticalStartTime")
    text = f"{header.get('SeriesDate', '')}{drug.RadiopharmaceuticalStartTime}"
    return _parse(text, "SeriesDate with RadiopharmaceuticalStartTime")


def _stamp(header: Dataset, ds: Dataset, keyword: str) -> datetime:
    return _parse(str(ds.get(keyword)), keyword, _zone(header))


def _zone(header: Dataset) -> str:
    return str(header.get("TimezoneOffsetFromUTC") or "")


def _parse(text: str, what: str, zone: str = "") -> datetime:
    """YYYYMMDDHHMM[SS[.FFFFFF]][±HHMM] → the local time of `zone`; an offset counts only where both have one.

    strptime alone would read HHMM as single digits.
    """
    match = re.fullmatch(r"(\d+)(?:\.(\d*))?\s*([+-].*)?", text.strip())
    digits, fraction, offset = match.groups() if match else ("", "", "")
    here, there = _offset(zone), _offset(offset)
    shift = here - there if here is not None and there is not None else 0
    try:
        moment = datetime.strptime(digits, {12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}[len(digits)])
        if not 1 < moment.year < 9999:  # a day before or after it must exist
            raise ValueError
        return moment + timedelta(seconds=float(f"0.{fraction or 0}"), minutes=shift)
    except (KeyError, ValueError):
        # The value itself is a date of the patient's: it is not repeated in the message.
        raise InputError(f"PET {what} is missing or not a date and time") from None


def _offset(text: str | None) -> int | None:
    """Minutes east of UTC of ±HHMM."""
    match = re.fullmatch(r"([+-])(\d\d)(\d\d)", (text or "").strip())
    return int(f"{match[1]}1") * (60 * int(match[2]) + int(match[3])) if match else None
