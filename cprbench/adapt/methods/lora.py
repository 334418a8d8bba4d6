"""lora: low-rank adapters on every linear of every layer, by peft; the base weights stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.adapters import insert
from cprbench.errors import MethodError

if TYPE_CHECKING:
    from torch import nn

    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Lora:
    """Adapters of rank `r`, scaled by alpha / r."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0

    name: ClassVar[str] = "lora"
    learning_rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-3, "causal": 2e-4}
    label_settings: ClassVar[tuple[str, ...]] = ()
    chooses: ClassVar[bool] = False
    adapts: ClassVar[bool] = True

    def check(self, target: Target) -> None:
        """Refuse a rank below 1 and a dropout outside [0, 1)."""
        refuse_shape(self.name, self.r, self.dropout)

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with adapters in place; they and the new head train."""
        from cprbench.adapt.models import layer_linears, trained_cells

        inside = layer_linears(loaded)
        config = {
            "peft_type": "LORA",
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(inside),
        }
        wrapped = insert(loaded, config, context.seed)
        adapters = dict.fromkeys(sorted(set(inside.values())), self.r)
        return Prepared(
            loaded.model,
            trained_cells(loaded),
            {"adapters": dict(adapters)},
            adapters=adapters,
            merge=partial(self.folded, wrapped),
        )

    def folded(self, wrapped: Any) -> nn.Module:
        """Return a plain model in which the adapters are part of the weights."""
        plain: nn.Module = wrapped.merge_and_unload()
        return plain


def refuse_shape(method: str, r: int, dropout: float) -> None:
    """Raise MethodError for a rank below 1 and a dropout outside [0, 1)."""
    if r < 1 or not 0 <= dropout < 1:
        raise MethodError(f"{method}.r = {r}, {method}.dropout = {dropout}: r >= 1 and 0 <= dropout < 1.")
