"""qlora: lora on a base whose weights are held in 4 bits (nf4, scales quantised too) by bitsandbytes, on a CUDA GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.lora import Lora
from cprbench.errors import MethodError

if TYPE_CHECKING:
    from torch import nn

    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Qlora(Lora):
    """Float32 adapters of rank `r`, scaled by alpha / r, over 4-bit weights; all settings are those of lora."""

    name: ClassVar[str] = "qlora"
    four_bit: ClassVar[bool] = True

    def check(self, target: Target) -> None:
        """Refuse what lora refuses, and machines that lack CUDA or bitsandbytes."""
        super().check(target)
        if target.device != "cuda":
            raise MethodError(
                f"method 'qlora' needs an NVIDIA GPU with CUDA, and this machine computes on {target.device!r}. Use "
                "lora: the same adapters on float32 weights."
            )
        if not target.bitsandbytes:
            raise MethodError(
                "method 'qlora' needs bitsandbytes, which is not installed here. Run: pip install 'cprbench[qlora]' "
                "(or use lora: the same adapters on float32 weights)."
            )

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with adapters over its 4-bit weights; they and the new head train.

        Raises MethodError for a model that was not loaded in 4 bits.
        """
        from cprbench.adapt import four_bit

        if not any(four_bit.is_four_bit(module) for module in loaded.model.modules()):
            raise MethodError(
                "method 'qlora' was given a model whose weights are not in 4 bits: load it with four_bit."
            )
        prepared = super().prepare(loaded, context)
        return replace(prepared, notes={**prepared.notes, "base_weights": "nf4, scales quantised too"})

    def folded(self, wrapped: Any) -> nn.Module:
        """Return a plain float32 model: the unpacked weights that were trained on, plus the adapters."""
        from cprbench.adapt import four_bit

        return four_bit.merged(wrapped)
