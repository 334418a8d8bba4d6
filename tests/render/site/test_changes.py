"""The comment on a pull request: what is new, what moves, what was there before, and strangers' words made harmless."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from markdown_it import MarkdownIt

from cprbench.judge.submission import Entry, Row
from cprbench.render.site.changes import MOST_LETTERS, changes, markdown
from tests.render.site.entries import digest, make_entry, make_finding, make_row, make_run, many

LOW, HIGH = make_row(0.8, 1e12, arm="lora"), make_row(0.9, 2e12, arm="full")


def text(before: Sequence[Entry], after: Sequence[Entry]) -> str:
    return markdown(changes(before, after))


def altered(entry: Entry, **fields: object) -> Entry:
    """Return an entry of other bytes."""
    return entry.model_copy(update={"digest": digest(entry.digest, fields)} | fields)


def test_nothing_changes_where_nothing_did_whatever_the_order() -> None:
    entries = many(60)
    found = changes(entries, entries[::-1])
    assert found.submissions == found.added == found.removed == found.moved == found.rescored == found.copied == []
    assert "No submission is new, changed or removed." in markdown(found)


def test_submissions_are_new_changed_or_removed_with_their_rows() -> None:
    base = [make_entry("kept", [LOW]), make_entry("gone", [HIGH]), make_entry("grown", [LOW])]
    more = make_row(0.85, 9e11, arm="partial k=0.15")
    head = [base[0], altered(base[2], rows=[LOW, more]), make_entry("born", [HIGH])]
    found = changes(base, head)
    assert [(changed.submission, changed.how) for changed in found.submissions] == [
        ("born", "new"),
        ("gone", "removed"),
        ("grown", "changed"),
    ]
    assert [row.split(" · ")[:2] for row in found.added] == [["born", "full"], ["grown", "partial k=0.15"]]
    assert [row.split(" · ")[:2] for row in found.removed] == [["gone", "full"]]
    told = markdown(found)
    assert "Submissions: 1 new, 1 changed, 1 removed." in told
    assert "- **grown**: changed, consistent; 2 rows, 2 of them rank" in told
    assert not found.refused


@pytest.mark.parametrize(
    ("status", "refused"), [("invalid", True), ("contradicted", True), ("unverified", False), ("consistent", False)]
)
def test_what_its_own_files_contradict_is_refused_with_the_finding_and_its_cure(status: str, refused: bool) -> None:
    entry = make_entry("bad", [], status=status, findings=[make_finding()])
    found = changes([], [entry])
    assert found.refused == (["bad"] if refused else [])
    assert ("**1 refused.**" in markdown(found)) is refused
    assert "P2 wrong: runs/00ff/predictions.jsonl: accuracy is 0.91, the predictions give 0.87. Submit" in markdown(
        found
    )
    assert not changes([entry], [entry]).refused  # nobody's change
    assert not changes([entry], []).refused


def test_two_folders_of_the_same_bytes_without_a_name_are_two() -> None:
    entries = [make_entry("same", [], folder=folder, status="invalid") for folder in ("A", "B")]
    assert len(changes([], entries).refused) == 2


def test_a_row_that_came_onto_the_front_and_those_it_pushed_are_told() -> None:
    base = [make_entry("first", [LOW, HIGH])]
    found = changes(base, [*base, make_entry("better", [make_row(0.95, 5e11, arm="partial k=0.15")])])
    assert [(m.row.split(" · ")[1], m.before.position, m.after.position) for m in found.moved] == [
        ("full", 1, 2),
        ("lora", 2, 3),
    ]
    assert markdown(found).count("no longer on the front") == 2


def test_a_tier_that_others_gave_is_told() -> None:
    base = [make_entry("first", [LOW])]
    after = [make_entry("first", [LOW.model_copy(update={"tier": "reproduced"})])]
    assert "consistent to reproduced" in text(base, after)


def test_a_score_that_moved_by_more_than_a_point_is_told_and_a_smaller_move_is_not() -> None:
    def with_score(psi: float) -> Row:
        return LOW.model_copy(update={"psi": LOW.psi.model_copy(update={"value": psi})})

    base = [make_entry("first", [LOW])]
    assert "0.800 to 0.830" in text(base, [altered(base[0], rows=[with_score(0.83)])])
    assert not changes(base, [altered(base[0], rows=[with_score(0.809)])]).rescored


def test_a_block_more_leaves_a_row_the_row_that_it_was() -> None:
    base = [make_entry("first", [LOW])]
    grown = LOW.model_copy(update={"id": "0" * 12, "blocks": [0, 1, 2, 3], "runs": [*LOW.runs, make_run(3)]})
    found = changes(base, [altered(base[0], rows=[grown])])
    assert found.added == found.removed == []


def test_runs_that_another_submission_holds_already_are_told_on_the_newer_side() -> None:
    row = make_row(runs=[make_run(0, run_id="a" * 16, trace_sha256="c" * 64)])
    base = [make_entry("first", [row])]
    found = changes(base, [*base, make_entry("copy", [row])])
    assert [(c.submission, c.run_id, c.holders) for c in found.copied] == [("copy", "a" * 16, ["first"])]
    assert f"- copy: {'a' * 16} has the raw samples of first" in markdown(found)
    two = make_entry("twice", [row, make_row(arm="full", runs=row.runs)])
    assert not changes([], [two]).copied  # its own
    assert not changes([], [make_entry("a", [LOW]), make_entry("b", [LOW])]).copied  # no samples, nothing known


def test_two_rows_that_say_the_same_of_themselves_are_two() -> None:
    twins = [LOW, LOW.model_copy(update={"id": "1" * 12})]
    assert len(changes([], [make_entry("twins", twins)]).added) == 2


def test_the_words_of_strangers_stay_words() -> None:
    evil = "@everyone <script>alert(1)</script> [x](https://evil.example) ![i](x) | # `code`\n\n# big\x1b[2J\u202e"
    row = make_row(arm=evil, model=evil, hardware_class=evil)
    finding = make_finding(message=evil, file=evil, cure=evil)
    entry = make_entry("evil", [row], folder=evil, status="contradicted", findings=[finding])
    told = text([], [entry])
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(told)
    assert {tag for tag in re.findall(r"</?([a-z0-9]+)", page)} == {"h2", "h3", "p", "ul", "li", "strong"}
    assert "&lt;script&gt;alert(1)" in page
    for mark in ("@everyone", "https://", "\x1b", "\u202e", "\n# big"):
        assert mark not in told


def test_a_comment_is_cut_between_lines_before_github_refuses_it() -> None:
    long = "&" * 5000
    entries = [
        make_entry(f"n{i}", [make_row(arm=f"lora {i} {'&' * 150}")], findings=[make_finding(message=long)] * 20)
        for i in range(300)
    ]
    found = changes([], entries)
    told = markdown(found)
    assert 20_000 < len(told) <= MOST_LETTERS
    assert told.endswith("The rest did not fit this comment.\n") or "and " in told
    assert "and 12 findings more" in told
    assert len(found.added) == 300 and told.count("- n29") < 20


def test_the_same_entries_give_the_same_comment_and_json() -> None:
    base, head = many(80), many(90, seed=1)
    assert text(base, head) == text(base[::-1], head[::-1])
    document = json.loads(json.dumps(changes(base, head).document()))
    assert document["submissions"][0]["how"] == "changed" or document["added"]
