"""A run metered on a GPU, from the driver to the record: only the driver is a stand-in (tests/meters/nvml_shim.c)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.meters.conftest import shim_folder

__all__ = ["shim_folder"]

GIB = 2**30
#: 150 W for three seconds, then 350 W; 2 GiB are used before the run and 6 GiB from half a second on.
BOARD = (
    f"device GPU-aaaa-1 {80 * GIB} 700000 NVIDIA Shim 80GB\n"
    f"curve 0 0 150\ncurve 0 3 150\ncurve 0 3 350\nused 0 0 {2 * GIB}\nused 0 0.5 {6 * GIB}\n"
)
#: The driver's clock follows the real one while a block is measured.
PLAY = """
import ctypes, json, sys, threading, time
driver = ctypes.CDLL("libnvidia-ml.so.1")
assert driver.shim_load(sys.argv[1].encode()) == 0
import cprbench
from cprbench.errors import MeterError
from cprbench.meters.carbon import factors
from cprbench.runs.metering import MeterOptions
start, done = time.monotonic(), threading.Event()
def tick():
    while not done.wait(0.01):
        driver.shim_time(ctypes.c_double(time.monotonic() - start))
threading.Thread(target=tick, daemon=True).start()
options = MeterOptions(carbon=factors(None, 100.0), allow_shared="--allow-shared" in sys.argv)
try:
    with cprbench.measure(task="t", model="m", out=sys.argv[2], metering=options) as run:
        time.sleep(float(sys.argv[3]))
except MeterError as error:
    print(json.dumps({"error": str(error)}))
else:
    done.set()
    (found,) = cprbench.load_runs(sys.argv[2]).runs
    print(found.record.model_dump_json(by_alias=True))
"""


def play(folder: Path, script: str, out: Path, seconds: float, *flags: str) -> dict[str, Any]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    environ |= {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PLAY, script, str(out), str(seconds), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_run_on_a_gpu_has_energy_memory_and_carbon_from_the_driver(shim_folder: Path, tmp_path: Path) -> None:
    record = play(shim_folder, BOARD, tmp_path, 9.0)
    gamma = record["gamma"]
    by_name = {r["quantity"]: r for r in record["readings"] if r["phase"] == "train"}
    assert record["environment"]["hardware_class"] == "1x NVIDIA Shim 80GB 80 GiB 700 W"
    energy = by_name["gpu_energy_joules"]
    seconds = record["seconds"]["train"]
    # The run started a moment after the driver's clock: between none and one second of it was at 350 W sooner.
    assert 150 * seconds < energy["value"] < 350 * seconds
    assert energy["value"] == pytest.approx(by_name["gpu_energy_sampled_joules"]["value"], rel=0.1)
    assert energy["source"] == "counter"
    assert gamma["energy_kwh"] == pytest.approx(energy["value"] / 3.6e6)
    assert gamma["energy_scope"] == "gpu boards"
    assert gamma["co2_kg"] == pytest.approx(gamma["energy_kwh"] * 0.1)
    assert gamma["memory_basis"] == "device"
    assert record["peak_memory_bytes"] == 4 * GIB
    assert gamma["device_hours"] == pytest.approx(seconds / 3600)
    assert record["environment"]["devices"][0]["uuid"] == "GPU-aaaa-1"


def test_a_short_run_on_a_gpu_has_no_billed_energy_and_says_why(shim_folder: Path, tmp_path: Path) -> None:
    record = play(shim_folder, BOARD, tmp_path, 2.0)
    readings = {(r["phase"], r["quantity"]): r for r in record["readings"]}
    assert record["gamma"]["energy_kwh"] is None
    assert "too short" in readings[("billed", "gpu_energy_joules")]["why_missing"]
    assert readings[("train", "gpu_energy_joules")]["value"] > 0
    assert "coarse" in readings[("train", "gpu_energy_joules")]["flags"]
    assert record["gamma"]["co2_kg"] is None


def test_a_gpu_that_others_use_is_refused_or_every_reading_is_flagged(shim_folder: Path, tmp_path: Path) -> None:
    script = BOARD + f"process 0 4711 {GIB}\n"
    refused = play(shim_folder, script, tmp_path / "a", 0.5)["error"]
    assert "GPU-aaaa-1 is in use by other processes (pid 4711)" in refused
    assert "--allow-shared" in refused
    record = play(shim_folder, script, tmp_path / "b", 1.5, "--allow-shared")
    energies = [r for r in record["readings"] if r["quantity"].startswith("gpu_energy")]
    assert energies
    assert all("shared" in r["flags"] for r in energies)
    assert record["gamma"]["memory_basis"] == "reserved"


def test_a_mig_slice_has_no_energy_and_its_share_of_the_board_in_device_hours(
    shim_folder: Path, tmp_path: Path
) -> None:
    record = play(shim_folder, BOARD + f"mig 0 MIG-cccc-3 2 7 {20 * GIB} NVIDIA Shim 2g\n", tmp_path, 1.5)
    why = {r["quantity"]: r["why_missing"] for r in record["readings"] if r["phase"] == "train"}
    assert "MIG" in why["gpu_energy_joules"]
    assert record["gamma"]["energy_kwh"] is None
    assert record["environment"]["facts"]["gpu"]["allotted"] == pytest.approx(2 / 7)
