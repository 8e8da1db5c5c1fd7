"""Small enhanced (multi-frame) CT and PET."""

from pathlib import Path

import pydicom
from pydicom import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, EnhancedPETImageStorage, ExplicitVRLittleEndian

from petct_lib.dicom.writer import make_uid

KEPT = [
    "Modality", "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "StudyDate",
    "FrameOfReferenceUID", "SeriesDate", "SeriesTime", "Manufacturer", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
]  # fmt: skip


def item(**values: object) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, Sequence([value]) if isinstance(value, Dataset) else value)
    return ds


def classic(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def save(ds: Dataset, path: Path) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def enhanced(slices: list[Dataset], sop_class: str, groups: list[Dataset], shared: Dataset) -> Dataset:
    """What both kinds share: the frames of classic slices, with the functional groups given and those of the plane."""
    ds = Dataset()
    for keyword in KEPT:
        ds[keyword] = slices[0][keyword]
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, make_uid("enhanced", *(s.SOPInstanceUID for s in slices))
    ds.ImageType, ds.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], len(slices)
    shared.PixelMeasuresSequence = [item(PixelSpacing=slices[0].PixelSpacing, SliceThickness=99)]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=slices[0].ImageOrientationPatient)]
    for group, one in zip(groups, slices, strict=True):
        group.PlanePositionSequence = [item(ImagePositionPatient=one.ImagePositionPatient)]
        time = f"{one.AcquisitionDate}{one.AcquisitionTime}.25+0100"
        group.FrameContentSequence = [item(FrameAcquisitionDateTime=time, FrameAcquisitionDuration=120000.0)]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], groups
    ds.PixelData = b"".join(s.PixelData for s in slices)
    ds["PixelData"].VR = "OW"
    return ds


def enhanced_ct(slices: list[Dataset]) -> Dataset:
    rescale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    kind = item(FrameType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE"])
    shared = item(PixelValueTransformationSequence=rescale, CTImageFrameTypeSequence=kind)
    return enhanced(slices, EnhancedCTImageStorage, [Dataset() for _ in slices], shared)


def mapping(unit: str, slope: float) -> Dataset:
    code = item(CodingSchemeDesignator="UCUM", CodeMeaning=unit)
    code.add_new("CodeValue" if len(unit) <= 16 else "LongCodeValue", "SH" if len(unit) <= 16 else "UC", unit)
    return item(MeasurementUnitsCodeSequence=code, RealWorldValueSlope=slope, RealWorldValueIntercept=0.0)


def enhanced_pet(slices: list[Dataset], unit: str = "Bq/ml", scale: float = 1.0) -> Dataset:
    """Stored values without a rescale of their own; each frame's mapping says what they mean."""
    groups = [item(RealWorldValueMappingSequence=mapping(unit, float(s.RescaleSlope) * scale)) for s in slices]
    rescale = item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")
    kind = item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    shared = item(PixelValueTransformationSequence=rescale, PETFrameTypeSequence=kind)
    ds = enhanced(slices, EnhancedPETImageStorage, groups, shared)
    ds.PatientWeight = 70
    ds.AttenuationCorrected = ds.DecayCorrected = "YES"
    ds.DecayCorrectionDateTime = "20190307100000"
    ds.SeriesTime = "113000"  # of the reconstruction, after the acquisition
    drug = item(RadionuclideTotalDose=4e8, RadionuclideHalfLife=3600)
    drug.RadiopharmaceuticalStartDateTime = "20190307090000"
    ds.RadiopharmaceuticalInformationSequence = [drug]
    return ds
