"""What accelerators can do at most, for plans: a literal table, from public data sheets. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from cprbench.errors import SpecError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Board:
    """An accelerator board. Rates are dense matrix FLOP/s at most, None where the hardware has no such unit."""

    memory_gib: int
    bf16_flops: float | None
    fp32_flops: float
    watts: int  # limit of the board
    source: str

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory by name; what a driver leaves free is some hundred MiB less."""
        return self.memory_gib * GIB

    def rate(self, precision: str) -> float:
        """Return FLOP/s at most in "bf16" or "fp32" (without TF32, which torch leaves off)."""
        return self.fp32_flops if precision == "fp32" or self.bf16_flops is None else self.bf16_flops


BOARDS = {
    "a100-40": Board(40, 312e12, 19.5e12, 400, "NVIDIA A100 data sheet, SXM 40 GB"),
    "a100-80": Board(80, 312e12, 19.5e12, 400, "NVIDIA A100 data sheet, SXM 80 GB"),
    "h100-80": Board(80, 989e12, 67e12, 700, "NVIDIA H100 data sheet, SXM; half of its figures with sparsity"),
    "l4-24": Board(24, 121e12, 30.3e12, 72, "NVIDIA L4 data sheet; half of its figures with sparsity"),
    "rtx4090-24": Board(24, 165.2e12, 82.6e12, 450, "NVIDIA Ada architecture paper, GeForce RTX 4090"),
    "t4-16": Board(16, None, 8.1e12, 70, "NVIDIA T4 data sheet; it has no bf16 unit"),
}


def board(name: str) -> Board:
    """Return a board by name. Raises SpecError with the nearest known one."""
    if name not in BOARDS:
        raise SpecError(f"--hardware {name!r} is not in the table. {did_you_mean(name, BOARDS)}")
    return BOARDS[name]
