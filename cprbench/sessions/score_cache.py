"""Scores that were measured before are not measured again, but they are billed again: choosing has its price.

Both sides of one folder. The child stores values under a hash of everything that could change them; the parent, which
holds the meters, adds what measuring them cost. Values without a cost are as good as absent.

    <out>/.scores/<key>/values.npz   from the child       cost.json   from the parent: the readings of that window
    scores.jsonl (of an attempt)     which keys the child measured, and when, or took from here
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from cprbench.meters.flops import Flops
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.spec import Reading

if TYPE_CHECKING:
    from cprbench.adapt.selection import Measured

FOLDER, USED = ".scores", "scores.jsonl"
_VALUES, _COST = "values.npz", "cost.json"
#: The flag on readings of work that an earlier run did.
CACHED = "cached"


class ScoreCache:
    """The child's side. `log`: where it tells the parent what it measured and what it took."""

    def __init__(self, root: Path, log: Path) -> None:
        self._root, self._log = root, log

    def get(self, key: str) -> tuple[Measured, list[Reading]] | None:
        """Return what is stored under a key, with the readings of its making; None where that is incomplete."""
        import numpy as np

        from cprbench.adapt.selection import Measured

        folder = self._root / key
        try:
            readings = [Reading.model_validate(row) for row in json.loads((folder / _COST).read_text("utf-8"))]
            # Opened here: numpy leaves a file open that turns out to be torn.
            with (folder / _VALUES).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                found = Measured(**{name: stored[name] for name in stored.files})
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile):
            return None
        if not readings:
            return None
        # With its cost: what this run is billed must not hang on a file that anybody may delete.
        self._tell({"event": "used", "key": key, "readings": [r.model_dump(mode="json") for r in readings]})
        return found, readings

    def put(self, key: str, found: Measured, window: tuple[float, float], spent: Flops) -> None:
        """Store values that were measured between two times of the monotonic clock."""
        import numpy as np

        folder = self._root / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _COST).unlink(missing_ok=True)
        part = folder / f"{os.getpid()}.npz"
        np.savez(part, **{name: value for name, value in vars(found).items() if value is not None})
        part.replace(folder / _VALUES)
        flops = {"total": spent.total, "padding": spent.padding}
        self._tell({"event": "made", "key": key, "from": window[0], "to": window[1], "flops": flops})

    def _tell(self, row: Mapping[str, Any]) -> None:
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def settle(
    root: Path,
    attempt_folder: Path,
    trace: Trace,
    attempt: int,
    *,
    flops_known: bool,
    paid: Collection[str] = (),
    **allotted: Any,
) -> list[Reading]:
    """Write the cost of what an attempt measured, and return the readings of what it took from earlier runs.

    `paid`: keys that earlier attempts of the same run measured or took already, which are in its bill. `allotted`:
    cores, accelerators, carbon and flags, as for `account`.
    """
    readings: list[Reading] = []
    done = set(paid)
    for row in _rows(attempt_folder / USED):
        if row["event"] == "used" and row["key"] not in done:
            readings += [_again(Reading.model_validate(r), attempt) for r in row["readings"]]
        elif row["event"] == "made":
            own = trace.between(row["from"], row["to"])
            counted = Flops(**row["flops"])
            flops = {("select", w.attempt): counted for w in own.windows()} if flops_known else "not counted"
            made = account(own, flops, **allotted).readings
            if any(r.phase == "billed" and r.quantity == "seconds" and r.value for r in made):
                path = root / row["key"] / _COST
                part = path.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps([r.model_dump(mode="json") for r in made]), encoding="utf-8")
                part.replace(path)
        done.add(row["key"])
    return readings


def keys(attempt_folder: Path) -> set[str]:
    """Return the keys of all scores that an attempt measured or took."""
    return {row["key"] for row in _rows(attempt_folder / USED)}


def _again(reading: Reading, attempt: int) -> Reading:
    return reading.model_copy(update={"attempt": attempt, "flags": sorted({*reading.flags, CACHED})})


def _rows(path: Path) -> Sequence[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
