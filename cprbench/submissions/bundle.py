"""A submission's files, from a folder or a .zip, read as if an enemy had packed them. Nothing is written or run.

Only files of known names are there to be read; whatever else lies beside them is refused by its name, unopened. A
folder is read through descriptors that follow no link, a .zip (archive.py) from one copy in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from cprbench.errors import SubmissionError
from cprbench.submissions.archive import MOST_ARCHIVE_BYTES, Archive
from cprbench.submissions.strict import shown

MOST_FILES, MOST_FILE_BYTES, MOST_BYTES = 5_000, 16_000_000, 256_000_000
_CHUNK = 1 << 18
_RUN = r"runs/[0-9a-f]{16}(-[1-9][0-9]{0,5})?"
_JSON = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}\.json"
_FILES = re.compile(
    rf"submission\.toml|README\.md|runs/{_JSON}|{_RUN}/blueprints/{_JSON}"
    rf"|{_RUN}/((record|manifest)\.json|(history|samples|predictions|base_predictions|work)\.jsonl)"
)
_FOLDERS = re.compile(rf"runs/|{_RUN}/(blueprints/)?")
_TOP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
#: Names that Windows takes for devices, whatever comes after a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])\..*", re.IGNORECASE)


class Bundle:
    """The files of a submission. `files`: name inside it, with slashes, -> bytes."""

    def __init__(self, where: str, files: Mapping[str, int], pieces: Callable[[str], Iterator[bytes]]) -> None:
        self.files = dict(sorted(files.items()))
        self._where, self._pieces = where, pieces

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises SubmissionError where there is none, or it is not as it was listed."""
        return b"".join(self._checked(name))

    @cached_property
    def digest(self) -> str:
        """The sha256 of all names, lengths and contents: the same for a folder and a .zip of it. Reads everything."""
        total = hashlib.sha256()
        for name, size in self.files.items():
            total.update(f"{len(name)} {name} {size} ".encode())
            for piece in self._checked(name):
                total.update(piece)
        return total.hexdigest()

    def _checked(self, name: str) -> Iterator[bytes]:
        """Yield a file's content while it is no longer than it was listed."""
        if name not in self.files:
            raise SubmissionError(f"{self._where}: there is no {name}. `cprbench pack` makes a whole submission.")
        left = self.files[name]
        for piece in self._pieces(name):
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise SubmissionError(f"{self._where}/{name}: it is not the {self.files[name]:,} bytes that are listed.")


def open_bundle(path: Path) -> Bundle:
    """Return the files of a submission, a folder or a .zip.

    Raises SubmissionError for a path that cannot be read, for names, kinds, counts and sizes that no submission has,
    and for every .zip that two programs could read differently.
    """
    where = ascii(str(path))[1:-1]
    with _readable(where):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                return _of_folder(path, where, status)
            if not stat.S_ISREG(status.st_mode):
                raise SubmissionError(f"{where}: neither a folder nor a .zip. Name one of these.")
            if status.st_size > MOST_ARCHIVE_BYTES:
                raise SubmissionError(f"{where}: over {MOST_ARCHIVE_BYTES:,} bytes. Submit a folder, or fewer runs.")
            with os.fdopen(os.dup(descriptor), "rb") as stream:
                return _of_archive(stream.read(MOST_ARCHIVE_BYTES), where)
        finally:
            os.close(descriptor)


class _Names:
    """The names met so far; each new one is held against what a submission may hold."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._met: set[str] = set()
        self._bytes = 0
        self.sizes: dict[str, int] = {}

    def add(self, name: str, size: int | None) -> None:
        """Take a file of `size` bytes, or a folder (None), whose name ends in a slash."""
        place = f"{self._where}: {shown(name)}"
        if not (_FOLDERS if size is None else _FILES).fullmatch(name) or _DEVICES.fullmatch(name.rsplit("/", 1)[-1]):
            raise SubmissionError(f"{place} is no part of a submission; it was not opened. Take it out.")
        if name.casefold() in self._met:
            raise SubmissionError(f"{place} is there twice, or beside a name of other case. Keep one of them.")
        self._met.add(name.casefold())
        if len(self._met) > 2 * MOST_FILES:
            raise SubmissionError(f"{self._where}: over {MOST_FILES:,} folders. Split the submission.")
        if size is None:
            return
        self.sizes[name] = size
        self._bytes += size
        if len(self.sizes) > MOST_FILES:
            raise SubmissionError(f"{self._where}: over {MOST_FILES:,} files. Split the submission.")
        if size > MOST_FILE_BYTES:
            raise SubmissionError(f"{place} has {size:,} bytes, over {MOST_FILE_BYTES:,}. Submit shorter runs.")
        if self._bytes > MOST_BYTES:
            raise SubmissionError(f"{self._where}: over {MOST_BYTES:,} bytes in all. Split the submission.")


def _of_archive(data: bytes, where: str) -> Bundle:
    archive = Archive(data, where)
    members = archive.members
    top = {name.partition("/")[0] + "/" for name in members}
    prefix = top.pop() if len(top) == 1 else ""  # one folder around everything, unless that is runs/ or a lone file
    if prefix == "runs/" or not _TOP.fullmatch(prefix[:-1]) or not all(name.startswith(prefix) for name in members):
        prefix = ""
    names = _Names(where)
    for name, member in members.items():
        if not prefix or name != prefix:
            names.add(name.removeprefix(prefix), None if name.endswith("/") else member.size)
    return Bundle(where, names.sizes, lambda name: archive.pieces(prefix + name))


def _of_folder(path: Path, where: str, root: os.stat_result) -> Bundle:
    names = _Names(where)
    listed: dict[str, tuple[int, ...]] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with _opened(path, root, folder) as descriptor, os.scandir(descriptor) as entries:
            for entry in entries:
                name, status = folder + entry.name, entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    names.add(f"{name}/", None)
                    waiting.append(f"{name}/")
                elif stat.S_ISREG(status.st_mode):
                    names.add(name, status.st_size)
                    listed[name] = _identity(status)
                else:
                    raise SubmissionError(f"{where}: {shown(name)} is a link, pipe or device. Put a plain file there.")

    def pieces(name: str) -> Iterator[bytes]:
        with _readable(where), _opened(path, root, name) as descriptor:
            if _identity(os.fstat(descriptor)) != listed[name]:
                raise SubmissionError(f"{where}/{name}: it changed while it was read. Try again when nothing writes.")
            while piece := os.read(descriptor, _CHUNK):
                yield piece

    return Bundle(where, names.sizes, pieces)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def _opened(path: Path, root: os.stat_result, name: str) -> Iterator[int]:
    """Open a file or folder inside `path`, folder by folder, so that no part of the way can be a link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        if not os.path.samestat(os.fstat(descriptor), root):
            raise SubmissionError(f"{shown(str(path))}: the folder was replaced while it was read. Try again.")
        for part in filter(None, name.split("/")):
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ELOOP: a link
        why = error.strerror or type(error).__name__
        raise SubmissionError(f"{where}: cannot be read ({why}). Give a plain folder or .zip.") from None
