"""Files of claims: a user's own, wrong ones, and the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cprbench.errors import SpecError
from cprbench.judge.claims import check, load_claims
from cprbench.runs.arms import arms_of
from cprbench.tasks import load_suite
from tests.conftest import ROOT
from tests.judge.claims_factory import claim, runs
from tests.records_factory import make_evidence, stored_sweep

AGAINST = ("retained_gain", "multiple_of_full", "gain_difference", "cost_ratio")

MINE = """
[[claim]]
id = "keeps-95-percent"
text = "Our method keeps 95 % of full tuning's gain."
primary = true
statistic = "retained_gain"
arm = "partial k=0.15"
direction = ">="
threshold = 0.9

[[claim]]
id = "at-half-the-flops"
text = "It does so at half of the FLOPs."
statistic = "cost_ratio"
arm = "partial k=0.15"
resource = "flops"
direction = "<="
threshold = 0.55
"""


@pytest.mark.usefixtures("items_without_error")
def test_a_user_writes_two_claims_and_gets_two_verdicts(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    kept, cost = check(load_claims(str(tmp_path / "mine.toml")), make_evidence(*runs()))
    assert (kept.id, kept.verdict, kept.primary) == ("keeps-95-percent", "supported", True)
    assert (cost.id, cost.verdict, cost.command) == ("at-half-the-flops", "supported", "")


@pytest.mark.parametrize(
    ("old", "new", "key", "hint"),
    [
        ('resource = "flops"', 'resource = "flop"', "unknown resource 'flop'", "flops"),
        ('resource = "flops"', 'ressource = "flops"', "unknown key 'claim.1.ressource'", "resource"),
        ('"cost_ratio"', '"cost_ration"', "unknown statistic 'cost_ration'", "cost_ratio"),
        ('resource = "flops"', "settings = { share = 0.1 }", "unknown setting 'share'", "takes none"),
        ("threshold = 0.55", "threshold = nan", "claim.1.threshold", "finite"),
        ("threshold = 0.55", "threshold = true", "claim.1.threshold", "number"),
        ("threshold = 0.55", 'threshold = "0.9"', "claim.1.threshold", "number"),
        ("threshold = 0.55", "threshold = 0.55\nmargin = true", "claim.1.margin", "number"),
        ("threshold = 0.55", "threshold = [0.1, inf]", "claim.1.threshold", "finite"),
        ("threshold = 0.55", "threshold = [0.1, 0.2]", "direction inside takes two", "one number"),
        ('"<="\nthreshold = 0.55', '"inside"\nthreshold = [0.2, 0.1]', "threshold [0.2, 0.1]", "smaller"),
        ('"<="\nthreshold = 0.55', '"inside"\nthreshold = [0.1, 0.2]\nmargin = 0.1', "has no margin", "threshold"),
        ("threshold = 0.55", "threshold = 0.55\nmargin = -0.1", "claim.1.margin", "greater than or equal to 0"),
        ("threshold = 0.55", "threshold = 0.55\nmargin = inf", "claim.1.margin", "finite"),
        ("threshold = 0.55", "", "claim.1.threshold is missing", "Add it"),
        ('"<="', '"=<"', "claim.1.direction", "'<='"),
        ('id = "at-half-the-flops"', 'id = "keeps-95-percent"', "'keeps-95-percent'", "id of its own"),
        ('id = "at-half-the-flops"', 'id = "At half"', "claim.1.id", "pattern"),
        ('statistic = "cost_ratio"\narm = "partial k=0.15"', 'statistic = "cost_ratio"', "needs arm", "cost_ratio"),
        ('"cost_ratio"\narm =', '"gain_exponent"\narm =', "needs arms", "gain_exponent"),
        ('"cost_ratio"', '"cost_ratio"\narms = ["full"]', "takes no arms", "cost_ratio"),
        ('"cost_ratio"\narm =', '"rank_share"\narm =', "takes no resource", "rank_share"),
        ('"cost_ratio"\narm = "partial k=0.15"', '"top_mass"\nreference = "lora"', "takes no reference", "top_mass"),
        ('"cost_ratio"\narm =', '"top_mass"\narm =', "takes no arm", "top_mass"),
        ("[[claim]]", "[[claims]]", "unknown key 'claims'", "claim"),
        ("[[claim]]", "[[claim", "not valid TOML", "line"),
    ],
)
def test_a_wrong_file_of_claims_is_refused_with_the_key_and_a_hint(
    tmp_path: Path, old: str, new: str, key: str, hint: str
) -> None:
    head, middle, tail = MINE.rpartition("[[claim]]")
    changed = (middle + tail).replace(old, new)
    assert changed != middle + tail
    path = tmp_path / "mine.toml"
    path.write_text(head + changed)
    with pytest.raises(SpecError) as caught:
        load_claims(str(path))
    assert str(path) in str(caught.value)
    assert key in str(caught.value) and hint in str(caught.value), caught.value


def test_settings_of_a_statistic_are_checked_by_their_kind() -> None:
    for settings, words in (
        ({"share": 1.5}, "a share between 0 and 1"),
        ({"share": float("nan")}, "finite|a share"),
        ({"share": "0.1"}, "a share between 0 and 1"),
        ({"shares": 0.1}, "unknown setting 'shares'.*share"),
    ):
        with pytest.raises(ValueError, match=words):
            claim("top_mass", arm=None, settings=settings)
    with pytest.raises(ValueError, match="additive or product"):
        claim("cost_model_error", "<=", 0.1, arms=["full"], settings={"model": "sum"})


def test_a_name_of_claims_that_is_not_known_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown claims 'papers'.*paper"):
        load_claims("papers")
    with pytest.raises(SpecError, match="cannot be read"):
        load_claims(str(tmp_path / "none.toml"))


# --- the paper's claims -----------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", ["", "k-sweep", "q-sweep", "k-by-q"])
@pytest.mark.parametrize("named", [True, False], ids=["as written", "of no suite"])
def test_every_claim_of_the_paper_has_a_verdict_a_reason_and_a_command(sweep: str, named: bool) -> None:
    claims = load_claims("paper")
    asked = claims if named else [c.model_copy(update={"suite": None}) for c in claims]
    verdicts = check(asked, make_evidence(*(stored_sweep(sweep) if sweep else [])))
    assert [v.id for v in verdicts] == [c.id for c in claims]
    assert {v.verdict for v in verdicts} == {"open"}  # one block never decides
    assert all(v.reason for v in verdicts)
    assert all(c.evidence_command.startswith("cprbench ") for c in claims)
    if sweep and not named:
        assert sum(v.value is not None for v in verdicts) >= 3


def test_a_claim_of_the_paper_stands_for_a_suite_that_is_here_or_brings_its_command() -> None:
    suites = {path.stem for path in (ROOT / "tasks/suites").glob("*.toml")}
    for one in load_claims("paper"):
        assert one.text and one.source
        assert one.suite in suites or one.command, one.id


def test_the_arms_of_the_papers_claims_are_arms_of_their_suites() -> None:
    suites = {path.stem for path in (ROOT / "tasks/suites").glob("*.toml")}
    for one in load_claims("paper"):
        if one.suite in suites:
            arms = {arm.label for arm in arms_of(load_suite(one.suite).arm)}
            needed = set(one.arms) or {one.arm, one.reference if one.statistic in AGAINST else one.arm} - {None}
            assert needed <= arms, one.id
