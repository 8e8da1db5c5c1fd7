"""DICOM studies to volumes in SUV and HU, and back.

archives  the files of a folder, a zip, a zip in a zip, or a folder of zips
headers   files to series of images with their headers
pixels    the stored values of an image
enhanced  multi-frame CT and PET: each frame's header as a classic slice's
geometry  order of the slices and the stack's affine, from the headers alone
suv       SUV factors from PET headers
studies   studies of a PET and a CT, and reasons for what is left out
seg       masks from segmentations (SEG)
rtstruct  masks from structure sets (RTSTRUCT)
writer    volumes to DICOM series, derived ones marked as synthetic
"""
