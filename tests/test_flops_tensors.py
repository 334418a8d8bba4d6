"""The FLOP count where less than whole submodules has gradients: single tensors, weights beside adapters, probes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from cprbench.errors import SpecError, StoreError
from cprbench.meters.flops import Pass, Trained, pass_flops
from tests.test_flops import (
    CONFIGS,
    ENCODERS,
    IN_DETAIL,
    LABELS,
    LINEARS,
    NOTHING,
    SETS,
    a_pass,
    agrees,
    cell_of,
    kind_of,
    model_of,
)

WITH_PARTS = (*IN_DETAIL, "qwen2")
PARTS = {
    "every bias": r"\.bias$",
    "biases of the last layer": r"\.2\..*\.bias$",
    "biases of the ffn": r"\.\d\.(intermediate|output|ffn|mlp).*\.bias$",
    "every norm": r"(?i)norm|ln_",
    "queries of the middle layer": r"\.1\..*(query|q_lin|q_proj|c_attn)\.",
    "weights of queries above, of an ffn's output below": r"\.2\..*(query|q_lin|q_proj|c_attn)\.weight"
    r"|\.0\..*(output\.dense|lin2|c_proj|down_proj)\.weight",
    "weights of keys and values": r"(key|value|[kv]_lin|[kv]_proj)\.weight",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensors_of(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if cell_of(name) != "new"]


def by_cell(tensors: Sequence[str]) -> dict[str, list[str]]:
    return {cell: [t for t in tensors if cell_of(t) == cell] for cell in {cell_of(t) for t in tensors}}


def check(model: Any, name: str, tensors: Sequence[str], *, new_head: bool) -> None:
    """Train exactly `tensors` and, where asked for, the new head; compare with what torch executes."""
    for tensor, parameter in model.named_parameters():
        parameter.requires_grad_(tensor in tensors or (new_head and cell_of(tensor) == "new"))
    parts = by_cell(tensors)
    agrees(model, name, Trained(frozenset(parts), new_head, tensors=parts), a_pass(name, "method", backward=True))


@pytest.mark.parametrize("name", WITH_PARTS)
def test_training_parts_of_submodules_counts_what_torch_executes(name: str) -> None:
    model = model_of(name)
    found = {part: [t for t in tensors_of(model) if re.search(pattern, t)] for part, pattern in PARTS.items()}
    absent = {part for part, tensors in found.items() if not tensors}
    if name in ("llama", "llama with a tied lm_head", "qwen3"):
        assert absent == {"every bias", "biases of the last layer", "biases of the ffn"}
    else:  # Qwen2 has biases in its attention alone, GPT-2 its keys and values in one with the queries
        assert absent == {"qwen2": {"biases of the ffn"}, "gpt2": {"weights of keys and values"}}.get(name, set())
    for part in found.keys() - absent:
        check(model, name, found[part], new_head=name in ENCODERS)


@pytest.mark.parametrize("name", WITH_PARTS)
def test_every_tensor_trained_alone_counts_what_torch_executes(name: str) -> None:
    model = model_of(name)
    for tensor in tensors_of(model):
        if not re.search(r"\.[02]\.", tensor):  # one layer stands for the others
            check(model, name, [tensor], new_head=False)


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize("name", WITH_PARTS)
def test_any_few_tensors_count_what_torch_executes(name: str, draw: int) -> None:
    model, lot = model_of(name), random.Random(f"{name} {draw}")
    check(model, name, lot.sample(tensors_of(model), 1 + draw % 4), new_head=name in ENCODERS)


def test_biases_cost_the_gradients_of_activations_down_to_the_lowest_one_and_none_of_weights() -> None:
    config, p = CONFIGS["bert"].to_dict(), a_pass("bert", "method", backward=True)
    tensors = {"ffn.1": ["intermediate.dense.bias"]}

    def cost(trained: Trained) -> int:
        return pass_flops(config, "encoder", LABELS, trained, p).total

    biases = cost(Trained(frozenset(tensors), new_head=False, tensors=tensors))
    weights = cost(Trained(frozenset(tensors), new_head=False))
    assert weights - biases == 2 * (2 * 64 * 96) * p.batch * p.length  # both linears of that ffn
    lower = cost(Trained(frozenset({"attn.1"}), new_head=False, tensors={"attn.1": ["attention.self.value.bias"]}))
    assert lower > biases


@pytest.mark.parametrize("cells", SETS.values(), ids=SETS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "llama with a tied lm_head"])
def test_naming_every_tensor_of_a_submodule_is_naming_the_submodule(name: str, cells: set[str]) -> None:
    parts = by_cell([t for t in tensors_of(model_of(name)) if cell_of(t) in cells])
    p, new_head = a_pass(name, "method", backward=True), name in ENCODERS
    whole, named = Trained(frozenset(cells), new_head), Trained(frozenset(cells), new_head, tensors=parts)
    args = (CONFIGS[name].to_dict(), kind_of(name), LABELS)
    if not parts and not new_head:
        return
    assert pass_flops(*args, named, p) == pass_flops(*args, whole, p)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
@pytest.mark.parametrize("own", ["ffn.0", "attn.1", "embed"])
@pytest.mark.parametrize("name", LINEARS)
def test_own_weights_beside_adapters_count_what_torch_executes(name: str, own: str) -> None:
    model = model_of(name)
    tensors = [t for t in tensors_of(model) if cell_of(t) == own]
    trainable = {id(model.get_parameter(t)) for t in tensors}
    trainable |= {id(p) for t, p in model.named_parameters() if cell_of(t) == "new"}
    ranks = {linear: rank for rank, linear in enumerate(LINEARS[name].split(), start=3)}
    adapted = {f"{cell}.{layer}" for cell in ("attn", "ffn") for layer in (1, 2)} - {own}
    inside = re.compile(rf".*\.(?:layer|layers|h)\.\d\.({'|'.join(ranks)})")
    targets = [m for m, _ in model.named_modules() if inside.fullmatch(m) and cell_of(f"{m}.weight") in adapted]
    rank_pattern = {f".*{re.escape(linear)}": rank for linear, rank in ranks.items()}
    config = peft.LoraConfig(target_modules=targets, rank_pattern=rank_pattern, fan_in_fan_out=name == "gpt2")
    wrapped = peft.get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if id(parameter) in trainable:
            parameter.requires_grad_(True)
    trained = Trained(frozenset(adapted), name in ENCODERS, ranks, {own: tensors})
    agrees(wrapped, name, trained, a_pass(name, "method", backward=True))
    agrees(wrapped, name, trained, a_pass(name, "method", backward=False))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_probe_of_activation_gradients_counts_what_torch_executes(name: str) -> None:
    model = model_of(name).requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: out.requires_grad_())
    p = a_pass(name, "activations", backward=True)
    agrees(model, name, NOTHING, p)
    config, kind = CONFIGS[name].to_dict(), kind_of(name)
    parts = by_cell([t for t in tensors_of(model) if cell_of(t) == "ffn.1"])
    method = Trained(frozenset(parts), new_head=True, tensors=parts)  # what a method trains is not in it
    assert pass_flops(config, kind, LABELS, method, p) == pass_flops(config, kind, LABELS, NOTHING, p)


def test_flops_that_the_measuring_code_counted_are_added_to_the_total_alone() -> None:
    p = a_pass("bert", "activations", backward=True, lengths=(12, 7, 4))
    config = CONFIGS["bert"].to_dict()
    without = pass_flops(config, "encoder", LABELS, NOTHING, replace(p, times=3))
    extra = pass_flops(config, "encoder", LABELS, NOTHING, replace(p, times=3, extra_flops=1000))
    assert extra.total == without.total + 3000
    assert extra.padding == without.padding


def test_lines_written_before_there_were_extra_flops_read_and_write_the_same() -> None:
    old = (
        '{"attempt":1,"backward":true,"batch":3,"length":12,"phase":"train","scored":3,"squared":432,'
        '"times":1,"tokens":36,"trains":"all"}'
    )
    p = Pass.parse(json.loads(old))
    assert p == a_pass("bert", "all", backward=True)
    assert json.loads(p.line()) == json.loads(old)
    probe = replace(p, trains="activations", extra_flops=7)
    assert Pass.parse(json.loads(probe.line())) == probe


@pytest.mark.parametrize("extra", [-1, 1.0, True, None])
def test_extra_flops_are_a_whole_number(extra: Any) -> None:
    data = json.loads(a_pass("bert", "all", backward=True).line()) | {"extra_flops": extra}
    with pytest.raises(StoreError, match="extra_flops"):
        Pass.parse(data)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"ffn.3": ["output.dense.bias"]}, "no submodule 'ffn.3'"),
        ({"attn.1": ["attention.self.qery.weight"]}, "'attn.1' has no tensor.*Did you mean 'attention.self.query.weig"),
        ({"attn.1": ["attention.self.query"]}, "has no tensor 'attention.self.query'"),
        ({"attn.1": ["intermediate.dense.bias"]}, "'attn.1' has no tensor 'intermediate.dense.bias'"),
        ({"head": ["lm_head.weight"]}, "'head' has no tensor 'lm_head.weight'"),
    ],
)
def test_tensors_that_the_model_does_not_have_are_refused(tensors: dict[str, list[str]], says: str) -> None:
    trained = Trained(frozenset(), new_head=True, tensors=tensors)
    with pytest.raises(SpecError, match=says):
        pass_flops(CONFIGS["bert"].to_dict(), "encoder", LABELS, trained, a_pass("bert", "method", backward=True))
