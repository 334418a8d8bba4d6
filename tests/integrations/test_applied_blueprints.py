"""apply_blueprint() in a script that is not ours, with files of ours and with what a watched loop wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cprbench
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.models import partition, task_head
from cprbench.blueprint import files, picking, watch
from cprbench.errors import MethodError, SpecError
from tests.blueprint.example import full_data, save
from tests.integrations.test_blueprints import CAUSAL, ENCODER, batches, bert, llama, named


def test_what_a_loop_showed_can_be_published_picked_from_and_applied(minilm2: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm2, num_labels=3).eval()
    draw = torch.Generator().manual_seed(2)
    with watch(model, every=1, examples=4) as watched, torch.inference_mode():
        for batch in batches():
            ids = torch.randint(1000, 2000, batch["input_ids"].shape, generator=draw)
            model(**(batch | {"input_ids": ids}))
    path = tmp_path / "watched.json"
    written = watched.write(path, "acme/minilm", checkpoint=0.5, source=str(minilm2))
    read = files.read(path)
    assert read == written
    assert str(tmp_path) not in path.read_text() and str(minilm2.parent) not in path.read_text()
    assert (read.model_id, read.training_checkpoint, read.reference) == ("acme/minilm", 0.5, "general")
    assert read.measurement and (read.measurement.batches, read.measurement.batch_size) == (5, 4)
    assert read.made and read.made.seconds == watched.seconds
    norms = {layer.id: layer.gradient_norm for layer in read.layers}
    sizes = {layer.id: layer.parameters or 0 for layer in read.layers}
    for layer in read.layers:
        interval = layer.domains["general"].gradient_norm_ci
        assert interval is not None and interval.low <= layer.gradient_norm <= interval.high
    expected = picking.pick(norms, sizes, sum(sizes.values()), 0.2).submodules

    fresh = transformers.AutoModelForSequenceClassification.from_pretrained(minilm2, num_labels=3)
    applied = cprbench.apply_blueprint(fresh, path, k=0.2, source=str(minilm2))
    assert applied.submodules == expected
    assert not applied.notes


def blueprint_of(model: Any, folder: Path, **changes: Any) -> Path:
    """Return a file of a live model whose norms fall from its first submodule to its last."""
    cells = partition(model, task_head(model))
    norms = {cell: 1.0 / (1 + place) for place, cell in enumerate(cells.sizes)}
    return save(folder, full_data(norms, sizes=dict(cells.sizes), **changes))


def trains(model: Any) -> set[str]:
    return {name for name, parameter in named(model) if parameter.requires_grad}


def test_a_plain_classification_script_trains_the_picked_set_and_its_task_head_and_nothing_else(
    tmp_path: Path,
) -> None:
    model = bert()
    model.bert.pooler.requires_grad_(False)  # whatever was frozen before counts for nothing
    path = blueprint_of(model, tmp_path)
    applied = cprbench.apply_blueprint(model, path, k=0.6, pick="norm")
    cells = partition(model, task_head(model)).parameters
    assert applied.submodules[0] == "attn.0" and "embed" not in applied.submodules
    expected = {name for cell in applied.submodules for name in cells[cell]} | {"classifier.weight", "classifier.bias"}
    assert trains(model) == expected == set(applied.parameters)
    assert applied.parameters[:2] == ("classifier.weight", "classifier.bias")
    backbone = sum(model.get_parameter(name).numel() for name in expected if not name.startswith("classifier"))
    assert applied.k_reached == backbone / sum(p.numel() for n, p in named(model) if not n.startswith("classifier"))
    assert any("not checked (source=" in note for note in applied.notes)

    before = {name: p.detach().clone() for name, p in named(model)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(**batches(1)[0]).loss.backward()
    optimizer.step()
    assert {name for name, p in named(model) if not torch.equal(before[name], p)} == expected


@pytest.mark.parametrize("embed", [False, True])
def test_a_plain_causal_script_with_tied_embeddings_trains_the_picked_set(embed: bool, tmp_path: Path) -> None:
    model = llama()
    applied = cprbench.apply_blueprint(model, blueprint_of(model, tmp_path), k=0.5, embed=embed)
    assert ("embed" in applied.submodules) == embed == model.lm_head.weight.requires_grad
    cells = partition(model).parameters
    assert trains(model) == {name for cell in applied.submodules for name in cells[cell]}


def test_a_bare_backbone_takes_a_blueprint_of_the_same_model_with_a_task_head(tmp_path: Path) -> None:
    whole = bert()
    path = blueprint_of(whole, tmp_path)
    bare = transformers.AutoModel.from_config(whole.config)
    assert task_head(bare) == ()
    applied = cprbench.apply_blueprint(bare, path, k=0.6)
    with_head = cprbench.apply_blueprint(whole, path, k=0.6)
    assert applied.submodules == with_head.submodules
    assert {f"bert.{name}" for name in applied.parameters} == set(with_head.parameters[2:])


def test_a_blueprint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path, other = blueprint_of(bert(), tmp_path), llama()
    other.model.embed_tokens.requires_grad_(False)
    before = trains(other)
    with pytest.raises(SpecError, match="is not of LlamaForCausalLM: .*differ in size"):
        cprbench.apply_blueprint(other, path)
    deeper = transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER, num_hidden_layers=3))
    with pytest.raises(SpecError, match=r"the file lacks attn\.2, ffn\.2"):
        cprbench.apply_blueprint(deeper, path)
    with pytest.raises(MethodError, match=r"outside \(0, 1\]"):
        cprbench.apply_blueprint(other, blueprint_of(llama(), tmp_path), k=2)
    assert trains(other) == before


def test_source_checks_that_the_weights_are_those_that_were_measured(tiny_llama: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    weights = resolve(str(tiny_llama), offline=True).weights_sha256
    applied = cprbench.apply_blueprint(
        model, blueprint_of(model, tmp_path, weights_sha256=weights), k=0.3, source=str(tiny_llama)
    )
    assert not applied.notes
    foreign = blueprint_of(model, tmp_path, weights_sha256="0" * 64)
    with pytest.raises(SpecError, match="foreign revision"):
        cprbench.apply_blueprint(model, foreign, k=0.3, source=str(tiny_llama))
    assert "not checked" in cprbench.apply_blueprint(model, foreign, k=0.3).notes[0]


def test_domain_and_granularity_reach_a_script(tmp_path: Path) -> None:
    model = llama()
    path = blueprint_of(model, tmp_path)  # "bio" has the norms turned round
    general, bio = (cprbench.apply_blueprint(model, path, k=0.3, domain=tag).submodules for tag in ("general", "bio"))
    assert general != bio
    assert cprbench.apply_blueprint(model, path, k=0.8, granularity="layer").submodules[:2] == ("attn.0", "ffn.0")
    with pytest.raises(MethodError, match="no domain 'law'"):
        cprbench.apply_blueprint(model, path, domain="law")


def _gpt2() -> transformers.GPT2Config:
    return transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)


def _distil() -> transformers.DistilBertConfig:
    return transformers.DistilBertConfig(vocab_size=50, dim=16, hidden_dim=24, n_layers=2, n_heads=2)


HEADS = [
    (lambda: transformers.BertForSequenceClassification, transformers.BertConfig(**ENCODER), "classifier"),
    (lambda: transformers.BertForTokenClassification, transformers.BertConfig(**ENCODER), "classifier"),
    (lambda: transformers.BertModel, transformers.BertConfig(**ENCODER), None),
    (lambda: transformers.RobertaForSequenceClassification, transformers.RobertaConfig(**ENCODER), "classifier"),
    (lambda: transformers.RobertaModel, transformers.RobertaConfig(**ENCODER), None),
    (lambda: transformers.DistilBertForSequenceClassification, _distil(), "pre_classifier|classifier"),
    (lambda: transformers.DistilBertModel, _distil(), None),
    (lambda: transformers.LlamaForCausalLM, transformers.LlamaConfig(**CAUSAL), None),
    (lambda: transformers.LlamaForCausalLM, transformers.LlamaConfig(**CAUSAL, tie_word_embeddings=True), None),
    (lambda: transformers.LlamaForSequenceClassification, transformers.LlamaConfig(**CAUSAL), "score"),
    (lambda: transformers.LlamaModel, transformers.LlamaConfig(**CAUSAL), None),
    (lambda: transformers.GPT2LMHeadModel, _gpt2(), None),
    (lambda: transformers.GPT2ForSequenceClassification, _gpt2(), "score"),
    (lambda: transformers.GPT2Model, _gpt2(), None),
]


@pytest.mark.parametrize(("kind", "config", "head"), HEADS, ids=[f"{kind().__name__}" for kind, _, _ in HEADS])
def test_the_task_head_is_what_lies_outside_the_backbone_and_is_no_output_layer(
    kind: Callable[[], Any], config: Any, head: str | None
) -> None:
    model = kind()(config)
    expected = [name for name, _ in named(model) if head and re.match(rf"(?:{head})\.", name)]
    assert list(task_head(model)) == expected
    assert bool(expected) == (head is not None)
    cells = partition(model, task_head(model))
    held = [name for names in cells.parameters.values() for name in names]
    assert sorted([*held, *expected]) == sorted(name for name, _ in named(model))
