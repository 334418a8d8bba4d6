"""Who shares a group, beyond what test_cpr holds: suites, loops, processes; and the small words of a run."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.judge.groups import Figure, ended_well, grouped, latest, mean, runs_by_arm, trained_share_of
from cprbench.judge.statistics import Estimate
from cprbench.schema import sha256_of
from cprbench.spec import Environment, RunRecord
from tests.records_factory import CPU, make_record


def of_suite(suite: str | None, version: int | None, arm: str, **overrides: Any) -> RunRecord:
    run_id = sha256_of([suite, version, arm])[:16]
    return make_record(arm=arm, suite=suite, suite_version=version, run_id=run_id, **overrides)


def arms_by_suites(*records: RunRecord) -> dict[str, set[str]]:
    return {"+".join(key["suites"]): {r.arm for r in runs} for key, runs in grouped(records)}


def test_versions_of_a_suite_share_a_group_since_runs_stored_under_one_serve_the_next() -> None:
    found = arms_by_suites(of_suite("q-sweep", 1, "head"), of_suite("q-sweep", 2, "full"), of_suite(None, None, "lora"))
    assert found == {"q-sweep v1+q-sweep v2": {"head", "full", "lora"}}


def test_a_run_without_a_suite_is_compared_with_those_of_every_suite_of_its_recipe() -> None:
    found = arms_by_suites(of_suite("q-sweep", 2, "head"), of_suite(None, None, "full"), of_suite("k-sweep", 1, "lora"))
    assert found == {"k-sweep v1+q-sweep v2": {"head", "full", "lora"}}


@pytest.mark.parametrize(
    "other",
    [
        {"environment": Environment(hardware_class=CPU, facts={"processes": 2})},
        {"gamma": {"memory_basis": "device"}},
        {"spec": {"training": {"gradient_checkpointing": True}}},
    ],
    ids=["processes", "memory basis", "checkpointing"],
)
def test_runs_of_other_processes_memory_or_recipe_are_in_a_group_of_their_own(other: dict[str, Any]) -> None:
    assert len(grouped([make_record(arm="full"), make_record(arm="lora", **other)])) == 2


def test_an_arm_with_a_block_twice_is_two_rows_and_the_run_that_ended_well_comes_first() -> None:
    failed = make_record(arm="full", status="failed", run_id="0" * 16)
    runs = [failed, *(make_record(arm="full", run_id=digit * 16) for digit in "12")]
    by_arm = runs_by_arm(runs)
    assert by_arm["full"][0].run_id == "1" * 16
    assert sorted(by_arm) == ["full", f"full (lr=0.001, {'0' * 16})", f"full (lr=0.001, {'2' * 16})"]
    assert runs_by_arm(runs[::-1]) == by_arm


def test_what_a_later_run_repeats_is_left_out_and_what_failed_is_no_run_that_ended_well() -> None:
    first = make_record(block=1, status="failed")
    again = make_record(block=1, run_id=f"{first.run_id}-2", previous=first.run_id)
    broken = make_record(block=0, status="timeout")
    assert latest([first, again, broken]) == [again, broken]
    assert list(ended_well({2: make_record(block=2), 1: again, 0: broken})) == [1, 2]


def test_a_mean_of_less_than_all_is_none_with_its_reason() -> None:
    assert mean([1.0, 2.0], "gone") == Figure(1.5)
    assert mean([1.0, None], "gone") == mean([], "gone") == Figure(None, "gone")
    assert Figure.of(Estimate(1.0, why="points")) == Figure(1.0)
    assert Figure.of(Estimate(None, why="gone")) == Figure(None, "gone")


def test_the_trained_share_is_of_n_and_told_only_where_both_are() -> None:
    assert trained_share_of(make_record()) == 0.15
    assert trained_share_of(make_record(trained_parameters=None)) is None
    assert trained_share_of(make_record(total_parameters=0)) is None


def test_runs_of_one_label_that_were_asked_for_different_things_are_different_arms() -> None:
    def run(block: int, rank: int) -> RunRecord:
        return make_record(
            arm="lora", block=block, spec={"settings": {"r": rank}}, run_id=f"{block}{rank:02d}".ljust(16, "0")
        )

    arms = runs_by_arm([run(0, 8), run(1, 16), run(2, 16)])
    assert {name: sorted(runs) for name, runs in arms.items()} == {
        "lora": [1, 2],
        "lora (lr=0.001, 0080000000000000)": [0],
    }
