"""The child process of one run: loads, chooses, trains and scores, and tells the parent when phases change.

Started as `python -m cprbench.sessions.worker JOB.json READ_FD WRITE_FD`. It measures no cost itself beyond its own
clock and its CUDA allocator; the parent does, from outside.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from cprbench.errors import CprbenchError
from cprbench.meters.tree import AllocatorMeter, wait_for_device
from cprbench.sessions.channel import Channel

_NEVER_TRIM = 2**31 - 1

#: kind of job -> the module whose `work(job, channel)` does it and returns its result.
JOBS = {
    "run": "cprbench.sessions.session",
    "snapshots": "cprbench.surveys.snapshots",
    "inspect": "cprbench.sessions.inspection",
    "rates": "cprbench.sessions.rates",
    "blueprint": "cprbench.surveys.survey",
    "audit": "cprbench.surveys.survey",
    "scores": "cprbench.surveys.appraiser",
}


def keep_freed_memory() -> None:
    """Stop glibc from returning freed gradients to the kernel at every step (5 x on a 135M model)."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, _NEVER_TRIM)  # M_TRIM_THRESHOLD
        except OSError:  # another libc: slower, not wrong
            return


def main(job_path: str, read_fd: int, write_fd: int) -> int:
    """Run one job and return the exit code; failures become events, so that the parent can write the record."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    keep_freed_memory()
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    first = int(os.environ.get("RANK", "0")) == 0
    channel = Channel(read_fd, write_fd) if first else Channel(None, None)
    if job.get("processes", 1) == 1:
        channel.at_end, channel.allocated = AllocatorMeter().edge, AllocatorMeter().sample
    else:  # every process has an allocator of its own, so that of one says little
        channel.at_end = _wait_for_device
    if "launched" in job:
        channel.adopt("setup", job["launched"])
    try:
        from cprbench.adapt.products import multiply_by_onednn

        multiply_by_onednn()
        result = importlib.import_module(JOBS[job["kind"]]).work(job, channel)
        channel.send("result", result=result)
        return 0
    except CprbenchError as error:
        if not first:
            traceback.print_exc()  # to the log: nobody listens to this one
        channel.send("error", status="failed", kind=type(error).__name__, message=str(error))
    except Exception as error:
        status = "out_of_memory" if _is_out_of_memory(error) else "failed"
        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        channel.send("error", status=status, kind=type(error).__name__, message=message)
    return 0 if first else 1  # the first one has told what happened


def _wait_for_device() -> dict[str, float]:
    wait_for_device()
    return {}


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "Cannot allocate memory" in text
    )


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(code)  # interpreter shutdown of torch threads is no part of any run
