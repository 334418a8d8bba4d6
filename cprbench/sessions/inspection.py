"""What a child finds out before anything runs: what a task and a model are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprbench.errors import TrainingError
from cprbench.sessions.channel import Channel
from cprbench.spec import TaskSpec


def work(job: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Return what planning needs to know about a task, a model and this machine: hashes, counts, sizes, the device.

    The model's weights are not read beyond their hash: its sizes come from tensors without storage.
    """
    import torch

    from cprbench.adapt import data, models
    from cprbench.adapt.checkpoints import resolve
    from cprbench.meters.flops import sizes

    task = TaskSpec.model_validate(job["task"])
    dataset = data.load_dataset(task, data=folder_of(job["data"]), offline=job["offline"])
    checkpoint = resolve(job["model"], offline=job["offline"])
    labels = labels_of(task, dataset.choices, checkpoint.kind)
    partition = models.empty_partition(checkpoint, labels)
    return {
        "data_sha256": dataset.sha256,
        "counts": dataset.counts(),
        "labels": labels,
        "model": {
            "source": checkpoint.source,
            "label": checkpoint.label,
            "revision": checkpoint.revision,
            "weights_sha256": checkpoint.weights_sha256,
            "parameters": partition.total,
            "kind": checkpoint.kind,
            "config": sizes(checkpoint.config),
        },
        "sizes": dict(partition.sizes),
        "tensors": dict(partition.parameters),
        "new_head": len(partition.new_head),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "bitsandbytes": importlib.util.find_spec("bitsandbytes") is not None,
    }


def folder_of(path: str | None) -> Path | None:
    """Return a job's path as a Path."""
    return None if path is None else Path(path)


def labels_of(task: TaskSpec, choices: Sequence[str] | None, kind: str) -> int | None:
    """Return the outputs of a new head, None for causal models.

    Raises TrainingError for texts, and for choices of a row's own.
    """
    if kind == "causal":
        return None
    if task.example.kind == "text":
        raise TrainingError(
            f"task {task.name!r} asks how well a model predicts text, and an encoder predicts none. Use a causal "
            "model, for example random:llama-tiny (cprbench list models)."
        )
    if choices is None:
        raise TrainingError(
            f"task {task.name!r} brings its own choices with every row, which a classification head cannot "
            "answer. Use a causal model."
        )
    return len(choices)
