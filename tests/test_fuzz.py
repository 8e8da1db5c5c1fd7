"""Damaged files: thousands of seeded mutations of valid ones, each read or refused with a reason, within limits.

The cases run in child processes with limited memory, so that a crash or a hang is a failed test and not the end of all
tests. `python tests/test_fuzz.py FOLDER read RLE/17` repeats one case on the seeds of a kept `--basetemp`.
"""

import faulthandler
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from conftest import ROOT
from dicom_encodings import COMPRESSED, big_endian, compress, deflated, implicit, without_meta, write_series
from pydicom.datadict import tag_for_keyword
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless
from small_dicom import MARKER, add_patient, reasons, scribble
from small_enhanced import classic, enhanced_ct, enhanced_pet, save
from small_seg import LUNG, TUMOUR, ball, write_seg

from petct_lib import InputError
from petct_lib.common.parallel import parallel_map
from petct_lib.dicom.archives import FileRef, list_files
from petct_lib.dicom.geometry import geometry
from petct_lib.dicom.headers import HEADER_TAGS, read_images
from petct_lib.dicom.pixels import read_stored
from petct_lib.dicom.seg import read_segments
from petct_lib.dicom.studies import find_pairs, ingest, load_pair
from petct_lib.dicom.suv import suv_factor

pytestmark = pytest.mark.slow

CASES = 280  # of each kind of file
STUDIES = 102  # whole folders
MEMORY = 3 * 1024**3  # bytes beyond what the libraries take: the limits of the reader add up to less
CASE_S, ALL_S = 60, 300  # of the clock, beside other work; the slowest case takes 13 s of a core
VRS = [
    b"AE", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"OB", b"OW", b"PN", b"SH", b"SQ",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"UN", b"US", b"UT",
]  # fmt: skip
HOSTILE = [
    b"", b"\x00", b" ", b"0", b"-1", b"1\\2", b"nan ", b"inf ", b"1e308 ", b"-1e308 ", b"1e-308 ", b"9" * 400,
    b"\xff\xff", b"\xff" * 8, b"\x00" * 8, b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\\" * 500, b"A" * 70000,
    b"\x1b$B\xff\xff", b"20190307250099.99", "München ".encode("utf-16"),
]  # fmt: skip


# Valid files to start from.


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """A folder with one small valid file of each kind, and `pair`, a study of PET and CT."""
    root = tmp_path_factory.mktemp("seeds")
    pair = add_patient(root / "pair")
    ct, pet = (sorted((pair / part).iterdir())[1] for part in ("CT", "PT"))
    for name, source, change in (
        ("CT", ct, None), ("PET", pet, None), ("implicit", ct, implicit), ("big endian", ct, big_endian),
        ("deflated", pet, deflated), ("without meta", pet, without_meta),
    ):  # fmt: skip
        path = root / f"{name}.dcm"
        path.write_bytes(source.read_bytes())
        if change:
            change(path)
    for uid in COMPRESSED:
        write_series("CT", root / "large", 2)
        compress(root / "large" / "0001.dcm", uid)
        (root / "large" / "0001.dcm").rename(root / f"{uid.name.split(',')[0].split(' Image')[0]}.dcm")
    save(enhanced_ct(classic(pair / "CT")), root / "enhanced CT.dcm")
    save(enhanced_pet(classic(pair / "PT")), root / "enhanced PET.dcm")
    write_seg(root, [ball(8), ball(6)], [LUNG, TUMOUR]).rename(root / "SEG.dcm")
    return root


# Mutations. Those of attributes work on the bytes of little endian files: no writer would write what they make.


def parts_of(content: bytes) -> list[bytes]:
    """The file in pieces: all before the data set, then one piece for each attribute at its top."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content), force=True)
    ends = []
    for tag in ds.keys():  # noqa: SIM118 (iteration would decode)
        element = ds.get_item(tag)
        value_at = element.value_tell if hasattr(element, "value_tell") else element.file_tell
        mark = struct.pack("<HH", tag.group, tag.element)
        ends.append(content.rindex(mark, 0, value_at))
    cuts = [0, *sorted(ends), len(content)]
    return [content[a:b] for a, b in pairwise(cuts)]


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip(content: bytes, rng: random.Random) -> bytes:
    """A few bytes, of the whole file or of the pixel data."""
    out, first = bytearray(content), max(rng.choice([0, content.rfind(b"\xe0\x7f\x10\x00")]), 0)
    for _ in range(rng.choice([1, 3, 30])):
        out[rng.randrange(first, len(out))] = rng.randrange(256)
    return bytes(out)


def shuffle_blocks(content: bytes, rng: random.Random) -> bytes:
    """Zeroes, drops, repeats or inserts a block."""
    at, size = rng.randrange(len(content)), rng.choice([1, 2, 7, 64, 1000])
    middle = rng.choice([bytes(size), b"", content[at : at + size] * 3, content[at : at + size] + rng.randbytes(size)])
    return content[:at] + middle + content[at + size :]


def nothing_but(content: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"text\n" * 300, bytes(5000), rng.randbytes(5000), content[:132], content[132:]])


def drop_tags(parts: list[bytes], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if len(parts) > 2:
            parts.pop(rng.randrange(1, len(parts)))


def swap_tags(parts: list[bytes], rng: random.Random) -> None:
    """Their order, or their names."""
    a, b = (rng.randrange(1, len(parts)) for _ in range(2))
    parts[a], parts[b] = parts[b], parts[a]
    if rng.random() < 0.5:
        parts[a], parts[b] = parts[b][:4] + parts[a][4:], parts[a][:4] + parts[b][4:]


def wrong_vr(parts: list[bytes], rng: random.Random) -> None:
    for _ in range(rng.choice([1, 5])):
        k = rng.randrange(1, len(parts))
        parts[k] = parts[k][:4] + rng.choice([*VRS, rng.randbytes(2)]) + parts[k][6:]


def wrong_length(parts: list[bytes], rng: random.Random) -> None:
    """Short and long form alike: of most attributes, one of the two is the length."""
    k = rng.choice([rng.randrange(1, len(parts)), len(parts) - 1])
    at = rng.choice([4, 6, 8])
    length = rng.choice([0, 1, 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, rng.randrange(2**32)])
    parts[k] = parts[k][:at] + struct.pack("<L", length) + parts[k][at + 4 :]


def hostile_value(parts: list[bytes], rng: random.Random) -> None:
    known = {struct.pack("<HH", t >> 16, t & 0xFFFF) for t in map(as_tag, HEADER_TAGS)}
    of_header = [k for k in range(1, len(parts)) if parts[k][:4] in known and parts[k][4:6] != b"SQ"]
    for _ in range(rng.choice([1, 1, 3])):
        k, value = rng.choice(of_header), rng.choice(HOSTILE)
        value += b" " * (len(value) % 2)
        if parts[k][4:6] in VRS and len(value) < 65536:
            parts[k] = parts[k][:6] + struct.pack("<H", len(value)) + value
        else:
            parts[k] = parts[k][:4] + struct.pack("<L", len(value)) + value


def insert_nested(parts: list[bytes], rng: random.Random) -> None:
    parts.insert(rng.randrange(1, len(parts) + 1), rng.choice([nested, nested_unclosed])(rng.choice([3, 30, 1000])))


def short_pixels(parts: list[bytes], rng: random.Random) -> None:
    parts[-1] = parts[-1][: rng.randrange(len(parts[-1]))]


def nested(depth: int, tag: bytes = b"\x54\x00\x16\x00") -> bytes:
    """A sequence in a sequence …, each with its length."""
    out, inner = [], 0
    for _ in range(depth):
        out.append(tag + struct.pack("<2sHL4sL", b"SQ", 0, inner + 8, b"\xfe\xff\x00\xe0", inner))
        inner += 20
    return b"".join(reversed(out))


def nested_unclosed(depth: int, tag: bytes = b"\x54\x00\x16\x00") -> bytes:
    """Without lengths, and without an end."""
    return (tag + struct.pack("<2sHL4sL", b"SQ", 0, 0xFFFFFFFF, b"\xfe\xff\x00\xe0", 0xFFFFFFFF)) * depth


def as_tag(name: str | int | tuple) -> int:
    if isinstance(name, tuple):
        return name[0] << 16 | name[1]
    return tag_for_keyword(name) if isinstance(name, str) else int(name)


OF_BYTES = (truncate, flip, flip, shuffle_blocks, nothing_but)
OF_TAGS = (drop_tags, swap_tags, wrong_vr, wrong_length, hostile_value, hostile_value, insert_nested, short_pixels)


def mutated(path: Path, rng: random.Random) -> tuple[str, bytes]:
    """The mutation's name and the new content. The same path and generator give the same."""
    content = path.read_bytes()
    by_tags = path.stem not in ("big endian", "deflated") and rng.random() < 0.65
    change = rng.choice(OF_TAGS if by_tags else OF_BYTES)
    if not by_tags:
        return change.__name__, change(content, rng)
    parts = parts_of(content)
    change(parts, rng)
    return change.__name__, b"".join(parts)


# In the child process.


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def refusal_of(work: Callable[[], object]) -> str:
    """The reason where the input is refused, "" where it works. Anything else is a defect, and goes on upwards."""
    try:
        work()
        return ""
    except InputError as error:
        reason = str(error)
    assert reason, "refused without a reason"
    assert MARKER not in reason, "names the patient"
    assert "MemoryError" not in reason, "ran out of memory"
    return reason


def read_all(path: Path) -> None:
    """All that is done with a file by itself."""
    images = read_images(FileRef(path, path.name))
    header = images[0].header
    if str(header.get("Modality")) == "SEG":
        read_segments([FileRef(path, path.name)])
        return
    headers = [image.header for image in images]
    result = [refusal_of(partial(geometry, headers))] if len(headers) > 1 else []
    result += [refusal_of(partial(suv_factor, headers))] if str(header.get("Modality")) == "PT" else []
    shapes = {stored.shape for _, stored in read_stored(images)}
    assert len(shapes) <= 1
    if any(result):
        raise InputError("; ".join(filter(None, result)))


def read_one(seeds: Path, name: str, scratch: Path) -> str:
    rng = random.Random(name)
    what, content = mutated(seeds / f"{name.split('/')[0]}.dcm", rng)
    path = scratch / "case.dcm"
    path.write_bytes(content)
    return f"{what}: {'refused' if refusal_of(partial(read_all, path)) else 'read'}"


def ingest_one(seeds: Path, name: str, scratch: Path) -> str:
    """A good study beside one of whose files one, or all, are mutated."""
    rng, folder = random.Random(name), scratch / name.replace("/", "-")
    add_patient(folder, "A")
    files = sorted(path for path in add_patient(folder, "B").rglob("*") if path.is_file())
    kind, what = rng.choice([mutated, mutated, None]), "one change in all files"
    for path in [rng.choice(files)] if kind else files:
        what, content = mutated(path, rng if kind else random.Random(name))
        path.write_bytes(content)
    report = ingest(folder, jobs=1)
    good = [row for row in report["studies"] if row["suv_factor"] == pytest.approx(3.5e-4)]
    assert good, f"the good study is gone: {report}"
    assert MARKER not in json.dumps(report, allow_nan=False), "names the patient"
    assert all(item["reason"] for item in report["left_out"]), "left out without a reason"
    return f"{what}: {'refused' if report['left_out'] else 'read'}"


# What someone might try on purpose: each spoils study B in its folder, `<folder>/CT/0002.dcm` or more of it.


def in_file(content_of: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "CT" / "0002.dcm"
        path.write_bytes(content_of(path.read_bytes()))

    return spoil


def in_header(**changes: object) -> Callable[[Path], None]:
    """Bytes are written as they are, anything else as pydicom would."""

    def spoil(folder: Path) -> None:
        path = folder / "CT" / "0002.dcm"
        for keyword, value in changes.items():
            if isinstance(value, bytes):
                scribble(path, keyword, value)
            else:
                ds = pydicom.dcmread(path)
                setattr(ds, keyword, value)
                ds.save_as(path)

    return spoil


def within(extra: Callable[[int], bytes], depth: int) -> Callable[[Path], None]:
    def content_of(content: bytes) -> bytes:
        parts = parts_of(content)
        return b"".join([*parts[:-1], extra(depth), parts[-1]])

    return in_file(content_of)


def all_slices(keyword: str, value_of: Callable[[int], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for k, path in enumerate(sorted((folder / "CT").iterdir())):
            ds = pydicom.dcmread(path)
            setattr(ds, keyword, value_of(k))
            ds.save_as(path)

    return spoil


def pixel_length(change: int) -> Callable[[Path], None]:
    """Another length for the pixel data than it has."""

    def content_of(content: bytes) -> bytes:
        at = content.rindex(b"\xe0\x7f\x10\x00OW") + 8
        (length,) = struct.unpack_from("<L", content, at)
        return content[:at] + struct.pack("<L", length + change) + content[at + 4 :]

    return in_file(content_of)


def syntax_of(uid: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        ds = pydicom.dcmread(folder / "CT" / "0002.dcm")
        ds.file_meta.TransferSyntaxUID = uid
        pydicom.dcmwrite(folder / "CT" / "0002.dcm", ds, implicit_vr=False, little_endian=True)

    return spoil


def meta_of(content: bytes) -> bytes:
    return content[: 144 + struct.unpack_from("<L", content, 140)[0]]


def deflate_bomb(folder: Path) -> None:
    """4 GiB in 4 MB."""
    path = folder / "CT" / "0002.dcm"
    deflated(path)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(meta_of(path.read_bytes()) + block * 4096 + packer.flush())


def many_items(count: int, length: int) -> bytes:
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * count
    length = len(items) if length == 0 else length
    return b"\x00\x52\x30\x92SQ\x00\x00" + struct.pack("<L", length) + items + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


def large_codestream(syntax: str, mark: bytes, at: int, size: bytes) -> Callable[[Path], None]:
    """An image whose compressed data says that it is larger than its header does."""

    def spoil(folder: Path) -> None:
        path = folder / "CT" / "0002.dcm"
        ds = pydicom.dcmread(path)
        ds.Rows, ds.Columns, ds.PixelData = 36, 40, bytes(2 * 36 * 40)
        ds.save_as(path)
        compress(path, syntax)
        content = bytearray(path.read_bytes())
        place = content.rindex(mark) + at
        content[place : place + len(size)] = size
        path.write_bytes(content)

    return spoil


def sparse(folder: Path) -> None:
    with (folder / "CT" / "0002.dcm").open("r+b") as file:
        file.truncate(0)
        file.truncate(50 * 2**20)


def no_files(folder: Path) -> None:
    """What is no regular file, or leads nowhere."""
    (folder / "CT" / "folder.dcm").mkdir()
    (folder / "CT" / "dangling.dcm").symlink_to(folder / "nowhere")
    (folder / "CT" / "loop.dcm").symlink_to(folder / "CT" / "loop.dcm")
    (folder / "CT" / "up").symlink_to(folder)
    os.mkfifo(folder / "CT" / "fifo.dcm")


READ = ""  # study B is usable all the same
NO_PIXELS = "pixel data cannot be decoded"
DANGERS = {
    "nested 1000 deep": (within(nested, 1000), READ),
    "nested 100000 deep": (within(nested, 100_000), READ),
    "nested without lengths": (within(nested_unclosed, 1000), "cannot be read as DICOM"),
    "nested 100000 deep without lengths": (within(nested_unclosed, 100_000), "cannot be read as DICOM"),
    "a million items": (within(partial(many_items, length=0), 1_000_000), READ),
    "a million items without a length": (within(partial(many_items, length=0xFFFFFFFF), 1_000_000), "not DICOM"),
    "65535 rows": (in_header(Rows=b"\xff\xff", Columns=b"\xff\xff"), "65535×65535 pixels is no PET or CT slice"),
    "4096 rows": (in_header(Rows=4096, Columns=4096), NO_PIXELS),
    "no rows": (in_header(Rows=0), "0×7 pixels"),
    "2147483647 frames": (in_header(NumberOfFrames=b"2147483647"), "a multi-frame file without functional groups"),
    **{f"{n} bits": (in_header(BitsAllocated=n), NO_PIXELS) for n in (0, 1, 7, 64)},
    "colour": (in_header(SamplesPerPixel=3), "a grey image is expected"),
    "slope nan": (in_header(RescaleSlope=b"nan "), "gives values without bounds"),
    "slope of text": (in_header(RescaleSlope=b"much"), "RescaleSlope is missing or not a number"),
    "slope 1e308": (in_header(RescaleSlope=b"1e308 "), "gives values without bounds"),
    "no pixel spacing": (all_slices("PixelSpacing", lambda k: [0, 0]), "PixelSpacing is missing or broken"),
    "pixels of nanometres": (all_slices("PixelSpacing", lambda k: [1e-6, 1e-6]), "the limits are"),
    "slices ten metres apart": (all_slices("ImagePositionPatient", lambda k: [0, 0, 1e4 * k]), "the limits are"),
    "positions without bounds": (all_slices("ImagePositionPatient", lambda k: [0, 0, 1e300 * k]), "missing or broken"),
    "pixels longer than the file": (pixel_length(2**31), READ),  # all of them are there
    "pixels of an odd length": (pixel_length(-1), NO_PIXELS),
    "pixels of no length": (pixel_length(-84), NO_PIXELS),
    "a file without meta information": (lambda folder: without_meta(folder / "CT" / "0002.dcm"), READ),
    "big endian": (lambda folder: big_endian(folder / "CT" / "0002.dcm"), READ),
    "deflated": (lambda folder: deflated(folder / "CT" / "0002.dcm"), READ),
    "deflate bomb": (deflate_bomb, "the deflated file is larger than 0.5 GiB when unpacked"),
    "unknown transfer syntax": (syntax_of("1.2.3.4"), NO_PIXELS),
    "JPEG-LS of 4 gigapixels": (
        large_codestream(JPEGLSLossless, b"\xff\xf7", 5, b"\xff\xff\xff\xff"),
        "has 65535×65535 pixels, its header 36×40",
    ),
    "JPEG 2000 of 4 gigapixels": (
        large_codestream(JPEG2000Lossless, b"\xff\x4f\xff\x51", 8, b"\x00\x00\xff\xff" * 2), NO_PIXELS,
    ),
    "text": (in_file(lambda content: b"Dear colleague, " * 50), "not DICOM"),
    "empty": (in_file(lambda content: b""), "not DICOM"),
    "zeros": (sparse, "not DICOM"),
    "zeros after the meta information": (in_file(lambda content: meta_of(content) + bytes(2**25)), "not DICOM"),
    "no files": (no_files, READ),
}  # fmt: skip


def spoil_one(seeds: Path, name: str, scratch: Path) -> str:
    """The reasons that are given for study B, beside a good one."""
    folder = scratch / name
    add_patient(folder, "A")
    DANGERS[name][0](add_patient(folder, "B"))
    report = ingest(folder, jobs=1)
    assert len(report["studies"]) == (1 if DANGERS[name][1] else 2), f"{report}"
    assert MARKER not in json.dumps(report, allow_nan=False), "names the patient"
    return reasons(report)


def names_of(seeds: Path, mode: str) -> list[str]:
    if mode == "spoil":
        return list(DANGERS)
    if mode == "ingest":
        return [f"study/{k}" for k in range(STUDIES)]
    kinds = sorted(p.stem for p in seeds.glob("*.dcm") if not p.stem.startswith("JPEG Lossless"))  # see below for these
    return [f"{kind}/{k}" for kind in kinds for k in range(CASES // 4 if kind == "SEG" else CASES)]


def hunt(seeds: Path, mode: str, names: list[str]) -> None:
    """All cases one after the other; prints one line of JSON for each. Ends with the case that hangs."""
    limit_memory()
    one = {"read": read_one, "ingest": ingest_one, "spoil": spoil_one}[mode]
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            faulthandler.dump_traceback_later(CASE_S, exit=True)
            print(json.dumps([name, None]), flush=True)  # should the process end here, it is known where
            try:
                outcome = one(seeds, name, Path(scratch))
            except Exception:
                outcome = f"defect: {traceback.format_exc()}"
            print(json.dumps([name, outcome]), flush=True)


def outcomes(seeds: Path, mode: str, *names: str) -> dict[str, str]:
    """What became of each case, from a child process."""
    command = [sys.executable, "-X", "faulthandler", __file__, str(seeds), mode, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=ALL_S, cwd=ROOT, env=environment, check=False
    )
    result = dict(json.loads(line) for line in done.stdout.splitlines())
    last = list(result)[-1] if result else "?"
    assert done.returncode == 0, f"case {last} of {seeds}: exit {done.returncode}\n{done.stderr[-3000:]}"
    defects = [f"{name} of {seeds}: {outcome}" for name, outcome in result.items() if outcome.startswith("defect")]
    assert not defects, f"{len(defects)} defects:\n" + "\n".join(defects[:5])
    return result


# The tests.


def test_no_mutation_of_a_file_crashes_hangs_or_goes_without_a_reason(seeds):
    result = outcomes(seeds, "read")
    assert len(result) >= 3000
    by_kind = {kind: Counter() for kind in {name.split("/")[0] for name in result}}
    for name, outcome in result.items():
        by_kind[name.split("/")[0]][outcome.split(": ")[1]] += 1
    print(by_kind)
    assert all(counts["read"] > 5 and counts["refused"] > 5 for counts in by_kind.values()), "the fuzzing tells nothing"


def test_a_mutated_study_never_costs_the_good_one_beside_it(seeds):
    result = outcomes(seeds, "ingest")
    counts = Counter(outcome.split(": ")[1] for outcome in result.values())
    print(counts)
    assert len(result) >= 100
    assert min(counts["read"], counts["refused"]) > 10


@pytest.fixture(scope="module")
def spoiled(seeds) -> dict[str, str]:
    """The reasons that were given for each of DANGERS."""
    return outcomes(seeds, "spoil")


@pytest.mark.parametrize("name", DANGERS)
def test_what_someone_might_try_costs_its_own_study_at_most(spoiled, name):
    reason = DANGERS[name][1]
    assert reason in spoiled[name]
    assert bool(reason) == bool(spoiled[name])


def test_a_pipe_as_the_input_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.dcm")
    for path in (tmp_path, tmp_path / "fifo.dcm"):
        with pytest.raises(InputError, match="empty"):
            list_files(path)


# JPEG lossless, which GDCM alone reads: it may crash, so that it has processes of its own.


def crashing(path: Path) -> None:
    """17 bits a pixel in the marker SOF3: GDCM ends with a segmentation fault."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"\xff\xc3") + 4] = 17
    path.write_bytes(content)


def jpeg_lossless(folder: Path) -> Path:
    for path in (folder / "CT").iterdir():
        compress(path, JPEGLosslessSV1)
    return folder


def decode_images(path: Path) -> int:
    """How many frames a file has, for a worker process."""
    return len(list(read_stored(read_images(FileRef(path, path.name)))))


def test_damaged_jpeg_lossless_costs_itself_alone(seeds, tmp_path):
    seed, paths = next(seeds.glob("JPEG Lossless*.dcm")), [tmp_path / f"{k}.dcm" for k in range(40)]
    for k, path in enumerate(paths):
        path.write_bytes(mutated(seed, random.Random(k))[1] if k % 4 else seed.read_bytes())
    for k in (1, 18):
        paths[k].write_bytes(seed.read_bytes())
        crashing(paths[k])
    results = parallel_map(decode_images, paths, jobs=2)
    assert results[::4] == [1] * 10
    assert all(str(r) and MARKER not in str(r) for r in results if isinstance(r, InputError))
    assert ["ends the process" in str(results[k]) for k in (1, 18)] == [True, True]


@pytest.mark.parametrize("others", [0, 2])
def test_a_study_that_crashes_the_decoder_is_left_out(tmp_path, others):
    """Also where it is alone, and joblib would read it in the caller's process."""
    crashing(jpeg_lossless(add_patient(tmp_path)) / "CT" / "0003.dcm")
    for k in range(others):
        jpeg_lossless(add_patient(tmp_path, f"B{k}"))
    report = ingest(tmp_path, jobs=1 if others else None)
    assert len(report["studies"]) == others
    assert "reading it ends the process" in reasons(report)
    left_out = {item["what"].split(" ")[0] for item in report["left_out"]}
    [pair] = [pair for pair in find_pairs(tmp_path)[0] if pair.id in left_out]
    with pytest.raises(InputError, match="ends the process"):
        load_pair(pair)


if __name__ == "__main__":
    folder, request = Path(sys.argv[1]), sys.argv[2]
    hunt(folder, request, sys.argv[3:] or names_of(folder, request))
