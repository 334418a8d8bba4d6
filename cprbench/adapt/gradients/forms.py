"""Squared norms of per-example gradients, exactly, from activations and the gradients that arrive at them.

A linear layer's gradient on one example is the sum over its T positions of g_t a_t' (outputs x inputs). Its squared
norm has two exact forms: sum the products themselves, or sum (a_s . a_t)(g_s . g_t) over pairs of positions. The
second never forms a matrix of the weight's shape and is cheaper where T is small beside the layer (Li et al. 2021
call it ghost clipping). Both are symmetric in s and t, so pairs are multiplied in blocks of a triangle.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cprbench.adapt.gradients.pairs import block_of
from cprbench.adapt.gradients.pairs import direct_cost as direct_cost
from cprbench.adapt.gradients.pairs import pair_cost as pair_cost

#: Scalars that the direct form may hold at once: one example on a CPU, a few on a GPU, never a batch of large layers.
_BUFFER = 2**22


def wide(x: Tensor) -> Tensor:
    """Return x in float32 at least: sums over pairs cancel, which bfloat16 does not survive."""
    return x if x.dtype == torch.float64 else x.float()


def gram(x: Tensor) -> list[Tensor]:
    """Return the products of all pairs of positions of x (examples, positions, width), blocks of rows of a triangle.

    Block i is (examples, rows, positions up to the block's end), float32 at least.
    """
    x = wide(x)
    length = x.shape[1]
    block = block_of(length)
    ends = range(block, length + block, block)
    return [torch.bmm(x[:, end - block : end], x[:, :end].transpose(1, 2)) for end in ends]


def from_grams(inputs: list[Tensor], outputs: list[Tensor], *, bias: bool) -> Tensor:
    """Return (examples,) squared norms of a linear layer; `bias` adds its bias, whose input is 1 everywhere."""
    total = torch.zeros(inputs[0].shape[0], dtype=torch.float64, device=inputs[0].device)
    for a, g in zip(inputs, outputs, strict=True):
        products = (a + 1.0 if bias else a) * g
        start = a.shape[2] - a.shape[1]
        total += 2.0 * products[:, :, :start].sum((1, 2)) + products[:, :, start:].sum((1, 2))
    return total


def direct(a: Tensor, g: Tensor) -> Tensor:
    """Return (examples,) squared norms of sum over t of g_t a_t', a few examples' gradients at a time."""
    examples, outputs, inputs = a.shape[0], g.shape[2], a.shape[2]
    step = max(1, min(examples, _BUFFER // (outputs * inputs))) if a.is_cuda else 1
    buffer = torch.empty(step, outputs, inputs, dtype=g.dtype, device=g.device)
    a = a.to(g.dtype)
    found = []
    for start in range(0, examples, step):
        rows = slice(start, start + step)
        held = buffer[: a[rows].shape[0]]
        torch.bmm(g[rows].transpose(1, 2), a[rows], out=held)
        found.append(norm(held.flatten(1), dim=1).square())
    return torch.cat(found)


def norm(rows: Tensor, dim: int | None = None) -> Tensor:
    """Return the L2 norm along `dim`, or of everything, in float64; summed in float32 at least."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=dim, dtype=torch.promote_types(rows.dtype, torch.float32))
    return found.double()


def summed(x: Tensor) -> Tensor:
    """Return (examples,) squared norms of the sum of x (examples, positions, width) over positions: a bias."""
    return wide(x).sum(1).square().sum(1).double()


def table(ids: Tensor, g: Tensor, padding_id: int | None) -> Tensor:
    """Return (examples,) squared norms of an embedding's gradient: rows of g (examples, positions, width) add up by id.

    `padding_id` never gets a gradient.
    """
    if padding_id is not None:
        g = g * (ids != padding_id).unsqueeze(-1)
    examples = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    keys, place = torch.unique(ids + examples * (int(ids.max()) + 1), return_inverse=True)
    g = wide(g)
    rows = g.new_zeros(len(keys), g.shape[2])
    rows.index_add_(0, place.flatten(), g.flatten(0, 1))
    owner = torch.div(keys, int(ids.max()) + 1, rounding_mode="floor")
    return torch.zeros(len(ids), dtype=torch.float64, device=g.device).index_add_(
        0, owner, rows.square().sum(1).double()
    )


def tied(hidden: Tensor, logits_at_ids: Tensor, g: Tensor) -> Tensor:
    """Return (examples,) inner products of a tied table's two gradients: as output layer and as embedding.

    `hidden` (examples, rows, width): what the output layer read; `logits_at_ids` (examples, rows, positions): the
    gradient of its logits at the ids that were embedded; `g` (examples, positions, width): of the embeddings.
    """
    products = torch.bmm(wide(hidden), wide(g).transpose(1, 2))
    return (products * wide(logits_at_ids)).sum((1, 2)).double()


def normalised(x: Tensor, width: int, epsilon: float | None, *, centred: bool) -> Tensor:
    """Return x (…, width) as LayerNorm (`centred`) or RMSNorm scales it, before weight and bias."""
    x = wide(x)
    if centred and epsilon is not None:
        return functional.layer_norm(x, (width,), eps=epsilon)
    return functional.rms_norm(x, (width,), eps=epsilon)
