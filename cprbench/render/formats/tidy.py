"""Records for other programs: a row per run, a row per reading, a line per step. No comparison.

Units are in the names of columns. What was not measured is None: an empty cell of a CSV, null in JSON, and in
metrics.jsonl a name that is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cprbench.judge.evidence import Evidence
from cprbench.judge.groups import k_of, q_of, score_of
from cprbench.render.text import plain
from cprbench.runs.store import HISTORY
from cprbench.schema import MOST, canonical_json
from cprbench.spec import PHASES, RESOURCES, RunRecord, Scalar

Row = dict[str, Scalar]
#: A spreadsheet takes a cell that begins with one of these for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
#: Fields of a record that are columns as they are.
_SIZES = (
    "trained_parameters",
    "total_parameters",
    "new_head_parameters",
    "optimizer_state_bytes",
    "peak_memory_bytes",
    "selected_examples",
)


def run_rows(records: Sequence[RunRecord]) -> list[Row]:
    """Return a row per run, all with the same columns in the same order. Settings and other tables are compact JSON.

    `psi_*` is by the primary metric, `gamma_*` billed, `seconds_*` by phase over all attempts, k and q as reached.
    """
    return [_run_row(record) for record in records]


def _run_row(record: RunRecord) -> Row:
    spec, psi, training = record.spec, record.psi, record.spec.training
    scores = {when: getattr(psi, when) for when in ("base", "final", "validation")}
    row: Row = {
        "run_id": record.run_id,
        "previous": record.previous,
        "status": record.status,
        "error": record.error,
        "role": record.role,
        "loop": record.loop,
        "suite": record.suite,
        "suite_version": record.suite_version,
        "task": spec.task.name,
        "task_version": spec.task.version,
        "data_sha256": spec.task.data_sha256,
        "model": spec.model.label,
        "model_source": spec.model.pinned if spec.training else spec.model.source,
        "weights_sha256": spec.model.weights_sha256,
        "method": spec.method.name,
        "method_settings": canonical_json(spec.method.settings),
        "selection": spec.selection.name,
        "selection_settings": canonical_json(spec.selection.settings),
        "stop": None if spec.stop is None else canonical_json(spec.stop.model_dump(mode="json")),
        "budget": None if spec.budget is None else canonical_json(spec.budget.model_dump(mode="json")),
        "arm": record.arm,
        "block": record.block,
        "seed": spec.seed,
        "learning_rate": None if training is None else training.learning_rate,
        "training": None if training is None else canonical_json(training.model_dump(mode="json")),
        "limits": canonical_json(record.limits),
        "hardware_class": record.environment.hardware_class,
        "commit": record.environment.commit,
        "dirty": record.environment.dirty,
        "attempts": record.attempts,
        "psi_primary": psi.primary,
        **{f"psi_{when}": score_of(record, psi.primary, when) for when in scores},
        "psi_all": canonical_json(scores),
        "items": psi.items,
        **{f"gamma_{name}": getattr(record.gamma, name) for name in (*RESOURCES, "energy_scope", "memory_basis")},
        **{f"seconds_{name}": record.seconds.get(name) for name in (*PHASES, "billed", "billed_last_attempt")},
        "search_trials": 0 if record.search is None else record.search.trials,
        **{name: getattr(record, name) for name in _SIZES},
        "k_asked": record.k_asked,
        "k_reached": k_of(record),
        "q_reached": q_of(record),
        "selection_sha256": record.selection_sha256,
        "trained_submodules": canonical_json(record.trained_submodules),
    }
    return row


def reading_rows(records: Sequence[RunRecord]) -> list[Row]:
    """Return a row per reading of every run, in the order of the records; `flags` and `detail` are compact JSON."""
    return [
        {
            "run_id": record.run_id,
            **reading.model_dump(exclude={"flags", "detail"}),
            "flags": canonical_json(reading.flags),
            "detail": canonical_json(reading.detail),
        }
        for record in records
        for reading in record.readings
    ]


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows of equal columns as CSV, "" where there are none. Numbers are exact, None is an empty cell.

    A text that a spreadsheet would take for a formula gets a ' in front; what a terminal would obey is written out.
    """
    lines = [list(rows[0]), *(row.values() for row in rows)] if rows else []
    return "".join(",".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: Scalar) -> str:
    """Return a cell, quoted where it must be: Python's writer before 3.13 leaves a lone carriage return bare."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    if not value.isprintable():
        value = "".join(part if part in "\t\r\n" else plain(part) for part in value)
    text = f"'{value}" if value.startswith(_FORMULA) else value
    return '"{}"'.format(text.replace('"', '""')) if not text or set(text) & set(',"\r\n') else text


def json_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a JSON array, a line each."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return f"[\n{lines}\n]\n" if rows else "[]\n"


def metrics_lines(evidence: Evidence) -> str:
    """Return metrics.jsonl for trackers: a line per row of every run's history, then one of its ends.

    Names are paths ("train/loss", "validation/accuracy", "gamma/flops"; of the end "final/accuracy",
    "final/gamma/flops"); gamma is billed so far. Only finite numbers are there.
    """
    lines = []
    for record in evidence.records:
        run: Row = {"run_id": record.run_id, "arm": record.arm, "block": record.block}
        lines += [run | _step(row) for row in evidence.lines(record, HISTORY)]
        lines.append(run | {"status": record.status} | dict(_end(record)))
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)  # in ASCII: a history may name anything


def _step(row: Mapping[str, Any]) -> Row:
    phase = row.get("phase")
    told = {"step": row.get("step"), "gamma/seconds": row.get("seconds"), "gamma/flops": row.get("flops")}
    if phase in PHASES:  # a phase of another name is none of ours
        told[f"{phase}/loss"] = row.get("loss")
    return dict(_numbers(told)) | dict(_inside(row, "validation")) | dict(_inside(row, "gamma"))


def _end(record: RunRecord) -> Iterator[tuple[str, Scalar]]:
    for when in ("base", "final"):
        yield from _numbers({f"{when}/{name}": value for name, value in (getattr(record.psi, when) or {}).items()})
    yield from _numbers({f"final/gamma/{name}": getattr(record.gamma, name) for name in RESOURCES})
    yield from _numbers({"final/gamma/seconds": record.seconds.get("billed")})


def _inside(row: Mapping[str, Any], part: str) -> Iterator[tuple[str, Scalar]]:
    table = row.get(part)
    if isinstance(table, dict):
        yield from _numbers({f"{part}/{name}": value for name, value in table.items()})


def _numbers(told: Mapping[str, Any]) -> Iterator[tuple[str, Scalar]]:
    """Yield what is a finite number: the files of a run may not be ours."""
    for name, value in told.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST:
            yield name, value
