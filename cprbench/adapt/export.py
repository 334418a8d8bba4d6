"""A run's trained tensors -> a plain model folder that from_pretrained loads and that scores the same psi."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cprbench.adapt import models
from cprbench.adapt.checkpoints import DELTA, resolve
from cprbench.adapt.methods import Context, build_method, method_class
from cprbench.adapt.methods.adapters import insert
from cprbench.adapt.methods.peft_config import NOT_OURS, refuse
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
    adapter_config: Mapping[str, Any] | None = None,
    offline: bool = True,
) -> None:
    """Write the adapted model of a run into `target`: base weights plus `delta`, adapters folded in.

    `adapter_config`: the run's note of that name; without one its method puts the adapters in again. Raises ModelError
    when the base is not the one that was trained and for adapters that cannot be folded in, StoreError when `delta`
    does not fit the model, SpecError and MethodError for a note that is no config as method peft takes it.
    """
    if adapter_config is not None:  # a record may be a stranger's
        refuse(adapter_config, "notes.adapter_config of the record")
        adapter_config = {key: value for key, value in adapter_config.items() if key not in NOT_OURS}
    checkpoint = resolve(source, offline=offline)
    if checkpoint.weights_sha256 != spec.model.weights_sha256:
        raise ModelError(
            f"{source}: its weights are {checkpoint.weights_sha256[:16]}…, the run trained "
            f"{spec.model.weights_sha256[:16]}…. Name the model that was trained."
        )
    kind = method_class(spec.method.name)
    four_bit = getattr(kind, "four_bit", False)
    loaded = models.load(checkpoint, labels, spec.seed, spec.training.attention, four_bit=four_bit)
    merge = None
    if adapter_config is not None:
        merge = insert(loaded, adapter_config, spec.seed).merge_and_unload
    elif getattr(kind, "adapts", False):  # else the delta has the model's own names
        merge = build_method(spec.method.name, spec.method.settings).prepare(loaded, Context(spec.seed)).merge
    unknown = sorted(set(delta) - {name for name, _ in loaded.model.named_parameters()})
    if unknown:
        raise StoreError(f"the delta holds tensors that the model lacks: {', '.join(unknown[:5])}.")
    loaded.model.load_state_dict(dict(delta), strict=False)
    try:
        merged = merge() if merge is not None else loaded.model
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"the adapters of {spec.method.name!r} cannot be folded into plain weights: {error} The run's "
            f"{DELTA} holds them as they were trained."
        ) from error
    merged.save_pretrained(target)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(target)


def export_run(
    folder: Path,
    spec: RunSpec,
    labels: int | None,
    target: Path,
    *,
    adapter_config: Mapping[str, Any] | None = None,
    offline: bool,
) -> None:
    """Write the adapted model of a stored run into `target`. Raises StoreError when the run kept no delta."""
    from safetensors.torch import load_file

    path = folder / DELTA
    if not path.exists():
        raise StoreError(f"{folder}: the run kept no trained tensors. Run it with --save delta.")
    save_merged(
        spec, spec.model.pinned, load_file(str(path)), target, labels, adapter_config=adapter_config, offline=offline
    )
