"""The score cache: what is taken from it is billed once per run, and nothing in it can stop a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cprbench.adapt.selection import Measured
from cprbench.meters.flops import Flops
from cprbench.meters.trace import Trace
from cprbench.sessions.score_cache import CACHED, USED, ScoreCache, keys, settle
from cprbench.spec import Reading

#: Setup, then select from 10 to 16 with the scoring from 11 to 14 as a window of its own, by memory of 100 bytes.
EDGES = [
    ("setup", "start", 0.0), ("setup", "end", 10.0),
    ("select", "start", 10.0), ("select", "end", 11.0),
    ("select", "start", 11.0), ("select", "end", 14.0),
    ("select", "start", 14.0), ("select", "end", 16.0),
]  # fmt: skip


def trace() -> Trace:
    lines = [json.dumps({"t": t / 2, "values": {"rss_bytes": 100}}) for t in range(33)]
    lines += [
        json.dumps({"t": t, "edge": side, "phase": phase, "attempt": 1, "values": {"rss_bytes": 100}})
        for phase, side, t in EDGES
    ]
    return Trace.parse(sorted(lines, key=lambda line: json.loads(line)["t"]), "here")


def measured() -> Measured:
    return Measured(np.array([0.5, 1.0]), np.array([[1.0, 2.0], [3.0, 4.0]]))


def settled(root: Path, attempt: Path, number: int = 1, **more: object) -> list[Reading]:
    return settle(root, attempt, trace(), number, flops_known=True, cores=2, accelerators=0, **more)  # type: ignore[arg-type]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A cache with one entry that an earlier run measured from 11 to 14 for 700 FLOPs, 100 of them padding."""
    cache = ScoreCache(tmp_path / "scores", tmp_path / "first" / USED)
    (tmp_path / "first").mkdir()
    cache.put("k1", measured(), (10.9, 14.1), Flops(700, 100))
    assert settled(tmp_path / "scores", tmp_path / "first") == []
    return tmp_path


def use(folder: Path, name: str, key: str = "k1") -> Path:
    attempt = folder / name
    attempt.mkdir()
    assert ScoreCache(folder / "scores", attempt / USED).get(key) is not None
    return attempt


def value(readings: list[Reading], phase: str, quantity: str) -> float | None:
    return next(r.value for r in readings if (r.phase, r.quantity) == (phase, quantity))


def test_what_is_taken_comes_back_as_it_was_and_is_billed_its_own_window(stored: Path) -> None:
    found, _ = ScoreCache(stored / "scores", stored / "log.jsonl").get("k1") or (None, None)
    assert found is not None
    np.testing.assert_array_equal(found.norms, measured().norms)
    assert found.states is None
    readings = settled(stored / "scores", use(stored, "second"), number=3)
    assert value(readings, "select", "seconds") == pytest.approx(3.0)
    assert value(readings, "select", "flops") == 700
    assert value(readings, "billed", "rss_byte_seconds") == pytest.approx(300)
    assert {r.attempt for r in readings} == {3} and all(CACHED in r.flags for r in readings)


def test_a_run_pays_once_however_many_attempts_it_takes(stored: Path) -> None:
    second, third = use(stored, "second"), use(stored, "third")
    assert settled(stored / "scores", second)
    assert settled(stored / "scores", third, number=2, paid=keys(second)) == []
    ScoreCache(stored / "scores", third / USED).get("k1")
    assert len(settled(stored / "scores", third)) == len(settled(stored / "scores", second))  # used twice in one run
    # What an attempt measured itself is in its own windows already.
    own = stored / "own"
    own.mkdir()
    cache = ScoreCache(stored / "scores", own / USED)
    cache.put("k2", measured(), (10.9, 14.1), Flops(700, 100))
    settled(stored / "scores", own)
    assert cache.get("k2") is not None
    assert settled(stored / "scores", own) == []


def test_the_bill_needs_no_file_of_the_cache(stored: Path) -> None:
    attempt = use(stored, "second")
    for path in (stored / "scores" / "k1").iterdir():
        path.unlink()
    assert value(settled(stored / "scores", attempt), "select", "flops") == 700


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("values.npz", b""),
        ("values.npz", b"PK\x03\x04 torn"),
        ("cost.json", b"[]"),
        ("cost.json", b"{"),
        ("cost.json", None),
    ],
)
def test_what_is_damaged_or_has_no_cost_counts_as_absent(stored: Path, name: str, content: bytes | None) -> None:
    path = stored / "scores" / "k1" / name
    path.unlink() if content is None else path.write_bytes(content)
    log = stored / "log.jsonl"
    assert ScoreCache(stored / "scores", log).get("k1") is None
    assert not log.exists()


def test_a_measurement_without_a_window_leaves_no_cost(stored: Path) -> None:
    attempt = stored / "other"
    attempt.mkdir()
    cache = ScoreCache(stored / "scores", attempt / USED)
    cache.put("k3", measured(), (100.0, 101.0), Flops(1, 0))
    settled(stored / "scores", attempt)
    assert cache.get("k3") is None
