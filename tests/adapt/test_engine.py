"""Per-example norms against the plain loop that everyone understands: one example, one backward pass, one norm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cprbench.adapt.gradients import forms
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.adapt.models import partition
from cprbench.adapt.objectives import ChoiceLikelihood, Classification, Item, Objective

Cells = Mapping[str, Sequence[str]]
VOCABULARY = 50
PAD = 1
ENCODERS = ("Bert", "Roberta", "DistilBert")
#: Tied and untied; grouped keys and values; Conv1D; biases of queries, keys and values; norms of queries and keys.
CAUSAL = ("Llama", "Llama tied", "GPT2", "Qwen2", "Qwen3 tied")


def tiny(family: str, seed: int = 0, *, layers: int = 2, heads: int = 2, head: int = 8) -> Objective:
    """Return a random model of a family in float64, every tensor drawn wide enough to matter, with its objective."""
    name, _, tied = family.partition(" ")
    width = heads * head
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    if name == "DistilBert":
        sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 3 * width}
    elif name == "GPT2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 140, "bos_token_id": 0}
    else:
        sizes["intermediate_size"] = 3 * width
    if name in ("Llama", "Qwen2", "Qwen3", "Gemma"):
        sizes |= {"num_key_value_heads": heads // 2 or 1, "head_dim": head, "tie_word_embeddings": bool(tied)}
    else:
        sizes["max_position_embeddings"] = 140
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, pad_token_id=PAD, eos_token_id=0, **sizes)
    config.use_cache = False
    kind = "ForSequenceClassification" if name in ENCODERS else "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, name + kind)(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0
            parameter.normal_(offset, 0.3)
    return (Classification if name in ENCODERS else ChoiceLikelihood)(model, PAD)


def items(objective: Objective, lengths: Sequence[int], seed: int = 0, answers: Sequence[int] = (1,)) -> list[Item]:
    """Return examples of given lengths in which ids repeat and the padding id is a real token here and there."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row, length in enumerate(lengths):
        answer = answers[row % len(answers)] if isinstance(objective, ChoiceLikelihood) else 0
        ids = torch.randint(0, VOCABULARY, (length + answer,), generator=generator).tolist()
        found.append(Item(tuple(ids[:length]), (tuple(ids[length:]),) if answer else (), 0 if answer else row % 2))
    return found


def plain_norms(model: nn.Module, cells: Cells, loss: Callable[[int], Tensor], examples: int) -> Tensor:
    """Return (examples, cells) norms from a backward pass per example."""
    parameters, rows = dict(model.named_parameters()), []
    for example in range(examples):
        model.zero_grad(set_to_none=True)
        loss(example).backward()
        squares = {n: 0.0 if p.grad is None else float(p.grad.double().square().sum()) for n, p in parameters.items()}
        rows.append([sum(squares[name] for name in names) ** 0.5 for names in cells.values()])
    model.zero_grad(set_to_none=True)
    return torch.tensor(rows, dtype=torch.float64)


def looped(
    objective: Objective, batch: Sequence[Item], cells: Cells, context: Callable[[], Any] = nullcontext
) -> Tensor:
    def loss(example: int) -> Tensor:
        with context():
            return objective.losses([batch[example]])[0].sum()

    return plain_norms(objective.model, cells, loss, len(batch))


def engine_norms(
    objective: Objective, batch: Sequence[Item], cells: Cells, context: Callable[[], Any] = nullcontext, **options: Any
) -> Tensor:
    def losses() -> Tensor:
        with context():
            return objective.losses(batch)[0]

    with ExampleNorms(objective.model, cells, **options) as probe:
        return probe.of(losses, objective.owners(batch))[1].sqrt()


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error, relative to the norm itself."""
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    assert (expected > 0).all()
    return float(((found - expected).abs() / expected).max())


def cells_of(objective: Objective) -> dict[str, tuple[str, ...]]:
    return dict(partition(objective.model).parameters)


def force(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(forms, "pair_cost", lambda *_: 0 if form == "pairs" else 10**15)


# Lengths around the blocks of 64 positions that forms.gram multiplies; a causal model sees one position less per
# answer token than prompt and answer have.
LENGTHS = st.lists(st.sampled_from([1, 2, 7, 63, 64, 65, 130]), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from([*ENCODERS, *CAUSAL]),
    seed=st.integers(0, 99),
    layers=st.integers(1, 2),
    heads=st.sampled_from([2, 4]),
    head=st.sampled_from([4, 8, 48]),
    lengths=LENGTHS,
    answers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    form=st.sampled_from(["pairs", "direct", "cheaper"]),
)
def test_norms_equal_those_of_one_backward_pass_per_example_whatever_the_model(
    family: str, seed: int, layers: int, heads: int, head: int, lengths: list[int], answers: list[int], form: str
) -> None:
    objective = tiny(family, seed, layers=layers, heads=heads, head=head)
    batch, cells = items(objective, lengths, seed, answers), cells_of(objective)
    with pytest.MonkeyPatch.context() as patch:
        if form != "cheaper":
            force(patch, form)
        # Encoders come to 1e-15. RMSNorms of transformers compute in float32 whatever they are given: 1e-7.
        assert error(engine_norms(objective, batch, cells), looped(objective, batch, cells)) < 1e-6


@pytest.mark.parametrize("form", ["pairs", "direct"])
@pytest.mark.parametrize("family", [*ENCODERS, *CAUSAL])
def test_in_float32_norms_are_right_to_one_in_a_hundred_thousand(
    family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Against the loop over a float64 copy. Both loops differ by about 1e-6 because the forward pass rounds.
    force(monkeypatch, form)
    for seed in range(3):
        single = tiny(family, seed)
        single.model.float()
        double = copy.deepcopy(single)
        double.model.double()
        batch, cells = items(single, (5, 1, 65, 130, 64), seed, (1, 3, 2)), cells_of(single)
        assert error(engine_norms(single, batch, cells), looped(double, batch, cells)) < 1e-5


@pytest.mark.parametrize("form", ["pairs", "direct"])
@pytest.mark.parametrize("family", ["Bert", "Llama tied", "GPT2"])
def test_under_bf16_autocast_norms_are_within_four_percent_of_the_same_loop(
    family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bfloat16 has 8 bits; the loop itself is up to 3 percent from float64 here, and rounds weight gradients as well.
    force(monkeypatch, form)
    objective = tiny(family)
    objective.model.float()
    batch, cells = items(objective, (5, 1, 65, 30), 0, (1, 3)), cells_of(objective)

    def bf16() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    expected = looped(objective, batch, cells, bf16)
    found = engine_norms(objective, batch, cells, bf16)
    assert error(found, expected) < 0.04
    assert float((found / expected - 1).mean().abs()) < 0.01  # without a bias to one side


def test_an_examples_norms_do_not_depend_on_who_else_is_in_the_batch() -> None:
    for family in ("Roberta", "Qwen3 tied"):
        objective = tiny(family)
        cells = cells_of(objective)
        first, *others = items(objective, (9, 130, 3, 64), 4, (2, 1, 3))
        alone = engine_norms(objective, [first], cells)[0]
        for batch in ([first, *others], [*others, first], [first, first, others[0]]):
            found = engine_norms(objective, batch, cells)
            places = [row for row, item in enumerate(batch) if item is first]
            for place in places:
                torch.testing.assert_close(found[place], alone, rtol=1e-6, atol=0)


def test_the_cross_term_of_a_tied_table_counts() -> None:
    objective = tiny("Llama tied")
    cells = {"embed": ("model.embed_tokens.weight",)}
    batch = items(objective, (6, 9), 1, (2, 3))
    expected = looped(objective, batch, cells)
    assert error(engine_norms(objective, batch, cells), expected) < 1e-6
    weight = objective.model.get_parameter("model.embed_tokens.weight")
    untied = copy.deepcopy(objective)
    untied.model.lm_head.weight = nn.Parameter(weight.detach().clone())
    parts = {"in": ("model.embed_tokens.weight",), "out": ("lm_head.weight",)}
    without = looped(untied, batch, parts).square().sum(1, keepdim=True).sqrt()
    assert float((without / expected - 1).abs().min()) > 1e-3


def test_token_types_and_the_row_of_the_padding_id_get_what_autograd_gives_them() -> None:
    objective = tiny("Bert")
    model = objective.model
    names = [n for n, _ in model.named_parameters() if "embeddings" in n]
    assert sum("type" in name or "position" in name for name in names) == 2
    cells = {name: (name,) for name in names}
    ids = torch.randint(0, VOCABULARY, (3, 12))
    ids[:, ::3] = PAD
    types = torch.randint(0, 2, (3, 12))

    def losses(rows: slice = slice(None)) -> Tensor:
        logits = model(input_ids=ids[rows], token_type_ids=types[rows]).logits
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")

    expected = plain_norms(model, cells, lambda row: losses(slice(row, row + 1)).sum(), 3)
    with ExampleNorms(model, cells) as probe:
        assert error(probe.of(losses, range(3))[1].sqrt(), expected) < 1e-9
    model.bert.embeddings.word_embeddings.padding_idx = None
    assert not torch.allclose(plain_norms(model, cells, lambda row: losses(slice(row, row + 1)).sum(), 3), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Llama tied"])
def test_gradient_checkpointing_changes_nothing(family: str, reentrant: bool) -> None:
    objective = tiny(family)
    model = objective.model
    batch, cells = items(objective, (5, 12, 8), 0, (1, 2)), cells_of(objective)
    expected = looped(objective, batch, cells)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()  # transformers checkpoints in train mode alone
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    runs = []
    layers = model.base_model.encoder.layer if family == "Bert" else model.base_model.layers
    next(layers[0].children()).register_forward_hook(lambda *_: runs.append(1))
    for freeze in (True, False):
        runs.clear()
        assert error(engine_norms(objective, batch, cells, freeze=freeze), expected) < 1e-6
        assert len(runs) == 2  # it was really run again in the backward pass
    part = {"ffn.1": cells["ffn.1"]}
    column = list(cells).index("ffn.1")
    assert error(engine_norms(objective, batch, part), expected[:, column : column + 1]) < 1e-6


def test_some_submodules_give_their_columns_of_all() -> None:
    objective = tiny("GPT2")
    cells, batch = cells_of(objective), items(objective, (5, 1, 30))
    every = engine_norms(objective, batch, cells)
    for names in (["ffn.1"], ["head", "attn.0"], ["embed"]):
        found = engine_norms(objective, batch, {name: cells[name] for name in names})
        torch.testing.assert_close(found, every[:, [list(cells).index(name) for name in names]])
    biases = {"biases": [n for n, _ in objective.model.named_parameters() if n.endswith("bias")]}
    assert error(engine_norms(objective, batch, biases), looped(objective, batch, biases)) < 1e-9
    apart = {"weight": ["transformer.h.0.mlp.c_fc.weight"], "bias": ["transformer.h.0.mlp.c_fc.bias"]}
    assert error(engine_norms(objective, batch, apart), looped(objective, batch, apart)) < 1e-9


def test_frozen_passes_leave_parameters_as_they_were_even_after_an_error() -> None:
    objective = tiny("Bert")
    parameters = dict(objective.model.named_parameters())
    for row, parameter in enumerate(parameters.values()):
        parameter.requires_grad_(row % 3 > 0)
    before = {name: p.requires_grad for name, p in parameters.items()}
    engine_norms(objective, items(objective, (5, 9)), cells_of(objective))
    assert {name: p.requires_grad for name, p in parameters.items()} == before
    batch = items(objective, (5, 9))
    with (
        pytest.raises(ValueError, match="1 losses for 2 examples"),
        ExampleNorms(objective.model, cells_of(objective)) as probe,
    ):
        probe.of(lambda: objective.losses(batch)[0][:1], range(2))
    assert {name: p.requires_grad for name, p in parameters.items()} == before
    assert all(p.grad is None for p in parameters.values())
    assert not any(module._forward_hooks for module in objective.model.modules())


@pytest.mark.parametrize("family", ["Roberta", "Llama tied", "GPT2"])
def test_weight_gradients_beside_are_those_of_a_plain_backward_pass(family: str) -> None:
    objective = tiny(family)
    batch, cells = items(objective, (5, 12, 8), 0, (1, 2)), cells_of(objective)
    objective.losses(batch)[0].mean().backward()
    expected = {n: p.grad.clone() for n, p in objective.model.named_parameters() if p.grad is not None}
    objective.model.zero_grad(set_to_none=True)
    with ExampleNorms(objective.model, cells, freeze=False) as probe:
        losses, squared = probe.of(lambda: objective.losses(batch)[0], objective.owners(batch), scale=1 / 3)
    found = {n: p.grad.clone() for n, p in objective.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-12)
    assert error(squared.sqrt(), looped(objective, batch, cells)) < 1e-6  # the scale is taken out again
    torch.testing.assert_close(losses, objective.losses(batch)[0].detach())
    assert not losses.requires_grad


def test_an_example_without_a_gradient_has_norm_zero() -> None:
    objective = tiny("Llama tied")
    batch = items(objective, (5, 9, 7))
    with ExampleNorms(objective.model, cells_of(objective)) as probe:
        keep = torch.tensor([1.0, 0.0, 1.0])
        found = probe.of(lambda: objective.losses(batch)[0] * keep, objective.owners(batch))[1].sqrt()
    assert (found[1] == 0).all()
    assert (found[[0, 2]] > 0).all()
