"""samples.jsonl: what its lines mean, and the windows, integrals and peaks that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.errors import StoreError
from cprbench.meters.trace import Sample, Trace, Window


def start(t: float, phase: str = "train", attempt: int = 1, **values: float) -> Sample:
    return Sample(t, values, phase, "start", attempt)


def end(t: float, phase: str = "train", attempt: int = 1, **values: float) -> Sample:
    return Sample(t, values, phase, "end", attempt)


def at(t: float, rss: float) -> Sample:
    return Sample(t, {"rss_bytes": rss})


def seen(trace: Trace) -> list[tuple[str, int, float, float, bool]]:
    return [(w.phase, w.attempt, w.start.t, w.end.t, w.cut) for w in trace.windows()]


def integral(samples: list[Sample], *windows: tuple[float, float]) -> tuple[float, int] | None:
    """Return the integral of rss_bytes over windows of these times."""
    trace = Trace(samples)
    return trace.integral("rss_bytes", [Window("train", 1, start(low), end(high)) for low, high in windows])


# --- lines ------------------------------------------------------------------------------------------


def test_a_trace_comes_back_from_its_lines() -> None:
    samples = [start(1.5, "select", 2, rss_bytes=10.0), at(2.25, 20.0), end(3.0, "select", 2, peak_rss_bytes=30.0)]
    found = Trace.parse([sample.line() for sample in samples], "here")
    assert found == Trace(samples, {})


def test_a_plain_sample_names_no_phase() -> None:
    assert json.loads(at(1.0, 2.0).line()) == {"t": 1.0, "values": {"rss_bytes": 2.0}}
    assert json.loads(start(1.0).line()) == {"t": 1.0, "values": {}, "edge": "start", "phase": "train", "attempt": 1}


def test_reasons_of_all_meters_are_gathered() -> None:
    lines = ['{"missing":{"a":"no a"}}', at(1, 2).line(), '{"missing":{"b":"no b"}}']
    assert Trace.parse(lines, "here").missing == {"a": "no a", "b": "no b"}


def test_a_trace_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(at(1, 2).line() + "\n" + '{"missing":{}}\n', encoding="utf-8")
    assert Trace.load(path) == Trace([at(1, 2)], {})


@pytest.mark.parametrize("torn", ['{"t": 1.0, "val', "{", '{"t": 1.0}', ""])
def test_a_last_line_that_a_killed_process_left_is_left_out(torn: str) -> None:
    assert Trace.parse([at(1, 2).line(), torn], "here") == Trace([at(1, 2)], {})


@pytest.mark.parametrize(
    "line",
    ['{"t": 1.0, "val', '{"t": NaN, "values": {}}', '{"t": 1, "values": {"a": -Infinity}}', '{"t": 1}', "7", "[]"],
)
def test_a_line_that_is_no_sample_is_named(line: str) -> None:
    with pytest.raises(StoreError, match=r"^samples\.jsonl: line 2 is not a sample"):
        Trace.parse([at(1, 2).line(), line, at(3, 4).line()], "samples.jsonl")


@pytest.mark.parametrize(
    "line", ['{"t": "soon", "values": {}}', '{"t": 1, "values": {"a": "much"}}', '{"t": 1, "values": 3}']
)
def test_a_line_whose_values_are_no_numbers_is_named(line: str) -> None:
    with pytest.raises(StoreError, match="line 2 is not a sample"):
        Trace.parse([at(1, 2).line(), line, at(3, 4).line()], "samples.jsonl")


# --- windows ----------------------------------------------------------------------------------------


def test_a_window_runs_from_a_start_to_the_next_end() -> None:
    trace = Trace([start(1, "setup"), at(2, 1), end(3, "setup"), start(4), end(6), start(6), end(9)])
    assert seen(trace) == [("setup", 1, 1, 3, False), ("train", 1, 4, 6, False), ("train", 1, 6, 9, False)]
    assert [w.seconds for w in trace.windows()] == [2, 2, 3]


def test_a_window_that_a_dead_process_left_open_is_cut_at_the_last_sample() -> None:
    assert seen(Trace([start(1), at(2, 1), at(5.5, 1)])) == [("train", 1, 1, 5.5, True)]
    assert seen(Trace([start(1)])) == [("train", 1, 1, 1, True)]


def test_a_window_that_the_next_start_finds_open_is_cut_before_it() -> None:
    trace = Trace([start(1), at(2, 1), start(5, "train", 2), at(6, 1), end(7, "train", 2)])
    assert seen(trace) == [("train", 1, 1, 2, True), ("train", 2, 5, 7, False)]


def test_an_end_without_a_start_is_no_window() -> None:
    assert seen(Trace([end(1), at(2, 1), start(3), end(4)])) == [("train", 1, 3, 4, False)]


def test_a_phase_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(StoreError, match=r"phase train: ends 1\.500000 s before it starts"):
        Trace([start(3), end(1.5)]).windows()


# --- integrals and peaks ----------------------------------------------------------------------------


def test_an_integral_is_the_area_below_straight_lines_between_samples() -> None:
    samples = [at(0, 10), at(2, 20), at(4, 0)]
    assert integral(samples, (0, 4)) == (30 + 20, 3)
    assert integral(samples, (1, 3)) == ((15 + 20) / 2 + (20 + 10) / 2, 1)  # ends lie halfway between samples
    assert integral(samples, (0, 1), (3, 4)) == (12.5 + 5, 2)
    assert integral(samples, (0.5, 1.5)) == ((12.5 + 17.5) / 2, 0)


def test_a_value_is_held_before_the_first_and_after_the_last_sample() -> None:
    assert integral([at(1, 10), at(2, 30)], (0, 4)) == (10 + 20 + 60, 2)


def test_samples_may_stand_in_any_order() -> None:
    samples = [at(4, 0), at(0, 10), at(2, 20)]
    assert integral(samples, (0, 4)) == (50, 3)
    assert Trace(samples).series("rss_bytes") == [(0, 10), (2, 20), (4, 0)]


def test_fewer_than_two_samples_have_no_integral() -> None:
    assert integral([], (0, 4)) is None
    assert integral([at(1, 10)], (0, 4)) is None
    assert Trace([at(1, 1), at(2, 2)]).integral("other_bytes", []) is None


def test_an_integral_over_no_window_is_zero() -> None:
    assert integral([at(0, 10), at(2, 20)]) == (0, 0)


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True),
    st.tuples(st.integers(-5, 5), st.integers(0, 100)),
    st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_the_integral_of_a_straight_line_does_not_depend_on_when_it_was_sampled(
    times: list[int], line: tuple[int, int], window: list[int]
) -> None:
    slope, offset = line
    samples = [at(t, slope * t + offset) for t in [*times, *window]]
    low, high = window
    expected = slope * (high**2 - low**2) / 2 + offset * (high - low)
    found = integral(samples, (low, high))
    assert found is not None
    assert found[0] == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1e12)), min_size=2, max_size=15),
    st.lists(st.floats(0, 10), min_size=3, max_size=3).map(sorted),
)
def test_the_integral_over_a_window_is_the_sum_over_its_halves(
    points: list[tuple[float, float]], cuts: list[float]
) -> None:
    samples = [at(t, value) for t, value in points]
    low, middle, high = cuts
    whole, halves = integral(samples, (low, high)), integral(samples, (low, middle), (middle, high))
    assert whole is not None
    assert halves is not None
    assert whole[0] == pytest.approx(halves[0], rel=1e-9, abs=1e-3)
    assert 0 <= whole[0] <= (high - low) * max(value for _, value in points) * (1 + 1e-9)


def test_a_peak_is_the_largest_sample_inside_the_windows() -> None:
    trace = Trace([at(0, 99), at(1, 5), at(2, 7), at(3, 6), at(9, 50)])

    def peak(*windows: tuple[float, float]) -> float | None:
        return trace.peak("rss_bytes", [Window("train", 1, start(low), end(high)) for low, high in windows])

    assert peak((1, 3)) == 7
    assert peak((0.5, 1.5), (2.5, 9)) == 50
    assert peak((4, 8)) is None
    assert peak() is None


EDGES: list[Literal["start", "end"]] = ["start", "end"]


@given(
    st.lists(
        st.tuples(st.sampled_from([None, *EDGES]), st.sampled_from(["setup", "train", "score"]), st.floats(0, 100)),
        max_size=20,
    )
)
def test_any_order_of_edges_gives_windows_of_positive_length_or_is_refused(
    lines: list[tuple[Literal["start", "end"] | None, str, float]],
) -> None:
    trace = Trace([Sample(t, {"a": 1.0}, phase if edge else None, edge) for edge, phase, t in lines])
    try:
        windows = trace.windows()
    except StoreError:
        return
    assert len(windows) == sum(edge == "start" for edge, _, _ in lines)
    assert all(window.seconds >= 0 for window in windows)
