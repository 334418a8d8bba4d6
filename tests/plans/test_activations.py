"""What a forward pass keeps, against what autograd really saves in live models of several families."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from cprbench.meters.flops import Trained
from cprbench.plans.activations import Step, saved_bytes, stages
from tests.plans.tiny_models import CELLS, CONFIGS, ENCODERS, adapt, kind_of, labels_of, live, loss_of, train

BATCH, LENGTH, RANK = 4, 32, 8
SETS = {
    "full": CELLS,
    "the last layer and the head": frozenset({"attn.2", "ffn.2", "head"}),
    "one attn in the middle": frozenset({"attn.1"}),
    "the first ffn": frozenset({"ffn.0"}),
    "the first attn and the last ffn": frozenset({"attn.0", "ffn.2"}),
    "lora": None,
    "the new head": frozenset[str](),
}
#: precision, attention, dropout
WAYS = [("fp32", "sdpa", True), ("bf16", "sdpa", False), ("fp32", "eager", False), ("bf16", "eager", True)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def really_saved(model: torch.nn.Module, name: str, precision: str) -> int:
    """Return the bytes that autograd saves in one forward pass, the model's own weights excluded."""
    held = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or a freed tensor's address would come again
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, name, BATCH, LENGTH, bf16=precision == "bf16")
    return sum(held.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
@pytest.mark.parametrize(("precision", "attention", "drops"), WAYS, ids=[" ".join(map(str, way)) for way in WAYS])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_kept_is_within_15_percent_of_what_autograd_saves(
    name: str, precision: str, attention: str, drops: bool
) -> None:
    step = Step(BATCH, LENGTH, BATCH, precision=precision, attention=attention, drops=drops)  # type: ignore[arg-type]
    config = CONFIGS[name].to_dict()
    for what, cells in SETS.items():
        if not cells and cells is not None and name not in ENCODERS:
            continue  # a causal model has no new head
        model = live(name, attention)
        trained = adapt(model, name, RANK, drops=drops) if cells is None else train(model, name, cells, drops=drops)
        modelled = saved_bytes(config, kind_of(name), labels_of(name), trained, step)
        measured = really_saved(model, name, precision)
        if modelled < 10_000:  # the head of a tiny model: indices and the loss count for something
            assert measured == pytest.approx(modelled, abs=2_500), what
        else:
            assert modelled == pytest.approx(measured, rel=0.15), what


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_dropout_before_adapters_keeps_a_mask_and_a_copy_for_each(name: str, precision: str) -> None:
    step = Step(BATCH, LENGTH, BATCH, precision=precision, adapter_dropout=True)  # type: ignore[arg-type]
    model = live(name)
    trained = adapt(model, name, RANK, drops=True, dropout=0.1)
    modelled = saved_bytes(CONFIGS[name].to_dict(), kind_of(name), labels_of(name), trained, step)
    assert modelled == pytest.approx(really_saved(model, name, precision), rel=0.02)


def kept(cells: set[str], name: str = "bert", **step: object) -> dict[str, int]:
    way = replace(Step(BATCH, LENGTH, BATCH, drops=False), **step)  # type: ignore[arg-type]
    trained = Trained(frozenset(cells), new_head=name in ENCODERS)
    found = stages(CONFIGS[name].to_dict(), kind_of(name), labels_of(name), trained, way)
    return {stage.cell: stage.kept for stage in found}


def test_nothing_is_kept_below_the_lowest_trained_submodule() -> None:
    found = kept({"ffn.1"})
    assert [cell for cell, size in found.items() if size] == ["ffn.1", "attn.2", "ffn.2", "head"]


def test_a_frozen_submodule_above_keeps_less_than_a_trained_one() -> None:
    frozen, trained = kept({"attn.0"}), kept({"attn.0", "ffn.2"})
    tokens, width = BATCH * LENGTH, 4
    assert trained["ffn.2"] - frozen["ffn.2"] == tokens * width * (64 + 160)  # the inputs of its two linears
    assert trained["ffn.1"] == frozen["ffn.1"] > 0


def test_dropout_on_a_cpu_takes_attention_to_plain_mathematics_and_on_a_gpu_it_does_not() -> None:
    alone = {"attn.2"}
    without, on_cpu = kept(alone)["attn.2"], kept(alone, drops=True)["attn.2"]
    on_gpu = kept(alone, drops=True, on_gpu=True)["attn.2"]
    pairs = BATCH * LENGTH**2 * 4
    assert on_cpu - without > 2 * 4 * pairs  # of each of four heads: probabilities, mask, what is left
    assert on_gpu - without == BATCH * LENGTH * 64  # the mask behind the output, a byte each


def test_longer_sequences_keep_more_than_in_proportion_and_wider_batches_exactly_in_proportion() -> None:
    whole = set(CELLS)
    once = sum(kept(whole, "llama").values())
    assert sum(kept(whole, "llama", batch=2 * BATCH, scored=2 * BATCH).values()) == 2 * once
    assert sum(kept(whole, "llama", length=2 * LENGTH).values()) > 2 * once * 0.99


def test_four_bit_weights_are_not_kept_a_second_time() -> None:
    config, linears = CONFIGS["llama"].to_dict(), ("self_attn.q_proj", "mlp.down_proj")
    trained = Trained(CELLS, new_head=False, lora=dict.fromkeys(linears, 2))
    step = Step(1, 1, 1, precision="bf16")
    plain = saved_bytes(config, "causal", None, trained, step)
    packed = saved_bytes(config, "causal", None, trained, replace(step, four_bit=True))
    assert plain - packed > 2 * 2 * (64 * 64 * 2 + 3 * 64 * 160)  # two layers' linears in bf16, to say the least


def test_counting_bytes_imports_no_torch() -> None:
    code = "import sys, cprbench.plans.footprint; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
