"""What imports cost: a programmer who wants SUV factors or scores does not wait for torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "matplotlib", "IPython", "SimpleITK", "highdicom", "papermill")


@pytest.mark.parametrize("module", ["petct_lib", "petct_lib.dicom.suv", "petct_lib.metrics.voxelwise"])
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
