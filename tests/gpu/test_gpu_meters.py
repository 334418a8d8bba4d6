"""The GPU meter on a true GPU: energy above zero, counter against sampler, memory against a known allocation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cprbench.meters.device import GpuMeter
from cprbench.meters.energy import SpanKey, gpu_readings
from cprbench.meters.trace import Sample, Trace, Window
from cprbench.spec import Reading

SECONDS = 8.0


@pytest.fixture(scope="module")
def torch() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch sees no CUDA device, so nothing is measured here")
    return torch


@pytest.fixture
def meter(torch: Any) -> Iterator[GpuMeter]:
    torch.cuda.init()
    torch.empty(1, device="cuda")  # the context takes memory of its own, before the baseline
    torch.cuda.synchronize()
    meter = GpuMeter(uuids=[str(torch.cuda.get_device_properties(0).uuid)])
    if not meter.devices:
        pytest.skip(f"torch sees a GPU, NVML does not: {meter.missing()['gpu_energy_joules']}")
    yield meter
    meter.close()


def measured(meter: GpuMeter, work: Callable[[], None], seconds: float) -> dict[str, Reading]:
    """Run `work` over and over under a 10 Hz sampler; return the readings of that phase by quantity."""
    samples = [Sample(time.monotonic(), meter.edge(), "train", "start")]
    end, due = time.monotonic() + seconds, time.monotonic() + 0.1
    while time.monotonic() < end:
        work()
        if time.monotonic() >= due:
            samples.append(Sample(time.monotonic(), meter.sample()))
            due += 0.1
    samples.append(Sample(time.monotonic(), meter.edge(), "train", "end"))
    spans: dict[SpanKey, list[Window]] = {("train", 1): [Window("train", 1, samples[0], samples[-1])]}
    spans["billed", 1] = spans["train", 1]
    readings = gpu_readings(Trace(samples, meter.missing()), spans)
    return {reading.quantity: reading for reading in readings if reading.phase == "billed"}


def test_counter_and_sampler_agree_within_ten_percent_over_a_steady_load(torch: Any, meter: GpuMeter) -> None:
    if meter.devices[0].mig:
        pytest.skip("MIG is on: this slice has no energy of its own")
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)

    def work() -> None:
        for _ in range(8):
            a @ a
        torch.cuda.synchronize()

    measured(meter, work, 2.0)  # the averaged power needs a second to reach the load
    readings = measured(meter, work, SECONDS)
    counter, sampler = readings["gpu_energy_joules"], readings["gpu_energy_sampled_joules"]
    assert counter.value is not None, counter.why_missing
    assert sampler.value is not None, sampler.why_missing
    limit = meter.devices[0].power_limit_watts
    assert counter.value > 0
    assert limit is None or counter.value / SECONDS < 1.2 * limit
    assert abs(counter.value - sampler.value) <= 0.10 * counter.value
    assert counter.flags == []


def test_an_allocation_of_known_size_shows_in_the_device_memory(torch: Any, meter: GpuMeter) -> None:
    size = 2**30
    block = torch.zeros(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    readings = measured(meter, lambda: time.sleep(0.02), 1.0)
    peak, integral = readings["peak_device_memory_bytes"], readings["device_memory_byte_seconds"]
    assert peak.value == pytest.approx(size, rel=0.05), peak.why_missing
    assert integral.value == pytest.approx(size * 1.0, rel=0.15), integral.why_missing
    del block
    torch.cuda.empty_cache()


def test_the_facts_name_the_device_and_nobody_else_computes_on_it(torch: Any, meter: GpuMeter) -> None:
    [gpu] = meter.facts()["gpus"]
    assert gpu["name"] == meter.devices[0].name
    assert gpu["memory_bytes"] > torch.cuda.get_device_properties(0).total_memory * 0.9
    assert str(meter.hardware_class).startswith("1x ")
    assert meter.facts()["driver"]
    others = meter.foreign_processes([os.getpid()])
    assert others is None or all(other.pid != os.getpid() for other in others)
