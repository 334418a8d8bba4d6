"""What methods share that put adapters of peft into a model and leave its own weights as they are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cprbench.errors import MethodError
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel

#: What peft raises at configs that it cannot use.
_OF_PEFT = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
    re.error,
)  # fmt: skip
#: In torch's errors, on GPUs and on CPUs.
_WANT_OF_MEMORY = ("out of memory", "can't allocate memory")


def insert(loaded: LoadedModel, config: Mapping[str, Any], seed: int) -> Any:
    """Put adapters into the model, in place, and return peft's wrapper; they and the new head train, nothing else.

    `config`: as adapter_config.json has it. `seed`: the block's, whose stream "adapter init" they are drawn from.
    Raises MethodError for what peft refuses, in its words. A want of memory is passed on: the run's status tells of it.
    """
    import peft
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed; it concerns nobody here.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.manual_seed(stream_seed(seed, "adapter init"))
        try:
            made = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]](**config)
            wrapped = peft.get_peft_model(loaded.model, made)
        except _OF_PEFT as why:
            if isinstance(why, RuntimeError) and any(words in str(why) for words in _WANT_OF_MEMORY):
                raise
            raise MethodError(f"peft cannot put these adapters into {type(loaded.model).__name__}: {why}") from why
    parameters = dict(loaded.model.named_parameters())
    if lost := [name for name in loaded.partition.new_head if name not in parameters]:
        raise MethodError(f"these adapters wrap {lost[0]!r} of the new head, which trains whole in every method.")
    for name in loaded.partition.new_head:
        parameters[name].requires_grad_(True)
    return wrapped


def lora_ranks(loaded: LoadedModel, linears: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """Return cell/linear -> rank of the adapters in a model, and the modules with an adapter that are none of these.

    `linears`: as models.layer_linears told them before the adapters went in.
    """
    from peft.tuners.lora import LoraLayer

    cell_of = {name: cell for cell, names in loaded.partition.parameters.items() for name in names}
    adapted = {path: layer for path, layer in loaded.model.named_modules() if isinstance(layer, LoraLayer)}
    found = {
        f"{cell_of[f'{path}.weight']}/{linears[path]}": int(layer.r["default"])
        for path, layer in adapted.items()
        if path in linears
    }
    return found, [path for path in adapted if path not in linears]
