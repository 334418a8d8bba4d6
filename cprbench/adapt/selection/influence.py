"""influence: examples of largest gradient norm J(z), measured on every one of them (paper, 4.3 and B.4).

With a scores file that somebody published, nothing is measured here and nothing is billed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.selection import Measured, Pool, Selected
from cprbench.adapt.selection.top import Banded, with_cross_influence
from cprbench.errors import SpecError

if TYPE_CHECKING:
    from cprbench.adapt.methods import Method, Target


@dataclass(frozen=True)
class Influence(Banded):
    """The largest J(z), at the warmed head where the head is new. `scores`: a file of `cprbench data score`."""

    scores: str = ""

    name: ClassVar[str] = "influence"
    files: ClassVar[tuple[str, ...]] = ("scores",)

    @property
    def warms_head(self) -> bool:
        """Published scores were taken at a head that somebody else warmed."""
        return not self.scores

    def check(self, method: Method, target: Target) -> None:
        """Refuse scores of other weights or other data."""
        if not self.scores:
            return
        from cprbench.adapt.selection import scores

        info = scores.read(self.scores).info
        if target.sizes and dict(info.sizes) != dict(target.sizes):
            raise SpecError(f"{self.scores}: its submodules are not those of {target.label}. Score its own examples.")
        for what, theirs, ours in (
            ("model", info.model.weights_sha256, target.weights_sha256),
            ("data", info.task.data_sha256, target.data_sha256),
        ):
            if theirs != ours:
                raise SpecError(
                    f"{self.scores}: its {what} has the sha256 {theirs[:12]}…, this run's has {ours[:12]}…: the scores "
                    "are not of these examples at these weights. Score them, or leave out selection.scores."
                )

    def select(self, pool: Pool) -> Selected:
        """Return the places of largest influence, or those in the band."""
        if not self.scores:
            return self._from(pool, pool.measure(range(len(pool))), {})
        measured, notes = published(self.scores, pool)
        return self._from(pool, measured, notes)

    def _from(self, pool: Pool, measured: Measured, notes: dict[str, Any]) -> Selected:
        return with_cross_influence(pool, measured, self.best(pool, measured.influence.tolist(), notes))


def published(path: str, pool: Pool) -> tuple[Measured, dict[str, Any]]:
    """Return a scores file's rows for the pool, in its order, and what the record says of the file.

    Raises SpecError for examples and submodules that it lacks; the run's own hashes are checked before (Session).
    """
    from cprbench.adapt.selection import scores

    found = scores.read(path)
    info, name = found.info, Path(path).name  # without its folder: a record names no path of this machine
    if set(found.cells) != set(pool.sizes):
        raise SpecError(f"{name} has the submodules {', '.join(found.cells[:5])}…, which are not this model's.")
    columns = [found.cells.index(cell) for cell in pool.sizes]
    row = {example: i for i, example in enumerate(found.ids)}
    if lacking := [example for example in pool.ids if example not in row]:
        raise SpecError(
            f"{name} has no score of {len(lacking)} of {len(pool)} training examples, the first {lacking[0]!r}. "
            "Score the same examples, or leave out selection.scores."
        )
    rows = [row[example] for example in pool.ids]
    told = info.model_dump(include={"made", "block", "warmup_steps", "max_tokens", "precision"})
    return Measured(found.losses[rows], found.norms[rows][:, columns].copy()), {"scores": told}
