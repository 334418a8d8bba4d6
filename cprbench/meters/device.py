"""GPUs, asked of the driver through NVML (`pynvml` of nvidia-ml-py, loaded only when a meter is made).

Devices are known by UUID: NVML numbers boards by PCI bus, CUDA by its own rules. energy.py makes readings.
"""

from __future__ import annotations

import importlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cprbench.errors import SpecError, did_you_mean
from cprbench.meters import SAMPLES_PER_SECOND, Clock, Meter
from cprbench.meters.energy import WALL

#: What gpu_readings gives; without NVML each of them has the same reason.
QUANTITIES = (
    "gpu_energy_joules",
    "gpu_energy_sampled_joules",
    "peak_device_memory_bytes",
    "device_memory_byte_seconds",
)
#: NVML says "not available" with the largest number of the type.
_NOT_AVAILABLE = (2**32 - 1, 2**64 - 1)
#: What facts() tells of a device.
_FACTS = ("uuid", "name", "memory_bytes", "baseline_memory_bytes", "power_limit_watts", "power_from", "mig", "share")
#: Counter and power belong to the whole board.
_SHARED = ("energy_counter_joules", "power_watts")
#: Asked once a second: they change slowly, and each question costs a call into the driver.
_SLOW = ("sm_clock_mhz", "temperature_celsius")
_MIG_WHY = "MIG is on: NVML counts the energy of the whole board, which other slices share"


@dataclass
class Device:
    """One accelerator of the run: a board, or a MIG slice of one.

    `handle` answers for memory and processes, `board` for all else; under MIG they differ.
    """

    position: int
    uuid: str
    name: str
    memory_bytes: int | None
    baseline_memory_bytes: int | None  # used by others when the meter was made
    power_limit_watts: float | None
    mig: bool
    share: float | None  # of a board: 1, or the slice's share of its slices
    handle: Any = field(repr=False, compare=False)
    board: Any = field(repr=False, compare=False)
    power_from: str | None = None  # which of NVML's ways to ask for power the driver answers

    def key(self, suffix: str) -> str:
        """Return the sample key of one of its values."""
        return f"gpu{self.position}_{suffix}"


@dataclass(frozen=True)
class ForeignProcess:
    """A compute process on a device of the run that is not the run's own."""

    pid: int
    uuid: str
    memory_bytes: int | None


def visible_devices(boards: Sequence[tuple[str, str]], environ: Mapping[str, str]) -> list[str]:
    """Return the UUIDs that CUDA shows, in its order, out of `boards` = (uuid, name) in NVML's order.

    Follows CUDA_VISIBLE_DEVICES as NVIDIA documents it: indices or UUIDs, which may be cut short; the
    list ends at the first entry that names no device. An entry "MIG-…" is passed on as it is.
    Raises SpecError where unlike boards are numbered by speed, which NVML cannot tell.
    """
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return [uuid for uuid, _ in boards]
    chosen: list[str] = []
    numbered = False
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal() and int(entry) < len(boards):
            found, numbered = [boards[int(entry)][0]], True
        elif entry.startswith("MIG-"):
            found = [entry]
        else:
            found = [uuid for uuid, _ in boards if entry.startswith("GPU-") and uuid.startswith(entry)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    alike = len({name for _, name in boards}) == 1
    if numbered and not alike and len(chosen) < len(boards) and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise SpecError(
            f"CUDA_VISIBLE_DEVICES={setting} numbers unlike GPUs by speed, which the driver does not tell. "
            "Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the devices by UUID (nvidia-smi -L)."
        )
    return chosen


class GpuMeter(Meter):
    """The GPUs of a run. What the driver does not answer is left out and named in `missing`, never zero.

    uuids: the devices that the run uses ("GPU-…", "MIG-…", or torch's form without the prefix); without them
    those that CUDA shows under `environ` (default: this process's). Memory counts from what is used now.
    wall: the wall clock, written beside every sample so that a sleep of the machine shows.
    Raises SpecError for a UUID that no device has.
    """

    name = "gpu"

    def __init__(
        self, uuids: Sequence[str] | None = None, environ: Mapping[str, str] | None = None, wall: Clock = time.time
    ) -> None:
        super().__init__()
        self._wall, self._ticks = wall, 0
        self._readers: dict[str, tuple[Device, Callable[[], float]]] = {}
        self._nvml: Any = None
        self._open = False
        self.devices: tuple[Device, ...] = ()
        self.driver: str | None = None
        why = self._find(uuids, os.environ if environ is None else environ)
        if why is not None:
            self._missing = dict.fromkeys(QUANTITIES, why)

    @property
    def allotted(self) -> float | None:
        """Accelerators that the run holds, a MIG slice as its share of a board; None where not known."""
        shares = [device.share for device in self.devices if device.share is not None]
        return sum(shares) if shares and len(shares) == len(self.devices) else None

    @property
    def hardware_class(self) -> str | None:
        """The hardware class of the devices (DESIGN section 1), such as "1x NVIDIA H200 140 GiB 700 W"."""
        kinds = Counter[str]()
        for device in self.devices:
            gib = "unknown" if device.memory_bytes is None else f"{device.memory_bytes / 2**30:.0f}"
            watts = "unknown" if device.power_limit_watts is None else f"{device.power_limit_watts:.0f}"
            kinds[f"{device.name} {gib} GiB {watts} W"] += 1
        return " + ".join(f"{count}x {kind}" for kind, count in sorted(kinds.items())) or None

    def sample(self) -> dict[str, float]:
        """Return counter (J), power (W) and memory above the baseline (bytes) of every device.

        Clock (MHz) and temperature (degrees Celsius) come once a second.
        """
        self._ticks += 1
        return self._values(slow=self._ticks % SAMPLES_PER_SECOND == 1)

    def edge(self) -> dict[str, float]:
        """Return all values of every device. Synchronise the device first: NVML does not wait for it."""
        return self._values(slow=True)

    def facts(self) -> dict[str, Any]:
        """Return what stays the same over a run: devices, driver, hardware class, allotted accelerators."""
        gpus = [{name: getattr(device, name) for name in _FACTS} for device in self.devices]
        rest = {"driver": self.driver, "hardware_class": self.hardware_class, "allotted": self.allotted}
        return {"gpus": gpus} | rest

    def foreign_processes(self, own_pids: Collection[int]) -> list[ForeignProcess] | None:
        """Return compute processes on the run's devices not in `own_pids`; None where NVML does not say.

        NVML gives the host's process ids: in a container the run's own look foreign, so ask before it starts.
        """
        if not self.devices:
            return None
        found = []
        for device in self.devices:
            try:
                running = self._nvml.nvmlDeviceGetComputeRunningProcesses(device.handle)
            except self._nvml.NVMLError as error:
                self._missing["gpu_foreign_processes"] = f"{device.uuid}: NVML does not list processes ({error})"
                return None
            found += [ForeignProcess(p.pid, device.uuid, p.usedGpuMemory) for p in running if p.pid not in own_pids]
        return found

    def close(self) -> None:
        """Let go of the driver; later samples are empty."""
        self._readers = {}
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    def _find(self, uuids: Sequence[str] | None, environ: Mapping[str, str]) -> str | None:
        """Find the devices and what each of them answers; return why there are none."""
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            return "nvidia-ml-py is not installed (pip install nvidia-ml-py)"
        try:
            self._nvml.nvmlInit()
            self._open = True
            self.driver = self._told(self._nvml.nvmlSystemGetDriverVersion)
            boards = self._boards()
            chosen = visible_devices(boards, environ) if uuids is None else self._named(boards, uuids)
            if not chosen:
                shown = f"CUDA_VISIBLE_DEVICES shows none of {len(boards)}" if boards else "the driver has none"
                return f"no NVML device: {shown}"
            self.devices = tuple([self._device(position, uuid) for position, uuid in enumerate(chosen)])
        except self._nvml.NVMLError as error:
            return f"no NVML device: {error}"
        except SpecError as error:
            if uuids is not None:
                raise
            return str(error)
        for device in self.devices:
            self._prepare(device)
        return None

    def _boards(self) -> list[tuple[str, str]]:
        nvml, boards = self._nvml, []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                boards.append((str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))))
            except nvml.NVMLError:
                continue  # a board that this process may not open; CUDA does not count it either
        return boards

    def _named(self, boards: Sequence[tuple[str, str]], uuids: Sequence[str]) -> list[str]:
        known, chosen = [uuid for uuid, _ in boards], []
        for uuid in uuids:
            # torch names a slice like a board, without the prefix that would tell them apart.
            names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
            found = [name for name in names if self._told(self._nvml.nvmlDeviceGetHandleByUUID, name) is not None]
            if not found:
                raise SpecError(f"no GPU has the UUID {names[0]!r}. {did_you_mean(names[0], known)}")
            chosen.append(found[0])
        return chosen

    def _device(self, position: int, uuid: str) -> Device:
        nvml = self._nvml
        handle = board = nvml.nvmlDeviceGetHandleByUUID(uuid)
        mig = uuid.startswith("MIG-")
        if mig:
            board = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        elif (self._told(nvml.nvmlDeviceGetMigMode, board) or [0])[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            # A board in MIG mode that is named as a whole: CUDA shows its first slice only.
            mig, handle = True, nvml.nvmlDeviceGetMigDeviceHandleByIndex(board, 0)
        share: float | None = 1.0
        if mig:
            part = self._told(nvml.nvmlDeviceGetAttributes, handle)
            whole = self._told(nvml.nvmlDeviceGetMaxMigDeviceCount, board)
            share = part.gpuInstanceSliceCount / whole if part is not None and whole else None
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo, handle)
        limit = self._told(nvml.nvmlDeviceGetEnforcedPowerLimit, board)
        return Device(
            position=position,
            uuid=str(nvml.nvmlDeviceGetUUID(handle)),
            name=str(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=None if memory is None else int(memory.total),
            baseline_memory_bytes=None if memory is None else int(memory.used),
            power_limit_watts=None if limit is None else limit / 1000,
            mig=mig,
            share=share,
            handle=handle,
            board=board,
        )

    def _told(self, ask: Callable[..., Any], *of: Any) -> Any:
        """Return what the driver answers, or None."""
        try:
            return ask(*of)
        except self._nvml.NVMLError:
            return None

    def _prepare(self, device: Device) -> None:
        """Keep, for every quantity of a device, the first way of asking that the driver answers."""
        nvml, board, handle = self._nvml, device.board, device.handle
        baseline = device.baseline_memory_bytes or 0
        ways: dict[str, dict[str, Callable[[], float]]] = {
            "energy_counter_joules": {"counter": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1000},
            "power_watts": {
                "NVML_FI_DEV_POWER_INSTANT": lambda: self._watts(self._field(board, nvml.NVML_FI_DEV_POWER_INSTANT)),
                # Averaged over a second on Ampere and newer, except GA100.
                "nvmlDeviceGetPowerUsage": lambda: self._watts(nvml.nvmlDeviceGetPowerUsage(board)),
            },
            "memory_used_bytes": {"device": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used - baseline},
            "sm_clock_mhz": {"board": lambda: nvml.nvmlDeviceGetClockInfo(board, nvml.NVML_CLOCK_SM)},
            "temperature_celsius": {
                "sensor": lambda: nvml.nvmlDeviceGetTemperatureV(board, nvml.NVML_TEMPERATURE_GPU),
                "older driver": lambda: nvml.nvmlDeviceGetTemperature(board, nvml.NVML_TEMPERATURE_GPU),
            },
        }
        for suffix, asked in ways.items():
            key = device.key(suffix)
            if device.mig and suffix in _SHARED:
                self._missing[key] = _MIG_WHY
                continue
            if suffix == "memory_used_bytes" and device.baseline_memory_bytes is None:
                self._missing[key] = f"{device.uuid} did not tell how much memory was used before the run"
                continue
            for way, read in asked.items():
                try:
                    read()
                except (nvml.NVMLError, AttributeError) as error:  # AttributeError: an older nvidia-ml-py
                    self._missing[key] = f"{device.uuid} does not give {suffix} (NVML: {error})"
                    continue
                self._readers[key] = (device, read)
                self._missing.pop(key, None)
                if suffix == "power_watts":
                    device.power_from = way
                break

    def _values(self, slow: bool) -> dict[str, float]:
        nvml, values = self._nvml, dict[str, float]()
        for key, (device, read) in list(self._readers.items()):
            if key not in self._readers or (key.endswith(_SLOW) and not slow):
                continue
            try:
                values[key] = read()
            except nvml.NVMLError as error:
                gone = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_GPU_NOT_FOUND, nvml.NVML_ERROR_RESET_REQUIRED)
                if error.value not in gone:
                    self._missing[key] = f"{device.uuid} failed to give it during the run (NVML: {error})"
                    continue
                for lost in [k for k, (of, _) in self._readers.items() if of is device]:
                    del self._readers[lost]
                    self._missing[lost] = f"{device.uuid} was lost during the run (NVML: {error})"
        return values | {WALL: self._wall()} if values else {}

    def _field(self, board: Any, number: int) -> int:
        nvml = self._nvml
        found = nvml.nvmlDeviceGetFieldValues(board, [number])[0]
        kinds = {nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal", nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal"}
        if found.nvmlReturn != nvml.NVML_SUCCESS or found.valueType not in kinds:
            raise nvml.NVMLError(found.nvmlReturn or nvml.NVML_ERROR_NOT_SUPPORTED)
        return int(getattr(found.value, kinds[found.valueType]))

    def _watts(self, milliwatts: int) -> float:
        if milliwatts == 0 or milliwatts in _NOT_AVAILABLE:  # a board that runs never takes 0 W
            raise self._nvml.NVMLError(self._nvml.NVML_ERROR_NO_DATA)
        return milliwatts / 1000
