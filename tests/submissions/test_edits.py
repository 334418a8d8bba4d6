"""Whoever edits a value and hashes again is found out, or the value is in the list that needs a re-run."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from cprbench.submissions.validation import Tasks
from tests.conftest import ROOT
from tests.submissions.altering import run_of
from tests.submissions.edits import Original, changed, is_caught, leaves, other_values, pattern

_Place = tuple[str, tuple[str | int, ...], Any]
_CELL = re.compile(r"`([^`]+)`")


def listed() -> list[str]:
    """Return the patterns of docs/submissions.md, section "Needs a re-run"."""
    text = (ROOT / "docs/submissions.md").read_text(encoding="utf-8")
    table = text.split("<!-- rerun -->")[1].split("<!-- /rerun -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [cell for line in rows for cell in _CELL.findall(line.split("|")[1])]


def is_listed(where: str) -> bool:
    return any(fnmatchcase(where, known) for known in listed())


def places(original: Original, run_id: str) -> dict[str, list[_Place]]:
    """Return the places of all values of a run by their pattern."""
    found: dict[str, list[_Place]] = defaultdict(list)
    for name, document in original.documents(run_id):
        for path, value in leaves(document):
            found[pattern(name, path)].append((name, path, value))
    return found


def missed(folder: Path, arm: str, seed: int, most: int | None, block: int = 1) -> list[str]:
    """Return the edits of one run that nothing noticed: of every pattern one place, every other value of it."""
    run_id = run_of(folder, arm, block).name
    original = Original(folder, Tasks(None, offline=False), run_id, run_of(folder, "full", block).name)
    documents = dict(original.documents(run_id))
    draw = random.Random(seed)
    edits = []
    for where, of in sorted(places(original, run_id).items()):
        if not is_listed(where):
            name, path, value = draw.choice(of)
            edits += [(where, name, path, other) for other in other_values(value)]
    found = []
    for where, name, path, other in edits if most is None else draw.sample(edits, most):
        entry = original.judged_with(run_id, name, changed(documents[name], path, other))
        if not is_caught(entry):
            found.append(f"{where} -> {other!r:.60}")
    return found


@pytest.mark.parametrize("arm", ["partial k=0.15", "partial k=0.15 selection=influence q=0.5"])
def test_an_edited_value_is_caught_or_listed_as_needing_a_re_run(submission: Path, arm: str) -> None:
    assert missed(submission, arm, seed=len(arm), most=10) == []


def test_a_key_that_is_added_or_taken_away_is_caught(submission: Path) -> None:
    run_id = run_of(submission, "lora", 1).name
    original = Original(submission, Tasks(None, offline=False), run_id, run_of(submission, "full", 1).name)
    for name, document in original.documents(run_id):
        first = json.loads(json.dumps(document))
        row = first[0] if isinstance(first, list) else first
        row["another"] = 1
        assert is_caught(original.judged_with(run_id, name, first)), f"a key added to {name}"
        if isinstance(first, list):
            assert is_caught(original.judged_with(run_id, name, document[1:])), f"the first row of {name}"
            assert is_caught(original.judged_with(run_id, name, document[:-1])), f"the last row of {name}"


def test_the_list_of_what_needs_a_re_run_is_not_longer_than_it_has_to_be(submission: Path) -> None:
    """A pattern that no run has is a line that nobody needs."""
    original = Original(submission, Tasks(None, offline=False))
    known = {where for run in (submission / "runs").iterdir() for where in places(original, run.name)}
    elsewhere = ("environment.devices", "notes.", "facts.gpu", "facts.rapl", "facts.carbon", "search.")
    idle = [p for p in listed() if not any(fnmatchcase(where, p) for where in known)]
    assert not [p for p in idle if not any(word in p for word in elsewhere)]
