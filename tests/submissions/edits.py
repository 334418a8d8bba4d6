"""Every value of a submission's raw files, changed one at a time, with the hashes made anew."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cprbench.judge.submission import Entry
from cprbench.submissions.bundle import Bundle
from cprbench.submissions.validation import Tasks, judged

#: In place of a line's number and of names that a task, a model or a choice of examples brought.
ANY = "*"
_NAMES = re.compile(r"^(attn|ffn)\.\d+$|^(embed|head)$")
_FREE = ("log_likelihoods", "packages", "gradient_norm", "missing", "values", "sums", "squares")


def pattern(name: str, path: tuple[str | int, ...]) -> str:
    """Return where a value stands, "record.json: psi.final.nll", without numbers of lines and names of submodules."""
    parts = [ANY if isinstance(part, int) or _NAMES.match(part) else part for part in path]
    return f"{name}: {'.'.join(parts)}"


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield (path, value) of everything that is neither a list nor an object; empty ones count as values."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list) and value:
        for place, part in enumerate(value):
            yield from leaves(part, (*path, place))
    else:
        yield path, value


def other_values(value: Any) -> list[Any]:
    """Return what somebody might write in place of a value."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value * 2 + 7, 0] if value else [1, 1000]
        case float():
            return [value * 1.01, value * 0.5, value + max(1.0, abs(value))] if value else [0.5, 1.0]
        case str() if re.fullmatch(r"[0-9a-f]{16,64}", value):
            return [f"{value[:-1]}{(int(value[-1], 16) + 1) % 16:x}"]  # another one that could be
        case str():
            return [f"{value}x", ""] if value else ["x"]
        case None:
            return [0, "x"]
        case _:
            return [["x"], {"x": 1}]


class Original:
    """A submission in memory, one file of which can be replaced."""

    def __init__(self, folder: Path, tasks: Tasks, *runs: str) -> None:
        """Read a submission, or only these runs of it: the fewer, the faster."""
        self._files = {
            path: file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
            and (
                not (path := file.relative_to(folder).as_posix()).startswith("runs/") or not runs or path[5:21] in runs
            )
        }
        self._tasks = tasks

    def documents(self, run_id: str) -> Iterator[tuple[str, Any]]:
        """Yield (file, content) of a run, a .jsonl file as the list of its rows."""
        for path in sorted(self._files):
            name = path.removeprefix(f"runs/{run_id}/")
            if name != path and name != "manifest.json":
                text = self._files[path].decode()
                yield name, [*map(json.loads, text.splitlines())] if name.endswith("l") else json.loads(text)

    def judged_with(self, run_id: str, name: str, document: Any) -> Entry:
        """Return the entry of the submission with this content of one file, and its hash in the manifest."""
        rows = isinstance(document, list)
        text = "".join(f"{json.dumps(row)}\n" for row in document) if rows else json.dumps(document)
        files = dict(self._files)
        files[f"runs/{run_id}/{name}"] = text.encode()
        manifest = json.loads(files[f"runs/{run_id}/manifest.json"])
        manifest["files"][name] = hashlib.sha256(text.encode()).hexdigest()
        files[f"runs/{run_id}/manifest.json"] = json.dumps(manifest).encode()
        return judged(in_memory(files), "board", self._tasks)


def in_memory(files: Mapping[str, bytes]) -> Bundle:
    """Return files as a bundle, without a folder."""
    return Bundle("memory", {name: len(data) for name, data in files.items()}, lambda name: iter([files[name]]))


def changed(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of a document with another value at one place."""
    copy = json.loads(json.dumps(document))
    place = copy
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return copy


def is_caught(entry: Entry) -> bool:
    """Return whether an edit is found out: a submission without a finding is consistent, and its rows may rank."""
    return bool(entry.findings)
