"""partial+lora: adapters on the submodules of largest gradient norm alone, of ranks that follow the norms.

Where `partial` says which submodules matter and `lora` how little of them needs to train, this asks whether both hold
at once. The set is picked and billed as `partial` picks it; the base weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.adapters import insert, lora_ranks
from cprbench.adapt.methods.lora import Lora, refuse_shape
from cprbench.adapt.methods.partial import Partial
from cprbench.blueprint.exchange import to_peft, to_rank_pattern
from cprbench.errors import MethodError

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class PartialLora(Partial):
    """A set picked by all settings of `partial`, with adapters on the linears of its layers.

    `r`: the mean rank over its submodules, scaled by alpha / r whatever the rank of each. `ranks`: "norms", larger
    where the norm is larger (blueprint/exchange.to_rank_pattern), or "equal", the control that tells what the choice of
    places does from what the ranks do.
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    ranks: Literal["norms", "equal"] = "norms"

    name: ClassVar[str] = "partial+lora"
    learning_rates: ClassVar[Mapping[str, float]] = Lora.learning_rates
    adapts: ClassVar[bool] = True

    @property
    def chooses(self) -> bool:
        """Ranks that follow norms need them even where everything is taken."""
        return super().chooses or self.ranks == "norms"

    def check(self, target: Target) -> None:
        """Refuse what partial and lora refuse, and a budget: it prices submodules that train themselves."""
        refuse_shape(self.name, self.r, self.dropout)
        if self.budget:
            raise MethodError(
                f"{self.name}.budget = {self.budget}: a budget is priced for submodules that train themselves, and "
                f"adapters cost other than that. Set {self.name}.k, or give the budget to partial."
            )
        super().check(target)

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with adapters on the picked submodules; they and the new head train.

        Raises MethodError for a set in which no layer has a linear.
        """
        from cprbench.adapt.models import layer_linears, linear_modules, trained_cells

        chosen = self.choose(loaded, context)
        inside, linears = layer_linears(loaded), linear_modules(loaded)
        picked = {cell: [path for path in linears.get(cell, ()) if path in inside] for cell in chosen.submodules}
        config: dict[str, Any] = {**to_peft(chosen.submodules, picked, r=self.r, alpha=self.alpha), "task_type": None}
        config["lora_dropout"] = self.dropout
        if self.ranks == "norms":
            scaling = self.alpha / self.r
            config |= to_rank_pattern(chosen.norms, chosen.submodules, picked, self.r, scaling=scaling)
        wrapped = insert(loaded, config, context.seed)
        adapters, _ = lora_ranks(loaded, inside)
        notes = {**chosen.notes, "picked": list(chosen.submodules), "adapters": adapters, "adapter_config": config}
        return Prepared(
            loaded.model,
            trained_cells(loaded),
            notes,
            chosen.k_asked,
            chosen.k_reached,
            adapters,
            merge=wrapped.merge_and_unload,
        )
