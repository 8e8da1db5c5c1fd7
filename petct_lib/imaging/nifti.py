"""NIfTI files to volumes."""

from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from petct_lib import InputError
from petct_lib.imaging.volume import Volume

NIFTI = (".nii", ".nii.gz")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's patient axes to DICOM's


def read_nifti(path: Path, unit: str) -> Volume:
    """A volume from NIfTI as float32, axes and affine as DICOM has them: axial slices from the feet upwards, in LPS.

    unit: what its values are in, "HU", "SUV", or "1" for masks and labels; a NIfTI file does not say it. InputError
    for what is none, is not three-dimensional, or holds values that are not finite.
    """
    try:  # nibabel, for SimpleITK makes zeros of what is not finite, and says nothing
        image = nibabel.load(path)
        if image.ndim == 3:
            image = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS")))
        array = np.asarray(image.dataobj, np.float32)  # (x, y, z)
    except Exception as error:  # a stranger's file may break any part of the reader
        raise InputError(f"cannot be read as NIfTI ({type(error).__name__})", path.name) from None
    if array.ndim != 3:
        raise InputError(f"has {array.ndim} dimensions and is no volume", path.name)
    if bad := np.count_nonzero(~np.isfinite(array)):
        raise InputError(f"has {bad} values that are not finite", path.name)
    return Volume(np.ascontiguousarray(array.T), RAS_TO_LPS @ image.affine, unit)
