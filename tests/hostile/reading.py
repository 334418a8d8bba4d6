"""Validate every hostile submission in a process of its own, watched. Prints JSON: what each came to, time and memory.

python -m tests.hostile.reading
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cprbench.submissions.validation import Tasks, validate
from tests.hostile.corpus import JUDGED, REFUSED, honest, made

#: What Python tells its audit hooks when something is started, sent, loaded or changed.
WATCHED = (
    "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.", "subprocess.", "os.system", "os.exec",
    "os.posix_spawn", "os.fork", "socket.", "urllib.", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink",
    "os.link", "os.chmod", "os.chown", "os.truncate", "os.utime", "shutil.", "tempfile.", "os.putenv", "signal.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_tasks = Tasks(None, offline=True)  # whose own files are read once, before anything is watched
_watched: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event.startswith(WATCHED):
        _watched.append(f"{event} {args!r:.200}")
    elsewhere = event == "open" and any(place in str(args[0]) for place in ("/etc/", "/dev/", "outside"))
    if elsewhere or (event == "open" and args[2] & _WRITING):
        _watched.append(f"open {args!r:.200}")


def _read(path: Path) -> dict[str, Any]:
    global _watched
    _watched = events = []
    start = time.process_time()
    try:
        entry = validate(path, tasks=_tasks)
        came_to, told = entry.status, [finding.message for finding in entry.findings]
    except BaseException as error:
        came_to, told = "raised", [repr(error)]
    seconds = time.process_time() - start
    _watched = None
    return {"came_to": came_to, "told": told, "seconds": seconds, "events": events}


def main() -> None:
    """Make, read and remove one after the other."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))  # a bomb ends here, not the machine
    sys.addaudithook(_hook)
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        _read(honest(root / "first"))  # what is loaded once is loaded now
        found = {"honest": _read(root / "first")}
        for name in (*REFUSED, *JUDGED):
            found[name] = _read(made(name, root))
            shutil.rmtree(root / name)
        # Of this program alone: ru_maxrss begins with what its parent held when it was forked.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = 1024 * int(status["VmHWM"].split()[0])
        heavy = sorted({"torch", "transformers", "pandas", "scipy", "matplotlib", "sklearn"} & set(sys.modules))
        sys.stdout.write(json.dumps({"found": found, "peak_bytes": peak, "heavy": heavy}))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
