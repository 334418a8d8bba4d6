"""What machine this is: the hardware class and the facts that records keep. No host name, no serials."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

#: Packages whose version can change a result.
_PACKAGES = ("accelerate", "cprbench", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")


def cpu_facts() -> dict[str, str]:
    """Return vendor, family, model, stepping, name and flags of the CPU ("unknown" where not told)."""
    facts = {"vendor_id": "unknown", "cpu family": "0", "model": "0", "stepping": "0", "flags": ""}
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        facts |= {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}
    except OSError:
        facts["vendor_id"] = platform.processor() or platform.machine()
    return facts


def widest_vectors(flags: str, machine: str) -> str:
    """Return the widest of amx_bf16, avx512, avx2 and neon that the CPU has, else "scalar"."""
    words = set(flags.split())
    if "amx_bf16" in words:
        return "amx_bf16"
    if any(word.startswith("avx512") for word in words):
        return "avx512"
    if "avx2" in words:
        return "avx2"
    return "neon" if machine in ("aarch64", "arm64") else "scalar"


def bound_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_class() -> str:
    """Return the hardware class of a CPU run (DESIGN section 1)."""
    facts = cpu_facts()
    name = "-".join(facts[key] for key in ("vendor_id", "cpu family", "model", "stepping"))
    return f"{name} {widest_vectors(facts['flags'], platform.machine())} {bound_cores()} cores"


def bf16_is_fast() -> bool:
    """Return whether this CPU multiplies bf16 natively (amx_bf16, avx512_bf16)."""
    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_facts()["flags"].split()))


def packages() -> dict[str, str]:
    """Return the installed versions of the packages that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def checkout() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout that cprbench runs from; (None, None) outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None, None

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def machine_facts() -> dict[str, Any]:
    """Return what a reader may want to know about the machine."""
    facts = cpu_facts()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = {"cpu": facts.get("model name", "unknown"), "memory_bytes": memory, "system": platform.system()}
    return told | {"cores": bound_cores()}


def python_version() -> str:
    """Return the version of the running Python."""
    return platform.python_version()
