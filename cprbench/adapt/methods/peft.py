"""peft: whatever a peft config puts into the model trains, `--method peft:path/adapter_config.json`.

The config is read as data here, so that what cannot be honest is refused before anything runs: prompts of virtual
tokens, which scoring would leave out; initialisations that read data, which nobody would bill; tuners that want a loop
or a loss of their own. task_type says nothing here: the new head trains in every method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.adapters import insert, lora_ranks
from cprbench.adapt.methods.lora import Lora
from cprbench.blueprint.files import read_bytes
from cprbench.errors import MethodError, SpecError, did_you_mean

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel

#: What was tried (tests/adapt/test_peft_configs.py): trains in the model's own forward, reloads, scores the same.
TUNERS = (
    "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3",
    "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD",
    "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip
_VIRTUAL = "puts virtual tokens before the prompt, and scoring, which calls the model's own modules, leaves them out"
_PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
_REFUSED = {
    **dict.fromkeys(_PROMPTS, _VIRTUAL),
    "ADALORA": "prunes its ranks from inside a loop of its own and adds a loss; the one loop does neither",
    "ADAPTION_PROMPT": "puts prompts into attention from outside the modules that it is in",
    "POLY": "wants a task's number with every batch",
    "SHADOW": "changes what layers hand on to each other",
    "XLORA": "mixes adapters that were trained before",
}
_READS_DATA = "starts from training data or from requantised weights, which nothing here would measure or bill"
_REFUSED_SETTINGS = {
    "alora_invocation_tokens": "is switched on by tokens that only peft's own forward pass looks for",
    "arrow_config": "mixes adapters that were trained before",
    "kasa_config": "adds a loss that the one loop does not know",
    "layer_replication": "repeats layers, so that the model has other submodules than the one that was inspected",
    "megatron_config": "needs Megatron's layers",
    "monteclora_config": "adds a loss that the one loop does not know",
    "use_asa": "prunes from inside a loop of its own",
}
_DATA_DRIVEN = ("corda", "eva", "loftq", "lora_ga")
#: What a config says of where it came from, and what the run decides: who trains, and the head.
_NOT_OURS = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_version", "revision",
    "runtime_config", "task_type",
)  # fmt: skip
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
        return _opaque(self._read())

    def check(self, target: Target) -> None:
        """Refuse a file that is no peft config, tuners that cannot be honest here, and targets that match nothing."""
        config = self._read()
        _refuse_tuner(config, self.config)
        modules = {name.rpartition(".")[0] for names in target.tensors.values() for name in names}
        _refuse_targets(config, modules)
        for name in config.get("modules_to_save") or ():
            if hit := next((m for m in _with_parents(modules) if m.endswith(name)), None):
                raise MethodError(
                    f"modules_to_save names {name!r}, and {hit!r} belongs to the base model: peft would train a whole "
                    "copy of it beside the adapters. Leave it out (a new head trains anyway), or use method partial."
                )

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with the config's adapters in place; what peft lets train and the new head train."""
        import peft

        from cprbench.adapt.models import layer_linears, trained_cells

        self.check(Target(loaded.kind, loaded.partition.sizes, loaded.partition.parameters))
        config = {key: value for key, value in self._read().items() if key not in _NOT_OURS}
        head = sorted({name.rpartition(".")[0] for name in loaded.partition.new_head})
        known = {field.name for field in fields(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]])}
        if head and "exclude_modules" in known:  # as peft does where task_type names a head
            config["exclude_modules"] = _joined(config.get("exclude_modules"), head)
        linears = layer_linears(loaded)
        wrapped = insert(loaded, config, context.seed)
        cells = trained_cells(loaded)
        if not cells:
            raise MethodError(f"{Path(self.config).name}: no submodule of the model holds anything that trains.")
        ranks, outside = lora_ranks(loaded, linears)
        uncounted = _opaque(config)
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
        try:
            found = json.loads(read_bytes(Path(self.config)).decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"peft.config = {self.config}: not valid JSON: {error!s:.200}") from None
        if not isinstance(found, dict) or not isinstance(found.get("peft_type"), str):
            raise SpecError(f'peft.config = {self.config}: no peft config: it has no peft_type, such as "LORA".')
        return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _refuse_tuner(config: Mapping[str, Any], path: str) -> None:
    """Raise MethodError for tuners and settings that cannot be honest here."""
    kind = config["peft_type"]
    if kind in _REFUSED:
        raise MethodError(f"{path}: {kind} {_REFUSED[kind]}. Use a tuner that sits in modules, such as LORA or IA3.")
    if kind not in TUNERS:
        raise MethodError(f"{path}: peft_type {kind!r} has not been tried here. {did_you_mean(kind, TUNERS)}")
    for key, why in _REFUSED_SETTINGS.items():
        if config.get(key):
            raise MethodError(f"{path}: {key} {why}. Leave it out.")
    for key, value in config.items():
        if key.startswith("init_") and isinstance(value, str) and value.lower() in _DATA_DRIVEN:
            raise MethodError(f'{path}: {key} = "{value}" {_READS_DATA}. Use true, "gaussian" or "pissa".')


def _refuse_targets(config: Mapping[str, Any], modules: set[str]) -> None:
    """Raise MethodError where target_modules match no module of the model (peft's rule: a list by ends, a pattern)."""
    wanted = config.get("target_modules")
    if not wanted or not modules or wanted == "all-linear":
        return
    if isinstance(wanted, str):
        try:
            found = any(re.fullmatch(wanted, name) for name in modules)
        except re.error as error:
            raise MethodError(f"target_modules = {wanted!r:.80} is no regular expression: {error}.") from None
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


def _opaque(config: Mapping[str, Any]) -> str | None:
    kind = config["peft_type"]
    if kind != "LORA":
        return f"adapters of type {kind} have no FLOP count"
    other = [key for key, value in config.items() if key not in (*_PLAIN, *_NOT_OURS) and value]
    other += ["bias"] if config.get("bias", "none") != "none" else []
    other += ["mica"] if config.get("init_lora_weights") == "mica" else []  # it trains one of its two matrices
    return f"LoRA with {', '.join(sorted(other))} has no FLOP count" if other else None
