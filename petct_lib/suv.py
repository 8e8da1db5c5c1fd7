"""Body-weight SUV factors from PET headers: the QIBA vendor-neutral rules (ACR `vendor_neutral_SUV_calculation`)."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom import Dataset

from petct_lib import InputError

GE_SCAN_TIME = (0x0009, 0x100D)  # GE private: scan start, the time decay was corrected to
PHILIPS_SUV_FACTOR = (0x7053, 0x1000)  # Philips private: counts → SUV
PHILIPS_ACTIVITY_FACTOR = (0x7053, 0x1009)  # Philips private: counts → Bq/ml
MAX_UPTAKE = timedelta(hours=24)


@dataclass(frozen=True)
class SuvFactor:
    """SUV (g/ml) = rescaled stored value × `factor`; `rule` says in words how the factor was found."""

    factor: float
    rule: str


def suv_factor(headers: list[Dataset]) -> SuvFactor:
    """SUV factor of one PET series from the headers of its slices.

    Raises InputError, saying which attribute is at fault, wherever a rule would have to guess: unknown or proportional
    units, decay correction absent or NONE, weight, dose, half-life or injection time missing or impossible.
    Source: QIBA vendor-neutral SUV pseudo-code, 2018-06 "happy path" and "alternative" paths.
    """
    first = headers[0]
    units = str(first.get("Units", "")).strip().upper()
    if units == "GML":
        return _from_gml(first)
    if units == "BQML":
        return _from_activity(headers, 1.0, "BQML")
    if units == "CNTS":
        return _from_counts(headers)
    raise InputError(f"PET Units are {units or 'missing'!r}: only BQML, GML and Philips CNTS can be turned into SUV")


def _from_gml(header: Dataset) -> SuvFactor:
    kind = str(header.get("SUVType", "") or "BW").strip().upper()
    if kind != "BW":
        raise InputError(f"PET Units are GML with SUVType {kind!r}: only body weight (BW) is supported")
    return SuvFactor(1.0, "GML: stored as body-weight SUV")


def _from_counts(headers: list[Dataset]) -> SuvFactor:
    to_suv, to_activity = (_private_number(headers[0], tag) for tag in (PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR))
    if to_suv:
        return SuvFactor(to_suv, "CNTS: Philips private SUV factor (7053,1000)")
    if to_activity:
        return _from_activity(headers, to_activity, "CNTS with Philips private Bq/ml factor (7053,1009)")
    raise InputError("PET Units are CNTS and the Philips private factors (7053,1000) and (7053,1009) are missing or 0")


def _private_number(header: Dataset, tag: tuple[int, int]) -> float | None:
    try:
        return float(_private_text(header, tag))
    except ValueError:
        return None


def _private_text(header: Dataset, tag: tuple[int, int]) -> str:
    """In implicit VR files private values arrive as bytes."""
    value = header[tag].value if tag in header else ""
    return value.decode("ascii", "ignore").strip("\0 ") if isinstance(value, bytes) else str(value)


def _from_activity(headers: list[Dataset], scale: float, label: str) -> SuvFactor:
    first = headers[0]
    weight_g = 1000 * _positive(first, "PatientWeight", "the patient's weight in kg")
    drug = _radiopharmaceutical(first)
    dose_bq = _positive(drug, "RadionuclideTotalDose", "the injected dose in Bq")
    half_life_s = _positive(drug, "RadionuclideHalfLife", "the half-life in s")
    correction = str(first.get("DecayCorrection", "")).strip().upper()
    if correction == "ADMIN":
        return SuvFactor(scale * weight_g / dose_bq, f"{label}: decay corrected to administration")
    if correction != "START":
        raise InputError(f"PET DecayCorrection is {correction or 'missing'!r}: START or ADMIN is needed")
    reference, how = _reference_time(headers, half_life_s)
    uptake_s = _uptake_s(_injection_time(first, drug), reference)
    decayed_bq = dose_bq * 2 ** (-uptake_s / half_life_s)
    return SuvFactor(scale * weight_g / decayed_bq, f"{label}: dose decayed to {how}")


def _radiopharmaceutical(header: Dataset) -> Dataset:
    sequence = header.get("RadiopharmaceuticalInformationSequence")
    if not sequence:
        raise InputError("PET has no RadiopharmaceuticalInformationSequence: dose and injection time are unknown")
    return sequence[0]


def _number(header: Dataset, keyword: str, meaning: str) -> float:
    try:
        return float(header.get(keyword))
    except (TypeError, ValueError):
        raise InputError(f"PET {keyword} ({meaning}) is missing or not a number") from None


def _positive(header: Dataset, keyword: str, meaning: str) -> float:
    value = _number(header, keyword, meaning)
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"PET {keyword} ({meaning}) is {value:g}: it must be above 0")
    return value


def _reference_time(headers: list[Dataset], half_life_s: float) -> tuple[datetime, str]:
    """The moment that a START-corrected series is decay corrected to, and its name."""
    first = headers[0]
    series = _date_time(first, "SeriesDate", "SeriesTime")
    earliest = min(headers, key=lambda h: _date_time(h, "AcquisitionDate", "AcquisitionTime"))
    acquisition = _date_time(earliest, "AcquisitionDate", "AcquisitionTime")
    if series <= acquisition:
        return series, "the series time"
    if GE_SCAN_TIME in first:
        scan = _parse(_private_text(first, GE_SCAN_TIME), "GE private scan time (0009,100D)")
        return scan, "the GE private scan time"
    return acquisition - _frame_offset(earliest, half_life_s), "the acquisition time less the frame's offset"


def _frame_offset(header: Dataset, half_life_s: float) -> timedelta:
    """FrameReferenceTime less the time of average count rate in the frame, both from the acquisition's start."""
    reference_s = _number(header, "FrameReferenceTime", "ms from the series' reference time") / 1000
    if reference_s == 0:  # not the time of a mean: CPS scanners write 0 and correct to the earliest acquisition
        return timedelta(0)
    duration_s = _positive(header, "ActualFrameDuration", "the frame's duration in ms") / 1000
    decay = math.log(2) / half_life_s
    x = decay * duration_s
    average_s = math.log(x / (1 - math.exp(-x))) / decay
    return timedelta(seconds=reference_s - average_s)


def _injection_time(header: Dataset, drug: Dataset) -> datetime:
    if drug.get("RadiopharmaceuticalStartDateTime"):
        return _parse(str(drug.RadiopharmaceuticalStartDateTime), "RadiopharmaceuticalStartDateTime")
    if not drug.get("RadiopharmaceuticalStartTime"):
        raise InputError("PET has neither RadiopharmaceuticalStartDateTime nor RadiopharmaceuticalStartTime")
    text = f"{header.get('SeriesDate', '')}{drug.RadiopharmaceuticalStartTime}"
    return _parse(text, "SeriesDate with RadiopharmaceuticalStartTime")


def _uptake_s(injected: datetime, reference: datetime) -> float:
    uptake = reference - injected
    if uptake < timedelta(0) or uptake > MAX_UPTAKE:
        raise InputError(
            f"PET injection (RadiopharmaceuticalStartDateTime or StartTime) is {uptake.total_seconds():.0f} s before "
            "the reference time: it must be between 0 and 24 h"
        )
    return uptake.total_seconds()


def _date_time(header: Dataset, date: str, time: str) -> datetime:
    return _parse(f"{header.get(date, '')}{header.get(time, '')}", f"{date} with {time}")


def _parse(text: str, what: str) -> datetime:
    """YYYYMMDDHHMM[SS[.FFFFFF]], a zone ignored. strptime alone would read HHMM as single digits."""
    digits, _, fraction = text.strip().split("+")[0].split("-")[0].partition(".")
    try:
        moment = datetime.strptime(digits, {12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}[len(digits)])
        return moment + timedelta(seconds=float(f"0.{fraction.strip() or 0}"))
    except (KeyError, ValueError):
        # The value itself is a date of the patient's: it is not repeated in the message.
        raise InputError(f"PET {what} is missing or not a date and time") from None
