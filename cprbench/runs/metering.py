"""The meters of one run on this machine, what they say about it, and whether it may be metered at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cprbench
from cprbench.adapt.packages import cache_folder
from cprbench.endings import Resource
from cprbench.errors import MeterError
from cprbench.meters import Meter, hardware
from cprbench.meters.carbon import CarbonFactors
from cprbench.meters.cpu import ModelledEnergy, RaplMeter
from cprbench.meters.device import GpuMeter
from cprbench.meters.energy import counted_joules
from cprbench.meters.ledger import Account
from cprbench.spec import Environment


@dataclass(frozen=True)
class MeterOptions:
    """What a launch may say about metering."""

    carbon: CarbonFactors | None = None
    allow_shared: bool = False


@dataclass(frozen=True)
class Bench:
    """The meters of one run, opened before its child exists so that baselines are those of an idle device."""

    gpu: GpuMeter
    meters: Sequence[Meter]
    flags: Sequence[str] = ()
    child_environment: dict[str, str] = field(default_factory=dict)

    def accelerators(self, on_gpu: bool) -> float | None:
        """Return the accelerators that the run holds: 0 on a CPU run, None where NVML does not say."""
        return self.gpu.allotted if on_gpu else 0

    def hardware_class(self, on_gpu: bool) -> str:
        """Return the hardware class (DESIGN section 1) of what the run ran on."""
        return (self.gpu.hardware_class or "unknown GPU") if on_gpu else hardware.cpu_class()

    def unmetered(self, resource: Resource) -> str | None:
        """Return why a resource is not measured as a run goes on; None where it is."""
        on_gpu = bool(self.gpu.devices)
        if resource == "device_hours" and self.accelerators(on_gpu) is None:
            return "the driver does not say how much of a board the run holds"
        values = {key: value for meter in self.meters for key, value in meter.sample().items()}
        if resource != "energy_kwh" or counted_joules(values) is not None:
            return None
        missing = {key: why for meter in self.meters for key, why in meter.missing().items()}
        own = [why for key, why in missing.items() if re.fullmatch(r"(gpu\d+_energy_counter|gpu_energy)_joules", key)]
        return own[0] if on_gpu and own else missing.get("cpu_energy_joules", "no meter counts joules")

    def close(self) -> None:
        """Let go of the driver."""
        self.gpu.close()


def open_bench(options: MeterOptions, *, devices: int | None = 1) -> Bench:
    """Return the meters of a run on this node. A run holds as many GPUs as it has processes, the first ones that
    CUDA_VISIBLE_DEVICES shows; a loop that is not ours may use all that it shows (`devices` None).

    Raises MeterError when there are GPUs, but fewer than `devices`, and when others compute on them and `allow_shared`
    was not given: their energy and memory cannot be told apart.
    """
    visible = GpuMeter()
    uuids = [device.uuid for device in visible.devices[:devices]]
    visible.close()
    if uuids and devices is not None and len(uuids) < devices:
        raise MeterError(f"--processes {devices}: {len(uuids)} GPUs are visible, and each process needs one.")
    gpu = GpuMeter(uuids) if uuids else GpuMeter()
    foreign = gpu.foreign_processes({os.getpid()})
    if foreign and not options.allow_shared:
        gpu.close()
        pids = ", ".join(str(process.pid) for process in foreign)
        raise MeterError(
            f"{foreign[0].uuid} is in use by other processes (pid {pids}): their energy and memory would be billed to "
            "this run. Stop them, choose another device with CUDA_VISIBLE_DEVICES, or pass --allow-shared, which flags "
            "every reading."
        )
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}
    meters: list[Meter] = [gpu, RaplMeter(), ModelledEnergy()]
    # None: the driver does not list processes, so nobody can say that the device was ours alone.
    flags = ["shared"] if foreign else ["exclusive_unknown"] if uuids and foreign is None else []
    return Bench(gpu, meters, flags, environment)


def environment_of(bench: Bench, on_gpu: bool, carbon: CarbonFactors | None, processes: int = 1) -> Environment:
    """Return what a record keeps of the machine, and of the processes that shared the work where there were several."""
    commit, dirty = hardware.checkout()
    facts: dict[str, Any] = hardware.machine_facts()
    for meter in bench.meters:
        facts[meter.name] = meter.facts()
    facts["rates"] = last_rates(bench.hardware_class(on_gpu))
    facts["carbon"] = carbon.facts() if carbon is not None else None
    if processes > 1:
        facts["processes"] = processes
    return Environment(
        hardware_class=bench.hardware_class(on_gpu),
        devices=bench.gpu.facts()["gpus"] if on_gpu else [],
        packages=hardware.packages(),
        commit=commit,
        dirty=dirty,
        python=hardware.python_version(),
        facts=facts,
    )


def making(bill: Account, bench: Bench, on_gpu: bool) -> dict[str, Any]:
    """Return what making a file cost, as files that are published keep it (blueprint.schema.Making)."""
    spent = bill.gamma.model_dump(exclude={"energy_scope", "memory_basis"})
    of = {"energy_kwh": "gpu_energy_joules" if on_gpu else "cpu_energy_joules"}
    why = {r.quantity: r.why_missing for r in bill.readings if r.phase == "billed" and r.why_missing}
    packages = hardware.packages()
    return {
        "tool": f"cprbench {cprbench.__version__}",
        "seconds": bill.seconds["billed"],
        "hardware_class": bench.hardware_class(on_gpu),
        "packages": {name: packages[name] for name in ("torch", "transformers") if name in packages},
        **spent,
        "why_missing": {n: why.get(of.get(n, n), "not told") for n, value in spent.items() if value is None},
    }


def last_rates(hardware_class: str) -> dict[str, float] | None:
    """Return the rates that the last doctor measured on this machine, None if there are none."""
    try:
        found: dict[str, float] = json.loads(rates_file(hardware_class).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None


def rates_file(hardware_class: str) -> Path:
    """Return where doctor keeps the rates of this hardware class."""
    return cache_folder() / "rates" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', hardware_class)}.json"
