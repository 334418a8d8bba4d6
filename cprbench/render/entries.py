"""What validation found of a submission, for a terminal: a line per rule, below it what is wrong and its cure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from cprbench.judge.submission import Entry, Finding
from cprbench.render.text import plain

_WIDTH = 80
_INDENT = " " * 4
_WORDS = {"invalid": "INVALID", "wrong": "WRONG", "unverified": "unverified", "unranked": "unranked"}


def text(entry: Entry, titles: Mapping[str, str]) -> str:
    """Return an entry for a terminal of 80 columns. `titles`: rule code -> what must hold."""
    by_code: dict[str, list[Finding]] = {}
    for finding in entry.findings:
        by_code.setdefault(finding.code, []).append(finding)
    lines = []
    for code, count in entry.checked.items():
        found = by_code.get(code, [])
        worst = next((level for level in _WORDS if any(finding.level == level for finding in found)), None)
        word = "ok" if worst is None else _WORDS[worst]
        lines += _wrapped(f"{code:<3} {word:<10} {titles.get(code, '')} ({count})", " " * 15)
        for finding in found:
            where = f"{plain(finding.file)}: " if finding.file else ""
            lines += _wrapped(f"{_INDENT}{where}{plain(finding.message).rstrip('.')}. {finding.cure}.", _INDENT)
    name = plain(entry.submission.name if entry.submission else entry.folder)
    lines += ["", *_rows(entry)]
    ranked = sum(row.ranked for row in entry.rows)
    lines.append(f"{name}: {entry.status}. {len(entry.rows)} rows, {ranked} of them rank.")
    return "\n".join(lines) + "\n"


def _rows(entry: Entry) -> Iterator[str]:
    """Yield why rows do not rank, each reason once with the arms that it is of."""
    why: dict[str, list[str]] = {}
    for row in entry.rows:
        for reason in row.unranked:
            why.setdefault(reason, []).append(f"{row.arm} on {row.task}")
    for reason, arms in why.items():
        named = ", ".join(arms[:3]) + (f" and {len(arms) - 3} more" if len(arms) > 3 else "")
        yield from _wrapped(f"does not rank: {plain(reason)} ({plain(named)}).", _INDENT)


def _wrapped(line: str, indent: str) -> list[str]:
    # File names are long words and must stay whole: somebody will copy them.
    return textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
