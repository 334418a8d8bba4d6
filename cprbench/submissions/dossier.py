"""What a rule looks at: one run of a submission, read strictly, with the task's own data beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cprbench.adapt.data import Dataset
from cprbench.judge.submission import Level
from cprbench.spec import RunRecord, RunSpec, TaskSpec

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Flaw:
    """What a rule found: `file` inside the run's folder, and what it says against what was recomputed.

    `cure`: where it is another one than the rule's own.
    """

    file: str
    message: str
    level: Level = "wrong"
    cure: str | None = None


@dataclass(frozen=True)
class Dossier:
    """One run. `dataset`: the examples of the task's own pinned source, or the reason why they are not here."""

    run_id: str
    record: RunRecord
    data: Mapping[str, Any]  # record.json as parsed, before any default was filled in
    files: Mapping[str, Rows]  # the .jsonl files by name, without those that it does not have
    task: TaskSpec | None  # of the task's name and version, None where this installation has none
    dataset: Dataset | str
    siblings: Mapping[str, Dossier] = field(default_factory=dict, repr=False)  # all runs of the submission, by id
    #: Those of the same task, weights, seed, recipe and hardware, itself among them, in order of id.
    mates: Sequence[Dossier] = field(default=(), repr=False)
    division: str = "closed"

    def rows(self, name: str) -> Rows:
        """Return the rows of a .jsonl file, () where there is none."""
        return self.files.get(name, ())

    @property
    def spec(self) -> RunSpec | None:
        """What was asked for; None for a loop that is not ours."""
        return self.record.spec if isinstance(self.record.spec, RunSpec) else None


@dataclass(frozen=True)
class Rule:
    """One rule: what must hold of a run, and what to do where it does not. `check` yields nothing where it holds."""

    code: str
    title: str
    cure: str
    check: Callable[[Dossier], Iterable[Flaw]]
