"""What the C library does with freed memory, which on a processor costs a part of each training step."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3): names of its parameters
KEPT = 2**30  # bytes; chosen: more than any tensor of a training on a processor


def keep_freed_memory() -> bool:
    """From now on this process keeps freed blocks for its next ones; whether that could be set (glibc alone has it).

    By default glibc gives large blocks back to the system at once and gets the next ones page by page, each filled with
    zeros (`benchmarks/memory.py`).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return False
    return all([libc.mallopt(MMAP_THRESHOLD, KEPT), libc.mallopt(TRIM_THRESHOLD, KEPT)])
