"""all: every training example is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.selection import Pool, Selected

if TYPE_CHECKING:
    from cprbench.adapt.methods import Method, Target


@dataclass(frozen=True)
class All:
    """Every training example; nothing is measured."""

    name: ClassVar[str] = "all"
    label_settings: ClassVar[tuple[str, ...]] = ()
    warms_head: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    def kept(self, examples: int) -> int | None:
        """Return all of them."""
        return examples

    def check(self, method: Method, target: Target) -> None:
        """Goes with every method."""

    def select(self, pool: Pool) -> Selected:
        """Return every place."""
        return Selected(tuple(range(len(pool))))
