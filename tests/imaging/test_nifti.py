"""Volumes from NIfTI, in DICOM's axes whatever the file's."""

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from petct_lib import InputError
from petct_lib.imaging.nifti import RAS_TO_LPS, read_nifti

LPS = np.array([[2.0, 0, 0, -50], [0, 3.0, 0, -40], [0, 0, 5.0, 10], [0, 0, 0, 1]])  # x, y, z, mm
STACK = np.random.default_rng(0).normal(0, 100, (4, 5, 6)).astype(np.float32)  # (z, y, x)


def written(path, axes="LPS", array=STACK):
    image = nibabel.Nifti1Image(array.T, RAS_TO_LPS @ LPS)
    nibabel.save(image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes))), path)
    return path


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAI", "SPL", "AIR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_order_of_the_axes_gives_the_same_volume(tmp_path, axes, suffix):
    volume = read_nifti(written(tmp_path / f"a{suffix}", axes), "HU")
    assert volume.unit == "HU"
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, STACK)
    np.testing.assert_allclose(volume.affine, LPS, atol=1e-4)


def test_what_is_no_volume_is_refused(tmp_path):
    holes = STACK.copy()
    holes[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(STACK[0], np.eye(4)), tmp_path / "flat.nii")
    (tmp_path / "text.nii").write_text("not NIfTI")
    for name, message in (
        ("flat", "2 dimensions"),
        ("text", "cannot be read as NIfTI"),
        ("holes", "1 values that are"),
    ):
        if name == "holes":
            written(tmp_path / "holes.nii", array=holes)
        with pytest.raises(InputError, match=message) as refused:
            read_nifti(tmp_path / f"{name}.nii", "HU")
        assert refused.value.where == f"{name}.nii"
