"""A trained run applied to images.

translator       slices and volumes through all stages, with samples, mean and spread
translate_study  a run applied to a DICOM study, and its export
"""
