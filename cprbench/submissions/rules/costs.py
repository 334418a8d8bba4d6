"""What a run cost: its trace is whole, and readings, seconds and gamma are made again from it by what made them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cprbench.meters.carbon import CarbonFactors
from cprbench.meters.energy import CLOCK_SECONDS, LARGEST_GAP_SECONDS, WALL
from cprbench.meters.flops import Flops
from cprbench.meters.ledger import Account, account
from cprbench.meters.trace import Trace
from cprbench.runs.store import SAMPLES
from cprbench.spec import Reading, billed_phases
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.evidence import (
    CPU_CLASS,
    CURE,
    RECORD,
    cores_of,
    differences,
    first,
    history,
    on_gpu,
    once,
    told,
    trace,
)
from cprbench.submissions.rules.work import counted, measured_flops

#: The flag on readings of work that an earlier run did (sessions.score_cache).
CACHED = "cached"
#: What a run may say of the devices that it shared.
_SHARED = {"shared", "exclusive_unknown"}
#: Wall and monotonic clock are read one after the other, with the meters in between: 8 ms apart in the runs of
#: tests/records. NTP slews by 500 ppm at most.
_APART_SECONDS, _SLEW = 0.5, 1e-3
#: Counters that only rise, but for the kernel's time of waiting for disks, which falls by tenths now and then (s).
_RISING = re.compile(r"cpu_\w+_seconds|rapl_\w+_joules")
_FALLS_SECONDS = 5.0
_KILLED = "Run it again into a new --out: what the killed attempt measured was not kept"
#: The kernel counts resident pages per thread and adds them up now and then.
_PAGES = 0.99


def cached(run: Dossier) -> list[Reading]:
    """Return the readings of scores that a run's own attempt took over."""
    return [r for r in run.record.readings if r.attempt == run.record.attempts and CACHED in r.flags]


# --- the trace --------------------------------------------------------------------------------------


def _whole(run: Dossier) -> Iterator[Flaw]:
    found = trace(run)
    if isinstance(found, str):
        yield Flaw(SAMPLES, found)
        return
    if [i for i, row in enumerate(run.rows(SAMPLES), start=1) if "missing" in row] != [len(run.rows(SAMPLES))]:
        yield Flaw(SAMPLES, "what is missing stands in one line, the last")
    if why := first([*_out_of_order(found), *_out_of_phase(run, found), *_not_counted(found)]):
        yield Flaw(SAMPLES, why)
    for why in _clocks_apart(found):
        cure = "Run it again on a machine that neither sleeps nor has its clock set meanwhile"
        yield Flaw(SAMPLES, why, "unverified", cure)


def _out_of_order(found: Trace) -> Iterator[str]:
    """Yield what is wrong with the order of samples: an edge is stamped before it is read and written."""
    steady = edge = float("-inf")
    for number, sample in enumerate(found.samples, start=1):
        if sample.edge is None:
            if sample.t < max(steady - CLOCK_SECONDS, edge):
                yield f"sample {number} is of {sample.t} s, after one of {max(steady, edge)} s"
            steady = max(steady, sample.t)
        else:
            if sample.t < steady - LARGEST_GAP_SECONDS:
                yield f"sample {number}, an edge of {sample.phase}, is of {sample.t} s, after one of {steady} s"
            edge = sample.t


def _out_of_phase(run: Dossier, found: Trace) -> Iterator[str]:
    """Yield what is wrong with the phases of a run of ours: between two of them it is in phase setup."""
    spec, steps = run.spec, history(run)
    if spec is None or isinstance(steps, str):
        return
    windows = found.windows()
    if windows and windows[0].phase != "setup":
        yield f"it begins with phase {windows[0].phase}"
    if run.record.status != "ok":
        return
    if [w.phase for w in windows if w.cut] != ["setup"] or not windows[-1].cut:
        yield "a run that ended well leaves no phase open but the last, setup"
    found_of = Counter(window.phase for window in windows)
    scored = len(told(run, "notes", "blueprints") or ()) + (0 if run.record.role == "search" else 2)
    for phase, wanted in (("score", scored), ("validate", sum(step.validation is not None for step in steps))):
        if found_of[phase] != wanted:
            yield f"{found_of[phase]} windows of phase {phase}, and it has {wanted}"


def _not_counted(found: Trace) -> Iterator[str]:
    """Yield what no meter shows: negative values, counters that fall, a peak below what was sampled before it."""
    last: dict[str, float] = {}
    largest = 0.0  # resident, since the peak was last reset
    for number, sample in enumerate(found.samples, start=1):
        values = sample.values
        for name, value in values.items():
            if value < 0 and not name.endswith("memory_used_bytes"):  # memory counts from what was used before
                yield f"sample {number}: {name} is {value:g}"
            if _RISING.fullmatch(name):
                if value < last.get(name, 0.0) - _FALLS_SECONDS * name.startswith("cpu"):
                    yield f"sample {number}: {name} falls from {last[name]} to {value}"
                last[name] = max(value, last.get(name, 0.0))
        largest = max(largest, values.get("rss_bytes", 0.0))
        if "peak_rss_bytes" in values:
            if values["peak_rss_bytes"] < _PAGES * largest:
                yield f"sample {number}: peak_rss_bytes {values['peak_rss_bytes']:g} is below {largest:g} bytes sampled"
            largest = 0.0 if "peak_rss_reset" not in found.missing else largest
        if sample.edge is None and WALL not in values and any(not name.startswith("cuda_") for name in values):
            yield f"sample {number} has no {WALL}"
        if values.get("cpu_busy_seconds", 0.0) > values.get("cpu_total_seconds", float("inf")):
            yield f"sample {number}: cpu_busy_seconds is above cpu_total_seconds"


def _clocks_apart(found: Trace) -> Iterator[str]:
    pairs = [(s.t, s.values[WALL] - s.t) for s in found.samples if WALL in s.values]
    for t, offset in pairs:
        if abs(offset - pairs[0][1]) > _APART_SECONDS + _SLEW * (t - pairs[0][0]):
            yield f"at {t} s the wall clock is {offset - pairs[0][1]:+.1f} s away from the monotonic clock"
            return


# --- the bill ---------------------------------------------------------------------------------------


def _inputs(run: Dossier) -> dict[str, Any]:
    """Return what `account` is given besides a trace. Raises TypeError for facts of another form."""
    record = run.record
    fresh = [r for r in record.readings if r.attempt == record.attempts and CACHED not in r.flags]
    flags = next((r.flags for r in fresh if r.quantity == "seconds"), [])
    carbon = told(run, "facts", "carbon")
    return {
        "cores": cores_of(run) or 1,
        "accelerators": told(run, "facts", "gpu", "allotted") if on_gpu(run) else 0,
        "carbon": None if carbon is None else CarbonFactors(**carbon),
        "flags": sorted(_SHARED.intersection(flags)) if told(run, "facts", "gpu", "gpus") else [],
        "phases": billed_phases(record.spec.stop),
    }


@once
def bill(run: Dossier) -> Account | None:
    """Return what a run cost by its own trace, with what it says of earlier attempts; None without a trace."""
    found, record, flops = trace(run), run.record, counted(run)
    if isinstance(found, str):
        return None
    earlier = [r for r in record.readings if r.attempt < record.attempts]
    known = "not known here" if flops is None else flops
    return account(found, known, earlier=earlier, cached=cached(run), **_inputs(run))


def _own_readings(run: Dossier) -> Iterator[Flaw]:
    record, made = run.record, bill(run)
    if made is None:
        return
    said, found = record.readings, made.readings
    keys = [[(r.phase, r.attempt, r.quantity) for r in readings] for readings in (said, found)]
    if keys[0] != keys[1]:
        odd = next((key for key in keys[0] if key not in keys[1]), None)
        lacking = next((key for key in keys[1] if key not in keys[0]), None)
        yield Flaw(RECORD, f"readings are not those of its samples: {odd} is none of them, {lacking} is not told")
        return
    for own, again in zip(said, found, strict=True):
        if own.quantity == "flops" and counted(run) is None:
            continue
        if own != again and (why := first(differences(vars(own), vars(again)))):
            yield Flaw(RECORD, f"reading {own.quantity} of {own.phase}, attempt {own.attempt}: {why}")


def _own_gamma(run: Dossier) -> Iterator[Flaw]:
    record, made = run.record, bill(run)
    if made is None:
        return
    said, found = dict(vars(record.gamma)), dict(vars(made.gamma))
    if counted(run) is None:
        said.pop("flops"), found.pop("flops")
    if cores_of(run) is None:
        said.pop("core_hours"), found.pop("core_hours")
        yield Flaw(RECORD, "gamma.core_hours: the record does not tell how many cores it was bound to", "unverified")
    said |= {"seconds": record.seconds, "peak_memory_bytes": record.peak_memory_bytes}
    if why := first(differences(said, found | {"seconds": made.seconds, "peak_memory_bytes": made.peak_memory_bytes})):
        yield Flaw(RECORD, f"what it cost: {why}")


def _own_machine(run: Dossier) -> Iterator[Flaw]:
    """What a record says of its machine, in several places, is one machine."""
    environment, own = run.record.environment, trace(run)
    gpu, gpus = told(run, "facts", "gpu") or {}, told(run, "facts", "gpu", "gpus") or []
    shares = [device.get("share") for device in gpus]
    classes = Counter(
        f"{device.get('name')} {_rounded(device.get('memory_bytes'), 2**30)} GiB "
        f"{_rounded(device.get('power_limit_watts'), 1)} W"
        for device in gpus
    )
    said: dict[str, Any] = {"facts.gpu": {name: gpu.get(name) for name in ("hardware_class", "allotted")}}
    named = " + ".join(f"{count}x {kind}" for kind, count in sorted(classes.items())) or None
    allotted = sum(map(float, shares)) if shares and None not in shares else None
    found: dict[str, Any] = {"facts.gpu": {"hardware_class": named, "allotted": allotted}}
    for_cpus = environment.packages.get("torch", "").endswith("+cpu")
    if environment.devices:
        said |= {"devices": environment.devices, "hardware_class": environment.hardware_class}
        found |= {"devices": gpus, "hardware_class": named}
        if _ended_well(run) and for_cpus:
            yield Flaw(RECORD, "it says that it ran on a GPU, and its torch is built for CPUs alone")
    elif not on_gpu(run):
        if not CPU_CLASS.fullmatch(environment.hardware_class):
            yield Flaw(RECORD, f"hardware_class {environment.hardware_class!r:.120} is that of no CPU")
        said["facts.cores"], found["facts.cores"] = told(run, "facts", "cores") or cores_of(run), cores_of(run)
    if _ended_well(run):
        together, devices = told(run, "notes", "processes"), environment.devices
        said["facts.processes"], found["facts.processes"] = told(run, "facts", "processes"), together
        if together is not None and (type(together) is not int or together < 2):
            yield Flaw(RECORD, f"notes.processes is {together!r:.80}: it tells of several, or is not there")
        elif together is not None and on_gpu(run) and together > len(devices):
            yield Flaw(RECORD, f"notes.processes is {together}, and each holds one of its {len(devices)} devices")
        if run.spec is not None and run.spec.method.name == "qlora" and (for_cpus or not on_gpu(run)):
            yield Flaw(RECORD, "it says that it ran qlora without CUDA, and weights in 4 bits need it")
    values = [item for s in ([] if isinstance(own, str) else own.samples) for item in s.values.items()]
    for kind in ("cpu", "ram") if values else ():
        watts = {value for key, value in values if key.startswith(f"assumed_{kind}_")}
        said[f"facts.modelled.{kind}"] = [told(run, "facts", "modelled", f"assumed_{kind}_watts")]
        found[f"facts.modelled.{kind}"] = sorted(watts) or [None]
    if why := first(differences(said, found)):
        yield Flaw(RECORD, f"environment: {why}")


def _ended_well(run: Dossier) -> bool:
    """Return whether our loop ran to its end, and so wrote all of its notes."""
    return run.spec is not None and run.record.status == "ok"


def _rounded(value: Any, unit: int) -> str:
    return "unknown" if value is None else f"{value / unit:.0f}"


# --- what other runs paid for first -----------------------------------------------------------------


def _earlier(run: Dossier) -> Iterator[Flaw]:
    """Readings of earlier attempts, whose samples are not kept, are those of the record that is repeated."""
    record = run.record
    earlier = [r for r in record.readings if r.attempt < record.attempts]
    billed = {r.attempt for r in earlier if (r.phase, r.quantity) == ("billed", "seconds")}
    if odd := [r.attempt for r in record.readings if r.attempt > record.attempts]:
        yield Flaw(RECORD, f"a reading is of attempt {odd[0]}, the record is of attempt {record.attempts}")
    if len(billed) != record.attempts - 1:  # all are from 1 up to it
        yield Flaw(RECORD, f"it is attempt {record.attempts}, and bills attempts {sorted(billed)} before it")
    if not earlier:
        return
    before = run.siblings.get(record.previous or "")
    if before is None:
        cure = None if record.previous else _KILLED
        yield Flaw(RECORD, "what earlier attempts cost: their samples are not kept", "unverified", cure)
        return
    theirs = before.record.readings
    if theirs != earlier[: len(theirs)]:
        yield Flaw(RECORD, f"what earlier attempts cost is not what run {before.run_id} says")
    elif len(theirs) < len(earlier):
        yield Flaw(RECORD, "what an attempt cost whose launcher died: its samples are not kept", "unverified", _KILLED)


def _cached(run: Dossier) -> Iterator[Flaw]:
    """Readings of scores that another run measured are those of a window of that run."""
    own, keys = cached(run), told(run, "notes", "scores") or []
    if own and not keys:
        yield Flaw(RECORD, "it bills cached readings, and notes.scores names none")
        return
    if not own:
        return
    index = _makers(run.siblings)
    makers = {s.run_id: s for key in keys for s in index.get(key, ()) if s is not run}
    for group in _groups(own):
        counts = [r for r in group if r.quantity == "flops"]
        plain = [_plain(r) for r in group if r.quantity != "flops"]
        others = ""
        for maker in makers.values():
            if plain in _scored(maker):
                if all(_sums_to(measured_flops(maker), r) for r in counts):
                    break
                others = others or maker.run_id
        else:
            if others:
                yield Flaw(RECORD, f"its cached scores took {counts[0].value} FLOPs, those of {others} others")
            else:
                why = "what its cached scores cost: no run here measured them"
                yield Flaw(RECORD, why, "unverified", "Pack that run")


@once
def _makers(siblings: Mapping[str, Dossier]) -> dict[str, list[Dossier]]:
    """Return the runs of a submission by the keys of the scores that they measured."""
    found: dict[str, list[Dossier]] = {}
    for run in siblings.values():
        for key in _made(run):
            found.setdefault(key, []).append(run)
    return found


def _made(run: Dossier) -> list[str]:
    """Return the keys of a run's scores, where it cannot have taken all of them over."""
    keys = told(run, "notes", "scores") or []
    taken = [r for r in run.record.readings if CACHED in r.flags and (r.phase, r.quantity) == ("select", "seconds")]
    return keys if isinstance(keys, list) and len(taken) < len(keys) else []


def _groups(readings: Sequence[Reading]) -> list[list[Reading]]:
    found: list[list[Reading]] = []
    for r in readings:
        if (r.phase, r.quantity) == ("select", "seconds") or not found:
            found.append([])
        found[-1].append(r)
    return found


def _plain(r: Reading) -> Reading:
    return r.model_copy(update={"attempt": 1, "flags": [flag for flag in r.flags if flag != CACHED]})


@once
def _scored(run: Dossier) -> list[list[Reading]]:
    """Return the readings of every window of phase select by itself, as a cache of scores keeps them."""
    found = trace(run)
    if isinstance(found, str):
        return []
    alone = [found.between(w.start.t, w.end.t) for w in found.windows() if w.phase == "select"]
    readings = [account(one, "not counted", **_inputs(run)).readings for one in alone]
    return [[_plain(r) for r in own if r.quantity not in ("flops", "co2_kg")] for own in readings]


def _sums_to(flops: Sequence[Flops], said: Reading) -> bool:
    """Return whether consecutive passes take what a reading says."""
    if said.value is None:
        return True
    before, total, padding = {(0, 0)}, 0, 0
    for own in flops:
        total, padding = total + own.total, padding + own.padding
        if (total - said.value, padding - said.detail.get("padding", 0)) in before:
            return True
        before.add((total, padding))
    return False


RULES: tuple[Rule, ...] = (
    Rule("G1", "its trace is whole, and its clocks agree", CURE, _whole),
    Rule("G2", "its machine is one machine", CURE, _own_machine),
    Rule("G3", "every reading is what its samples make", CURE, _own_readings),
    Rule("G4", "gamma, seconds and peak memory are what its readings make", CURE, _own_gamma),
    Rule("G5", "earlier attempts are billed as they were", "Pack the runs that it repeats", _earlier),
    Rule("G6", "scores from elsewhere are billed as they were", "Pack the run that measured them", _cached),
)
