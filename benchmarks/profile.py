"""Where a training step's time goes on this CPU, by operator, and how far matrix products are from the machine's rate.

    python -m benchmarks.profile      MiniLM x movie-snippets, full tuning in float32, 40 steps; JSON last

Shares are of the time in torch's operators without their children (torch.profiler), summed by what they do.
"""

from __future__ import annotations

import json
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


def main() -> None:
    """Print a table and, as the last line, the JSON."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.racing import Setting
    from cprbench.adapt.products import float32_products, multiply_by_onednn
    from cprbench.meters import hardware
    from cprbench.runs.inspection import rates
    from cprbench.runs.worker import keep_freed_memory

    keep_freed_memory()
    multiply_by_onednn()
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
    machine = rates()
    print(f"float32 products by {float32_products()}, torch threads {torch.get_num_threads()}")
    print(
        json.dumps({**{k: round(v, 4) for k, v in shares.items()}, **machine, "hardware_class": hardware.cpu_class()})
    )


if __name__ == "__main__":
    main()
