"""Folders, zips, and zips in zips: the same files whatever they lie in, nothing written, bombs refused."""

import copy
import io
import os
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_dicom import add_patient, arrays, garble, reasons, refusal

from petct_lib import InputError
from petct_lib.dicom import archives
from petct_lib.dicom.archives import GIB, FileRef, explain_refusal, list_files
from petct_lib.dicom.studies import ingest

MIB = 1024**2


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def zipped(folder: Path, path: Path) -> Path:
    return pack(path, {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.dcm"))})


def zeros(size: int) -> bytes:
    """`size` zeros (whole MiB) as deflate packs them, made without packing all of them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // MIB) + packer.flush()


def pack_deflated(path: Path, members: dict[str, tuple[bytes, int]]) -> Path:
    """Members from deflated bytes, each with the size that the zip states for it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, (deflated, stated) in members.items():
            info = zipfile.ZipInfo(name)
            archive.writestr(info, deflated)
            info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, stated  # goes into the directory at the end
    return path


def reason_of(path: Path) -> str:
    """Why the one file in a path is not read."""
    [ref] = list_files(path)
    return explain_refusal(ref)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The test fails where it takes more than the largest header."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * MIB, f"{peak / MIB:.0f} MiB"


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_folder_zip_folder_of_zips_and_zip_of_zips_are_the_same(tmp_path):
    for name in ("A", "B"):
        add_patient(tmp_path / "folder", name)
    expected = arrays(tmp_path / "folder")
    assert len(expected) == 4
    whole = zipped(tmp_path / "folder", tmp_path / "all.zip")
    zips = tmp_path / "zips"
    zips.mkdir()
    for name in ("A1", "B1"):
        zipped(tmp_path / "folder" / name, zips / f"{name}.ZIP")
    nested = pack(tmp_path / "nested.zip", {f"deep/{p.name}": p.read_bytes() for p in zips.iterdir()})
    for path in (whole, zips, nested):
        result = arrays(path)
        assert len(result) == 4
        assert all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


def test_three_levels_are_refused_with_the_reason(tmp_path):
    inner = pack(tmp_path / "1.zip", {"x.dcm": b"x"})
    middle = pack(tmp_path / "2.zip", {"1.zip": inner.read_bytes()})
    outer = pack(tmp_path / "3.zip", {"2.zip": middle.read_bytes()})
    [ref] = list_files(outer)
    assert ref.members == ("2.zip", "1.zip")
    assert "a zip in a zip in a zip is not opened" in explain_refusal(ref)
    assert "a zip in a zip in a zip is not opened" in refusal(outer)


def test_a_part_of_a_file_is_read_without_the_rest(tmp_path):
    content = bytes(range(256)) * 100
    (tmp_path / "x").write_bytes(content)
    inner = pack(tmp_path / "inner.zip", {"x": content})
    outer = pack(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    for ref in (FileRef(tmp_path / "x", "x"), *list_files(inner), *list_files(outer)):
        assert ref.size() == len(content)
        assert ref.read() == content
        assert ref.read(300, 7) == content[300:307]
        assert ref.read(25_590) == content[-10:]


def test_hidden_files_and_folders_do_not_count(tmp_path):
    for name in ("a/.DS_Store", "a/._0001.dcm", ".git/x", ".CT_1.77.part/0001.dcm", "a/0001.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert [ref.shown for ref in list_files(tmp_path)] == ["a/0001.dcm"]
    members = {"__MACOSX/._x": b"x", "../up/0001.dcm": b"x", ".hidden/0002.dcm": b"x"}
    assert [ref.members for ref in list_files(pack(tmp_path / "z.zip", members))] == [("../up/0001.dcm",)]


# What zips may not do


def test_no_path_leaves_its_folder(tmp_path, monkeypatch):
    """Names with .. and absolute ones, and symbolic links, are read like any other and written nowhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    source, inside = add_patient(tmp_path / "in"), tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    evil = inside / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        for part, root in (("CT", "../../x"), ("PT", "/etc/x")):
            for file in sorted((source / part).iterdir()):
                archive.write(file, f"{root}/{part}/{file.name}")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    before = tree(tmp_path)
    assert len(ingest(evil, jobs=1)["studies"]) == 1
    assert tree(tmp_path) == before
    assert not Path("/etc/x").exists()


@pytest.mark.usefixtures("little_memory")
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = pack_deflated(tmp_path / "bomb.zip", {"0001.dcm": (zeros(3 * GIB), 3 * GIB)})
    assert bomb.stat().st_size < 4 * MIB
    assert "larger than 2 GiB" in refusal(bomb)
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:  # stored: packed once more, it is refused by that
        archive.write(bomb, "bomb.zip")
    assert "larger than 2 GiB" in refusal(tmp_path / "nested.zip")


@pytest.mark.parametrize("name", ["..\\..\\x", "C:\\x", "//server/x", "a/../../x", "./x", "x" * 300, "x\ny"])
def test_names_of_other_systems_are_names_like_any_other(tmp_path, monkeypatch, name):
    inside = tmp_path / "in"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.setattr(archives, "IN_MEMORY_BYTES", 1)  # the zip in the zip goes through a file without a name
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    evil = pack(inside / "evil.zip", {f"{name}/1.zip": pack(tmp_path / "1.zip", {name: b"content"}).read_bytes()})
    before = tree(tmp_path)
    [ref] = list_files(evil)
    assert ref.read() == b"content"
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("little_memory")
def test_of_a_large_member_no_more_is_unpacked_than_is_read(tmp_path):
    bomb = pack_deflated(tmp_path / "x.zip", {"0001.dcm": (zeros(GIB), GIB)})
    [ref] = list_files(bomb)
    assert ref.read(5 * MIB, 10) == bytes(10)
    assert "not DICOM" in refusal(bomb)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("stated", [0, 1000, 2 * GIB])
def test_a_bomb_that_states_another_size_unpacks_to_no_more(tmp_path, stated):
    path = pack_deflated(tmp_path / "x.zip", {"0001.dcm": (zeros(GIB if stated < MIB else MIB), stated)})
    assert "1 × " in refusal(path)


@pytest.mark.usefixtures("little_memory")
def test_a_bomb_as_a_zip_in_a_zip_is_not_unpacked(tmp_path):
    path = pack_deflated(tmp_path / "x.zip", {"inner.zip": (zeros(GIB), GIB)})
    assert "compressed more than 100 times" in reason_of(path)
    assert "compressed more than 100 times" in refusal(path)


@pytest.mark.usefixtures("little_memory")
def test_members_that_share_their_bytes_count_each_by_itself(tmp_path):
    """A bomb of overlapping members: one packed file, and a directory that names it five thousand times."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        kernel = zipfile.ZipInfo("0.dcm")
        archive.writestr(kernel, zeros(16 * MIB))
        kernel.compress_type, kernel.file_size = zipfile.ZIP_DEFLATED, 16 * MIB
        for k in range(1, 5000):
            archive.filelist.append(copy.copy(kernel))
            archive.filelist[-1].filename = f"{k}.dcm"
    assert "would unpack to 78.1 GiB in 5000 files" in reason_of(path)


@pytest.mark.parametrize(("limit", "value"), [("MAX_ARCHIVE_BYTES", 100_000), ("MAX_MEMBERS", 100)])
def test_zips_in_a_zip_count_together(tmp_path, monkeypatch, limit, value):
    """Each of the three is within the limits."""
    inner = pack(tmp_path / "inner.zip", {f"{k}": bytes(1000) for k in range(40)}).read_bytes()
    outer = pack(tmp_path / "outer.zip", {f"{k}.zip": inner for k in range(3)})
    assert len(list_files(outer)) == 120
    os.utime(outer, (1, 1))  # archives are kept open until their file changes
    monkeypatch.setattr(archives, limit, value)
    assert "would unpack to" in reason_of(outer)


def test_limits_on_all_of_a_zip(tmp_path, monkeypatch):
    path = pack(tmp_path / "x.zip", {f"{k}.dcm": bytes(1000) for k in range(20)})
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 19_999)
    assert "would unpack to" in explain_refusal(FileRef(path, "x.zip"))
    assert "would unpack to" in refusal(path)
    monkeypatch.undo()
    os.utime(path, (1, 1))  # archives are kept open until their file changes
    monkeypatch.setattr(archives, "MAX_MEMBERS", 19)
    assert "20 files" in explain_refusal(FileRef(path, "x.zip"))


def test_a_zip_in_a_zip_has_a_limit_too(tmp_path, monkeypatch):
    inner = pack(tmp_path / "inner.zip", {"x.dcm": os.urandom(5000)})
    outer = pack(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 4000)
    assert "the zip in the zip is larger" in refusal(outer)


def test_a_member_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path):
    path = pack(tmp_path / "x.zip", {"0001.dcm": bytes(MIB)})
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = raw.index(mark) + offset
        raw[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(raw)
    [ref] = list_files(path)
    assert ref.size() == 1000
    with pytest.raises(zipfile.BadZipFile):  # its checksum is that of the whole
        ref.read()
    assert "cannot be read" in refusal(path)


def test_encrypted_broken_and_empty_zips_are_left_out_with_a_reason(tmp_path):
    add_patient(tmp_path)
    (tmp_path / "fake.zip").write_bytes(b"PK and then nothing of the kind" * 10)
    pack(tmp_path / "empty.zip", {})
    locked = pack(tmp_path / "locked.zip", {"x.dcm": b"secret"})
    raw = bytearray(locked.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + offset] |= 1  # the flag of encryption
    locked.write_bytes(raw)
    report = ingest(tmp_path, jobs=1)
    assert len(report["studies"]) == 1
    text = {item["what"]: item["reason"] for item in report["left_out"]}
    assert "cannot be opened (BadZipFile)" in text["a file (fake.zip)"]
    assert "an empty zip" in text["a file (empty.zip)"]
    assert "cannot be read" in text["a file (locked.zip:x.dcm)"]


def test_a_broken_member_costs_its_series_alone(tmp_path):
    folder = add_patient(tmp_path / "in", "A")
    add_patient(tmp_path / "in", "B")
    garble(folder / "CT" / "0002.dcm")
    report = ingest(zipped(tmp_path / "in", tmp_path / "all.zip"))
    assert len(report["studies"]) == 1
    assert "unreadable file" in reasons(report)


def test_a_zip_cut_short(tmp_path):
    whole = zipped(add_patient(tmp_path / "in"), tmp_path / "all.zip")
    whole.write_bytes(whole.read_bytes()[:-200])
    assert "cannot be opened" in refusal(whole)


def test_an_empty_or_missing_folder(tmp_path):
    with pytest.raises(InputError, match="empty"):
        list_files(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        list_files(tmp_path / "x")


def test_a_member_can_be_a_zip_only_by_name(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x", b"x")
    path = pack(tmp_path / "x.zip", {"inner.dat": buffer.getvalue()})
    assert [ref.members for ref in list_files(path)] == [("inner.dat",)]
