"""Seconds a patient of scoring, against the same scores written plainly.

`make bench` runs it. Made-up patients: an ellipse of a body with lungs, ribs and hot lesions, and a translation that is
off by noise. Ours is `scoring.score_case`, all scores but LPIPS, over all cores, in both directions. The peer is what
a script would do: most of the same scores, slice by slice and region by region, with scikit-image, MONAI and SciPy.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric
from report import in_process, row, show_and_save
from scipy import ndimage
from skimage.metrics import structural_similarity

from petct_lib.common.parallel import parallel_map
from petct_lib.evaluation.cases import Case, add_regions
from petct_lib.evaluation.scoring import CT_RANGE_HU, score_case
from petct_lib.imaging.intensity import Intensity

VOXEL_MM = (3.27, 2.0, 2.0)


def patient(seed: int, *, slices: int, size: int) -> dict[str, np.ndarray]:
    """CT (HU) and PET (SUV) of one, with masks; all (slices, size, size)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[-1 : 1 : slices * 1j, -1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = (y / 0.55) ** 2 + (x / 0.8) ** 2 + 0 * z < 1
    lung = ((y / 0.4) ** 2 + ((abs(x) - 0.38) / 0.3) ** 2 + (z / 0.6) ** 2 < 1) & body
    bone = body & ~lung & ((y / 0.5) ** 2 + (x / 0.74) ** 2 + 0 * z > 1) & (z * 40 % 2 < 0.8)
    noise = ndimage.gaussian_filter(rng.standard_normal(body.shape, dtype=np.float32), 1) * 3
    lesion = np.zeros(body.shape, bool)
    for _ in range(4):
        k, i, j = (int(c) for c in rng.choice(np.argwhere(lung)))
        lesion[k - 3 : k + 3, i - 5 : i + 5, j - 5 : j + 5] = True
    lesion &= body
    ct = np.select([lesion, lung, bone, body], [40.0, -800.0, 700.0, 50.0], -1000.0) + 20 * noise
    pet = np.select([lesion, lung, body], [9.0, 0.5, 1.2], 0.0) + 0.1 * noise
    masks = {"body": body, "lung": lung, "bone": bone, "soft_tissue": body & ~lung & ~bone, "lesion": lesion}
    return {"ct": ct.astype(np.float32), "pet": pet.clip(0).astype(np.float32), **masks}


def case_of(seed: int, direction: str, *, slices: int, size: int) -> Case:
    """A patient with one translation: the real image, blurred, with noise."""
    output = patient(seed, slices=slices, size=size)
    source, real = (output.pop(kind) for kind in (("pet", "ct") if direction == "pet2ct" else ("ct", "pet")))
    rng = np.random.default_rng(1000 + seed)
    off = 60 if direction == "pet2ct" else 0.3
    image = ndimage.gaussian_filter(real, (0, 1, 1)) + off * rng.standard_normal(real.shape, dtype=np.float32)
    sources = dict.fromkeys(output, "HU threshold")
    case = Case(f"p{seed}", source, real, output, sources, {"mean": image}, voxel_mm=VOXEL_MM, kvp=120.0)
    return add_regions(case)


def ours(path: Path, direction: str) -> None:
    """All scores but LPIPS of the patient that lies there."""
    score_case(joblib.load(path), direction, Intensity())


def plain(path: Path, direction: str) -> None:
    """The same for a script: whole volumes, region after region, slice after slice, lesion after lesion."""
    case = joblib.load(path)
    low, high = CT_RANGE_HU if direction == "pet2ct" else (0.0, Intensity().suv_cap)
    real, image = (np.clip(a, low, high).astype(float) for a in (case.real, case.images["mean"]))
    for mask in case.masks.values():  # MAE, bias, RMSE and PSNR
        _ = np.abs(real - image)[mask].mean(), (image - real)[mask].mean(), ((real - image) ** 2)[mask].mean()
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for a, b, mask in zip(real, image, case.body, strict=True):
        structural_similarity(a, b, data_range=high - low, full=True, **wang)[1][mask].mean()
        rings = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * n for n in a.shape), indexing="ij")).astype(int).ravel()
        for stack in (a, b):
            np.bincount(rings, (np.abs(np.fft.fft2(stack)) ** 2).ravel())
    batch = [torch.from_numpy(np.where(case.body, a - low, 0))[None, None].float() for a in (real, image)]
    MultiScaleSSIMMetric(3, data_range=high - low, kernel_size=7)(*batch)
    for shift in np.ndindex(3, 3, 3):  # is it misregistration?
        np.abs(np.roll(image, np.array(shift) - 1, (0, 1, 2)) - real)[case.body].mean()
    labels, count = ndimage.label(case.masks["lesion"], np.ones((3, 3, 3)))
    for k in range(1, count + 1):
        _ = real[labels == k].max(), image[labels == k].max(), real[labels == k].mean(), image[labels == k].mean()


def main() -> None:
    """Measures each in a process of its own, prints the table, and adds it to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--peer-patients", type=int, default=2, help="of them, for the peer (%(default)s)")
    parser.add_argument("--slices", type=int, default=200, help="of each (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels along x and y (%(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, folder = args.measure
        paths = sorted(Path(folder).iterdir())
        work = partial({"ours": ours, "plain": plain}[what], direction=Path(folder).name)
        start = time.perf_counter()
        parallel_map(work, paths) if what == "ours" else [work(path) for path in paths[: args.peer_patients]]
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds / (len(paths) if what == "ours" else args.peer_patients)}))
        return
    rows = []
    for direction in ("pet2ct", "ct2pet"):
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base) / direction
            folder.mkdir()
            for seed in range(args.patients):
                joblib.dump(case_of(seed, direction, slices=args.slices, size=args.size), folder / f"{seed}.joblib")
            values = "--peer-patients", str(args.peer_patients)
            mine, peer = (in_process(__file__, *values, "--measure", what, str(folder)) for what in ("ours", "plain"))
        name = "score_seconds" if direction == "pet2ct" else "score_seconds_ct2pet"
        rows.append(row(name, mine["seconds"], peer["seconds"], "plain script, one process", "s"))
    show_and_save(rows)


if __name__ == "__main__":
    main()
