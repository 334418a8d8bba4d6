"""watch() in a validation loop that is not ours: what it measures, and that the loop sees nothing of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from cprbench.adapt.models import partition, task_head
from cprbench.blueprint import watch
from cprbench.errors import ModelError, SpecError

ENCODER = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_labels": 3}
CAUSAL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def bert(dropout: float = 0.5) -> Any:
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = transformers.BertConfig(**ENCODER, **rates, num_hidden_layers=2)
    return transformers.BertForSequenceClassification(config).eval()


def llama(*, tied: bool = True) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**CAUSAL, tie_word_embeddings=tied)).eval()


def batches(count: int = 5, rows: int = 4) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 50, (rows, 7), generator=draw)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (rows,), generator=draw)})
    return found


def direct(model: Any, batch: dict[str, Tensor], rows: int) -> dict[str, float]:
    """Return submodule -> gradient norm of the mean loss of the first rows, by plain autograd on a copy."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    model.zero_grad()
    model(**{name: value[:rows] for name, value in batch.items()}).loss.backward()
    cells = partition(model, task_head(model)).parameters
    return {
        cell: math.sqrt(sum(float(model.get_parameter(name).grad.square().sum()) for name in names))
        for cell, names in cells.items()
    }


# --- watch: the loop sees nothing of it -------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_watched_loop_gives_the_same_bits(mode: Callable[[], Any], training: bool) -> None:
    def loop(model: Any) -> list[Tensor]:
        torch.manual_seed(7)  # dropout draws, in train mode
        with mode():
            found = [model(**batch) for batch in batches()]
        return [x.detach().clone() for out in found for x in (out.logits, out.loss)] + [torch.get_rng_state()]

    model = bert().train(training)
    plain = loop(model)
    with watch(model, every=1, examples=2) as watched:
        seen = loop(model)
    assert len(watched.rows) == watched.calls == 5
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, loop(model), strict=True))


def state(model: Any) -> Any:
    return (
        {name: (p.requires_grad, id(p.grad), None if p.grad is None else p.grad.clone()) for name, p in named(model)},
        {name: module.training for name, module in model.named_modules()},
        {name: len(p._post_accumulate_grad_hooks or ()) for name, p in named(model)},
        "forward" in vars(model),
    )


def named(model: Any) -> list[tuple[str, Any]]:
    return list(model.named_parameters())


def same(a: Any, b: Any) -> bool:
    gradients = [(x[2], y[2]) for x, y in zip(a[0].values(), b[0].values(), strict=True)]
    equal = all(x is y is None or torch.equal(x, y) for x, y in gradients)
    return equal and [x[:2] for x in a[0].values()] == [y[:2] for y in b[0].values()] and a[1:] == b[1:]


def unusual(gradients: bool) -> Any:
    """Return a model with some of it frozen, some of it in train mode, and gradients of a step before."""
    model = bert(dropout=0.0)
    if gradients:
        model(**batches(1)[0]).loss.backward()
    model.bert.encoder.layer[0].requires_grad_(False)
    model.bert.encoder.layer[1].train()
    model.classifier.requires_grad_(False)
    return model


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients before", "gradients before"])
def test_everything_is_left_as_it_was(gradients: bool) -> None:
    model = unusual(gradients)
    before = state(model)
    with watch(model, every=1, examples=2), torch.no_grad():
        model(**batches(1)[0])
        inside = state(model)
    assert same(before, state(model))
    assert same((*before[:3], True), inside)
    assert model.forward.__func__ is type(model).forward


class OddError(Exception):
    """Raised by nobody else."""


@pytest.mark.parametrize("where", ["the loop", "the loss", "the model", "the backward pass"])
def test_everything_is_left_as_it_was_after_an_exception(where: str) -> None:
    model, batch = unusual(gradients=True), batches(1)[0]
    before, generator = state(model), torch.get_rng_state()

    def fail(*anything: Any) -> Any:
        raise OddError

    def loss(output: Any, arguments: Any) -> Tensor:
        if where == "the loss":
            fail()
        found: Tensor = output.loss
        if where == "the backward pass":
            found.register_hook(fail)
        return found

    handle = model.classifier.register_forward_pre_hook(fail if where == "the model" else lambda *anything: None)
    with pytest.raises(OddError), watch(model, every=1, examples=2, loss=loss), torch.inference_mode():
        model(**batch)
        if where == "the loop":
            fail()
    handle.remove()
    assert same(before, state(model))
    assert torch.equal(generator, torch.get_rng_state())


def test_after_a_failed_probe_the_next_one_is_right() -> None:
    model, (first, second) = bert(), batches(2)

    def fail(gradient: Tensor) -> None:
        raise OddError

    handle = model.bert.encoder.layer[0].output.dense.weight.register_hook(fail)  # layer 1 has its gradients by then
    with watch(model, every=1, examples=4) as watched:
        with pytest.raises(OddError):
            model(**first)
        handle.remove()
        model(**second)
    assert watched.rows == [pytest.approx(direct(model, second, 4), rel=1e-5)]


def test_a_backward_pass_of_the_loops_own_goes_on_as_if_nothing_had_been() -> None:
    model, batch = bert(dropout=0.0).train(), batches(1)[0]
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in named(model)}
    model.zero_grad()
    with watch(model, every=1, examples=4):
        model(**batch).loss.backward()
    assert all(torch.equal(plain[name], p.grad) for name, p in named(model))


def test_the_loops_own_inputs_get_no_gradient_from_the_probe() -> None:
    model, batch = bert(), batches(1)[0]
    embeds = torch.randn(4, 7, 16, requires_grad=True)
    with watch(model, every=1, examples=2) as watched:
        model(inputs_embeds=embeds, labels=batch["labels"])
    assert embeds.grad is None and len(watched.rows) == 1
    assert watched.rows[0]["attn.0"] > 0


class Sloppy(nn.Module):
    """Drops out whatever mode it is in, as functional.dropout does where nobody thinks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(loss=functional.dropout(self.layers[0](x), 0.5).square().mean())


def test_random_numbers_go_on_as_if_the_probe_had_drawn_none() -> None:
    model, x = Sloppy(), torch.ones(6, 4)

    def loop() -> list[Tensor]:
        torch.manual_seed(3)
        return [model(x).loss.detach() for _ in range(3)]

    plain = loop()
    with watch(model, every=1, examples=2):
        assert loop() == plain


@pytest.fixture
def _accelerate_afresh() -> Iterator[None]:
    """Its state is one for all Accelerators of a process, and remembers bf16."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_accelerate_afresh")
def test_a_forward_that_accelerate_has_patched_is_put_back() -> None:
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(bert())
    patched, batch = model.forward, batches(1)[0]
    assert "forward" in vars(model)
    with torch.no_grad():
        plain = model(**batch).logits
        with watch(model, every=1, examples=2) as watched:
            assert torch.equal(model(**batch).logits, plain)
            with watch(model, every=1, examples=2) as inner:
                model(**batch)
    assert model.forward is patched
    assert watched.rows and len(inner.rows) == 1


# --- watch: what it measures ------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "rows"), [(bert, 2), (bert, 4), (llama, 3), (lambda: llama(tied=False), 4)])
def test_norms_are_those_of_plain_autograd_on_the_first_rows(make: Callable[[], Any], rows: int) -> None:
    model, found = make(), batches()
    if isinstance(model, transformers.LlamaForCausalLM):
        found = [batch | {"labels": batch["input_ids"]} for batch in found]
    with watch(model, every=2, examples=rows) as watched, torch.inference_mode():
        for batch in found:
            model(**batch)
    expected = [direct(model, batch, rows) for batch in found[::2]]
    assert watched.rows == [pytest.approx(row, rel=1e-5) for row in expected]
    assert watched.norms() == pytest.approx({cell: median(row[cell] for row in expected) for cell in expected[0]})


def test_a_probe_drops_nothing_out_even_where_the_loop_does() -> None:
    model, batch = bert(dropout=0.5).train(), batches(1)[0]
    with watch(model, every=1, examples=4) as watched, torch.no_grad():
        model(**batch)
    assert watched.rows == [pytest.approx(direct(model, batch, 4), rel=1e-5)]


@pytest.mark.parametrize(("every", "sampled"), [(1, 7), (2, 4), (3, 3), (7, 1), (8, 1)])
def test_the_first_call_is_sampled_and_then_every_nth(every: int, sampled: int) -> None:
    model = bert()
    with watch(model, every=every, examples=2) as watched, torch.no_grad():
        for batch in batches(7):
            model(**batch)
    assert (watched.calls, len(watched.rows), watched.passed_over) == (7, sampled, 0)
    assert watched.seconds > 0
    model(**batches(1)[0])
    assert watched.calls == 7  # it is over


def test_a_batch_of_fewer_rows_is_passed_over_because_its_norm_would_not_compare() -> None:
    model = bert()
    with watch(model, every=1, examples=4) as watched, torch.no_grad():
        for batch in (*batches(2), *batches(1, rows=3)):
            model(**batch)
    assert (watched.calls, len(watched.rows), watched.passed_over) == (3, 2, 1)
    with watch(model, every=1, examples=9) as nothing, torch.no_grad():
        model(**batches(1)[0])
    with pytest.raises(SpecError, match="nothing was sampled in 1 calls; 1 were passed over, for fewer than 9 rows"):
        nothing.norms()


def test_gradients_that_are_not_finite_are_passed_over_and_the_loop_goes_on() -> None:
    model, (good, bad) = llama(), batches(2)
    masked = bad | {"labels": torch.full_like(bad["input_ids"], -100)}  # a mean over no token
    with watch(model, every=1, examples=4) as watched, torch.no_grad():
        model(**(good | {"labels": good["input_ids"]}))
        assert math.isnan(model(**masked).loss)
    assert (len(watched.rows), watched.passed_over) == (1, 1)


@pytest.mark.parametrize(("every", "examples"), [(0, 8), (8, 0), (8, 1), (-1, 2)])
def test_a_sampling_that_cannot_be_is_refused(every: int, examples: int) -> None:
    with (
        pytest.raises(SpecError, match=f"every = {every}, examples = {examples}"),
        watch(bert(), every=every, examples=examples),
    ):
        pass


def test_missing_labels_are_named_and_leave_everything_as_it_was() -> None:
    model, batch = unusual(gradients=True), batches(1)[0]
    before, labels = state(model), batch.pop("labels")
    with pytest.raises(ModelError, match=r"called without labels.*watch\(model, loss="), watch(model, examples=2):
        model(**batch)
    assert same(before, state(model))

    def loss(output: Any, arguments: Any) -> Tensor:
        assert len(arguments["input_ids"]) == len(output.logits) == 2
        return functional.cross_entropy(output.logits, labels[:2])

    with watch(model, examples=2, loss=loss) as watched, torch.no_grad():
        model(**batch)
    assert watched.norms() == pytest.approx(direct(model, batch | {"labels": labels}, 2), rel=1e-5)


def test_a_call_without_a_tensor_is_named() -> None:
    class Whole(Sloppy):
        def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
            return super().forward(batch["x"])

    with pytest.raises(ModelError, match=r"Whole was called without a tensor.*\*\*batch"), watch(model := Whole()):
        model({"x": torch.ones(9, 4)})


def test_nothing_sampled_is_nothing_told() -> None:
    with watch(bert()) as watched:
        pass
    with pytest.raises(SpecError, match="nothing was sampled in 0 calls"):
        watched.blueprint("nobody/nothing")
