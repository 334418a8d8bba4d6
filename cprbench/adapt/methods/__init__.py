"""How parameters are updated. One file per method, all of the same shape; to add one, copy one.

A method is a frozen dataclass of its settings. `prepare` sets requires_grad on exactly the tensors that train;
the optimizer is built afterwards and the training loop never asks which method it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cprbench.adapt.settings import build
from cprbench.errors import MethodError, SpecError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from cprbench.adapt.models import LoadedModel
    from cprbench.blueprint.schema import StepCost

#: name -> (where, one line of help). Listing imports nothing.
METHODS: dict[str, tuple[str, str]] = {
    "bitfit": ("cprbench.adapt.methods.bitfit:Bitfit", "every bias trains, those of norms included"),
    "full": ("cprbench.adapt.methods.full:Full", "every parameter trains"),
    "head": ("cprbench.adapt.methods.head:Head", "only the new task head trains (reference of encoders)"),
    "last-layers": ("cprbench.adapt.methods.last_layers:LastLayers", "the submodules nearest to the output train"),
    "lora": ("cprbench.adapt.methods.lora:Lora", "low-rank adapters on every linear of every layer (peft)"),
    "partial": ("cprbench.adapt.methods.partial:Partial", "the submodules of largest gradient norm train"),
    "partial+lora": (
        "cprbench.adapt.methods.partial_lora:PartialLora",
        "adapters on the submodules of largest gradient norm, of ranks that follow it",
    ),
    "peft": ("cprbench.adapt.methods.peft:Peft", "what a peft config (a file) puts into the model trains: peft:PATH"),
    "qlora": ("cprbench.adapt.methods.qlora:Qlora", "lora over base weights in 4 bits (bitsandbytes, CUDA)"),
    "random-submodules": (
        "cprbench.adapt.methods.random_submodules:RandomSubmodules",
        "submodules drawn by lot train, anew in every block",
    ),
    "spectrum": ("cprbench.adapt.methods.spectrum:Spectrum", "what a Spectrum scan (a file) names trains"),
}


@dataclass(frozen=True)
class Probe:
    """How gradient norms are measured before a run: what they may be blended with must have been taken alike."""

    batch_size: int
    warmup_steps: int


@dataclass(frozen=True)
class Target:
    """The model that a method is planned for, as far as it is known before its weights are read."""

    kind: str  # encoder | causal
    sizes: Mapping[str, int]  # submodule -> parameters, in partition order
    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)  # submodule -> names of its parameters
    weights_sha256: str = ""
    revision: str | None = None
    label: str = "the model"
    probe: Probe | None = None
    data_sha256: str = ""
    device: str = "cpu"  # cuda | cpu: what the run will compute on
    bitsandbytes: bool = False  # whether it is installed there

    @property
    def total(self) -> int:
        """N: all parameters, the new head excluded."""
        return sum(self.sizes.values())


def _unavailable() -> Any:
    raise MethodError("nothing can be measured here: this model is prepared without data.")


@dataclass(frozen=True)
class Context:
    """What a method may use besides the model. All that measures costs, so it is billed."""

    seed: int
    target: Target = Target("", {})
    measure_norms: Callable[[], dict[str, float]] = _unavailable  # submodule -> gradient norm
    measure_step: Callable[[], StepCost] = _unavailable  # seconds of a training step, by part
    memory_bytes: Callable[[], int] = _unavailable  # of this process so far, at its peak


@dataclass(frozen=True)
class Prepared:
    """A model whose requires_grad says what trains, with what the record keeps of the choice."""

    model: nn.Module
    trained_submodules: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    k_asked: float | None = None
    k_reached: float | None = None
    #: linear, by its name inside a layer, or cell/linear for one layer's alone -> rank
    adapters: Mapping[str, int] | None = None
    tensors: Mapping[str, Sequence[str]] | None = None  # submodule -> its tensors that train, where that is not all
    merge: Callable[[], nn.Module] | None = None  # folds adapters into plain weights, for export
    uncounted: str | None = None  # why the FLOPs of what trains cannot be counted


class Method(Protocol):
    """The shape of every method."""

    name: ClassVar[str]
    learning_rates: ClassVar[Mapping[str, float]]  # model kind -> declared default
    label_settings: ClassVar[tuple[str, ...]]  # settings that the arm's name always shows
    files: ClassVar[tuple[str, ...]] = ()  # settings that name a file
    adapts: ClassVar[bool] = False  # puts adapters into the model, which export folds in again
    four_bit: ClassVar[bool] = False  # its base model is loaded in 4 bits

    @property
    def chooses(self) -> bool:
        """Whether preparing costs a choice; that time is then billed as phase select."""

    def check(self, target: Target) -> None:
        """Raise MethodError or SpecError when this method cannot be applied there; called before anything runs."""

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model ready to train."""


def named(method: str) -> tuple[str, dict[str, Any]]:
    """Return a method as it is written, "lora" or "peft:PATH", as its name and the setting that follows the colon.

    Raises SpecError for a colon after any other name and for one that nothing follows.
    """
    name, colon, path = method.partition(":")
    if colon and (name != "peft" or not path):
        raise SpecError(f"method {method!r}: only peft is followed by a file, peft:PATH/adapter_config.json.")
    return name, {"config": path} if colon else {}


def method_class(name: str) -> type[Any]:
    """Return the class of a method. Raises SpecError with the nearest known name."""
    if name not in METHODS:
        raise SpecError(f"unknown method {name!r}. {did_you_mean(name, METHODS)}")
    module, _, attribute = METHODS[name][0].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def build_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Return a method with `settings` over its defaults; raises SpecError for unknown or ill-typed ones."""
    made: Method = build(method_class(name), settings, name)
    return made


def refuse_without_new_head(method: str, kind: str) -> None:
    """Raise MethodError for methods that need a new task head, on models that have none."""
    if kind == "causal":
        raise MethodError(
            f"method {method!r} trains only a new task head, and causal models have none: they answer with "
            "their own vocabulary. Use it with an encoder; causal models are measured against their base."
        )
