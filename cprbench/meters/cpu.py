"""Energy of CPU and RAM: counted by RAPL where the kernel lets us read it, else codecarbon's estimate beside.

A modelled value never ranks beside a measured one. codecarbon is imported only when its watts are asked for,
and only its tables and models are: no tracker, no network, no .codecarbon.config, no CODECARBON_* setting.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cprbench.meters import SAMPLES_PER_SECOND, Clock, Meter
from cprbench.meters.energy import WALL, Amount, Cuts, NotMeasured, Spans, energy_reading, outcome, reading, total
from cprbench.meters.hardware import cpu_facts
from cprbench.meters.trace import Trace, Window
from cprbench.spec import Reading

_POWERCAP = Path("/sys/class/powercap")
#: kind of zone -> its quantity; the sample key is rapl_<kind>_energy_joules
_KINDS = {"package": "cpu_energy_joules", "dram": "ram_energy_joules"}
#: Above any socket's power: a counter that jumps further was set anew, it did not wrap.
_LARGEST_WATTS = 5000.0
#: RAPL counters are brought up to date about once a millisecond.
_RAPL_STEP_SECONDS = 0.001
_GRANT = (
    "To let a group read it: sudo groupadd -f rapl; sudo usermod -aG rapl $USER; write into "
    '/etc/udev/rules.d/70-rapl.rules the line SUBSYSTEM=="powercap", KERNEL=="intel-rapl*:*", ACTION=="add", '
    'RUN+="/bin/chgrp rapl /sys%p/energy_uj", RUN+="/bin/chmod g+r /sys%p/energy_uj"; reboot. '
    "Do not open it to everybody: power readings leak what other users compute."
)
#: codecarbon samples the load once a second; its cube would come out higher from shorter steps.
_LOAD_STEP_SECONDS = 1.0
_LOAD_MODEL = "codecarbon's machine mode: TDP x (0.1 + 0.9 x load^3), load of the whole machine over each second"


class _Zone:
    """One powercap zone: its counter without the wraps, in joules since construction."""

    def __init__(self, folder: Path, label: str, now: float) -> None:
        self.folder, self.label = folder, label
        self._joules, self._last, self._when = 0.0, self.raw(), now
        try:
            self._range = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            self._range = 0

    def raw(self) -> int:
        """Return the counter (microjoules). Raises OSError or ValueError where it cannot be read."""
        return int((self.folder / "energy_uj").read_text())

    def joules(self, now: float) -> float:
        """Return what was counted since construction; polled at 10 Hz it wraps at most once in between.

        Raises NotMeasured where the counter fell in a way that no wrap explains.
        """
        value = self.raw()
        rise = value - self._last
        if rise < 0:
            rise += self._range
        if not 0 <= rise <= 1e6 * _LARGEST_WATTS * (now - self._when + 1):
            raise NotMeasured(f"{self.folder.name} went from {self._last} to {value} uJ, which is no wrap")
        self._joules, self._last, self._when = self._joules + rise / 1e6, value, now
        return self._joules


class RaplMeter(Meter):
    """Energy counters of CPU packages and DRAM. psys and the subzones core and uncore are not added.

    Zones that show one counter count once. Where any zone of a kind cannot be read, the kind is not measured:
    a part of the sockets is no total.
    """

    name = "rapl"

    def __init__(self, root: Path = _POWERCAP, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        super().__init__()
        self._clock, self._wall = clock, wall
        self._zones: dict[str, list[_Zone]] = {kind: [] for kind in _KINDS}
        self._mirrors: dict[str, str] = {}
        self._find(root)
        none = f"no RAPL zone under {root}: a virtual machine, a container that hides it, or an unknown CPU"
        some = bool(self._missing) or any(self._zones.values())
        for kind, quantity in _KINDS.items():
            if quantity in self._missing:
                self._zones[kind] = []
            elif not self._zones[kind]:
                self._missing[quantity] = f"this CPU has no RAPL {kind} zone" if some else none

    def sample(self) -> dict[str, float]:
        """Return rapl_package_energy_joules and rapl_dram_energy_joules since construction, wraps undone."""
        values: dict[str, float] = {}
        now = self._clock()
        for kind, zones in self._zones.items():
            if not zones:
                continue
            key = f"rapl_{kind}_energy_joules"
            try:
                values[key] = sum([zone.joules(now) for zone in zones])
            except (OSError, ValueError) as error:
                self._missing[key] = f"RAPL could not be read during the run ({error})"
            except NotMeasured as error:
                self._missing[_KINDS[kind]] = self._missing[key] = f"RAPL counter lost: {error}"
                zones.clear()
        return values | {WALL: self._wall()} if values else {}

    def facts(self) -> dict[str, Any]:
        """Return the zones that count, by quantity, and those left out as they show another's counter."""
        counted = {_KINDS[kind]: [zone.label for zone in zones] for kind, zones in self._zones.items() if zones}
        return {"rapl_zones": counted, "rapl_mirrors": dict(self._mirrors)}

    def _find(self, root: Path) -> None:
        try:
            folders = sorted(folder for folder in root.iterdir() if (folder / "name").is_file())
        except OSError:
            return
        names = {folder.name: (folder / "name").read_text().strip() for folder in folders}
        for folder in folders:
            parent = folder.name.rpartition(":")[0]  # a subzone is "intel-rapl:0:1", its package "intel-rapl:0"
            kind = re.split(r"[-_\d]", names[folder.name])[0]
            if kind not in _KINDS:
                continue
            label = "/".join(names[name] for name in (parent, folder.name) if name in names)
            try:
                zone = _Zone(folder, label, self._clock())
                twin = next((other for other in self._zones[kind] if _same(zone, other)), None)
            except (OSError, ValueError) as error:
                self._missing[_KINDS[kind]] = f"{folder}/energy_uj cannot be read ({error}). {_GRANT}"
                continue
            if twin is None:
                self._zones[kind].append(zone)
            else:
                self._mirrors[folder.name] = twin.folder.name


def _same(zone: _Zone, other: _Zone) -> bool:
    """Return whether two zones show one counter: read in between two readings of the other, it lies between.

    Independent counters are at the same microjoule once in about 10^8 tries; a counter at 0 says nothing.
    The registers of one package can be served twice (MSR and MMIO), under the same name.
    """
    controls = {folder.name.partition(":")[0] for folder in (zone.folder, other.folder)}
    if zone.label == other.label and len(controls) == 2:
        return True
    for _ in range(2):
        before, value, after = other.raw(), zone.raw(), other.raw()
        if not 0 < before <= value <= after:
            return False
    return True


def rapl_readings(trace: Trace, spans: Spans) -> list[Reading]:
    """Return cpu_energy_joules (packages) and ram_energy_joules (DRAM) of every span, source "rapl"."""
    cuts = Cuts(trace)
    return [
        energy_reading(key, quantity, "rapl", outcome(_counted, cuts, windows, quantity, kind))
        for key, windows in spans.items()
        for kind, quantity in _KINDS.items()
    ]


def _counted(cuts: Cuts, windows: Sequence[Window], quantity: str, kind: str) -> Amount:
    amounts = []
    for window in windows:
        points, samples = cuts.points(f"rapl_{kind}_energy_joules", window, quantity)
        rise = points[-1][1] - points[0][1]
        step = rise * min(1.0, _RAPL_STEP_SECONDS / window.seconds) if window.seconds else rise
        amounts.append(Amount(rise, samples, step))
    return total(amounts)


# --- codecarbon's estimate --------------------------------------------------------------------------


@dataclass(frozen=True)
class AssumedWatts:
    """What codecarbon takes for this machine: CPU at full load (all sockets) and RAM, in watts."""

    cpu: float
    ram: float
    cpu_from: str
    ram_from: str
    guessed: bool  # the CPU is not in codecarbon's table


def assumed_watts() -> AssumedWatts:
    """Return the watts that codecarbon's table and models give for this machine.

    Raises NotMeasured where codecarbon is not installed or does not give them.
    """
    try:
        cpu = importlib.import_module("codecarbon.core.cpu")
        ram = importlib.import_module("codecarbon.external.ram")
    except ImportError as error:
        raise NotMeasured(f"codecarbon is not installed (pip install codecarbon): {error}") from None
    model = cpu_facts().get("model name", "unknown")
    threads, sockets = os.cpu_count() or 1, _sockets()
    memory = psutil.virtual_memory().total / 2**30
    try:
        # Without TDP(), which starts processes to detect the CPU and does not tell a guess from an entry.
        listed = cpu.TDP.__new__(cpu.TDP)._get_cpu_power_from_registry(model)
        per_thread = float(cpu.DEFAULT_POWER_PER_CORE)
        ram_watts = float(ram.RAM()._calculate_ram_power(memory))
    except (AttributeError, TypeError, ValueError, KeyError, OSError, ImportError) as error:
        raise NotMeasured(f"this version of codecarbon does not give its assumed watts ({error!r})") from None
    version = importlib.import_module("codecarbon").__version__
    table = f"codecarbon {version}: {sockets} x {model}"
    guess = f"codecarbon {version}: {per_thread:g} W per thread x {threads}, its guess for a CPU not in its table"
    watts = float(listed) * sockets if listed else per_thread * threads
    ram_from = f"codecarbon {version}: its guess of the modules that {memory:.0f} GiB take"
    if not (0 < watts < float("inf") and 0 < ram_watts < float("inf")):
        raise NotMeasured(f"codecarbon gave {watts} W for the CPU and {ram_watts} W for RAM")
    return AssumedWatts(watts, ram_watts, table if listed else guess, ram_from, not listed)


class ModelledEnergy(Meter):
    """What codecarbon's estimate needs: the machine's CPU time once a second, assumed watts at edges."""

    name = "modelled"

    def __init__(self) -> None:
        super().__init__()
        self._ticks = 0
        self._watts: AssumedWatts | None = None
        try:
            self._watts = assumed_watts()
        except NotMeasured as why:
            self._missing = dict.fromkeys(_MODELS, str(why))

    def sample(self) -> dict[str, float]:
        """Return cpu_busy_seconds and cpu_total_seconds of the machine, once a second."""
        self._ticks += 1
        due = self._watts is not None and self._ticks % SAMPLES_PER_SECOND == 1
        return _cpu_seconds() | {WALL: time.time()} if due else {}

    def edge(self) -> dict[str, float]:
        """Return the CPU seconds, and the assumed watts of CPU and RAM."""
        if self._watts is None:
            return {}
        cpu = "assumed_cpu_guessed_watts" if self._watts.guessed else "assumed_cpu_table_watts"
        return _cpu_seconds() | {cpu: self._watts.cpu, "assumed_ram_watts": self._watts.ram}

    def facts(self) -> dict[str, Any]:
        """Return the assumed watts and where codecarbon takes them from."""
        if self._watts is None:
            return {}
        return {
            "assumed_cpu_watts": self._watts.cpu,
            "assumed_cpu_from": self._watts.cpu_from,
            "assumed_ram_watts": self._watts.ram,
            "assumed_ram_from": self._watts.ram_from,
            "cpu_load_model": _LOAD_MODEL,
        }


def modelled_cpu_readings(trace: Trace, spans: Spans) -> list[Reading]:
    """Return cpu_energy_modelled_joules and ram_energy_modelled_joules of every span, source "modelled".

    The estimate is codecarbon's: for the CPU by its machine mode, for RAM constant watts x seconds.
    """
    cuts = Cuts(trace)
    readings = []
    for key, windows in spans.items():
        for quantity, model in _MODELS.items():
            try:
                joules, detail = 0.0, dict[str, Any]()
                if not windows:
                    raise NotMeasured("this phase has no window")
                for window in windows:
                    more, detail = model(cuts, window, quantity)
                    joules += more
                readings.append(reading(key, quantity, "modelled", joules, (), **detail))
            except NotMeasured as why:
                readings.append(reading(key, quantity, "modelled", why))
    return readings


def _modelled_ram(cuts: Cuts, window: Window, quantity: str) -> tuple[float, dict[str, Any]]:
    cuts.points("cpu_total_seconds", window, quantity)  # refuses windows in which the machine slept
    watts = _assumed(cuts, "assumed_ram_watts", quantity)
    return watts * window.seconds, {"assumed_watts": watts, "assumed_from": "codecarbon's model of RAM modules"}


def _modelled_cpu(cuts: Cuts, window: Window, quantity: str) -> tuple[float, dict[str, Any]]:
    ticks, _ = cuts.points("cpu_total_seconds", window, quantity)
    busy, _ = cuts.points("cpu_busy_seconds", window, quantity)
    if [t for t, _ in ticks] != [t for t, _ in busy]:
        raise NotMeasured("busy and total CPU seconds were not sampled together")
    guessed = bool(cuts.series("assumed_cpu_guessed_watts"))
    watts = _assumed(cuts, f"assumed_cpu_{'guessed' if guessed else 'table'}_watts", quantity)
    joules, load, first = 0.0, None, 0
    for index in range(1, len(ticks)):
        seconds = ticks[index][0] - ticks[first][0]
        if seconds < _LOAD_STEP_SECONDS and index < len(ticks) - 1:
            continue
        spent = ticks[index][1] - ticks[first][1]
        if spent > 0:
            load = min(1.0, max(0.0, (busy[index][1] - busy[first][1]) / spent))
        if load is None:
            raise NotMeasured("shorter than one tick of the kernel's CPU accounting")
        joules += watts * (0.1 + 0.9 * load**3) * seconds
        first = index
    origin = "codecarbon's guess per thread" if guessed else "codecarbon's table of CPUs"
    return joules, {"assumed_watts": watts, "assumed_from": origin, "load_model": _LOAD_MODEL}


_MODELS = {"cpu_energy_modelled_joules": _modelled_cpu, "ram_energy_modelled_joules": _modelled_ram}


def _assumed(cuts: Cuts, key: str, quantity: str) -> float:
    found = cuts.series(key)
    if not found:
        raise NotMeasured(cuts.why(quantity, default="no estimate of its watts was taken in this run"))
    return found[0][1]


def _cpu_seconds() -> dict[str, float]:
    times = psutil.cpu_times()
    # Guest time is contained in user and nice time already; waiting for a disk is not work.
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle = times.idle + getattr(times, "iowait", 0.0)
    return {"cpu_total_seconds": whole, "cpu_busy_seconds": whole - idle}


def _sockets() -> int:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return 1
    return len({line for line in lines if line.startswith("physical id")}) or 1
