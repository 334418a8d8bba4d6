"""Which library multiplies float32 matrices on a CPU: oneDNN where MKL holds back.

MKL uses its AVX-512 kernels on Intel's CPUs only. On others that have AVX-512, oneDNN (which torch brings and already
uses under bf16) multiplies the same float32 matrices about twice as fast; docs/performance.md has the figures. The rule
is the CPU's vendor and instructions, never a stopwatch, so that a machine computes the same way every time.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Below this many multiplications the detour costs more than it saves.
_LEAST = 1 << 16
_kept: list[Any] = []  # a library whose last reference goes takes its kernels back


def mkl_holds_back() -> bool:
    """Return whether this CPU has AVX-512 and is not one on which MKL would use it."""
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    backends: Any = torch.backends
    return bool(avx512 and not intel and backends.mkl.is_available() and backends.mkldnn.is_available())


def multiply_by_onednn() -> bool:
    """Let oneDNN multiply float32 matrices in this process, for good, where MKL holds back; return whether it does."""
    if _kept:
        return True
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if product is None or not mkl_holds_back():
        return False

    def mm(a: Tensor, b: Tensor) -> Tensor:
        if _fits(a, b):
            return product(_plain(a), _plain(b).t(), None, "none", [], "")  # type: ignore[no-any-return]
        return torch.mm(a, b, out=a.new_empty(a.shape[0], b.shape[1]))  # the variant with `out` is torch's own

    def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        row = bias.ndim == 1 and bias.dtype == torch.float32 and bias.shape[0] == b.shape[1]
        if row and beta == alpha == 1 and _fits(a, b):
            return product(_plain(a), _plain(b).t(), bias, "none", [], "")  # type: ignore[no-any-return]
        return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(a.shape[0], b.shape[1]))

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its own kernel is replaced
        library.impl("mm", mm, "CPU")
        library.impl("addmm", addmm, "CPU")
    _kept.append(library)
    return True


def float32_products() -> str:
    """Return what multiplies float32 matrices of this process on the CPU, as a record names it."""
    backends: Any = torch.backends
    return "oneDNN" if _kept else "MKL" if backends.mkl.is_available() else "torch's own BLAS"


def _plain(matrix: Tensor) -> Tensor:
    """Return a matrix whose rows or columns are contiguous; oneDNN is a thousand times slower on others."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _fits(a: Tensor, b: Tensor) -> bool:
    floats = a.dtype == b.dtype == torch.float32
    return floats and a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and a.numel() * b.shape[1] > _LEAST
