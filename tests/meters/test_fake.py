"""Meters without hardware leave traces whose integrals are known."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cprbench.meters.fake import FakeMeter, NullMeter, ReplayMeter
from cprbench.meters.ledger import account
from cprbench.meters.recorder import Recorder
from cprbench.meters.trace import Sample, Trace


def record(path: Path, *meters: NullMeter, seconds: float = 0.6) -> Trace:
    with Recorder(path, meters) as recorder:
        recorder.edge("train", "start", time.monotonic(), {})
        time.sleep(seconds)
        recorder.edge("train", "end", time.monotonic(), {})
    return Trace.load(path)


def test_a_scripted_ramp_has_its_integral(tmp_path: Path) -> None:
    trace = record(tmp_path / "samples.jsonl", FakeMeter(lambda t: {"rss_bytes": 1e9 * t}))
    (window,) = trace.windows()
    found = trace.integral("rss_bytes", [window])
    assert found is not None
    assert found[0] == pytest.approx(1e9 * window.seconds**2 / 2, rel=0.1)


def test_a_meter_that_measures_nothing_gives_its_reason_and_no_number(tmp_path: Path) -> None:
    trace = record(tmp_path / "samples.jsonl", NullMeter(rss_bytes="nobody looked"), seconds=0.05)
    bill = account(trace, "no run", cores=1, accelerators=0)
    assert bill.gamma.memory_gb_hours is None
    assert {r.why_missing for r in bill.readings if r.quantity == "rss_byte_seconds"} == {"nobody looked"}


def test_a_stored_trace_plays_again_at_its_own_pace(tmp_path: Path) -> None:
    now = [100.0]
    stored = Trace([Sample(5.0, {"rss_bytes": 1.0}), Sample(7.0, {"rss_bytes": 2.0})], {"gpu_energy_joules": "no GPU"})
    meter = ReplayMeter(stored, clock=lambda: now[0])
    played = []
    for now[0] in (100.0, 101.9, 102.0, 110.0):
        played.append(meter.sample()["rss_bytes"])
    assert played == [1.0, 1.0, 2.0, 2.0]
    assert meter.missing() == {"gpu_energy_joules": "no GPU"}
