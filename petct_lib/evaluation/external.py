"""Anyone's synthetic images against the real ones: `python -m petct_lib score PRED REF --out DIR`.

DICOM series or NIfTI volumes of any translator, a patient or a folder of patients, by this project's scores or by those
of SynthRAD2025. The masks come from the real images and are for scoring only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from petct_lib import InputError, __version__
from petct_lib.common.files import write_json
from petct_lib.common.parallel import parallel_map
from petct_lib.data.prepare import FILL
from petct_lib.dicom import studies
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import read_series
from petct_lib.dicom.suv import suv_factor
from petct_lib.evaluation import cases, scoring, tables
from petct_lib.imaging.directions import MODALITY, UNIT
from petct_lib.imaging.intensity import Intensity
from petct_lib.imaging.masks import FROM_HU, find_regions
from petct_lib.imaging.nifti import NIFTI, read_nifti
from petct_lib.imaging.volume import Volume, body_mask, extent_mask, resample
from petct_lib.metrics import synthrad
from petct_lib.metrics.rows import Row

DIRECTION = {"ct": "pet2ct", "pet": "ct2pet"}  # whose target this is; the rows name the kind, whatever it was made from
PROTOCOLS = ("petct", "synthrad2025")
FROM_FILE = "mask file"
WHOLE = 99.0  # % of the real body: below it, the command says what was scored
GRID_MM = 1e-3  # grids that lie no further apart are one


@dataclass(frozen=True)
class Images:
    """One patient's files. mask: NIfTI of the body; ct: for the body of a PET. Both may be left out."""

    patient: str
    synthetic: Path
    real: Path
    mask: Path | None = None
    ct: Path | None = None


def find_images(pred: Path, ref: Path, mask: Path | None = None, ct: Path | None = None) -> list[Images]:
    """The patients of PRED and REF: one, or where REF is a folder of NIfTI files or of folders, one an entry.

    Entries belong together by their names without suffix. Patients are numbered in the order of the names, which may
    identify someone and go into no file. Raises InputError where PRED (or a mask or CT folder) lacks an entry of REF:
    scores of the patients that a translator got through are no scores of the translator.
    """
    paths = {"PRED": pred, "REF": ref, "--mask": mask, "--ct": ct}
    for name, path in paths.items():
        if path is not None and not path.exists():
            raise InputError(f"{name} {path}: there is no such file or folder")
    names = _entries(ref)
    if not names:
        return [Images("1", pred, ref, mask, ct)]
    by_name = {name: _entries(path) for name, path in paths.items() if path is not None}
    for name, entries in by_name.items():
        if missing := sorted(set(names) - set(entries)):
            raise InputError(
                f"{name} {paths[name]}: lacks {len(missing)} of REF's {len(names)}: {', '.join(missing[:5])}"
            )
    return [
        Images(str(k), *(by_name[name][entry] if name in by_name else None for name in paths))
        for k, entry in enumerate(sorted(names), start=1)
    ]


def _entries(path: Path) -> dict[str, Path]:
    """By name, the NIfTI files of a folder, else its folders where it holds nothing else; {} for one patient's."""
    if not path.is_dir():
        return {}
    inside_it = [p for p in path.iterdir() if not p.name.startswith(".")]
    files = {p.name.split(".nii")[0]: p for p in inside_it if p.name.endswith(NIFTI)}
    return files or ({p.name: p for p in inside_it} if all(p.is_dir() for p in inside_it) else {})


def read_image(path: Path, kind: str, suv_kind: str = "bw") -> tuple[Volume, float | None]:
    """A NIfTI file in HU or SUV, or the one CT or PET series in a folder or zip of DICOM; with the KVP, if known.

    kind: "ct" or "pet". Raises InputError for what cannot be read, and for a folder of several such series.
    """
    if path.name.endswith(NIFTI):
        return read_nifti(path, UNIT[kind]), None
    series, left_out = read_series(list_files(path))
    usable = [s for s in series if s.modality == MODALITY[kind]]
    if len(usable) != 1:
        why = f"; {studies.count_reasons(left_out)}" if left_out else ""
        raise InputError(
            f"holds {len(usable)} {MODALITY[kind]} series, and one is needed: name its folder{why}", path.name
        )
    factor = suv_factor(usable[0].headers, suv_kind).factor if kind == "pet" else 1.0
    return studies.load_series(usable[0], factor, UNIT[kind]), studies.tube_voltage(usable[0])


def load_patient(images: Images, kind: str, suv_kind: str = "bw") -> tuple[cases.Case, float]:
    """A patient on the real image's grid; the synthetic one is resampled to it where its own is another.

    Only what both images hold is scored; the second value is the share of the real body that it is. Body, lung, soft
    tissue and bone come from the real CT (of a PET, from `ct`), or the body alone from `mask`. Raises
    InputError without one of them, and where nothing is left to score.
    """
    real, kvp = read_image(images.real, kind, suv_kind)
    real = orient_upwards(real)
    synthetic = orient_upwards(read_image(images.synthetic, kind, suv_kind)[0])
    seen = np.ones(real.array.shape, bool)
    if not _same_grid(real, synthetic):
        seen = extent_mask(synthetic, real.grid)
        synthetic = resample(synthetic, real.grid, FILL[kind])
    masks, sources = _masks(images, real, kind)
    voxel_mm = tuple(float(v) for v in real.spacing_mm[::-1])
    stacks = {"synthetic": synthetic.array}
    case = cases.Case(images.patient, None, real.array, masks, sources, stacks, voxel_mm=voxel_mm, kvp=kvp)
    case = cases.add_regions(case)  # before anything is cut: the lungs' base must be the real one
    coverage = float(seen[case.body].mean()) if case.body.any() else 0.0
    if not coverage:
        raise InputError("the images share no voxel of the body", images.real.name)
    return replace(case, masks={name: mask & seen for name, mask in case.masks.items()}), coverage


def orient_upwards(volume: Volume) -> Volume:
    """The same with its slices from the feet to the head."""
    if volume.affine[2, 2] >= 0:
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (len(volume.array) - 1)
    affine[:3, 2] *= -1
    return Volume(np.ascontiguousarray(volume.array[::-1]), affine, volume.unit)


def _same_grid(a: Volume, b: Volume) -> bool:
    return a.array.shape == b.array.shape and np.allclose(a.corners_mm(), b.corners_mm(), atol=GRID_MM)


def _masks(images: Images, real: Volume, kind: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if images.mask:
        mask = read_nifti(images.mask, "1")
        body = resample(Volume(mask.array > 0, mask.affine, "1"), real.grid, 0.0).array
        return {"body": body}, {"body": FROM_FILE}
    if kind == "pet" and not images.ct:
        raise InputError("a PET needs the body's outline, or air would count: give --ct (a CT) or --mask (NIfTI)")
    ct = real if kind == "ct" else read_image(images.ct, "ct")[0]
    masks = {name: resample(r.mask, real.grid, 0.0).array for name, r in find_regions(ct, body_mask(ct), {}).items()}
    return masks, dict.fromkeys(masks, FROM_HU)


def score_images(
    images: Images, kind: str, protocol: str = "petct", lpips_model: object = None, suv_kind: str = "bw"
) -> list[Row]:
    """The rows of one patient; `direction` holds the kind, for it is not known what the image was made from.

    kind: "ct" or "pet"; protocol: one of PROTOCOLS. InputError for images that cannot be read, without a mask or CT
    where one is needed, where nothing is left to score, and for images that a score has no answer for, as constant
    ones.
    """
    case, coverage = load_patient(images, kind, suv_kind)
    if protocol == "synthrad2025":
        challenge = synthrad.score_synthrad(case.real, case.images["synthetic"], case.body)
        units = {"mae": "HU", "psnr": "dB", "ms_ssim": "1"}
        rows = [{"region": "body", "metric": name, "value": value, "unit": units[name], "mask": case.sources["body"]}
                for name, value in challenge.items() if np.isfinite(value) or name != "ms_ssim"]  # fmt: skip
    else:
        try:
            rows = scoring.score_case(case, DIRECTION[kind], Intensity(), lpips_model)
        except ValueError as error:  # images that a score has no answer for, as a real one that is constant
            raise InputError(str(error), images.real.name) from None
    covered = {"metric": "coverage", "value": 100 * coverage, "unit": "%", "mask": case.sources["body"]}
    rows = [*rows, {"region": "body", **covered}]
    return [{**row, "direction": kind, "method": "synthetic", "patient": images.patient} for row in rows]


def score_all(
    images: Sequence[Images], out: Path, *, kind: str, protocol: str = "petct", suv_kind: str = "bw",
    lpips_model: object = None, progress: Callable = iter,
) -> tuple[list[Row], dict[str, InputError]]:  # fmt: skip
    """All patients, into `out`: scores.csv, metrics.json, protocol.json. Returns the rows, and why some have none.

    No name of a file goes into these. Raises InputError where `out` is not empty, for an unknown protocol, for a PET by
    SynthRAD's, and where no patient can be scored.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: it must be one of {', '.join(PROTOCOLS)}")
    if protocol == "synthrad2025" and kind != "ct":
        raise InputError("--protocol synthrad2025: is for CT; a PET has no HU")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name another folder")
    work = partial(score_images, kind=kind, protocol=protocol, lpips_model=lpips_model, suv_kind=suv_kind)
    results = parallel_map(work, images, progress=progress)
    failed = {i.patient: r for i, r in zip(images, results, strict=True) if isinstance(r, InputError)}
    rows = [row for result in results if not isinstance(result, InputError) for row in result]
    if not rows:
        raise InputError(f"no patient could be scored: {'; '.join(map(without_paths, failed.values()))}")
    out.mkdir(parents=True, exist_ok=True)
    tables.write_scores(rows, out / "scores.csv")
    tables.write_metrics(rows, out / "metrics.json")
    write_json(
        {"protocol": protocol, "kind": kind, "petct_lib": __version__,
         "left_out": {patient: str(error) for patient, error in failed.items()}}, out / "protocol.json",
    )  # fmt: skip
    return rows, failed


def without_paths(error: InputError) -> str:
    """The message, with the file's name before it: for the owner of the files."""
    return f"{error.where}: {error}" if error.where else str(error)
