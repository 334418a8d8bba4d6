"""All files of the site, by path. A page hangs on its own part of the entries alone, so a build can keep the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from cprbench.errors import CprbenchError
from cprbench.judge.submission import Entry
from cprbench.render.site import downloads
from cprbench.render.site.board import Board, boards_of, page_path
from cprbench.render.site.columns import cut, entry_name
from cprbench.render.site.entry import STATUS, entry_page, entry_path
from cprbench.render.site.templates import assets, page

_TIERS = (
    ("self-reported", "Something that ranks could not be computed again from raw files. Shown, but does not rank."),
    ("consistent", "Everything was computed again from raw files, and agrees. Ranks."),
    ("reproduced", "Consistent, and runs of other authors agree with it. Ranks."),
)
_MOST_FINDINGS, _MOST_LETTERS = 3, 300  # of a submission, and of a finding, on the first page


def render(entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of all files in the order of their paths; the same for the same entries in any order.

    Raises CprbenchError where two entries have one name.
    """
    for path, write in sorted(site_files(entries).items()):
        yield path, write()


def site_files(entries: Sequence[Entry]) -> dict[str, Callable[[], bytes]]:
    """Return path -> what writes that file. entries/NAME/index.html hangs on its entry alone.

    Raises CprbenchError where two entries have one name.
    """
    boards = boards_of(entries)
    found: dict[str, Callable[[], bytes]] = {"index.html": partial(index_page, entries, boards)}
    found |= {path: partial(bytes, content) for path, content in assets().items()}
    for entry in entries:
        if entry_path(entry) in found:
            raise CprbenchError(f"two submissions are called {entry_name(entry)!r}: give one another name")
        found[entry_path(entry)] = partial(entry_page, entry)
    for board in boards:
        found |= board_files(board)
    return found


def board_files(board: Board) -> dict[str, Callable[[], bytes]]:
    """Return path -> what writes it, of the pages and downloads of a task version."""
    pages: dict[str, Callable[[], bytes]] = {
        f"{board.name}/{page_path(i)}": partial(board.page, i) for i in range(1, board.pages + 1)
    }
    metric = cut(", ".join(board.metrics))
    return pages | {
        f"data/{board.name}.csv": partial(downloads.csv_file, board.placed),
        f"data/{board.name}.json": partial(downloads.json_file, board.placed),
        f"data/{board.name}.tex": partial(downloads.tex_file, board.placed, board.title, metric),
    }


def index_page(entries: Sequence[Entry], boards: Sequence[Board]) -> bytes:
    """Return the first page: boards, how they rank, and every submission with what is wrong with it."""
    return page(
        "index.html",
        "",
        boards=[_board(board) for board in boards],
        tiers=_TIERS,
        submissions_told=_told(entries),
        submissions=[_submission(entry) for entry in sorted(entries, key=entry_name)],
    )


def _board(board: Board) -> dict[str, Any]:
    rows = [of.listed.row for of in board.placed]
    names = {entry_name(of.listed.entry) for of in board.placed}
    distinct = ({row.weights_sha256 or row.model for row in rows}, {row.hardware_class for row in rows}, names)
    return {
        "name": board.name,
        "title": board.title,
        "domain": cut(", ".join(sorted({row.domain for row in rows} - {""})) or "not told"),
        "metrics": cut(", ".join(board.metrics)),
        "counts": [len(rows), board.ranked, *map(len, distinct)],
    }


def _told(entries: Sequence[Entry]) -> str:
    if not entries:
        return "There are none yet."
    counts = {status: sum(entry.status == status for entry in entries) for status in STATUS}
    parts = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{len(entries)}: {parts}. None is left out: what is wrong with one stands beside it."


def _submission(entry: Entry) -> dict[str, Any]:
    spec = entry.submission
    alike: dict[tuple[str, str], list[str]] = {}
    for finding in entry.findings:
        alike.setdefault((finding.code, (finding.message.splitlines() or [""])[0]), []).append(finding.file)
    lines = [_line(code, files, said) for (code, said), files in alike.items()]
    more = len(lines) - _MOST_FINDINGS
    return {
        "name": entry_name(entry),
        "authors": "not read" if spec is None else ", ".join(spec.authors),
        "status": entry.status,
        "findings": [*lines[:_MOST_FINDINGS], *([f"and {more} more on its page"] if more > 0 else [])],
        "rows": len(entry.rows),
        "ranked": sum(row.ranked for row in entry.rows),
        "division": "not read" if spec is None else spec.division,
        "license": "not read" if spec is None else spec.license,
    }


def _line(code: str, files: Sequence[str], said: str) -> str:
    where = files[0] if len(files) == 1 else f"{len(files)} files"
    return cut(": ".join(filter(None, (code, where, said))), _MOST_LETTERS)
