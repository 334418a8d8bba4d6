"""The compute and carbon statement: all that ran is in it, and no number that was not measured."""

from __future__ import annotations

from pathlib import Path

from cprbench.render.report.carbon import grids, statement
from cprbench.spec import Environment, Reading, RunRecord
from tests.golden_files import is_golden, quickstart
from tests.records_factory import CPU, GPU, make_record

FRANCE = {
    "intensity_g_per_kwh": 56.04,
    "source": "codecarbon 3.3.2: annual average of FRA (France)",
    "year": 2023,
    "pue": 1.1,
}


def measured(block: int = 0, carbon: object = FRANCE, kind: str = CPU, **others: object) -> RunRecord:
    """Return a run of an hour whose energy and CO2 were measured."""
    facts = {"carbon": carbon, "cpu": "Xeon", "memory_bytes": 64e9}
    spent = {"energy_kwh": 0.5, "co2_kg": 0.028, "energy_scope": "rapl packages"}
    where = Environment(hardware_class=kind, facts=facts)
    return make_record(block=block, gamma=spent, environment=where, hardware_class=kind, **others)


def text(*records: RunRecord) -> str:
    return "\n".join(statement(records).paragraphs)


def test_the_machine_its_memory_and_the_time_of_a_run_and_in_all_are_told() -> None:
    told = text(measured(), measured(1))
    assert f"2 runs on {CPU} (Xeon, 64.0 GB of main memory)." in told
    assert "A run billed 3600 s on average, 3600 to 3600 s; all together 2.00 h." in told
    assert "All phases, billed or not, took 2.00 h." in told
    assert "Billed in all: 2.00 device hours, 4.00 core hours, 1.00 kWh, 8.00 GB·h, 0.056 kg CO2, 2000 FLOPs." in told
    assert "The largest peak of memory was 1.00 GB (rss)." in told


def test_the_grid_is_told_with_its_intensity_source_and_pue() -> None:
    assert (
        "CO2 is energy (rapl packages) x 56.04 g CO2 per kWh (codecarbon 3.3.2: annual average of FRA (France), 2023), "
        "PUE 1.10." in text(measured())
    )
    (grid,) = grids([measured(), measured(1)])
    assert grid.place == "France"


def test_an_intensity_without_a_country_has_no_place_and_what_is_no_grid_is_not_told() -> None:
    given = FRANCE | {"source": "given with --carbon-intensity", "year": None}
    assert [grid.place for grid in grids([measured(carbon=given)])] == [None]
    assert grids([measured(carbon="France"), measured(carbon=FRANCE | {"pue": 0.2}), make_record()]) == ()


def test_failed_runs_trials_and_earlier_attempts_are_counted_and_named() -> None:
    told = text(measured(), measured(1, status="failed"), measured(2, role="search"), measured(3, attempts=3))
    assert "4 runs" in told and "4.00 device hours" in told
    assert (
        "Among them: 1 trial of a learning-rate search, 1 run that did not end well, 2 attempts before the last one."
        in told
    )


def test_what_was_not_measured_has_a_reason_and_no_number() -> None:
    told = text(make_record())
    assert "kWh: not measured (no meter here)." in told and "kg CO2: not measured" in told
    assert "0.00 kWh" not in told and "CO2 is energy" not in told


def test_a_resource_that_some_runs_lack_has_no_sum() -> None:
    told = text(measured(), make_record(block=1))
    assert "kWh: measured in 1 of 2 runs, so no sum (no meter here)." in told
    assert "0.50 kWh" not in told


def test_energies_of_two_kinds_are_not_added() -> None:
    other = measured(1).model_copy(update={"gamma": measured().gamma.model_copy(update={"energy_scope": "gpu boards"})})
    told = text(measured(), other)
    assert "kWh: no sum (energy_kwh is of 2 kinds (gpu boards, rapl packages))." in told
    assert "1.00 kWh" not in told


def test_time_that_one_run_lacks_has_no_sum() -> None:
    told = text(measured(), measured(1, seconds={"train": 1.0}))
    assert "Billed time has no sum: it was measured in 1 of 2 runs." in told and "on average" not in told
    setup = text(measured(), measured(1, seconds={"train": 1.0, "billed": 1.0}))
    assert "A run billed " in setup and "The time of all phases has no sum: it was measured in 1 of 2 runs." in setup


def test_a_single_run_has_no_range() -> None:
    assert "A run billed 3600 s; all together 1.00 h." in text(measured())


def test_peaks_of_two_kinds_of_memory_are_two_peaks() -> None:
    device = measured(1, peak_memory_bytes=50 * 10**9)
    device = device.model_copy(update={"gamma": device.gamma.model_copy(update={"memory_basis": "device"})})
    told = text(measured(), device)
    assert "The largest peak of memory was 50.0 GB (device), 1.00 GB (rss)." in told


def test_hardware_classes_are_never_added_up() -> None:
    first, second, _ = statement([measured(), measured(1, kind=GPU)]).paragraphs
    assert GPU in first and CPU in second and "1.00 device hours" in first and "1.00 device hours" in second


def test_scores_taken_over_are_said_to_count_twice() -> None:
    cached = Reading(phase="billed", quantity="seconds", value=1.0, source="counter", flags=["cached"])
    assert "count them twice" in text(measured(readings=[cached]))
    assert "count them twice" not in text(measured())


def test_many_reasons_are_counted() -> None:
    whys = [
        Reading(phase="billed", quantity="cpu_energy_joules", value=None, why_missing=f"reason {n}") for n in range(5)
    ]
    assert "(reason 0; reason 1; reason 2; 2 more reasons)" in text(
        *(make_record(block=n, readings=[why]) for n, why in enumerate(whys))
    )


def test_facts_that_are_not_what_they_should_be_are_left_out() -> None:
    for size in ("much", -1, True):
        odd = Environment(hardware_class=CPU, facts={"cpu": 3, "memory_bytes": size})
        assert f"1 run on {CPU}." in text(make_record(environment=odd))


def test_no_runs_have_a_sentence() -> None:
    assert statement([]).paragraphs == ("There are no runs to report.",)


def test_the_golden_statement_is_that_of_the_quickstart(tmp_path: Path) -> None:
    assert is_golden("quickstart/carbon-statement.txt", text(*quickstart(tmp_path).records) + "\n")
