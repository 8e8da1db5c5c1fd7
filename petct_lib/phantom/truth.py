"""Truth beside the phantom's DICOM: volumes as compressed NIfTI, and masks as a DICOM Segmentation object (SEG)."""

import gzip
import struct
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.sr.coding import Code

from petct_lib import __version__
from petct_lib.common.files import atomic_write
from petct_lib.dicom.writer import make_uid
from petct_lib.imaging.nifti import RAS_TO_LPS
from petct_lib.imaging.volume import Volume, axial_affine

SUV_STEP = 0.001  # stored as int16 with this slope; coarser only for a volume with SUV above 32.767
INT16_MAX = 32767
GZIP_LEVEL = 1  # level 6 saves 1 % of a noisy CT, and takes eight times as long
SLOPE_AT, NOTE_AT, NOTE_BYTES = 112, 148, 80  # scl_slope and descrip in a NIfTI-1 header
SEG_NAMES = {
    "series_number": 300, "instance_number": 1, "series_description": "Phantom truth", "content_label": "TRUTH",
    "manufacturer": "petct_lib", "manufacturer_model_name": "petct_lib", "software_versions": __version__,
    "device_serial_number": "0",
}  # fmt: skip
CT_TAGS = ["SOPClassUID", "SOPInstanceUID"]
# Kind of a segment → its category and its type, both coded.
KINDS = {
    "lesion": (Code("49755003", "SCT", "Morphologically Altered Structure"), Code("52988006", "SCT", "Lesion")),
    "lung": (Code("123037004", "SCT", "Anatomical Structure"), Code("39607008", "SCT", "Lung")),
}


def write_nifti(volume: Volume, path: Path) -> Path:
    """A volume as .nii.gz: HU as int16, SUV as int16 with a slope (to 0.0005), masks and labels ("1") as uint8.

    Other programs read it in place. The same volume gives the same bytes. Raises ValueError for another unit.
    """
    stored, slope = _as_integers(volume)
    image = nibabel.Nifti1Image(stored.T, None)
    image.header.set_xyzt_units("mm")
    for form in (image.set_qform, image.set_sform):  # both, for programs read one or the other
        form(RAS_TO_LPS @ volume.affine, "scanner")
    content = bytearray(image.to_bytes())
    struct.pack_into("<f", content, SLOPE_AT, slope)
    struct.pack_into(f"{NOTE_BYTES}s", content, NOTE_AT, volume.unit.encode())
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(gzip.compress(content, GZIP_LEVEL, mtime=0))
    return Path(path)


def _as_integers(volume: Volume) -> tuple[np.ndarray, float]:
    """Stored values, and what they are multiplied by."""
    if volume.unit == "1":
        return volume.array.astype(np.uint8), 1.0
    if volume.unit not in ("HU", "SUV"):
        raise ValueError(f"a truth volume is in HU, SUV or 1, not {volume.unit!r}")
    step = 1.0 if volume.unit == "HU" else max(SUV_STEP, float(np.abs(volume.array).max()) / INT16_MAX)
    stored = volume.array * np.float32(1 / step)
    return np.clip(np.rint(stored, out=stored), -INT16_MAX, INT16_MAX).astype(np.int16), step


def write_seg(
    labels: Volume, segments: list[tuple[str, tuple[int, ...], str]], ct_files: list[Path], path: Path, seed: str
) -> Path:
    """One binary SEG of the CT series in `ct_files`, whose patient, study and frame of reference it takes over.

    labels: uint8 (z, y, x), on any grid. segments: (name, the label values that make it, kind of KINDS) of each;
    empty ones are left out, and segments may overlap. The frames are cut to the box of all segments, those without a
    voxel left out. seed: makes the UIDs. `seg.read_segments` finds lesions by their type, whatever their names, and
    lungs. Raises ValueError for an unknown kind, or where all segments are empty.
    """
    if unknown := {kind for _, _, kind in segments} - set(KINDS):
        raise ValueError(f"the kinds of segment {sorted(unknown)} are unknown: they are {', '.join(KINDS)}")
    counts = np.bincount(labels.array.ravel(), minlength=256)
    segments = [s for s in segments if counts[list(s[1])].sum()]
    if not segments:
        raise ValueError(f"no segment has a voxel; the labels are {np.flatnonzero(counts).tolist()}")
    masks = _cut(labels, [values for _, values, _ in segments])
    seg = _segmentation(masks, segments, ct_files, seed)
    with atomic_write(Path(path)) as temporary:
        seg.save_as(temporary)
    return Path(path)


def _cut(labels: Volume, wanted: list[tuple[int, ...]]) -> Volume:
    """A mask for each group of label values, all cut to their common box: uint8 (z, y, x, segment)."""
    tables = np.zeros((256, len(wanted)), np.uint8)
    for k, values in enumerate(wanted):
        tables[list(values), k] = 1
    any_of = tables.any(axis=1)[labels.array]
    spans = [np.flatnonzero(any_of.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    part = labels.array[tuple(slice(s[0], s[-1] + 1) for s in spans)]
    corner = axial_affine((1, 1, 1), np.array([s[0] for s in spans[::-1]]))
    return Volume(tables[part], labels.affine @ corner, "1")


def _segmentation(masks: Volume, segments: list, ct_files: list[Path], seed: str) -> Dataset:
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence  # slow to import
    from highdicom.seg import Segmentation, SegmentDescription

    source, affine, (x, y, z) = pydicom.dcmread(ct_files[0], stop_before_pixels=True), masks.affine, masks.spacing_mm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pseudonym has no family and given name
        seg = Segmentation(
            source_images=[source],
            pixel_array=masks.array,
            segmentation_type="BINARY",
            segment_descriptions=[
                SegmentDescription(k, name, *KINDS[kind], "MANUAL")  # AUTOMATIC asks for a published algorithm
                for k, (name, _, kind) in enumerate(segments, 1)
            ],
            series_instance_uid=make_uid(seed, "SEG"),
            sop_instance_uid=make_uid(seed, "SEG", 1),
            **SEG_NAMES,
            plane_positions=[
                PlanePositionSequence("PATIENT", affine[:3, 3] + k * affine[:3, 2]) for k in range(len(masks.array))
            ],
            plane_orientation=PlaneOrientationSequence("PATIENT", (affine[:3, :2] / [x, y]).T.ravel()),
            pixel_measures=PixelMeasuresSequence((y, x), z, spacing_between_slices=z),
        )
    # The study's date and a UID of the seed for today's and a random one: the same arguments write the same bytes.
    seg.ContentDate, seg.ContentTime, seg.ContentCreatorName = source.StudyDate, source.StudyTime, ""
    seg.InstanceCreationDate, seg.InstanceCreationTime = source.StudyDate, source.StudyTime
    for item in [*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence]:
        item.DimensionOrganizationUID = make_uid(seed, "SEG", "dimensions")
    for item in seg.ContributingEquipmentSequence:
        item.pop("ContributionDateTime", None)
    seg.SourceImageSequence = [_reference(path) for path in ct_files]
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(seg.SourceImageSequence)
    return seg


def _reference(path: Path) -> Dataset:
    head, item = pydicom.dcmread(path, specific_tags=CT_TAGS, stop_before_pixels=True), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = head.SOPClassUID, head.SOPInstanceUID
    return item
