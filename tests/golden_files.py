"""Golden files: what a format wrote when somebody last looked at it.

After a change that is meant, write them anew and read the difference:
CPRBENCH_GOLDEN=write .venv/bin/pytest tests -k golden && git diff tests/golden
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from cprbench.judge.evidence import Evidence, gather

_FOLDER = Path(__file__).parent / "golden"


def is_golden(name: str, text: str) -> bool:
    """Return whether `text` is, byte for byte, the golden file of that name; or write it, where that was asked for."""
    file = _FOLDER / name
    if os.environ.get("CPRBENCH_GOLDEN") == "write":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return file.read_bytes() == text.encode()


def quickstart(folder: Path) -> Evidence:
    """Return the stored records of the quickstart, unpacked into a folder: four arms, two blocks."""
    with zipfile.ZipFile(Path(__file__).parent / "records" / "quickstart.zip") as archive:
        archive.extractall(folder)
    return gather(folder)
