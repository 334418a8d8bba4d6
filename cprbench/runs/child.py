"""Spawn a child, listen to it, read the meters when it changes phase, and say how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cprbench.errors
from cprbench.errors import CprbenchError
from cprbench.meters import Meter, hardware
from cprbench.meters.energy import counted_joules
from cprbench.meters.memory import MemoryMeter
from cprbench.meters.recorder import Recorder
from cprbench.runs.store import SAMPLES
from cprbench.sessions.channel import parse_event
from cprbench.spec import Status

_PATIENCE_SECONDS = 0.5
#: What tells a process that it is one of many; a launcher around us speaks of its own, not of our children.
_PLACES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE"),
    *("PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)
_GRACE_SECONDS = 5.0
LOG = "child.log"
Observer = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its result, or a status with what went wrong."""

    status: Status
    result: dict[str, Any] | None
    error: str | None
    error_kind: str | None = None

    def must(self) -> dict[str, Any]:
        """Return the result. Raises KeyboardInterrupt, or what the child met, as the same class of CprbenchError."""
        if self.status == "interrupted":
            raise KeyboardInterrupt
        if self.result is None:
            raise getattr(cprbench.errors, self.error_kind or "", CprbenchError)(self.error)
        return self.result


def run_child(
    job: Mapping[str, Any],
    folder: Path,
    observe: Observer,
    *,
    offline: bool,
    meter: bool = True,
    meters: Sequence[Meter] = (),
    environment: Mapping[str, str] | None = None,
    processes: int = 1,
) -> Outcome:
    """Run a job in a spawned child with its own process group and return how it ended.

    `offline`: the child may open no connection. `meter`: samples.jsonl is written into `folder` from the child's
    memory and from `meters`. `environment`: variables on top of this process's own. `processes`: how many children
    work together; the first one talks, and memory is that of all. A child that raises, dies or is interrupted
    (Ctrl-C) comes back as an Outcome, never as an exception.
    """
    to_child, from_child = os.pipe(), os.pipe()
    job = {**job, "processes": processes, **({"launched": time.monotonic()} if meter else {})}
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "cprbench.sessions.worker", str(path), str(to_child[0]), str(from_child[1])]
    variables = {**_environment(offline), **(environment or {})}
    with (folder / LOG).open("w", encoding="utf-8") as log:
        started = [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if rank else (to_child[0], from_child[1]),
                start_new_session=True,
                env=variables | together,
            )
            for rank, together in enumerate(_together(processes, variables))
        ]
    process = started[0]
    os.close(to_child[0])
    os.close(from_child[1])
    oom_before = _oom_kills()
    with (
        os.fdopen(to_child[1], "w", encoding="utf-8", buffering=1) as line_out,
        os.fdopen(from_child[0], "r", encoding="utf-8") as lines_in,
    ):
        died = _watch(started)
        try:
            if not meter:
                outcome = _listen(lines_in, None, line_out, observe)
            else:
                # Counters first: a PSS read takes milliseconds, which would shift power between phases.
                own: list[Meter] = [*meters, MemoryMeter(*(member.pid for member in started))]
                with Recorder(folder / SAMPLES, own, job["attempt"]) as recorder:
                    recorder.edge("setup", "start", job["launched"], {})
                    outcome = _listen(lines_in, recorder, line_out, observe)
            if died and (outcome is None or _is_echo(outcome)):
                outcome = _death(died[0], folder / LOG, oom=_oom_kills() > oom_before)
        except KeyboardInterrupt:
            outcome = Outcome("interrupted", None, "interrupted by Ctrl-C")
        finally:
            for member in started:
                stop_group(member)
    path.unlink()
    if outcome is not None:
        return outcome
    return _death(process.returncode, folder / LOG, oom=_oom_kills() > oom_before)


def _environment(offline: bool) -> dict[str, str]:
    env = {
        # Threads that spin at a barrier take the core from the one they wait for as soon as anything else runs here.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Every run pays for what it compiles, in its own process: a cache would make the second arm's cheaper.
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        **{name: value for name, value in os.environ.items() if name not in _PLACES},
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    if offline:
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return env


def _together(processes: int, variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what tells each process of its place among the others (torch.distributed's own variables)."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = variables.get("OMP_NUM_THREADS", str(max(1, hardware.bound_cores() // processes)))
    everyone = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
    }
    return [{**everyone, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _is_echo(outcome: Outcome) -> bool:
    """Return whether the first process tells no more than that another one has gone: an error that is not ours."""
    return outcome.status == "failed" and not hasattr(cprbench.errors, outcome.error_kind or "")


def _watch(started: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """End the first process soon after another one failed: it would wait for it. Return where their codes will be."""
    died: list[int] = []

    def watch(helper: subprocess.Popen[bytes]) -> None:
        code = helper.wait()
        if code != 0:
            died.append(code)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started[0].wait(timeout=_GRACE_SECONDS)  # most often it has met the same error and tells it itself
                return
            stop_group(started[0])

    for helper in started[1:]:
        threading.Thread(target=watch, args=(helper,), daemon=True).start()
    return died


def _listen(lines: Any, recorder: Recorder | None, line_out: Any, observe: Observer) -> Outcome | None:
    """Follow a child's events to its result or error; None when it falls silent without either."""
    for line in lines:
        event = parse_event(line)
        if event is None:
            return None
        match event["event"]:
            case "start" if recorder is not None:
                recorder.edge(event["phase"], "start", event["t"], {})
            case "end":
                values = {} if recorder is None else recorder.edge(event["phase"], "end", event["t"], event["values"])
                _answer(line_out, values)
            case "energy":
                _answer(line_out, {} if recorder is None else recorder.take())
            case "result":
                return Outcome("ok", event["result"], None)
            case "error":
                return Outcome(event["status"], None, event["message"], event["kind"])
        if recorder is not None and "cuda_reserved_bytes" in event:
            recorder.sample({k: v for k, v in event.items() if k.startswith("cuda_")})
        observe(event)
    return None


def _answer(line_out: Any, values: Mapping[str, float]) -> None:
    """Let the child go on, and tell it where the energy counters stand, if there are any."""
    joules = counted_joules(values)
    with contextlib.suppress(BrokenPipeError):  # the child died meanwhile; the loop will see it
        line_out.write(("" if joules is None else repr(joules)) + "\n")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its whole group, kindly first: what it does after its last word is not part of the run."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_PATIENCE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)  # grandchildren too, where the leader has gone already
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _oom_kills() -> int:
    """Return how many processes of this control group the kernel has killed for want of memory."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text(encoding="utf-8")
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def _death(code: int, log: Path, *, oom: bool) -> Outcome:
    if code < 0:
        name = signal.Signals(-code).name
        if oom and -code == signal.SIGKILL:
            return Outcome("out_of_memory", None, f"the kernel killed the child for want of memory ({name})")
        return Outcome("failed", None, f"the child was killed by {name}")
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    return Outcome("failed", None, f"the child ended with code {code} and no result. Its last words:\n{tail}")
