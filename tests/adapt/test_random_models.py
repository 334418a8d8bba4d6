"""Models without weights: every block draws its own, the source stays one."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.configs import config_of
from cprbench.adapt.random_models import BUILT_IN, PREFIX, folder_of, identity, tokenizer_sha256
from cprbench.cli.lists import _models
from cprbench.errors import ModelError
from cprbench.meters.flops import supported
from cprbench.spec import stream_seed

TINY = "random:llama-tiny"


def weights(source: str, seed: int) -> dict[str, torch.Tensor]:
    loaded = models.load(resolve(source, offline=True), None, seed, "sdpa")
    return {name: parameter.detach() for name, parameter in loaded.model.named_parameters()}


def test_a_block_draws_the_same_weights_again_and_another_block_draws_others() -> None:
    torch.manual_seed(1)  # whatever was drawn before does not count
    first = weights(TINY, seed=11)
    torch.rand(1000)
    again, other = weights(TINY, seed=11), weights(TINY, seed=12)
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name, weight in first.items() if weight.ndim == 2]
    assert len(matrices) == 1 + 7 * 6
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


def test_weights_come_from_the_blocks_own_stream_whatever_else_it_draws() -> None:
    torch.manual_seed(stream_seed(11, "init"))
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder_of(TINY)), dtype=torch.float32)
    drawn = weights(TINY, seed=11)
    assert all(torch.equal(parameter, drawn[name]) for name, parameter in plain.named_parameters())


def test_weights_are_spread_as_the_config_says_and_norms_begin_at_one() -> None:
    for name, weight in weights(TINY, seed=3).items():
        if weight.ndim == 2:
            assert abs(float(weight.std()) - 0.02) < 0.001, name
            assert abs(float(weight.mean())) < 0.001, name
        else:
            assert torch.equal(weight, torch.ones_like(weight)), name


def test_what_identifies_the_model_is_its_config_and_its_tokenizer(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder_of(TINY), copy)
    same = resolve(f"random:{copy}", offline=True)
    assert same.weights_sha256 == resolve(TINY, offline=True).weights_sha256
    assert same.label == "copy (random initialisation)"
    seen = {same.weights_sha256}
    for name, key in (("config.json", "initializer_range"), ("tokenizer_config.json", "pad_token")):
        data = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**data, key: 0.01 if key == "initializer_range" else "<|end|>"}))
        seen.add(resolve(f"random:{copy}", offline=True).weights_sha256)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "spiece.model", "added_tokens.json", "source.spm", "tekken.json", "tokenizer.4.0.json"]
)
def test_every_file_of_a_tokenizer_is_part_of_the_identity(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder_of(TINY), copy)
    seen = {identity(copy)}
    for content in (b"one", b"another"):
        (copy / name).write_bytes(content)
        seen.add(identity(copy))
    (copy / "README.md").write_text("no tokenizer")
    assert len(seen) == 3 and identity(copy) in seen


def test_the_hash_of_files_that_were_hashed_before_stays(tmp_path: Path) -> None:
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
    )
    for name in names:
        (tmp_path / name).write_text(name)
    joined = b"".join(name.encode() + b"\0" + name.encode() for name in names)
    assert tokenizer_sha256(tmp_path) == hashlib.sha256(joined).hexdigest()


def test_a_folder_with_a_sentencepiece_model_alone_is_a_model_and_a_file_that_cannot_be_read_is_the_reason(
    tmp_path: Path,
) -> None:
    shutil.copy(folder_of(TINY) / "config.json", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model of sentencepiece")
    checkpoint = resolve(f"random:{tmp_path}", offline=True)
    with pytest.raises(
        ModelError, match=r"cannot read the tokenizer in .*takes the packages sentencepiece and protobuf"
    ):
        models.load(checkpoint, None, 1, "sdpa")


def test_weights_that_lie_in_the_folder_are_not_read(tiny_llama: Path) -> None:
    stored, drawn = weights(str(tiny_llama), seed=1), weights(f"random:{tiny_llama}", seed=1)
    assert stored.keys() == drawn.keys()
    assert not torch.equal(stored["model.embed_tokens.weight"], drawn["model.embed_tokens.weight"])
    ids = {resolve(source, offline=True).weights_sha256 for source in (str(tiny_llama), f"random:{tiny_llama}")}
    assert len(ids) == 2


def test_its_sizes_are_known_without_drawing_and_its_flops_are_counted() -> None:
    checkpoint = resolve(TINY, offline=True)
    partition = models.empty_partition(checkpoint, None)
    assert partition.sizes == models.load(checkpoint, None, 1, "sdpa").partition.sizes
    assert partition.total == 1_238_784
    assert sum(size for name, size in partition.sizes.items() if name != "embed") > 1_000_000
    assert supported(checkpoint.config) is None
    assert config_of(TINY, offline=True).config == checkpoint.config


@cache
def built_in_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(folder_of(TINY))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_the_built_in_tokenizer_is_one_token_per_byte_and_loses_nothing(text: str) -> None:
    try:
        spelled = text.encode()
    except UnicodeEncodeError:
        return
    tokenizer = built_in_tokenizer()
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]  # it may spell the word of the start
    assert bytes(ids) == spelled
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_an_encoder_and_a_name_that_is_not_known_are_refused(minilm2: Path) -> None:
    with pytest.raises(ModelError, match="weights are drawn for causal models only"):
        resolve(f"random:{minilm2}", offline=True)
    with pytest.raises(ModelError, match="Did you mean 'random:llama-tiny'"):
        resolve("random:llama-tin", offline=True)
    with pytest.raises(ModelError, match="no weights to pack into 4 bits"):
        models.load(resolve(TINY, offline=True), None, 1, "sdpa", four_bit=True)


def test_the_list_of_models_shows_the_built_in_ones() -> None:
    assert {PREFIX + name for name in BUILT_IN} <= _models().keys()
