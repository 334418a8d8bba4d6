"""What the engine knows of single modules: formulas for some, a clear refusal of all others, and the memory of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from cprbench.adapt.gradients import forms
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.adapt.objectives import Classification
from cprbench.errors import ModelError
from tests.adapt.test_engine import PAD, VOCABULARY, cells_of, engine_norms, error, items, plain_norms, tiny


class Toy(nn.Module):
    """Parts, and a function that runs them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def toy_losses(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().flatten(1).sum(1)


def run_toy(model: nn.Module, losses: Callable[[], Tensor], examples: int) -> Tensor:
    with ExampleNorms(model, {n: (n,) for n, _ in model.named_parameters()}) as probe:
        return probe.of(losses, range(examples))[1].sqrt()


def toy_norms(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    found = run_toy(model, lambda: toy_losses(model, x), len(x))
    cells = {n: (n,) for n, _ in model.named_parameters()}
    return found, plain_norms(model, cells, lambda row: toy_losses(model, x[row : row + 1]).sum(), len(x))


@pytest.mark.parametrize("small", [1.0, 1e-3])
@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(6),
        nn.LayerNorm(6, bias=False),
        nn.RMSNorm(6),
        nn.RMSNorm(6, eps=1e-3),
        nn.Linear(6, 5, bias=False),
        Conv1D(5, 6),
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True)),
    ],
)
def test_single_layers_are_right_with_small_inputs_and_when_changed_in_place(layer: nn.Module, small: float) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():  # they were drawn when pytest collected, from whatever seed was in force
        nn.init.normal_(parameter, 0.1, 0.5)
    model = nn.Sequential(nn.Linear(3, 6), layer, nn.LazyLinear(2)).double()
    x = small * torch.randn(4, 7, 3, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias.mul_(small)
        model(x)
    found, expected = toy_norms(model, x)
    assert error(found, expected) < 1e-9


def test_checkpoints_that_no_gradient_comes_back_to_are_an_error_and_not_a_zero() -> None:
    with pytest.warns(UserWarning, match="None of the inputs"), pytest.raises(ModelError, match="use_reentrant=False"):
        toy_norms(
            Toy(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=True)), a=nn.Linear(4, 4), b=nn.Linear(4, 1)),
            torch.randn(3, 2, 4),
        )


def linear(width: int = 4) -> nn.Linear:
    return nn.Linear(width, width)


def sharing() -> nn.Module:
    toy = Toy(lambda m, x: m.b(m.a(x)), a=linear(), b=linear())
    toy.b.weight = toy.a.weight
    return toy


def norm_by_name(run: Callable[..., Tensor]) -> nn.Module:
    return Toy(lambda m, x: m.a(x), a=type("OddRMSNorm", (nn.RMSNorm,), {"forward": run})(4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Toy(lambda m, x: m.a(m.a(x)), a=linear()), "a Linear is used twice in one pass"),
        (sharing(), "share a weight"),
        (Toy(lambda m, x: m.a(x.mT), a=nn.Conv1d(4, 4, 1)), "a is a Conv1d, whose per-example gradients have no form"),
        (Toy(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)), "a is a MultiheadAtt"),
        (Toy(lambda m, x: x * m.scale, scale=nn.Parameter(torch.ones(4))), "the model is a Toy"),
        (Toy(lambda m, x: m.a(x), a=nn.Bilinear(4, 4, 4)), "a is a Bilinear"),
        (Toy(lambda m, x: x + m.a(torch.zeros(2, 2).long()), a=nn.Embedding(3, 4, max_norm=1.0)), "a is a Embedding"),
        (norm_by_name(lambda m, x, gate: gate * x), "a is a OddRMSNorm"),
        (norm_by_name(lambda m, x: functional.rms_norm(x, (4,), m.weight, 1e-3)), "a is a OddRMSNorm"),
        # Rows that are no example's: positions first, relative positions, a table of its own.
        (Toy(lambda m, x: m.a(x.transpose(0, 1)).transpose(0, 1), a=linear()), r"saw \(6, 3\) rows"),
        (Toy(lambda m, x: x + m.a(torch.zeros(6, 6).long()).mean(0), a=nn.Embedding(3, 4)), r"saw \(6, 6\) rows"),
        (Toy(lambda m, x: x + m.a(torch.ones(6, 4)), a=linear()), r"saw \(6,\) rows"),
        (Toy(lambda m, x: x + m.a(torch.ones(1, 6, 4)), a=linear()), r"saw \(1, 6\) rows"),
    ],
)
def test_what_has_no_formula_is_refused_by_name(model: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        toy_norms(model, torch.randn(3, 6, 4))


def test_gemmas_scaled_table_is_refused_by_name_and_mpnets_relative_positions_too() -> None:
    objective = tiny("Gemma")
    with pytest.raises(ModelError, match=r"model\.embed_tokens is a GemmaTextScaledWordEmbedding"):
        engine_norms(objective, items(objective, (5, 9)), cells_of(objective))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.MPNetForSequenceClassification(transformers.MPNetConfig(vocab_size=VOCABULARY, **sizes))
    objective = Classification(model.eval(), PAD)
    with pytest.raises(ModelError, match=r"a module saw \(9, 9\) rows"):
        engine_norms(objective, items(objective, (5, 9, 9)), cells_of(objective))


def test_positions_without_a_row_per_example_and_rows_of_one_vector_per_example_are_known() -> None:
    torch.manual_seed(0)
    places = torch.arange(6)
    for ids in (places, places.unsqueeze(0)):
        toy = Toy(
            lambda m, x, ids=ids: m.b(m.a(x + m.table(ids))[:, 0]), table=nn.Embedding(9, 4), a=linear(), b=linear()
        )
        assert error(*toy_norms(toy.double(), torch.randn(3, 6, 4, dtype=torch.float64))) < 1e-9


def test_scored_rows_beside_one_pooled_row_per_example_find_their_owners() -> None:
    torch.manual_seed(0)
    toy = Toy(lambda m, x: m.b(x), a=linear(), b=linear()).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    scored = [(0, 1), (2, 0), (2, 4), (1, 3), (2, 2)]  # (example, position), in any order
    cells = {name: (name,) for name, _ in toy.named_parameters()}

    def loss(examples: list[int]) -> Tensor:
        pooled = toy.a(x[examples, 0])
        kept = [(examples.index(e), t) for e, t in scored if e in examples]
        picked = x[examples][[e for e, _ in kept], [t for _, t in kept]] * pooled[[e for e, _ in kept]]
        values = toy.b(picked).square().sum(1)
        return torch.zeros(len(examples)).double().index_add(0, torch.tensor([e for e, _ in kept]), values)

    with ExampleNorms(toy, cells) as probe:
        found = probe.of(lambda: loss([0, 1, 2]), [e for e, _ in scored])[1].sqrt()
    assert error(found, plain_norms(toy, cells, lambda row: loss([row]).sum(), 3)) < 1e-9
    with pytest.raises(ModelError, match=r"saw \(5, 2\) rows"), ExampleNorms(toy, cells) as probe:
        probe.of(lambda: toy(torch.ones(5, 2, 4).double()).sum((1, 2))[:3], [0, 1, 1, 2, 2])


def test_products_are_not_rounded_where_a_caller_left_autocast_on() -> None:
    def exact(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return m.a(x)

    toy = Toy(exact, a=linear(32))
    x = torch.randn(3, 4, 32)
    expected = toy_norms(toy, x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = run_toy(toy, lambda: toy_losses(toy, x), 3)
    assert error(found, expected) < 1e-5


def test_bfloat16_is_widened_before_products_that_cancel() -> None:
    torch.manual_seed(0)
    a, g = torch.randn(2, 70, 16) + 3, torch.randn(2, 70, 8)
    a, g = a.bfloat16(), (g - g.mean(1, keepdim=True)).bfloat16()
    exact = torch.einsum("bto,bti->boi", g.double(), a.double())
    for bias in (False, True):
        own = g.double().sum(1).square().sum(1) if bias else 0.0
        found = forms.from_grams(forms.gram(a), forms.gram(g), bias=bias)
        torch.testing.assert_close(found, exact.square().sum((1, 2)) + own, rtol=1e-4, atol=0)
    torch.testing.assert_close(forms.summed(g), g.double().sum(1).square().sum(1), rtol=1e-5, atol=0)


class Largest(TorchDispatchMode):
    """Notes the largest storage, those of parameters apart, that any operation returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.scalars = 0
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and (held := tensor.untyped_storage()).data_ptr() not in self.known:
                self.scalars = max(self.scalars, held.nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize(("width", "length", "direct"), [(256, 4, False), (100, 90, True)])
def test_no_tensor_holds_a_weights_gradient_of_every_example(width: int, length: int, direct: bool) -> None:
    examples, weight = 8, width * width
    assert (forms.direct_cost(length, width, width) < forms.pair_cost(length, width, width)) == direct
    assert width > length  # or activations would be as large as what must not be there
    toy = Toy(lambda m, x: m.b(m.a(x)), a=linear(width), b=linear(width))
    x = torch.randn(examples, length, width)
    with Largest(toy) as largest, ExampleNorms(toy, {"all": [n for n, _ in toy.named_parameters()]}) as probe:
        probe.of(lambda: toy_losses(toy, x), range(examples))
    cheaper = min(f(length, width, width) for f in (forms.direct_cost, forms.pair_cost))
    assert probe.extra_flops == 2 * examples * 2 * cheaper  # two layers; a multiplication and an addition
    assert largest.scalars == (max(weight, examples * length * width) if direct else examples * length * width)
    objective = tiny("Llama tied", head=4)
    batch = items(objective, (6,) * 40)  # the table, too: 40 examples hold at most 6 rows each
    with Largest(objective.model) as largest:
        engine_norms(objective, batch, {"embed": cells_of(objective)["embed"]})
    assert largest.scalars < 40 * VOCABULARY * 8
