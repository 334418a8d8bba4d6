"""What no machine does: floors and ceilings that hold whatever a run's files say of one another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cprbench.plans.boards import BOARDS, GIB
from cprbench.submissions.dossier import Dossier, Flaw, Rule
from cprbench.submissions.rules.costs import CACHED
from cprbench.submissions.rules.evidence import CURE, RECORD, cores_of, history, on_gpu, told
from cprbench.submissions.rules.history import impossible_scores

#: FLOPs per core and clock, for the widest vectors of a class in bf16: AMX 1024 products, AVX-512 two units of 32
#: pairs, AVX2 two of 8. Apple's cores, which say neon, have matrix units of their own.
_PER_CLOCK = {"amx_bf16": 2048, "avx512": 128, "avx2": 32, "neon": 2048, "scalar": 4}
_CLOCK_HZ = 6e9
#: doctor measures square products once, and other work may have slowed it: runs of tests/records reach 0.9 of its rate.
_OVER_DOCTOR = 4.0
#: Over a board's data sheet: kernels of causal attention skip half of the pairs that the count has.
_OVER_SHEET = 2.0
#: Beyond any accelerator and any CPU of 2026: FLOP/s per device, FLOPs per joule.
_MOST_PER_DEVICE = 5e15
_MOST_PER_JOULE = {True: 1e13, False: 2e12}
#: Over a board's power limit, for as long as a sample; and beyond any node's sockets, whose limit is not told (W).
_OVER_LIMIT, _MOST_CPU_WATTS = 1.25, 5000.0
#: An optimizer step takes a hundred kernel launches at least (seconds).
_LEAST_STEP = 1e-4
#: Shorter phases are not judged by their rate: their edges are stamped in milliseconds.
_JUDGED_SECONDS = 0.05
#: Bytes per parameter that a model takes while it runs: float32, or 4 bits with the constants of its blocks.
_LEAST_BYTES = {"qlora": 0.5}


def _most_flops(run: Dossier) -> float | None:
    """Return FLOP/s that the hardware of a run does at most; None where it is not told."""
    devices = run.record.environment.devices
    if on_gpu(run):
        rates = []
        for device in devices:
            words, gib = str(device.get("name")).lower(), (device.get("memory_bytes") or 0) / GIB
            known = [
                _OVER_SHEET * max(board.bf16_flops or 0.0, board.fp32_flops)
                for name, board in BOARDS.items()
                if re.search(rf"\b(rtx )?{name.partition('-')[0].removeprefix('rtx')}\b", words)
                and 0.9 * board.memory_gib <= gib <= 1.1 * board.memory_gib
            ]
            rates.append(max(known, default=_MOST_PER_DEVICE))
        return sum(rates) or None
    vectors = run.record.environment.hardware_class.split(" ")
    cores, per_clock = cores_of(run), _PER_CLOCK.get(vectors[-3] if len(vectors) > 2 else "")
    bounds = [] if cores is None or per_clock is None else [cores * per_clock * _CLOCK_HZ]
    rates = [
        rate for name in ("bf16", "fp32") if (rate := told(run, "facts", "rates", f"matmul_{name}_gflops_per_second"))
    ]
    return min([*bounds, *([_OVER_DOCTOR * 1e9 * max(rates)] if rates else [])], default=None)


def _fast(run: Dossier) -> Iterator[Flaw]:
    record, most = run.record, _most_flops(run)
    values = {(r.phase, r.attempt, r.quantity, CACHED in r.flags): r.value for r in record.readings}
    for (phase, attempt, quantity, cached), flops in values.items():
        seconds = values.get((phase, attempt, "seconds", cached))
        if quantity != "flops" or flops is None or seconds is None or most is None:
            continue
        if flops > most * max(seconds, _JUDGED_SECONDS):
            rate = flops / max(seconds, _JUDGED_SECONDS)
            yield Flaw(RECORD, f"{rate:.3g} FLOP/s in {phase}, attempt {attempt}: its hardware does {most:.3g} at most")
    steps, train = history(run), values.get(("train", record.attempts, "seconds", False))
    if not isinstance(steps, str) and train is not None:
        count = sum(step.phase == "train" for step in steps)
        if train < count * _LEAST_STEP:
            yield Flaw(RECORD, f"{count} steps in {train} s: no optimizer step takes less than {_LEAST_STEP} s")


def _powered(run: Dossier) -> Iterator[Flaw]:
    limits: list[Any] = [device.get("power_limit_watts") for device in run.record.environment.devices]
    gpu_limit = None if None in limits or not limits else _OVER_LIMIT * sum(map(float, limits))
    by_key = {(r.phase, r.attempt, CACHED in r.flags, r.quantity): r.value or 0.0 for r in run.record.readings}
    for r in run.record.readings:
        gpu = r.quantity in ("gpu_energy_joules", "gpu_energy_sampled_joules")
        if r.value is None or not (gpu or r.quantity == "cpu_energy_joules"):
            continue
        key, slack = (r.phase, r.attempt, CACHED in r.flags), 2 * float(r.detail.get("resolution_joules", 0.0))
        seconds, flops = by_key.get((*key, "seconds"), 0.0), by_key.get((*key, "flops"), 0.0)
        most = gpu_limit if gpu else _MOST_CPU_WATTS
        if most is not None and r.value > most * seconds + slack:
            yield Flaw(RECORD, f"{r.quantity} of {r.phase} is {r.value:.6g} J in {seconds:.6g} s: above {most:.6g} W")
        if on_gpu(run) == gpu and r.value + slack < flops / _MOST_PER_JOULE[gpu]:
            yield Flaw(RECORD, f"{r.quantity} of {r.phase} is {r.value:.6g} J for {flops:.6g} FLOPs: no hardware does")


def _roomy(run: Dossier) -> Iterator[Flaw]:
    record, spec = run.record, run.spec
    peak, devices = record.peak_memory_bytes, record.environment.devices
    if peak is None or spec is None:
        return
    least = spec.model.parameters * _LEAST_BYTES.get(spec.method.name, 4)
    if record.status == "ok" and peak < least:
        yield Flaw(RECORD, f"peak_memory_bytes is {peak}, and the weights of its model take {least:.0f}")
    sizes: list[Any] = [d.get("memory_bytes") for d in devices] if on_gpu(run) else [told(run, "facts", "memory_bytes")]
    # Pages that processes share count in each of them.
    shared = 1 if on_gpu(run) else told(run, "notes", "processes") or 1
    if sizes and None not in sizes and peak > sum(map(float, sizes)) * shared:
        yield Flaw(RECORD, f"peak_memory_bytes is {peak}, and its machine has {sum(map(float, sizes)):.0f}")


def _possible(run: Dossier) -> Iterator[Flaw]:
    psi = run.record.psi
    for name, scores in (("base", psi.base), ("final", psi.final)):
        for why in impossible_scores(scores or {}, psi.items):
            yield Flaw(RECORD, f"psi.{name}: {why}")


RULES: tuple[Rule, ...] = (
    Rule("L1", "no phase is faster than its hardware", CURE, _fast),
    Rule("L2", "energy is within what its hardware takes", CURE, _powered),
    Rule("L3", "memory holds the model and fits the machine", CURE, _roomy),
    Rule("L4", "scores are those of so many items", CURE, _possible),
)
