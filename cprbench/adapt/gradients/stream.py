"""Weight gradients as a stream: each is looked at when autograd has formed it and dropped before the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from cprbench.adapt.gradients.forms import norm

#: Bins of |gradient|: the exponent and the first three bits of the mantissa of a float32, eight bins per octave.
_BITS = 20
BINS = 2**31 >> _BITS
#: Scalars that a histogram takes at once.
_PART = 2**22


class Stream:
    """Inside `with`, every gradient of `cells` is handed to `look(cell, gradient)` and freed at once.

    `cells`: submodule -> parameter names of the live model. Only one layer's gradients are alive at a time; those of
    tied tensors arrive once, summed. All other parameters keep their requires_grad.
    """

    def __init__(
        self, model: nn.Module, cells: Mapping[str, Sequence[str]], look: Callable[[str, Tensor], None]
    ) -> None:
        parameters = dict(model.named_parameters())
        self._owned = [(cell, parameters[name]) for cell, names in cells.items() for name in names]
        self._look = look
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for cell, parameter in self._owned:
            parameter.grad = None
            hook = parameter.register_post_accumulate_grad_hook(self._taker(cell))  # type: ignore[no-untyped-call]
            self._handles.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _taker(self, cell: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                self._look(cell, gradient.detach())

        return take


class SquaredNorms:
    """Sums squared norms by submodule over the gradients of one batch."""

    def __init__(self, cells: Sequence[str]) -> None:
        self._found: dict[str, Tensor | float] = dict.fromkeys(cells, 0.0)

    def look(self, cell: str, gradient: Tensor) -> None:
        """Add one tensor's squared norm."""
        self._found[cell] = self._found[cell] + norm(gradient) ** 2

    def take(self) -> dict[str, float]:
        """Return submodule -> norm, and start again."""
        norms = {cell: math.sqrt(float(value)) for cell, value in self._found.items()}
        self._found = dict.fromkeys(self._found, 0.0)
        return norms


class Magnitudes:
    """Histogram and sample of |gradient| over the scalars of every submodule, pooled over batches.

    `draws`: values kept per submodule and batch, for fits of the tail; `sizes`: submodule -> scalars.
    """

    def __init__(self, sizes: Mapping[str, int], draws: int, seed: int) -> None:
        self._sizes = sizes
        self._draws = draws
        self._generator = torch.Generator().manual_seed(seed)
        self.counts = {cell: torch.zeros(BINS, dtype=torch.int64) for cell in sizes}
        self.mass = {cell: torch.zeros(BINS, dtype=torch.float64) for cell in sizes}
        self._kept: dict[str, list[Tensor]] = {cell: [] for cell in sizes}

    def look(self, cell: str, gradient: Tensor) -> None:
        """Add one tensor's scalars."""
        values = gradient.float().abs().flatten()
        for start in range(0, len(values), _PART):
            part = values[start : start + _PART]
            bins = part.view(torch.int32) >> _BITS
            self.counts[cell] += torch.bincount(bins, minlength=BINS).cpu()
            # In float32 a bin of many millions of values would stop growing.
            self.mass[cell] += torch.bincount(bins, weights=part.double(), minlength=BINS).cpu()
        share = math.ceil(self._draws * values.numel() / self._sizes[cell])
        picks = torch.randint(values.numel(), (share,), generator=self._generator)
        self._kept[cell].append(values[picks.to(values.device)].cpu())

    def sample(self, cell: str) -> Tensor:
        """Return the values that were kept of a submodule, float32."""
        return torch.cat(self._kept[cell]) if self._kept[cell] else torch.empty(0)

    def ordered(self, cells: Sequence[str]) -> tuple[list[int], list[float]]:
        """Return (scalars, sum of |gradient|) of the bins of some submodules, largest magnitudes first."""
        counts = sum(self.counts[cell] for cell in cells)
        mass = sum(self.mass[cell] for cell in cells)
        assert isinstance(counts, Tensor) and isinstance(mass, Tensor)
        held = counts.nonzero().flatten().flip(0)
        return counts[held].tolist(), mass[held].tolist()
