"""A trained run applied to a DICOM study, and its translations as derived DICOM series."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from petct_lib import InputError
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.prepare import FILL, Prepared
from petct_lib.dicom import writer
from petct_lib.dicom.archives import list_files
from petct_lib.dicom.headers import LeftOut, Series, read_series
from petct_lib.dicom.studies import (
    count_reasons,
    explain_unusable,
    load_series,
    pseudonym,
    remove_localizers,
    study_patient,
)
from petct_lib.dicom.suv import suv_factor
from petct_lib.imaging.directions import DIRECTIONS, MODALITY, SOURCE, TARGET, UNIT
from petct_lib.imaging.volume import Volume, axial_grid, resample
from petct_lib.inference.translator import STEPS, Translation, Translator


def export(
    translation: Translation, affine: np.ndarray, direction: str, folder: Path, subject: writer.Subject, seed: str,
    suv_kind: str,
) -> None:  # fmt: skip
    """Writes `image/` and `spread/` as derived DICOM series under `folder`, marked as synthetic."""
    kind = TARGET[direction]
    name = f"{kind.upper()} from {SOURCE[direction].upper()}"
    for number, (part, array, what) in enumerate(
        (("image", translation.image, name), ("spread", translation.spread, f"spread of {name}")), start=1
    ):
        volume = Volume(array, affine, UNIT[kind])
        writer.write_derived(
            volume, folder / part, subject, description=what, seed=seed, number=number, suv_kind=suv_kind
        )


def export_patient(
    run_dir: Path, prepared: Prepared, patient: str, result: Translation, direction: str, made_by: str
) -> None:
    """A patient's translation, study by study, to `run_dir/synthetic/<patient>/<direction>/`.

    made_by: all that the pixels depend on beside the study (weights, samples, seed): it goes into the UIDs.
    """
    folder, first = RunFolder(run_dir).synthetic / patient / direction, 0
    studies = prepared.studies([patient])
    for study in studies:
        row = prepared.row(study)
        part = slice(first, first + row["slices"])
        one = Translation(result.coarse[part], result.image[part], result.spread[part])
        seed = f"{prepared.fingerprint}|{study}|{direction}|{made_by}"
        subject = writer.Subject(patient, writer.make_uid("study", seed), row["frame_of_reference_uid"])
        place = folder / study if len(studies) > 1 else folder
        export(one, np.array(row["affine"]), direction, place, subject, seed, prepared.index["grid"]["suv_kind"])
        first = part.stop


def read_source(path: Path, direction: str, suv_kind: str = "bw") -> tuple[Volume, Series]:
    """The source volume of a study and its series; only the source modality has to be there.

    Of several series the one with most slices is taken that can be read. Raises InputError where there is none, or
    where `path` holds several studies.
    """
    modality = MODALITY[SOURCE[direction]]
    all_series, left_out = read_series(list_files(path))
    usable = [s for s, _ in map(remove_localizers, all_series) if s.modality == modality and not explain_unusable(s)]
    if len({s.get("StudyInstanceUID") for s in usable}) > 1:
        raise InputError(f"{path}: holds {modality} series of several studies; name the folder of one study")
    for series in sorted(usable, key=lambda s: (-len(s.images), s.uid)):
        try:
            factor = suv_factor(series.headers, suv_kind).factor if modality == "PT" else 1.0
            return load_series(series, factor, UNIT[SOURCE[direction]]), series
        except InputError as error:
            left_out.append(LeftOut(series.label, str(error)))
    why = count_reasons(left_out) or f"{len(all_series)} series of other kinds"
    raise InputError(f"{path}: no usable {modality} series for {direction} ({why})")


def translate_study(
    path: Path, run_dir: Path, direction: str, out: Path, *, mode: str = "mean", samples: int | None = None,
    steps: int = STEPS, seed: int = 0, without_coarse: bool = False, progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[np.ndarray, Translation]:  # fmt: skip
    """A trained run applied to a DICOM study: derived series under `out`; returns the source and the translation.

    The study is resampled to the run's grid, on which both come back, (n, H, W) in SUV and HU (its pixel size stays in
    the files). All else as for `Translator`. Raises InputError for unusable input, a missing run, or an `out` that is
    not empty.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction {direction!r}: it must be one of {', '.join(DIRECTIONS)}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; name another folder")
    translator = Translator(run_dir)
    g = translator.grid
    volume, series = read_source(path, direction, g["suv_kind"])
    corners = volume.corners_mm()
    grid = axial_grid(corners.min(axis=0), corners.max(axis=0), g["size"], g["fov_mm"], g["slice_mm"])
    source = resample(volume, grid, FILL[SOURCE[direction]]).array
    settings = {"mode": mode, "samples": samples, "steps": steps, "seed": seed, "without_coarse": without_coarse}
    translation = translator(source, direction, **settings, progress=progress)
    made_from = f"{series.uid}|{translator.identity(direction)}|{settings}"
    patient = pseudonym(study_patient([series]), series.uid)
    frame = str(series.get("FrameOfReferenceUID"))
    subject = writer.Subject(patient, writer.make_uid("study", made_from), frame)
    export(translation, grid.affine, direction, out, subject, made_from, g["suv_kind"])
    return source, translation
