"""Bytes of training: sums that are exact, the paper's two figures, and the peak of live models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from cprbench.meters.flops import Trained
from cprbench.plans.activations import Step
from cprbench.plans.footprint import (
    HEAP_FACTOR,
    RUNTIME_BYTES,
    STATE_BYTES,
    STATE_BYTES_WITH_MASTER_COPY,
    Footprint,
    footprint,
)
from cprbench.plans.parameters import layout
from tests.plans.test_parameters import LLAMA_7B
from tests.plans.tiny_models import CELLS, CONFIGS, ENCODERS, LABELS, kind_of, labels_of, live, loss_of, train
from tests.test_flops import LINEARS

BERT = CONFIGS["bert"].to_dict()
SIZES = layout(BERT, "encoder", LABELS).sizes
STEP = Step(4, 32, 4)
LLAMA_CELLS = frozenset(layout(LLAMA_7B, "causal", None).sizes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_bert(cells: set[str], step: Step = STEP, *, new_head: bool = True, **more: Any) -> Footprint:
    return footprint(BERT, "encoder", LABELS, Trained(frozenset(cells), new_head), step, **more)


def test_weights_gradients_and_state_are_exactly_four_four_and_eight_bytes() -> None:
    found = of_bert({"attn.1", "ffn.2"})
    own, head = SIZES["attn.1"] + SIZES["ffn.2"], LABELS * 64 + LABELS
    assert found.trained_parameters == own
    assert found.new_head_parameters == head
    assert found.frozen_parameters == sum(SIZES.values()) - own
    assert found.weights == 4 * (sum(SIZES.values()) + head)
    assert found.gradients == 4 * (own + head)
    assert found.optimizer == 2 * 4 * (own + head)


def test_an_eight_bit_optimizer_keeps_two_bytes_per_trained_parameter() -> None:
    plain, small = of_bert({"ffn.2"}), of_bert({"ffn.2"}, optimizer="adamw8bit")
    assert small.optimizer * 4 == plain.optimizer
    assert plain.peak - small.peak == plain.optimizer - small.optimizer


def test_adapters_train_beside_frozen_weights() -> None:
    lora = Trained(CELLS, True, dict.fromkeys(LINEARS["bert"].split(), 4))
    found = footprint(BERT, "encoder", LABELS, lora, STEP)
    assert found.trained_parameters == 3 * 4 * (4 * (64 + 64) + 2 * (64 + 160))
    assert found.frozen_parameters == sum(SIZES.values())
    assert found.weights == 4 * (sum(SIZES.values()) + found.trained_parameters + found.new_head_parameters)


def test_single_tensors_train_alone() -> None:
    trained = Trained(frozenset({"ffn.0"}), True, tensors={"ffn.0": ["output.dense.bias"]})
    assert footprint(BERT, "encoder", LABELS, trained, STEP).trained_parameters == 64


def test_the_peak_lies_between_its_largest_part_and_the_sum_of_all() -> None:
    found = of_bert(set(CELLS))
    fixed = found.weights + found.optimizer
    assert fixed + max(found.gradients, found.activations) <= found.peak
    assert found.peak <= fixed + found.gradients + found.activations + found.temporaries
    assert found.working == found.peak - fixed


def test_training_more_never_takes_less() -> None:
    order = [*SIZES][::-1]
    peaks = [of_bert(set(order[:n])).peak for n in range(len(order) + 1)]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]


def test_gradient_checkpointing_keeps_layer_inputs_and_one_layer_at_a_time() -> None:
    whole, again = (of_bert(set(CELLS), Step(64, 64, 64), checkpointing=flag) for flag in (False, True))
    assert again.activations < whole.activations / 2
    assert whole.peak > again.peak > again.weights + again.optimizer + whole.activations / 3


def test_what_is_measured_before_training_can_be_the_peak() -> None:
    small, large = Step(2, 8, 2), Step(64, 64, 64)
    plain, probed = of_bert({"ffn.2"}, small), of_bert({"ffn.2"}, small, probe=large)
    assert not plain.peak_is_probe
    assert probed.peak_is_probe
    assert probed.peak - probed.weights > of_bert(set(CELLS), replace(large, drops=False)).activations
    assert of_bert({"ffn.2"}, large, probe=small).peak == of_bert({"ffn.2"}, large).peak


def test_measuring_gradients_holds_no_more_than_one_submodules_at_a_time() -> None:
    short = Step(1, 4, 1)
    assert of_bert(set(), short, probe=short).probe < of_bert(set(CELLS), short).gradients / 2


def test_scoring_wide_batches_can_be_the_peak_of_training_little() -> None:
    alone, scored = of_bert(set()), of_bert(set(), score=Step(128, 64, 128))
    assert scored.peak > alone.peak + 128 * 64 * 4 * 160


def test_on_a_cpu_the_interpreter_and_the_holes_of_its_heap_come_on_top() -> None:
    found = of_bert({"ffn.2"}, cache=1000)
    assert found.peak == found.weights + found.optimizer + 1000 + found.working
    fixed = RUNTIME_BYTES + found.weights + found.optimizer + 1000
    assert found.resident == pytest.approx(fixed + HEAP_FACTOR * found.working, abs=1)


# --- the paper's figures ----------------------------------------------------------------------------


def llama(trained: Trained, step: Step, **more: Any) -> Footprint:
    return footprint(LLAMA_7B, "causal", None, trained, step, **more)


def test_the_papers_67_gb_are_two_moments_and_a_master_copy_of_80_percent_of_7_billion() -> None:
    frozen = 0.8 * 7e9
    assert frozen * STATE_BYTES_WITH_MASTER_COPY == pytest.approx(67.2e9)
    assert frozen * STATE_BYTES["adamw"] == pytest.approx(44.8e9)  # what cprbench's float32 weights really save
    sizes = layout(LLAMA_7B, "causal", None).sizes
    taken: set[str] = set()
    while sum(sizes[cell] for cell in taken) < 0.19 * sum(sizes.values()):
        taken.add(next(cell for cell in reversed(sizes) if cell not in taken))
    step = Step(1, 128, 1)
    part, full = (llama(Trained(frozenset(cells), False), step) for cells in (taken, LLAMA_CELLS))
    assert full.optimizer - part.optimizer == 8 * part.frozen_parameters
    assert 12 * part.frozen_parameters == pytest.approx(64.7e9, rel=0.02)  # Llama-2-7B has 6.74e9


@pytest.mark.parametrize(("rank", "peak"), [(4, 5.0), (8, 5.1), (16, 5.4)])
def test_the_papers_14_gb_of_a_7b_model_become_about_5_with_qlora(rank: int, peak: float) -> None:
    sixteen_bit = 2 * layout(LLAMA_7B, "causal", None).total
    assert sixteen_bit == pytest.approx(14e9, rel=0.05)
    adapters = Trained(LLAMA_CELLS, False, dict.fromkeys(LINEARS["llama"].split(), rank))
    step = Step(1, 512, 1, precision="bf16", on_gpu=True, four_bit=True)
    found = llama(adapters, step, checkpointing=True)
    assert 0.001 < found.trained_parameters / 6.738e9 < 0.007
    linears = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    rest = 6_738_415_616 - linears
    assert found.weights == pytest.approx(4.127 / 8 * linears + 4 * rest + 4 * found.trained_parameters, abs=1)
    assert found.peak == pytest.approx(peak * 1e9, rel=0.05)
    assert llama(replace(adapters), replace(step, four_bit=False), checkpointing=True).peak > 26e9


# --- live models ------------------------------------------------------------------------------------


def allocated(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """Return what `work` gives, and the bytes that torch's allocator held above the start: at most, and at the end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = [e["args"] for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    start = events[0]["Total Allocated"] - events[0]["Bytes"]
    totals = [event["Total Allocated"] - start for event in events]
    return result, max(totals), totals[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "cells", [CELLS, frozenset({"attn.2", "ffn.2"}), frozenset({"attn.0"})], ids=["full", "2", "0"]
)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_the_highest_point_of_a_step_is_that_of_torchs_allocator(
    name: str, cells: frozenset[str], precision: str
) -> None:
    step = Step(8, 64, 8, precision=precision)  # type: ignore[arg-type]
    model = live(name)
    trained = train(model, name, cells, drops=True)
    loss_of(model, name, 8, 64, bf16=precision == "bf16").backward()  # whatever is set up once is set up now
    model.zero_grad(set_to_none=True)
    loss, highest, kept = allocated(lambda: loss_of(model, name, 8, 64, bf16=precision == "bf16"))
    _, above, _ = allocated(loss.backward)
    modelled = footprint(CONFIGS[name].to_dict(), kind_of(name), labels_of(name), trained, step)
    assert modelled.working == pytest.approx(max(highest, kept + above), rel=0.15)


def test_the_gradient_of_a_wide_tied_table_is_made_twice_and_summed() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=20_000,
        tie_word_embeddings=True,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    loss_of(model, "llama", 4, 16, bf16=False).backward()
    model.zero_grad(set_to_none=True)
    loss, highest, kept = allocated(lambda: loss_of(model, "llama", 4, 16, bf16=False))
    _, above, _ = allocated(loss.backward)
    cells = frozenset(layout(config.to_dict(), "causal", None).sizes)
    modelled = footprint(config.to_dict(), "causal", None, Trained(cells, False), Step(4, 16, 4))
    assert modelled.working == pytest.approx(max(highest, kept + above), rel=0.15)
    assert modelled.working > 3 * 4 * 20_000 * 64


def test_families_that_encode_bring_a_head_and_causal_ones_none() -> None:
    for name, config in CONFIGS.items():
        trained = Trained(CELLS, name in ENCODERS)
        found = footprint(config.to_dict(), kind_of(name), labels_of(name), trained, STEP)
        assert (found.new_head_parameters > 0) is (name in ENCODERS)
        assert found.frozen_parameters == 0
