"""What a pull request changes on the board: two lists of entries in, a Markdown comment out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cprbench.judge.groups import Figure
from cprbench.judge.regression import MARGINS, PSI
from cprbench.judge.submission import Entry, Finding
from cprbench.render.numbers import score
from cprbench.render.site.columns import Listed, board_name, entry_name, suite_of
from cprbench.render.site.ordering import ordered
from cprbench.render.text import escape
from cprbench.schema import sha256_of

#: A comment on GitHub holds 65,536 characters.
MOST_LETTERS = 60_000
_MOST_LISTED = 40  # lines of a section
_MOST_FINDINGS = 8  # of a submission
_MOST_WORDS = 240  # letters of one message, before they are escaped
_REFUSED = ("invalid", "contradicted")


@dataclass(frozen=True)
class Changed:
    """A submission that is new, changed or removed, as validation found it; of a removed one as it was."""

    submission: str
    folder: str
    how: str
    status: str
    rows: int
    ranked: int
    findings: list[Finding]

    @property
    def refused(self) -> bool:
        """Whether it may not come onto the board."""
        return self.how != "removed" and self.status in _REFUSED


@dataclass(frozen=True)
class Standing:
    """Where a row stands on its board: its position, None where it does not rank, and what goes with it."""

    position: int | None
    front: bool
    tier: str
    psi: float | None


@dataclass(frozen=True)
class Moved:
    """A row that is on the board before and after, and stands elsewhere, or has another score."""

    row: str
    before: Standing
    after: Standing


@dataclass(frozen=True)
class Copied:
    """A run whose raw samples another submission holds too: the same run twice, not a second one."""

    submission: str
    run_id: str
    holders: list[str]


@dataclass(frozen=True)
class Changes:
    """All that differs between two lists of entries."""

    submissions: list[Changed]
    added: list[str]
    removed: list[str]
    moved: list[Moved]
    rescored: list[Moved]
    copied: list[Copied]

    @property
    def refused(self) -> list[str]:
        """The names of what is new or changed and may not come onto the board."""
        return [changed.submission for changed in self.submissions if changed.refused]

    def document(self) -> dict[str, Any]:
        """Return them for JSON."""
        found = asdict(self) | {"refused": self.refused}
        found["submissions"] = [
            {**asdict(changed), "findings": [finding.model_dump() for finding in changed.findings]}
            for changed in self.submissions
        ]
        return found


def changes(before: Sequence[Entry], after: Sequence[Entry]) -> Changes:
    """Return what differs between the entries of the base branch and those of a pull request."""
    old, new = ({(entry_name(entry), entry.folder): entry for entry in entries} for entries in (before, after))
    submissions = [_changed(key[0], old.get(key), new.get(key)) for key in sorted({*old, *new})]
    rows, now = _standings(before), _standings(after)
    both = [Moved(row, rows[row], now[row]) for row in sorted(rows.keys() & now.keys())]
    changed = [found for found in submissions if found is not None]
    return Changes(
        submissions=changed,
        added=sorted(now.keys() - rows.keys()),
        removed=sorted(rows.keys() - now.keys()),
        moved=sorted((m for m in both if _place(m.before) != _place(m.after)), key=_front_first),
        rescored=[moved for moved in both if _rescored(moved)],
        copied=_copied(after, {found.submission for found in changed}),
    )


def _changed(name: str, old: Entry | None, new: Entry | None) -> Changed | None:
    entry = old if new is None else new
    if entry is None or (old is not None and new is not None and old.digest == new.digest):
        return None
    how = "removed" if new is None else "new" if old is None else "changed"
    ranked = sum(row.ranked for row in entry.rows)
    return Changed(
        name, entry.folder, how, entry.status, len(entry.rows), ranked, [] if new is None else entry.findings
    )


def _standings(entries: Iterable[Entry]) -> dict[str, Standing]:
    """Return every row, by what it says of itself, with where it stands on the board of its task version."""
    boards = defaultdict[str, list[Listed]](list)
    for entry in entries:
        for row in entry.rows:
            boards[board_name(row.task, row.task_version)].append(Listed(entry, row))
    found: dict[str, Standing] = {}
    for board, listed in sorted(boards.items()):
        for placed in ordered(listed):
            row, name = placed.listed.row, _named(board, placed.listed)
            while name in found:  # arms of two recipes, say
                name += " again"
            found[name] = Standing(placed.position, placed.front, row.tier, row.psi.value)
    return found


def _named(board: str, of: Listed) -> str:
    """Return what a row is, without what runs made it: a block more leaves it the row that it was."""
    row = of.row
    content = [row.settings, row.selection, row.selection_settings, row.limits, row.weights_sha256, row.role]
    words = [entry_name(of.entry), row.arm, board, row.model, suite_of(row), row.hardware_class]
    return " · ".join([*words, sha256_of(content)[:6]])


def _place(standing: Standing) -> tuple[int | None, bool, str]:
    return standing.position, standing.front, standing.tier


def _front_first(moved: Moved) -> tuple[bool, bool, int]:
    """Order by how much it says: who came onto the front or left it, then tiers, then who moved farthest."""
    steps = abs((moved.before.position or 0) - (moved.after.position or 0))
    return moved.before.front == moved.after.front, moved.before.tier == moved.after.tier, -steps


def _rescored(moved: Moved) -> bool:
    then, now = moved.before.psi, moved.after.psi
    return then != now and (then is None or now is None or abs(now - then) > MARGINS[PSI])


def _copied(entries: Iterable[Entry], touched: set[str]) -> list[Copied]:
    holders: dict[str, dict[str, str]] = {}  # samples -> submission -> run
    for entry in entries:
        for run in (run for row in entry.rows for run in row.runs if run.trace_sha256):
            holders.setdefault(run.trace_sha256, {})[entry_name(entry)] = run.run_id
    return [
        Copied(name, run_id, sorted(set(runs) - {name}))
        for _, runs in sorted(holders.items())
        if len(runs) > 1
        for name, run_id in sorted(runs.items())
        if name in touched
    ]


# --- Markdown ---------------------------------------------------------------------------------------


def markdown(found: Changes) -> str:
    """Return changes as a comment of at most MOST_LETTERS, whatever strangers wrote: all of their text is escaped."""
    lines = ["## What changes on the board", "", _summary(found), ""]
    for title, section in _sections(found).items():
        if section:
            shown = section[:_MOST_LISTED]
            more = [f"- and {len(section) - len(shown)} more"] if len(section) > len(shown) else []
            lines += [f"### {title}", "", *shown, *more, ""]
    return _cut("\n".join(lines))


def _sections(found: Changes) -> dict[str, list[str]]:
    return {
        "Submissions": [line for changed in found.submissions for line in _submission(changed)],
        "Rows added": [f"- {escape(row)}" for row in found.added],
        "Rows removed": [f"- {escape(row)}" for row in found.removed],
        f"Scores that changed by more than {MARGINS[PSI]:g}": [
            f"- {escape(m.row)}: {_score(m.before)} to {_score(m.after)}" for m in found.rescored
        ],
        "Rows that stand elsewhere": [f"- {escape(m.row)}: {', '.join(_steps(m))}" for m in found.moved],
        "Runs that another submission holds already": [
            f"- {escape(copied.submission)}: {escape(copied.run_id)} has the raw samples of "
            f"{escape(', '.join(copied.holders[:3]))}"
            for copied in found.copied
        ],
    }


def _summary(found: Changes) -> str:
    if not found.submissions:
        return "No submission is new, changed or removed."
    counts = Counter(changed.how for changed in found.submissions)
    parts = [f"{counts[how]} {how}" for how in ("new", "changed", "removed") if counts[how]]
    refused = f" **{len(found.refused)} refused.**" if found.refused else ""
    return f"Submissions: {', '.join(parts)}.{refused}"


def _submission(changed: Changed) -> Iterator[str]:
    name, rows = escape(changed.submission), f"{changed.rows} rows, {changed.ranked} of them rank"
    what = changed.how if changed.how == "removed" else f"{changed.how}, {changed.status}"
    word = ", **refused**" if changed.refused else ""
    folder = "" if changed.folder == changed.submission else f" (folder {_short(changed.folder)})"
    yield f"- **{name}**{folder}: {what}; {rows}{word}"
    for finding in changed.findings[:_MOST_FINDINGS]:
        where = f"{_short(finding.file)}: " if finding.file else ""
        yield f"  - {escape(finding.code)} {finding.level}: {where}{_short(finding.message)}. {_short(finding.cure)}."
    if (more := len(changed.findings) - _MOST_FINDINGS) > 0:
        yield f"  - and {more} findings more"


def _steps(moved: Moved) -> Iterator[str]:
    before, after = moved.before, moved.after
    if before.position != after.position:
        yield f"{before.position or 'unranked'} to {after.position or 'unranked'}"
    if before.front != after.front:
        yield "now on the front" if after.front else "no longer on the front"
    if before.tier != after.tier:
        yield f"{before.tier} to {after.tier}"


def _score(standing: Standing) -> str:
    return escape(score(Figure(standing.psi)))


def _short(text: str) -> str:
    return escape(text if len(text) <= _MOST_WORDS else f"{text[:_MOST_WORDS]}…").removesuffix(".")


def _cut(text: str) -> str:
    """Return text that fits a comment, cut between lines."""
    if len(text) <= MOST_LETTERS:
        return text
    told = "\n\nThe rest did not fit this comment.\n"
    return text[: text.rindex("\n", 0, MOST_LETTERS - len(told))] + told
