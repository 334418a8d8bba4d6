"""Submodule statistics as files, and picking from them. No torch in this room.

`watch` is the door for validation loops that are not ours (integrations/blueprints.py), loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "watch":
        raise AttributeError(f"module 'cprbench.blueprint' has no attribute {name!r}")
    return importlib.import_module("cprbench.integrations.blueprints").watch
