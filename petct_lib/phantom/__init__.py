"""Seeded patients with their truth, in place of real ones.

shapes            distance fields, painted as labels on the CT's grid
tissues           HU and FDG uptake of each tissue
skeleton          spine, ribs, sternum, shoulder girdle and arms
vessels           the lung's vessels
anatomy           soft organs, and all shapes of a patient painted together
lesions           lesions in lung, hilum, mediastinum, pleura and bone, and how they change
benign_uptake     FDG uptake that is no tumour
person            one person: what the studies have in common
voxel_values      labels to HU and SUV before imaging
scanner           noise-free HU and SUV to a CT and a PET as measured
vendor_headers    series with the headers that the vendors' scanners write
truth             truth beside the DICOM: volumes as NIfTI, masks as SEG
reference_values  organs as measured in the images, beside what others measured in people
cohort            patients from all of these, written as DICOM
"""
