"""Partition, new heads and sources of real and tiny models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.errors import ModelError, OfflineError
from cprbench.spec import ModelRef


def test_the_partition_of_minilm_covers_every_parameter_once_and_leaves_the_new_head_apart(minilm2: Path) -> None:
    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=1, attention="sdpa")
    partition = loaded.partition
    assert list(partition.sizes) == ["embed", "attn.0", "ffn.0", "attn.1", "ffn.1", "head"]
    assert partition.new_head == ("classifier.weight", "classifier.bias")
    names = [name for group in partition.parameters.values() for name in group]
    assert sorted([*names, *partition.new_head]) == sorted(n for n, _ in loaded.model.named_parameters())
    every = sum(p.numel() for p in loaded.model.parameters())
    assert partition.total == every - 2 * 384 - 2
    assert "bert.encoder.layer.0.attention.output.LayerNorm.weight" in partition.parameters["attn.0"]
    assert "bert.pooler.dense.weight" in partition.parameters["head"]


def test_whole_minilm_has_the_published_number_of_parameters_and_its_tables_are_half_of_them() -> None:
    partition = models.empty_partition(resolve("minilm", offline=False), 3)
    assert partition.total == 22_713_216
    assert partition.sizes["embed"] / partition.total == pytest.approx(0.52, abs=0.01)
    assert partition.sizes["attn.3"] / partition.total == pytest.approx(0.026, abs=0.001)


def test_sizes_known_before_loading_are_those_of_the_loaded_model(minilm2: Path, tiny_llama: Path) -> None:
    for folder, labels in ((minilm2, 2), (tiny_llama, None)):
        checkpoint = resolve(str(folder), offline=True)
        assert models.load(checkpoint, labels, 1, "sdpa").partition == models.empty_partition(checkpoint, labels)


def test_a_tied_output_table_is_counted_once_and_belongs_to_embed(tiny_llama: Path) -> None:
    loaded = models.load(resolve(str(tiny_llama), offline=True), None, seed=1, attention="sdpa")
    assert loaded.partition.parameters["embed"] == ("model.embed_tokens.weight",)
    assert loaded.partition.parameters["head"] == ("model.norm.weight",)
    assert "model.layers.1.post_attention_layernorm.weight" in loaded.partition.parameters["ffn.1"]


def test_an_untied_output_table_belongs_to_head() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=False, **sizes))
    assert "lm_head.weight" in models.partition(model).parameters["head"]


def test_gpt2_with_its_fused_convolutions_and_two_tables_is_cut_right() -> None:
    partition = models.partition(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2)))
    assert list(partition.sizes) == ["embed", "attn.0", "ffn.0", "attn.1", "ffn.1", "head"]
    assert partition.parameters["embed"] == ("transformer.wte.weight", "transformer.wpe.weight")
    assert partition.parameters["attn.1"][0] == "transformer.h.1.ln_1.weight"
    assert "transformer.h.1.ln_2.weight" in partition.parameters["ffn.1"]


def test_the_new_head_comes_from_the_blocks_own_stream_and_from_nothing_else(minilm2: Path) -> None:
    checkpoint = resolve(str(minilm2), offline=True)
    first = models.load(checkpoint, 2, seed=1, attention="sdpa")
    torch.rand(1000)
    again = models.load(checkpoint, 2, seed=1, attention="sdpa")
    other = models.load(checkpoint, 2, seed=2, attention="sdpa")
    weights = [m.model.get_parameter("classifier.weight") for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.count_nonzero(first.model.get_parameter("classifier.bias")) == 0


def test_a_model_folder_with_only_a_pickle_is_refused_with_the_reason(minilm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(minilm2, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\).*safetensors only"):
        resolve(str(folder), offline=True)


def test_a_folder_without_a_config_and_an_unknown_alias_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no readable config.json"):
        resolve(str(tmp_path), offline=True)
    with pytest.raises(ModelError, match="Did you mean 'minilm'"):
        resolve("minilmm", offline=True)


def test_a_hub_model_is_not_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match="--offline"):
        resolve("meta-llama/Llama-3.2-3B", offline=True)


def test_an_encoder_decoder_is_refused(minilm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seq2seq"
    shutil.copytree(minilm2, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"is_encoder_decoder": true,', 1))
    with pytest.raises(ModelError, match="encoder-decoder"):
        resolve(str(folder), offline=True)


def test_a_model_from_a_hub_is_found_again_by_its_revision() -> None:
    digest = "a" * 64
    given: dict[str, Any] = {"label": "x", "weights_sha256": digest, "parameters": 1, "kind": "causal", "config": {}}
    assert ModelRef(source="org/name", revision="0123abc", **given).pinned == "org/name@0123abc"
    assert ModelRef(source="minilm", revision=None, **given).pinned == "minilm"
