"""Verdicts as text, JSON, JUnit XML, GitHub annotations and a job summary: the same answers, whatever the text."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.judge.verdicts import Verdict
from cprbench.render.verdicts import document, github_annotations, job_summary, junit, summary, text

SUPPORTED = Verdict(
    "partial-beats-full", "supported", 1.423, 1.101, 1.846, "the interval lies above 1.05",
    "Partial beats full per FLOP.", "Proposition 4.1", "multiple_of_full", "> 1 (margin 0.05)",
    "cprbench run k-sweep", True, 0.004, 0.03, 6,
)  # fmt: skip
REFUTED = Verdict(
    "stop-saves", "refuted", 0.05, 0.01, 0.09, "the interval lies below 0.1", threshold=">= 0.1", blocks=6
)
OPEN = Verdict(
    "equal-budget", "open", None, None, None, "2 blocks: fewer than 6 leave a claim open, however clear they look",
    "More epochs in the same budget beat full tuning.", "sections 3 and 5", threshold="> 0",
    command="cprbench run equal-budget --blocks 6 --out 'my runs and more of them' --set training.max_examples=1600",
)  # fmt: skip
ALL = [SUPPORTED, REFUTED, OPEN]
HOSTILE = (
    "</failure><script>x</script> \x1b[31mred\x07 a\u202eb ]]> &amp; | `code` ``` <b>\r\n::error::gone%0A\ud800\ufffe "
    "[link](http://x) ${{ secrets }}"
)
STRANGE = replace(OPEN, id="a,b:c\n::error::x", reason=HOSTILE, text=HOSTILE, source=HOSTILE, threshold=HOSTILE,
                  command=f"cprbench {HOSTILE}")  # fmt: skip
STRANGER = replace(STRANGE, verdict="refuted", value=1.0, low=None, high=2.0)


def unwrapped(shown: str) -> str:
    return " ".join(shown.split())


def test_text_gives_the_word_the_number_its_interval_the_reason_and_a_count_in_80_columns() -> None:
    shown = text([*ALL, STRANGE, STRANGER])
    assert max(map(len, shown.splitlines())) <= 80
    assert "supported  partial-beats-full: 1.42 [1.10, 1.85], wanted > 1 (margin 0.05)" in shown
    assert "refuted    stop-saves: 0.05 [0.01, 0.09], wanted >= 0.1" in shown
    assert "open       equal-budget: not measured, wanted > 0" in shown
    for verdict in ALL:
        assert verdict.reason in unwrapped(shown) and verdict.text in unwrapped(shown)
    assert shown.splitlines()[-1] == "5 checked: 1 supported, 2 refuted, 2 open."


def test_an_open_verdict_names_a_command_that_can_be_pasted() -> None:
    shown = text([replace(verdict, command=OPEN.command) for verdict in ALL])
    assert shown.count("cprbench run equal-budget") == 1
    command = shown[shown.index("cprbench run") : shown.rindex("\n", 0, -1)]
    assert "\\\n" in command
    assert shlex.split(command.replace("\\\n", " ")) == shlex.split(OPEN.command)


def test_half_an_interval_says_on_which_side_it_has_no_end() -> None:
    assert "1.42 [1.10, unbounded]" in text([replace(SUPPORTED, high=None)])
    assert "1.42, wanted" in text([replace(SUPPORTED, low=None, high=None)])


def test_the_document_holds_every_field_of_every_verdict() -> None:
    found = json.loads(json.dumps(document(ALL), allow_nan=False))
    assert list(found) == ["claims"]
    assert [claim["id"] for claim in found["claims"]] == [verdict.id for verdict in ALL]
    assert found["claims"][0] | {"value": 1.423, "low": 1.101, "high": 1.846} == found["claims"][0]
    assert found["claims"][2]["value"] is None and found["claims"][2]["reason"] == OPEN.reason


# --- JUnit ------------------------------------------------------------------------------------------

#: element -> (attributes it must have, those it may have, children); from the schema that Jenkins reads.
SCHEMA = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "disabled", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests"},
        {"failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "classname"},
        {"assertions", "time", "status"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def checked(found: str) -> ElementTree.Element:
    root = ElementTree.fromstring(found.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        must, may, children = SCHEMA[element.tag]
        assert must <= set(element.attrib) <= must | may
        assert {child.tag for child in element} <= children
    return root


def test_junit_has_a_failure_for_refuted_and_skips_what_is_open() -> None:
    root = checked(junit(ALL))
    suite = root[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "0", "skipped": "1"
    }  # fmt: skip
    passed, failed, skipped = suite
    assert [case.get("name") for case in suite] == [verdict.id for verdict in ALL]
    assert [child.tag for child in passed] == ["system-out"]
    failure, skip = failed.find("failure"), skipped.find("skipped")
    assert failure is not None and failure.get("message") == "0.05 [0.01, 0.09], wanted >= 0.1: " + REFUTED.reason
    assert skip is not None and OPEN.reason in str(skip.get("message"))
    assert f"command: {OPEN.command}" in str(skipped.findtext("system-out"))


def test_junit_of_nothing_is_an_empty_suite() -> None:
    assert checked(junit([]))[0].get("tests") == "0"


def test_hostile_text_is_text_in_junit() -> None:
    root = checked(junit([STRANGE, STRANGER]))
    failure = root.find(".//failure")
    assert failure is not None and "</failure><script>x</script> [31mred a b ]]>" in str(failure.get("message"))
    assert len(list(root.iter("testcase"))) == 2 and "\x1b" not in junit([STRANGER])


# --- GitHub -----------------------------------------------------------------------------------------


def unescaped(value: str) -> str:
    for mark, escape in ((",", "%2C"), (":", "%3A"), ("\n", "%0A"), ("\r", "%0D"), ("%", "%25")):
        value = value.replace(escape, mark)
    return value


def annotations(found: str) -> list[tuple[str, str, str]]:
    """Return (level, title, message) as GitHub's runner reads them."""
    rows = [re.fullmatch(r"::(\w+) title=([^:,\r\n]*)::(.*)", line) for line in found.splitlines()]
    assert all(rows), found
    return [(row[1], unescaped(row[2]), unescaped(row[3])) for row in rows if row]


def test_annotations_put_errors_first_and_say_what_and_why() -> None:
    found = annotations(github_annotations(ALL))
    assert [(level, title) for level, title, _ in found] == [
        ("error", "refuted: stop-saves"), ("warning", "open: equal-budget"), ("notice", "supported: partial-beats-full")
    ]  # fmt: skip
    assert f"measured: 0.05 [0.01, 0.09], wanted >= 0.1\nwhy: {REFUTED.reason}" in found[0][2]
    assert f"\ncommand: {OPEN.command}" in found[1][2]


def test_hostile_text_makes_no_annotation_of_its_own() -> None:
    ((level, title, message),) = annotations(github_annotations([STRANGE]))
    assert (level, title) == ("warning", "open: a,b:c ::error::x")
    assert "::error::gone%0A" in message and "${{ secrets }}" in message


def columns(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_the_job_summary_is_a_table_and_the_commands_of_what_is_open() -> None:
    lines = job_summary(ALL).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {len(columns(row)) for row in rows} == {4} and len(rows) == 5
    assert [columns(row)[0].strip() for row in rows[2:]] == ["supported", "refuted", "open"]
    assert "3 checked: 1 supported, 1 refuted, 1 open." in lines
    assert lines[-1] == f"    {OPEN.command}"


def test_hostile_text_stays_in_its_cell() -> None:
    found = job_summary([STRANGE, STRANGER])
    rows = [line for line in found.splitlines() if line.startswith("|")]
    assert {len(columns(row)) for row in rows} == {4} and len(rows) == 4
    table = "\n".join(rows)
    assert not re.search(r"(?<!\\)[`<](?!br>)", table) and not re.search(r"(?<!\\)\[", table)
    (command,) = [line for line in found.splitlines() if "cprbench </" in line]
    assert command.startswith("    cprbench")


@given(st.text(), st.text(), st.sampled_from(["supported", "refuted", "open"]))
def test_any_text_gives_the_same_shapes(word: str, other: str, verdict: str) -> None:
    given_ = replace(SUPPORTED, id=word, reason=other, text=word, command=other, verdict=verdict)  # type: ignore[arg-type]
    assert len(annotations(github_annotations([given_]))) == 1
    assert len(list(checked(junit([given_])).iter("testcase"))) == 1
    assert sum(line.startswith("|") for line in job_summary([given_]).splitlines()) == 3
    assert text([given_]).endswith("\n" + summary([given_]) + "\n")


@pytest.mark.parametrize("form", [text, junit, job_summary])
def test_no_verdicts_is_said_and_never_looks_like_success(form) -> None:  # type: ignore[no-untyped-def]
    assert "Nothing was checked." in form([]) or 'tests="0"' in form([])
    assert github_annotations([]) == ""
