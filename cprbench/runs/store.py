"""Records on disk. A run is one directory; it exists once its manifest does, and never changes afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from cprbench.errors import SpecError, StoreError
from cprbench.schema import canonical_json, parse
from cprbench.spec import RunRecord

_RUN_ID = re.compile(r"^[0-9a-f]{16}(-[0-9]+)?$")
#: What a run consists of besides its manifest. A folder of kept weights may stand beside them.
RECORD, HISTORY, SAMPLES, PREDICTIONS = "record.json", "history.jsonl", "samples.jsonl", "predictions.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Run:
    """A stored run: its record and where its files are."""

    record: RunRecord
    folder: Path

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of one of the run's .jsonl files, [] where its manifest lists no such file."""
        path = self.folder / name
        if not path.exists() or name not in self._listed:
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]

    @cached_property
    def _listed(self) -> Collection[str]:
        files: Collection[str] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return files


@dataclass(frozen=True)
class Runs:
    """All runs found, in order of id, and every damaged directory with what is wrong with it."""

    runs: list[Run]
    damaged: dict[str, str] = field(default_factory=dict)


class Store:
    """A folder of runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open_for_writing(self) -> None:
        """Create the folder and try it out. Raises StoreError when it cannot be written."""
        probe = self.root / ".work" / f".probe-{os.getpid()}"
        with _readable_errors(self.root):
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_text("can this folder be written?\n", encoding="utf-8")
            probe.unlink()

    def latest(self, run_id: str) -> Run | None:
        """Return the last run with this id or a retry of it, None if there is none."""
        found = None
        for candidate in _retries(run_id):
            if not (self.root / candidate).exists():
                return found
            with suppress(StoreError):  # a damaged directory is no run: reports name it, and its id stays taken
                found = load_run(self.root / candidate)
        return found

    def next_id(self, run_id: str) -> str:
        """Return the first id of `run_id`, `run_id`-2, … that no directory has."""
        return next(i for i in _retries(run_id) if not (self.root / i).exists())

    def free_id(self, run_id: str) -> str:
        """Return the first id of `run_id`, `run_id`-2, … that neither a directory nor a living process has."""
        taken = (i for i in _retries(run_id) if not (self.root / i).exists())
        return next(i for i in taken if not (self.root / ".work" / i).exists())

    def begin(self, run_id: str) -> Path:
        """Claim a run and return an empty folder for its next attempt; earlier ones of dead processes stay beside.

        Raises StoreError while another living process has the claim.
        """
        folder = self.root / ".work" / run_id
        with _readable_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            self._claim(folder)
            attempt = folder / f"attempt-{1 + len(list(folder.glob('attempt-*')))}"
            attempt.mkdir()
        return attempt

    def abandoned(self, attempt: Path) -> list[Path]:
        """Return the attempts of the same run that processes left behind when they died, oldest first."""
        return sorted(set(attempt.parent.glob("attempt-*")) - {attempt}, key=lambda p: int(p.name.split("-")[1]))

    def _claim(self, folder: Path) -> None:
        me = psutil.Process()
        claim = json.dumps({"pid": me.pid, "started": me.create_time()})
        try:
            with (folder / "owner.json").open("x", encoding="utf-8") as stream:
                stream.write(claim)
        except FileExistsError:
            with suppress(OSError, ValueError, KeyError, psutil.Error):
                owner = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
                if owner["pid"] != me.pid and psutil.Process(owner["pid"]).create_time() == owner["started"]:
                    raise StoreError(
                        f"{folder}: process {owner['pid']} is running this very run. Wait for it, or pass --out FOLDER."
                    ) from None
            (folder / "owner.json").write_text(claim, encoding="utf-8")

    def commit(self, attempt: Path, record: RunRecord) -> Path:
        """Write the record and the manifest into the attempt folder and move it to its place.

        Everything is on disk before the move; a crash at any point leaves either no run or the whole run.
        """
        target = self.root / record.run_id
        with _readable_errors(self.root):
            data = record.model_dump(by_alias=True, mode="json")
            text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
            (attempt / RECORD).write_text(text + "\n", encoding="utf-8")
            files = sorted(path for path in attempt.rglob("*") if path.is_file())
            hashes = {path.relative_to(attempt).as_posix(): _sync_and_hash(path) for path in files}
            manifest = attempt / MANIFEST
            manifest.write_text(json.dumps({"files": hashes}, indent=1) + "\n", encoding="utf-8")
            _sync_and_hash(manifest)
            os.rename(attempt, target)
            shutil.rmtree(attempt.parent, ignore_errors=True)
            _sync_folder(self.root)
        return target


def load_run(folder: Path) -> Run:
    """Return the run in a directory. Raises StoreError when a file is absent, altered or unreadable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if RECORD not in manifest:
            raise StoreError(f"{folder / MANIFEST}: it lists no {RECORD}, so nothing vouches for the record.")
        for name, expected in manifest.items():
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if actual != expected:
                raise StoreError(f"{folder / name}: sha256 is {actual}, the manifest says {expected}: altered.")
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        canonical_json(data).encode()  # refuses NaN, and text that no page could show (half a surrogate pair)
        record = parse(RunRecord, data, str(folder / RECORD))
        if record.run_id != folder.name:
            raise StoreError(f"{folder}: holds the record of run {record.run_id}. A run lives in the folder of its id.")
        return Run(record, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{folder}: not a readable run ({error}).") from error
    except SpecError as error:
        raise StoreError(str(error)) from error


def load_runs(path: Path | str) -> Runs:
    """Return the runs in a folder of runs, or the one run that `path` is.

    Damaged directories are named, never dropped in silence. Raises StoreError for a folder that is not there.
    """
    root = Path(path)
    if (root / MANIFEST).exists():
        return Runs([load_run(root)])
    if not root.is_dir():
        raise StoreError(f"{root}: no such folder of runs. `cprbench run` writes one, by default runs/.")
    runs, damaged = [], {}
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or not _RUN_ID.match(folder.name):
            continue
        try:
            if not (folder / MANIFEST).exists():
                raise StoreError(f"{folder}: no {MANIFEST}, so the run was never finished.")
            runs.append(load_run(folder))
        except StoreError as error:
            damaged[folder.name] = str(error)
    return Runs(runs, damaged)


def _retries(run_id: str) -> Iterator[str]:
    yield run_id
    number = 2
    while True:
        yield f"{run_id}-{number}"
        number += 1


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _readable_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = {
            errno.ENOSPC: "Free some space there",
            errno.EROFS: "The file system is read-only: choose another folder",
            errno.EACCES: "You may not write there: choose another folder",
        }.get(error.errno or 0, "Choose another folder")
        raise StoreError(
            f"{root}: cannot write ({error.strerror or error}). {cure}, or pass --out FOLDER. "
            "Finished runs are untouched."
        ) from error
