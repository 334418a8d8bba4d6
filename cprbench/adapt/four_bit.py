"""Base weights in 4 bits by bitsandbytes: how they are loaded, in what they multiply, and how they come out again.

Weights of linears are held as nf4 codes with doubly quantised scales (Dettmers et al. 2023) and unpacked for every
product; tables, norms, biases, output layers and a new head stay float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cprbench.errors import ModelError


def options(kept: Sequence[str]) -> dict[str, Any]:
    """Return what from_pretrained is given besides. `kept`: modules that stay float32, besides the output layer.

    Raises ModelError where bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("4-bit weights need bitsandbytes, which is not installed. Run: pip install 'cprbench[qlora]'")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # outside autocast; `make_ready` sees to the rest
        llm_int8_skip_modules=list(kept) or None,
    )
    return {"quantization_config": config}


def is_four_bit(module: nn.Module) -> bool:
    """Return whether a module is a linear whose weight is packed, without importing bitsandbytes."""
    return isinstance(module, nn.Linear) and type(module).__name__ == "Linear4bit"


def make_ready(model: nn.Module) -> None:
    """Make 4-bit linears multiply in what autocast multiplies in: bf16 where a run trains in bf16, float32 in scoring.

    bitsandbytes has one dtype per module, and rounds a bias to it for good; both are put right around every pass. Its
    fast path on CPUs repacks a weight at the first scoring pass and has no backward, so it stays off.
    """

    def before(module: Any, inputs: Any) -> None:
        kind = module.weight.device.type
        cast = torch.is_autocast_enabled(kind)
        module.compute_dtype = torch.get_autocast_dtype(kind) if cast else torch.float32
        module.exact_bias = None if module.bias is None else module.bias.data

    def after(module: Any, inputs: Any, output: Any) -> None:
        if module.exact_bias is not None:
            module.bias.data = module.exact_bias

    packed: list[Any] = [module for module in model.modules() if is_four_bit(module)]
    for module in packed:
        module.support_avx512bf16_for_cpu = False
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def merged(wrapped: Any) -> nn.Module:
    """Return a plain float32 model of peft's: unpacked weights plus adapters. It computes what was trained.

    peft's own merge packs the sums again, and the untouched base is another model than the one that was trained on.
    """
    from peft.tuners.lora import LoraLayer

    with torch.no_grad():
        layers = dict(wrapped.get_base_model().named_modules())
        deltas = {
            name: layer.get_delta_weight("default") for name, layer in layers.items() if isinstance(layer, LoraLayer)
        }
        plain: Any = wrapped.unload().dequantize()
        for name, delta in deltas.items():
            weight = plain.get_submodule(name).weight
            weight.copy_(weight + delta)
    return plain  # type: ignore[no-any-return]
