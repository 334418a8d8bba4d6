"""How parameters are updated. One file per method, all of the same shape; to add one, copy one.

A method is a frozen dataclass of its settings. `prepare` sets requires_grad on exactly the tensors that train;
the optimizer is built afterwards and the training loop never asks which method it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cprbench.errors import MethodError, SpecError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from cprbench.adapt.models import LoadedModel

#: name -> (where, one line of help). Listing imports nothing.
METHODS: dict[str, tuple[str, str]] = {
    "full": ("cprbench.adapt.methods.full:Full", "every parameter trains"),
    "head": ("cprbench.adapt.methods.head:Head", "only the new task head trains (reference of encoders)"),
    "lora": ("cprbench.adapt.methods.lora:Lora", "low-rank adapters on every linear of every layer (peft)"),
    "partial": ("cprbench.adapt.methods.partial:Partial", "the submodules of largest gradient norm train"),
}


@dataclass(frozen=True)
class Context:
    """What a method may use besides the model."""

    seed: int
    measure_norms: Callable[[], dict[str, float]]  # submodule -> gradient norm; costs, so it is billed


@dataclass(frozen=True)
class Prepared:
    """A model whose requires_grad says what trains, with what the record keeps of the choice."""

    model: nn.Module
    trained_submodules: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    k_asked: float | None = None
    k_reached: float | None = None
    adapters: Mapping[str, int] | None = None  # linear (by its name inside a layer) -> rank
    merge: Callable[[], nn.Module] | None = None  # folds adapters into plain weights, for export


class Method(Protocol):
    """The shape of every method."""

    name: ClassVar[str]
    learning_rates: ClassVar[Mapping[str, float]]  # model kind -> declared default
    label_settings: ClassVar[tuple[str, ...]]  # settings that the arm's name always shows

    @property
    def chooses(self) -> bool:
        """Whether preparing costs a choice; that time is then billed as phase select."""

    def check(self, kind: str, sizes: Mapping[str, int], total: int) -> None:
        """Raise MethodError when this method cannot be applied to such a model; called before anything runs."""

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model ready to train."""


def method_class(name: str) -> type[Any]:
    """Return the class of a method. Raises SpecError with the nearest known name."""
    if name not in METHODS:
        raise SpecError(f"unknown method {name!r}. {did_you_mean(name, METHODS)}")
    module, _, attribute = METHODS[name][0].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def build_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Return a method with `settings` over its defaults; raises SpecError for unknown or ill-typed ones."""
    kind = method_class(name)
    fields: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(kind)}
    for key, value in settings.items():
        if key not in fields:
            known = did_you_mean(key, fields) if fields else f"Method {name!r} has no settings."
            raise SpecError(f"unknown setting {name}.{key}. {known}")
        expected = type(fields[key])
        fits = isinstance(value, bool) == (expected is bool) and isinstance(value, (expected, int))
        if not fits or (expected is int and not isinstance(value, int)):
            raise SpecError(f"{name}.{key} = {value!r}: type {expected.__name__} is needed.")
    typed = {k: type(fields[k])(v) for k, v in settings.items()}
    method: Method = kind(**typed)
    return method


def settings_of(method: Method) -> dict[str, Any]:
    """Return all settings of a method, defaults included."""
    return dataclasses.asdict(method)  # type: ignore[call-overload, no-any-return]


def arm_label(method: Method) -> str:
    """Return an arm's name: the method, its headline settings and whatever differs from the defaults."""
    defaults = settings_of(type(method)())
    shown = {
        key: value
        for key, value in settings_of(method).items()
        if key in method.label_settings or value != defaults[key]
    }
    return " ".join([method.name, *(f"{k}={_short(v)}" for k, v in shown.items())])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value).lower()


def refuse_without_new_head(method: str, kind: str) -> None:
    """Raise MethodError for methods that need a new task head, on models that have none."""
    if kind == "causal":
        raise MethodError(
            f"method {method!r} trains only a new task head, and causal models have none: they answer with "
            "their own vocabulary. Use it with an encoder; causal models are measured against their base."
        )
