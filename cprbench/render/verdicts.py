"""The answers of a check: for a terminal, a program, a test runner and a pull request.

Statements, reasons and commands may come from a stranger's claims file: every form writes them as text, nothing else.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from cprbench.judge.groups import Figure
from cprbench.judge.verdicts import Verdict
from cprbench.render.numbers import number
from cprbench.render.text import escape

_WIDTH = 80
_INDENT = " " * 11
#: What a shell takes as one word: a line is broken between these only.
_WORD = re.compile(r"""(?:\\.|[^\s"'\\]|"[^"]*"|'[^']*'|["'\\])+""")
_LEVEL = {"supported": "notice", "refuted": "error", "open": "warning"}


def text(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts for a terminal of 80 columns, and their count in the last line."""
    lines = []
    for verdict in verdicts:
        head = f"{verdict.verdict:<10} {clean(verdict.id)}: {answer_of(verdict)}"
        lines += textwrap.wrap(head, _WIDTH, subsequent_indent=_INDENT)
        for part in (verdict.text, verdict.reason):
            lines += textwrap.wrap(clean(part), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
        if verdict.verdict == "open" and verdict.command:
            lines += _command(verdict.command)
    return "\n".join([*lines, summary(verdicts)]) + "\n"


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return in a sentence how many verdicts there are of each kind."""
    words: list[str] = [verdict.verdict for verdict in verdicts]
    kinds = ", ".join(f"{words.count(kind)} {kind}" for kind in _LEVEL)
    return f"{len(words)} checked: {kinds}." if words else "Nothing was checked."


def document(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the verdicts for JSON: {"claims": [{"id", "verdict", "value", "low", "high", "reason", …}]}."""
    return {"claims": [asdict(verdict) for verdict in verdicts]}


def junit(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as JUnit XML: refuted is a failure, open is skipped; the rest of each is its output."""
    words = [verdict.verdict for verdict in verdicts]
    counts = {"tests": len(words), "failures": words.count("refuted"), "errors": 0, "skipped": words.count("open")}
    totals = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", {"name": "cprbench check"} | {k: totals[k] for k in list(totals)[:3]})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "cprbench check"} | totals)
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="cprbench.check", name=clean(verdict.id))
        message = f"{answer_of(verdict)}: {clean(verdict.reason)}"
        if verdict.verdict == "refuted":
            ElementTree.SubElement(case, "failure", type="refuted", message=message).text = _told(verdict)
        elif verdict.verdict == "open":
            ElementTree.SubElement(case, "skipped", message=message)
        ElementTree.SubElement(case, "system-out").text = _told(verdict)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def github_annotations(verdicts: Sequence[Verdict]) -> str:
    """Return a GitHub workflow command per verdict, refuted ones first: a step shows ten of each level only."""
    order = sorted(verdicts, key=lambda verdict: ("refuted", "open", "supported").index(verdict.verdict))
    lines = []
    for verdict in order:
        title = _data(f"{verdict.verdict}: {clean(verdict.id)}").replace(":", "%3A").replace(",", "%2C")
        lines.append(f"::{_LEVEL[verdict.verdict]} title={title}::{_data(_told(verdict))}\n")
    return "".join(lines)


def job_summary(verdicts: Sequence[Verdict]) -> str:
    """Return the Markdown of a GitHub job summary: one table, then the commands that measure what is open."""
    lines = ["## cprbench check", "", summary(verdicts), ""]
    if verdicts:
        lines += ["| verdict | claim | measured | why |", "|---|---|---|---|"]
    for verdict in verdicts:
        claim = f"{_cell(verdict.id)}<br>{_cell(verdict.text)}" if verdict.text else _cell(verdict.id)
        lines.append(f"| {verdict.verdict} | {claim} | {_cell(answer_of(verdict))} | {_cell(verdict.reason)} |")
    commands = dict.fromkeys(clean(v.command) for v in verdicts if v.verdict == "open" and v.command)
    if commands:
        # Indented, not fenced: no text can end an indented block.
        lines += ["", "To measure what is open:", "", *(f"    {command}" for command in commands)]
    return "\n".join(lines) + "\n"


def answer_of(verdict: Verdict) -> str:
    """Return the number, its interval and what was wanted, in one line."""
    if verdict.value is None:
        return "not measured" + (f", wanted {clean(verdict.threshold)}" if verdict.threshold else "")
    shown = number(Figure(verdict.value))
    if verdict.low is not None or verdict.high is not None:
        low, high = (number(Figure(end, "unbounded")) for end in (verdict.low, verdict.high))
        shown += f" [{low}, {high}]"
    return shown + (f", wanted {clean(verdict.threshold)}" if verdict.threshold else "")


def _told(verdict: Verdict) -> str:
    """Return all that is known of a verdict, a line each."""
    parts = {
        "": verdict.text,
        "source: ": verdict.source,
        "measured: ": answer_of(verdict),
        "why: ": verdict.reason,
        "command: ": verdict.command if verdict.verdict == "open" else "",
    }
    return "\n".join(f"{name}{clean(part)}" for name, part in parts.items() if part)


def _command(command: str) -> list[str]:
    """Return a command in lines that can be pasted into a shell, broken between its words."""
    lines = [""]
    for word in _WORD.findall(clean(command)):
        if lines[-1] and len(_INDENT) + len(lines[-1]) + len(word) + len("  \\") > _WIDTH:
            lines.append("  " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return [f"{_INDENT}{line} \\" for line in lines[:-1]] + [_INDENT + lines[-1]]


def clean(value: str) -> str:
    """Return text in one line, without what steers a terminal, turns the reading direction or XML forbids."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _cell(value: str) -> str:
    return escape(clean(value))
