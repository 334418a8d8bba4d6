"""Memory of the processes that train, read from /proc by the parent (measurement notes B).

VmRSS at 10 Hz; VmHWM, reset at every phase edge, so that a peak belongs to its phase; PSS at phase edges only,
because reading it takes about 19 ms per resident GiB.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cprbench.meters import Meter


class MemoryMeter(Meter):
    """Resident memory of one process, or of several together: sums, with every one's own peak beside.

    Absent /proc entries are named in `missing`, never read as zero. The sum of peaks is an upper bound of the peak of
    the sum: processes that train together peak together.
    """

    name = "memory"

    def __init__(self, *pids: int) -> None:
        super().__init__()
        self._folders = [Path(f"/proc/{pid}") for pid in pids]
        if len(pids) > 1:
            why = "several processes: each has an allocator of its own"
            self._missing = dict.fromkeys(("cuda_reserved_bytes", "cuda_allocated_bytes"), why)
        if not all(folder.is_dir() for folder in self._folders):
            reason = f"{self._folders[0]} cannot be read: no /proc on this system, or the process is gone"
            self._missing |= dict.fromkeys(("rss_bytes", "peak_rss_bytes", "pss_bytes"), reason)

    def sample(self) -> dict[str, float]:
        """Return rss_bytes, or nothing once a process has gone."""
        found = [_status(folder).get("VmRSS") for folder in self._folders]
        return _sums({"rss_bytes": found})

    def edge(self) -> dict[str, float]:
        """Return rss_bytes, peak_rss_bytes since the last edge and pss_bytes; of several, rankN_peak_rss_bytes too."""
        found = [_status(folder) for folder in self._folders]
        peaks = [status.get("VmHWM") for status in found]
        pss = [self._pss(folder) for folder in self._folders]
        rss = [status.get("VmRSS") for status in found]
        values = _sums({"rss_bytes": rss, "peak_rss_bytes": peaks, "pss_bytes": pss})
        if len(self._folders) > 1:
            values |= {f"rank{rank}_peak_rss_bytes": peak for rank, peak in enumerate(peaks) if peak is not None}
        for folder in self._folders:
            try:
                (folder / "clear_refs").write_text("5")  # resets VmHWM: the next peak is the next phase's own
            except OSError as error:
                why = f"VmHWM is not reset per phase: {folder}/clear_refs ({error})"
                self._missing.setdefault("peak_rss_reset", why)
        return values

    def facts(self) -> dict[str, Any]:
        """Return the machine's page size in bytes, the resolution of RSS."""
        return {"page_bytes": os.sysconf("SC_PAGE_SIZE")}

    def _pss(self, folder: Path) -> float | None:
        try:
            rollup = (folder / "smaps_rollup").read_text()
            return next(_kib(line) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration) as error:
            self._missing.setdefault("pss_bytes", f"{folder}/smaps_rollup cannot be read ({error})")
            return None


def _sums(parts: dict[str, list[float | None]]) -> dict[str, float]:
    """Return the sums of those quantities that every process has."""
    known = {name: [v for v in values if v is not None] for name, values in parts.items()}
    return {name: sum(values) for name, values in known.items() if len(values) == len(parts[name])}


def _status(folder: Path) -> dict[str, float]:
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: _kib(line) for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}


def _kib(line: str) -> float:
    return float(line.split()[1]) * 1024
