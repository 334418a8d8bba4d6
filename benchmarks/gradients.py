"""What exact per-example gradient norms cost, beside a training step, a batch-of-one loop and Opacus.

    python -m benchmarks.gradients      prints as its last line JSON; without suffix 32 x 48 tokens, `_long` 8 x 256

MiniLM with a new head of two classes, float32, the same batches for all, interleaved, medians. A training step is one
forward and one backward pass over all parameters, without an optimizer. `speedup_vs_loop` and `speedup_vs_opacus` are
seconds of theirs over seconds of ours; Opacus runs in both of its modes and the faster one counts. `memory_ratio` is
peak resident memory above the loaded model, ours over the training step's, in processes of their own. `floor` is the
least that arithmetic allows: multiplications of the passes plus those of the cheaper exact form, over the step's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cprbench.adapt import models
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.gradients import forms
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.meters import hardware
from cprbench.sessions.worker import keep_freed_memory

_SHAPES = {"": (32, 48), "_long": (8, 256)}


class Bench:
    """One model and one batch, with every way to get (or not to get) the norms of its examples."""

    def __init__(self, examples: int, length: int) -> None:
        self.loaded = models.load(resolve("minilm", offline=False), 2, 0, "sdpa")
        self.model = self.loaded.model.train()  # Opacus hooks only modules in train mode
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1000, 30000, (examples, length), generator=generator)
        self.answers = torch.randint(0, 2, (examples,), generator=generator)
        # Opacus needs positions per example; everybody gets them, so that all do the same work.
        self.positions = torch.arange(length).repeat(examples, 1)
        self.cells = self.loaded.partition.parameters
        self.probe = ExampleNorms(self.model, self.cells)

    def losses(self, rows: slice = slice(None), model: Any = None) -> Tensor:
        ids = self.ids[rows]
        out = (model or self.model)(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=self.positions[rows],
            token_type_ids=torch.zeros_like(ids),
        )
        return functional.cross_entropy(out.logits, self.answers[rows], reduction="none")

    def step(self) -> None:
        self.losses().mean().backward()
        self.model.zero_grad(set_to_none=True)

    def engine(self) -> Tensor:
        with self.probe:
            return self.probe.of(self.losses, range(len(self.ids)))[1]

    def forward(self) -> None:
        with torch.no_grad():
            self.losses()

    def loop(self) -> Tensor:
        found = []
        named = dict(self.model.named_parameters())
        for row in range(len(self.ids)):
            self.losses(slice(row, row + 1)).sum().backward()
            found.append([self._sum(named[n].grad for n in names) for names in self.cells.values()])
            self.model.zero_grad(set_to_none=True)
        return torch.tensor(found)

    @staticmethod
    def _sum(gradients: Any) -> float:
        return sum(float(g.square().sum()) for g in gradients)

    def opacus(self, *, ghost: bool) -> tuple[Callable[[], Tensor], Callable[[], None]]:
        """Return (pass that leaves each parameter's per-example norms, how to take Opacus off the model)."""
        from opacus.grad_sample import GradSampleModule
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

        kind = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
        wrapped = kind(self.model, loss_reduction="mean", strict=False)

        def run() -> Tensor:
            self.losses(model=wrapped).mean().backward()
            columns = []
            for names in self.cells.values():
                total = torch.zeros(len(self.ids))
                for name in names:
                    parameter = dict_of[name]
                    norm = parameter._norm_sample if ghost else parameter.grad_sample.flatten(1).norm(dim=1)
                    total += norm.square()
                columns.append(total)
            for parameter in dict_of.values():
                parameter.grad = None
                for left in ("grad_sample", "_norm_sample"):
                    if hasattr(parameter, left):
                        setattr(parameter, left, None)
            return torch.stack(columns, 1)

        dict_of = dict(self.model.named_parameters())
        return run, wrapped.to_standard_module

    def floor(self) -> float:
        """Return the arithmetic floor of ours as a share of a training step, by multiplications of linear layers."""
        length = self.ids.shape[1]
        forward = norms = 0
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear) and "encoder" in name:
                sizes = length, module.in_features, module.out_features
                forward += forms.direct_cost(*sizes)
                norms += min(forms.direct_cost(*sizes), forms.pair_cost(*sizes))
        return (2 * forward + norms) / (3 * forward)


def measure(suffix: str, repeats: int) -> dict[str, float]:
    """Return the ratios at one shape."""
    bench = Bench(*_SHAPES[suffix])
    ways: dict[str, Callable[[], Any]] = {
        "step": bench.step, "engine": bench.engine, "forward": bench.forward, "loop": bench.loop
    }  # fmt: skip
    exact = bench.loop()
    error = float((bench.engine().sqrt() / exact.double().sqrt() - 1).abs().max())
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            _time(seconds, name, way)
        for name, ghost in (("opacus", False), ("opacus_ghost", True)):
            run, off = bench.opacus(ghost=ghost)
            run()
            _time(seconds, name, run)
            off()
            bench.model.requires_grad_(True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{_SHAPES[suffix]}: " + ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in median.items()))
    print(f"largest relative difference to the loop, both in float32: {error:.1e}")
    ours = median["engine"]
    return {
        f"ratio_to_train_step{suffix}": ours / median["step"],
        f"speedup_vs_loop{suffix}": median["loop"] / ours,
        f"speedup_vs_opacus{suffix}": min(median["opacus"], median["opacus_ghost"]) / ours,
        f"floor{suffix}": bench.floor(),
        f"memory_ratio{suffix}": peak("engine", suffix) / peak("step", suffix),
    }


def _time(seconds: dict[str, list[float]], name: str, way: Callable[[], Any]) -> None:
    began = time.perf_counter()
    way()
    seconds.setdefault(name, []).append(time.perf_counter() - began)


def peak(way: str, suffix: str) -> float:
    """Return the peak resident bytes of a way above the loaded model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gradients", "--peak", way, "--shape", suffix]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table and, as the last line, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak", choices=("engine", "step"))
    parser.add_argument("--shape", default="", choices=tuple(_SHAPES))
    given = parser.parse_args()
    keep_freed_memory()
    warnings.filterwarnings("ignore")  # Opacus uses hooks of torch that it announces to drop
    if given.peak:
        bench = Bench(*_SHAPES[given.shape])
        before = _resident("VmRSS")
        for _ in range(3):
            getattr(bench, given.peak)()
        print(_resident("VmHWM") - before)
        return
    found = {key: round(v, 4) for suffix in _SHAPES for key, v in measure(suffix, given.repeats).items()}
    print(json.dumps({**found, "repeats": given.repeats, "hardware_class": hardware.cpu_class()}))


def _resident(field: str) -> float:
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
