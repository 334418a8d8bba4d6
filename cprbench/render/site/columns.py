"""What a board shows of a row, column by column: its heading, its number or words, and across what it compares."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from cprbench.judge.frontier import Quadrant
from cprbench.judge.groups import NOT_MEASURED, Figure, Told
from cprbench.judge.submission import Entry, Number, Row
from cprbench.render.numbers import in_words, number, percent, resource_title, score, signed, times
from cprbench.schema import canonical_json, sha256_of
from cprbench.spec import RESOURCES

#: What the numbers of every axis but this one hang on: the machine.
COUNTED = "flops"
_MOST_LETTERS = 160
_UNKNOWN = Number(value=None, why=NOT_MEASURED)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Listed:
    """A row with the entry that it is of."""

    entry: Entry
    row: Row


@dataclass(frozen=True)
class Shown:
    """What a cell says: a line, a smaller one below it, and why there is no number or no interval."""

    text: str
    small: str = ""
    why: str = ""
    value: float | None = None
    none: bool = False  # there is nothing where a reader looks for something


@dataclass(frozen=True)
class Column:
    """One column. It has numbers (`told`, written by `show`) or words."""

    key: str
    title: str
    meaning: str
    told: Callable[[Row], Number] | None = None
    show: Callable[[Told], str] = number
    words: Callable[[Listed], Shown] | None = None
    first: str = ""  # the way in which it is sorted at first: the better one
    needs: str = ""  # what two rows must share for a ratio of theirs: suite, weights, hardware
    resource: str = ""  # shown where this resource is chosen
    default: bool = False

    @property
    def group(self) -> str:
        """What a reader ticks to see it: itself, or the family of a column per resource."""
        return self.key.partition("_")[0] if self.key.startswith(("multiple_", "quadrant_")) else self.key

    def cell(self, of: Listed) -> Shown:
        """Return what it says of a row on a board, where the entry's page says more."""
        found = self.number(of.row) if self.words is None else self.words(of)
        cost = of.row.gamma.get(self.resource, _UNKNOWN)
        if found.none and found.why == NOT_MEASURED and cost.value is None:  # the cost has the meter's reason
            found = replace(found, why=shown(cost, self.show).why)
        return replace(found, text=cut(found.text), small=cut(found.small), why=cut(found.why))

    def number(self, row: Row) -> Shown:
        """Return the number of a row, in full."""
        assert self.told is not None
        found = shown(self.told(row), self.show, words=self.key == "search")
        if self.key.startswith("gamma_") and found.none:  # whatever the meter's reason begins with
            return replace(found, text=NOT_MEASURED)
        return found


def shown(found: Number | Figure, show: Callable[[Told], str], *, words: bool = False) -> Shown:
    """Return a number as `show` writes it over its interval, or words in its place.

    `words`: the reason why there is no number is the answer.
    """
    if found.value is None:
        code = found.why or NOT_MEASURED
        why = in_words(code)
        if words:
            return Shown(why)
        lacks = code.startswith("n/e") or why != code  # what judge/ has a code for does not exist
        return Shown("n/e" if lacks else NOT_MEASURED, "", why.removeprefix(f"{NOT_MEASURED}: "), none=True)
    ends = (found.low, found.high) if isinstance(found, Number) else (None, None)
    interval = "" if None in ends else f"[{', '.join(show(Figure(end)) for end in ends)}]"
    return Shown(show(found), interval, "" if interval else in_words(found.why or ""), found.value)


def entry_name(entry: Entry) -> str:
    """Return what an entry is called in paths: its folder's name, where that is a name."""
    name = entry.folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name if _NAME.fullmatch(name) else f"unnamed-{sha256_of([entry.folder, entry.digest])[:12]}"


def board_name(task: str, version: int) -> str:
    """Return what a task version is called in paths: a task is a stranger's word where the loop was."""
    name = task if _NAME.fullmatch(task) else f"task-{sha256_of(task)[:12]}"
    return f"{name}-v{version}"


def settings_text(settings: Mapping[str, Any], most: int = _MOST_LETTERS) -> str:
    """Return settings in a line: names with their values, cut after `most` letters."""
    parts = [f"{name} {value if isinstance(value, str) else canonical_json(value)}" for name, value in settings.items()]
    return cut(", ".join(sorted(parts)), most)


def cut(text: str, most: int = _MOST_LETTERS) -> str:
    """Return text as a board shows it: its first letters. The entry's page has all of it."""
    return text if len(text) <= most else f"{text[:most]}…"


def suite_of(row: Row) -> str:
    """Return a row's suite with its version."""
    return f"{row.suite} v{row.suite_version}" if row.suite else "no suite"


def in_gb(told: Told) -> str:
    """Return bytes in GB."""
    return number(Figure(None if told.value is None else told.value / 1e9, told.why))


def _arm(of: Listed) -> Shown:
    row = of.row
    method = "" if row.arm.startswith(row.method) else row.method
    told = {name: value for name, value in row.settings.items() if value not in ("", None)}
    return Shown(row.arm, ": ".join(filter(None, (method, settings_text(told)))))


def _quadrant(resource: str) -> Callable[[Listed], Shown]:
    def words(of: Listed) -> Shown:
        said = in_words(of.row.quadrant.get(resource, NOT_MEASURED))
        word, _, why = said.partition(": ")
        return Shown(word, why) if word in get_args(Quadrant) else Shown("not placed", "", said, none=True)

    return words


def _gamma(resource: str) -> Column:
    return Column(
        f"gamma_{resource}",
        resource_title(resource),
        "billed per run, choosing included (select + train, over all attempts)",
        lambda row: row.gamma.get(resource, _UNKNOWN),
        first="ascending",
        needs="suite" if resource == COUNTED else "suite hardware",
        resource=resource,
    )


def _multiple(resource: str) -> Column:
    return Column(
        f"multiple_{resource}",
        f"x full per {resource_title(resource)}",
        "multiple of full: gain per resource as a multiple of full tuning's; it rewards doing less, so read it beside "
        "the retained gain",
        lambda row: row.multiple_of_full.get(resource, _UNKNOWN),
        times,
        first="descending",
        needs="suite weights" if resource == COUNTED else "suite weights hardware",
        resource=resource,
        default=True,
    )


def _against(resource: str) -> Column:
    return Column(
        f"quadrant_{resource}",
        f"against full, {resource_title(resource)}",
        "quadrant: where the arm stands against full tuning on score and resource, by both intervals",
        words=_quadrant(resource),
        resource=resource,
        default=True,
    )


#: What is offered as an axis, the counted one first: it compares everywhere.
AXES = (COUNTED, *(name for name in RESOURCES if name != COUNTED))
COLUMNS: tuple[Column, ...] = (
    Column(
        "arm",
        "arm",
        "method with its settings; baseline: what a method has to beat",
        words=_arm,
        default=True,
    ),
    Column(
        "model",
        "model",
        "with the first digits of its weights' sha256",
        words=lambda of: Shown(of.row.model, (of.row.weights_sha256 or "not seen")[:8]),
        default=True,
    ),
    Column(
        "psi",
        "psi",
        "the score of the task on its test items, mean over blocks with its 95 % interval",
        lambda row: row.psi,
        score,
        first="descending",
        needs="suite",
        default=True,
    ),
    Column(
        "gain",
        "gain",
        "what adaptation added to the score, over method head (where the model got a new head) or over the base",
        lambda row: row.gain,
        signed,
        first="descending",
        needs="suite weights",
        default=True,
    ),
    Column(
        "retained_gain",
        "retained gain",
        "gain as a share of full tuning's",
        lambda row: row.retained_gain,
        percent,
        first="descending",
        needs="suite weights",
        default=True,
    ),
    *map(_gamma, AXES),
    *map(_multiple, AXES),
    *map(_against, AXES),
    Column(
        "selection",
        "selection",
        "which training examples are used, and its settings",
        words=lambda of: Shown(of.row.selection, settings_text(of.row.selection_settings)),
    ),
    Column("q", "q", "share of the training examples that is used", lambda row: row.q, percent, first="ascending"),
    Column("k", "k", "share of the parameters that train", lambda row: row.k, percent, first="ascending"),
    Column(
        "picker",
        "picker",
        "how the submodules that train were picked; a dash where all do, or adapters",
        words=lambda of: Shown(of.row.picker or "–"),
    ),
    Column(
        "trained_share",
        "parameters trained",
        "as a share of all; a new head is on neither side",
        lambda row: row.trained_share,
        percent,
        first="ascending",
        needs="weights",
    ),
    Column(
        "selected_examples",
        "examples",
        "training examples that were used",
        lambda row: row.selected_examples,
        first="ascending",
    ),
    Column(
        "optimizer_state_bytes",
        "optimizer GB",
        "size of the optimizer's state, 1 GB = 1e9 bytes",
        lambda row: row.optimizer_state_bytes,
        in_gb,
        first="ascending",
    ),
    Column(
        "peak_memory_bytes",
        "peak GB",
        "largest memory of a run, 1 GB = 1e9 bytes",
        lambda row: row.peak_memory_bytes,
        in_gb,
        first="ascending",
        needs="hardware",
    ),
    Column(
        "search",
        "search s",
        "seconds of the search for a learning rate, or where the rate came from; billed to nobody",
        lambda row: row.search,
        first="ascending",
        needs="hardware",
    ),
    Column(
        "hardware",
        "hardware class",
        "hours, energy, memory and CO2 compare only inside one",
        words=lambda of: Shown(of.row.hardware_class),
    ),
    Column(
        "suite",
        "suite",
        "versions of a suite never share a front",
        words=lambda of: Shown(suite_of(of.row)),
        default=True,
    ),
    Column(
        "tier",
        "tier",
        "self-reported: something could not be recomputed; consistent: everything was, from raw files, and agrees; "
        "reproduced: runs of other authors agree too",
        words=lambda of: Shown(of.row.tier),
        default=True,
    ),
    Column(
        "blocks",
        "blocks",
        "repetitions that ended well; one or two are points, which show nothing",
        lambda row: Number(value=len(row.blocks)),
        lambda told: f"{told.value:.0f}",
        first="descending",
        default=True,
    ),
    Column(
        "submission",
        "submission",
        "its page has every run, its ledger, and the command that runs it again",
        words=lambda of: Shown(entry_name(of.entry), "open division" if division(of) == "open" else ""),
        default=True,
    ),
)
NUMBERS = tuple(column for column in COLUMNS if column.told is not None)


def division(of: Listed) -> str:
    """Return the division that an entry is of, closed where it does not say."""
    return "closed" if of.entry.submission is None else of.entry.submission.division
