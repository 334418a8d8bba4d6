"""Exact gradient norms per example and submodule from one forward and one activation-only backward pass.

A tap sits behind every module that holds parameters: an identity in the graph that keeps the module's input the way
autograd keeps things (so gradient checkpointing recomputes it) and hands input and arriving gradient to a formula of
`forms.py`. Parameters stay frozen meanwhile, so autograd forms no gradient of a weight's shape, and where pairs of
positions are cheaper nobody does.

    module output -> _Tap -> …        backward: (input, gradient) -> squared norms -> submodule
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cprbench.adapt.four_bit import is_four_bit
from cprbench.adapt.gradients import forms
from cprbench.errors import ModelError

Kind = Literal["linear", "embedding", "layer norm", "rms norm"]


class _Tap(torch.autograd.Function):
    """The identity on `output`; its backward hands the gradient on and reports it together with `read`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, output: Tensor, read: Tensor, report: Callable[..., None]) -> Tensor:
        ctx.save_for_backward(read)
        ctx.report = report
        return output.detach()  # as a view (view_as), a model could not change it in place

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.report(*ctx.saved_tensors, gradients[0])
        return None, gradients[0] if ctx.needs_input_grad[1] else None, None, None


class Taps(ABC):
    """Taps behind every module that holds a parameter of `cells`; in place, and parameters frozen, inside `with`.

    `cells`: submodule -> parameter names of the live model. `freeze=False` leaves requires_grad alone, so that one
    pass gives weight gradients as well. Raises ModelError for modules whose per-example gradient has no formula here
    and for parameters that two modules share, unless as input table and output layer.
    """

    def __init__(self, model: nn.Module, cells: Mapping[str, Sequence[str]], *, freeze: bool = True) -> None:
        self.model = model
        self.columns = {cell: column for column, cell in enumerate(cells)}
        parameters = dict(model.named_parameters())
        self._cell_of = {id(parameters[name]): cell for cell, names in cells.items() for name in names}
        self._freeze = freeze
        self._modules: dict[nn.Module, Kind] = {}
        users: dict[int, list[Kind]] = {}
        for name, module in model.named_modules():
            own = [p for p in module.parameters(recurse=False) if id(p) in self._cell_of]
            if own:
                self._modules[module] = kind = kind_of(module, name)
                for parameter in own:
                    users.setdefault(id(parameter), []).append(kind)
        for kinds in users.values():
            if len(kinds) > 1 and sorted(kinds) != ["embedding", "linear"]:
                raise ModelError(
                    f"modules of kinds {kinds} share a weight; only an input table and an output layer may."
                )
        self._tied = {key for key, kinds in users.items() if len(kinds) > 1}
        self._handles: list[Any] = []
        self._frozen: list[Tensor] = []

    @abstractmethod
    def arrived(self, module: nn.Module, kind: Kind, read: Tensor, gradient: Tensor) -> None:
        """Take what one module read, (examples, positions, width) or ids (examples, positions), with the gradient of
        the examples' scaled losses at its output, (examples, positions, width). Padding has gradient 0.
        """

    def __enter__(self) -> Self:
        self._frozen = [p for p in self.model.parameters() if p.requires_grad and self._freeze]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._handles = [module.register_forward_hook(self._hook, with_kwargs=True) for module in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def run(self, losses: Callable[[], Tensor], owners: Sequence[int], scale: float = 1.0) -> Tensor:
        """Run `losses` and one backward pass through all taps; return the losses, (examples,), detached.

        `losses` returns each example's own loss. `owners`: the example of each scored row, where the output layer reads
        rows of several examples; there are max(owners) + 1 examples. `scale`: a factor on all losses before the
        backward pass (1/examples gives weight gradients of the batch mean beside).
        """
        self._owners, self._examples = owners, max(owners) + 1
        self._seen: set[nn.Module] = set()
        self._many_ids = False
        self._dark: set[nn.Module] = set()
        # An anchor that needs a gradient keeps taps in the graph although every parameter is frozen.
        self._anchor = torch.zeros((), device=next(self.model.parameters()).device, requires_grad=True)
        with torch.enable_grad():
            found = losses()
            if len(found) != self._examples:
                raise ValueError(f"{len(found)} losses for {self._examples} examples")
            (found.sum() * scale).backward()  # type: ignore[no-untyped-call]
        if missed := self._dark - self._seen:
            raise ModelError(
                f"{len(missed)} modules ran without gradients and no backward pass came back to them, the first a "
                f"{type(next(iter(missed))).__name__}. Checkpoint with use_reentrant=False."
            )
        return found.detach()

    def _hook(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # checkpointing runs it again, with gradients
            self._dark.add(module)
            return output
        read = arguments[0] if arguments else next(iter(named.values()))
        if self._modules[module] == "embedding":
            self._many_ids = self._many_ids or read.ndim > 1
            if read.ndim == 1 and self._many_ids and len(read) == self._examples:
                raise ModelError(
                    f"{len(read)} ids in a batch of {self._examples}: one per example or one per position? Take "
                    "batches of another size."
                )
            if read.ndim == 1 and len(read) != self._examples:
                read, output = read.unsqueeze(0), output.unsqueeze(0)
            if len(read) == 1:  # one row of positions for all examples: give each its own, so that gradients stay apart
                read = read.expand(self._examples, *read.shape[1:])
                output = output.expand(self._examples, *output.shape[1:])
            if self.is_tied(module):
                self._ids = read

        def report(read: Tensor, gradient: Tensor) -> None:
            if module in self._seen:
                raise ModelError(
                    f"a {type(module).__name__} is used twice in one pass; the norms of shared layers do not add up."
                )
            self._seen.add(module)
            read = read if read.is_floating_point() else read.unsqueeze(-1)
            read, gradient = self._by_example(read), self._by_example(gradient)
            kind = self._modules[module]
            with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                self.arrived(module, kind, read.squeeze(-1) if kind == "embedding" else read, gradient)

        return _Tap.apply(self._anchor, output, read, report)  # type: ignore[no-any-return, no-untyped-call]

    def _by_example(self, rows: Tensor) -> Tensor:
        """Return rows as (examples, positions, width).

        Rows that are not sorted by example (tables of relative positions, positions first) would give wrong norms.
        """
        if rows.ndim > 2 and len(rows) == self._examples:
            return rows.flatten(1, -2)
        if rows.ndim > 2 or len(rows) not in (self._examples, len(self._owners)):
            raise ModelError(
                f"a module saw {tuple(rows.shape[:-1])} rows, which are not those of {self._examples} examples."
            )
        if len(rows) != len(self._owners):
            return rows.unsqueeze(1)
        counts = [0] * self._examples
        slots = []
        for owner in self._owners:
            slots.append(counts[owner])
            counts[owner] += 1
        if max(counts) == 1:
            return rows.unsqueeze(1)
        padded = rows.new_zeros(self._examples, max(counts), rows.shape[-1])
        padded[list(self._owners), slots] = rows
        return padded

    def is_tied(self, module: nn.Module) -> bool:
        """Return whether a module shares its weight: an input table and an output layer."""
        return id(module.weight) in self._tied

    def _column(self, parameter: Any) -> int | None:
        """Return the column of the submodule that holds a parameter; None where it is not asked for."""
        cell = self._cell_of.get(id(parameter))
        return None if cell is None else self.columns[cell]


class ExampleNorms(Taps):
    """Squared gradient norms by example and submodule."""

    def of(self, losses: Callable[[], Tensor], owners: Sequence[int], scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return (examples,) losses and (examples, submodules) squared norms in float64, columns as in `cells`."""
        examples = max(owners) + 1
        device = next(self.model.parameters()).device
        self.squared = torch.zeros(examples, len(self.columns), dtype=torch.float64, device=device)
        self.extra_flops = 0
        self._last: tuple[Tensor, list[Tensor]] | None = None
        self._output: tuple[Tensor, Tensor] | None = None
        try:
            return self.run(losses, owners, scale), self.squared.clamp_min(0) / scale**2
        finally:
            self._last = self._output = None

    def arrived(self, module: nn.Module, kind: Kind, read: Tensor, gradient: Tensor) -> None:
        """Add one module's squared norms to its submodule."""
        weight, bias = self._column(module.weight), self._column(getattr(module, "bias", None))
        if kind == "linear" and weight is not None:
            self.squared[:, weight] += self._linear(read, gradient, bias=bias == weight)
            if self.is_tied(module):
                wanted = self._ids.unsqueeze(1).expand(-1, gradient.shape[1], -1)
                self._output = read, gradient.gather(2, wanted)
        elif kind == "embedding" and weight is not None:
            padding = getattr(module, "padding_idx", None)
            self.squared[:, weight] += forms.table(read, gradient, padding)
            if self.is_tied(module) and self._output is not None:
                if padding is not None:
                    gradient = gradient * (read != padding).unsqueeze(-1)
                self.squared[:, weight] += 2 * forms.tied(*self._output, gradient)
        elif weight is not None:
            self.squared[:, weight] += forms.summed(scaled(module, kind, read) * forms.wide(gradient))
        if bias is not None and (kind != "linear" or bias != weight):
            self.squared[:, bias] += forms.summed(gradient)

    def _linear(self, read: Tensor, gradient: Tensor, *, bias: bool) -> Tensor:
        examples, length, inputs = read.shape
        outputs = gradient.shape[2]
        pairs, direct = forms.pair_cost(length, inputs, outputs), forms.direct_cost(length, inputs, outputs)
        if pairs * _slowness(gradient) <= direct:
            self.extra_flops += 2 * examples * pairs
            if self._last is None or not _same(self._last[0], read):  # query, key and value read one tensor
                self._last = read, forms.gram(read)  # holding it keeps its memory from being reused meanwhile
            return forms.from_grams(self._last[1], forms.gram(gradient), bias=bias)
        self.extra_flops += 2 * examples * direct
        squared = forms.direct(read, gradient)
        return squared + forms.summed(gradient) if bias else squared


def kind_of(module: nn.Module, name: str) -> Kind:
    """Return how a module uses its parameters. Raises ModelError where no formula is known."""
    forward = type(module).forward
    if forward in (nn.Linear.forward, Conv1D.forward) or is_four_bit(module):  # a packed weight is not asked for
        return "linear"
    if forward is nn.Embedding.forward and not module.scale_grad_by_freq and module.max_norm is None:
        return "embedding"
    if forward is nn.LayerNorm.forward and len(module.normalized_shape) == 1:  # type: ignore[arg-type]
        return "layer norm"
    if type(module).__name__.endswith("RMSNorm") and _is_rms(module):
        return "rms norm"
    raise ModelError(
        f"{name or 'the model'} is a {type(module).__name__}, whose per-example gradients have no formula here. "
        "Known: Linear, Conv1D, Embedding, LayerNorm, RMSNorm."
    )


def _is_rms(module: Any) -> bool:
    """Return whether a module's output is its weight, or 1 + weight, times the scaled input: tried on numbers."""
    weight = module.weight.detach().double()
    if weight.ndim != 1 or weight.is_meta:
        return False
    x = torch.linspace(-1, 2, 2 * len(weight), device=weight.device).view(1, 2, -1)
    x = torch.cat([x, 1e-3 * x]).to(module.weight.dtype)  # what is small shows the epsilon
    try:
        with torch.no_grad():
            made, plain = module(x).double(), scaled(module, "rms norm", x).double()
    except (AttributeError, TypeError, RuntimeError):  # it wants more than one input
        return False
    return any(torch.allclose(made, plain * w, rtol=2e-2, atol=1e-3) for w in (weight, 1 + weight))


def scaled(module: Any, kind: Kind, read: Tensor) -> Tensor:
    """Return what a norm multiplies with its weight."""
    names = ("eps", "variance_epsilon")  # None is that of the number format, as in torch
    epsilon = next((value for n in names if (value := getattr(module, n, None)) is not None), None)
    return forms.normalised(read, read.shape[-1], epsilon, centred=kind == "layer norm")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _slowness(gradient: Tensor) -> float:
    """Return how much dearer a multiplication over pairs is: it runs in float32 whatever the model runs in."""
    if gradient.dtype in (torch.float32, torch.float64):
        return 1.0
    return 8.0 if gradient.is_cuda else 2.0
