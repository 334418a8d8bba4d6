"""qlora on a real GPU: it trains, holds less memory than lora, and its adapters are float32. Skipped with a reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cprbench.runs.runner import Options, run
from cprbench.spec import ArmSpec, RunRecord, SuiteSpec

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing here was run on a GPU"),
    pytest.mark.skipif(
        importlib.util.find_spec("bitsandbytes") is None,
        reason="bitsandbytes is not installed: pip install 'cprbench[qlora]'",
    ),
]
LIMITS: dict[str, Any] = {"max_examples": 64, "eval_items": 64, "epochs": 1, "validations": 1, "precision": "auto"}


def adapted(method: str, out: Path, **settings: Any) -> RunRecord:
    arm = ArmSpec(method=method, settings=settings)
    suite = SuiteSpec(tasks=["movie-snippets"], models=["smollm2-135m"], blocks=1, arm=[arm])
    (record,) = run(suite, options=Options(out=out, save="model"), settings=LIMITS).records
    assert record.status == "ok", record.error
    return record


def peak(record: RunRecord) -> float:
    found = [r.value for r in record.readings if r.quantity == "peak_cuda_allocated_bytes" and r.phase == "train"]
    return found[0] or 0.0


def test_qlora_trains_and_scores_with_float32_adapters_in_less_memory_than_lora(tmp_path: Path) -> None:
    lora, qlora = (adapted(method, tmp_path) for method in ("lora", "qlora"))
    assert qlora.total_parameters == lora.total_parameters  # N is that of the unpacked model
    assert qlora.trained_parameters == lora.trained_parameters
    assert qlora.gamma.flops == lora.gamma.flops
    assert qlora.psi.final is not None and qlora.psi.base is not None
    assert qlora.psi.final["nll"] < qlora.psi.base["nll"]
    delta = load_file(tmp_path / qlora.run_id / "delta.safetensors")
    assert {tensor.dtype for tensor in delta.values()} == {torch.float32}
    saved = 3.5 * 106_168_320  # bytes that the linears of 30 layers no longer take: 4 bytes each become half a byte
    assert peak(qlora) < peak(lora) - saved / 2  # what is unpacked for a product is there for a moment


def test_the_plain_model_of_a_qlora_run_scores_the_same_psi(tmp_path: Path) -> None:
    record = adapted("qlora", tmp_path)
    arm = ArmSpec(method="lora")
    plain = SuiteSpec(tasks=["movie-snippets"], models=[str(tmp_path / record.run_id / "model")], blocks=1, arm=[arm])
    (again,) = run(plain, options=Options(out=tmp_path / "again"), settings=LIMITS).records
    assert again.psi.base is not None and record.psi.final is not None
    assert again.psi.base["nll"] == pytest.approx(record.psi.final["nll"], rel=1e-3)


def test_influence_is_measured_through_packed_weights(tmp_path: Path) -> None:
    arm = ArmSpec(method="qlora", selection="influence", selection_settings={"q": 0.5})
    suite = SuiteSpec(tasks=["movie-snippets"], models=["smollm2-135m"], blocks=1, arm=[arm])
    (record,) = run(suite, options=Options(out=tmp_path), settings=LIMITS).records
    assert record.status == "ok", record.error
    assert record.selected_examples == 32
