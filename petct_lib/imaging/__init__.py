"""Volumes, slices and intensities: the words that all other packages share.

directions  PET→CT and CT→PET: source, target and unit of each
volume      an array with affine and unit; resampling in patient space; the body's mask
masks       lung, soft tissue and bone by HU thresholds, lesions as drawn; for scoring only
nifti       NIfTI files to volumes
intensity   HU and SUV to the networks' range and back
mu_map      attenuation at 511 keV from HU
slices      neighbours of a slice, the middle one, some evenly spaced
spectrum    how much of each spatial frequency is in an image, and a filter by frequency
"""
