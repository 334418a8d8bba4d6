"""What training a share of the parameters saves, beside training all of them, with the same loop.

    python -m benchmarks.partial      prints as its last line JSON; ratios are of partial over full: smaller is better

Float32, every arm a process of its own, a step of each in turn; k = 0.15 of all parameters.
- `step_time_ratio_reaching_layer_0` (MiniLM, movie-snippets, 16 x <= 48): the set holds attn.0 and what is nearest to
  the output, so the backward pass goes through all layers. Median over rounds of one epoch.
- `step_time_ratio`, `peak_memory_ratio` (SmolLM2-135M, PubMedQA, 8 x <= 192): the set nearest to the output. Peaks are
  resident memory of the whole process at its highest, the loaded model included.
- `cached_time_ratio`: the same set with what the frozen layers give kept (training.cache_prefix): the whole training,
  planning and filling of the cache included, over full's; both over 4 epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.racing import Gate, Setting, Worker, race, serve

_K = 0.15
_ROUNDS = 3
#: model -> examples of a round, of the first one (which warms up), epochs of a round
_SIZES = {"minilm": (384, 48, 1), "smollm2-135m": (16, 8, 4)}


def arm(alias: str, name: str) -> None:
    """Serve rounds of an arm: full, reaching-0, last, or cached."""
    from benchmarks.gradients import _resident
    from cprbench.adapt.products import multiply_by_onednn
    from cprbench.meters import hardware
    from cprbench.sessions.worker import keep_freed_memory

    gate = Gate()
    keep_freed_memory()
    multiply_by_onednn()
    many, few, epochs = _SIZES[alias]
    method, settings = ("full", {}) if name == "full" else ("last-layers", {"k": _K})
    setting = Setting(alias, method, many, settings)
    if name == "reaching-0":
        ranked = ["attn.0", *reversed(setting.loaded.partition.sizes)]
        prepared = setting.method.train_first(setting.loaded, list(dict.fromkeys(ranked)))
    else:
        prepared = setting.adapt()
    loaded = _resident("VmRSS")
    scratch = tempfile.TemporaryDirectory()

    def round_of(gate: Gate, first: bool) -> dict[str, Any]:
        items = setting.items[:few] if first else setting.items
        batches = setting.batches(items, 1 if first else epochs)
        gate.tick()
        gate.start()
        setting.train(batches, gate.tick, **(cached(setting, batches, Path(scratch.name)) if name == "cached" else {}))
        return {
            "steps": len(batches),
            "loaded": loaded,
            "peak": _resident("VmHWM"),
            "k": prepared.k_reached,
            "trained": list(prepared.trained_submodules),
            "hardware_class": hardware.cpu_class(),
        }

    serve(round_of, gate)


def cached(setting: Setting, batches: Sequence[Any], folder: Path) -> dict[str, Any]:
    """Return what `training.train` takes to keep what the frozen layers give, as a run plans it."""
    from cprbench.adapt.prefix import Room, plan_cache

    room = Room.here(setting.engine.device, folder)
    plan = plan_cache(setting.loaded, setting.objective, batches, setting.recipe, room, bf16=False)
    return {"cache": plan, "folder": folder}


def compare(alias: str, names: Sequence[str], rounds: int) -> list[dict[str, dict[str, Any]]]:
    """Return what the arms told, round by round, and print it."""
    workers = {name: Worker("benchmarks.partial", "--arm", alias, name) for name in names}
    race(workers)
    found = [race(workers) for _ in range(rounds)]
    for worker in workers.values():
        worker.close()
    for name in names:
        told = found[-1][name]
        seconds = statistics.median(f[name]["seconds"] for f in found)
        print(
            f"{alias} {name:<10} {seconds:6.1f} s, {told['steps']} steps of {1000 * seconds / told['steps']:5.0f} ms; "
            f"peak {told['peak'] / 1e6:5.0f} MB, {(told['peak'] - told['loaded']) / 1e6:5.0f} above the loaded model; "
            + ("all" if told["k"] is None else f"k {told['k']:.3f}: {' '.join(told['trained'])}"),
            flush=True,
        )
    return found


def main() -> None:
    """Print the table and, as the last line, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arm", nargs=2, metavar=("MODEL", "NAME"))
    given = parser.parse_args()
    if given.arm:
        return arm(*given.arm)
    small = compare("minilm", ["full", "reaching-0"], _ROUNDS)
    large = compare("smollm2-135m", ["full", "last", "cached"], 1)[0]
    full, last = large["full"], large["last"]
    found = {
        "step_time_ratio_reaching_layer_0": statistics.median(
            f["reaching-0"]["seconds"] / f["full"]["seconds"] for f in small
        ),
        "step_time_ratio": last["seconds"] / full["seconds"],
        "peak_memory_ratio": last["peak"] / full["peak"],
        "peak_memory_ratio_above_loaded": (last["peak"] - last["loaded"]) / (full["peak"] - full["loaded"]),
        "cached_time_ratio": large["cached"]["seconds"] / full["seconds"],
        "cached_peak_memory_ratio": large["cached"]["peak"] / full["peak"],
    }
    rounded = {name: round(value, 4) for name, value in found.items()}
    print(json.dumps({**rounded, "k": _K, "hardware_class": full["hardware_class"]}))


if __name__ == "__main__":
    main()
