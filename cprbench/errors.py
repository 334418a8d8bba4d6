"""Every error that a user can cause or cure, in one tree.

    CprbenchError
    ├── SpecError     a task, suite, setting or record file says something that cannot be
    ├── DataError     a data source is absent, altered or of the wrong size
    ├── ModelError    a model folder is absent, unsafe or of an unknown architecture
    ├── MethodError   a method or selection cannot be applied to this model
    ├── TrainingError training went wrong (a loss that is not a number, no examples)
    ├── MeterError    this machine cannot be metered as asked
    ├── StoreError    records cannot be read or written
    ├── SubmissionError  a submission holds what no submission holds
    └── OfflineError  something would have to be fetched, and --offline forbids it

The command line prints the message of these and exits 1; anything else is a bug and shows its stack.
A message says what is wrong with which value, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CprbenchError(Exception):
    """Base of all errors that cprbench raises on purpose."""


class SpecError(CprbenchError):
    """A task, suite, setting or record file says something that cannot be."""


class DataError(CprbenchError):
    """A data source is absent, altered or of the wrong size."""


class ModelError(CprbenchError):
    """A model source is absent, unsafe or of an unknown architecture."""


class MethodError(CprbenchError):
    """A method or selection cannot be applied to this model."""


class TrainingError(CprbenchError):
    """Training cannot start or cannot go on."""


class MeterError(CprbenchError):
    """This machine cannot be metered as asked."""


class StoreError(CprbenchError):
    """Records cannot be read or written."""


class SubmissionError(CprbenchError):
    """A submission holds what no submission holds, or cannot be read."""


class OfflineError(CprbenchError):
    """Something would have to be fetched, and --offline forbids it."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known word, or lists all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(names)}."
