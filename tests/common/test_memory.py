"""Freed memory stays with the process: what it computes does not change, the pages that it asks for do."""

import subprocess
import sys

import pytest

ASKED_FOR = """
import resource, sys, torch
from petct_lib.common.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
sums = []
for round in range(12):
    if round == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sums.append(torch.ones(16, 1024, 1024).add(1).sum().item())
assert set(sums) == {2.0 * 16 * 1024 * 1024}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(which):
    out = subprocess.run([sys.executable, "-c", ASKED_FOR, which], capture_output=True, text=True, check=True)
    return int(out.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_and_not_asked_for_again():
    given_back, kept = pages("as it is"), pages("kept")
    assert given_back > 1000
    assert kept < given_back / 2
