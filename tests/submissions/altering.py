"""Edits of a submission that keep its manifests true: whoever forges a number forges its hash as well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cprbench.judge.submission import Entry


def run_of(submission: Path, arm: str, block: int = 0) -> Path:
    """Return the folder of the run of an arm."""
    for folder in sorted((submission / "runs").iterdir()):
        record = json.loads((folder / "record.json").read_text())
        if (record["arm"], record["block"]) == (arm, block):
            return folder
    raise AssertionError(f"no run of {arm}")


def rehash(run: Path) -> None:
    """Make a run's manifest name its files as they are now."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != "manifest.json")
    hashes = {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (run / "manifest.json").write_text(json.dumps({"files": hashes}, indent=1) + "\n")


def edit_record(run: Path, change: Callable[[Any], Any]) -> None:
    """Change record.json in place, and its hash."""
    data = json.loads((run / "record.json").read_text())
    change(data)
    (run / "record.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    rehash(run)


def edit_lines(run: Path, name: str, change: Callable[[list[Any]], Any]) -> None:
    """Change the rows of a .jsonl file in place, and its hash."""
    rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
    change(rows)
    (run / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    rehash(run)


def told(entry: Entry) -> str:
    """Return the findings of an entry as lines."""
    return "\n".join(f"{f.code} {f.level} {f.file}: {f.message}" for f in entry.findings)
