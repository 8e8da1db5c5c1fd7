"""`Volume` → DICOM series: the phantom's originals, and derived series that say that they are synthetic."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

from petct_lib import WARNING, __version__
from petct_lib.dicom.suv import SUV_TYPES
from petct_lib.imaging.volume import Volume

STORED_MAX = 32767  # PET is signed 16 bit
LABELS = {"HU": "CT", "SUV": "PET"}


@dataclass(frozen=True)
class Subject:
    """Who and where a series belongs to. All of it is written into the files: pass pseudonyms, not names."""

    patient_id: str
    study_uid: str
    frame_of_reference_uid: str
    date: str = "20000101"  # YYYYMMDD; a neutral date for derived series
    weight_kg: float | None = None
    size_m: float | None = None
    sex: str = "O"


@dataclass(frozen=True)
class Tracer:
    """The radiopharmaceutical and the clock of a PET series (times HHMMSS on the subject's date)."""

    dose_bq: float
    injected: str
    scanned: str
    half_life_s: float = 6586.2  # fluorine-18


def make_uid(*parts: object) -> str:
    """A UID that depends on its parts only, so that the same seed writes the same files."""
    return generate_uid(entropy_srcs=["|".join(str(p) for p in parts)])


def write_ct(volume: Volume, folder: Path, subject: Subject, series_uid: str, time: str = "100000") -> list[Path]:
    """An original CT series, one file a slice, uint16 with intercept −1024 HU. Returns the paths, feet to head."""
    return write_slices(ct_header(subject, series_uid, time), volume, folder)


def write_pet(volume: Volume, folder: Path, subject: Subject, series_uid: str, tracer: Tracer) -> list[Path]:
    """An original PET series in BQML (volume.unit "Bq/ml"), per-slice rescale slope, decay corrected to START.

    Returns the paths, feet to head. ValueError for another unit.
    """
    if volume.unit != "Bq/ml":
        raise ValueError(f"write_pet needs a volume in Bq/ml, not {volume.unit!r}")
    return write_slices(pet_header(subject, series_uid, tracer, volume.array.shape[0]), volume, folder)


def ct_header(subject: Subject, series_uid: str, time: str) -> Dataset:
    """What all slices of an original CT series share; for `write_slices`, which takes it as it is then."""
    base = _base(subject, series_uid, CTImageStorage, "CT", time)
    base.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    base.SeriesDescription = "CT thorax"
    base.PatientPosition = "HFS"
    base.KVP = 120
    base.AcquisitionNumber = 1
    return base


def pet_header(subject: Subject, series_uid: str, tracer: Tracer, slices: int) -> Dataset:
    """What all slices of an original PET series share: BQML, decay corrected to START at `tracer.scanned`."""
    base = _base(subject, series_uid, PositronEmissionTomographyImageStorage, "PT", tracer.scanned)
    base.ImageType = ["ORIGINAL", "PRIMARY"]
    base.SeriesDescription = "PET thorax AC"
    _pet_module(base, "BQML", slices)
    base.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"]
    base.DecayCorrection = "START"
    base.RadiopharmaceuticalInformationSequence = [_radiopharmaceutical(subject, tracer)]
    return base


def write_slices(
    header: Dataset,
    volume: Volume,
    folder: Path,
    *,
    scale: float = 1.0,
    one_slope: bool = False,
    change: Callable[[Dataset, int], None] | None = None,
) -> list[Path]:
    """One file a slice, CT or PET by the header's Modality, named by InstanceNumber. Returns the paths, feet to head.

    scale: what PET is stored as, per unit of the volume (Bq/ml per SUV, say). one_slope: one RescaleSlope for the whole
    PET, not one a slice. change: called with the data set of each slice and the slice's index, before it is written.
    """
    peak = float(np.abs(volume.array).max()) if one_slope else None
    paths = []
    for k in range(volume.array.shape[0]):
        ds = _ct_slice(header, volume, k) if header.Modality == "CT" else _pet_slice(header, volume, k, scale, peak)
        if change:
            change(ds, k)
        paths.append(_save(ds, folder))
    return paths


def write_derived(
    volume: Volume,
    folder: Path,
    subject: Subject,
    *,
    description: str,
    seed: str,
    number: int = 1,
    suv_kind: str = "bw",
) -> list[Path]:
    """A synthetic series (HU as CT, SUV as PET in GML): DERIVED, new UIDs, the warning in every file.

    ImageType continues with SECONDARY for CT, as befits what is no direct result of an examination (PS3.3 C.7.6.1.1.2),
    and with PRIMARY for PET, whose image module allows nothing else (C.8.9.4.1.2).

    description: what the series is ("synthetic CT from PET"); the warning is added to it. seed: makes the UIDs.
    suv_kind: a name of `suv.KINDS`, for SUVType. Returns the paths, feet to head. ValueError for another unit.
    """
    if volume.unit not in LABELS:
        raise ValueError(f"a derived series is in HU or SUV, not {volume.unit!r}")
    is_ct = volume.unit == "HU"
    sop_class = CTImageStorage if is_ct else PositronEmissionTomographyImageStorage
    base = _base(subject, make_uid(seed, description), sop_class, "CT" if is_ct else "PT", "000000")
    base.SeriesNumber = number
    base.ImageType = ["DERIVED", "SECONDARY", "AXIAL"] if is_ct else ["DERIVED", "PRIMARY"]
    base.SeriesDescription = f"{description[: 63 - len(WARNING)]} {WARNING}"  # 64 characters at most, the warning whole
    base.DerivationDescription = f"{description} by petct_lib {__version__}. {WARNING}"
    base.ImageComments = WARNING
    base.BurnedInAnnotation = "NO"
    if is_ct:
        base.PatientPosition = base.KVP = None
        base.AcquisitionNumber = None
    else:
        _pet_module(base, "CM2ML" if suv_kind == "bsa" else "GML", volume.array.shape[0])
        base.SUVType = next(name for name, kind in SUV_TYPES.items() if kind == suv_kind)
        base.CorrectedImage = ["DECY", "ATTN"]
        base.DecayCorrection = "START"
        base.RadiopharmaceuticalInformationSequence = []
    return write_slices(base, volume, folder)


def _base(subject: Subject, series_uid: str, sop_class: str, modality: str, time: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = sop_class
    ds.Modality = modality
    ds.PatientID = subject.patient_id
    ds.PatientName = subject.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = subject.sex
    if subject.weight_kg:
        ds.PatientWeight = round(subject.weight_kg, 2)
    if subject.size_m:
        ds.PatientSize = round(subject.size_m, 3)
    ds.StudyInstanceUID = subject.study_uid
    ds.StudyID = "1"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.SeriesInstanceUID = series_uid
    ds.SeriesNumber = 1
    ds.FrameOfReferenceUID = subject.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = subject.date
    ds.StudyTime = "000000"  # one for all series of a study
    ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = time
    ds.Manufacturer = "petct_lib"
    ds.ManufacturerModelName = "petct_lib"
    ds.SoftwareVersions = __version__
    ds.Laterality = ""  # unknown: the standard asks for it unless a body part is named
    return ds


def _pet_module(ds: Dataset, units: str, slices: int) -> None:
    ds.Units = units
    ds.CountsSource = "EMISSION"
    ds.SeriesType = ["STATIC", "IMAGE"]
    ds.NumberOfSlices = slices
    ds.PatientOrientationCodeSequence = []  # these two stand for PatientPosition in PET
    ds.PatientGantryRelationshipCodeSequence = []
    ds.FrameReferenceTime = 0
    ds.ActualFrameDuration = 120000
    ds.CollimatorType = "RING"
    ds.RandomsCorrectionMethod = "NONE"
    ds.AttenuationCorrectionMethod = "CT"
    ds.ScatterCorrectionMethod = "NONE"


def _radiopharmaceutical(subject: Subject, tracer: Tracer) -> Dataset:
    drug = Dataset()
    drug.Radiopharmaceutical = "FDG"
    drug.RadionuclideCodeSequence = []
    drug.RadionuclideTotalDose = round(tracer.dose_bq)
    drug.RadionuclideHalfLife = tracer.half_life_s
    drug.RadiopharmaceuticalStartTime = tracer.injected
    drug.RadiopharmaceuticalStartDateTime = subject.date + tracer.injected
    return drug


def _ct_slice(base: Dataset, volume: Volume, k: int) -> Dataset:
    ds = _geometry(base, volume, k)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    stored = np.clip(np.rint(volume.array[k] + 1024), 0, 65535).astype(np.uint16)
    return _pixels(ds, stored, signed=False)


def _pet_slice(base: Dataset, volume: Volume, k: int, scale: float, peak: float | None) -> Dataset:
    ds = _geometry(base, volume, k)
    peak = float(np.abs(volume.array[k]).max()) if peak is None else peak
    # DICOM's decimal strings hold 16 characters: use the slope as it will be read back.
    slope = float(f"{max(peak, 1e-6) * scale / STORED_MAX * 1.0001:.9e}")
    ds.RescaleSlope, ds.RescaleIntercept = slope, 0
    ds.DecayFactor = 1.0
    ds.ImageIndex = k + 1
    stored = np.clip(np.rint(volume.array[k] / (slope / scale)), -STORED_MAX, STORED_MAX).astype(np.int16)
    return _pixels(ds, stored, signed=True)


def _geometry(base: Dataset, volume: Volume, k: int) -> Dataset:
    ds = Dataset()
    ds.update(base)
    spacing = volume.spacing_mm
    direction = volume.affine[:3, :3] / spacing
    position = volume.affine @ [0, 0, k, 1]
    ds.ImageOrientationPatient = [_decimal(v) for v in (*direction[:, 0], *direction[:, 1])]
    ds.ImagePositionPatient = [_decimal(v) for v in position[:3]]
    ds.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]  # row spacing (y) first
    ds.SliceThickness = _decimal(spacing[2])
    ds.InstanceNumber = k + 1
    ds.SOPInstanceUID = make_uid(base.SeriesInstanceUID, k)
    return ds


def _decimal(value: float) -> float:
    return round(float(value), 6)


def _pixels(ds: Dataset, stored: np.ndarray, signed: bool) -> Dataset:
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(signed)
    ds.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _save(ds: Dataset, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    path = folder / f"{ds.InstanceNumber:04d}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path
