"""--set ROOM.KEY=VALUE, as the command line writes it, in a form that arms are made from. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from cprbench.endings import StopSpec
from cprbench.errors import SpecError, did_you_mean
from cprbench.spec import Scalar, TrainingSpec

#: Rooms of which all arms have the same, and what is in them.
_SHARED = {"training": [*TrainingSpec.model_fields], "stop": [*StopSpec.model_fields]}


def read_settings(pairs: Sequence[str]) -> dict[str, dict[str, list[Scalar]]]:
    """Return --set ROOM.KEY=VALUE[,VALUE…] as room -> key -> values.

    Rooms are method names, `selection`, `training`, `select` and `stop`. Raises SpecError with the nearest known room.
    """
    from cprbench.adapt.methods import METHODS

    found: dict[str, dict[str, list[Scalar]]] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        room, dot, key = path.partition(".")
        if not equals or not dot or not key or not text:
            raise SpecError(f"--set {pair!r}: write ROOM.KEY=VALUE, for example --set partial.k=0.15.")
        rooms = [*METHODS, "selection", "training", "select", "stop"]
        if room not in rooms:
            raise SpecError(f"--set {pair!r}: unknown room {room!r}. {did_you_mean(room, rooms)}")
        if room == "select":
            room, key = "training", f"select_{key}"
        # A part with an equals sign goes on with the value before it: partial.budget=memory=8GiB,time=0.5 is one.
        values = [_scalar(part) for part in re.split(r",(?![a-z]+=)", text)]
        if room in _SHARED and len(values) > 1:
            raise SpecError(f"--set {pair!r}: it is the same for all arms, so it takes one value.")
        if room in _SHARED and key not in _SHARED[room]:
            raise SpecError(f"--set {pair!r}: unknown setting {room}.{key}. {did_you_mean(key, _SHARED[room])}")
        if key in found.setdefault(room, {}):
            raise SpecError(
                f"--set {pair!r}: {room}.{key} is given twice. Give it once; a list makes one arm per value."
            )
        found[room][key] = values
    return found


def _scalar(text: str) -> Scalar:
    words: dict[str, Scalar] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if not math.isfinite(value):
            raise SpecError(f"--set …={text}: not a finite number.")
        return value
    return text
