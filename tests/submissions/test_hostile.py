"""Whatever an enemy submits is refused in words or read as text: soon, in little memory, and without doing a thing."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cprbench.judge.submission import Entry
from cprbench.submissions.validation import Tasks, validate
from tests.conftest import ROOT
from tests.hostile.corpus import JUDGED, REFUSED, RUN, honest
from tests.hostile.payloads import HIDDEN, PAYLOADS, READABLE
from tests.submissions.altering import rehash

MOST_SECONDS, MOST_MEMORY_BYTES = 2, 500_000_000


@pytest.fixture(scope="module")
def watched() -> dict[str, Any]:
    """What validate made of all of tests/hostile, in a process of its own."""
    command = [sys.executable, "-m", "tests.hostile.reading"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_hostile_submission_is_invalid_and_says_why(watched: dict[str, Any]) -> None:
    came_to = {name: watched["found"][name]["came_to"] for name in REFUSED}
    assert {name: outcome for name, outcome in came_to.items() if outcome != "invalid"} == {}
    assert all(watched["found"][name]["told"] for name in REFUSED)


def test_the_honest_submission_that_they_are_made_of_is_none_of_them(watched: dict[str, Any]) -> None:
    assert watched["found"]["honest"]["came_to"] == "consistent", watched["found"]["honest"]["told"]


def test_numbers_beyond_reason_are_judged_and_stop_nothing(watched: dict[str, Any]) -> None:
    assert [(n, watched["found"][n]["told"]) for n in JUDGED if watched["found"][n]["came_to"] == "raised"] == []


def test_none_takes_two_seconds_or_500_megabytes(watched: dict[str, Any]) -> None:
    slow = {n: found["seconds"] for n, found in watched["found"].items() if found["seconds"] > MOST_SECONDS}
    assert slow == {}
    assert watched["peak_bytes"] < MOST_MEMORY_BYTES


def test_reading_them_starts_writes_and_loads_nothing(watched: dict[str, Any]) -> None:
    usual = set(watched["found"]["honest"]["events"])
    assert all(event.startswith("compile") for event in usual)  # the types of our own settings
    unusual = {name: set(found["events"]) - usual for name, found in watched["found"].items()}
    assert {name: events for name, events in unusual.items() if events} == {}
    assert watched["heavy"] == []


def test_what_is_told_can_be_shown_and_is_short(watched: dict[str, Any]) -> None:
    for name, found in watched["found"].items():
        for told in found["told"]:
            assert len(told) < 10_000, name
            assert not [c for c in told if unicodedata.category(c)[0] == "C" and c != "\n"], (name, told)


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks(None, offline=True)


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    return honest(tmp_path / "submission")


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where texts are in a record, of every list in its first entry alone."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    elif isinstance(value, list):
        for part in value[:1]:
            yield from places(part, (*path, 0))
    elif isinstance(value, str):
        yield path


def judged(submission: Path, tasks: Tasks) -> Entry:
    entry = validate(submission, tasks=tasks)
    assert Entry.model_validate_json(entry.model_dump_json(by_alias=True)) == entry
    assert not [c for f in entry.findings for c in f.message if unicodedata.category(c)[0] == "C" and c not in "\n\t"]
    return entry


def test_a_text_in_any_place_of_a_record_is_text(submission: Path, tasks: Tasks) -> None:
    run = submission / "runs" / RUN
    record = (run / "record.json").read_text()
    found = list(places(json.loads(record)))
    assert len(found) > 50
    for number, path in enumerate(found):
        data = json.loads(record)
        for payload in (READABLE[number % len(READABLE)], HIDDEN[number % len(HIDDEN)]):
            inner = data
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = payload
            (run / "record.json").write_text(json.dumps(data, ensure_ascii=bool(number % 2)))
            rehash(run)
            entry = judged(submission, tasks)
            assert entry.status == "invalid" or payload not in HIDDEN, path


def test_a_key_in_any_free_table_of_a_record_is_text(submission: Path, tasks: Tasks) -> None:
    run = submission / "runs" / RUN
    record = (run / "record.json").read_text()
    for number, payload in enumerate(READABLE):
        data = json.loads(record)
        for table in (data["environment"]["packages"], data["environment"]["facts"], data["notes"]):
            table[payload[:200]] = payload
        if number % 2:
            data["spec"]["method"]["settings"][payload[:200]] = payload
            data["gamma"][payload[:200]] = payload
        (run / "record.json").write_text(json.dumps(data))
        rehash(run)
        judged(submission, tasks)


@pytest.mark.parametrize("field", ["name", "authors", "license", "division", "links", "description"])
def test_a_text_in_any_field_of_submission_toml_is_text(submission: Path, tasks: Tasks, field: str) -> None:
    said = {"schema": "cprbench.submission/1", "name": "honest", "authors": ["Ada"], "license": "CC-BY-4.0"}
    for payload in PAYLOADS:
        value = [payload] if field in ("authors", "links") else payload
        lines = [f"{key} = {json.dumps(text)}" for key, text in (said | {field: value}).items()]
        (submission / "submission.toml").write_text("\n".join(lines), encoding="utf-8")
        entry = judged(submission, tasks)
        assert entry.status == "invalid" or payload in READABLE, payload
        if entry.submission is not None and field == "links":
            assert entry.submission.links[0].startswith(("http://", "https://"))
