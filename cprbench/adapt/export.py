"""A run's trained tensors -> a plain model folder that from_pretrained loads and that scores the same psi."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cprbench.adapt import models
from cprbench.adapt.checkpoints import DELTA, resolve
from cprbench.adapt.methods import Context, build_method, method_class
from cprbench.errors import ModelError, StoreError
from cprbench.spec import RunSpec

if TYPE_CHECKING:
    from torch import Tensor


def save_merged(
    spec: RunSpec,
    source: str,
    delta: Mapping[str, Tensor],
    target: Path,
    labels: int | None,
    *,
    offline: bool = True,
) -> None:
    """Write the adapted model of a run into `target`: base weights plus `delta`, adapters folded in.

    Raises ModelError when the base is not the one that was trained, StoreError when `delta` does not fit it.
    """
    checkpoint = resolve(source, offline=offline)
    if checkpoint.weights_sha256 != spec.model.weights_sha256:
        raise ModelError(
            f"{source}: its weights are {checkpoint.weights_sha256[:16]}…, the run trained "
            f"{spec.model.weights_sha256[:16]}…. Name the model that was trained."
        )
    loaded = models.load(checkpoint, labels, spec.seed, spec.training.attention)
    merge = None
    if getattr(method_class(spec.method.name), "adapts", False):  # else the delta has the model's own names
        method = build_method(spec.method.name, spec.method.settings)
        merge = method.prepare(loaded, Context(spec.seed)).merge
    unknown = sorted(set(delta) - {name for name, _ in loaded.model.named_parameters()})
    if unknown:
        raise StoreError(f"the delta holds tensors that the model lacks: {', '.join(unknown[:5])}.")
    loaded.model.load_state_dict(dict(delta), strict=False)
    merged = merge() if merge is not None else loaded.model
    merged.save_pretrained(target)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(target)


def export_run(folder: Path, spec: RunSpec, labels: int | None, target: Path, *, offline: bool) -> None:
    """Write the adapted model of a stored run into `target`. Raises StoreError when the run kept no delta."""
    from safetensors.torch import load_file

    path = folder / DELTA
    if not path.exists():
        raise StoreError(f"{folder}: the run kept no trained tensors. Run it with --save delta.")
    save_merged(spec, spec.model.pinned, load_file(str(path)), target, labels, offline=offline)
