"""The real runs of tests/records/ as rules see them, and copies with something else in them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from cprbench.spec import RunRecord
from cprbench.submissions.dossier import Dossier
from cprbench.submissions.rules import costs, history, plausible, recipe, trained, work
from cprbench.submissions.validation import _block_of
from cprbench.tasks import load_task
from tests.conftest import ROOT

RULES = {r.code: r for module in (costs, trained, work, recipe, history, plausible) for r in module.RULES}


@cache
def archive(name: str) -> dict[str, Dossier]:
    """Return the runs of tests/records/<name>.zip by id; their tasks' data is not here."""
    raw: dict[str, dict[str, Any]] = {}
    with zipfile.ZipFile(ROOT / "tests" / "records" / f"{name}.zip") as stored:
        for member in sorted(stored.namelist()):
            run_id, _, file = member.partition("/")
            if file == "record.json":
                raw.setdefault(run_id, {})[file] = json.loads(stored.read(member))
            elif file.endswith(".jsonl"):
                lines = stored.read(member).decode().splitlines()
                raw.setdefault(run_id, {})[file] = [json.loads(line) for line in lines]
    found: dict[str, Dossier] = {}
    mates: dict[str, list[Dossier]] = {}
    for run_id, files in raw.items():
        record = RunRecord.model_validate(data := files.pop("record.json"))
        alike = mates.setdefault(_block_of(record), [])
        task = load_task(record.spec.task.name)
        found[run_id] = Dossier(run_id, record, data, files, task, "not here", found, alike)
        alike.append(found[run_id])
    return found


def run_of(name: str, arm: str, **wanted: Any) -> Dossier:
    """Return the first run of an arm whose record has these fields."""
    fits = (r for r in archive(name).values() if r.record.arm == arm)
    return next(r for r in fits if all(getattr(r.record, key) == value for key, value in wanted.items()))


def with_record(run: Dossier, change: Callable[[Any], Any]) -> Dossier:
    """Return a run whose record.json was changed in place by `change`."""
    data = json.loads(json.dumps(run.data))
    change(data)
    return replace(run, record=RunRecord.model_validate(data), data=data)


def with_lines(run: Dossier, name: str, change: Callable[[list[Any]], Any]) -> Dossier:
    """Return a run of which one .jsonl file was changed in place by `change`."""
    rows = json.loads(json.dumps(run.files[name]))
    change(rows)
    return replace(run, files={**run.files, name: rows})


def found_by(run: Dossier, *codes: str) -> Mapping[str, str]:
    """Return rule code -> what it found, as one line with the levels, of the rules that found anything."""
    told = {code: [f"{f.level} {f.file}: {f.message}" for f in RULES[code].check(run)] for code in codes or RULES}
    return {code: "; ".join(flaws) for code, flaws in told.items() if flaws}
