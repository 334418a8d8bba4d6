"""How quickly the command line answers: `cprbench --help` in a fresh process, against `python -c pass`.

python -m benchmarks.startup             prints as its last line JSON with help_seconds (wanted: below 0.3)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

_PAIRS = 15


def seconds(*words: str) -> float:
    """Return the wall seconds of a command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Run the interleaved pairs and print the medians."""
    seconds("-m", "cprbench", "--help")  # compiles what is not compiled yet
    pairs = [(seconds("-m", "cprbench", "--help"), seconds("-c", "pass")) for _ in range(_PAIRS)]
    answer, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(json.dumps({"help_seconds": round(answer, 4), "bare_python_seconds": round(bare, 4), "pairs": _PAIRS}))


if __name__ == "__main__":
    main()
