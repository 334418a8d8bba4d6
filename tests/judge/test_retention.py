"""The retention table, against predictions and ratios written out by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.endings import BudgetSpec, StopSpec
from cprbench.judge.cpr import compare
from cprbench.judge.groups import Figure
from cprbench.judge.retention import Agreement, Retention, Row, retention
from cprbench.spec import RunRecord
from tests.records_factory import make_record

PICKED = "partial k=0.15 selection=influence q=0.3"
AT_Q = "partial k=0.15 selection=random q=0.3"
AT_FLOPS = "partial k=0.15 selection=random flops_of=influence q=0.3"
_NUMBER = re.compile(r"\d+(\.\d+)?")
#: T over ten examples: ffn.1 holds 4 of 10, and 3 of these on what was selected; its square 9 of 20, and 5 of these.
T: dict[str, Any] = {
    "examples": 10,
    "sums": {"attn.1": 6.0, "ffn.1": 4.0},
    "squares": {"attn.1": 11.0, "ffn.1": 9.0},
    "selected_sums": {"attn.1": 2.0, "ffn.1": 3.0},
    "selected_squares": {"attn.1": 2.0, "ffn.1": 5.0},
    "gamma": 0.6,
    "gamma_r_squared": 0.95,
    "delta": 0.7,
    "delta_r_squared": 0.97,
}


def settings_in(label: str) -> dict[str, Any]:
    """Return the settings that a label shows: "influence q=0.3 class_guard=true" -> {"q": 0.3, "class_guard": True}."""
    pairs = re.findall(r" (\w+)=(\S+)", label)
    return {k: v == "true" if v in ("true", "false") else float(v) if _NUMBER.fullmatch(v) else v for k, v in pairs}


def run(
    arm: str,
    final: float,
    block: int = 0,
    *,
    flops: int | None = 1000,
    hours: float = 1.0,
    q: float | None = None,
    k: float | None = 0.15,
    t: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    band: str = "",
    **overrides: Any,
) -> RunRecord:
    """Return the record of an arm; its settings are those in the arm's name, the q that it reached in the notes."""
    words, _, chosen = arm.partition(" selection=")
    chosen, _, flops_of = chosen.partition(" flops_of=")
    spec: dict[str, Any] = {"selection": chosen.partition(" ")[0] or "all", "settings": settings_in(words)}
    usual: dict[str, Any] = {} if spec["selection"] == "all" else {"q": 0.3, "class_guard": False}
    if spec["selection"] == "random":
        usual |= {"flops": 400.0 + block if flops_of else 0.0, "flops_of": flops_of}
    spec["selection_settings"] = usual | settings_in(chosen) | ({"band": band} if band else {})
    noted: dict[str, Any] = dict(notes or {})
    if q is not None:
        noted["selection"] = {"q_asked": q, "q_reached": q, "classes_dropped": []}
    if t is not None:
        noted["cross_influence"] = t
    values: dict[str, Any] = {"spec": spec, "gamma": {"flops": flops, "device_hours": hours}, "notes": noted}
    values["k_reached"] = k if arm.split()[0] not in ("full", "head", "lora") else None
    values["seconds"] = {"train": 60.0, "billed": 3600 * hours}
    return make_record(arm=arm, block=block, final=final, **(values | overrides))


def references() -> list[RunRecord]:
    """Return head and full in two blocks: full gains 0.20 and 0.24 for 1000 and 3000 FLOPs."""
    return [
        *(run("head", final, block, flops=100) for block, final in enumerate((0.60, 0.62))),
        *(run("full", final, b, flops=f) for b, (final, f) in enumerate(((0.80, 1000), (0.86, 3000)))),
    ]


def sweep(left_out: str = "", at_flops: Any = (400, 800), **picked: Any) -> list[RunRecord]:
    """Return the references and one row in two blocks (gains 0.15 and 0.18) with both its baselines."""
    options = {"q": 0.3, "t": T} | picked
    rows = [
        run(PICKED, 0.75, 0, **({"flops": 400, "hours": 0.5} | options)),
        run(PICKED, 0.80, 1, **({"flops": 800} | options)),
        run(AT_Q, 0.70, 0, flops=300, q=0.3),
        run(AT_Q, 0.74, 1, flops=500, q=0.3),
        run(AT_FLOPS, 0.76, 0, flops=at_flops[0], q=0.45),
        run(AT_FLOPS, 0.82, 1, flops=at_flops[1], q=0.45),
    ]
    return [*references(), *(r for r in rows if f"{r.arm}/{r.block}" != left_out)]


def table_of(*records: RunRecord) -> Retention:
    (group,) = compare(records)
    found = retention(group)
    assert found is not None
    return found


def arms_of(*records: RunRecord) -> list[str]:
    return [row.arm for row in table_of(*records).rows]


def row_of(name: str, *records: RunRecord) -> Row:
    return {row.arm: row for row in table_of(*records).rows}[name]


# --- measured ---------------------------------------------------------------------------------------


def test_a_row_has_the_shares_it_reached_what_it_kept_and_its_share_of_full_s_cost() -> None:
    row = row_of(PICKED, *sweep())
    assert (row.k, row.q) == (Figure(0.15), Figure(0.3))
    assert row.k_times_q.value == pytest.approx(0.045)
    assert row.kept.value == pytest.approx((0.15 + 0.18) / (0.20 + 0.24))
    assert row.cost["flops"].value == pytest.approx((400 + 800) / (1000 + 3000))
    assert row.cost["seconds"].value == pytest.approx((0.5 + 1) / 2)


def test_k_and_q_are_means_over_the_blocks() -> None:
    records = [*references(), run(PICKED, 0.75, 0, q=0.3, k=0.1), run(PICKED, 0.8, 1, q=0.2, k=0.14)]
    row = row_of(PICKED, *records)
    assert row.k.value == pytest.approx(0.12)
    assert row.q.value == pytest.approx(0.25)
    assert row.k_times_q.value == pytest.approx(0.03)


def test_full_on_all_data_is_the_cell_k_1_and_q_1_and_adapters_are_where_their_size_is() -> None:
    row = row_of("full", *sweep())
    assert (row.k, row.q, row.k_times_q, row.kept) == (Figure(1.0), Figure(1.0), Figure(1.0), Figure(1.0))
    assert row.cost == {"flops": Figure(1.0), "seconds": Figure(1.0)}
    assert row.predicted["eq35"] == Figure(1.0)
    assert row_of("lora", *sweep(), run("lora", 0.7)).k == Figure(0.15)  # adapters: what trains, 150 of 1000


def test_neither_head_nor_a_baseline_is_a_row_and_baselines_stay_in_the_comparison() -> None:
    assert arms_of(*sweep()) == ["full", PICKED]
    (group,) = compare(sweep())
    assert [arm.arm for arm in group.arms] == ["head", "full", PICKED, AT_FLOPS, AT_Q]


def test_without_full_in_every_block_nothing_is_a_share_of_it() -> None:
    row = row_of(PICKED, *(r for r in sweep() if (r.arm, r.block) != ("full", 1)))
    why = Figure(None, "no full run in every block")
    assert row.kept == row.cost["flops"] == row.random["q"].kept == why
    assert row.random["q"].ratio.value == pytest.approx(1)
    row = row_of(PICKED, *(r for r in sweep() if (r.arm, r.block) != ("head", 1)))
    assert row.random["q"].kept == Figure(None, "no head run in every block")


def test_a_cost_that_was_not_measured_has_no_share() -> None:
    records = [*references(), run(PICKED, 0.75, 0, flops=None), run(PICKED, 0.8, 1)]
    assert row_of(PICKED, *records).cost["flops"] == Figure(None, "not measured")
    free = [run("full", 0.8, flops=0), run(PICKED, 0.75)]
    assert row_of(PICKED, *free).cost["flops"] == Figure(None, "n/e: cost_is_zero")


def test_an_arm_that_only_failed_is_a_row_without_a_number() -> None:
    row = row_of(PICKED, *references(), run(PICKED, 0.75, status="failed"))
    figures = [row.k, row.q, row.k_times_q, row.kept, *row.predicted.values(), *row.cost.values()]
    figures += [baseline.kept for baseline in row.random.values()]
    assert set(figures) == {Figure(None, "no run ended well")}


def test_a_selection_that_does_not_tell_its_q_has_none() -> None:
    for q in (None, 30, 0):
        row = row_of(PICKED, *references(), run(PICKED, 0.75, q=q))
        assert row.q == row.k_times_q == row.predicted["eq34_t"] == Figure(None, "not told")


# --- predicted --------------------------------------------------------------------------------------


def test_eq_34_is_the_share_of_t_that_what_trains_sees_of_what_was_selected() -> None:
    predicted = row_of(PICKED, *sweep()).predicted
    assert predicted["eq34_t"].value == pytest.approx(3 / 10)
    assert predicted["eq34_t_squared"].value == pytest.approx(5 / 20)


def test_predictions_are_means_over_the_blocks() -> None:
    other = run(PICKED, 0.8, 1, q=0.3, t={**T, "selected_sums": {"ffn.1": 1.0}, "gamma": 1.0, "delta": 1.0})
    predicted = row_of(PICKED, *sweep(left_out=f"{PICKED}/1"), other).predicted
    assert predicted["eq34_t"].value == pytest.approx((0.3 + 0.1) / 2)
    assert predicted["eq35"].value == pytest.approx((0.15**0.6 * 0.3**0.7 + 0.15 * 0.3) / 2)


def test_eq_35_is_the_paper_s_example_by_its_formula() -> None:
    assert row_of(PICKED, *sweep(k=0.2)).predicted["eq35"].value == pytest.approx(0.164, abs=5e-4)


def test_all_data_is_predicted_by_what_another_run_of_the_block_measured() -> None:
    predicted = row_of("partial k=0.15", *sweep(), *(run("partial k=0.15", 0.78, block) for block in (0, 1))).predicted
    assert predicted["eq34_t"].value == pytest.approx(4 / 10)
    assert predicted["eq34_t_squared"].value == pytest.approx(9 / 20)
    assert predicted["eq35"].value == pytest.approx(0.15**0.6)
    assert row_of("full", *sweep(trained_submodules=["attn.1"])).predicted["eq34_t"].value == pytest.approx(4 / 10)


@pytest.mark.parametrize(("examples", "expected"), [(9, 4 / 10), (11, 1 / 2)])
def test_of_several_measurements_of_a_block_the_widest_holds(examples: int, expected: float) -> None:
    other = {**T, "examples": examples, "sums": {"attn.1": 1.0, "ffn.1": 1.0}}
    records = [run(PICKED, 0.7, q=0.3, t=T), run("partial k=0.1 selection=cross q=0.3", 0.7, q=0.3, t=other)]
    records += [run("full", 0.8), run("partial k=0.15", 0.7)]
    assert row_of("partial k=0.15", *records).predicted["eq34_t"].value == pytest.approx(expected)


def test_a_block_in_which_nobody_measured_t_leaves_the_prediction_out() -> None:
    arm = "partial k=0.15"
    one = [run(PICKED, 0.75, 0, q=0.3, t=T), run(PICKED, 0.8, 1, q=0.3)]
    row = row_of(arm, *references(), *one, run(arm, 0.78), run(arm, 0.8, 1))
    assert set(row.predicted.values()) == {Figure(None, "no run of this block measured T")}
    failed = run(PICKED, 0.8, 1, q=0.3, t=T, status="failed")
    row = row_of(arm, *references(), one[0], failed, run(arm, 0.78), run(arm, 0.8, 1))
    assert row.predicted["eq34_t"].value is None


def test_a_run_that_chose_without_t_has_eq_35_alone() -> None:
    arm = "partial k=0.15 selection=predicted q=0.3"
    predicted = row_of(arm, *sweep(), run(arm, 0.7, q=0.3)).predicted
    assert predicted["eq34_t"] == Figure(None, "no T of what it selected: it chose without measuring T")
    assert predicted["eq35"].value == pytest.approx(0.15**0.6 * 0.3**0.7)


def test_an_exponent_that_fits_poorly_predicts_nothing() -> None:
    for broken, why in (
        ({"gamma_r_squared": 0.854}, "no gamma: R² 0.85 of its fit is below 0.9"),
        ({"delta_r_squared": 0.0}, "no delta: R² 0.00 of its fit is below 0.9"),
        ({"delta": None}, "no fit of delta"),
        ({"gamma_r_squared": None}, "no fit of gamma"),
    ):
        predicted = row_of(PICKED, *sweep(t={**T, **broken})).predicted
        assert predicted["eq35"] == Figure(None, why)
        assert predicted["eq34_t"].value is not None
    assert row_of(PICKED, *sweep(t={**T, "gamma_r_squared": 0.9})).predicted["eq35"].value is not None


def test_one_to_any_power_is_one_so_no_fit_is_needed() -> None:
    arm = "full selection=influence q=0.3"
    without = {**T, "gamma": None, "gamma_r_squared": None}
    predicted = row_of(arm, *references(), run(arm, 0.7, q=0.3, t=without)).predicted
    assert predicted["eq35"].value == pytest.approx(0.3**0.7)
    records = [*sweep(t={**T, "delta": None}), run("partial k=0.15", 0.7)]
    assert row_of("partial k=0.15", *records).predicted["eq35"].value == pytest.approx(0.15**0.6)


def test_eq_35_is_of_the_most_influential_sets_only() -> None:
    examples = Figure(None, "no eq. 35: its examples are not the most influential ones")
    assert row_of(PICKED, *sweep(band="20..80")).predicted["eq35"] == examples
    covering = "partial k=0.15 selection=coreset q=0.2"
    assert row_of(covering, *sweep(), run(covering, 0.7, q=0.2)).predicted["eq35"] == examples
    by_lot = "partial k=0.15 selection=random q=0.2"
    assert row_of(by_lot, *sweep(), run(by_lot, 0.7, q=0.2)).predicted["eq35"] == examples
    submodules = Figure(None, "no eq. 35: its submodules are not the most influential ones")
    last = "last-layers k=0.15"
    row = row_of(last, *sweep(), run(last, 0.7))
    assert row.predicted["eq35"] == submodules
    assert row.predicted["eq34_t"].value == pytest.approx(4 / 10)


@pytest.mark.parametrize("name", ["eq34_t", "eq34_t_squared", "eq35"])
def test_adapters_and_parts_of_submodules_have_no_prediction(name: str) -> None:
    others = [run("lora", 0.7), run("partial k=0.2", 0.7, notes={"adapters": {"query": 8}})]
    others += [run("bitfit", 0.7, notes={"tensors": {"ffn.1": ["bias"]}})]
    adapters, mixed, bitfit = (row_of(r.arm, *sweep(), r).predicted[name].why for r in others)
    assert adapters == mixed == "no prediction for adapters: eq. 34 and 35 are of the model's own parameters"
    assert bitfit == "no prediction for parts of submodules: T is of whole ones"
    whole = run("spectrum", 0.7, notes={"tensors": {"ffn.1": ["weight", "bias"]}, "partly_trained": []})
    assert row_of("spectrum", *sweep(), whole).predicted["eq34_t"].value == pytest.approx(4 / 10)


def test_a_submodule_of_which_t_says_nothing_has_no_eq_34() -> None:
    row = row_of(PICKED, *sweep(trained_submodules=["ffn.1", "embed"]))
    assert row.predicted["eq34_t"] == row.predicted["eq34_t_squared"] == Figure(None, "no T of embed")
    for total, why in ((0.0, "n/e: T is zero"), (2.9, "n/e: T contradicts itself")):  # 3 was selected
        broken = row_of(PICKED, *sweep(t={**T, "sums": {"ffn.1": total}}))
        assert broken.predicted["eq34_t"] == Figure(None, why)


@pytest.mark.parametrize(
    "note",
    [None, 3, [], {"sums": {}}, {**T, "sums": {"ffn.1": -1.0}}, {**T, "sums": "many"}, {**T, "gamma": "steep"}],
    ids=["nothing", "number", "list", "half", "negative", "text", "exponent"],
)
def test_a_note_that_is_not_what_it_should_be_is_not_there(note: Any) -> None:
    notes = {"cross_influence": note} if note is not None else {}
    row = row_of(PICKED, *references(), run(PICKED, 0.75, q=0.3), run("partial k=0.1", 0.7, notes=notes))
    assert set(row.predicted.values()) == {Figure(None, "no run of this block measured T")}


# --- agreement --------------------------------------------------------------------------------------


def swept(finals: Mapping[float, float]) -> list[RunRecord]:
    """Return partial arms on half of the examples, k -> score, whose T predicts k / 2; full gains 0.2 over 0.6."""
    rows = [run("head", 0.6), run("full", 0.8)]
    for k, final in finals.items():
        t = {**T, "sums": {"ffn.1": 1.0}, "selected_sums": {"ffn.1": k / 2}, "selected_squares": {"ffn.1": 0.0}}
        rows.append(run(f"partial k={k} selection=influence q=0.5", final, q=0.5, k=k, t=t))
    return rows


def test_agreement_is_the_rank_correlation_and_the_mean_difference_over_the_rows_that_have_both() -> None:
    # predicted 0.05, 0.10, 0.20; kept 0.10, 0.05, 0.50
    found = table_of(*swept({0.1: 0.62, 0.2: 0.61, 0.4: 0.70})).agreement
    assert found["eq34_t"].rows == 3
    assert found["eq34_t"].spearman.value == pytest.approx(0.5)
    assert found["eq34_t"].mean_difference.value == pytest.approx((0.05 + 0.05 + 0.30) / 3)
    kept = dict(zip((0.1, 0.2, 0.4), (0.10, 0.05, 0.50), strict=True))
    expected = sum(abs(k**0.6 * 0.5**0.7 - m) for k, m in kept.items()) / 3
    assert found["eq35"].mean_difference.value == pytest.approx(expected)
    assert found["eq34_t_squared"].spearman == Figure(None, "no ranks: all are equal")  # all predict nothing
    assert found["eq34_t_squared"].mean_difference.value == pytest.approx(0.65 / 3)


def test_two_rows_show_no_agreement_and_full_is_none_of_them() -> None:
    few = Figure(None, "fewer than 3 rows have both")
    table = table_of(*swept({0.1: 0.62, 0.2: 0.61}))
    assert table.rows[0].predicted["eq35"] == Figure(1.0)
    assert set(table.agreement.values()) == {Agreement(2, few, few)}


# --- which groups have one ------------------------------------------------------------------------


def has_one(*records: RunRecord) -> bool:
    return any(retention(group) is not None for group in compare(records))


def test_a_group_has_a_table_where_data_is_selected_or_k_is_swept() -> None:
    plain = [*references(), run("lora", 0.7), run("partial k=0.15", 0.7)]
    assert not has_one(*plain) and has_one(*plain, run("partial k=0.3", 0.7))
    assert has_one(*plain, run("full selection=influence q=0.3", 0.7))
    assert has_one(*plain, run("random-submodules k=0.15", 0.7, k=None, status="failed"))  # a baseline
    assert not has_one(*plain, run("random-submodules k=0.3", 0.7, k=None, status="failed"))
    assert not has_one(run("partial k=0.15", 0.7, spec={"selection": "external"}))


@pytest.mark.parametrize("end", [{"budget": BudgetSpec(resource="flops", amount=1.0)}, {"stop": StopSpec()}])
def test_what_ends_at_a_budget_or_by_the_stop_rule_is_no_cell(end: dict[str, Any]) -> None:
    ended = [
        r.model_copy(update={"arm": f"{r.arm} ends", "run_id": r.run_id[::-1], "spec": r.spec.model_copy(update=end)})
        for r in [*sweep(), run("partial k=0.3", 0.7)]
    ]
    assert arms_of(*sweep(), *ended) == arms_of(*sweep())
    assert not has_one(*references(), *ended)
    assert table_of(*sweep(), *ended).rows == table_of(*sweep()).rows


@given(st.permutations(range(10)))
def test_the_order_of_records_changes_nothing(order: list[int]) -> None:
    records = sweep()
    assert table_of(*(records[i] for i in order)) == table_of(*records)


def test_models_without_a_new_head_are_measured_against_their_base() -> None:
    causal = {"new_head_parameters": 0, "base": 0.5}
    rows = [run(PICKED, 0.7, q=0.3, **causal), run(AT_Q, 0.6, q=0.3, **causal)]
    row = row_of(PICKED, run("full", 0.9, **causal), *rows)
    assert row.kept.value == pytest.approx(0.5)
    assert row.random["q"].kept.value == pytest.approx(0.25)
