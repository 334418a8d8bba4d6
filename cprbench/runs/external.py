"""Loops that are not ours, metered into full records: any command, or code between two lines of Python.

Such a record is marked `external loop`. What its loop does not tell (seed, recipe, data, weights, FLOPs) is None
with a reason; everything that meters see from outside is measured as in our own runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cprbench.errors import SpecError, did_you_mean
from cprbench.meters import Meter, hardware
from cprbench.meters.history import finish_history
from cprbench.meters.ledger import account
from cprbench.meters.memory import MemoryMeter
from cprbench.meters.recorder import Recorder
from cprbench.meters.trace import Trace
from cprbench.meters.tree import AllocatorMeter, TreeMeter, wait_for_device
from cprbench.runs import store
from cprbench.runs.child import stop_group
from cprbench.runs.metering import MeterOptions, environment_of, open_bench
from cprbench.schema import parse, sha256_of
from cprbench.spec import Choice, ExternalModel, ExternalSpec, ExternalTask, Phase, Psi, RunRecord, Status

_NO_FLOPS = "the loop is not ours, so the shapes that it computed on are not known"


class Measurement:
    """A run in the making: phases are opened and closed, scores are told, `finish` writes the record.

    Everything between two phases is in none of them. Use it through `measure`, `measure_command` or the callback.
    """

    def __init__(
        self,
        *,
        task: str,
        model: str,
        method: str = "external",
        block: int = 0,
        out: Path | str = "runs",
        metering: MeterOptions | None = None,
        tree: TreeMeter | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._metering = metering or MeterOptions()
        self._bench = open_bench(self._metering, devices=None)
        self._shelf = store.Store(Path(out))
        self._shelf.open_for_writing()
        given = {"method": method, "settings": dict(settings or {})}
        identity = sha256_of({"external loop": given, "task": task, "model": model, "block": block})[:16]
        self.run_id = self._shelf.free_id(identity)
        self.folder = self._shelf.begin(self.run_id)
        self._spec = ExternalSpec(
            task=ExternalTask(name=task),
            model=ExternalModel(source=model, label=model),
            method=Choice(name=method, settings=given["settings"]),
        )
        self._block = block
        self._psi = Psi(primary="unknown", base=None, final=None, items=0)
        self._told: dict[str, Any] = {}
        self._open: Phase | None = None
        self._history: list[dict[str, Any]] = []
        self._billed = 0.0
        self._since = 0.0
        meters: list[Meter] = [*self._bench.meters, AllocatorMeter()]
        meters.append(tree or MemoryMeter(os.getpid()))
        self._recorder = Recorder(self.folder / store.SAMPLES, meters)
        self._recorder.__enter__()

    def start(self, phase: Phase) -> None:
        """Open a phase; one that is open is closed first."""
        self.end()
        self._open, self._since = phase, time.monotonic()
        self._recorder.edge(phase, "start", self._since, {})

    def end(self) -> None:
        """Close the open phase, after the device's queued work is done."""
        if self._open is None:
            return
        wait_for_device()
        now = time.monotonic()
        if self._open in ("select", "train"):
            self._billed += now - self._since
        phase, self._open = self._open, None
        self._recorder.edge(phase, "end", now, {})

    def step(self, step: int, loss: float, validation: Mapping[str, float] | None = None) -> None:
        """Note a training step for history.jsonl."""
        now = time.monotonic()
        running = now - self._since if self._open in ("select", "train") else 0.0
        row: dict[str, Any] = {"step": step, "phase": self._open or "train", "t": now}
        row |= {"seconds": self._billed + running, "loss": loss, "flops": None}
        self._history.append(row | ({"validation": dict(validation)} if validation else {}))

    def psi(
        self,
        primary: str,
        final: Mapping[str, float],
        *,
        base: Mapping[str, float] | None = None,
        items: int = 0,
    ) -> None:
        """Tell the scores by metric name; raises SpecError when `primary` is not among them."""
        if primary not in final:
            raise SpecError(f"psi: primary {primary!r} is not among the scores {sorted(final)}.")
        told = {"primary": primary, "final": dict(final), "base": None if base is None else dict(base), "items": items}
        self._psi = parse(Psi, told, "psi")

    def tell(self, **facts: Any) -> None:
        """Tell what the record has a field for. Raises SpecError for anything else."""
        known = ("trained_parameters", "total_parameters", "new_head_parameters", "optimizer_state_bytes")
        for name in facts:
            if name not in known:
                raise SpecError(f"tell: unknown fact {name!r}. {did_you_mean(name, known)}")
        self._told |= facts

    def finish(self, status: Status = "ok", error: str | None = None) -> RunRecord:
        """Close everything, write the record and return it."""
        self.end()
        self._recorder.__exit__(None, None, None)
        trace = Trace.load(self.folder / store.SAMPLES)
        on_gpu = bool(self._bench.gpu.devices) and _gpu_was_used(trace)
        carbon = self._metering.carbon
        bill = account(
            trace,
            _NO_FLOPS,
            cores=hardware.bound_cores(),
            accelerators=self._bench.accelerators(on_gpu),
            carbon=carbon,
            flags=self._bench.flags,
        )
        rows = "".join(json.dumps(row) + "\n" for row in self._history if math.isfinite(row["loss"]))
        (self.folder / store.HISTORY).write_text(rows, encoding="utf-8")
        finish_history(self.folder / store.HISTORY, trace)
        (self.folder / store.PREDICTIONS).write_text("", encoding="utf-8")
        environment = environment_of(self._bench, on_gpu, carbon)
        self._bench.close()
        unknown = dict.fromkeys(
            ("new_head_parameters", "k_asked", "k_reached", "selected_examples", "selection_sha256")
        )
        record = RunRecord.model_validate(
            {
                "run_id": self.run_id,
                "status": status,
                "error": error,
                "role": "run",
                "loop": "external loop",
                "arm": self._spec.method.name,
                "block": self._block,
                "attempts": 1,
                "spec": self._spec,
                "environment": environment,
                "psi": self._psi,
                "gamma": bill.gamma,
                "seconds": bill.seconds,
                "readings": bill.readings,
                "trained_parameters": None,
                "total_parameters": None,
                "trained_submodules": [],
                "optimizer_state_bytes": None,
                "peak_memory_bytes": bill.peak_memory_bytes,
                **unknown,
                **self._told,
            }
        )
        self._shelf.commit(self.folder, record)
        return record


def _gpu_was_used(trace: Trace) -> bool:
    """Return whether the loop took GPU memory: by its allocator, or seen from outside (a context takes more)."""
    used = [v for s in trace.samples for key, v in s.values.items() if re.fullmatch(r"gpu\d+_memory_used_bytes", key)]
    return bool(trace.series("cuda_reserved_bytes")) or max(used, default=0.0) > 100e6


class _Unmetered:
    """Takes what a Measurement takes and does nothing: the node's first process measures for all."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("start", "end", "step", "psi", "tell"):
            raise AttributeError(name)
        return lambda *given, **named: None


@contextlib.contextmanager
def measure(
    *,
    task: str,
    model: str,
    method: str = "external",
    block: int = 0,
    out: Path | str = "runs",
    metering: MeterOptions | None = None,
) -> Iterator[Measurement | _Unmetered]:
    """Meter the code in a `with` block as phase train and write its record at the end.

    Tell scores with `run.psi(...)`, steps with `run.step(...)`, other phases with `run.start("validate")`.
    A block that raises becomes a record with status failed, and the exception goes on. One meter per node: under
    LOCAL_RANK other than 0 the block runs unmetered.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield _Unmetered()
        return
    run = Measurement(task=task, model=model, method=method, block=block, out=out, metering=metering)
    run.start("train")
    try:
        yield run
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        run.finish("interrupted" if interrupted else "failed", f"{type(error).__name__}: {error}")
        raise
    run.finish()


def measure_command(
    command: Sequence[str],
    *,
    task: str,
    model: str,
    method: str,
    block: int = 0,
    out: Path | str = "runs",
    psi_file: Path | None = None,
    metering: MeterOptions | None = None,
    quiet: bool = False,
) -> RunRecord:
    """Run a command under the meters, its whole process tree as phase train, and return its record.

    `psi_file`: a JSON file that the command writes: {"primary": "accuracy", "final": {"accuracy": 0.8}, …}.
    `quiet`: what the command prints goes to stderr. Raises SpecError when the command cannot be started.
    """
    before = psi_file.stat().st_mtime_ns if psi_file is not None and psi_file.exists() else None
    tree = TreeMeter()
    settings = {"command": " ".join(command)}
    run = Measurement(
        task=task, model=model, method=method, block=block, out=out, metering=metering, tree=tree, settings=settings
    )
    run.start("train")
    try:
        process = subprocess.Popen(command, start_new_session=True, stdout=sys.stderr if quiet else None)
    except OSError as reason:
        run.finish("failed", f"the command could not be started: {reason}")
        raise SpecError(f"cannot start {command[0]!r}: {reason.strerror}. Write the command after --.") from reason
    tree.pid = process.pid
    status: Status = "ok"
    error = None
    try:
        code = process.wait()
        if code != 0:
            status, error = "failed", f"the command ended with code {code}"
    except KeyboardInterrupt:
        stop_group(process)
        status, error = "interrupted", "interrupted by Ctrl-C"
    run.end()
    if psi_file is not None and status == "ok":
        status, error = _read_psi(run, psi_file, before)
    return run.finish(status, error)


def _read_psi(run: Measurement, path: Path, before: int | None) -> tuple[Status, str | None]:
    """Tell the scores that the command wrote; a file that it did not write is a failure, not an old score."""
    if not path.exists() or path.stat().st_mtime_ns == before:
        return "failed", f"the command did not write {path}"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        run.psi(told["primary"], told["final"], base=told.get("base"), items=told.get("items", 0))
    except (ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
        return "failed", f"{path} is not a psi file: {error}"
    return "ok", None
