"""Which training examples are used. One file per selection, all of the same shape; to add one, copy one.

A selection is a frozen dataclass of its settings. `select` chooses from a pool of training examples; whatever it has
measured of them is billed as phase select, and the training loop never asks which selection it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cprbench.adapt.settings import build, label
from cprbench.errors import MethodError, SpecError, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cprbench.adapt.methods import Method, Target

#: name -> (where, one line of help). Listing imports nothing.
SELECTIONS: dict[str, tuple[str, str]] = {
    "all": ("cprbench.adapt.selection.all:All", "every training example"),
    "random": ("cprbench.adapt.selection.random:Random", "examples drawn by lot, to a share q or to a number of FLOPs"),
    "influence": (
        "cprbench.adapt.selection.influence:Influence",
        "largest gradient norm, measured on every example (or a band of it)",
    ),
    "predicted": (
        "cprbench.adapt.selection.predicted:Predicted",
        "largest gradient norm, predicted from a few that are measured (Algorithm 2)",
    ),
    "iterative": (
        "cprbench.adapt.selection.iterative:Iterative",
        "train briefly, measure again and narrow down (B.4)",
    ),
    "coreset": ("cprbench.adapt.selection.coreset:Coreset", "examples that cover the rest in embedding space (B.4)"),
    "cross": (
        "cprbench.adapt.selection.cross:Cross",
        "largest gradient norm on the submodules that the method trains (B.5)",
    ),
}


@dataclass(frozen=True)
class Measured:
    """What was measured of some examples, a row for each, in float64 (states: float32)."""

    losses: NDArray[Any]  # (examples,)
    norms: NDArray[Any] | None = None  # (examples, submodules): T of eq. 32, as L2 norms
    states: NDArray[Any] | None = None  # (examples, width): pooled last hidden states

    @property
    def influence(self) -> NDArray[Any]:
        """J(z), (examples,): the norm over all submodules (eq. 27). Raises ValueError where none were measured."""
        if self.norms is None:
            raise ValueError("no gradients were measured")
        from cprbench.adapt.selection.scores import norm_over

        return norm_over(self.norms)


def _unavailable(*arguments: Any, **named: Any) -> Any:
    raise MethodError("nothing can be measured here: these examples come without a model.")


@dataclass(frozen=True)
class Pool:
    """The training examples to choose from. Places count from 0; all that measures costs, so it is billed."""

    ids: Sequence[str]
    labels: Sequence[str]  # the right answer's text
    texts: Sequence[str]  # what the model reads
    lengths: Sequence[int]  # in tokens
    seed: int
    sizes: Mapping[str, int] = field(default_factory=dict)  # submodule -> parameters, in partition order
    trained: Sequence[str] = ()  # submodules that the method trains
    warm: Callable[[], None] = _unavailable  # the new head, once; `measure` does so before it takes gradients
    measure: Callable[..., Measured] = _unavailable  # (places, gradients=True, states=False)
    input_means: Callable[[Sequence[int]], NDArray[Any]] = _unavailable  # places -> mean input embeddings
    train: Callable[[Sequence[int], int], None] = _unavailable  # a few steps on these places
    afford: Callable[[Sequence[int], float], int] = _unavailable  # how many of these fit a run of that many FLOPs

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Selected:
    """The places that are trained on, in order, and what the record keeps of the choice."""

    places: tuple[int, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    flops: float | None = None  # train until a run has billed that many, whatever the epochs


class Selection(Protocol):
    """The shape of every selection."""

    name: ClassVar[str]
    label_settings: ClassVar[tuple[str, ...]]  # settings that the arm's name always shows
    files: ClassVar[tuple[str, ...]] = ()  # settings that name a file
    warms_head: bool  # what it measures needs a new head to be warm

    @property
    def chooses(self) -> bool:
        """Whether choosing costs anything; that time is then billed as phase select."""

    def kept(self, examples: int) -> int | None:
        """Return how many of `examples` will be kept; None where only the run can tell.

        Raises SpecError where none would be.
        """

    def check(self, method: Method, target: Target) -> None:
        """Raise SpecError or MethodError when this selection cannot go with that method there; before anything runs."""

    def select(self, pool: Pool) -> Selected:
        """Return the examples to train on."""


def selection_class(name: str) -> type[Any]:
    """Return the class of a selection. Raises SpecError with the nearest known name."""
    if name not in SELECTIONS:
        raise SpecError(f"unknown selection {name!r}. {did_you_mean(name, SELECTIONS)}")
    module, _, attribute = SELECTIONS[name][0].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def build_selection(name: str, settings: Mapping[str, Any]) -> Selection:
    """Return a selection with `settings` over its defaults; raises SpecError for unknown or ill-typed ones."""
    made: Selection = build(selection_class(name), settings, "selection")
    return made


def settings_known(name: str) -> set[str]:
    """Return the names of a selection's settings."""
    return {f.name for f in dataclasses.fields(selection_class(name))}


def selection_label(selection: Selection) -> str:
    """Return what an arm's name says of its data: "selection=influence q=0.3", nothing for all."""
    return "" if selection.name == "all" else f"selection={label(selection)}"
