"""What metering costs: CPU seconds of the meters per core-second, and the wall time of metered work.

    python -m benchmarks.metering            prints as its last line JSON with overhead_percent (wanted: at most 1)

overhead_percent = CPU seconds of the sampling thread and of all edges / (cores x wall seconds), at 10 Hz, with every
meter that this machine offers. wall_ratio compares the same single-threaded matrix products with and without the
meters, in interleaved pairs, with the 95 % interval of the median by bootstrap.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cprbench.meters import SAMPLES_PER_SECOND, hardware
from cprbench.meters.memory import MemoryMeter
from cprbench.meters.recorder import Recorder
from cprbench.runs.metering import MeterOptions, open_bench

#: Held by the watched child: what a MiniLM run holds, since reading its memory costs time per GiB.
_CHILD = "import time; x = b'x' * 1_200_000_000; print('ready', flush=True); time.sleep(3600)"


def work(seconds: float) -> float:
    """Multiply matrices for about `seconds` and return the seconds that one product took."""
    matrix = np.ones((400, 400))
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        matrix @ matrix
        products += 1
    return (time.perf_counter() - began) / products


def metered(seconds: float, pid: int, folder: Path) -> tuple[float, float, float]:
    """Return (seconds per product, CPU seconds of metering, wall seconds) with two phase edges a stretch."""
    bench = open_bench(MeterOptions(allow_shared=True))
    before = time.perf_counter()
    with Recorder(folder / "samples.jsonl", [*bench.meters, MemoryMeter(pid)]) as recorder:
        recorder.edge("train", "start", time.monotonic(), {})
        took = work(seconds)
        cpu = time.thread_time()
        recorder.edge("train", "end", time.monotonic(), {})
        edges = time.thread_time() - cpu
    wall = time.perf_counter() - before
    bench.close()
    return took, recorder.seconds_of_cpu + edges, wall


def main() -> None:
    """Run the interleaved pairs and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each stretch")
    given = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    ratios, cpu, wall = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        work(1.0)
        for pair in range(given.pairs):
            if pair % 2:
                plain = work(given.seconds)
                took, used, lasted = metered(given.seconds, child.pid, Path(scratch))
            else:
                took, used, lasted = metered(given.seconds, child.pid, Path(scratch))
                plain = work(given.seconds)
            ratios.append(took / plain)
            cpu, wall = cpu + used, wall + lasted
            print(f"pair {pair + 1}: metered / plain = {ratios[-1]:.4f}, meters used {1000 * used:.1f} ms of CPU")
    child.kill()
    draws = np.random.Generator(np.random.PCG64(0)).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    figures = {
        "overhead_percent": round(100 * cpu / (hardware.bound_cores() * wall), 4),
        "wall_ratio": round(float(np.median(ratios)), 4),
        "wall_ratio_95": [round(float(low), 4), round(float(high), 4)],
        "samples_per_second": SAMPLES_PER_SECOND,
        "pairs": given.pairs,
        "hardware_class": hardware.cpu_class(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
