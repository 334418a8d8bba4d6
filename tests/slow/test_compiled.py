"""training.compile: the same result, paid for by every run itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Arm


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch.compile builds its kernels with a compiler")
def test_a_compiled_run_scores_what_an_eager_one_scores_and_bills_its_compilation(
    tiny_llama: Path, run_arm: Arm
) -> None:
    eager = run_arm(tiny_llama, "last-layers", settings={"k": 0.3}, cache_prefix="off")
    compiled = run_arm(tiny_llama, "last-layers", settings={"k": 0.3}, compile=True)
    assert compiled.status == "ok", compiled.error
    assert compiled.psi.final is not None and eager.psi.final is not None
    assert compiled.psi.final["nll"] == pytest.approx(eager.psi.final["nll"], abs=1e-3)
    assert compiled.gamma.flops == eager.gamma.flops
    assert (compiled.seconds["billed"] or 0) > 2 * (eager.seconds["billed"] or 0)
    assert compiled.notes["prefix_cache"] == {
        "mode": "off",
        "why": "training.compile: a compiled model begins at its input",
    }
