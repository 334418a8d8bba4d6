"""The statistics of runs that claims ask for, against numbers worked out by hand and against real sweeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cprbench.judge.claims import Claim
from cprbench.judge.claims.asking import Ask, UnmeasuredError
from cprbench.judge.claims.measures import MEASURES, is_exact
from cprbench.judge.cpr import compare
from cprbench.judge.evidence import Evidence, gather
from cprbench.judge.retention import retention
from cprbench.judge.scaling import additive_vs_product
from cprbench.judge.statistics import Estimate
from cprbench.spec import RunRecord
from tests.records_factory import make_blocks, make_evidence, make_record, store_run, stored_sweep

PARTIAL = "partial k=0.15"
KS = {"partial k=0.1": 0.1, "partial k=0.3": 0.3, "full": 1.0}


def ask(statistic: str, evidence: Evidence, **claim: Any) -> Estimate:
    given: dict[str, Any] = {"id": "x", "text": "x", "statistic": statistic, "direction": ">", "threshold": 0.0}
    given |= {"arm": PARTIAL} if "arm" in MEASURES[statistic].takes else {}
    (group,) = compare(evidence.records, evidence.predictions)
    return MEASURES[statistic].of(Ask(Claim.model_validate(given | claim), group, evidence))


def why_not(statistic: str, evidence: Evidence, **claim: Any) -> str:
    with pytest.raises(UnmeasuredError) as caught:
        ask(statistic, evidence, **claim)
    return str(caught.value)


def k_sweep(exponents: Sequence[float] = (0.3, 0.4, 0.35), fixed: float = 200.0, **more: Any) -> list[RunRecord]:
    """Return head and three k in as many blocks as exponents: gain 0.2 k^exponent, cost fixed + 800 k."""
    heads = [make_record(arm="head", block=b, final=0.6) for b in range(len(exponents))]
    return heads + [
        make_record(
            arm=arm,
            block=block,
            final=0.6 + 0.2 * k**exponent,
            gamma={"flops": round(fixed + 800 * k), "device_hours": 2.0 - k},
            k_reached=None if arm == "full" else k,
            **more,
        )
        for arm, k in KS.items()
        for block, exponent in enumerate(exponents)
    ]


# --- arms against a reference -----------------------------------------------------------------------


def test_arms_are_compared_with_the_reference_that_the_claim_names() -> None:
    records = make_blocks(
        {"head": [0.6] * 3, "full": [0.8, 0.9, 0.85], "lora": [0.75, 0.8, 0.8], PARTIAL: [0.7, 0.71, 0.72]},
        {"head": [1] * 3, "full": [8] * 3, "lora": [4] * 3, PARTIAL: [2] * 3},
    )
    found = make_evidence(*records)
    assert ask("retained_gain", found).value == pytest.approx(0.33 / 0.75)
    assert ask("retained_gain", found, reference="lora").value == pytest.approx(0.33 / 0.55)
    assert ask("multiple_of_full", found, reference="lora").value == pytest.approx(2 * 0.33 / 0.55)
    assert ask("gain_difference", found, reference="lora").value == pytest.approx(-0.22 / 3)
    cost = ask("cost_ratio", found, reference="lora")
    assert (cost.value, cost.low, cost.high, cost.n) == (0.5, 0.5, 0.5, 3)
    hours = ask("cost_ratio", found, reference="lora", resource="device_hours")
    assert (hours.value, hours.low) == (1.0, None)  # measured: the same in all blocks is no certainty


def test_only_counted_costs_are_exact() -> None:
    assert is_exact("cost_ratio", "flops") and is_exact("cost_ratio", "optimizer_state_bytes")
    assert not is_exact("cost_ratio", "seconds") and not is_exact("multiple_of_full", "flops")


# --- over arms --------------------------------------------------------------------------------------


def test_the_exponent_of_the_gain_is_fitted_in_every_block_and_averaged() -> None:
    found = ask("gain_exponent", make_evidence(*k_sweep()), arms=list(KS))
    assert found.value == pytest.approx(0.35) and found.n == 3
    assert found.low is not None and found.low < 0.3 < 0.4 < (found.high or 0)


def test_shares_may_be_those_of_the_examples() -> None:
    qs = {"full selection=influence q=0.1": 0.1, "full selection=influence q=0.5": 0.5, "full": 1.0}
    records = [make_record(arm="head", final=0.6)] + [
        make_record(
            arm=arm,
            final=0.6 + 0.2 * q**0.4,
            spec={"selection": "all" if arm == "full" else "influence"},
            notes={"selection": {"q_reached": q}},
        )
        for arm, q in qs.items()
    ]
    assert ask("gain_exponent", make_evidence(*records), arms=list(qs), settings={"over": "q"}).value == (
        pytest.approx(0.4)
    )
    untold = [*records[:1], records[1].model_copy(update={"notes": {}}), *records[2:]]
    told = why_not("gain_exponent", make_evidence(*untold), arms=list(qs), settings={"over": "q"})
    assert told == "could not be measured: a run does not tell its share"


def test_a_gain_that_is_not_positive_has_no_exponent() -> None:
    records = [*k_sweep((0.3,))[:-1], make_record(arm="full", final=0.55, gamma={"flops": 1000})]
    found = ask("gain_exponent", make_evidence(*records), arms=list(KS))
    assert found.value is None and "gain_not_positive" in (found.why or "")


def test_arms_of_a_fit_have_the_same_blocks_and_a_gain_and_a_cost_in_each() -> None:
    sweep = k_sweep()
    for arm in ("head", "partial k=0.1", "full"):
        lacking = make_evidence(*(r for r in sweep if (r.arm, r.block) != (arm, 2)))
        assert f"arm {arm!r} lacks block 2" in why_not("gain_exponent", lacking, arms=list(KS))
    assert why_not("cost_line_r_squared", make_evidence(*sweep), arms=list(KS), resource="energy_kwh") == (
        "could not be measured: energy_kwh was not measured"
    )
    failed = [r if r.block or r.arm != "full" else make_record(arm="full", status="failed") for r in sweep]
    assert "'full' failed in block 0" in why_not("cost_line_r_squared", make_evidence(*failed), arms=list(KS))


def test_a_cost_that_is_a_line_in_k_has_r_squared_1_and_one_that_is_not_has_less() -> None:
    assert ask("cost_line_r_squared", make_evidence(*k_sweep()), arms=list(KS)).value == pytest.approx(1)
    bent = [
        r.model_copy(update={"gamma": r.gamma.model_copy(update={"flops": 900})}) if r.k_reached == 0.3 else r
        for r in k_sweep()
    ]
    assert (ask("cost_line_r_squared", make_evidence(*bent), arms=list(KS)).value or 1) < 0.7
    assert "no line through these arms" in why_not(
        "cost_line_r_squared", make_evidence(*k_sweep()), arms=["partial k=0.1", "full"]
    )


def test_the_distance_from_k_star_to_the_best_k_is_in_doublings() -> None:
    found = ask("best_share_distance", make_evidence(*k_sweep((0.5, 0.5, 0.5))), arms=list(KS))
    k_star = 0.5 * 200 / (800 * 0.5)
    rates = {k: k**0.5 / (200 + 800 * k) for k in KS.values()}
    assert found.value == pytest.approx(abs(math.log2(k_star / max(rates, key=lambda k: rates[k]))), abs=1e-3)
    fails = ask("best_share_distance", make_evidence(*k_sweep((0.9, 0.9, 0.9))), arms=list(KS))
    assert fails.value == 0  # eq. 16 fails, so k = 1 is predicted, and it is the best


def test_where_eq_15_does_not_apply_no_k_star_is_made_up() -> None:
    falling = make_evidence(*k_sweep((-0.2, -0.2, -0.2)))
    assert "no k* in some block" in why_not("best_share_distance", falling, arms=list(KS))
    cheaper = make_evidence(*k_sweep())
    assert "no k* in some block" in why_not("best_share_distance", cheaper, arms=list(KS), resource="device_hours")
    free = make_evidence(*k_sweep(optimizer_state_bytes=0))
    assert "no k* in some block" in why_not(
        "best_share_distance", free, arms=list(KS), resource="optimizer_state_bytes"
    )


def cells(cost: Any, blocks: int = 1) -> dict[str, RunRecord]:
    shares = [(k, q) for k in (0.05, 0.2, 1.0) for q in (0.1, 0.3, 1.0)]
    return {
        f"k={k} q={q} {block}": make_record(
            arm=f"k={k} q={q}",
            block=block,
            k_reached=k,
            spec={"selection": "influence"},
            notes={"selection": {"q_reached": q}},
            gamma={"flops": round(cost(k, q))},
        )
        for k, q in shares
        for block in range(blocks)
    }


def test_a_cost_model_is_judged_by_the_cells_that_it_did_not_see() -> None:
    records = cells(lambda k, q: 1e9 * (0.3 + 0.4 * k + 0.6 * q), blocks=3)
    arms = sorted({r.arm for r in records.values()})
    found = make_evidence(*records.values())
    additive = ask("cost_model_error", found, arms=arms, settings={"model": "additive"})
    product = ask("cost_model_error", found, arms=arms, settings={"model": "product"})
    assert additive.value == pytest.approx(0, abs=1e-6) and additive.n == 3
    known = {(k, q): round(1e9 * (0.3 + 0.4 * k + 0.6 * q)) for k in (0.05, 0.2, 1.0) for q in (0.1, 0.3, 1.0)}
    assert product.value == pytest.approx(additive_vs_product(known).product) and (product.value or 0) > 0.3
    lacking = make_evidence(*[r for r in records.values() if (r.arm, r.block) != (arms[0], 2)])
    assert "lacks block 2" in why_not("cost_model_error", lacking, arms=arms)
    untold = [r.model_copy(update={"notes": {}}) if r.block == 2 else r for r in records.values()]
    assert "no share or no cost in block 2" in why_not("cost_model_error", make_evidence(*untold), arms=arms)
    assert "fewer than five cells" in why_not("cost_model_error", found, arms=arms[:4])


def test_the_error_of_a_prediction_is_that_of_the_retention_table_block_by_block() -> None:
    records = stored_sweep("k-by-q")
    (group,) = compare(records)
    table = retention(group)
    assert table is not None
    for name in ("eq34_t", "eq35"):
        cells = [row.arm for row in table.rows if row.arm != "full" and row.predicted[name].value is not None]
        asked: dict[str, Any] = {"arms": cells, "settings": {"prediction": name}}
        found = ask("prediction_error", make_evidence(*records), **asked)
        assert found.value == pytest.approx(table.agreement[name].mean_difference.value)
        assert found.n == 1
        again = next(r for r in records if r.arm == "full").model_copy(update={"run_id": "f" * 16})
        assert "'full' has block 0 twice" in why_not("prediction_error", make_evidence(*records, again), **asked)


def test_a_cell_without_a_prediction_is_named_and_never_left_out() -> None:
    records = stored_sweep("k-by-q")
    cells = [r.arm for r in records if r.arm not in ("head", "full") and "random" not in r.arm]
    named = next(arm for arm in cells if arm.startswith("partial"))
    blind = [r.model_copy(update={"notes": {}}) if r.arm == named else r for r in records]
    told = why_not("prediction_error", make_evidence(*blind), arms=cells, settings={"prediction": "eq34_t"})
    assert told.startswith(f"could not be measured: {named!r} in block 0: ")
    assert "arm 'lora' has no run here" in why_not("prediction_error", make_evidence(*records), arms=[*cells, "lora"])
    assert "'head' in block 0: no cell" in why_not("prediction_error", make_evidence(*records), arms=["head"])


def test_real_sweeps_answer_the_statistics_of_their_kind() -> None:
    k, q = (make_evidence(*stored_sweep(name)) for name in ("k-sweep", "q-sweep"))
    arms = [*(f"partial k={share}" for share in (0.05, 0.1, 0.15, 0.3)), "full"]
    assert 0 < (ask("cost_line_r_squared", k, arms=arms).value or 0) < 1
    assert ask("gain_exponent", k, arms=arms[2:]).n == 1
    for statistic in ("retained_gain", "multiple_of_full"):
        assert (ask(statistic, k).value or 0) > 0
    # These runs were made before records kept the singular values of T.
    assert "keeps no singular values" in why_not("rank_share", k, arm="full selection=influence q=1")
    kept = ask("retained_gain", q, arm="full selection=influence q=0.3")
    assert kept.value is not None and kept.n == 1


# --- inside a run -----------------------------------------------------------------------------------


def history(psis: Mapping[int, Any]) -> str:
    return "".join(json.dumps({"step": step, "validation": {"accuracy": psi}}) + "\n" for step, psi in psis.items())


def stored(folder: Path, *files: str) -> Evidence:
    for block, text in enumerate(files):
        store_run(folder, make_record(block=block), history=text)
    return gather(folder)


def test_the_last_share_of_the_gain_is_what_the_last_steps_made(tmp_path: Path) -> None:
    curve = history({0: 0.5, 50: 0.7, 80: 0.74, 90: 0.75, 100: 0.76})
    empty = '{"step": 10, "loss": 0.3}\n{"step": 20, "validation": null}\n'
    found = stored(tmp_path, curve, empty + curve)
    assert ask("last_share_of_gain", found, settings={"last": 0.15}).value == pytest.approx(0.02 / 0.26)
    assert ask("last_share_of_gain", found, settings={"last": 0.3}).value == pytest.approx(0.06 / 0.26)
    assert "too few validations" in why_not("last_share_of_gain", found, settings={"last": 0.6})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "too few validations"),
        ("not json\n", "too few validations"),
        ('{"validation": "accuracy"}\n' * 3, "too few validations"),
        ('{"step": "x", "validation": {"accuracy": []}}\n' * 3, "too few validations"),
        (history({0: 0.5, 50: 10**400, 100: 0.7}), "too few validations"),
        (history({0: 0.7, 50: 0.6, 80: 0.6, 100: 0.5}), "validation did not improve"),
        (history({0: 0.7, 50: math.nan, 80: math.nan, 100: math.inf}), "validation did not improve"),
    ],
)
def test_a_history_that_tells_no_curve_is_a_reason(tmp_path: Path, text: str, why: str) -> None:
    assert why in why_not("last_share_of_gain", stored(tmp_path, text))


def test_the_stability_of_ranks_is_the_least_of_a_run_averaged_over_blocks() -> None:
    whole = {"0.50-0.80": 0.9, "0.50-1.00": 0.8, "0.80-1.00": 0.95}
    notes = [{"blueprint_ranks": whole | {"0.80-1.00": low}} for low in (0.7, 0.6)]
    records = [make_record(block=b, notes=note) for b, note in enumerate(notes)]
    assert ask("rank_stability", make_evidence(*records)).value == pytest.approx(0.65)
    for broken in ({}, [0.9], {"0.50-1.00": 0.8}, *({n: r for n, r in whole.items() if n != gone} for gone in whole),
                   whole | {"0.50-0.80": None}, whole | {"0.50-0.80": "0.9"}):  # fmt: skip
        told = why_not("rank_stability", make_evidence(make_record(notes={"blueprint_ranks": broken})))
        assert "no ranks of blueprints at 50, 80 and 100 %" in told
    more = whole | {"0.20-0.50": 0.1}  # of other checkpoints, which the claim is not about
    assert ask("rank_stability", make_evidence(make_record(notes={"blueprint_ranks": more}))).value == 0.8


def test_the_share_of_a_rank_is_the_least_that_holds_the_mass() -> None:
    def told(singular: Any) -> Evidence:
        return make_evidence(make_record(notes={"cross_influence": {"singular_values": singular}}))

    assert ask("rank_share", told([3.0, 1.0, 0.0, 0.0]), settings={"mass": 0.9}).value == 0.25  # 9 of 10
    assert ask("rank_share", told([0.0, 1.0, 3.0, 0.0]), settings={"mass": 0.91}).value == 0.5
    assert ask("rank_share", told([1e200, 1e200, 1e150]), settings={"mass": 0.9}).value == pytest.approx(2 / 3)
    for broken in ([], [0.0], None, "123", ["x"], [None], [[1.0]]):
        assert "keeps no singular values" in why_not("rank_share", told(broken))
