"""Energy and memory out of traces: known integrals, resets, losses, and everything that must be refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.meters.cpu import modelled_cpu_readings, rapl_readings
from cprbench.meters.energy import FLOOR_SAMPLES, WALL, Spans, gpu_readings
from cprbench.meters.trace import Sample, Trace
from cprbench.spec import Reading

Play = Callable[..., dict[str, Any]]
Group = Callable[[Trace], Spans]
GIB = 2**30
BOARD = f"device GPU-aaaa {80 * GIB} 700000 NVIDIA Shim\noffset 0 123456\n"
SQUARE = "".join(f"curve 0 {t} {(100, 300)[t % 2]}\ncurve 0 {t} {(300, 100)[t % 2]}\n" for t in range(41))
CURVES = {
    "constant": ("curve 0 0 200\n", 200 * 30.0),
    "square": (SQUARE, 200 * 30.0),
    "ramp": ("curve 0 0 50\ncurve 0 40 450\n", 50 * 30 + 10 * (35**2 - 5**2) / 2),
}
TRAIN = [(5.0, "train", "start", 1), (35.0, "train", "end", 1)]


def found(readings: list[Reading], quantity: str, phase: str = "train", attempt: int = 1) -> Reading:
    return next(r for r in readings if (r.quantity, r.phase, r.attempt) == (quantity, phase, attempt))


def value(reading: Reading) -> float:
    assert reading.value is not None, reading.why_missing
    return float(reading.value)


# --- known integrals, through the real pynvml -------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES)
def test_counter_and_sampler_come_within_their_stated_bounds_of_a_known_integral(
    curve: str, play: Play, spans: Group
) -> None:
    script, joules = CURVES[curve]
    trace = play(BOARD + script, TRAIN, until=40.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    for phase in ("train", "billed"):
        counter = found(readings, "gpu_energy_joules", phase)
        sampler = found(readings, "gpu_energy_sampled_joules", phase)
        assert counter.source == "counter"
        assert sampler.source == "sampled"
        assert counter.flags == sampler.flags == []
        assert abs(value(counter) - joules) <= counter.detail["resolution_joules"] <= 450 * 0.2
        # Between two samples the trapezoid is exact on a line and off by half a sample's jump at a jump.
        jumps = 31 if curve == "square" else 0
        assert abs(value(sampler) - joules) <= jumps * 200 * 0.1 / 2 + 1e-3
        assert counter.detail["samples"] == sampler.detail["samples"] == 302  # 300 at 10 Hz, and both edges


def test_a_short_phase_keeps_its_value_with_its_resolution_and_is_coarse(play: Play, spans: Group) -> None:
    edges = [(5.0, "select", "start", 1), (7.04, "select", "end", 1), *[(t + 3, *rest) for t, *rest in TRAIN]]
    trace = play(BOARD + "curve 0 0 200\n", edges, until=45.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    select = found(readings, "gpu_energy_joules", "select")
    assert select.flags == ["coarse"]
    assert abs(value(select) - 2.04 * 200) <= select.detail["resolution_joules"] <= 200 * 0.2
    billed = found(readings, "gpu_energy_joules", "billed")
    assert billed.flags == []
    assert abs(value(billed) - 32.04 * 200) <= billed.detail["resolution_joules"] <= 2 * 200 * 0.2


def test_a_billed_total_of_fewer_than_sixty_samples_is_not_measured_though_its_phases_are(
    play: Play, spans: Group
) -> None:
    edges = [
        (1.0, "select", "start", 1),
        (3.0, "select", "end", 1),
        (4.0, "train", "start", 1),
        (6.0, "train", "end", 1),
    ]
    trace = play(BOARD + "curve 0 0 200\n", edges, until=8.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    assert value(found(readings, "gpu_energy_joules", "train")) == pytest.approx(400, abs=40)
    for quantity in ("gpu_energy_joules", "gpu_energy_sampled_joules"):
        billed = found(readings, quantity, "billed")
        assert billed.value is None
        assert billed.why_missing == f"too short: 44 samples, {FLOOR_SAMPLES} needed"


def test_a_window_shorter_than_a_step_of_the_counter_is_not_zero_joules(play: Play, spans: Group) -> None:
    edges = [
        (2.01, "select", "start", 1),
        (2.08, "select", "end", 1),
        (3.01, "train", "start", 1),
        (3.13, "train", "end", 1),
    ]
    trace = play(BOARD + "curve 0 0 200\n", edges, until=4.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    assert "did not move" in str(found(readings, "gpu_energy_joules", "select").why_missing)
    assert value(found(readings, "gpu_energy_sampled_joules", "select")) == pytest.approx(0.07 * 200)
    # One step of 20 J against 24 J: a sixth apart, yet no further than a step can be, so no disagreement.
    train = found(readings, "gpu_energy_joules", "train")
    assert (train.flags, train.value) == (["coarse"], 20)


def test_a_counter_that_starts_anew_is_bridged_by_the_power_samples_and_flagged(play: Play, spans: Group) -> None:
    # The second reset falls into a second in which the counter is not read, so that 200 J hang on the power samples.
    blind = "fail 0 nvmlDeviceGetTotalEnergyConsumption 999 21.8 22.8\n"
    trace = play(BOARD + "curve 0 0 200\nreset 0 15.05\nreset 0 22.31\n" + blind, TRAIN, until=40.0)["trace"]
    counter = found(gpu_readings(trace, spans(trace)), "gpu_energy_joules")
    assert counter.flags == ["counter_reset"]
    assert abs(value(counter) - 6000) <= 3 * 200 * 0.1  # a step at both ends and at each reset, less those that cancel


@pytest.mark.parametrize(
    "blind",
    [
        "fail 0 nvmlDeviceGetFieldValues 999 15 15.2\n",
        "fail 0 nvmlDeviceGetFieldValues 999 14 17\nfail 0 nvmlDeviceGetTotalEnergyConsumption 999 14 17\n",
    ],
)
def test_a_reset_that_no_power_sample_covers_is_not_measured(blind: str, play: Play, spans: Group) -> None:
    trace = play(BOARD + "curve 0 0 200\nreset 0 15.05\n" + blind, TRAIN, until=40.0)["trace"]
    counter = found(gpu_readings(trace, spans(trace)), "gpu_energy_joules")
    assert counter.value is None
    assert "reset where no power sample covers it" in str(counter.why_missing)


def test_a_board_without_a_counter_has_its_sampled_energy_and_a_reason(play: Play, spans: Group) -> None:
    script = BOARD + "curve 0 0 200\nfail 0 nvmlDeviceGetTotalEnergyConsumption 3 0 1e9\n"
    trace = play(script, TRAIN, until=40.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    assert "GPU-aaaa does not give energy_counter_joules (NVML: Not Supported)" in str(
        found(readings, "gpu_energy_joules").why_missing
    )
    assert value(found(readings, "gpu_energy_sampled_joules")) == pytest.approx(6000)


def test_energy_and_memory_of_two_boards_are_added_and_lost_together(play: Play, spans: Group) -> None:
    second = f"device GPU-bbbb {80 * GIB} 700000 NVIDIA Shim\ncurve 1 0 300\nused 1 0 100\nused 1 8 500\n"
    script = BOARD + "curve 0 0 200\nused 0 0 1000\nused 0 6.95 3000\nused 0 20.05 1500\n" + second
    trace = play(script, TRAIN, until=40.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    energy = found(readings, "gpu_energy_joules")
    assert value(energy) == pytest.approx(15000, abs=100)
    assert energy.detail["devices"] == {"gpu0": pytest.approx(6000, abs=40), "gpu1": pytest.approx(9000, abs=60)}
    assert energy.detail["conditions"]["gpu0"] == {
        "temperature_celsius_max": 75,
        "sm_clock_mhz_mean": 1500,
        "sm_clock_mhz_min": 1500,
    }
    assert value(found(readings, "peak_device_memory_bytes")) == 2400  # above 1000 and 100, used before the run
    exact = 2000 * (20.05 - 6.95) + 500 * (35 - 20.05) + 400 * (35 - 8)
    # A jump between two samples is seen as a line, off by at most half a sample.
    assert value(found(readings, "device_memory_byte_seconds")) == pytest.approx(exact, abs=(2000 + 1500 + 400) * 0.05)
    lost = play(script + "fail 1 * 15 20 1e9\n", TRAIN, until=40.0)["trace"]
    for reading in gpu_readings(lost, spans(lost)):
        assert reading.value is None
        assert "GPU-bbbb was lost" in str(reading.why_missing)


def test_the_floor_counts_the_samples_of_the_device_that_has_fewest(play: Play, spans: Group) -> None:
    second = f"device GPU-bbbb {80 * GIB} 700000 NVIDIA Shim\ncurve 1 0 300\n"
    script = BOARD + "curve 0 0 200\n" + second + "fail 1 nvmlDeviceGetTotalEnergyConsumption 999 3 4.5\n"
    edges = [(1.0, "train", "start", 1), (8.0, "train", "end", 1)]
    trace = play(script, edges, until=9.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    assert found(readings, "gpu_energy_joules", "billed").why_missing == "too short: 57 samples, 60 needed"
    assert value(found(readings, "gpu_energy_sampled_joules", "billed")) == pytest.approx(3500)


@pytest.mark.parametrize(
    "other", ["", f"device GPU-bbbb {80 * GIB} 700000 NVIDIA Shim\ncurve 1 0 300\nused 1 2 9000\n"]
)
def test_memory_that_others_free_is_no_measurement(other: str, play: Play, spans: Group) -> None:
    trace = play(BOARD + "curve 0 0 200\nused 0 0 5000\nused 0 9 4000\n" + other, TRAIN, until=40.0)["trace"]
    readings = gpu_readings(trace, spans(trace))
    for quantity in ("peak_device_memory_bytes", "device_memory_byte_seconds"):
        assert "read -1000" in str(found(readings, quantity).why_missing)


def test_a_played_trace_replays_to_the_same_readings(play: Play, spans: Group) -> None:
    trace = play(BOARD + SQUARE, TRAIN, until=40.0)["trace"]
    again = Trace.parse([s.line() for s in trace.samples] + ['{"missing":{}}'], "replayed")
    assert gpu_readings(again, spans(again)) == gpu_readings(trace, spans(trace))


QUESTIONS = ["TotalEnergyConsumption", "FieldValues", "PowerUsage", "MemoryInfo", "Temperature", "UUID", "Name"]
FAILURE = st.tuples(
    st.sampled_from(["*", "instant", *(f"nvmlDeviceGet{question}" for question in QUESTIONS)]),
    st.sampled_from([2, 3, 4, 6, 9, 10, 13, 15, 16, 21, 28, 999]),  # NVML's error codes
    st.floats(0, 25),
    st.floats(0, 25),
)


@settings(max_examples=150, deadline=None)
@given(failures=st.lists(FAILURE, max_size=6), reset=st.floats(0.2, 25))
def test_whatever_the_driver_fails_at_no_reading_is_zero_and_no_number_is_far_from_the_truth(
    failures: list[tuple[str, int, float, float]], reset: float, play: Play, spans: Group
) -> None:
    script = BOARD + f"curve 0 0 200\nused 0 0 1000\nused 0 1 3000\nreset 0 {reset:.2f}\n"
    script += "".join(f"fail 0 {name} {code} {start:.2f} {start + more:.2f}\n" for name, code, start, more in failures)
    edges = [
        (2.0, "select", "start", 1),
        (6.0, "select", "end", 1),
        (8.0, "train", "start", 1),
        (20.0, "train", "end", 1),
    ]
    trace = play(script, edges, until=25.0)["trace"]
    seconds = {"select": 4.0, "train": 12.0, "billed": 16.0}
    readings = gpu_readings(trace, spans(trace))
    assert len(readings) == 3 * 4
    for reading in readings:
        if reading.value is None:
            assert reading.why_missing
        elif reading.quantity.startswith("gpu_energy"):
            assert value(reading) == pytest.approx(200 * seconds[reading.phase], abs=4 * 200 * 0.2)
        elif trace.missing or failures:
            assert reading.value > 0
        else:
            assert reading.value == pytest.approx(
                2000 * (seconds[reading.phase] if "seconds" in reading.quantity else 1)
            )


# --- traces by hand: what must be refused -----------------------------------------------------------


def by_hand() -> list[Sample]:
    """40 s of a GPU at 200 W, a package at 50 W, DRAM at 5 W and a machine at half load; phase train from 5 to 35."""
    samples = []
    for n in range(401):
        t = n / 10
        values = {
            "gpu0_energy_counter_joules": 1000 + 200 * t,
            "gpu0_power_watts": 200.0,
            "gpu0_memory_used_bytes": 2000.0,
            "rapl_package_energy_joules": 50 * t,
            "rapl_dram_energy_joules": 5 * t,
            "cpu_busy_seconds": 7 + t,
            "cpu_total_seconds": 70 + 2 * t,
            "assumed_cpu_table_watts": 100.0,
            "assumed_ram_watts": 10.0,
            WALL: 1.8e9 + t,
        }
        edge = {50: "start", 350: "end"}.get(n)
        samples.append(Sample(t, values, "train" if edge else None, edge))  # type: ignore[arg-type]
    return samples


TRUTH = {
    "gpu_energy_joules": 6000,
    "gpu_energy_sampled_joules": 6000,
    "peak_device_memory_bytes": 2000,
    "device_memory_byte_seconds": 60000,
    "cpu_energy_joules": 1500,
    "ram_energy_joules": 150,
    "cpu_energy_modelled_joules": 30 * 100 * (0.1 + 0.9 / 8),
    "ram_energy_modelled_joules": 300,
}


def all_readings(samples: list[Sample], group: Group, **missing: str) -> dict[str, Reading]:
    trace = Trace(samples, missing)
    readings = [f(trace, group(trace)) for f in (gpu_readings, rapl_readings, modelled_cpu_readings)]
    return {r.quantity: r for part in readings for r in part if r.phase == "train"}


def changed(samples: list[Sample], index: int, **values: float) -> list[Sample]:
    sample = samples[index]
    return [*samples[:index], replace(sample, values=dict(sample.values) | values), *samples[index + 1 :]]


def test_an_undisturbed_trace_gives_every_quantity_exactly(spans: Group) -> None:
    readings = all_readings(by_hand(), spans)
    assert {name: value(reading) for name, reading in readings.items()} == pytest.approx(TRUTH)


def test_a_counter_and_a_sampler_that_disagree_by_over_ten_percent_are_both_flagged(spans: Group) -> None:
    for watts, flagged in ((219.0, False), (221.0, True), (179.0, True)):
        samples = by_hand()
        for index in range(len(samples)):
            samples = changed(samples, index, gpu0_power_watts=watts)
        readings = all_readings(samples, spans)
        for quantity in ("gpu_energy_joules", "gpu_energy_sampled_joules"):
            assert ("counter_sampler_gap" in readings[quantity].flags) is flagged


def test_an_edge_that_is_read_and_written_late_is_neither_a_reset_nor_a_clock_that_jumped(spans: Group) -> None:
    samples = by_hand()
    read = {"gpu0_energy_counter_joules": 1000 + 200 * 6.5, "rapl_package_energy_joules": 50 * 6.5, WALL: 1.8e9 + 6.5}
    late = changed(samples, 50, **read)[50]
    readings = all_readings([*samples[:50], *samples[51:66], late, *samples[66:]], spans)
    assert readings["gpu_energy_joules"].flags == []
    assert value(readings["gpu_energy_joules"]) == pytest.approx(6000 - 200 * 1.5)  # what it read, no more
    assert value(readings["cpu_energy_joules"]) == pytest.approx(1500 - 50 * 1.5)


def test_a_killed_process_s_window_ends_at_its_last_sample(spans: Group) -> None:
    samples = [s for s in by_hand() if s.t <= 30]
    assert value(all_readings(samples, spans)["gpu_energy_joules"]) == pytest.approx(200 * 25)


def test_a_machine_that_sleeps_is_refused_though_the_monotonic_clock_stood_still(spans: Group) -> None:
    samples = by_hand()
    for index in range(200, len(samples)):
        samples = changed(samples, index, **{WALL: samples[index].values[WALL] + 3600})
    for reading in all_readings(samples, spans).values():
        assert "the wall clock jumped by 3600.0 s" in str(reading.why_missing)


def test_a_silence_of_more_than_five_seconds_is_refused(spans: Group) -> None:
    for reading in all_readings([s for s in by_hand() if not 20 < s.t < 25.05], spans).values():
        assert "no sample for 5.1 s" in str(reading.why_missing)


def test_a_clock_that_runs_backwards_is_refused(spans: Group) -> None:
    samples = [s if s.t < 20 else replace(s, t=s.t - 3) for s in by_hand()]
    for reading in all_readings(samples, spans).values():
        assert "the clock ran backwards" in str(reading.why_missing)


def test_a_bad_value_in_one_phase_leaves_the_other_phases_measured(spans: Group) -> None:
    for bad in (math.nan, -1.0):
        samples = by_hand()
        for index, side in ((10, "start"), (40, "end")):
            samples[index] = replace(samples[index], phase="select", edge=side)  # type: ignore[arg-type]
        samples = changed(samples, 20, gpu0_energy_counter_joules=bad)
        trace = Trace(samples)
        readings = gpu_readings(trace, spans(trace))
        assert "which is no measurement" in str(found(readings, "gpu_energy_joules", "select").why_missing)
        assert value(found(readings, "gpu_energy_joules", "train")) == pytest.approx(6000)


def test_no_gpu_meter_at_all_is_a_reason_for_every_quantity(spans: Group) -> None:
    samples = [replace(s, values={}) for s in by_hand()]
    reasons = {q: r.why_missing for q, r in all_readings(samples, spans).items()}
    assert reasons["gpu_energy_joules"] == reasons["peak_device_memory_bytes"] == "no GPU was metered in this run"
    assert all_readings(samples, spans, gpu_energy_joules="no NVML device")["gpu_energy_joules"].why_missing == (
        "no NVML device"
    )
    assert all(reasons.values())


KEYS = {
    "gpu0_energy_counter_joules": {"gpu_energy_joules"},
    "gpu0_power_watts": {"gpu_energy_sampled_joules"},
    "gpu0_memory_used_bytes": {"peak_device_memory_bytes", "device_memory_byte_seconds"},
    "rapl_package_energy_joules": {"cpu_energy_joules"},
    "rapl_dram_energy_joules": {"ram_energy_joules"},
    "cpu_total_seconds": {"cpu_energy_modelled_joules", "ram_energy_modelled_joules"},
}


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(sorted(KEYS)), index=st.integers(51, 349), bad=st.sampled_from([math.nan, math.inf, -1.0]))
def test_one_value_that_is_negative_or_no_number_refuses_what_is_made_of_it_and_nothing_else(
    key: str, index: int, bad: float, spans: Group
) -> None:
    readings = all_readings(changed(by_hand(), index, **{key: bad}), spans)
    for quantity, reading in readings.items():
        if quantity in KEYS[key]:
            assert reading.value is None
        else:
            assert value(reading) == pytest.approx(TRUTH[quantity])


@settings(max_examples=150, deadline=None)
@given(
    lost=st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.integers(0, 400), st.integers(1, 120)), max_size=8),
    slept=st.none() | st.tuples(st.integers(51, 349), st.floats(1.5, 1e6)),
)
def test_meters_that_fall_silent_at_random_yield_the_truth_or_a_reason_and_never_zero(
    lost: list[tuple[str, int, int]], slept: tuple[int, float] | None, spans: Group
) -> None:
    samples = by_hand()
    gone = {(key, index) for key, start, count in lost for index in range(start, start + count)}
    samples = [
        replace(s, values={k: v for k, v in s.values.items() if (k, n) not in gone}) for n, s in enumerate(samples)
    ]
    if slept is not None:
        for index in range(slept[0], len(samples)):
            samples = changed(samples, index, **{WALL: samples[index].values[WALL] + slept[1]})
    for quantity, reading in all_readings(samples, spans).items():
        if reading.value is None:
            assert reading.why_missing
        else:
            assert slept is None
            assert value(reading) == pytest.approx(TRUTH[quantity], rel=0.02)
