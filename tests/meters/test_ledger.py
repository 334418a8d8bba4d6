"""Trace -> readings, seconds and gamma, against sums made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from cprbench.endings import StopSpec
from cprbench.meters.carbon import CarbonFactors
from cprbench.meters.flops import Flops
from cprbench.meters.ledger import Account, account
from cprbench.meters.trace import Sample, Trace
from cprbench.spec import Reading, billed_phases

Phases = Sequence[tuple[str, float, float]]
#: setup 5 s, select 2 s, train 6 + 4 s around a validation of 1 s, score 2 s: 12 s are billed.
RUN: Phases = (
    ("setup", 0, 5),
    ("select", 5, 7),
    ("train", 7, 13),
    ("validate", 13, 14),
    ("train", 14, 18),
    ("score", 18, 20),
)
GB = 1e9
FLOPS = {
    ("select", 1): Flops(100, 10),
    ("train", 1): Flops(1000, 30),
    ("validate", 1): Flops(50),
    ("score", 1): Flops(70),
}
FRANCE = CarbonFactors(50.0, "given with --carbon-intensity", None, pue=1.2)


def trace_of(
    phases: Phases = RUN,
    *,
    attempt: int = 1,
    at_end: Mapping[str, float] | None = None,
    missing: Mapping[str, str] | None = None,
    open_end: bool = False,
    **series: Callable[[float], float],
) -> Trace:
    """Return a trace of phases, sampled at 10 Hz; `series` are values as functions of time.

    `at_end`: what the edge at a phase's end has beside them. `open_end`: the process died in the last phase.
    """
    marks: list[tuple[float, int, str, Any]] = []
    for position, (phase, low, high) in enumerate(phases):
        marks.append((low, 1, phase, "start"))
        if not (open_end and position == len(phases) - 1):
            marks.append((high, 0, phase, "end"))
    last = max(high for _, _, high in phases)
    samples = [Sample(t, {q: f(t) for q, f in series.items()}) for t in (i / 10 for i in range(round(last * 10) + 1))]
    for t, _, phase, edge in marks:
        extra = dict(at_end or {}) if edge == "end" else {}
        samples.append(Sample(t, {**{q: f(t) for q, f in series.items()}, **extra}, phase, edge, attempt))
    order = {"end": 0, "start": 1, None: 2}
    return Trace(sorted(samples, key=lambda s: (s.t, order[s.edge])), dict(missing or {}))


def on_cpu(trace: Trace, flops: Any = None, **more: Any) -> Account:
    return account(trace, FLOPS if flops is None else flops, **{"cores": 2, "accelerators": 0, **more})


def one(found: Account, phase: str, quantity: str, attempt: int = 1) -> Reading:
    """Return the one reading of a quantity in a phase."""
    (wanted,) = [r for r in found.readings if (r.phase, r.quantity, r.attempt) == (phase, quantity, attempt)]
    return wanted


def constant(value: float) -> Callable[[float], float]:
    return lambda t: value


# --- time -------------------------------------------------------------------------------------------


def test_seconds_are_those_of_the_windows_and_select_and_train_are_billed() -> None:
    found = on_cpu(trace_of())
    assert found.seconds == pytest.approx(
        {"setup": 5, "select": 2, "train": 10, "validate": 1, "score": 2, "billed": 12, "billed_last_attempt": 12}
    )
    assert one(found, "train", "seconds").value == pytest.approx(10)
    assert one(found, "billed", "seconds").value == pytest.approx(12)


def test_a_run_that_acts_on_its_validations_bills_them() -> None:
    found = on_cpu(trace_of(rss_bytes=constant(GB)), phases=billed_phases(StopSpec()))
    assert (found.seconds["validate"], found.seconds["billed"]) == (1, pytest.approx(13))
    assert (found.gamma.flops, found.gamma.device_hours) == (1150, pytest.approx(13 / 3600))
    assert found.gamma.memory_gb_hours == pytest.approx(13 / 3600)
    assert on_cpu(trace_of(), phases=billed_phases(None)).gamma.flops == 1100


def test_a_phase_that_did_not_take_place_took_no_time_and_has_no_reading() -> None:
    found = on_cpu(trace_of([("setup", 0, 1), ("train", 1, 3)]))
    assert (found.seconds["select"], found.seconds["billed"]) == (0, 2)
    assert "select" not in {r.phase for r in found.readings}


@pytest.mark.parametrize(("accelerators", "hours"), [(0, 12 / 3600), (1, 12 / 3600), (4, 48 / 3600), (None, None)])
def test_device_hours_are_accelerators_times_billed_hours_and_host_hours_without_any(
    accelerators: int | None, hours: float | None
) -> None:
    gamma = on_cpu(trace_of(), accelerators=accelerators).gamma
    assert gamma.device_hours == (None if hours is None else pytest.approx(hours))
    assert gamma.core_hours == pytest.approx(2 * 12 / 3600)


def test_the_death_of_a_process_cuts_its_last_phase_at_the_last_sample() -> None:
    found = on_cpu(trace_of([("setup", 0, 1), ("train", 1, 4)], open_end=True, rss_bytes=constant(GB)))
    assert found.seconds["train"] == pytest.approx(3)
    assert one(found, "train", "seconds").flags == ["cut"]
    assert one(found, "setup", "seconds").flags == []


# --- memory -----------------------------------------------------------------------------------------


def test_memory_of_a_cpu_run_is_the_integral_of_rss_over_the_billed_windows() -> None:
    found = on_cpu(trace_of(rss_bytes=lambda t: GB * t))
    billed = (7**2 - 5**2) / 2 + (13**2 - 7**2) / 2 + (18**2 - 14**2) / 2
    assert found.gamma.memory_gb_hours == pytest.approx(billed / 3600)
    assert found.gamma.memory_basis == "rss"
    assert one(found, "setup", "rss_byte_seconds").value == pytest.approx(GB * 12.5)
    assert one(found, "setup", "rss_byte_seconds").source == "sampled"


def test_memory_of_a_gpu_run_is_what_torch_reserved_where_the_device_itself_was_not_read() -> None:
    trace = trace_of(rss_bytes=constant(9 * GB), cuda_reserved_bytes=constant(2 * GB))
    gamma = on_cpu(trace, accelerators=1).gamma
    assert gamma.memory_gb_hours == pytest.approx(2 * 12 / 3600)
    assert gamma.memory_basis == "reserved"


def test_memory_of_a_gpu_run_is_the_device_s_own_use_unless_it_is_shared() -> None:
    trace = trace_of(
        cuda_reserved_bytes=constant(2 * GB),
        gpu0_memory_used_bytes=constant(3 * GB),
        at_end={"peak_cuda_reserved_bytes": 2 * GB},
    )
    alone = on_cpu(trace, accelerators=1)
    assert alone.gamma.memory_basis == "device"
    assert alone.gamma.memory_gb_hours == pytest.approx(3 * 12 / 3600)
    assert alone.peak_memory_bytes == 3 * GB
    shared = on_cpu(trace, accelerators=1, flags=["shared"])
    assert shared.gamma.memory_basis == "reserved"
    assert shared.gamma.memory_gb_hours == pytest.approx(2 * 12 / 3600)
    assert shared.peak_memory_bytes == 2 * GB


def test_the_peak_is_the_largest_of_the_billed_phases() -> None:
    edges = [
        Sample(0, {}, "setup", "start"),
        Sample(1, {"peak_rss_bytes": 9e9}, "setup", "end"),
        Sample(1, {}, "train", "start"),
        Sample(2, {"peak_rss_bytes": 2e9}, "train", "end"),
        Sample(2, {}, "train", "start"),
        Sample(3, {"peak_rss_bytes": 3e9}, "train", "end"),
    ]
    found = on_cpu(Trace(edges))
    assert one(found, "setup", "peak_rss_bytes").value == 9e9
    assert one(found, "train", "peak_rss_bytes").value == 3e9
    assert found.peak_memory_bytes == 3_000_000_000


def test_the_peak_of_a_killed_phase_is_never_below_its_samples() -> None:
    edges = [
        Sample(0, {}, "train", "start"),
        Sample(1, {"peak_rss_bytes": 1e9}, "train", "end"),
        Sample(1, {}, "train", "start"),
        Sample(2, {"rss_bytes": 8e9}),
    ]
    peak = on_cpu(Trace(edges)).peak_memory_bytes
    assert peak is None or peak >= 8e9


def test_memory_that_was_not_sampled_is_a_reason_and_never_zero() -> None:
    found = on_cpu(trace_of(missing={"peak_rss_bytes": "/proc/1 cannot be read"}))
    assert found.gamma.memory_gb_hours is None
    assert found.peak_memory_bytes is None
    assert one(found, "train", "rss_byte_seconds").value is None
    assert one(found, "train", "rss_byte_seconds").why_missing
    assert one(found, "train", "peak_rss_bytes").why_missing == "/proc/1 cannot be read"
    assert one(found, "train", "cuda_reserved_byte_seconds").why_missing == "no CUDA"


def test_the_reason_of_the_meter_is_the_reason_of_its_integral() -> None:
    found = on_cpu(trace_of(missing={"rss_bytes": "/proc/1 cannot be read"}))
    assert one(found, "train", "rss_byte_seconds").why_missing == "/proc/1 cannot be read"


def test_memory_of_a_process_tree_counts_where_no_single_process_was_watched() -> None:
    tree = on_cpu(trace_of(pss_tree_bytes=constant(3 * GB)))
    assert tree.gamma.memory_basis == "pss"
    assert tree.gamma.memory_gb_hours == pytest.approx(3 * 12 / 3600)
    assert tree.peak_memory_bytes == 3 * GB
    both = on_cpu(trace_of(pss_tree_bytes=constant(3 * GB), rss_bytes=constant(GB)))
    assert both.gamma.memory_basis == "rss"


def test_a_tree_that_is_read_seldom_keeps_its_last_size_until_it_ends() -> None:
    whole = trace_of(pss_tree_bytes=constant(3 * GB))
    # Large trees are read once in 0.8 s, and one that has ended cannot be read at its own end.
    seldom = [
        Sample(
            s.t,
            dict(s.values) if s.edge == "start" or (round(10 * s.t) % 8 == 0 and s.edge is None) else {},
            s.phase,
            s.edge,
        )
        for s in whole.samples
    ]
    found = on_cpu(Trace(seldom, {}))
    assert found.gamma.memory_gb_hours == pytest.approx(3 * 12 / 3600)


# --- FLOPs ------------------------------------------------------------------------------------------


def test_billed_flops_are_those_of_select_and_train() -> None:
    found = on_cpu(trace_of())
    assert found.gamma.flops == 1100
    assert one(found, "billed", "flops").detail == {"padding": 40}
    assert one(found, "score", "flops").value == 70
    assert one(found, "setup", "flops").value == 0
    assert one(found, "train", "flops").source == "counted"


def test_flops_that_cannot_be_counted_are_a_reason_in_every_phase() -> None:
    found = on_cpu(trace_of(), "model_type 'mamba' has no FLOP count")
    assert found.gamma.flops is None
    reasons = {r.why_missing for r in found.readings if r.quantity == "flops"}
    assert reasons == {"model_type 'mamba' has no FLOP count"}


# --- energy and carbon ------------------------------------------------------------------------------


def test_the_energy_of_a_cpu_run_is_that_of_its_packages_and_dram() -> None:
    trace = trace_of(rapl_package_energy_joules=lambda t: 40 * t, rapl_dram_energy_joules=lambda t: 5 * t)
    gamma = on_cpu(trace, carbon=FRANCE).gamma
    assert gamma.energy_kwh == pytest.approx(45 * 12 / 3.6e6)
    assert gamma.energy_scope == "rapl packages + dram"
    assert gamma.co2_kg == pytest.approx(45 * 12 / 3.6e6 * 50 * 1.2 / 1000)
    alone = on_cpu(trace_of(rapl_package_energy_joules=lambda t: 40 * t)).gamma
    assert alone.energy_kwh == pytest.approx(40 * 12 / 3.6e6)
    assert alone.energy_scope == "rapl packages"


def test_the_energy_of_a_gpu_run_is_that_of_its_boards_and_nothing_of_the_host() -> None:
    trace = trace_of(gpu0_energy_counter_joules=lambda t: 300 * t, rapl_package_energy_joules=lambda t: 40 * t)
    found = on_cpu(trace, accelerators=1)
    assert found.gamma.energy_kwh == pytest.approx(300 * 12 / 3.6e6)
    assert found.gamma.energy_scope == "gpu boards"
    assert one(found, "billed", "cpu_energy_joules").value == pytest.approx(40 * 12)  # beside it, on its own


def test_without_any_meter_energy_and_carbon_are_reasons_and_never_zero() -> None:
    for accelerators in (0, 1):
        found = on_cpu(trace_of(rss_bytes=constant(GB)), accelerators=accelerators, carbon=FRANCE)
        assert (found.gamma.energy_kwh, found.gamma.co2_kg, found.gamma.energy_scope) == (None, None, None)
        energies = [r for r in found.readings if "energy" in r.quantity or r.quantity == "co2_kg"]
        assert energies
        assert all(r.value is None and r.why_missing for r in energies)


def test_what_another_run_measured_is_billed_with_this_launch_s_carbon() -> None:
    trace = trace_of(rapl_package_energy_joules=lambda t: 40 * t)
    elsewhere = on_cpu(trace, carbon=None).readings  # whose carbon was never known
    found = on_cpu(trace, carbon=FRANCE, cached=elsewhere)
    alone = on_cpu(trace, carbon=FRANCE)
    assert alone.gamma.energy_kwh and alone.gamma.co2_kg
    assert found.gamma.energy_kwh == pytest.approx(2 * alone.gamma.energy_kwh)
    assert found.gamma.co2_kg == pytest.approx(2 * alone.gamma.co2_kg)
    assert found.seconds["billed_last_attempt"] == pytest.approx(2 * (alone.seconds["billed"] or 0))


def test_without_a_country_carbon_is_a_reason_even_where_energy_was_measured() -> None:
    found = on_cpu(trace_of(rapl_package_energy_joules=lambda t: 40 * t))
    assert found.gamma.energy_kwh is not None
    assert found.gamma.co2_kg is None
    assert "--country" in (one(found, "billed", "co2_kg").why_missing or "")


# --- attempts and replay ----------------------------------------------------------------------------


def test_earlier_attempts_are_billed_as_well_and_the_last_one_stands_beside() -> None:
    first = on_cpu(trace_of(rss_bytes=constant(GB)))
    again = {(phase, 2): flops for (phase, _), flops in FLOPS.items()}
    both = on_cpu(
        trace_of([("setup", 0, 1), ("train", 1, 4)], attempt=2, rss_bytes=constant(2 * GB)),
        again,
        earlier=first.readings,
    )
    assert both.seconds["billed"] == pytest.approx(12 + 3)
    assert both.seconds["billed_last_attempt"] == pytest.approx(3)
    assert both.seconds["setup"] == pytest.approx(5 + 1)
    assert both.gamma.memory_gb_hours == pytest.approx((12 + 2 * 3) / 3600)
    assert both.gamma.flops == 1100 + 1000
    assert both.readings[: len(first.readings)] == first.readings
    assert one(both, "train", "seconds", attempt=2).value == pytest.approx(3)


def test_one_attempt_that_was_not_measured_makes_the_sum_unknown() -> None:
    first = on_cpu(trace_of(), "it died before it wrote down what it had computed")
    both = on_cpu(
        trace_of([("train", 0, 4)], attempt=2, rss_bytes=constant(GB)),
        {("train", 2): Flops(5)},
        earlier=first.readings,
    )
    assert both.gamma.flops is None
    assert both.gamma.memory_gb_hours is None
    assert both.seconds["billed"] == pytest.approx(12 + 4)


def test_an_attempt_that_left_no_trace_bills_what_came_before_it() -> None:
    first = on_cpu(trace_of(rss_bytes=constant(GB)))
    both = on_cpu(Trace([]), earlier=first.readings)
    assert both.seconds["billed"] == pytest.approx(12)
    assert both.seconds["billed_last_attempt"] == 0
    assert both.gamma.flops == 1100


def test_an_attempt_that_died_in_setup_adds_nothing_to_the_bill() -> None:
    died = on_cpu(trace_of([("setup", 0, 5)], rss_bytes=constant(GB)), "it died before it computed anything")
    both = on_cpu(
        trace_of([("train", 0, 4)], attempt=2, rss_bytes=constant(GB)), {("train", 2): Flops(5)}, earlier=died.readings
    )
    assert both.gamma.memory_gb_hours == pytest.approx(4 / 3600)
    assert both.gamma.flops == 5


def test_nothing_at_all_is_billed_as_no_time_and_no_number() -> None:
    found = on_cpu(Trace([]))
    assert found.readings == []
    assert set(found.seconds.values()) == {0.0}
    assert (found.gamma.memory_gb_hours, found.gamma.flops, found.gamma.energy_kwh) == (None, None, None)


def test_a_stored_trace_gives_the_same_account_again() -> None:
    trace = trace_of(
        rss_bytes=lambda t: GB * (1 + t / 7),
        rapl_package_energy_joules=lambda t: 40 * t,
        at_end={"peak_rss_bytes": 5 * GB},
        missing={"pss_bytes": "no smaps_rollup"},
    )
    lines = [sample.line() for sample in trace.samples] + ['{"missing":{"pss_bytes":"no smaps_rollup"}}']
    assert on_cpu(Trace.parse(lines, "replay"), carbon=FRANCE) == on_cpu(trace, carbon=FRANCE)


def test_every_reading_has_a_value_with_its_source_or_a_reason() -> None:
    found = on_cpu(trace_of(rss_bytes=constant(GB)), flags=["shared"])
    assert {r.phase for r in found.readings} == {"setup", "select", "train", "validate", "score", "billed"}
    for reading in found.readings:
        assert (reading.value is None) == bool(reading.why_missing)
        assert (reading.value is None) == (reading.source is None)
    quantities = [(r.phase, r.quantity) for r in found.readings]
    assert len(set(quantities)) == len(quantities)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([(t, 1e9) for t in (0.0, 0.5, 9.0, 9.5)], "no sample for 8.5 s"),
        ([(0.0, 1e9), (0.5, -1e9), (1.0, 1e9)], "which is no measurement"),
        ([(20.0, 1e9), (20.5, 1e9)], "no sample of rss_bytes"),
    ],
    ids=["a silence", "below zero", "none inside"],
)
def test_memory_that_the_samples_do_not_carry_is_not_measured(values: list[tuple[float, float]], reason: str) -> None:
    end = max(t for t, _ in values) if values[0][0] == 0.0 else 10.0
    samples = [Sample(0.0, {}, "train", "start"), *(Sample(t, {"rss_bytes": v}) for t, v in values)]
    bill = account(Trace([*samples, Sample(end, {}, "train", "end")]), "no run", cores=2, accelerators=0)
    (found,) = (r for r in bill.readings if (r.phase, r.quantity) == ("train", "rss_byte_seconds"))
    assert found.value is None
    assert reason in str(found.why_missing)
    assert bill.gamma.memory_gb_hours is None
