"""Traces that no meter wrote, and bills that their samples do not make."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.submissions.dossier import Dossier
from tests.submissions.rules.dossiers import archive, found_by, run_of, with_lines, with_record

SAMPLES, WORK = "samples.jsonl", "work.jsonl"


def edges(rows: list[Any]) -> list[Any]:
    return [row for row in rows if "edge" in row]


def first_with(rows: list[Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row["values"] for row in rows[len(rows) // 2 :] if key in row.get("values", {}))
    return found


def slower(rows: list[Any]) -> None:
    """Let a third of the time have passed on the monotonic clock."""
    for row in rows:
        if "t" in row:
            row["t"] = rows[0]["t"] + (row["t"] - rows[0]["t"]) / 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: edges(rows)[3].update(t=0.0), "score ends at 0.0 s"),
        (lambda rows: edges(rows)[3].update(phase="train"), "train ends at"),
        (lambda rows: edges(rows)[3].update(edge="start"), "score starts at"),
        (lambda rows: edges(rows)[3].update(attempt=2), "attempt 2, the record is of attempt 1"),
        (lambda rows: edges(rows)[3].update(more=1), "which no sample has"),
        (lambda rows: rows[7].update(t="soon"), "no number"),
        (lambda rows: rows[7].update(t=rows[7]["t"] - 2), "after one of"),
        (lambda rows: rows.append(rows.pop(7)), "the last"),
        (lambda rows: rows.append({"missing": {}}), "the last"),
        (lambda rows: rows[7]["values"].pop("wall_seconds"), "has no wall_seconds"),
        (lambda rows: rows[7]["values"].update(rss_bytes=-1.0), "rss_bytes is -1"),
        (lambda rows: first_with(rows, "cpu_total_seconds").update(cpu_total_seconds=1.0), "falls from"),
        (lambda rows: rows[0]["values"].update(cpu_busy_seconds=1e9), "cpu_busy_seconds is above cpu_total_seconds"),
        (lambda rows: [row.update(phase="score") for row in edges(rows)[:2]], "it begins with phase score"),
        (lambda rows: first_with(rows, "peak_rss_bytes").update(peak_rss_bytes=1.0), "bytes sampled"),
        (slower, "unverified samples.jsonl: at"),
        (lambda rows: edges(rows)[-1].update(phase="score"), "leaves no phase open but the last, setup"),
    ],
)
def test_a_trace_that_no_meter_wrote_is_told(change: Callable[[Any], Any], told: str) -> None:
    assert told in found_by(with_lines(run_of("methods", "full"), SAMPLES, change), "G1")["G1"]


def test_an_edge_is_read_soon_after_it_was_stamped() -> None:
    def stamped_early(rows: list[Any]) -> None:
        began, ended = [row for row in edges(rows) if row["phase"] == "train"][:2]
        assert ended["t"] - began["t"] > 5.1
        ended["t"] = began["t"] + 0.01

    forged = with_lines(run_of("quickstart", "full"), SAMPLES, stamped_early)
    assert "an edge of train" in found_by(forged, "G1")["G1"]


def test_a_window_for_every_validation_and_two_for_the_score() -> None:
    def without(phase: str) -> Callable[[Any], Any]:
        def change(rows: list[Any]) -> None:
            of = [row for row in edges(rows) if row["phase"] == phase][:2]
            rows[:] = [row for row in rows if row not in of]

        return change

    for phase in ("validate", "score"):
        assert (
            f"windows of phase {phase}"
            in found_by(with_lines(run_of("methods", "full"), SAMPLES, without(phase)))["G1"]
        )


@pytest.mark.parametrize(
    ("file", "change", "code"),
    [
        ("record.json", lambda r: r["readings"][0].update(value=1.0), "G3"),
        ("record.json", lambda r: r["readings"][0].update(source="sampled"), "G3"),
        ("record.json", lambda r: r["readings"][2].update(why_missing="it rained"), "G3"),
        ("record.json", lambda r: r["readings"].pop(), "G3"),
        ("record.json", lambda r: next(q for q in r["readings"] if q["quantity"] == "flops").update(value=1), "G3"),
        (SAMPLES, lambda rows: rows[60]["values"].update(rss_bytes=2e9), "G3"),
        (SAMPLES, lambda rows: rows[-1]["missing"].update(gpu_energy_joules="no"), "G3"),
        (WORK, lambda rows: rows[60].update(length=rows[60]["length"] + 1), "G3"),
        ("record.json", lambda r: r["gamma"].update(flops=r["gamma"]["flops"] - 1), "G4"),
        ("record.json", lambda r: r["gamma"].update(device_hours=r["gamma"]["device_hours"] * 0.99), "G4"),
        ("record.json", lambda r: r["gamma"].update(energy_kwh=1e-6, energy_scope="gpu boards"), "G4"),
        ("record.json", lambda r: r["seconds"].update(train=1.0), "G4"),
        ("record.json", lambda r: r.update(peak_memory_bytes=r["peak_memory_bytes"] - 4096), "G4"),
        ("record.json", lambda r: r["environment"].update(hardware_class="x-1-2-3 avx512 1 cores"), "G4"),
        ("record.json", lambda r: r["environment"].update(hardware_class="fast"), "G2"),
        ("record.json", lambda r: r["environment"]["facts"]["modelled"].update(assumed_ram_watts=1.0), "G2"),
        ("record.json", lambda r: r["environment"]["facts"]["gpu"].update(allotted=1), "G2"),
        ("record.json", lambda r: r["environment"]["facts"].update(cores=3), "G2"),
    ],
)
def test_a_bill_is_what_its_samples_make(file: str, change: Callable[[Any], Any], code: str) -> None:
    run = run_of("methods", "full")
    run = with_record(run, change) if file == "record.json" else with_lines(run, file, change)
    assert "wrong" in found_by(run)[code]


def second_attempt(run: Dossier, *, previous: bool) -> Dossier:
    """Return a run as the repetition of itself."""

    def repeated(record: Any) -> None:
        first = record["readings"]
        record["readings"] = first + [{**reading, "attempt": 2} for reading in first]
        record |= {"attempts": 2, "run_id": f"{run.run_id}-2", "previous": run.run_id if previous else None}
        for phase, seconds in record["seconds"].items():
            record["seconds"][phase] = seconds if phase == "billed_last_attempt" else 2 * seconds
        for name in ("device_hours", "core_hours", "memory_gb_hours", "flops"):
            record["gamma"][name] *= 2

    def renumbered(rows: list[Any]) -> None:
        for row in rows:
            row.update({"attempt": 2} if "attempt" in row else {})

    again = with_record(run, repeated)
    for name in (SAMPLES, WORK):
        again = with_lines(again, name, renumbered)
    return replace(again, siblings={run.run_id: run} if previous else {})


def test_earlier_attempts_are_billed_as_the_record_that_is_repeated_says() -> None:
    run = run_of("methods", "full")
    assert found_by(second_attempt(run, previous=True), "G3", "G4", "G5") == {}
    lost = found_by(second_attempt(run, previous=False), "G3", "G4", "G5")
    assert list(lost) == ["G5"] and lost["G5"].startswith("unverified")
    cheaper = with_record(second_attempt(run, previous=True), lambda r: r["readings"][0].update(value=0.0))
    assert "is not what run" in found_by(cheaper, "G5")["G5"]
    shorter = with_record(run, lambda r: r.update(readings=r["readings"][:60]))
    abandoned = replace(second_attempt(run, previous=True), siblings={run.run_id: shorter})
    assert "whose launcher died" in found_by(abandoned, "G5")["G5"]
    later = with_record(run, lambda r: r["readings"][0].update(attempt=2))
    assert "a reading is of attempt 2" in found_by(later, "G5")["G5"]
    hidden = with_record(second_attempt(run, previous=True), lambda r: r.update(readings=r["readings"][120:]))
    assert "bills attempts [] before it" in found_by(hidden, "G5")["G5"]


def test_cached_scores_are_billed_as_the_run_that_measured_them_says() -> None:
    run = run_of("suites", "full selection=influence q=0.3", suite="q-sweep")
    cached = [i for i, r in enumerate(run.record.readings) if "cached" in r.flags]
    assert cached and found_by(run, "G6") == {}
    cheaper = with_record(run, lambda r: r["readings"][cached[0]].update(value=0.1))
    assert "no run here measured them" in found_by(cheaper, "G6")["G6"]
    alone = replace(run, siblings={run.run_id: run})
    assert found_by(alone, "G6")["G6"].startswith("unverified")
    flops = [i for i in cached if run.record.readings[i].quantity == "flops"]
    fewer = with_record(run, lambda r: [r["readings"][i].update(value=10**9) for i in flops])
    assert "those of" in found_by(fewer, "G6")["G6"]
    unnamed = with_record(run, lambda r: r["notes"].pop("scores"))
    assert "names none" in found_by(unnamed, "G6")["G6"]


# --- on a GPU ---------------------------------------------------------------------------------------


def on_gpu(watts: float, limit: float = 700.0) -> Dossier:
    """Return a run as one on a board that takes `watts` all the time, billed by the ledger."""
    run, memory = run_of("quickstart", "full", block=0), 85899345920
    device = {"uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "memory_bytes": memory, "power_limit_watts": limit,
              "baseline_memory_bytes": 0, "power_from": "counter", "mig": False, "share": 1.0}  # fmt: skip
    hardware = f"1x NVIDIA H100 80GB HBM3 80 GiB {limit:.0f} W"

    def metered(rows: list[Any]) -> None:
        for row in rows:
            if "t" in row:
                spent = {"gpu0_energy_counter_joules": watts * (row["t"] - rows[0]["t"] + 1), "gpu0_power_watts": watts}
                row["values"] |= {**spent, "gpu0_memory_used_bytes": 1.5e9}
        rows[-1]["missing"] = {k: v for k, v in rows[-1]["missing"].items() if not k.startswith(("gpu", "peak_dev"))}

    run = with_lines(run, SAMPLES, metered)
    flops = {(r.phase, 1): r for r in run.record.readings if r.quantity == "flops"}
    from cprbench.meters.flops import Flops

    counts = {key: Flops(int(r.value or 0), r.detail["padding"]) for key, r in flops.items() if key[0] != "billed"}
    bill = account(Trace.of(run.rows(SAMPLES)), counts, cores=2, accelerators=1.0)

    def billed(record: Any) -> None:
        facts = {"gpus": [device], "driver": "1", "hardware_class": hardware, "allotted": 1.0}
        environment = record["environment"]
        environment |= {"devices": [device], "hardware_class": hardware}
        environment["facts"] |= {"gpu": facts, "cores": 2}
        environment["packages"]["torch"] = "2.13.0+cu130"
        record["readings"] = [json.loads(r.model_dump_json()) for r in bill.readings]
        record |= {"gamma": bill.gamma.model_dump(), "peak_memory_bytes": bill.peak_memory_bytes}

    return with_record(run, billed)


CODES = ("G1", "G2", "G3", "G4", "G5", "G6", "L1", "L2", "L3")


def test_a_run_on_a_gpu_is_billed_its_boards_and_its_cores() -> None:
    run = on_gpu(300.0)
    assert run.record.gamma.energy_scope == "gpu boards" and run.record.gamma.memory_basis == "device"
    assert found_by(run, *CODES) == {}
    untold = with_record(run, lambda r: r["environment"]["facts"].pop("cores"))
    assert found_by(untold, *CODES)["G4"].startswith("unverified record.json: gamma.core_hours")
    shared = with_record(run, lambda r: [q["flags"].append("shared") for q in r["readings"]])
    assert "flags" in found_by(shared, *CODES)["G3"]  # co2_kg carries none


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (lambda e: e["devices"][0].update(power_limit_watts=350.0), "G2", "power_limit_watts"),
        (lambda e: e["facts"]["gpu"].update(allotted=0.5), "G2", "allotted"),
        (lambda e: e["packages"].update(torch="2.13.0+cpu"), "G2", "built for CPUs alone"),
        (lambda e: e["devices"][0].update(memory_bytes=10**9), "L3", "its machine has"),
    ],
)
def test_a_board_is_one_board(change: Callable[[Any], Any], code: str, told: str) -> None:
    assert told in found_by(with_record(on_gpu(300.0), lambda r: change(r["environment"])), *CODES)[code]


def test_no_board_takes_more_than_its_limit_or_less_than_its_flops_need() -> None:
    assert "above 437.5 W" in found_by(on_gpu(600.0, limit=350.0), "L2")["L2"]
    assert "no hardware does" in found_by(on_gpu(1e-3), "L2")["L2"]


def test_archives_are_not_changed_by_tests() -> None:
    assert found_by(run_of("methods", "full")) == {} and len(archive("methods")) == 11
