"""Runs that nobody edited keep every rule."""

from __future__ import annotations

import pytest

from tests.submissions.rules.dossiers import archive, found_by

#: What a run kept too little of to be recomputed: a file that is not part of a record, adapters that nobody counts.
NOT_KNOWN = {"spectrum k=0.15 scan=scan", "peft config=ia3"}


@pytest.mark.parametrize("name", ["quickstart", "methods", "suites", "board"])
def test_every_stored_run_keeps_every_rule(name: str) -> None:
    for run in archive(name).values():
        found = found_by(run)
        if run.record.arm in NOT_KNOWN:
            assert list(found) == ["F1"] and found["F1"].startswith("unverified record.json: what ")
        else:
            assert not found, f"{run.record.arm}: {found}"
