"""Memory of a process tree: PSS, which counts shared pages once, sampled so rarely that it costs at most 5 %."""

from __future__ import annotations

import time
from typing import Any

import psutil

#: Reading PSS walks all pages (19 ms per resident GiB), so the next read waits this many times as long.
_REST = 20


class TreeMeter:
    """Proportional set size (bytes) of a process and all its descendants, by the key pss_tree_bytes."""

    name = "tree"

    def __init__(self) -> None:
        self.pid: int | None = None  # set once the tree's root exists; there are no values before
        self._due = 0.0
        self._missing: dict[str, str] = {}
        self._seconds = 0.0

    def sample(self) -> dict[str, float]:
        """Return pss_tree_bytes where the next read is due, nothing in between."""
        return self.edge() if time.monotonic() >= self._due else {}

    def edge(self) -> dict[str, float]:
        """Return pss_tree_bytes now; nothing once the process has gone."""
        if self.pid is None:
            return {}
        began = time.monotonic()
        total, read = 0, 0
        try:
            root = psutil.Process(self.pid)
            members = [root, *root.children(recursive=True)]
        except psutil.Error:
            return {}
        for member in members:
            try:
                total += member.memory_full_info().pss
                read += 1
            except psutil.AccessDenied as error:
                self._missing.setdefault("pss_tree_bytes", f"PSS of a process of the tree cannot be read ({error})")
                return {}
            except (psutil.Error, AttributeError):  # it ended meanwhile, or this system has no PSS
                continue
        self._seconds = time.monotonic() - began
        self._due = time.monotonic() + _REST * self._seconds
        if not read:
            self._missing.setdefault("pss_tree_bytes", "no process of the tree could be read")
            return {}
        return {"pss_tree_bytes": float(total)}

    def missing(self) -> dict[str, str]:
        """Return quantity -> reason."""
        return dict(self._missing)

    def facts(self) -> dict[str, Any]:
        """Return how long the last read took."""
        return {"seconds_per_read": self._seconds}


class AllocatorMeter:
    """torch's CUDA allocator in this process, where a training loop of one's own runs; silent elsewhere."""

    name = "allocator"

    def sample(self) -> dict[str, float]:
        """Return cuda_allocated_bytes and cuda_reserved_bytes once CUDA is in use."""
        torch = _torch_with_cuda()
        if torch is None:
            return {}
        return {
            "cuda_allocated_bytes": float(torch.cuda.memory_allocated()),
            "cuda_reserved_bytes": float(torch.cuda.memory_reserved()),
        }

    def edge(self) -> dict[str, float]:
        """Return the same, after the queued device work is done, with the peaks since the last edge."""
        torch = _torch_with_cuda()
        if torch is None:
            return {}
        wait_for_device()
        values = {
            **self.sample(),
            "peak_cuda_allocated_bytes": float(torch.cuda.max_memory_allocated()),
            "peak_cuda_reserved_bytes": float(torch.cuda.max_memory_reserved()),
        }
        torch.cuda.reset_peak_memory_stats()
        return values

    def missing(self) -> dict[str, str]:
        """Return nothing: the ledger says "no CUDA" where there are no values."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


def wait_for_device() -> None:
    """Wait until the device has done what this process has queued; nothing without CUDA."""
    torch = _torch_with_cuda()
    if torch is not None:
        torch.cuda.synchronize()


def _torch_with_cuda() -> Any:
    import sys

    torch = sys.modules.get("torch")  # never import it: who does not use it does not pay for it
    return torch if torch is not None and torch.cuda.is_initialized() else None
