"""What this machine measures, found out by measuring for two seconds, and how fast it multiplies and copies."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from cprbench.meters import SAMPLES_PER_SECOND, hardware
from cprbench.meters.ledger import account
from cprbench.meters.memory import MemoryMeter
from cprbench.meters.recorder import Recorder
from cprbench.meters.trace import Trace
from cprbench.runs.child import run_child
from cprbench.runs.metering import MeterOptions, open_bench, rates_file

_SECONDS = 2.0
#: What every run counts without any meter.
_COUNTED = [
    {"quantity": "seconds", "source": "counter", "resolution": f"{time.get_clock_info('monotonic').resolution:g} s"},
    {"quantity": "flops", "source": "counted", "resolution": "exact for the shapes that ran"},
]


def diagnose(*, with_rates: bool) -> dict[str, Any]:
    """Return hardware class, what is measured (quantity, source, resolution), what is missing and why, and rates."""
    bench = open_bench(MeterOptions(allow_shared=True))
    on_gpu = bool(bench.gpu.devices)
    with tempfile.TemporaryDirectory(prefix="cprbench-") as scratch:
        path = Path(scratch) / "samples.jsonl"
        with Recorder(path, [*bench.meters, MemoryMeter(os.getpid())]) as recorder:
            recorder.edge("train", "start", time.monotonic(), {})
            time.sleep(_SECONDS)
            recorder.edge("train", "end", time.monotonic(), {})
        trace = Trace.load(path)
    bill = account(trace, "no run", cores=hardware.bound_cores(), accelerators=bench.accelerators(on_gpu))
    measured: list[dict[str, str]] = list(_COUNTED)
    missing: list[dict[str, str]] = []
    for reading in bill.readings:
        if reading.phase != "train" or reading.quantity in ("seconds", "flops"):
            continue
        if reading.value is None:
            missing.append({"quantity": reading.quantity, "why": str(reading.why_missing)})
        else:
            step = reading.detail.get("resolution_joules")
            sampled = f"{SAMPLES_PER_SECOND} samples a second" if reading.source == "sampled" else "one value a phase"
            resolution = f"{step:g} J" if step is not None else str(reading.detail.get("assumed_from", sampled))
            measured.append({"quantity": reading.quantity, "source": str(reading.source), "resolution": resolution})
    result = {
        "hardware_class": bench.hardware_class(on_gpu),
        "measured": measured,
        "missing": missing,
        "facts": {meter.name: meter.facts() for meter in bench.meters} | hardware.machine_facts(),
        "rates": measure_rates(bench.hardware_class(on_gpu)) if with_rates else {},
    }
    bench.close()
    return result


def measure_rates(hardware_class: str) -> dict[str, dict[str, Any]]:
    """Return matmul and copy rates of this machine and keep them for records; a reason where torch is absent."""
    with tempfile.TemporaryDirectory(prefix="cprbench-") as scratch:
        outcome = run_child({"kind": "rates"}, Path(scratch), lambda event: None, offline=True, meter=False)
    if outcome.result is None:
        why = str(outcome.error).splitlines()[-1]
        names = ("matmul_fp32_gflops_per_second", "matmul_bf16_gflops_per_second", "copy_gb_per_second")
        return {name: {"value": None, "why_missing": why} for name in names}
    rates_file(hardware_class).parent.mkdir(parents=True, exist_ok=True)
    rates_file(hardware_class).write_text(json.dumps(outcome.result), encoding="utf-8")
    return {name: {"value": value, "why_missing": None} for name, value in outcome.result.items()}


def announcement() -> str:
    """Return one line that says, before a run, what will be measured: cheap, from what the meters found at once."""
    bench = open_bench(MeterOptions(allow_shared=True))
    missing = {q for meter in bench.meters for q in meter.missing()}
    bench.close()
    if bench.gpu.devices:
        energy = "GPU boards by NVML" if "gpu_energy_joules" not in missing else "not measured (no GPU counter)"
    else:
        energy = (
            "RAPL" if "cpu_energy_joules" not in missing else "not measured (no RAPL), codecarbon's estimate beside"
        )
    memory = "device memory" if bench.gpu.devices else "RSS of the child"
    return (
        f"measuring: time, FLOPs (counted), {memory} at {SAMPLES_PER_SECOND} Hz; energy: {energy}. See cprbench doctor."
    )
