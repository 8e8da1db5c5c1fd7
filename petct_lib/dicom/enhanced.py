"""Enhanced (multi-frame) CT and PET: each frame's header, flattened into the attributes of a classic slice."""

from collections.abc import Iterable

from pydicom import Dataset
from pydicom.datadict import dictionary_VR

from petct_lib import InputError

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
FUNCTIONAL_GROUPS = (SHARED, PER_FRAME)
COPIED = {  # functional group → what a classic slice has at its top
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}
CONVERTED = ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence")
FRAME_TYPES = ("CTImageFrameTypeSequence", "PETFrameTypeSequence")
UNITS = {  # UCUM codes of DICOM PS3.16 CID 84 and 85 → Units and SUVType of a classic PET
    "Bq/ml": ("BQML", None), "{counts}": ("CNTS", None), "{SUVbw}g/ml": ("GML", "BW"), "{SUVlbm}g/ml": ("GML", "LBM"),
    "{SUVlbm(James128)}g/ml": ("GML", "LBMJAMES128"), "{SUVlbm(Janma)}g/ml": ("GML", "LBMJANMA"),
    "{SUVibw}g/ml": ("GML", "IBW"), "{SUVbsa}cm2/ml": ("CM2ML", "BSA"),
}  # fmt: skip


def frame_headers(header: Dataset) -> list[Dataset]:
    """The header of each frame with the keywords of a classic slice; a classic header is returned as it is.

    Source: DICOM PS3.3 C.7.6.16 (functional groups), C.8.15 (enhanced CT), C.8.22 (enhanced PET). Raises InputError
    for a multi-frame file without functional groups, or with more or fewer of them than frames.
    """
    frames, groups = str(header.get("NumberOfFrames") or 1), header.get(PER_FRAME) or ()
    if not groups:
        if frames != "1":
            raise InputError("a multi-frame file without functional groups: its frames have no position")
        return [header]
    if frames != str(len(groups)):
        raise InputError(f"a multi-frame file of {frames} frames with functional groups for {len(groups)}")
    shared = header.get(SHARED) or [Dataset()]
    top = Dataset()
    top.update({tag: header[tag] for tag in header.keys() if header[tag].keyword not in FUNCTIONAL_GROUPS})  # noqa: SIM118
    _classic_corrections(top)
    return [_flat(top, [shared[0], frame]) for frame in groups]


def _flat(top: Dataset, groups: list[Dataset]) -> Dataset:
    flat = Dataset()
    flat.update(top)
    for group in groups:
        for item in (i for name in CONVERTED for i in _items(group, name)):
            flat.update(item)  # legacy converted: what has no group of its own, private attributes too
        for name, keywords in COPIED.items():
            _copy(_items(group, name), keywords, flat)
        for item in (i for name in FRAME_TYPES for i in _items(group, name)):
            _set(flat, ImageType=item.get("FrameType", flat.get("ImageType")))
        for item in _items(group, "FrameContentSequence"):
            _classic_times(item, flat)
    for group in groups:  # after the others: it says what the values mean, and replaces their rescale
        _real_world(_items(group, "RealWorldValueMappingSequence"), flat)
    return flat


def _items(group: Dataset, name: str) -> Iterable[Dataset]:
    return group.get(name) or ()


def _copy(items: Iterable[Dataset], keywords: Iterable[str], flat: Dataset) -> None:
    for item in items:
        for keyword in keywords:
            if keyword in item:
                flat[keyword] = item[keyword]


def _set(flat: Dataset, **values: object) -> None:
    """New elements in the place of old ones, which may be shared with other frames and other files."""
    for keyword, value in values.items():
        flat.add_new(keyword, dictionary_VR(keyword), value)


def _classic_times(content: Dataset, flat: Dataset) -> None:
    moment = str(content.get("FrameAcquisitionDateTime", ""))
    if len(moment) >= 12:
        _set(flat, AcquisitionDate=moment[:8], AcquisitionTime=moment[8:].split("+")[0].split("-")[0])
    if content.get("FrameAcquisitionDuration"):
        _set(flat, ActualFrameDuration=round(content.FrameAcquisitionDuration))


def _classic_corrections(top: Dataset) -> None:
    """Enhanced PET says yes or no for each correction; classic PET has a list and one word for decay."""
    if top.get("AttenuationCorrected"):
        _set(top, CorrectedImage=["ATTN"] if top.AttenuationCorrected == "YES" else ["NONE"])
    if top.get("DecayCorrected"):
        _set(top, DecayCorrection="START" if top.DecayCorrected == "YES" else "NONE")


def _real_world(mappings: Iterable[Dataset], flat: Dataset) -> None:
    """The first mapping with units that are known here, of a PET; CT has its HU from the rescale."""
    if flat.get("Modality") != "PT":
        return
    for mapping in mappings:
        codes = mapping.get("MeasurementUnitsCodeSequence") or [Dataset()]
        code = codes[0].get("CodeValue") or codes[0].get("LongCodeValue")  # which is for more than 16 characters
        units, kind = UNITS.get(str(code), (None, None))
        if units and "RealWorldValueSlope" in mapping:
            slope, intercept = mapping.RealWorldValueSlope, mapping.get("RealWorldValueIntercept")
            _set(flat, Units=units, RescaleSlope=slope, RescaleIntercept=intercept)
            if kind:
                _set(flat, SUVType=kind)
            return
