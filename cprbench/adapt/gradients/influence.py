"""What each training example tells before it is trained on: its loss, its gradient norms, what the model makes of it.

J(z) is the L2 norm of one example's gradient over all submodules, the new head excluded (paper, eq. 27), and T[i, z]
its norm over submodule i: J^2 is the sum of T^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients.engine import ExampleNorms
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective, Shape
from cprbench.adapt.selection import Measured
from cprbench.errors import TrainingError

#: observe(shape, extra FLOPs or None for a forward pass, examples done so far).
Observer = Callable[[Shape, int | None, int], None]


def measure(
    loaded: LoadedModel,
    objective: Objective,
    engine: Engine,
    items: Sequence[Item],
    batch_size: int,
    observe: Observer,
    *,
    cells: dict[str, tuple[str, ...]] | None = None,
    gradients: bool = True,
    states: bool = False,
) -> Measured:
    """Return losses and, where asked for, norms by submodule and pooled states, one row per item, in their order.

    `cells`: submodule -> parameter names of the live model, by default its partition. `gradients` False: forward
    passes only. `states`: the mean over an example's positions of the last hidden states. Without dropout, in batches
    of like length; what trains stays as it is. Raises TrainingError for what is not finite.
    """
    cells = dict(loaded.partition.parameters) if cells is None else cells
    losses, norms = np.zeros(len(items)), np.zeros((len(items), len(cells)))
    kept: list[NDArray[Any] | None] = [None] * len(items)
    loaded.model.eval()
    order = sorted(range(len(items)), key=lambda i: items[i].length)
    probe = ExampleNorms(loaded.model, cells) if gradients else None
    with probe or torch.no_grad(), _LastHidden(loaded.model) if states else nullcontext() as hidden:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [items[i] for i in places]

            def run(batch: Sequence[Item] = batch) -> Tensor:
                with engine.autocast():
                    return objective.losses(batch)[0]

            if probe is not None:
                found, squared = probe.of(run, objective.owners(batch))
                norms[places] = squared.sqrt().cpu().numpy()
            else:
                found = run()
            losses[places] = found.double().cpu().numpy()
            if hidden is not None:
                for place, state in zip(places, hidden.pooled(objective.lengths(batch)), strict=True):
                    kept[place] = state
            observe(objective.shape(batch), probe.extra_flops if probe is not None else None, start + len(batch))
    if not (np.isfinite(losses).all() and np.isfinite(norms).all()):
        raise TrainingError("losses or gradient norms of examples are not finite. Use precision fp32.")
    pooled = np.stack([state for state in kept if state is not None]) if states and items else None
    return Measured(losses, norms if gradients else None, pooled)


def input_means(loaded: LoadedModel, items: Sequence[Item]) -> NDArray[Any]:
    """Return the mean input embedding of what every example shows, (items, width) float32: a look-up, no pass."""
    table = loaded.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    found = []
    for start in range(0, len(items), 1024):
        part = items[start : start + 1024]
        ids = torch.tensor([i for item in part for i in item.shown], device=table.device)
        ends = torch.tensor([len(item.shown) for item in part]).cumsum(0)
        starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]]).to(table.device)
        found.append(torch.nn.functional.embedding_bag(ids, table, starts, mode="mean").float().cpu().numpy())
    return np.concatenate(found)


class _LastHidden:
    """Keeps what the backbone's last pass gave, inside `with`."""

    def __init__(self, model: Any) -> None:
        self._backbone = model.base_model
        self._found: Tensor | None = None

    def __enter__(self) -> _LastHidden:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._found = output.last_hidden_state.detach()

        self._handle = self._backbone.register_forward_hook(keep)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def pooled(self, lengths: Sequence[int]) -> NDArray[Any]:
        """Return the mean over each example's own positions, (examples, width) float32."""
        assert self._found is not None
        hidden = self._found.float()
        counts = torch.tensor(lengths, device=hidden.device)
        real = torch.arange(hidden.shape[1], device=hidden.device) < counts.unsqueeze(1)  # padding is on the right
        means: NDArray[Any] = ((hidden * real.unsqueeze(2)).sum(1) / counts.unsqueeze(1)).cpu().numpy()
        return means
