"""Files of a folder, a zip, a zip in a zip, or a folder of zips. Nothing is ever unpacked under a name of its own."""

import re
import shutil
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from petct_lib import InputError

GIB = 1024**3
MAX_MEMBER_BYTES = 2 * GIB  # one file; the largest multi-frame study is a quarter of that
MAX_ARCHIVE_BYTES = 64 * GIB  # one zip with the zips in it, unpacked; a whole-body PET/CT study is 0.2 to 1 GiB
MAX_MEMBERS = 500_000  # files in one zip with the zips in it
MAX_RATIO = 100  # of a zip in a zip: it is compressed already
HIDDEN = re.compile(r"(^|[/\\:])\.[^./\\]")  # .DS_Store, ._x, .git/x; not ../x
IN_MEMORY_BYTES = 64 * 1024**2  # a zip in a zip that is larger is copied to a nameless temporary file


@dataclass(frozen=True)
class FileRef:
    """A file on disk, a member of a zip, or a member of a zip in a zip; `members` is the way in from `path`."""

    path: Path
    shown: str  # relative to what the user named
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last part, without folders."""
        return Path(self.members[-1] if self.members else self.path).name

    @property
    def where(self) -> str:
        """The folder, relative to what the user named."""
        return self.shown[: -len(self.name)].rstrip("/:")

    @property
    def place(self) -> tuple[str, str]:
        """Folder and suffix, which the files of a series share; in a UID as the name, no suffix."""
        suffix = Path(self.name).suffix.lower()
        return f"{self.path if self.members else self.path.parent}:{self.where}", "" if suffix[1:].isdigit() else suffix

    def size(self) -> int:
        """Bytes, unpacked."""
        return self._archive().getinfo(self.members[-1]).file_size if self.members else self.path.stat().st_size

    def read(self, start: int = 0, size: int = -1) -> bytes:
        """`size` bytes (-1: all) from `start` on; of a compressed member, no more is unpacked than that takes.

        Raises InputError for a file or a member that is too large.
        """
        whole = self.size()
        if whole > MAX_MEMBER_BYTES:
            raise InputError(f"the file is larger than {MAX_MEMBER_BYTES / GIB:g} GiB (unpacked)")
        with self._archive().open(self.members[-1]) if self.members else self.path.open("rb") as file:
            file.seek(start)
            return file.read(size if size >= 0 else whole)  # zipfile, asked for all, unpacks beyond the stated size

    def _archive(self) -> zipfile.ZipFile:
        return _archive(self.path, self.path.stat().st_mtime_ns, self.members[:-1])


@lru_cache(maxsize=4)
def _archive(path: Path, mtime: int, inner: tuple[str, ...]) -> zipfile.ZipFile:
    """A zip, or the zip `inner` in it. Raises InputError where it would unpack to more than the limits."""
    if not inner:
        archive = zipfile.ZipFile(path)
    else:
        outer = _archive(path, mtime, inner[:-1])
        info = outer.getinfo(inner[-1])
        if info.file_size > MAX_MEMBER_BYTES:
            raise InputError(f"the zip in the zip is larger than {MAX_MEMBER_BYTES / GIB:g} GiB")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise InputError(f"the zip in the zip is compressed more than {MAX_RATIO} times: no zip of images is")
        copy = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 (lives as long as the archive)
        with outer.open(inner[-1]) as source:
            shutil.copyfileobj(source, copy)
        archive = zipfile.ZipFile(copy)
    infos = archive.infolist()
    _check_total(sum(i.file_size for i in infos), len(infos))
    return archive


def _check_total(unpacked: int, count: int) -> None:
    if unpacked > MAX_ARCHIVE_BYTES or count > MAX_MEMBERS:
        raise InputError(
            f"the zip would unpack to {unpacked / GIB:.1f} GiB in {count} files: the limits are "
            f"{MAX_ARCHIVE_BYTES / GIB:g} GiB and {MAX_MEMBERS} files; unpack it yourself if you trust it"
        )


def list_files(path: Path) -> list[FileRef]:
    """All files of a folder, a zip, or a folder with zips, sorted; what is hidden (.DS_Store, .git/x) does not count.

    A zip in a zip is opened too, one level deep. A zip that cannot be opened, or is too large, is listed as a file.
    Raises InputError where there is no file.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    base = path.parent if path.is_file() else path
    refs = [ref for p in paths for ref in _with_members(FileRef(p, str(p.relative_to(base))))]
    refs = [ref for ref in refs if not HIDDEN.search(ref.shown)]
    if not refs:
        raise InputError(f"{path}: the folder is empty")
    return refs


def is_zip(ref: FileRef) -> bool:
    """Whether it is a zip, by its name."""
    return ref.name.lower().endswith(".zip")


def _with_members(ref: FileRef) -> list[FileRef]:
    """The members of a zip, and of the zips in it; any other file, and a zip that is not opened, is itself."""
    if not is_zip(ref):
        return [ref]
    try:
        return _members(ref) or [ref]
    except Exception:  # a stranger's zip may break any part of the reader; see `explain_refusal`
        return [ref]


def _members(ref: FileRef) -> list[FileRef]:
    """Raises InputError as soon as a zip and the zips in it go beyond the limits together."""
    members, unpacked, count = [], 0, 0
    for member in _directory(ref):
        inner = []
        if is_zip(member):
            with suppress(Exception):  # it is listed as a file then
                inner = _directory(member)
        members.extend(inner or [member])
        unpacked += member.size() + sum(i.size() for i in inner)
        count += 1 + len(inner)
        _check_total(unpacked, count)
    return members


def _directory(ref: FileRef) -> list[FileRef]:
    infos = _archive(ref.path, ref.path.stat().st_mtime_ns, ref.members).infolist()
    return [FileRef(ref.path, f"{ref.shown}:{i.filename}", (*ref.members, i.filename)) for i in infos if not i.is_dir()]


def explain_refusal(ref: FileRef) -> str:
    """Why a zip among the files is not opened."""
    if len(ref.members) > 1:
        return "a zip in a zip in a zip is not opened"
    try:
        _directory(ref) if ref.members else _members(ref)
    except InputError as error:
        return str(error)
    except Exception as error:
        return f"the zip cannot be opened ({type(error).__name__})"
    return "an empty zip"
