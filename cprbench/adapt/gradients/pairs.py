"""What a linear layer's squared gradient norm per example costs, in either of its two forms (forms.py). No torch."""

from __future__ import annotations


def block_of(length: int) -> int:
    """Return the positions per block of the triangle: small enough to skip nearly half, large enough to be fast."""
    return 16 if length <= 64 else 32


def pair_cost(length: int, inputs: int, outputs: int) -> int:
    """Return the multiplications per example of the form over pairs of positions."""
    blocks = -(-length // block_of(length))
    return length * length * (blocks + 1) * (inputs + outputs) // (2 * blocks)


def direct_cost(length: int, inputs: int, outputs: int) -> int:
    """Return the multiplications per example of the form that sums the products."""
    return length * inputs * outputs
