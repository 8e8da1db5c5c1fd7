"""PET/CT series with the headers that the vendors' scanners write: eight variants, one for each rule of `suv`.

What the headers hold follows real ones (public SUV test headers of Siemens, GE and Philips); nothing of a patient's is
in them. SoftwareVersions says that petct_lib wrote them.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from petct_lib import __version__
from petct_lib.dicom.suv import GE_SCAN_TIME, PHILIPS_ACTIVITY_FACTOR, PHILIPS_SUV_FACTOR
from petct_lib.dicom.writer import Subject, Tracer, ct_header, pet_header, write_slices
from petct_lib.imaging.volume import Volume

BED_MM = 160.0  # a bed position less its overlap with the next: 100 to 200 mm
BED_S = 150  # time on one bed: 2 to 3 minutes
LATE_S = 1500  # SeriesTime after the scan's start, where the series was reconstructed or processed later
BQML_PER_COUNT = 1.6  # Philips: in the order of real ones
IGNORED_FACTORS = (0.0035, 4.7)  # Philips private factors in a BQML series: whoever uses them is wrong by far

SIEMENS = {
    "Manufacturer": "SIEMENS", "CorrectedImage": ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"],
    "RandomsCorrectionMethod": "DLYD", "ScatterCorrectionMethod": "Model-based",
    "AttenuationCorrectionMethod": "measured,AC CT", "ReconstructionMethod": "OSEM3D 3i24s",
    "ConvolutionKernel": "XYZ Gauss5.00", "CollimatorType": "NONE",
}  # fmt: skip
GE = {
    "Manufacturer": "GE MEDICAL SYSTEMS",
    "CorrectedImage": ["DECY", "ATTN", "SCAT", "DTIM", "RANSNG", "DCAL", "SLSENS", "NORM"],
    "RandomsCorrectionMethod": "SING", "ScatterCorrectionMethod": "Model Based",
    "AttenuationCorrectionMethod": "measured,, 0.096000 cm-1,", "ReconstructionMethod": "3D IR",
    "ConvolutionKernel": "STANDARD", "CollimatorType": "NONE",
}  # fmt: skip
PHILIPS = {
    "Manufacturer": "Philips Medical Systems",
    "CorrectedImage": ["DECY", "RADL", "ATTN", "SCAT", "DTIM", "RAN", "NORM"],
    "RandomsCorrectionMethod": "DLYD", "ScatterCorrectionMethod": "SS-SIMUL",
    "AttenuationCorrectionMethod": "CTAC-SG", "ReconstructionMethod": "BLOB-OS-TF",
}  # fmt: skip


@dataclass(frozen=True)
class VendorVariant:
    """How one kind of scanner fills its headers; times in s after the scan's start, to which decay is corrected."""

    vendor: dict  # attributes of its PET headers
    model: str
    pet_name: str  # SeriesDescription
    ct_name: str
    ct_kernel: str
    kvp: int
    units: str = "BQML"
    decay_correction: str = "START"
    series_s: int = 0  # SeriesTime
    first_bed_s: int = 1  # AcquisitionTime of the first bed position
    frame_time: bool = True  # FrameReferenceTime is the time of the frame's mean; else 0, as CPS and GE write it
    start_date: bool = True  # RadiopharmaceuticalStartDateTime; else StartTime alone
    head_first: bool = False  # InstanceNumber 1 is the slice nearest to the head
    one_slope: bool = False  # one RescaleSlope for the series; else one a slice
    fraction: str = ""  # what the vendor's times end with


_VARIANTS = {
    "siemens_series_time": VendorVariant(
        SIEMENS, "Biograph 40", "PET WB", "CT AC 3.0 B31f", "B31f", 130, fraction=".000000", head_first=True
    ),
    "siemens_acquisition_time": VendorVariant(
        SIEMENS, "Biograph128_mCT", "PET AC processed", "AC CT Body 3.0 B30f", "B30f", 120, series_s=LATE_S,
        first_bed_s=20, start_date=False, fraction=".000000",
    ),
    "ge_scan_time": VendorVariant(
        GE, "Discovery STE", "WB 3D AC", "CT AC", "STANDARD", 140, series_s=LATE_S, first_bed_s=15, frame_time=False,
        start_date=False, head_first=True, fraction=".00",
    ),
    "ge_admin": VendorVariant(
        GE, "Discovery 690", "MAC 3D WB", "CTAC STD", "STANDARD", 120, decay_correction="ADMIN", frame_time=False,
        head_first=True, fraction=".00",
    ),
    "philips_suv": VendorVariant(
        PHILIPS, "Allegro Body(C)", "WB AC", "CT Low Dose", "B", 120, units="CNTS", start_date=False
    ),
    "philips_activity": VendorVariant(
        PHILIPS, "GEMINI TF TOF 16", "WB CTAC", "CT WB LD", "B", 120, units="CNTS", head_first=True
    ),
    "philips_decay_time": VendorVariant(
        PHILIPS, "Ingenuity TF PET/CT", "CTAC Body", "CT Atten 3mm", "C", 140, series_s=-300, one_slope=True
    ),
    "gml": VendorVariant(
        SIEMENS, "Biograph64", "PET AC SUV bw", "CT AC 3.0 B19f", "B19f", 120, units="GML", one_slope=True
    ),
}  # fmt: skip
VARIANTS = tuple(_VARIANTS)


def write_study_ct(ct: Volume, folder: Path, subject: Subject, series_uid: str, time: str, variant: str) -> list[Path]:
    """An original CT series, HU, with the header of one of VARIANTS. Returns the paths, feet to head."""
    v = _variant(variant)
    header = ct_header(subject, series_uid, time)
    header.SeriesNumber = 2
    header.Manufacturer, header.ManufacturerModelName = v.vendor["Manufacturer"], v.model
    header.SoftwareVersions = f"petct_lib {__version__}"
    header.SeriesDescription, header.KVP, header.ConvolutionKernel = v.ct_name, v.kvp, v.ct_kernel
    slices = ct.array.shape[0]

    def number(ds: Dataset, k: int) -> None:
        ds.InstanceNumber = slices - k if v.head_first else k + 1

    return write_slices(header, ct, folder, change=number)


def write_study_pet(
    suv: Volume, folder: Path, subject: Subject, series_uid: str, tracer: Tracer, variant: str
) -> list[Path]:
    """An original PET series, given as SUV by body weight, stored in what one of VARIANTS stores; paths feet to head.

    `suv.suv_factor` of its headers gives the SUV back, by another rule for each variant. All bed positions are decay
    corrected to `tracer.scanned` (to the injection in ge_admin); injection and scan are on one day. Raises ValueError
    for an unknown variant, another unit, a subject without weight, or an injection after the scan.
    """
    v = _variant(variant)
    if suv.unit != "SUV" or not subject.weight_kg:
        raise ValueError(f"a PET in SUV and a weight are needed, not {suv.unit!r} and {subject.weight_kg} kg")
    header = _shared_header(v, subject, series_uid, tracer, suv.array.shape[0])
    scale = _special(header, variant, subject, tracer)
    scan_s, slices, slice_mm = _seconds(tracer.scanned), suv.array.shape[0], float(suv.spacing_mm[2])
    mean_s = _mean_time_s(BED_S, tracer.half_life_s)
    corrected_s = _uptake_s(tracer) if v.decay_correction == "ADMIN" else 0

    def time(ds: Dataset, k: int) -> None:
        bed_s = v.first_bed_s + BED_S * int(k * slice_mm // BED_MM)
        ds.AcquisitionTime = format_time(scan_s + bed_s) + v.fraction
        ds.FrameReferenceTime = round(1000 * (bed_s + mean_s), 6) if v.frame_time else 0
        ds.DecayFactor = round(2 ** ((corrected_s + bed_s + mean_s) / tracer.half_life_s), 6)
        ds.InstanceNumber = ds.ImageIndex = slices - k if v.head_first else k + 1

    return write_slices(header, suv, folder, scale=scale, one_slope=v.one_slope, change=time)


def _variant(name: str) -> VendorVariant:
    if name not in _VARIANTS:
        raise ValueError(f"variant {name!r} is unknown: it is one of {', '.join(VARIANTS)}")
    return _VARIANTS[name]


def _shared_header(v: VendorVariant, subject: Subject, series_uid: str, tracer: Tracer, slices: int) -> Dataset:
    """What all variants fill in, each with its own values."""
    header = pet_header(subject, series_uid, tracer, slices)
    for keyword, value in v.vendor.items():
        setattr(header, keyword, value)
    header.ManufacturerModelName, header.SoftwareVersions = v.model, f"petct_lib {__version__}"
    header.SeriesNumber, header.SeriesDescription = 3, v.pet_name
    header.Units, header.DecayCorrection = v.units, v.decay_correction
    header.SeriesTime = header.ContentTime = format_time(_seconds(tracer.scanned) + v.series_s) + v.fraction
    header.ActualFrameDuration = 1000 * BED_S
    [drug] = header.RadiopharmaceuticalInformationSequence
    drug.RadiopharmaceuticalStartTime += v.fraction
    if not v.start_date:
        del drug.RadiopharmaceuticalStartDateTime
    return header


def _special(header: Dataset, variant: str, subject: Subject, tracer: Tracer) -> float:
    """The attributes that one variant alone has; returns what is stored per SUV."""
    scanned = subject.date + tracer.scanned
    bqml = _bqml_per_suv(header, subject, tracer)
    match variant:
        case "ge_scan_time":
            header.private_block(GE_SCAN_TIME[0], "GEMS_PETD_01", create=True).add_new(
                GE_SCAN_TIME[1] & 0xFF, "DT", f"{scanned}.00"
            )
        case "philips_suv":
            per_count = float(f"{BQML_PER_COUNT / bqml:.6g}")  # as many digits as Philips writes
            _philips(header, {PHILIPS_SUV_FACTOR: per_count, PHILIPS_ACTIVITY_FACTOR: BQML_PER_COUNT})
            return 1 / per_count
        case "philips_activity":
            _philips(header, {PHILIPS_ACTIVITY_FACTOR: BQML_PER_COUNT})
            return bqml / BQML_PER_COUNT
        case "philips_decay_time":
            _philips(header, dict(zip((PHILIPS_SUV_FACTOR, PHILIPS_ACTIVITY_FACTOR), IGNORED_FACTORS, strict=True)))
            header.DecayCorrectionDateTime = scanned
        case "gml":
            header.SUVType = "BW"
            return 1.0
    return bqml


def _philips(header: Dataset, factors: dict[tuple[int, int], float]) -> None:
    block = header.private_block(PHILIPS_SUV_FACTOR[0], "Philips PET Private Group", create=True)
    for (_, element), value in factors.items():
        block.add_new(element & 0xFF, "DS", str(value))


def _bqml_per_suv(header: Dataset, subject: Subject, tracer: Tracer) -> float:
    """Dose, decayed to the time that the decay correction names, per g of the body; with the values as written."""
    decay_s = _uptake_s(tracer) if header.DecayCorrection == "START" else 0
    return round(tracer.dose_bq) * 2 ** (-decay_s / tracer.half_life_s) / (1000 * round(subject.weight_kg, 2))


def _uptake_s(tracer: Tracer) -> int:
    uptake_s = _seconds(tracer.scanned) - _seconds(tracer.injected)
    if uptake_s < 0:
        raise ValueError(f"the injection at {tracer.injected} is after the scan at {tracer.scanned}")
    return uptake_s


def _mean_time_s(duration_s: float, half_life_s: float) -> float:
    """When, after a frame's start, the decaying count rate is its mean over the frame."""
    x = math.log(2) / half_life_s * duration_s
    return duration_s * math.log(x / -math.expm1(-x)) / x


def _seconds(clock: str) -> int:
    return int(clock[:2]) * 3600 + int(clock[2:4]) * 60 + int(clock[4:6])


def format_time(seconds: int) -> str:
    """Seconds after midnight as DICOM writes a time, HHMMSS."""
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"
