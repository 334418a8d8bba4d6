"""One small config per family, wide enough that what a model keeps is not lost among row statistics."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
import transformers

from cprbench.adapt.training import set_modes
from cprbench.meters.flops import Trained
from tests.test_flops import LINEARS, cell_of

LAYERS, LABELS = 3, 3
_SIZES = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 160}
_ENCODER = {**_SIZES, "vocab_size": 101, "num_labels": LABELS}
_CAUSAL = {**_SIZES, "vocab_size": 101, "num_key_value_heads": 2, "pad_token_id": 0}
_GPT2 = {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": 101, "bos_token_id": 1, "eos_token_id": 1}
_DISTIL = {"dim": 64, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 160, "vocab_size": 101, "num_labels": LABELS}
ENCODERS: dict[str, Any] = {
    "bert": transformers.BertConfig(**_ENCODER),
    "distilbert": transformers.DistilBertConfig(**_DISTIL),
    "roberta": transformers.RobertaConfig(**_ENCODER),
}
CAUSAL: dict[str, Any] = {
    "gemma": transformers.GemmaConfig(**_CAUSAL, head_dim=24),
    "gpt2": transformers.GPT2Config(**_GPT2),
    "llama": transformers.LlamaConfig(**_CAUSAL, tie_word_embeddings=False),
    "mistral": transformers.MistralConfig(**_CAUSAL, head_dim=24),
    "qwen2": transformers.Qwen2Config(**_CAUSAL),
    "qwen3": transformers.Qwen3Config(**_CAUSAL, head_dim=32),
}
CONFIGS = ENCODERS | CAUSAL
CELLS = frozenset({"embed", "head", *(f"{cell}.{layer}" for cell in ("attn", "ffn") for layer in range(LAYERS))})


def kind_of(name: str) -> Literal["encoder", "causal"]:
    return "encoder" if name in ENCODERS else "causal"


def labels_of(name: str) -> int | None:
    return LABELS if name in ENCODERS else None


def live(name: str, attention: str = "sdpa") -> Any:
    auto = transformers.AutoModelForSequenceClassification if name in ENCODERS else transformers.AutoModelForCausalLM
    model = auto.from_config(CONFIGS[name], attn_implementation=attention)
    model.config.use_cache = False
    return model


def train(model: Any, name: str, cells: frozenset[str], *, drops: bool) -> Trained:
    """Let `cells` and the new head train, as a run would; return what that is called."""
    for tensor, parameter in model.named_parameters():
        parameter.requires_grad_(cell_of(tensor) in cells | {"new"})
    model.eval()
    if drops:
        set_modes(model)
    return Trained(cells, name in ENCODERS)


def adapt(model: Any, name: str, rank: int, *, drops: bool, dropout: float = 0.0) -> Trained:
    """Put adapters on every linear of every layer; return what that is called."""
    import peft

    linears = LINEARS[name if name in LINEARS else "bert" if name in ENCODERS else "llama"].split()
    inside = re.compile(rf".*\.(?:layer|layers|h)\.\d+\.({'|'.join(linears)})")
    targets = [module for module, _ in model.named_modules() if inside.fullmatch(module)]
    turned = name == "gpt2"
    config = peft.LoraConfig(target_modules=targets, r=rank, lora_dropout=dropout, fan_in_fan_out=turned)
    peft.get_peft_model(model, config)
    for tensor, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in tensor or "classifier" in tensor)
    model.eval()
    if drops:
        set_modes(model)
    return Trained(CELLS - {"embed", "head"}, name in ENCODERS, lora=dict.fromkeys(linears, rank))


def loss_of(model: Any, name: str, batch: int, length: int, *, bf16: bool) -> torch.Tensor:
    """Return the loss of one batch with padding in it, computed the way cprbench does: logits of scored rows alone."""
    ids = torch.randint(3, 100, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        if name in ENCODERS:
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
        else:
            hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = model.get_output_embeddings()(hidden[list(range(batch)), [3] * batch]).float()
    return torch.nn.functional.cross_entropy(logits, torch.zeros(batch, dtype=torch.long))
