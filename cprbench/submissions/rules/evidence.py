"""What a run's raw files hold, read strictly once for all rules, and how two answers are compared."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, ValidationError

from cprbench.errors import CprbenchError
from cprbench.meters.flops import Pass
from cprbench.meters.trace import Trace
from cprbench.runs.store import HISTORY, SAMPLES
from cprbench.schema import Finite, Frozen
from cprbench.spec import PHASES
from cprbench.submissions.dossier import Dossier

RECORD, WORK = "record.json", "work.jsonl"
CURE = "Run it again with `cprbench run`: raw files and records are never edited"
#: The formulas are the same, but Python 3.12 adds floats up more exactly than 3.11 does.
ROUNDING = 1e-9
CPU_CLASS = re.compile(r".+ (amx_bf16|avx512|avx2|neon|scalar) (\d{1,5}) cores")
#: Runs whose evidence is kept: all rules look at one run before the next, and now and then at one of its siblings.
_KEPT = 4

Asked = TypeVar("Asked")
Found = TypeVar("Found")


_ANSWERS: list[OrderedDict[int, tuple[Any, Any]]] = []


def once(ask: Callable[[Asked], Found]) -> Callable[[Asked], Found]:
    """Return `ask` with its last answers kept."""
    kept: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
    _ANSWERS.append(kept)

    def asked(run: Asked) -> Found:
        if id(run) not in kept:
            kept[id(run)] = run, ask(run)  # holding the run keeps its id from being another's
            while len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(id(run))
        found: Found = kept[id(run)][1]
        return found

    return asked


def forget() -> None:
    """Let go of the last answers: through their runs they hold all rows of a submission."""
    for kept in _ANSWERS:
        kept.clear()


@once
def trace(run: Dossier) -> Trace | str:
    """Return the trace in samples.jsonl, or what is wrong with its lines: a phase ends before the next one begins."""
    before: Mapping[str, Any] = {"edge": "end", "t": -math.inf}
    for number, row in enumerate(run.rows(SAMPLES), start=1):
        if why := _no_sample(row):
            return f"line {number}: {why}"
        if "edge" not in row:
            continue
        if row["attempt"] != run.record.attempts:
            return f"line {number}: attempt {row['attempt']}, the record is of attempt {run.record.attempts}"
        follows = row["edge"] != before["edge"] and (row["edge"] == "start" or row["phase"] == before["phase"])
        if not follows or row["t"] < before["t"]:
            told_before = f"after an {before['edge']} at {before['t']} s"
            return f"line {number}: {row['phase']} {row['edge']}s at {row['t']} s, {told_before}"
        before = row
    return Trace.of(run.rows(SAMPLES)) if SAMPLES in run.files else "the file is missing"


def _no_sample(row: Mapping[str, Any]) -> str | None:
    keys = set(row)
    if keys == {"missing"}:
        told = row["missing"]
        fits = isinstance(told, dict) and all(isinstance(why, str) for why in told.values())
        return None if fits else "`missing` names quantities and reasons"
    if keys not in ({"t", "values"}, {"t", "values", "edge", "phase", "attempt"}):
        return f"it has the keys {', '.join(sorted(keys))!s:.120}, which no sample has"
    values = row["values"]
    if not isinstance(values, dict) or not all(map(_is_number, (row["t"], *values.values()))):
        return "a time or a value is no number"
    if len(keys) > 2 and (
        row["edge"] not in ("start", "end") or row["phase"] not in PHASES or type(row["attempt"]) is not int
    ):
        return f"no edge of a phase: {row['edge']!r:.20} of {row['phase']!r:.20}, attempt {row['attempt']!r:.20}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@once
def passes(run: Dossier) -> list[Pass] | str:
    """Return the passes in work.jsonl, or what is wrong with its lines."""
    found = []
    for number, row in enumerate(run.rows(WORK), start=1):
        try:
            found.append(Pass.parse(row))
        except CprbenchError as error:
            return f"line {number}: {error!s:.300}"
        own = found[-1]
        if own.phase not in PHASES or own.attempt != run.record.attempts or own.times != 1:
            return f"line {number}: phase {own.phase!r:.20}, attempt {own.attempt}, {own.times} times: of no pass here"
    return found


class Tally(Frozen):
    """The running gamma of a line of history.jsonl."""

    model_config = ConfigDict(strict=True)

    device_hours: Finite
    core_hours: Finite
    rss_gb_hours: Finite | None
    gpu_energy_joules: Finite | None
    cpu_energy_joules: Finite | None
    flops: int | None


class Step(Frozen):
    """A line of history.jsonl."""

    model_config = ConfigDict(strict=True)

    step: int
    phase: Literal["select", "train"]
    seconds: Finite
    loss: Finite
    flops: int
    validation: dict[str, Finite] | None = None
    gamma: Tally | None = None


@once
def history(run: Dossier) -> list[Step] | str:
    """Return the steps in history.jsonl, or what is wrong with its lines."""
    found = []
    for number, row in enumerate(run.rows(HISTORY), start=1):
        try:
            found.append(Step.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            return f"line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        if None in row.values():
            return f"line {number}: validation and gamma stand in a line with what they say, or not at all"
    return found


def told(run: Dossier, *path: str) -> Any:
    """Return what the record's free tables (notes, environment.facts) say at a path; None where they say nothing."""
    found: Any = {"notes": run.record.notes, "facts": run.record.environment.facts}
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def on_gpu(run: Dossier) -> bool:
    """Return whether a run says that it ran on a GPU."""
    environment = run.record.environment
    return bool(environment.devices) or environment.hardware_class == "unknown GPU"


def cores_of(run: Dossier) -> int | None:
    """Return the cores that a run was bound to; None where it does not say."""
    match = CPU_CLASS.fullmatch(run.record.environment.hardware_class)
    cores = int(match[2]) if match else told(run, "facts", "cores")
    return cores if type(cores) is int and cores > 0 else None


def differences(said: Any, found: Any, where: str = "") -> Iterator[str]:
    """Yield "WHERE is SAID, recomputed FOUND" for every place in which two answers differ by more than rounding."""
    if isinstance(said, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys((*found, *said)):
            yield from differences(said.get(key, ...), found.get(key, ...), f"{where}.{key}" if where else str(key))
    elif isinstance(said, list | tuple) and isinstance(found, list | tuple) and len(said) == len(found):
        for number, (a, b) in enumerate(zip(said, found, strict=True)):
            yield from differences(a, b, f"{where}[{number}]")
    elif not _alike(said, found):
        texts = ["missing" if value is ... else f"{value!r:.120}" for value in (said, found)]
        yield f"{where} is {texts[0]}, recomputed {texts[1]}"


def _alike(said: Any, found: Any) -> bool:
    if _is_number(said) and _is_number(found):
        exact = isinstance(said, int) and isinstance(found, int)
        return said == found if exact else math.isclose(said, found, rel_tol=ROUNDING)
    if isinstance(said, list | tuple) and isinstance(found, list | tuple):
        return list(said) == list(found)
    return type(said) is type(found) and bool(said == found)


def first(flaws: Sequence[str] | Iterator[str], most: int = 3) -> str:
    """Return the first few differences as one line, "" where there is none."""
    listed = list(flaws)
    return "; ".join(listed[:most]) + (f"; and {len(listed) - most} more" if len(listed) > most else "")
