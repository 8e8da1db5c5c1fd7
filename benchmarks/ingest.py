"""Seconds and peak memory to turn DICOM studies into aligned float volumes: petct_lib, plain SimpleITK, and MONAI.

`make bench` runs it. Every method gets the same unpacked folders and ends with CT and PET as float32 arrays on the CT's
grid. Each measurement is a process of its own, method after method, round after round; the table gives the medians.
Imports are in nobody's time; SUV, checks and pairing are in ours, though the others do none of it.
"""

import argparse
import importlib
import json
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from report import in_process, peak_mb, row, show_and_save

STS = Path(__file__).parents[2] / "shared" / "data" / "sts"
PEERS = {"simpleitk": "plain SimpleITK script", "monai": "MONAI PydicomReader and ResampleToMatch"}
IMPORTS = {"ours": ("petct_lib.dicom.studies",), "simpleitk": ("SimpleITK",), "monai": ("monai.transforms", "pydicom")}
PHANTOM = {"ct_slice_mm": 1.5, "pet_slice_mm": 3.0, "follow_ups": 0.0}  # CT 512×512×200
Arrays = Iterator[tuple[np.ndarray, np.ndarray]]


def ours(root: Path) -> Arrays:
    """CT and PET of every study through the library, all checks included; SUV divided out again for the comparison."""
    from petct_lib.dicom.studies import find_pairs, load_pair
    from petct_lib.imaging.volume import resample

    for pair in find_pairs(root).pairs:
        study = load_pair(pair)
        pet = resample(study.pet, study.ct.grid, 0.0).array
        pet /= study.suv.factor
        yield study.ct.array, pet


def simpleitk(root: Path) -> Arrays:
    """The script that everybody writes, with the one setting that keeps PET from being rounded. No SUV, no checks."""
    import SimpleITK as sitk

    def read(folder: Path) -> sitk.Image:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        reader.SetOutputPixelType(sitk.sitkFloat32)
        return reader.Execute()

    for folder in studies(root):
        ct, pet = read(folder / "CT"), read(folder / "PT")
        pet = sitk.Resample(pet, ct, sitk.Transform(), sitk.sitkLinear, 0.0)
        yield sitk.GetArrayFromImage(ct), sitk.GetArrayFromImage(pet)


def monai(root: Path) -> Arrays:
    """MONAI's dictionary transforms. No SUV, no checks."""
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ResampleToMatchd

    load = Compose([
        LoadImaged(["ct", "pet"], reader="PydicomReader"), EnsureChannelFirstd(["ct", "pet"]),
        ResampleToMatchd("pet", key_dst="ct", mode="bilinear", padding_mode="zeros"),
    ])  # fmt: skip
    for folder in studies(root):
        data = load({"ct": str(folder / "CT"), "pet": str(folder / "PT")})
        yield data["ct"].numpy()[0], data["pet"].numpy()[0]


def studies(root: Path) -> list[Path]:
    """Folders with CT/ and PT/ in them."""
    return sorted(folder for folder in root.iterdir() if folder.is_dir())


def measure(method: str, root: Path) -> dict:
    """Seconds and peak memory of one method in this process, and sums that show that the methods agree."""
    for name in IMPORTS[method]:
        importlib.import_module(name)
    start, sums = time.perf_counter(), []
    for ct, pet in {"ours": ours, "simpleitk": simpleitk, "monai": monai}[method](root):
        sums.append([float(np.maximum(ct, -1024).mean(dtype=np.float64)), float(pet.mean(dtype=np.float64))])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_mb(), "sums": sorted(sums)}


def compare(root: Path, name: str, rounds: int) -> list[dict]:
    """Rows of seconds and peak memory against each peer, medians over rounds in which the methods take turns."""
    result = {method: [] for method in IMPORTS}
    for _ in range(rounds):
        for method, results in result.items():
            results.append(in_process(__file__, "--measure", method, str(root)))
    middle = {
        m: {key: statistics.median(r[key] for r in results) for key in ("seconds", "peak_mb")}
        for m, results in result.items()
    }
    rows = []
    for peer, peer_name in PEERS.items():
        if not np.allclose(result["ours"][0]["sums"], result[peer][0]["sums"], rtol=0.02, atol=1.0):
            raise SystemExit(f"{name}: ours and {peer_name} do not agree on the volumes")
        suffix = "" if peer == "simpleitk" else f"_{peer}"
        for key, unit in (("seconds", "s"), ("peak_mb", "MB")):
            a, b = middle["ours"][key], middle[peer][key]
            rows.append(row(f"{name}_{key}{suffix}", a, b, peer_name, unit))
    return rows


def preparation(root: Path) -> list[dict]:
    """`prepare` by one process and by one a core, and the same call again with nothing changed."""
    one, many = in_process(__file__, "--prepare", "1", str(root)), in_process(__file__, "--prepare", "0", str(root))
    return [
        row("prepare_seconds", many["seconds"], one["seconds"], "the same, one process", "s"),
        row("prepare_again_seconds", many["again"], many["seconds"], "the first time", "s"),
    ]


def measure_prepare(jobs: int, root: Path) -> dict:
    """Seconds of `prepare` at 256×256, slices every 3 mm, and of calling it again."""
    from petct_lib.data.prepare import SliceSettings, prepare

    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            prepare(root, Path(folder) / "prepared", SliceSettings(256, None, 3.0), jobs=jobs or None)
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[0], "again": seconds[1]}


def unpack_sts(folder: Path) -> Path:
    """The twelve real patients in the layout of the phantom; the peers cannot read zips."""
    for archive in sorted(STS.glob("*.zip")):
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                for kind, part in (("CT", "CT/image/"), ("PT", "PET/image/")):
                    if name.startswith(part) and not name.endswith("/"):
                        target = folder / archive.stem / kind / Path(name).name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(members.read(name))
    return folder


def main() -> None:
    """Writes the phantom to a temporary folder, measures, prints the table, and writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=3, help="phantom patients, CT 512×512×200 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each method (%(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, metavar=("JOBS", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
    elif args.prepare:
        print(json.dumps(measure_prepare(int(args.prepare[0]), Path(args.prepare[1]))))
    else:
        bench(args.patients, args.rounds)


def bench(patients: int, rounds: int) -> None:
    """All comparisons; those on the real patients only where they are there."""
    from petct_lib.phantom.cohort import phantom_settings, write_phantom

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = write_phantom(Path(folder) / "phantom", patients, 0, phantom_settings(**PHANTOM))
        (root / "truth.json").unlink()
        for beside in (root / "truth", *root.glob("*/SEG")):  # the peers cannot read these
            shutil.rmtree(beside)
        one = Path(folder) / "one"
        one.mkdir()
        studies(root)[0].rename(one / "study")
        rows += compare(one, "ingest", rounds)
        (one / "study").rename(root / "study")
        rows += preparation(root)
        if STS.is_dir():
            rows += compare(unpack_sts(Path(folder) / "sts"), "ingest_sts", rounds)
    show_and_save(rows)


if __name__ == "__main__":
    main()
