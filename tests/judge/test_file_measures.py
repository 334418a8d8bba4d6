"""Statistics of files about models: one model is one observation, however many files it has."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.blueprint.schema import Blueprint
from cprbench.judge.claims import Claim, check
from cprbench.judge.claims.asking import Ask, UnmeasuredError
from cprbench.judge.claims.measures import MEASURES
from cprbench.judge.evidence import Evidence
from cprbench.judge.statistics import Estimate
from cprbench.schema import parse
from tests.blueprint.example import full_blueprint, full_data, paper_example

#: Of six layers, attn.2 and attn.3 and the last two ffn are in the middle and last third.
SIZES = {"embed": 400, **{f"{kind}.{i}": 50 for i in range(6) for kind in ("attn", "ffn")}}
NORMS = {"embed": 1.0, **{f"{kind}.{i}": 1.0 for i in range(6) for kind in ("attn", "ffn")}}


def ask(statistic: str, evidence: Evidence, **settings: Any) -> Estimate:
    claim = Claim.model_validate(
        {"id": "x", "text": "x", "statistic": statistic, "direction": ">", "threshold": 0.0, "settings": settings}
    )
    return MEASURES[statistic].of(Ask(claim, None, evidence))


def blueprints(*found: Blueprint) -> Evidence:
    return Evidence(blueprints={f"{i}.json": blueprint for i, blueprint in enumerate(found)})


def documents(*found: dict[str, Any]) -> Evidence:
    return Evidence(documents={f"{i}.json": document for i, document in enumerate(found)})


def weights(i: int) -> str:
    return f"{i:064x}"


def with_curve(i: int, mass: float) -> Blueprint:
    data = full_data(weights_sha256=weights(i))
    data["concentration"]["scalar_mass_curve"] = [[0.0, 0.0], [0.2, mass], [1.0, 1.0]]
    return parse(Blueprint, data, "a test")


def test_the_top_mass_is_read_off_the_curve_of_scalars_and_averaged_over_models() -> None:
    found = ask("top_mass", blueprints(*(with_curve(i, mass) for i, mass in enumerate((0.6, 0.8, 1.0)))), share=0.1)
    assert found.value == pytest.approx(0.4) and found.n == 3 and found.low is not None


def test_several_files_of_one_model_are_one_observation() -> None:
    found = ask("top_mass", blueprints(with_curve(1, 0.6), with_curve(1, 1.0), with_curve(2, 0.4)), share=0.2)
    assert (found.value, found.n) == (pytest.approx(0.6), 2)
    assert found.low is None


def test_a_file_that_cannot_tell_is_named_and_never_left_out_and_no_file_is_a_reason() -> None:
    paper = parse(Blueprint, paper_example(), "the paper")
    for statistic, what in (
        ("top_mass", "curve of scalar mass"),
        ("power_law_share", "fit of its tails"),
        ("influence_share", "size of its submodules"),
    ):
        with pytest.raises(UnmeasuredError, match=f"could not be measured: 1.json has no {what}.* leave nothing out"):
            ask(statistic, blueprints(with_curve(1, 0.6), paper))
    for statistic, what in (
        ("top_mass", "curve of scalar mass"),
        ("domain_lean", "share of late feed-forward cells in domains math and general"),
        ("fisher_rank_correlation", "rank correlation with Fisher influence"),
        ("power_law_of_examples", "fit of J's tail"),
    ):
        with pytest.raises(UnmeasuredError, match=f"there is no file with {what} here"):
            ask(statistic, Evidence())


#: verdict, likelihood ratio against lognormal and its p: a power law, and all that is none or not decided
TAILS = [
    ("heavy-tailed", 2.0, 0.05),
    ("heavy-tailed", -1.0, 0.05),
    ("heavy-tailed", 2.0, 0.1),
    ("undecided", 3.0, 0.05),
    ("heavy-tailed", None, None),
]


def tail(verdict: str, ratio: float | None, p: float | None) -> dict[str, Any]:
    changed = {"verdict": verdict, "lognormal_likelihood_ratio": ratio, "lognormal_p": p}
    return {**full_data()["layers"][0]["fit"], **changed}


def test_submodules_follow_a_power_law_where_it_is_decided_against_lognormal_and_else_they_do_not() -> None:
    data = full_data()
    for layer, told in zip(data["layers"], TAILS, strict=True):
        layer["fit"] = tail(*told)
    assert ask("power_law_share", blueprints(parse(Blueprint, data, "a test"))).value == 0.2


def test_the_influence_of_middle_attention_is_that_of_the_densest_cells_that_fit() -> None:
    norms = NORMS | {"attn.2": 3.0, "attn.3": 4.0, "attn.0": 9.0}
    total = sum(norm**2 for norm in norms.values())
    blueprint = full_blueprint(norms, sizes=SIZES)  # a cell is 5 % of 1000 parameters
    assert ask("influence_share", blueprints(blueprint), share=0.13).value == pytest.approx((9 + 16) / total)
    assert ask("influence_share", blueprints(blueprint), share=0.09).value == pytest.approx(16 / total)
    with pytest.raises(UnmeasuredError, match="0.json has no size of its submodules with a middle"):
        ask("influence_share", blueprints(blueprint), share=0.04)


def test_the_lean_of_a_domain_is_the_ratio_of_its_shares_in_the_last_third_of_feed_forward() -> None:
    norms = {name: norm * (3.0 if name in ("ffn.4", "ffn.5") else 1.0) for name, norm in NORMS.items()}
    data = full_data(norms, sizes=SIZES, domains=("math", "general"))
    for layer in data["layers"]:
        layer["domains"]["general"]["gradient_norm"] = 1.0
        layer["domains"]["general"]["gradient_norm_ci"] = None
    evidence = blueprints(parse(Blueprint, data, "a test"))
    lean = (18 / 29) / (2 / 13)
    assert ask("domain_lean", evidence).value == pytest.approx(lean)
    turned = ask("domain_lean", evidence, domain="general", reference_domain="math")
    assert turned.value == pytest.approx(1 / lean)
    with pytest.raises(UnmeasuredError, match="there is no file with .* domains law and general"):
        ask("domain_lean", evidence, domain="law")
    other = full_data(norms, sizes=SIZES, domains=("code", "general"), weights_sha256=weights(2))
    assert ask("domain_lean", blueprints(parse(Blueprint, data, "a test"), parse(Blueprint, other, "a test"))).n == 1
    for layer in data["layers"]:
        layer["domains"]["math"]["gradient_norm"] = 0.0
        layer["domains"]["math"]["gradient_norm_ci"] = None
    with pytest.raises(UnmeasuredError, match="0.json has no share"):
        ask("domain_lean", blueprints(parse(Blueprint, data, "a test")))


def test_audits_and_cross_influence_tell_of_the_model_that_they_name() -> None:
    audits = [
        {"schema": "cprbench.audit/1", "model": model, "spearman": value}
        for model, value in (("a", 0.9), ("a", 0.7), ("b", 0.6))
    ]
    found = ask("fisher_rank_correlation", documents(*audits, {"schema": "cprbench.cross/1", "spearman": 0.1}))
    assert (found.value, found.n) == (pytest.approx(0.7), 2)
    for broken in (None, 10**400, "0.9", float("nan")):
        with pytest.raises(UnmeasuredError, match=r"3\.json has no rank correlation"):
            ask("fisher_rank_correlation", documents(*audits, {"schema": "cprbench.audit/1", "spearman": broken}))
    crosses = [
        {"schema": "cprbench.cross/1", "info": {"model": model}, "tail_of_j": tail(*told)}
        for model, told in zip("abcde", TAILS, strict=True)
    ]
    found = ask("power_law_of_examples", documents(*crosses))
    assert (found.value, found.n) == (0.2, 5)
    for broken in ({}, {"info": 3}, {"tail_of_j": {"verdict": "heavy-tailed"}}):
        with pytest.raises(UnmeasuredError, match=r"5\.json has no fit of J's tail"):
            ask("power_law_of_examples", documents(*crosses, {"schema": "cprbench.cross/1", **broken}))


def test_six_models_of_one_mind_decide_where_the_answer_is_yes_or_no() -> None:
    claim = Claim.model_validate(
        {"id": "x", "text": "x", "statistic": "power_law_of_examples", "direction": ">", "threshold": 0.5}
    )
    for told, word in ((TAILS[0], "supported"), (TAILS[1], "refuted")):
        crosses = [
            {"schema": "cprbench.cross/1", "info": {"model": str(i)}, "tail_of_j": tail(*told)} for i in range(6)
        ]
        assert check([claim], documents(*crosses))[0].verdict == word
        assert check([claim], documents(*crosses[:5]))[0].verdict == "open"


def test_fewer_than_six_models_never_decide() -> None:
    claim = Claim.model_validate(
        {"id": "x", "text": "x", "statistic": "top_mass", "direction": ">", "threshold": 0.1, "settings": {}}
    )
    masses = (0.6, 0.7, 0.65, 0.62, 0.71, 0.66)
    for models, word, reason in ((1, "open", "1 model,"), (5, "open", "5 models: a verdict"), (6, "supported", "p ")):
        (verdict,) = check([claim], blueprints(*(with_curve(i, masses[i]) for i in range(models))))
        assert verdict.verdict == word and reason in verdict.reason
