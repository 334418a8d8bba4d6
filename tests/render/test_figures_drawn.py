"""What each figure shows, what it leaves out, and that it names both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from matplotlib.axes import Axes

from cprbench.endings import BudgetSpec
from cprbench.judge.cpr import Group, compare
from cprbench.judge.curves import curves
from cprbench.judge.evidence import Evidence, gather
from cprbench.judge.groups import Figure
from cprbench.judge.ledger import ArmLedger, ledger
from cprbench.judge.sweeps import sweeps
from cprbench.render.document import Drawing
from cprbench.render.figures import ledger as ledger_figure
from cprbench.render.figures import plane, running
from cprbench.render.figures import sweeps as sweep_figure
from cprbench.render.figures.saving import pdf, svg
from cprbench.render.figures.style import method_looks
from cprbench.render.report.sweep_tables import fit
from cprbench.spec import PHASES, RunRecord
from tests.records_factory import make_blocks, make_evidence, make_record, store_run
from tests.render.test_figures import HOSTILE, texts

FINALS = {"head": (0.5, 0.52, 0.51), "full": (0.8, 0.83, 0.82), "lora": (0.78, 0.8, 0.76), "tiny": (0.53, 0.52, 0.54)}
FLOPS = {"head": [10] * 3, "full": [1000] * 3, "lora": [400] * 3, "tiny": [50] * 3}


def group_of(records: Sequence[RunRecord]) -> Group:
    (group,) = compare(records)
    return group


def on_plane(group: Group, resource: str = "flops") -> Drawing:
    found = plane.plane(group, curves(group, make_evidence(*group.records), resource))
    assert found is not None
    return found


def axes_of(drawing: Drawing | None) -> Axes:
    assert drawing is not None
    figure = matplotlib.figure.Figure()
    drawing.draw(figure)
    return figure.axes[0]


def marks(axes: Axes, marker: str) -> list[tuple[float, float]]:
    """Return where lines without a stroke put a marker."""
    found = [line for line in axes.lines if line.get_marker() == marker and line.get_linestyle() == "None"]
    return [(float(x), float(y)) for line in found for x, y in zip(*line.get_data(), strict=True)]


def test_the_plane_shows_means_and_the_blocks_behind_them() -> None:
    axes = axes_of(on_plane(group_of(make_blocks(FINALS, FLOPS))))
    assert sorted(marks(axes, ".")) == sorted(
        (FLOPS[arm][b], final) for arm, finals in FINALS.items() for b, final in enumerate(finals)
    )
    assert marks(axes, "s") == [(1000, pytest.approx(0.8166667))]
    assert axes.get_xscale() == "log"


def test_the_plane_tells_the_front_and_what_is_below_the_floor() -> None:
    drawing = on_plane(group_of(make_blocks(FINALS, FLOPS)))
    assert drawing.name == "plane-flops"
    assert "On the Pareto front: lora: 0.780 [0.730, 0.830] at 400 FLOPs; full: 0.817" in drawing.text
    assert "Hollow (keeps less than 50 % of full's gain): head, tiny." in drawing.text
    (front,) = [line for line in axes_of(drawing).lines if line.get_label() == "Pareto front"]
    assert list(front.get_xdata()) == [400, 1000, 1000] and front.get_drawstyle() == "steps-post"


def test_a_mean_has_its_interval_and_an_arm_below_the_floor_is_hollow() -> None:
    group = group_of(make_blocks(FINALS, FLOPS))
    lines = axes_of(on_plane(group)).lines
    lora = next(arm for arm in group.arms if arm.arm == "lora")
    assert [[400, 400], [lora.final.low, lora.final.high]] in [[*map(list, line.get_data())] for line in lines]
    hollow = {line.get_xdata()[0] for line in lines if line.get_markerfacecolor() == "none"}
    assert hollow == {10, 50}  # head and tiny


def test_an_arm_without_a_cost_is_left_out_and_named() -> None:
    records = [make_record(arm="full", final=0.8, gamma={"energy_kwh": 2.0}), make_record(arm="head", final=0.5)]
    drawing = on_plane(group_of(records), "energy_kwh")
    assert "for their kWh were not measured: head." in drawing.text
    assert not any("head" in text for text in texts(svg(drawing)))


def test_a_resource_that_nobody_measured_has_no_plane() -> None:
    group = group_of(make_blocks(FINALS))
    assert plane.plane(group, curves(group, make_evidence(*group.records), "energy_kwh")) is None


def test_costs_of_two_kinds_have_no_front() -> None:
    scopes = [("full", "package"), ("lora", "whole machine")]
    records = [make_record(arm=a, gamma={"energy_kwh": 1.0, "energy_scope": scope}) for a, scope in scopes]
    drawing = on_plane(group_of([*records, make_record(arm="head", final=0.5)]), "energy_kwh")
    assert "Energy_kwh is of 2 kinds (package, whole machine), so there is no front." in drawing.text
    assert not [line for line in axes_of(drawing).lines if line.get_label() == "Pareto front"]


def test_many_arms_are_told_by_method_and_the_front_by_name() -> None:
    many = {f"partial k={i / 100}": (0.6 + i / 100,) for i in range(10, 22)}
    flops = {name: [i] for i, name in enumerate(many, 100)}
    group = group_of(make_blocks({"head": (0.5,), "full": (0.8,), **many}, {**flops, "full": [105], "head": [1]}))
    found = texts(svg(on_plane(group)))
    assert found.count("partial") == 1
    assert any(text.startswith("1  partial k=") for text in found) and "1" in found


def test_a_score_that_falls_keeps_its_sign_and_says_which_way_is_better() -> None:
    finals = {"head": (3.0,), "full": (1.0,), "lora": (1.5,)}
    drawing = on_plane(group_of(make_blocks(finals, {"full": [100], "lora": [10], "head": [1]}, metric="nll")))
    assert "lora: 1.500 at 10.0 FLOPs; full: 1.000 at 100 FLOPs" in drawing.text
    assert axes_of(drawing).get_ylabel() == "nll (lower is better)"


def test_every_block_of_every_arm_is_a_point_beside_its_mean() -> None:
    drawing = plane.points(group_of(make_blocks(FINALS)))
    axes = axes_of(drawing)
    gains = [f - h for f, h in zip(FINALS["full"], FINALS["head"], strict=True)]
    assert [x for x, _ in marks(axes, ".")][3:6] == pytest.approx(gains)
    assert drawing is not None and "full: +0.307 [" in drawing.text
    assert [text.get_text() for text in axes.get_yticklabels()] == list(FINALS)
    on_top = method_looks(["head"])["head"].marker
    assert [y for _, y in marks(axes, on_top)] == pytest.approx([axes.get_yticks()[0]])
    at_full = pytest.approx([sum(gains) / 3] * 2)
    assert any(list(line.get_xdata()) == at_full for line in axes.lines)


def test_a_figure_of_rows_grows_with_its_arms() -> None:
    few, many = (
        plane.points(group_of(make_blocks({"head": (0.5,), **{f"partial k=0.{i}": (0.6,) for i in range(1, n)}})))
        for n in (3, 9)
    )
    assert few is not None and many is not None and many.inches[1] > few.inches[1] + 1


def test_full_is_drawn_whatever_it_gains_and_phases_differ_by_more_than_colour() -> None:
    finals = {"head": (0.5,), "full": (0.51,)} | {f"partial k=0.{i}": (0.6 + i / 1000,) for i in range(10, 40)}
    group = group_of(make_blocks(finals))
    drawing = plane.points(group)
    assert drawing is not None and "full" in texts(svg(drawing))
    bars = ledger_figure.phases(ledger(group_of([make_record(arm="full", seconds=dict.fromkeys(PHASES, 1.0))])))
    assert bars is not None
    hatches = {patch.get_hatch() for patch in axes_of(bars).patches}
    assert len(hatches) == len(PHASES)


def test_the_front_is_drawn_through_the_means_that_it_is_of() -> None:
    finals = {"head": (0.5, 0.5, 0.5), "full": (0.8, 0.7, 0.72), "lora": (0.7, 0.71, 0.7), "lucky": (0.9,)}
    flops = {"head": (1, 1, 1), "full": (1000, 1000, 1000), "lora": (500, 500, 500), "lucky": (400,)}
    group = group_of(make_blocks(finals, flops))
    drawing = plane.plane(group, curves(group, Evidence.of(group.records)))
    assert drawing is not None and "On the Pareto front: lora: 0.703" in drawing.text
    assert "lucky" in drawing.text.split("Off it:")[1]
    (line,) = [line for line in axes_of(drawing).lines if line.get_label() == "Pareto front"]
    assert list(line.get_ydata())[:2] == pytest.approx([0.7033, 0.74], abs=1e-3)


def test_no_gain_no_points() -> None:
    assert plane.points(group_of([make_record(arm="full", status="failed")])) is None
    drawing = plane.points(group_of([*make_blocks(FINALS), make_record(arm="broken", status="failed")]))
    assert drawing is not None and "Without a gain: broken." in drawing.text


def test_of_many_arms_those_that_gain_most_are_drawn_and_the_others_named() -> None:
    finals = {"head": (0.5,), "full": (0.7,)} | {f"partial k=0.{i}": (0.6 + i / 1000,) for i in range(10, 40)}
    drawing = plane.points(group_of(make_blocks(finals)))
    assert drawing is not None
    shown = texts(svg(drawing))
    assert "full" in shown and "partial k=0.39" in shown and "partial k=0.10" not in shown
    assert "Not drawn, for their gains are smaller: head, partial k=0.10, " in drawing.text
    bars = ledger_figure.phases(ledger(group_of(make_blocks(finals))))
    assert bars is not None and "Not drawn, for they took less: " in bars.text
    assert "Without a gain" not in drawing.text and "Left out" not in bars.text


def sweep_of(gains: Sequence[float]) -> Drawing:
    ks = [0.01, 0.1, 0.5][: len(gains)]
    records = [
        make_record(arm=f"partial k={k}", block=b, final=0.5 + g + b / 100, spec={"settings": {"k": k}}, k_reached=k)
        for k, g in zip(ks, gains, strict=True)
        for b in range(3)
    ]
    records += make_blocks({"head": (0.5,) * 3, "full": (0.9, 0.91, 0.93)})
    (sweep,) = sweeps(group_of(records))
    return sweep_figure.shares(sweep, "k-sweep-1")


def test_a_sweep_shows_its_fit_with_the_exponent() -> None:
    drawing = sweep_of((0.1, 0.2, 0.3))
    assert drawing.name == "k-sweep-1" and "27 % [23 %, 30 %] at 0.010 (partial k=0.01)" in drawing.text
    (exponent,) = [text for text in texts(svg(drawing)) if text.startswith("gain ∝ k^x, x = 0.")]
    assert "[" in exponent and exponent in drawing.text
    assert axes_of(drawing).get_xscale() == "log"


def test_a_sweep_without_a_fit_says_why() -> None:
    drawing = sweep_of((-0.1, 0.2, 0.3))
    assert "No fit: gain_not_positive: -0.1 at share 0.01 in block 0." in drawing.text
    assert not any("∝" in text for text in texts(svg(drawing)))


def test_a_sweep_of_which_nothing_can_be_kept_is_still_a_figure() -> None:
    runs = [make_record(arm=f"partial k={k}", spec={"settings": {"k": k}}, k_reached=k) for k in (0.1, 0.2, 0.3)]
    (sweep,) = sweeps(group_of([*runs, make_record(arm="head", final=0.5)]))
    drawing = sweep_figure.shares(sweep, "k-sweep-1")
    assert "Not drawn (no full run in every block): partial k=0.1, partial k=0.2, partial k=0.3." in drawing.text
    assert "It is not drawn, for full's gain is not above zero." in drawing.text
    assert svg(drawing)


def run(folder: Path, arm: str, scores: Sequence[float], block: int = 0, **more: Any) -> None:
    metric = more.get("metric", "accuracy")
    rows = [
        {"step": 10 * i, "flops": 100 * i, "validation": {metric: s}, "gamma": {"flops": 100 * i}}
        for i, s in enumerate(scores, 1)
    ]
    record = make_record(arm=arm, block=block, final=scores[-1], **more)
    store_run(folder, record, history="".join(json.dumps(row) + "\n" for row in rows))


def while_running(folder: Path) -> Drawing | None:
    evidence = gather(folder)
    (group,) = compare(evidence.records)
    return running.running(group, evidence)


def strokes(axes: Axes) -> list[list[float]]:
    return [[float(y) for y in line.get_ydata()] for line in axes.lines if line.get_linestyle() != "None"]


def test_blocks_that_were_validated_as_often_are_one_line_and_others_a_line_each(tmp_path: Path) -> None:
    for block, last in enumerate((0.8, 0.9)):
        run(tmp_path, "full", (0.6, 0.7, last), block)
        run(tmp_path, "lora", (0.5,) * (2 + block), block)
    assert strokes(axes_of(while_running(tmp_path))) == [
        pytest.approx([0.6, 0.7, 0.85]),
        [0.5, 0.5],
        [0.5, 0.5, 0.5],
    ]


def test_the_point_where_a_rule_stopped_is_marked_and_told(tmp_path: Path) -> None:
    run(tmp_path, "full stop=0.1x", (0.6, 0.7, 0.71), notes={"stop": {"stopped_at": 30}})
    run(tmp_path, "lora stop=0.1x", (0.6, 0.7, 0.9), notes={"stop": {"stopped_at": None}})
    drawing = while_running(tmp_path)
    assert marks(axes_of(drawing), "o") == [(300, 0.71)]
    assert drawing is not None
    assert "full stop=0.1x: 0.710 after 300, stopped by its rule at 0.710 after 300; lora" in drawing.text


def test_a_loss_is_drawn_in_its_own_sign(tmp_path: Path) -> None:
    run(tmp_path, "full", (3.0, 2.0), metric="nll")
    axes = axes_of(while_running(tmp_path))
    assert strokes(axes) == [[3.0, 2.0]] and axes.get_ylabel() == "validation nll (lower is better)"


def test_arms_on_all_data_are_drawn_before_those_that_choose(tmp_path: Path) -> None:
    run(tmp_path, "full selection=random q=0.5", (0.6, 0.65), spec={"selection": "random"})
    run(tmp_path, "partial k=0.1", (0.6, 0.7))
    assert strokes(axes_of(while_running(tmp_path))) == [[0.6, 0.7], [0.6, 0.65]]


BUDGET = {"budget": BudgetSpec(resource="flops", amount=5.0)}


def test_arms_of_a_budget_are_left_out_and_named_and_head_comes_last(tmp_path: Path) -> None:
    run(tmp_path, "head", (0.5, 0.5))
    run(tmp_path, "lora", (0.6, 0.7))
    run(tmp_path, "lora budget=0.5x full", (0.6, 0.65), spec=BUDGET)
    drawing = while_running(tmp_path)
    assert strokes(axes_of(drawing)) == [[0.6, 0.7], [0.5, 0.5]]
    assert drawing is not None
    assert drawing.text.endswith("at a budget and repeat the beginnings of others: lora budget=0.5x full.")


def test_arms_of_a_budget_are_drawn_where_there_is_nothing_else_but_full_and_head(tmp_path: Path) -> None:
    run(tmp_path, "head", (0.5, 0.5))
    run(tmp_path, "full", (0.6, 0.7))
    for i in range(11):
        run(tmp_path, f"lora r={i + 10} budget=0.5x full", (0.6, 0.65), spec=BUDGET)
    drawing = while_running(tmp_path)
    assert len(strokes(axes_of(drawing))) == 12
    assert drawing is not None and "Left out" not in drawing.text
    assert drawing.text.endswith("cannot be told apart: head.")


def test_a_method_has_the_same_look_on_every_figure(tmp_path: Path) -> None:
    run(tmp_path, "head", (0.5, 0.5))
    run(tmp_path, "full", (0.55, 0.7))
    for k in (0.1, 0.3, 0.2):
        run(tmp_path, f"partial k={k}", (0.55, 0.6), spec={"settings": {"k": k}}, k_reached=k)
    evidence = gather(tmp_path)
    (group,) = compare(evidence.records)
    (sweep,) = sweeps(group)
    drawings = [on_plane(group), plane.points(group), sweep_figure.shares(sweep, "k"), while_running(tmp_path)]
    own = method_looks(["partial", "full"])
    for drawing in drawings:
        found = {(line.get_color(), line.get_marker()) for line in axes_of(drawing).lines}
        assert {(look.colour, look.marker) for look in own.values()} <= found, drawing


def test_more_than_twelve_lines_are_not_drawn_but_named(tmp_path: Path) -> None:
    for i in range(14):
        run(tmp_path, f"partial k=0.{i:02d}", (0.6, 0.7))
    run(tmp_path, "head", (0.5, 0.5))
    drawing = while_running(tmp_path)
    assert drawing is not None and len(strokes(axes_of(drawing))) == 12
    assert drawing.text.endswith("cannot be told apart: partial k=0.12, partial k=0.13, head.")


def test_runs_without_a_history_are_not_drawn_while_they_run() -> None:
    records = make_blocks(FINALS)
    assert running.running(group_of(records), make_evidence(*records)) is None
    assert running.running(group_of(records), Evidence()) is None


def test_bars_are_stacked_to_the_seconds_of_a_run() -> None:
    seconds = dict.fromkeys((*PHASES, "billed", "billed_last_attempt"), 0.0) | {"setup": 5.0, "train": 20.0}
    drawing = ledger_figure.phases(ledger(group_of([make_record(arm="full", seconds=seconds)])))
    bars = [(bar.get_x(), bar.get_width()) for bar in axes_of(drawing).patches]
    assert bars == [(0.0, 5.0), (5.0, 20.0)]
    assert drawing is not None and "full: setup 5.00 s, train 20.0 s." in drawing.text


def arm_ledger(arm: str, trials: int = 0, search: float | None = None, **seconds: float | None) -> ArmLedger:
    known = {phase: Figure(seconds.get(phase, 1.0)) for phase in PHASES}
    return ArmLedger(arm, 2, 2, known, known, Figure(2.0), Figure(2.0), trials, Figure(search))


def test_a_search_is_shared_out_over_the_runs_that_use_its_rate() -> None:
    drawing = ledger_figure.phases([arm_ledger("lora", 3, 60.0)])
    assert axes_of(drawing).patches[0].get_width() == 30.0
    assert drawing is not None and "lora: search 30.0 s, setup 1.00 s" in drawing.text


def test_a_phase_that_was_not_measured_has_no_bar_and_is_named() -> None:
    drawing = ledger_figure.phases([arm_ledger("full", score=None), arm_ledger("lora", 2)])
    assert drawing is not None
    assert "Without a bar of search, for it was not measured: lora." in drawing.text
    assert "Without a bar of score, for it was not measured: full." in drawing.text
    assert "full: setup 1.00 s, select 1.00 s, train 1.00 s, validate 1.00 s; lora" in drawing.text


def test_nothing_that_ended_well_has_no_ledger() -> None:
    assert ledger_figure.phases(ledger(group_of([make_record(arm="full", status="failed")]))) is None


def test_every_figure_survives_the_names_that_strangers_give(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if name and "\ud800" not in name]  # a record with half a character is refused
    for i, name in enumerate([*names, "head", "full"]):
        run(tmp_path, name, (0.5 + i / 100, 0.6 + i / 100), spec={"method": "full" if name == "full" else "lora"})
    evidence = gather(tmp_path)
    (group,) = compare(evidence.records)
    drawings = [
        on_plane(group),
        plane.points(group),
        running.running(group, evidence),
        ledger_figure.phases(ledger(group)),
    ]
    for drawing in drawings:
        assert drawing is not None
        assert svg(drawing).startswith("<svg") and pdf(drawing).startswith(b"%PDF")
        assert "<script>" not in svg(drawing)


def test_a_fit_says_how_well_it_fits_and_of_which_blocks_it_is_where_arms_have_more() -> None:
    records = [
        make_record(arm=f"partial k={k}", block=b, final=0.5 + g + b / 100, spec={"settings": {"k": k}}, k_reached=k)
        for k, g in ((0.01, 0.1), (0.1, 0.2), (0.5, 0.3))
        for b in range(3)
        if (k, b) != (0.5, 2)
    ]
    (sweep,) = sweeps(group_of([*records, *make_blocks({"head": (0.5,) * 3, "full": (0.9, 0.91, 0.93)})]))
    said = sweep_figure.how_well(sweep)
    assert "R² " in said and said.endswith(", fitted to the 2 blocks that all of them have")
    assert said in sweep_figure.shares(sweep, "k-sweep-1").text and said in fit(sweep)
