"""Runs: profiles, the notebook pipeline through papermill, and the manifest of what was done."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch

from petct_lib import InputError, __version__
from petct_lib.common.files import atomic_write, read_json, write_json
from petct_lib.common.progress import PLAIN, progress_bar
from petct_lib.common.run_folder import RunFolder
from petct_lib.data.prepare import Prepared, input_key
from petct_lib.data.splits import ROLES
from petct_lib.dicom.studies import count_reasons, find_pairs
from petct_lib.evaluation.tables import format_table, read_scores
from petct_lib.experiments.profiles import NOTEBOOK_DIR, NOTEBOOKS, load_params
from petct_lib.experiments.report import write_report

DEFAULT_RUN = NOTEBOOK_DIR.parent / "runs" / "notebooks"  # the `run_dir` that the notebooks are committed with
MAKES = {  # what each notebook leaves in the run folder for the next ones
    "01_data_exploration": "splits.json",
    "02_cyclegan_training": "checkpoints/cyclegan.pt",
    "03_diffusion_refinement": "checkpoints/flow_ct2pet.pt",  # trained last
}
CELL_TIMEOUT_S = 14 * 24 * 3600  # a full training is one cell
PACKAGES = ("torch", "numpy", "scipy", "pydicom", "nibabel", "scikit-image", "accelerate", "lpips", "papermill")


def run_all(
    profile: str, data: str, out: Path, *, overrides: Sequence[str] = (), until: str = NOTEBOOKS[-1],
    resume: bool = False, force: bool = False,
) -> None:  # fmt: skip
    """The four notebooks in order into the run folder `out`; prints the table, the seconds by stage and the folder.

    overrides: see `load_params`. until: the last notebook to run; `resume` continues the run. A finished run of the
    same settings is only shown again. InputError, and no change anywhere, for bad input, for a run of other settings in
    `out` (unless `force`), and for an unfinished one (unless `resume`).
    """
    if until not in NOTEBOOKS:
        raise InputError(f"--until {until}: it must be one of {', '.join(NOTEBOOKS)}")
    params = load_params(profile, overrides)
    data = data if data == "phantom" else str(Path(data).resolve())
    request = {"profile": profile, "parameters": params, "data_source": data, "data_key": None}
    if data != "phantom":
        request |= {"data_source": Path(data).name, "data_key": input_key(Path(data))}
    manifest = _open_run(out, request, resume, force)
    if not manifest["finished"]:
        if data != "phantom":
            check_input(Path(data))
        _run_notebooks(params, data, out, manifest, until)
    if manifest["finished"]:
        write_report(out)
    print(format_summary(out) if manifest["finished"] else f"ran until {until}; --resume goes on: {out}")


def fork(
    source: Path, out: Path, profile: str, data: str, overrides: Sequence[str], *, until: str
) -> None:  # fmt: skip
    """A new run folder with other settings that shares what the notebooks up to `until` made in a run that did them.

    Files are hard links where the file system has them. `run_all` with the same settings and `resume` continues it.
    The caller sees to it that those notebooks have the same settings.
    """
    shared = NOTEBOOKS[: NOTEBOOKS.index(until) + 1]
    networks = {NOTEBOOKS[0]: [], NOTEBOOKS[1]: ["checkpoints/cyclegan*"]}.get(until, ["checkpoints/*"])
    manifest = read_json(RunFolder(source).manifest)
    with atomic_write(out) as temporary:
        new = RunFolder(temporary)
        new.checkpoints.mkdir(parents=True)
        shutil.copytree(RunFolder(source).prepared, new.prepared, copy_function=_link)
        for path in chain.from_iterable(map(source.glob, ["*.json", *networks])):
            _link(path, temporary / path.relative_to(source))
        request = {"profile": profile, "parameters": load_params(profile, overrides)}
        write_json({**manifest, **request, "finished": False, "done": list(shared), "seconds": {}}, new.manifest)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def check_input(path: Path) -> None:
    """Headers only: raises InputError where `path` holds no usable PET/CT pair or too few patients for the splits."""
    pairs, left_out, _ = find_pairs(path, lambda items: progress_bar(items, "reading headers"))
    if not pairs:
        raise InputError(f"{path}: no usable PET/CT pair; {count_reasons(left_out)}")
    patients = {pair.patient for pair in pairs}
    if len(patients) < len(ROLES):
        raise InputError(
            f"{path}: {len(patients)} patients with a usable PET/CT pair; the split into {', '.join(ROLES)} "
            f"needs at least {len(ROLES)} ({len(left_out)} series or files left out: see `python -m petct_lib ingest`)"
        )


def _open_run(out: Path, request: dict, resume: bool, force: bool) -> dict:
    path = RunFolder(out).manifest
    new = {**request, "finished": False, "done": [], "seconds": {}}
    if out.exists() and any(out.iterdir()) and not path.exists():
        raise InputError(f"{out}: is not empty and holds no manifest.json; name another folder with --out")
    if force or not path.exists():
        return {**new, "force": force}
    old = read_json(path)
    differs = [key for key, value in request.items() if old.get(key) != value]
    if differs:
        raise InputError(
            f"{out}: holds a run with other {', '.join(differs)}; name another with --out, or pass --force"
        )
    if not old["finished"] and not resume:
        raise InputError(f"{out}: holds an unfinished run; pass --resume to go on, or --force to start again")
    return old


def _run_notebooks(params: dict, data: str, out: Path, manifest: dict, until: str) -> None:
    if manifest.pop("force", False) and out.exists():
        shutil.rmtree(out)
    out = out.resolve()
    for notebook in NOTEBOOKS[: NOTEBOOKS.index(until) + 1]:
        if notebook in manifest["done"]:
            continue
        write_json({**manifest, **_provenance(out)}, RunFolder(out).manifest)
        start = time.monotonic()
        _execute(notebook, {**params[notebook], **_from_command(notebook, out, data)}, out)
        manifest["seconds"][notebook] = round(time.monotonic() - start, 1)
        manifest["peak_memory_mb"] = max(_peak_mb(), manifest.get("peak_memory_mb", 0))
        manifest["done"].append(notebook)
    manifest["finished"] = until == NOTEBOOKS[-1]
    write_json({**manifest, **_provenance(out)}, RunFolder(out).manifest)


def _peak_mb() -> int:
    """Largest resident size so far of this process or of any one kernel that it started (they run one at a time)."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(peaks) / 1024)


def _from_command(notebook: str, out: Path, data: str) -> dict:
    values = {"run_dir": str(out), "resume": True}
    return {**values, "data": data} if notebook == NOTEBOOKS[0] else values


def _execute(notebook: str, parameters: dict, out: Path) -> None:
    import papermill

    os.environ[PLAIN] = "1"
    where = RunFolder(out).notebooks / f"{notebook}.ipynb"
    where.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n{notebook}", flush=True)
    try:
        papermill.execute_notebook(
            str(NOTEBOOK_DIR / f"{notebook}.ipynb"), str(where), parameters,
            cwd=str(NOTEBOOK_DIR), kernel_name="python3", execution_timeout=CELL_TIMEOUT_S, progress_bar=False,
            stderr_file=sys.stderr, extra_arguments=["--log-level=40"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        if error.ename == "InputError":
            raise InputError(f"{notebook}: {error.evalue}") from None
        raise RuntimeError(
            f"{notebook}, cell {error.exec_count}: {error.ename}: {error.evalue} (see {where})"
        ) from None


def _provenance(out: Path) -> dict:
    """Versions, commit, machine, and what the notebooks recorded so far."""
    changes = _git("status", "--porcelain")
    return {
        "petct_lib": __version__, "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"), "uncommitted_changes": None if changes is None else bool(changes),
        "cores": os.cpu_count(), **_recorded_values(out),
    }  # fmt: skip


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=NOTEBOOK_DIR, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def open_run_folder(run_dir: Path, resume: bool) -> Path:
    """The absolute run folder for notebook 01: as it is with `resume`, else emptied of an earlier run by the notebooks.

    Only a folder without a manifest is emptied: InputError protects the runs of `python -m petct_lib run`.
    """
    run_dir = Path(run_dir).resolve()
    if not resume and run_dir.exists() and any(run_dir.iterdir()):
        if RunFolder(run_dir).manifest.exists() or not RunFolder(run_dir).stages.exists():
            raise InputError(f"{run_dir}: is not a run of these notebooks alone; name another run_dir, or resume=True")
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    record(run_dir)
    return run_dir


def record(run_dir: Path, **values: object) -> None:
    """Adds values to the run's `stages.json`, which ends up in its manifest; dicts are merged."""
    held = _recorded_values(run_dir)
    for key, value in values.items():
        held[key] = {**held.get(key, {}), **value} if isinstance(value, dict) else value
    write_json(held, RunFolder(run_dir).stages)


def _recorded_values(run_dir: Path) -> dict:
    path = RunFolder(run_dir).stages
    return read_json(path) if path.exists() else {}


@contextmanager
def timed(run_dir: Path, name: str) -> Iterator[None]:
    """Adds the seconds of a block to those under `stage_seconds` (a resumed stage goes on counting).

    `stage_peak_mb` holds the largest resident size of this process up to the block's end, all earlier blocks included;
    `stage_gpu_mb` what torch had allocated at most on the GPU within the block.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    try:
        yield
    finally:
        before = _recorded_values(run_dir).get("stage_seconds", {}).get(name, 0.0)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        record(run_dir, stage_seconds={name: round(before + time.monotonic() - start, 1)}, stage_peak_mb={name: peak})
        if cuda:
            record(run_dir, stage_gpu_mb={name: round(torch.cuda.max_memory_allocated() / 2**20)})


def require_inputs(run_dir: Path, notebook: str) -> Path:
    """The absolute run folder, once everything that `notebook` reads is there.

    In the notebooks' own run folder, those that are missing before it are run first, at their defaults; anywhere
    else, InputError says which notebook to run.
    """
    run_dir = Path(run_dir).resolve()
    for earlier in NOTEBOOKS[: NOTEBOOKS.index(notebook)]:
        if (run_dir / MAKES[earlier]).exists():
            continue
        if run_dir != DEFAULT_RUN.resolve():
            raise InputError(f"{run_dir / MAKES[earlier]} is missing: run {earlier}.ipynb first, with this run_dir")
        print(f"{MAKES[earlier]} is missing here: running {earlier}.ipynb at its defaults first", file=sys.stderr)
        _execute(earlier, {"resume": True}, run_dir)
    return run_dir


def format_summary(out: Path) -> str:
    """The table of scores, seconds by stage, peak memory, and the folder, as text for a terminal."""
    run = RunFolder(out)
    manifest = read_json(run.manifest)
    left_out = Counter(item["reason"] for item in Prepared(run.prepared).index["left_out"])
    omitted = "\n".join(f"  {count} × {reason}" for reason, count in left_out.most_common(10))
    table = format_table(read_scores(run.scores))
    grid = manifest.get("grid", {})
    seconds = "\n".join(f"  {name:<28}{value:8.1f} s" for name, value in manifest.get("stage_seconds", {}).items())
    total = sum(manifest["seconds"].values())
    return (
        f"\n{table}\n\n"
        f"resolution {grid.get('size')}×{grid.get('size')}, {grid.get('pixel_mm', 0):.2f} mm pixels, "
        f"slices every {grid.get('slice_mm')} mm; LPIPS: {manifest.get('lpips', 'n/a')}\n"
        f"left out of the input, and why\n{omitted}\n"
        f"seconds by stage\n{seconds}\n  {'all four notebooks':<28}{total:8.1f} s\n"
        f"peak memory {manifest['peak_memory_mb']} MB\neverything lies in {out}"
    )
