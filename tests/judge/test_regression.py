"""Runs against earlier runs: what is counted is exact, what is noisy needs significance and a margin."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from cprbench.errors import SpecError
from cprbench.judge.regression import COUNTED, USUAL, regressions
from cprbench.judge.verdicts import Verdict, exit_code
from cprbench.spec import RunRecord
from tests.records_factory import GPU, make_evidence, make_record

pytestmark = pytest.mark.usefixtures("items_without_error")

ARMS = ("full", "partial k=0.15")
PSI = [0.80, 0.83, 0.78, 0.81, 0.82, 0.76]
HOURS = [1.00, 1.04, 0.97, 1.02, 0.99, 1.01]


def made(side: str, arm: str = "full", block: int = 0, **overrides: Any) -> RunRecord:
    """Return a record of one side of a comparison: sides hold the same arms and blocks under other ids."""
    digit = "ab"[side == "before"]
    return make_record(**{"arm": arm, "block": block, "run_id": f"{digit}{ARMS.index(arm):07x}{block:08x}"} | overrides)


def side(name: str, psi: Sequence[float] = PSI, hours: Sequence[float] = HOURS, **more: Any) -> list[RunRecord]:
    gamma = more.pop("gamma", {})
    return [
        made(name, block=block, final=psi[block], gamma={"device_hours": hours[block], **gamma}, **more)
        for block in range(len(psi))
    ]


def compared(now: Sequence[RunRecord], before: Sequence[RunRecord], **options: Any) -> dict[str, Verdict]:
    verdicts = regressions(make_evidence(*now), make_evidence(*before), **options)
    assert all(v.reason for v in verdicts)
    assert len({v.id for v in verdicts}) == len(verdicts)
    return {v.id.rpartition("/")[2]: v for v in verdicts}


# --- what is counted --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "change"),
    [
        ("flops", {"gamma": {"flops": 1001}}),
        ("trained_parameters", {"trained_parameters": 151}),
        ("optimizer_state_bytes", {"optimizer_state_bytes": 1201}),
        ("selected_examples", {"selected_examples": 1601}),
    ],
)
def test_one_more_in_one_block_regresses_and_names_both_counts(axis: str, change: dict[str, Any]) -> None:
    before = [made("before", block=b) for b in range(3)]
    now = [made("now", block=0, **change), *(made("now", block=b) for b in (1, 2))]
    found = compared(now, before, axes=COUNTED)
    assert {name for name, v in found.items() if v.verdict == "refuted"} == {axis}
    assert exit_code(list(found.values())) == 1
    assert found[axis].reason.startswith("counted: ") and "in the baseline" in found[axis].reason
    less = compared(before, now, axes=[axis])[axis]
    assert (less.verdict, less.reason) == ("supported", "counted: less, and in no block more")
    assert less.value is not None and less.value < 1


def test_one_block_is_enough_for_what_is_counted_and_no_block_makes_up_for_another() -> None:
    found = compared([made("now")], [made("before")], axes=COUNTED)
    assert {v.verdict for v in found.values()} == {"supported"}
    assert {(v.value, v.low, v.high, v.blocks) for v in found.values()} == {(1.0, 1.0, 1.0, 1)}
    assert exit_code(list(found.values())) == 0
    now = [made("now", block=b, gamma={"flops": flops}) for b, flops in enumerate((500, 1001))]
    assert compared(now, [made("before", block=b) for b in (0, 1)], axes=["flops"])["flops"].verdict == "refuted"


def test_a_count_of_zero_is_the_same_as_zero_and_less_than_one() -> None:
    none, some = ({"trained_parameters": n} for n in (0, 1))
    same = compared([made("now", **none)], [made("before", **none)], axes=["trained_parameters"])
    assert (same["trained_parameters"].verdict, same["trained_parameters"].value) == ("supported", 1.0)
    more = compared([made("now", **some)], [made("before", **none)], axes=["trained_parameters"])
    assert (more["trained_parameters"].verdict, more["trained_parameters"].value) == ("refuted", None)


def test_counts_are_compared_across_machines_and_clocks_are_not() -> None:
    found = compared(side("now", hardware_class=GPU), side("before"))
    assert {found[name].verdict for name in COUNTED} == {"supported"}
    assert "hardware classes differ" in found["seconds"].reason and GPU in found["seconds"].reason
    assert found["psi"].verdict == "supported"


# --- what is noisy ----------------------------------------------------------------------------------


def test_a_cost_regresses_where_it_is_surely_higher_and_by_more_than_the_margin() -> None:
    slower = [h * f for h, f in zip(HOURS, (1.3, 1.28, 1.33, 1.29, 1.31, 1.30), strict=True)]
    found = compared(side("now", hours=slower), side("before"))["seconds"]
    assert found.verdict == "refuted" and "after Holm" in found.reason
    assert found.value == pytest.approx(1.3, abs=0.01) and found.threshold == "<= 1.1"
    wide = compared(side("now", hours=slower), side("before"), margins={"seconds": 0.5})["seconds"]
    assert (wide.verdict, wide.threshold) == ("supported", "<= 1.5")
    unsure = [h * f for h, f in zip(HOURS, (3.0, 0.5, 2.5, 0.6, 2.8, 0.7), strict=True)]
    open_ = compared(side("now", hours=unsure), side("before"))["seconds"]
    assert open_.verdict == "open" and "is not below 0.05" in open_.reason
    slightly = [h * f for h, f in zip(HOURS, (1.05, 1.051, 1.049, 1.05, 1.052, 1.05), strict=True)]
    assert compared(side("now", hours=slightly), side("before"))["seconds"].verdict == "supported"  # within the margin


def test_psi_regresses_where_it_is_surely_lower_and_by_more_than_the_margin() -> None:
    for drop, word in ((0.03, "refuted"), (0.004, "supported"), (-0.05, "supported")):
        now = [psi - drop + noise for psi, noise in zip(PSI, (0.001, -0.001, 0.002, 0, -0.002, 0.001), strict=True)]
        found = compared(side("now", psi=now), side("before"))["psi"]
        assert found.verdict == word, found
        assert found.value == pytest.approx(-drop, abs=1e-3) and found.threshold == ">= -0.01"
    noisy = [psi + noise for psi, noise in zip(PSI, (0.05, -0.06, 0.04, -0.05, 0.03, -0.02), strict=True)]
    assert compared(side("now", psi=noisy), side("before"))["psi"].verdict == "open"
    lower = [1 / psi for psi in PSI]
    by_nll = [compared(side(a, lower, metric="nll"), side(b, PSI, metric="nll")) for a, b in (("now", "before"),)]
    assert by_nll[0]["psi"].verdict == "refuted"  # more NLL is worse


def test_the_same_psi_again_holds_and_the_same_time_again_too() -> None:
    found = compared(side("now"), side("before"))
    assert {name: v.verdict for name, v in found.items()} == dict.fromkeys(found, "supported")
    assert (found["psi"].reason, found["psi"].value) == ("the same in every block", 0.0)
    assert set(found) == set(USUAL) - {"energy_kwh"}  # neither side measured it


def test_fewer_than_three_blocks_leave_open_what_is_noisy() -> None:
    now, before = side("now", psi=PSI[:2], hours=[2.0, 2.1]), side("before", psi=PSI[:2], hours=[1.0, 1.0])
    found = compared(now, before)
    assert found["seconds"].verdict == "open" and "fewer than 3 blocks" in found["seconds"].reason
    assert found["flops"].verdict == "supported"


def test_a_cost_that_one_side_measured_or_that_is_zero_is_open() -> None:
    measured = side("now", gamma={"energy_kwh": 1.0})
    assert "not measured in every block of both sides" in compared(measured, side("before"))["energy_kwh"].reason
    free = [side(name, gamma={"energy_kwh": 0.0}) for name in ("now", "before")]
    assert compared(*free)["energy_kwh"].reason == "could not be measured: cost_not_positive"
    named = compared(side("now"), side("before"), axes=["co2_kg"])["co2_kg"]
    assert named.verdict == "open"  # asked for by name, so it is not left out


# --- the whole check --------------------------------------------------------------------------------


def noisy_side(name: str, seed: int, slower: float = 1.0) -> list[RunRecord]:
    draw = random.Random(f"{name} {seed}")
    return [
        made(
            name,
            arm,
            block,
            final=0.8 + draw.gauss(0, 0.03),
            gamma={
                "device_hours": slower * math.exp(draw.gauss(0, 0.2)),
                "memory_gb_hours": math.exp(draw.gauss(0, 0.2)),
                "energy_kwh": math.exp(draw.gauss(0, 0.2)),
            },
            peak_memory_bytes=round(1e9 * math.exp(draw.gauss(0, 0.1))),
        )
        for arm in ARMS
        for block in range(6)
    ]


def test_nothing_changed_is_called_a_regression_in_at_most_one_check_of_twenty() -> None:
    checks = [regressions(make_evidence(*noisy_side("now", s)), make_evidence(*noisy_side("before", s)))
              for s in range(200)]  # fmt: skip
    alarms = sum(exit_code(found) == 1 for found in checks)
    assert {len(found) for found in checks} == {18}  # two arms, nine axes
    assert alarms <= 0.05 * len(checks), alarms
    assert all(v.verdict == "supported" for found in checks for v in found if v.id.endswith(COUNTED))


def test_twice_as_slow_is_found_through_the_same_noise() -> None:
    found = [
        regressions(make_evidence(*noisy_side("now", s, slower=2.0)), make_evidence(*noisy_side("before", s)))
        for s in range(40)
    ]
    seconds = [v for verdicts in found for v in verdicts if v.id.endswith("/seconds")]
    assert sum(v.verdict == "refuted" for v in seconds) > 0.7 * len(seconds)


def test_holm_is_over_all_that_was_tested_not_over_what_looks_worse() -> None:
    slower = [h * f for h, f in zip(HOURS, (1.5, 1.1, 1.6, 1.05, 1.5, 1.2), strict=True)]
    alone = compared(side("now", hours=slower), side("before"), axes=["seconds"])["seconds"]
    psi = [p + e for p, e in zip(PSI, (1e-3, -1e-3, 2e-3, 0, 1e-3, 0), strict=True)]
    beside = compared(side("now", psi=psi, hours=slower), side("before"), axes=["seconds", "psi"])["seconds"]
    assert alone.p is not None and beside.p == pytest.approx(2 * alone.p)


# --- what cannot be compared ------------------------------------------------------------------------


def test_arms_are_paired_by_block_or_not_at_all() -> None:
    now, before = side("now"), side("before")
    for here, there, reason in (
        (now[:5], before, "block 5 is missing in these runs"),
        (now, before[1:], "block 0 is missing in the baseline"),
        ([*now[:5], made("now", block=5, status="failed")], before, "block 5 failed in these runs"),
        (now, [*before[:5], made("before", block=5, status="timeout")], "block 5 failed in the baseline"),
        ([*now, made("now", block=1, run_id="f" * 16)], before, "these runs have block 1 twice"),
        (now, [*before, made("before", block=1, run_id="f" * 16, hardware_class=GPU)], "baseline have block 1 twice"),
    ):
        (verdict,) = compared(here, there).values()
        assert verdict.verdict == "open" and reason in verdict.reason, verdict.reason
        assert exit_code([verdict]) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"spec": {"task_version": 2}},
        {"spec": {"model": "another"}},
        {"spec": {"training": {"epochs": 5}}},
        {"limits": {"max_examples": 3}},
        {"role": "smoke"},
        {"spec": {"training": {"learning_rate": 2e-3}}},
        {"spec": {"settings": {"warm": True}}},
        {"spec": {"selection_settings": {"q": 0.5}}},
    ],
    ids=["task version", "weights", "recipe", "limits", "smoke", "learning rate", "settings", "selection"],
)
def test_runs_of_another_task_version_recipe_or_limits_are_nothing_to_compare_with(other: dict[str, Any]) -> None:
    (verdict,) = compared(side("now", **other), side("before")).values()
    assert verdict.verdict == "open" and "no run of this task version" in verdict.reason


def test_an_arm_under_two_recipes_is_two_arms_with_names_of_their_own() -> None:
    longer = {"spec": {"training": {"epochs": 5}}}
    now, before = (
        [*side(name), *(r.model_copy(update={"run_id": r.run_id[::-1]}) for r in side(name, **longer))]
        for name in ("now", "before")
    )
    verdicts = regressions(make_evidence(*now), make_evidence(*before), axes=["psi"])
    assert len({v.id for v in verdicts}) == 2 and {v.verdict for v in verdicts} == {"supported"}


def test_an_arm_at_another_rate_of_a_search_is_the_same_arm() -> None:
    sides = [
        side(name, notes={"learning_rate_from": "searched"}, spec={"training": {"learning_rate": rate}})
        for name, rate in (("now", 1e-3), ("before", 2e-3))
    ]
    assert exit_code(list(compared(*sides, axes=["psi"]).values())) == 0


def test_energy_of_other_parts_and_memory_by_another_meter_are_not_compared() -> None:
    for axis, here, there in (
        ("energy_kwh", {"energy_kwh": 1.0, "energy_scope": "gpu boards"}, {"energy_kwh": 1.0, "energy_scope": "rapl"}),
        ("peak_memory_bytes", {"memory_basis": "rss"}, {"memory_basis": "pss"}),
        ("memory_gb_hours", {"memory_basis": "rss"}, {"memory_basis": "pss"}),
    ):
        found = compared(side("now", gamma=here), side("before", gamma=there), axes=[axis, "flops"])
        assert found[axis].verdict == "open" and f"{axis} is of 2 kinds" in found[axis].reason
        assert found["flops"].verdict == "supported"


def test_something_damaged_on_either_side_holds_nothing_and_hides_no_regression() -> None:
    now, before = side("now", gamma={"flops": 1001}), side("before")
    damaged = {"a-run": "its manifest does not match"}
    for here, there in ((damaged, {}), ({}, damaged)):
        found = regressions(make_evidence(*now, damaged=here), make_evidence(*before, damaged=there))
        told = {v.id.rpartition("/")[2]: v for v in found}
        assert {v.verdict for name, v in told.items() if name != "flops"} == {"open"}
        assert "1 damaged, left out, a-run among them; else the same" in told["psi"].reason
        assert told["flops"].verdict == "refuted"


def test_a_run_that_ended_well_and_was_run_again_is_not_dropped_for_the_later_one() -> None:
    now = side("now")
    again = now[2].model_copy(update={"run_id": "f" * 16, "previous": now[2].run_id})
    (verdict,) = compared([*now, again], side("before")).values()
    assert "these runs have block 2 twice" in verdict.reason


def test_a_record_is_not_compared_with_itself() -> None:
    with pytest.raises(SpecError, match="the same record here and in the baseline.*another --out"):
        compared(side("now"), [*side("before")[1:], side("now")[0]])


def test_trials_of_a_search_and_runs_that_were_repeated_are_not_compared() -> None:
    failed = made("now", block=0, status="failed", run_id="c" * 16)
    again = side("now")
    again[0] = again[0].model_copy(update={"previous": failed.run_id})
    trials = [made("before", block=0, run_id=digit * 16, role="search") for digit in "de"]
    assert exit_code(list(compared([failed, *again], [*trials, *side("before")]).values())) == 0


def test_an_empty_baseline_or_nothing_here_is_open() -> None:
    (verdict,) = compared(side("now"), []).values()
    assert (verdict.verdict, verdict.reason) == ("open", "could not be measured: there are no runs in the baseline")
    assert "no run of this task version" in next(iter(compared([], side("before")).values())).reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axes": ["second"]}, "unknown axis 'second'.*seconds"),
        ({"margins": {"pssi": 0.1}}, "unknown axis 'pssi'.*psi"),
        ({"margins": {"flops": 0.1}}, "flops is counted and compared exactly"),
    ],
)
def test_unknown_axes_and_margins_of_what_is_counted_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        compared(side("now"), side("before"), **options)
