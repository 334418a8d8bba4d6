"""Where a run ends, step by step, on a clock of the test's own; and how a child learns its joules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cprbench.endings import BudgetSpec
from cprbench.errors import TrainingError
from cprbench.meters.energy import counted_joules
from cprbench.sessions.channel import Channel
from cprbench.sessions.ending import Ending
from cprbench.spec import TrainingSpec


class Timed:
    """A session whose steps take as long as the test says."""

    def __init__(self, hours: float, **recipe: Any) -> None:
        self.recipe = TrainingSpec(**recipe)
        self.spec = SimpleNamespace(stop=None, budget=BudgetSpec(resource="device_hours", amount=hours))
        self.job: dict[str, Any] = {"accelerators": None}
        self.engine = SimpleNamespace(first=lambda work: work(), device=SimpleNamespace(type="cpu"))
        self.channel = SimpleNamespace(billed_seconds=lambda phases: self.seconds)
        self.billed = ("select", "train")
        self.seconds = 0.0
        self.steps_done = 0

    def trained(self, ending: Ending, costs: list[float]) -> tuple[list[float], list[int]]:
        """Return the factors on the rate, and the steps after which it validates, until the run is over."""
        scales, checked = [], []
        for step, seconds in enumerate(costs):
            scales.append(ending.scale(step))
            self.seconds += seconds
            self.steps_done += 1
            if ending.validates():
                checked.append(step + 1)
            if ending.ends({}):
                return scales, checked
        raise AssertionError("it did not end")


def test_the_rate_follows_the_spent_share_of_the_budget_and_ends_near_zero() -> None:
    session = Timed(101 / 3600, warmup_fraction=0.1, validations=4)
    scales, checked = session.trained(Ending(session), [1.0] * 200)  # type: ignore[arg-type]
    assert len(scales) == 101
    assert scales[0] == pytest.approx(1 / 11) and scales[:10] == sorted(scales[:10])
    assert max(scales) == pytest.approx(scales[11]) == pytest.approx(1)
    assert scales[12:] == sorted(scales[12:], reverse=True)
    assert scales[-1] == pytest.approx(1 / 90, rel=0.02) and scales[56] == pytest.approx(0.5, abs=0.02)
    assert checked == [26, 51, 76, 101]


def test_a_step_is_not_taken_where_the_dearest_of_late_would_not_fit() -> None:
    session = Timed(20.5 / 3600, warmup_fraction=0.0, validations=1)
    scales, checked = session.trained(Ending(session), [1.0] * 15 + [3.0] + [1.0] * 20)  # type: ignore[arg-type]
    assert (len(scales), checked, session.seconds) == (16, [16], 18.0)  # 18 + 3 is more than there is
    assert scales[0] == 1.0


def test_a_constant_schedule_does_not_follow_the_budget_down() -> None:
    session = Timed(50 / 3600, warmup_fraction=0.0, schedule="constant")
    scales, _ = session.trained(Ending(session), [1.0] * 60)  # type: ignore[arg-type]
    assert set(scales) == {1.0} and len(scales) == 50


def test_what_choosing_spent_is_gone_from_the_budget_and_the_schedule_starts_after_it() -> None:
    session = Timed(30 / 3600, warmup_fraction=0.0)
    session.seconds = 20.0
    scales, _ = session.trained(Ending(session), [1.0] * 60)  # type: ignore[arg-type]
    assert len(scales) == 10 and scales == pytest.approx([1 - i / 10 for i in range(10)])


def test_a_budget_that_choosing_or_the_first_step_uses_up_is_an_error_that_says_how_much() -> None:
    session = Timed(30 / 3600)
    session.seconds = 30.0
    with pytest.raises(
        TrainingError,
        match=r"budget=device_hours=0.00833333333333: 0.00833 device_hours went before the first step. Raise",
    ):
        Ending(session).scale(0)  # type: ignore[arg-type]
    session = Timed(30 / 3600)
    with pytest.raises(TrainingError, match=r"choosing and one step took 0.01, which is the least"):
        session.trained(Ending(session), [36.0])  # type: ignore[arg-type]


def test_device_hours_count_every_accelerator_that_the_run_holds() -> None:
    session = Timed(100 / 3600, warmup_fraction=0.0)
    session.engine.device.type, session.job["accelerators"] = "cuda", 2.0
    scales, _ = session.trained(Ending(session), [1.0] * 60)  # type: ignore[arg-type]
    assert len(scales) == 50


@contextmanager
def line_of(tmp_path: Path, answers: list[str]) -> Iterator[Channel]:
    """Yield the child's end of a line whose other end has answered already; what it says is in said.jsonl."""
    (tmp_path / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    channel = Channel(
        os.open(tmp_path / "answers", os.O_RDONLY), os.open(tmp_path / "said.jsonl", os.O_WRONLY | os.O_CREAT)
    )
    yield channel
    channel._in.close()  # type: ignore[union-attr]
    channel._out.close()  # type: ignore[union-attr]


def test_a_child_adds_up_the_joules_of_its_phases_from_its_parent_s_answers(tmp_path: Path) -> None:
    # The counter at the ends of setup, select and score, and at the questions in train; then it is gone.
    with line_of(tmp_path, ["100.0", "110.5", "150.0", "152.0", "160.0", ""]) as channel:
        for phase in ("setup", "select", "score"):
            with channel.phase(phase):
                pass
        channel.start("train")
        found = [channel.billed_joules(("select", "train")) for _ in range(3)]
    assert found == [10.5 + 2.0, 10.5 + 10.0, None]
    assert (tmp_path / "said.jsonl").read_text().count('"event":"energy"') == 3


def test_without_an_energy_counter_no_joules_are_told(tmp_path: Path) -> None:
    with line_of(tmp_path, ["", ""]) as channel:
        with channel.phase("train"):
            pass
        assert channel.billed_joules(("train",)) is None and not channel.joules
    assert Channel(None, None).billed_joules(("train",)) is None


def test_the_counters_of_all_boards_are_one_and_go_before_those_of_the_packages() -> None:
    packages = {"rapl_package_energy_joules": 5.0, "rapl_dram_energy_joules": 1.0, "rss_bytes": 9.0}
    boards = {"gpu0_energy_counter_joules": 100.0, "gpu1_energy_counter_joules": 20.0, "gpu0_power_watts": 7.0}
    assert counted_joules(packages) == 6.0
    assert counted_joules(packages | boards) == 120.0
    assert counted_joules({"gpu0_power_watts": 7.0}) is None
