"""Which training examples are used. One file per selection; to add one, copy one."""

from __future__ import annotations

from cprbench.errors import SpecError, did_you_mean

#: name -> one line of help.
SELECTIONS: dict[str, str] = {"all": "every training example"}


def check_selection(name: str) -> None:
    """Raise SpecError with the nearest known name for an unknown selection."""
    if name not in SELECTIONS:
        raise SpecError(f"unknown selection {name!r}. {did_you_mean(name, SELECTIONS)}")
