"""lora: low-rank adapters on every linear of every layer, by peft; the base weights stay as they are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.errors import MethodError
from cprbench.spec import stream_seed

if TYPE_CHECKING:
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
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise MethodError(f"lora.r = {self.r}, lora.dropout = {self.dropout}: r >= 1 and 0 <= dropout < 1.")

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with adapters in place; they and the new head train."""
        import peft
        import torch

        from cprbench.adapt.models import layer_linears, trained_cells

        inside = layer_linears(loaded)
        config = peft.LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=sorted(inside)
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 reads an attribute that transformers 5.23 has renamed; it concerns nobody here.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            torch.manual_seed(stream_seed(context.seed, "adapter init"))
            wrapped: Any = peft.get_peft_model(loaded.model, config)  # edits the model in place
        parameters = dict(loaded.model.named_parameters())
        for name in loaded.partition.new_head:
            parameters[name].requires_grad_(True)
        adapters = dict.fromkeys(sorted(set(inside.values())), self.r)
        cells = trained_cells(loaded)
        return Prepared(
            loaded.model,
            cells,
            {"adapters": dict(adapters)},
            adapters=adapters,
            merge=wrapped.merge_and_unload,
        )
