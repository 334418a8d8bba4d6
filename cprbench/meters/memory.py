"""Memory of the training child, read from /proc by the parent (measurement notes B).

VmRSS at 10 Hz; VmHWM, reset at every phase edge, so that a peak belongs to its phase; PSS at phase edges only,
because reading it takes about 19 ms per resident GiB.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cprbench.meters import Meter


class MemoryMeter(Meter):
    """Resident memory of one process. Absent /proc entries are named in `missing`, never read as zero."""

    name = "memory"

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._folder = Path(f"/proc/{pid}")
        if not self._folder.is_dir():
            reason = f"{self._folder} cannot be read: no /proc on this system, or the process is gone"
            self._missing = dict.fromkeys(("rss_bytes", "peak_rss_bytes", "pss_bytes"), reason)

    def sample(self) -> dict[str, float]:
        """Return rss_bytes, or nothing once the process has gone."""
        status = self._status()
        return {"rss_bytes": status["VmRSS"]} if "VmRSS" in status else {}

    def edge(self) -> dict[str, float]:
        """Return rss_bytes, peak_rss_bytes since the last edge, and pss_bytes."""
        status = self._status()
        fields = {"rss_bytes": "VmRSS", "peak_rss_bytes": "VmHWM"}
        values = {quantity: status[field] for quantity, field in fields.items() if field in status}
        try:
            rollup = (self._folder / "smaps_rollup").read_text()
            values["pss_bytes"] = next(_kib(line) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration) as error:
            self._missing.setdefault("pss_bytes", f"{self._folder}/smaps_rollup cannot be read ({error})")
        try:
            (self._folder / "clear_refs").write_text("5")  # resets VmHWM: the next peak is the next phase's own
        except OSError as error:
            why = f"VmHWM is not reset per phase: {self._folder}/clear_refs ({error})"
            self._missing.setdefault("peak_rss_reset", why)
        return values

    def facts(self) -> dict[str, Any]:
        """Return the machine's page size in bytes, the resolution of RSS."""
        return {"page_bytes": os.sysconf("SC_PAGE_SIZE")}

    def _status(self) -> dict[str, float]:
        try:
            lines = (self._folder / "status").read_text().splitlines()
        except OSError:
            return {}
        return {line.split(":")[0]: _kib(line) for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}


def _kib(line: str) -> float:
    return float(line.split()[1]) * 1024
