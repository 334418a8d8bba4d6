"""Gradient norms on a real GPU: the CPU's, at a price that is printed. Skipped with a reason where there is none."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients.audit import FisherDiagonal
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.adapt.gradients.measure import measure
from cprbench.adapt.gradients.steps import probe_sets, step_cost, time_steps
from cprbench.adapt.models import LoadedModel, partition
from cprbench.adapt.objectives import ChoiceLikelihood, Classification, Item, Shape
from cprbench.spec import TrainingSpec
from tests.adapt.test_engine import cells_of, engine_norms, error, items, looped, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU")


def bf16() -> Any:
    return torch.autocast("cuda", torch.bfloat16)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Llama tied", "GPT2", "Qwen3 tied"])
def test_norms_on_the_gpu_are_those_of_the_cpu(family: str) -> None:
    assert torch.get_float32_matmul_precision() == "highest"  # torch's default: no TF32
    reference = tiny(family, head=32)  # float64 on the CPU
    batch, cells = items(reference, (5, 130, 64, 9), 0, (1, 3)), cells_of(reference)
    expected = looped(reference, batch, cells)
    moved = copy.deepcopy(reference)
    moved.model.float().cuda()
    assert error(engine_norms(moved, batch, cells).cpu(), expected) < 1e-4
    loop = looped(moved, batch, cells, bf16)
    assert error(engine_norms(moved, batch, cells, bf16).cpu(), loop) < 0.05
    with FisherDiagonal(moved.model, cells) as fisher:
        fisher.add(lambda: moved.losses(batch)[0], moved.owners(batch))
    for column, cell in enumerate(cells):
        total = float(fisher.diagonal(cell).sum()) * len(batch)
        assert total == pytest.approx(float(expected[:, column].square().sum()), rel=1e-3), cell


@pytest.mark.parametrize(("kind", "examples", "length"), [("encoder", 32, 48), ("causal", 8, 192)])
def test_norms_cost_about_a_pass_more_and_steps_are_timed(kind: str, examples: int, length: int) -> None:
    sizes = {"vocab_size": 30_000, "num_attention_heads": 12, "pad_token_id": 0}
    if kind == "encoder":
        config = transformers.BertConfig(hidden_size=384, num_hidden_layers=12, intermediate_size=1536, **sizes)
        model = transformers.BertForSequenceClassification(config)
    else:
        sizes |= {"num_key_value_heads": 4, "tie_word_embeddings": True, "eos_token_id": 1}
        config = transformers.LlamaConfig(hidden_size=768, num_hidden_layers=12, intermediate_size=2048, **sizes)
        model = transformers.LlamaForCausalLM(config)
    model.config.use_cache = False
    model = model.cuda().eval()
    objective = (Classification if kind == "encoder" else ChoiceLikelihood)(model, 0)
    ids = torch.randint(2, 30_000, (examples, length)).tolist()
    batch = [Item(tuple(row), () if kind == "encoder" else ((7,),), 0) for row in ids]
    loaded = LoadedModel(model, None, kind, partition(model), 2)  # type: ignore[arg-type]
    for precision in ("fp32", "bf16"):
        AcceleratorState._reset_state(True)  # accelerate holds one precision per process
        engine = Engine.start(precision, bf16_is_fast=True)
        cells = loaded.partition.parameters

        def losses(engine: Engine = engine) -> torch.Tensor:
            with engine.autocast():
                return objective.losses(batch)[0]

        def plain(losses: Any = losses) -> None:
            losses().mean().backward()
            model.zero_grad(set_to_none=True)

        def norms(losses: Any = losses, cells: Any = cells) -> None:
            with ExampleNorms(model, cells) as probe:
                probe.of(losses, objective.owners(batch))

        seconds: dict[str, list[float]] = {"plain": [], "norms": []}
        for _ in range(8):
            for name, work in (("plain", plain), ("norms", norms)):
                torch.cuda.synchronize()
                began = time.perf_counter()
                work()
                torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - began)
        ratio = min(seconds["norms"][2:]) / min(seconds["plain"][2:])
        print(f"\n{kind} {examples} x {length} {precision}: norms / (forward + backward) = {ratio:.2f}")  # noqa: T201
        assert 0.2 < ratio < 3
        found = measure(loaded, objective, engine, [batch], lambda *_: None, seed=0, draws=1000)
        assert torch.isfinite(found.example_norms).all()
        sets = probe_sets(loaded.partition.sizes)
        timed = time_steps(loaded, objective, engine, batch, sets, TrainingSpec(), lambda *_: None)
        shape = Shape(examples, length, examples * length, examples, examples * length**2)
        print(step_cost(sets, timed, loaded.partition.sizes, shape))  # noqa: T201
        assert all(value > 0 for value in timed)
        model.requires_grad_(True)
    AcceleratorState._reset_state(True)
