"""What groups of runs are called, so that no two are called the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cprbench.judge.cpr import Group

#: What sets groups of one task and model apart, in the order in which a title names it.
_PARTS = (
    *("suites", "hardware_class", "role", "loop", "limits", "processes", "memory_basis"),
    *("weights_sha256", "data_sha256", "recipe"),
)


def titles_of(groups: Sequence[Group]) -> list[str]:
    """Return a title per group; groups of one task and model are told apart by what sets them apart."""
    plain = [f"{g.key['task']} v{g.key['task_version']} x {g.key['model']}" for g in groups]
    titles = []
    for group, title in zip(groups, plain, strict=True):
        rivals = [g.key for g, other in zip(groups, plain, strict=True) if other == title]
        for part in _PARTS:
            if any(key[part] != group.key[part] for key in rivals):
                title += f", {_in_words(part, group.key[part], [key[part] for key in rivals])}"
                rivals = [key for key in rivals if key[part] == group.key[part]]
        titles.append(title)
    return titles


def _in_words(part: str, value: Any, rivals: Sequence[Any]) -> str:
    match part:
        case "suites":
            return ", ".join(value) or "no suite"
        case "role":
            return "smoke test" if value == "smoke" else "full runs"
        case "processes":
            return f"{value} process{'es' * (value != 1)}"
        case "limits" | "recipe":
            own, others = value or {}, [other or {} for other in rivals]
            differing = [name for name in sorted(own) if any(other.get(name) != own[name] for other in others)]
            return ", ".join(f"{name} {own[name]}" for name in differing) or f"no other {part}"
        case "memory_basis":
            return f"memory as {value}"
        case "weights_sha256" | "data_sha256":
            return f"{part.partition('_')[0]} {str(value)[:8]}"
    return str(value)
