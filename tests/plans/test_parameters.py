"""Parameters counted from a config alone, against live models of every family."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.errors import ModelError
from cprbench.plans.parameters import layer_linears, layout
from tests.conftest import ROOT
from tests.test_flops import CONFIGS, ENCODERS, LABELS, LINEARS

LLAMA_7B = json.loads((ROOT / "tests/configs/llama-2-7b/config.json").read_text())


def saved(name: str, folder: Path) -> Path:
    """Save a random model of a family as a checkpoint without a task head."""
    config = CONFIGS[name]
    if name in ENCODERS:
        transformers.AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    else:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_a_family_is_known_with_its_shape_and_submodule(name: str, tmp_path: Path) -> None:
    checkpoint = resolve(str(saved(name, tmp_path)), offline=True)
    labels = LABELS if name in ENCODERS else None
    live = models.empty_partition(checkpoint, labels)
    found = layout(checkpoint.config, checkpoint.kind, labels)
    assert found.sizes == dict(live.sizes)
    assert list(found.sizes) == list(live.sizes)  # in partition order, which every picker walks
    assert found.total == live.total
    assert {cell: set(names) for cell, names in found.names.items()} == {
        cell: set(names) for cell, names in live.parameters.items()
    }
    assert set(found.new_head) == set(live.new_head)


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, attention_bias=True),
        transformers.LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, mlp_bias=True),
        transformers.Qwen3Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, attention_bias=True),
        transformers.GemmaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, attention_bias=True),
    ],
    ids=["llama attention", "llama mlp", "qwen3 attention", "gemma attention"],
)
def test_biases_that_are_a_setting_are_counted(config: Any) -> None:
    with torch.device("meta"):
        live = transformers.AutoModelForCausalLM.from_config(config)
    live.tie_weights()
    found = layout(config.to_dict(), "causal", None)
    shapes = {name: shape for group in found.tensors.values() for name, shape in group.items()}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in live.named_parameters()}
    assert any(name.endswith("bias") for name in shapes)


def test_minilm_has_its_published_size_and_a_new_head_of_three_labels() -> None:
    checkpoint = resolve("minilm", offline=False)
    found = layout(checkpoint.config, "encoder", 3)
    assert found.total == 22_713_216
    assert found.sizes == dict(models.empty_partition(checkpoint, 3).sizes)
    assert found.new_head_size == 3 * 384 + 3


def test_llama_2_7b_has_its_published_size() -> None:
    found = layout(LLAMA_7B, "causal", None)
    assert found.total == 6_738_415_616
    assert found.new_head_size == 0
    assert found.sizes["embed"] == 32_000 * 4096
    inside = layer_linears(LLAMA_7B, "causal")
    assert len(inside) == 32 * 7
    assert sum(map(math.prod, inside.values())) == 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert {name for _, name in inside} == set(LINEARS["llama"].split())


@pytest.mark.parametrize("key", ["type_vocab_size", "max_position_embeddings"])
def test_a_config_that_lacks_a_size_is_refused_with_the_key(key: str) -> None:
    config = {k: v for k, v in ENCODERS["bert"].to_dict().items() if k != key}
    with pytest.raises(ModelError, match=f"{key} is None"):
        layout(config, "encoder", 2)


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="mamba"):
        layout({"model_type": "mamba"}, "causal", None)
