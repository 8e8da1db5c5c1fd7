"""Seconds and peak memory of the phantom: a clinical patient, a set as DICOM, a projection against scikit-image.

`make bench` runs it. Each measurement is a process of its own; the table gives the medians. The peer of the patient is
the same code without its own threads, that of the set the same code in one process, that of the projection is
`skimage.transform.radon`, slice after slice.
"""

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from report import in_process, peak_mb, row, show_and_save

CLINICAL = {"ct_slice_mm": 1.5, "pet_slice_mm": 3.0}  # CT 512×512×200, PET 168×168×100
QUICK = {"ct_size": 320, "ct_pixel_mm": 1.4}  # the quick profile's
ANGLES, PIXEL_MM = 96, 4.07


def patient(cores: int) -> None:
    """One patient's volumes, nothing written."""
    from petct_lib.phantom.cohort import make_patient, phantom_settings

    if cores:
        os.cpu_count = lambda: cores
    make_patient(0, 1, phantom_settings(**CLINICAL))


def set_of_8(jobs: int) -> None:
    """Eight patients and their follow-ups, written as DICOM with their truth."""
    from petct_lib.phantom.cohort import phantom_settings, write_phantom

    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder) / "set", 8, 0, phantom_settings(**QUICK), jobs=jobs or None)


def slices() -> np.ndarray:
    """75 slices of a disc in a square of 104 pixels."""
    y, x = np.mgrid[:104, :104] - 51.5
    return np.repeat((np.hypot(x, y) < 45).astype(np.float32)[None], 75, axis=0)


def projection(radon: int) -> None:
    """All slices projected, the system matrix made as well."""
    if radon:
        from skimage.transform import radon as project

        angles = np.linspace(0, 180, ANGLES, endpoint=False)
        np.stack([project(image, angles, circle=True) for image in slices()])
    else:
        from petct_lib.phantom.scanner import system_matrix

        system_matrix((104, 104), PIXEL_MM, ANGLES) @ slices().reshape(75, -1).T


WHAT = {"patient": patient, "set": set_of_8, "projection": projection}
PEERS = {
    "patient": "the same, slab after slab",
    "set": "the same, one process",
    "projection": "skimage.transform.radon",
}


def measure(what: str, peer: int) -> dict:
    """Seconds without imports, and MB at the most."""
    for name in ("petct_lib.phantom.cohort", "skimage.transform", "highdicom.seg"):
        importlib.import_module(name)
    start = time.perf_counter()
    WHAT[what](peer)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def main() -> None:
    """Measures ours and the peer by turns, prints the table, and adds it to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (%(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PEER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], int(args.measure[1]))))
        return
    rows = []
    for what, peer_name in PEERS.items():
        result = [[in_process(__file__, "--measure", what, peer) for peer in "01"] for _ in range(args.rounds)]
        for key, unit in (("seconds", "s"), ("peak_mb", "MB"))[: 1 if what == "set" else 2]:  # memory is one process's
            mine, peer = (statistics.median(both[k][key] for both in result) for k in (0, 1))
            rows.append(row(f"phantom_{what}_{key}", mine, peer, peer_name, unit))
    show_and_save(rows)


if __name__ == "__main__":
    main()
