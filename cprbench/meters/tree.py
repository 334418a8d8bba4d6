"""Memory of a process tree: PSS, which counts shared pages once, sampled so rarely that it costs at most 5 %."""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil

from cprbench.meters import Meter

#: Reading PSS walks all pages (19 ms per resident GiB), so the next read waits this many times as long.
_REST = 20


class TreeMeter(Meter):
    """Proportional set size (bytes) of a process and all its descendants, by the key pss_tree_bytes."""

    name = "tree"

    def __init__(self) -> None:
        super().__init__()
        self.pid: int | None = None  # set once the tree's root exists; there are no values before
        self._due = 0.0
        self._seconds = 0.0

    def sample(self) -> dict[str, float]:
        """Return pss_tree_bytes where the next read is due, nothing in between."""
        return self.edge() if time.monotonic() >= self._due else {}

    def edge(self) -> dict[str, float]:
        """Return pss_tree_bytes now; nothing once the process has gone."""
        if self.pid is None:
            return {}
        began = time.monotonic()
        sizes = []
        try:
            root = psutil.Process(self.pid)
            members = [root, *root.children(recursive=True)]
        except psutil.Error:
            return {}
        for member in members:
            try:
                sizes.append(member.memory_full_info().pss)
            except psutil.AccessDenied as error:
                self._missing.setdefault("pss_tree_bytes", f"PSS of a process of the tree cannot be read ({error})")
                return {}
            except (psutil.Error, AttributeError):  # it ended meanwhile, or this system has no PSS
                continue
        self._seconds = time.monotonic() - began
        self._due = time.monotonic() + _REST * self._seconds
        if not sizes:
            self._missing.setdefault("pss_tree_bytes", "no process of the tree could be read")
            return {}
        return {"pss_tree_bytes": float(sum(sizes))}

    def facts(self) -> dict[str, Any]:
        """Return how long the last read took."""
        return {"seconds_per_read": self._seconds}


class AllocatorMeter(Meter):
    """torch's CUDA allocator in this process, where a training loop of one's own runs; silent elsewhere.

    It names nothing as missing: the ledger says "no CUDA" where there are no values.
    """

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
        wait_for_device()
        torch, values = _torch_with_cuda(), self.sample()
        if torch is not None:
            values["peak_cuda_allocated_bytes"] = float(torch.cuda.max_memory_allocated())
            values["peak_cuda_reserved_bytes"] = float(torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()
        return values


def wait_for_device() -> None:
    """Wait until the device has done what this process has queued; nothing without CUDA."""
    torch = _torch_with_cuda()
    if torch is not None:
        torch.cuda.synchronize()


def _torch_with_cuda() -> Any:
    torch = sys.modules.get("torch")  # never import it: who does not use it does not pay for it
    return torch if torch is not None and torch.cuda.is_initialized() else None
