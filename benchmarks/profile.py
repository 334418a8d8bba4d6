"""Where a training step's time goes on this CPU, by operator, and how far matrix products are from the machine's rate.

    python -m benchmarks.profile      MiniLM x movie-snippets, full tuning in float32, 40 steps; JSON last

Shares are of the time in torch's operators without their children (torch.profiler), summed by what they do.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

#: group -> names of operators that belong to it, by their beginnings.
_GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::"),
    "optimizer": ("aten::_fused_adamw",),
    "norm of gradients, clipping": ("aten::_foreach", "aten::linalg_vector_norm", "aten::stack"),
    "activation functions": ("aten::gelu", "aten::tanh"),
    "dropout": ("aten::bernoulli", "aten::native_dropout", "aten::dropout"),
    "softmax, layer norms": ("aten::_softmax", "aten::native_layer_norm", "aten::_log_softmax"),
    "embeddings": ("aten::embedding", "aten::index", "aten::gather"),
}


def layer_products() -> float:
    """Return GFLOP/s of the products of one layer of MiniLM on 464 tokens: forward, input and weight gradients."""
    import torch

    pairs = []
    for inputs, outputs in ((384, 384), (384, 1536), (1536, 384)):
        x, weight, gradient = torch.randn(464, inputs), torch.randn(outputs, inputs), torch.randn(464, outputs)
        pairs += [(x, weight.t()), (gradient, weight), (gradient.t(), x)]
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in pairs)
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        for a, b in pairs:
            a @ b
        seconds.append(time.perf_counter() - began)
    return flops / statistics.median(seconds) / 1e9


def main() -> None:
    """Print a table and, as the last line, the JSON."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.racing import Setting
    from cprbench.adapt.products import float32_products, multiply_by_onednn
    from cprbench.meters import hardware
    from cprbench.sessions import rates
    from cprbench.sessions.channel import Channel
    from cprbench.sessions.worker import keep_freed_memory

    keep_freed_memory()
    by_mkl = layer_products()
    multiply_by_onednn()
    by_ours = layer_products()
    setting = Setting("minilm", "full", 640)
    setting.adapt()
    batches = setting.batches(setting.items)
    flops: list[int] = []

    def count(step: int, loss: float, works: Sequence[Any]) -> None:
        flops.append(step)

    setting.train(batches[:8], count)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        setting.train(batches, count)
    found = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    whole = sum(found.values())
    shares = {
        name: sum(t for key, t in found.items() if key.startswith(keys)) / whole for name, keys in _GROUPS.items()
    }
    shares["all else"] = 1 - sum(shares.values())
    for name, share in shares.items():
        print(f"{name:<28} {100 * share:5.1f} %")
    machine = rates.work({}, Channel(None, None))
    print(f"float32 products by {float32_products()}, torch threads {torch.get_num_threads()}")
    print(f"products of a layer: {by_mkl:.0f} GFLOP/s as torch has it, {by_ours:.0f} as a run has it")
    told = {**{k: round(v, 4) for k, v in shares.items()}, **{k: round(v, 1) for k, v in machine.items()}}
    told |= {"layer_gflops_per_second_torch": round(by_mkl, 1), "layer_gflops_per_second_ours": round(by_ours, 1)}
    print(json.dumps({**told, "hardware_class": hardware.cpu_class()}))


if __name__ == "__main__":
    main()
