"""The site on disk: only what changed is made and written again, and what nothing links to any more is removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from cprbench.errors import StoreError
from cprbench.judge.submission import Entry
from cprbench.render.site.entry import entry_path
from cprbench.render.site.pages import site_files

#: path -> {"sha256": of its content, "of": hash of what an entry's page was made of}
MANIFEST = "build.json"


@dataclass(frozen=True)
class Written:
    """What a build did: files of the site, of them written now, and removed."""

    files: int
    written: int
    removed: int


def write(entries: Sequence[Entry], out: Path) -> Written:
    """Write the site of these entries to a folder. Raises StoreError where it cannot be written.

    A folder that holds files which no build made keeps them; a build never removes what it did not write.
    """
    before = _before(out)
    made: dict[str, dict[str, str]] = {}
    written = 0

    def put(path: str, content: bytes, of: str = "") -> None:
        nonlocal written
        made[path] = {"sha256": hashlib.sha256(content).hexdigest()} | ({"of": of} if of else {})
        target = out / path
        if not _holds(target, made[path]["sha256"]):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            written += 1

    try:
        hangs_on = {entry_path(entry): _hash_of(entry) for entry in entries}
        files = site_files(entries)
        # What a build that dies leaves behind is known to the next one.
        _note(out, {path: {} for path in files} | before)
        for path, make in sorted(files.items()):
            of = hangs_on.get(path, "")
            old = before.get(path, {})
            if of and old.get("of") == of and _holds(out / path, old.get("sha256", "")):
                made[path] = before[path]
            else:
                put(path, make(), of)
        stale = sorted(set(before) - set(made))
        for path in stale:
            _remove(out, path)
        _note(out, made)
    except OSError as error:
        raise StoreError(f"{out}: cannot write ({error.strerror or error}). Pass another --out DIR.") from None
    return Written(len(made), written, len(stale))


def _holds(target: Path, sha256: str) -> bool:
    return target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256


def _note(out: Path, files: dict[str, dict[str, str]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".{MANIFEST}"
    part.write_text(json.dumps(dict(sorted(files.items())), indent=1) + "\n", encoding="utf-8")
    part.replace(out / MANIFEST)


def _hash_of(entry: Entry) -> str:
    return hashlib.sha256(f"{_version()} {entry.model_dump_json(by_alias=True)}".encode()).hexdigest()


def _before(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(v, dict) for v in found.values()) else {}


def _remove(out: Path, path: str) -> None:
    target = out / path
    if target.resolve().is_relative_to(out.resolve()):
        target.unlink(missing_ok=True)
        folder = target.parent
        while folder != out and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


@lru_cache(maxsize=1)
def _version() -> str:
    """Return a hash of the code and the templates that pages are made by."""
    digest = hashlib.sha256()
    render = resources.files("cprbench.render")
    for folder in ("site", "templates/site"):
        for file in sorted(render.joinpath(folder).iterdir(), key=lambda file: file.name):
            if file.is_file():
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
