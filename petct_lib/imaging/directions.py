"""The two directions of translation, and what each has as source, target and unit."""

SOURCE = {"pet2ct": "pet", "ct2pet": "ct"}
TARGET = {"pet2ct": "ct", "ct2pet": "pet"}
UNIT = {"pet": "SUV", "ct": "HU"}
MODALITY = {"pet": "PT", "ct": "CT"}  # DICOM's

DIRECTIONS = ("pet2ct", "ct2pet")
