"""Which devices a run is metered on, and what the meter says of them: the real pynvml over a stand-in driver."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.errors import SpecError
from cprbench.meters.device import QUANTITIES, visible_devices
from cprbench.meters.energy import WALL, Spans, gpu_readings
from cprbench.meters.trace import Trace

Play = Callable[..., dict[str, Any]]
Group = Callable[[Trace], Spans]
GIB = 2**30
A = f"device GPU-aaaa-1 {80 * GIB} 700000 NVIDIA Shim 80GB\ncurve 0 0 100\nused 0 0 {3 * GIB}\n"
B = f"device GPU-bbbb-2 {80 * GIB} 700000 NVIDIA Shim 80GB\ncurve 1 0 300\n"
OTHER = f"device GPU-cccc-3 {40 * GIB} 400000 NVIDIA Slow 40GB\ncurve 1 0 50\n"
MIG = "mig 0 MIG-1111 3 7 21474836480 NVIDIA Shim 80GB MIG 3g.20gb\n"
EDGES = [(1.0, "train", "start", 1), (9.0, "train", "end", 1)]
BOARDS = [("GPU-aaaa-1", "x"), ("GPU-bbbb-2", "x"), ("GPU-bbcc-3", "x")]


def joules(answer: dict[str, Any], group: Group) -> dict[str, float]:
    trace = answer["trace"]
    energy = next(r for r in gpu_readings(trace, group(trace)) if r.quantity == "gpu_energy_joules")
    return dict(energy.detail["devices"])


def uuids(answer: dict[str, Any]) -> list[str]:
    return [gpu["uuid"] for gpu in answer["facts"]["gpus"]]


# --- which devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, "abc"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("0", "a"),
        ("2,0", "ca"),
        (" 1 , 0 ", "ba"),
        ("0,7,1", "a"),  # CUDA shows what stands before the first entry that names no device
        ("0,-1,1", "a"),
        ("1,1", "b"),
        ("GPU-bbbb-2,GPU-aaaa-1", "ba"),
        ("GPU-aa", "a"),
        ("GPU-bb", ""),  # two devices begin so
        ("GPU-zz", ""),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(setting: str | None, shown: str) -> None:
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    names = {"a": "GPU-aaaa-1", "b": "GPU-bbbb-2", "c": "GPU-bbcc-3"}
    assert visible_devices(BOARDS, environ) == [names[letter] for letter in shown]


@given(st.text(alphabet="0123456789GPU-abc,MI zé", max_size=30))
def test_no_setting_shows_a_device_twice_or_one_that_is_not_there(setting: str) -> None:
    shown = visible_devices(BOARDS, {"CUDA_VISIBLE_DEVICES": setting})
    assert len(set(shown)) == len(shown)
    assert all(uuid in dict(BOARDS) or uuid.startswith("MIG-") for uuid in shown)


def test_unlike_boards_by_number_are_refused_unless_cuda_numbers_them_by_bus() -> None:
    unlike = [("GPU-a", "fast"), ("GPU-b", "slow")]
    with pytest.raises(SpecError, match=r"CUDA_VISIBLE_DEVICES=1 .* Set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_devices(unlike, {"CUDA_VISIBLE_DEVICES": "1"})
    assert visible_devices(unlike, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ["GPU-b"]
    assert visible_devices(unlike, {"CUDA_VISIBLE_DEVICES": "1,0"}) == ["GPU-b", "GPU-a"]  # all of them: no question
    assert visible_devices(unlike, {"CUDA_VISIBLE_DEVICES": "GPU-b"}) == ["GPU-b"]


def test_reordered_devices_are_metered_in_the_order_of_the_run(play: Play, spans: Group) -> None:
    answer = play(A + B, EDGES, until=10.0, environ={"CUDA_VISIBLE_DEVICES": "1,0"})
    assert uuids(answer) == ["GPU-bbbb-2", "GPU-aaaa-1"]
    assert joules(answer, spans) == {"gpu0": pytest.approx(2400, abs=60), "gpu1": pytest.approx(800, abs=20)}


@pytest.mark.parametrize(
    "more", [{"environ": {"CUDA_VISIBLE_DEVICES": "1"}}, {"uuids": ["GPU-bbbb-2"]}, {"uuids": ["bbbb-2"]}]
)
def test_a_run_on_the_second_of_two_devices_pays_for_that_one_alone(more: Any, play: Play, spans: Group) -> None:
    answer = play(A + B, EDGES, until=10.0, **more)
    assert uuids(answer) == ["GPU-bbbb-2"]
    assert answer["facts"]["allotted"] == 1
    assert joules(answer, spans) == {"gpu0": pytest.approx(2400, abs=60)}


def test_a_uuid_that_no_device_has_is_an_error_that_names_the_nearest(play: Play) -> None:
    answer = play(A + B, [], uuids=["GPU-bbbb-3"])
    assert answer["error"] == "no GPU has the UUID 'GPU-bbbb-3'. Did you mean 'GPU-bbbb-2'?"


def test_unlike_boards_that_cannot_be_told_apart_are_not_measured(play: Play) -> None:
    answer = play(A + OTHER, EDGES, until=10.0, environ={"CUDA_VISIBLE_DEVICES": "0"})
    assert set(answer["missing"]) == set(QUANTITIES)
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in answer["missing"]["gpu_energy_joules"]
    assert uuids(answer) == []


# --- what it says of them ---------------------------------------------------------------------------


def test_the_facts_name_board_memory_limit_driver_and_hardware_class(play: Play) -> None:
    facts = play("driver 580.65.06\n" + A + B, [])["facts"]
    assert facts["driver"] == "580.65.06"
    assert facts["hardware_class"] == "2x NVIDIA Shim 80GB 80 GiB 700 W"
    assert facts["allotted"] == 2
    assert facts["gpus"][0] == {
        "uuid": "GPU-aaaa-1",
        "name": "NVIDIA Shim 80GB",
        "memory_bytes": 80 * GIB,
        "baseline_memory_bytes": 3 * GIB,
        "power_limit_watts": 700,
        "power_from": "NVML_FI_DEV_POWER_INSTANT",
        "mig": False,
        "share": 1,
    }
    mixed = play(A + OTHER, [])["facts"]
    assert mixed["hardware_class"] == "1x NVIDIA Shim 80GB 80 GiB 700 W + 1x NVIDIA Slow 40GB 40 GiB 400 W"


def test_samples_carry_counter_power_and_memory_at_every_tick_and_slow_facts_once_a_second(play: Play) -> None:
    trace = play(A, [(2.5, "train", "start", 1), (2.6, "train", "end", 1)], until=3.0)["trace"]
    often = {"gpu0_energy_counter_joules", "gpu0_power_watts", "gpu0_memory_used_bytes", WALL}
    seldom = {"gpu0_sm_clock_mhz", "gpu0_temperature_celsius"}
    for number, sample in enumerate(s for s in trace.samples if s.edge is None):
        assert set(sample.values) == (often | seldom if number % 10 == 0 else often)
    assert all(set(sample.values) == often | seldom for sample in trace.samples if sample.edge is not None)


def test_without_the_instant_field_the_averaged_power_is_taken_and_named(play: Play, spans: Group) -> None:
    answer = play(A + "fail 0 instant 3 0 1e9\n", EDGES, until=10.0)
    assert answer["facts"]["gpus"][0]["power_from"] == "nvmlDeviceGetPowerUsage"
    assert answer["missing"] == {}
    sampled = gpu_readings(answer["trace"], spans(answer["trace"]))[1]
    assert sampled.value == pytest.approx(800)


def test_memory_without_a_baseline_is_not_measured(play: Play) -> None:
    answer = play(A + "fail 0 nvmlDeviceGetMemoryInfo 999 0 0.5\n", [], until=2.0)
    assert answer["facts"]["hardware_class"] == "1x NVIDIA Shim 80GB unknown GiB 700 W"
    assert "did not tell how much memory" in answer["missing"]["gpu0_memory_used_bytes"]
    assert not any("gpu0_memory_used_bytes" in sample.values for sample in answer["trace"].samples)


def test_a_power_sensor_that_reads_nothing_is_not_zero_watts(play: Play) -> None:
    answer = play(f"device GPU-a {GIB} 0 Silent\ncurve 0 0 0\n", [], until=2.0)
    assert answer["missing"] == {"gpu0_power_watts": "GPU-a does not give power_watts (NVML: error 21)"}
    assert not any("gpu0_power_watts" in sample.values for sample in answer["trace"].samples)


@pytest.mark.parametrize(
    "more", [{}, *({"environ": {"CUDA_VISIBLE_DEVICES": named}} for named in ("0", "MIG-1111")), {"uuids": ["1111"]}]
)
def test_a_mig_slice_has_memory_and_a_share_but_no_energy_of_its_own(more: Any, play: Play, spans: Group) -> None:
    answer = play(A + MIG, EDGES, until=10.0, **more)
    [gpu] = answer["facts"]["gpus"]
    assert (gpu["uuid"], gpu["mig"], gpu["share"]) == ("MIG-1111", True, pytest.approx(3 / 7))
    assert answer["facts"]["allotted"] == pytest.approx(3 / 7)
    assert answer["facts"]["hardware_class"] == "1x NVIDIA Shim 80GB MIG 3g.20gb 20 GiB 700 W"
    readings = {r.quantity: r for r in gpu_readings(answer["trace"], spans(answer["trace"])) if r.phase == "train"}
    for quantity in ("gpu_energy_joules", "gpu_energy_sampled_joules"):
        assert readings[quantity].value is None
        assert "MIG is on" in str(readings[quantity].why_missing)
    assert readings["peak_device_memory_bytes"].value == 0  # measured: nothing was taken above the baseline
    assert "power_watts" not in str(answer["lines"][:-1])


def test_a_foreign_process_is_listed_and_an_own_one_is_not(play: Play) -> None:
    script = A + B + f"process 0 4711 {GIB}\nprocess 0 12 5\nprocess 1 99 7\n"
    assert play(script, [], own_pids=[12])["foreign"] == [[4711, "GPU-aaaa-1", GIB], [99, "GPU-bbbb-2", 7]]
    assert play(script, [], own_pids=[12], environ={"CUDA_VISIBLE_DEVICES": "1"})["foreign"] == [[99, "GPU-bbbb-2", 7]]
    assert play(A, [])["foreign"] == []


def test_a_driver_that_does_not_list_processes_is_not_an_empty_list(play: Play) -> None:
    answer = play(A + "fail 0 nvmlDeviceGetComputeRunningProcesses_v3 4 0 1e9\n", [])
    assert answer["foreign"] is None
    assert "does not list processes" in answer["missing"]["gpu_foreign_processes"]


# --- a device that vanishes -------------------------------------------------------------------------


def test_a_device_that_vanishes_leaves_the_phases_before_it_measured_and_no_number_after(
    play: Play, spans: Group
) -> None:
    edges = [
        (1.0, "select", "start", 1),
        (9.0, "select", "end", 1),
        (10.0, "train", "start", 1),
        (40.0, "train", "end", 1),
    ]
    # Lost within a sample of the end: even then its last value does not stand for the rest.
    trace = play(A + "fail 0 * 15 39.9 1e9\n", edges, until=45.0)["trace"]
    for reading in gpu_readings(trace, spans(trace)):
        if reading.phase == "select":
            assert reading.why_missing is None
            assert reading.quantity != "gpu_energy_joules" or reading.value == pytest.approx(800, abs=20)
        else:
            assert reading.value is None
            assert reading.why_missing == "GPU-aaaa-1 was lost during the run (NVML: GPU is lost)"


def test_a_lost_device_is_not_believed_when_it_comes_back(play: Play, spans: Group) -> None:
    trace = play(A + "fail 0 * 15 4 5\n", EDGES, until=10.0)["trace"]
    assert {r.value for r in gpu_readings(trace, spans(trace))} == {None}


# --- no driver --------------------------------------------------------------------------------------


def test_no_nvml_library_is_a_reason_for_every_quantity_and_no_value(without_driver: dict[str, Any]) -> None:
    reason = "no NVML device: NVML Shared Library Not Found"
    assert without_driver["missing"] == dict.fromkeys(QUANTITIES, reason)
    assert without_driver["sample"] == {}
    assert without_driver["facts"] == {"gpus": [], "driver": None, "hardware_class": None, "allotted": None}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("init 9\n" + A, "no NVML device: Driver Not Loaded"),
        ("driver 1.0\n", "no NVML device: the driver has none"),
        (A + "fail 0 nvmlDeviceGetUUID 15 0 1e9\n", "no NVML device: the driver has none"),
    ],
)
def test_a_driver_without_a_device_is_a_reason_for_every_quantity(
    script: str, why: str, play: Play, spans: Group
) -> None:
    answer = play(script, EDGES, until=10.0)
    assert answer["missing"] == dict.fromkeys(QUANTITIES, why)
    assert all(not sample.values for sample in answer["trace"].samples)
    for reading in gpu_readings(answer["trace"], spans(answer["trace"])):
        assert (reading.value, reading.why_missing) == (None, why)


def test_devices_hidden_from_cuda_are_a_reason(play: Play) -> None:
    answer = play(A + B, [], until=1.0, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert answer["missing"]["gpu_energy_joules"] == "no NVML device: CUDA_VISIBLE_DEVICES shows none of 2"


def test_a_closed_meter_gives_no_values(play: Play) -> None:
    answer = play(A, [], until=1.0)
    assert answer["after_close"] == {}
    assert all(math.isfinite(v) for sample in answer["trace"].samples for v in sample.values.values())
