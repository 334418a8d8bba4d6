"""bitfit: every bias of the model trains, those of its norms included, and no weight (Ben Zaken et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.k_set import train_tensors
from cprbench.errors import MethodError

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Bitfit:
    """Training of biases; it has no settings."""

    name: ClassVar[str] = "bitfit"
    learning_rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-3, "causal": 5e-4}
    label_settings: ClassVar[tuple[str, ...]] = ()
    chooses: ClassVar[bool] = False

    def check(self, target: Target) -> None:
        """Refuse models without biases."""
        self._refuse_without_biases(target.tensors)

    def _refuse_without_biases(self, tensors: Mapping[str, Sequence[str]]) -> None:
        if not any(_biases(names) for names in tensors.values()):
            raise MethodError(
                "method 'bitfit' trains biases, and this model has none (Llama and its kin are built without). "
                "Use lora, or last-layers and random-submodules with a small k: they train any model."
            )

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with its biases training, and its new head whole."""
        self._refuse_without_biases(loaded.partition.parameters)
        return train_tensors(loaded, {cell: _biases(names) for cell, names in loaded.partition.parameters.items()}, {})


def _biases(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2] == "bias"]
