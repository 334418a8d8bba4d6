"""peft: whatever a peft config puts into the model trains, `--method peft:path/adapter_config.json`.

The config is read as data (peft_config.py), so that what cannot be honest is refused before anything runs. task_type
says nothing here: the new head trains in every method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.adapters import insert, lora_ranks
from cprbench.adapt.methods.lora import Lora
from cprbench.adapt.methods.peft_config import NOT_OURS, names_in, read, refuse
from cprbench.errors import MethodError, did_you_mean

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel

#: Settings of plain LoRA, whose products are counted; any other one that is set makes it something else.
_PLAIN = (
    "peft_type", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias",
    "use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "ensure_weight_tying",
)  # fmt: skip


@dataclass(frozen=True)
class Peft:
    """Adapters of a peft config. `config`: its file. What that fixes, a seed of a tuner's own too, is as it says."""

    config: str = ""

    name: ClassVar[str] = "peft"
    learning_rates: ClassVar[Mapping[str, float]] = Lora.learning_rates
    label_settings: ClassVar[tuple[str, ...]] = ("config",)
    files: ClassVar[tuple[str, ...]] = ("config",)
    chooses: ClassVar[bool] = False
    adapts: ClassVar[bool] = True

    @property
    def opaque(self) -> str | None:
        """Why neither FLOPs nor gradients of examples can be told of these adapters; None for plain LoRA."""
        return opaque_in(self._read())

    def check(self, target: Target) -> None:
        """Refuse a file that is no peft config, tuners that cannot be honest here, and targets that match nothing."""
        config = self._read()
        modules = {name.rpartition(".")[0] for names in target.tensors.values() for name in names}
        _refuse_targets(config, modules)
        for name in names_in(config.get("modules_to_save")):
            if hit := next((m for m in _with_parents(modules) if m.endswith(name)), None):
                raise MethodError(
                    f"modules_to_save names {name!r:.80}, and {hit!r} belongs to the base model: peft would train a "
                    "whole copy of it beside the adapters. Leave it out (a new head trains anyway), or use method "
                    "partial."
                )

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with the config's adapters in place; what peft lets train and the new head train."""
        import peft

        from cprbench.adapt.models import layer_linears, trained_cells

        self.check(Target(loaded.kind, loaded.partition.sizes, loaded.partition.parameters))
        config = {key: value for key, value in self._read().items() if key not in NOT_OURS}
        head = sorted({name.rpartition(".")[0] for name in loaded.partition.new_head})
        known = {field.name for field in fields(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]])}
        if head and "exclude_modules" in known:  # as peft does where task_type names a head
            config["exclude_modules"] = _joined(config.get("exclude_modules"), head)
            refuse(config, f"{self.config}, the new head excluded")  # else the run could not be exported
        linears = layer_linears(loaded)
        wrapped = insert(loaded, config, context.seed)
        cells = trained_cells(loaded)
        if not cells:
            raise MethodError(f"{Path(self.config).name}: no submodule of the model holds anything that trains.")
        ranks, outside = lora_ranks(loaded, linears)
        uncounted = opaque_in(config)
        if uncounted is None and outside:
            uncounted = f"an adapter on {outside[0]}, which is no linear of a layer, has no FLOP count"
        return Prepared(
            loaded.model,
            cells,
            {"adapter_config": config, **({} if uncounted else {"adapters": ranks})},
            adapters=None if uncounted else ranks,
            merge=partial(wrapped.merge_and_unload),
            uncounted=uncounted,
        )

    def _read(self) -> dict[str, Any]:
        if not self.config:
            raise MethodError("method 'peft' needs a config: --method peft:path/adapter_config.json.")
        return read(self.config)


def _refuse_targets(config: Mapping[str, Any], modules: set[str]) -> None:
    """Raise MethodError where target_modules match no module of the model (peft's rule: a list by ends, a pattern)."""
    wanted = config.get("target_modules")
    if not wanted or not modules or wanted == "all-linear":
        return
    if isinstance(wanted, str):
        found = any(re.fullmatch(wanted, name) for name in modules)
    else:
        found = any(f".{name}".endswith(f".{end}") for name in modules for end in wanted)
    if not found:
        ends = sorted({name.rpartition(".")[2] for name in modules})
        first = wanted if isinstance(wanted, str) else str(next(iter(wanted)))
        raise MethodError(f"target_modules = {wanted!r:.80} match nothing in this model. {did_you_mean(first, ends)}")


def _with_parents(modules: set[str]) -> list[str]:
    every = {".".join(parts[:i]) for name in modules for parts in [name.split(".")] for i in range(1, len(parts) + 1)}
    return sorted(every)


def _joined(excluded: str | Sequence[str] | None, modules: Sequence[str]) -> str | list[str]:
    """Return what peft is told to leave out: what the config says, and these modules."""
    if isinstance(excluded, str):
        return f"(?:{excluded})|(?:{'|'.join(re.escape(name) for name in modules)})"
    return [*(excluded or ()), *modules]


def opaque_in(config: Mapping[str, Any]) -> str | None:
    """Return why the FLOPs of a config's adapters are not counted; None for plain LoRA."""
    kind = config["peft_type"]
    if kind != "LORA":
        return f"adapters of type {kind} have no FLOP count"
    other = [key for key, value in config.items() if key not in (*_PLAIN, *NOT_OURS) and value]
    other += ["bias"] if config.get("bias", "none") != "none" else []
    other += ["mica"] if config.get("init_lora_weights") == "mica" else []  # it trains one of its two matrices
    return f"LoRA with {', '.join(sorted(other))} has no FLOP count" if other else None
