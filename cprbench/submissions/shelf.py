"""A folder of submissions as the board's entries. What was validated is stored by the hash of all that it hangs on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from cprbench.adapt.packages import cache_folder
from cprbench.errors import StoreError
from cprbench.judge.submission import SUBMISSION_FILE, Entry, Finding
from cprbench.submissions.neighbours import beside_one_another
from cprbench.submissions.validation import Tasks, digest_of, folder_of, validate

#: observe(entry, whether it was validated now)
Observe = Callable[[Entry, bool], None]


def entries(
    folder: Path, *, data: Path | None = None, offline: bool = False, observe: Observe = lambda entry, fresh: None
) -> list[Entry]:
    """Return the submissions in a folder, in order of their names; rows that others reproduced have that tier.

    Entries that lacked references are never stored: those may be here the next time. Raises StoreError for a folder
    that is not there.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder of submissions. `cprbench pack … --out {folder}/NAME` makes one.")
    if (folder / SUBMISSION_FILE).exists():
        raise StoreError(f"{folder} is one submission. Name the folder of submissions that it is in.")
    tasks = Tasks(data, offline=offline)
    names: set[str] = set()
    found: list[Entry] = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_dir() or path.suffix == ".zip":
            entry, fresh = _entry(path, tasks)
            if entry.folder.casefold() in names:
                entry = _refused(entry, f"{path.name} and another submission have one name", path.name)
            names.add(entry.folder.casefold())
            observe(entry, fresh)
            found.append(entry)
    rows = {entry.folder: entry.rows for entry in found}
    authors = {entry.folder: entry.submission.authors for entry in found if entry.submission}
    reproduced = beside_one_another({name: own for name, own in rows.items() if own}, authors)
    return [entry.model_copy(update={"rows": reproduced.get(entry.folder, [])}) for entry in found]


def _entry(path: Path, tasks: Tasks) -> tuple[Entry, bool]:
    stored = cache_folder() / "entries" / f"{digest_of(path, tasks)}.json"
    fresh = (entry := _read(stored)) is None
    if entry is None:
        entry = validate(path, tasks=tasks)
        if entry.status != "unverified":
            stored.parent.mkdir(parents=True, exist_ok=True)
            part = stored.with_suffix(f".{os.getpid()}")
            part.write_text(entry.model_dump_json(by_alias=True), encoding="utf-8")
            part.replace(stored)
    # The same bytes may lie in two folders: an entry is that of its own.
    return _in_its_folder(entry.model_copy(update={"folder": folder_of(path), "zipped": not path.is_dir()})), fresh


def _read(stored: Path) -> Entry | None:
    try:
        return Entry.model_validate_json(stored.read_bytes())
    except (OSError, ValidationError):
        return None


def _in_its_folder(entry: Entry) -> Entry:
    """Return an entry as it is where its folder has its name: rows are told apart by it."""
    if entry.submission is None or entry.submission.name == entry.folder:
        return entry
    return _refused(
        entry, f"name is {entry.submission.name!r}, its folder on the board is {entry.folder!r}", entry.folder
    )


def _refused(entry: Entry, why: str, folder: str) -> Entry:
    cure = "Rename the folder, or the name in the file"
    finding = Finding(code="B3", level="invalid", file=SUBMISSION_FILE, message=why, cure=cure)
    told = {"status": "invalid", "findings": [finding, *entry.findings], "rows": [], "folder": folder}
    return entry.model_copy(update=told)
