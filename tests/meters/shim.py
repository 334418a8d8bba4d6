"""Plays scenarios: the real GpuMeter, the real pynvml, and the stand-in driver of nvml_shim.c under them.

Run by conftest.py in a process of its own, because the loader learns at its start where libraries lie, and so that
no other test meets the stand-in. One JSON request per line in, one JSON answer per line out:

    script     lines for the driver (nvml_shim.c says which)     until, every, offset   when the meter is sampled (s)
    edges      [t, phase, "start" | "end", attempt]              wall_jump              [t, seconds]: the clock is set
    environ, uuids, own_pids                                     as GpuMeter takes them

The clock is the driver's: a test of ten minutes takes no longer than its calls.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from cprbench.errors import SpecError
from cprbench.meters.device import GpuMeter
from cprbench.meters.trace import Sample


def play(request: dict[str, Any], driver: ctypes.CDLL) -> dict[str, Any]:
    """Return the lines that the meter left, its facts, and what it said about other processes."""
    if driver.shim_load(request["script"].encode()) != 0:
        return {"error": "the driver does not understand this script"}
    now = 0.0

    def wall() -> float:
        at, seconds = request.get("wall_jump") or (float("inf"), 0.0)
        return 1.8e9 + now + (seconds if now >= at else 0.0)

    try:
        meter = GpuMeter(request.get("uuids"), request.get("environ", {}), wall)
    except SpecError as error:
        return {"error": str(error)}
    foreign = meter.foreign_processes(request.get("own_pids", []))
    ticks = [request["offset"] + request["every"] * n for n in range(int(request["until"] / request["every"]))]
    moments = [(t, None) for t in ticks] + [(edge[0], edge) for edge in request["edges"]]
    lines = []
    for now, edge in sorted(moments, key=lambda moment: moment[0]):
        driver.shim_time(ctypes.c_double(now))
        if edge is None:
            lines.append(Sample(now, meter.sample()).line())
        else:
            lines.append(Sample(now, meter.edge(), edge[1], edge[2], edge[3]).line())
    missing = meter.missing()
    lines.append(json.dumps({"missing": missing}))
    answer = {
        "lines": lines,
        "missing": missing,
        "facts": meter.facts(),
        "foreign": None if foreign is None else [[p.pid, p.uuid, p.memory_bytes] for p in foreign],
    }
    meter.close()
    return answer | {"after_close": meter.sample()}


def main() -> None:
    """Answer requests until there are no more."""
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        driver = None  # the test of a machine without one
    for line in sys.stdin:
        request = json.loads(line)
        if driver is None:
            meter = GpuMeter()
            answer = {"missing": meter.missing(), "facts": meter.facts(), "sample": meter.sample()}
        else:
            answer = play(request, driver)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
