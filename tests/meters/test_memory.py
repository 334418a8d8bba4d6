"""The memory meter on a process of its own, which takes and gives back what we tell it to."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cprbench.meters.memory import MemoryMeter
from cprbench.meters.recorder import Recorder
from cprbench.meters.trace import Trace

MB = 1_000_000
#: Takes or gives back memory at each line it is sent, and answers when it has.
CHILD = """
import sys
held = None
print("ready", flush=True)
for line in sys.stdin:
    held = None
    if int(line):
        held = bytearray(int(line))
        held[::4096] = b"x" * len(held[::4096])  # touch every page
    print("done", flush=True)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")


@dataclass
class Child:
    """A process and what to tell it."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def hold(self, size: int) -> None:
        """Let the child hold this many bytes, and wait until it does."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{size}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        """End the child, and reap it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def child() -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Child(process)
        process.kill()


def resets_peaks(child: Child) -> bool:
    try:
        Path(f"/proc/{child.pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def test_a_sample_is_what_the_process_holds_now(child: Child) -> None:
    meter = MemoryMeter(child.pid)
    before = meter.sample()["rss_bytes"]
    child.hold(200 * MB)
    held = meter.sample()["rss_bytes"]
    child.hold(0)
    after = meter.sample()["rss_bytes"]
    assert held - before == pytest.approx(200 * MB, rel=0.02)
    assert after == pytest.approx(before, abs=5 * MB)
    assert meter.missing() == {}


def test_a_peak_between_two_samples_is_seen_at_the_next_edge(child: Child) -> None:
    meter = MemoryMeter(child.pid)
    before = meter.edge()["rss_bytes"]
    child.hold(200 * MB)
    child.hold(0)
    edge = meter.edge()
    assert edge["peak_rss_bytes"] - before == pytest.approx(200 * MB, rel=0.02)
    assert edge["rss_bytes"] == pytest.approx(before, abs=5 * MB)
    assert 0 < edge["pss_bytes"] <= edge["rss_bytes"] + 1 * MB


def test_a_peak_belongs_to_the_phase_between_its_edges(child: Child) -> None:
    if not resets_peaks(child):
        pytest.skip("this system does not let us reset VmHWM of a child (/proc/PID/clear_refs)")
    meter = MemoryMeter(child.pid)
    meter.edge()
    child.hold(200 * MB)
    child.hold(50 * MB)
    first = meter.edge()
    second = meter.edge()
    assert first["peak_rss_bytes"] - second["peak_rss_bytes"] == pytest.approx(150 * MB, rel=0.05)
    child.hold(0)
    assert meter.edge()["peak_rss_bytes"] == pytest.approx(second["rss_bytes"], abs=5 * MB)
    assert meter.edge()["peak_rss_bytes"] < second["peak_rss_bytes"] - 40 * MB


def test_the_integral_over_a_phase_sees_what_was_held_in_it(child: Child, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"

    def phase(recorder: Recorder, name: str, work: Callable[[], None]) -> None:
        recorder.edge(name, "start", time.monotonic(), {})
        work()
        time.sleep(0.4)
        recorder.edge(name, "end", time.monotonic(), {})

    with Recorder(path, [MemoryMeter(child.pid)]) as recorder:
        phase(recorder, "setup", lambda: None)
        child.hold(200 * MB)
        phase(recorder, "train", lambda: None)
    trace = Trace.load(path)
    setup, train = trace.windows()
    means = []
    for window in (setup, train):
        found = trace.integral("rss_bytes", [window])
        assert found is not None
        assert found[1] >= 4  # 10 Hz for 0.4 s, and the edges
        means.append(found[0] / window.seconds)
    assert means[1] - means[0] == pytest.approx(200 * MB, rel=0.05)
    peaks = [window.end.values["peak_rss_bytes"] for window in (setup, train)]
    assert peaks[1] - peaks[0] == pytest.approx(200 * MB, rel=0.05)
    assert trace.missing == {}


def test_a_process_that_is_not_there_has_reasons_and_no_value(child: Child) -> None:
    child.end()
    meter = MemoryMeter(child.pid)
    assert meter.sample() == {}
    assert meter.edge() == {}
    missing = meter.missing()
    assert {"rss_bytes", "peak_rss_bytes", "pss_bytes"} <= set(missing)
    assert f"/proc/{child.pid}" in missing["rss_bytes"]


def test_a_process_that_ends_in_a_phase_leaves_no_zero(child: Child) -> None:
    meter = MemoryMeter(child.pid)
    assert meter.sample()["rss_bytes"] > 0
    child.end()
    assert meter.sample() == {}
    assert meter.edge() == {}
    assert "pss_bytes" in meter.missing()


def test_a_process_that_is_dead_and_not_yet_reaped_has_no_memory_to_read(child: Child) -> None:
    meter = MemoryMeter(child.pid)
    child.process.kill()
    for _ in range(100):
        if "rss_bytes" not in meter.sample():
            break
        time.sleep(0.02)
    assert meter.sample() == {}
    assert meter.edge() == {}
    assert "pss_bytes" in meter.missing()


def test_the_page_size_is_a_fact_of_the_meter(child: Child) -> None:
    assert MemoryMeter(child.pid).facts() == {"page_bytes": mmap.PAGESIZE}
