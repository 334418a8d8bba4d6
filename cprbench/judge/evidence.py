"""What a check looks at: a folder's runs with their predictions, and the files about models that lie beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cprbench.blueprint import files
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import CprbenchError, StoreError
from cprbench.runs.store import HISTORY, PREDICTIONS, Run, load_runs
from cprbench.spec import RunRecord

#: Documents that verbs print with --json, by their schema: `blueprint audit`, `data cross`.
DOCUMENTS = ("cprbench.audit/1", "cprbench.cross/1")
#: A larger .json file in a folder of runs is none of ours.
_MOST_BYTES = 64_000_000


@dataclass(frozen=True)
class Evidence:
    """All of it, by what it is. `damaged`: path -> what is wrong with it; damaged files are named, never used."""

    runs: Mapping[str, Run] = field(default_factory=dict)  # by run id
    damaged: Mapping[str, str] = field(default_factory=dict)
    blueprints: Mapping[str, Blueprint] = field(default_factory=dict)  # by file name
    documents: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # by file name
    _validated: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, records: Iterable[RunRecord], damaged: Mapping[str, str] | None = None) -> Evidence:
        """Return records as evidence without any other file."""
        nowhere = Path(os.devnull)  # no file lies below it
        return cls({record.run_id: Run(record, nowhere) for record in records}, damaged or {})

    @property
    def records(self) -> list[RunRecord]:
        """The records, in order of id."""
        return [self.runs[run_id].record for run_id in sorted(self.runs)]

    def predictions(self, record: RunRecord, when: str) -> Sequence[Mapping[str, Any]]:
        """Return the predictions of a run, of its base or its final model; [] where they are not stored."""
        return self.lines(record, PREDICTIONS if when == "final" else f"base_{PREDICTIONS}")

    def validations(self, record: RunRecord) -> list[dict[str, Any]]:
        """Return the rows of a run's history at which it was validated; read once, for many ask."""
        if record.run_id not in self._validated:
            rows = self.lines(record, HISTORY)
            self._validated[record.run_id] = [row for row in rows if isinstance(row.get("validation"), dict)]
        return self._validated[record.run_id]

    def lines(self, record: RunRecord, name: str) -> list[dict[str, Any]]:
        """Return the rows of one of a run's .jsonl files, [] where it has none that can be read."""
        run = self.runs.get(record.run_id)
        try:
            rows = [] if run is None else run.lines(name)
        except (OSError, ValueError, RecursionError):
            return []
        return rows if all(isinstance(row, dict) for row in rows) else []


def gather(path: Path) -> Evidence:
    """Return what lies in a folder of runs: the runs, and blueprints and documents in .json files beside them.

    Other .json files are nobody's business.
    Raises StoreError for a folder that is not there.
    """
    found = load_runs(path)
    damaged, blueprints, documents = dict(found.damaged), {}, {}
    for file in sorted(path.glob("*.json")) if path.is_dir() and not (path / "manifest.json").exists() else []:
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise StoreError(f"{file}: larger than {_MOST_BYTES} bytes, so it is no file of ours.")
            document = json.loads(file.read_text(encoding="utf-8"))
            schema = document.get("schema") if isinstance(document, dict) else None
            if schema in DOCUMENTS:
                documents[file.name] = document
            elif isinstance(document, dict) and ("layers" in document or str(schema).startswith("cprbench.")):
                blueprints[file.name] = files.read(file)
        except (OSError, ValueError, RecursionError, CprbenchError) as error:
            damaged[file.name] = f"{file}: neither a blueprint nor a document of ours ({error})"
    return Evidence({run.record.run_id: run for run in found.runs}, damaged, blueprints, documents)
