"""How fast a machine multiplies and copies, for `doctor` and for plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from cprbench.sessions.channel import Channel


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, float]:
    """Return how fast this machine multiplies matrices (GFLOP/s) and copies memory (GB/s): the best of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 1024

    def best(work: Callable[[], Any], amount: float) -> float:
        seconds = []
        for _ in range(6):  # the first one warms up
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return amount / min(seconds[1:]) / 1e9

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(side, side, dtype=dtype, device=device)
        found[f"matmul_{name}_gflops_per_second"] = best(lambda a=a: a @ a, 2.0 * side**3)  # type: ignore[misc]
    source = torch.empty(2**26, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    found["copy_gb_per_second"] = best(lambda: target.copy_(source), 2.0 * source.nbytes)
    return found
