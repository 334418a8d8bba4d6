"""Which regular expressions of a stranger may be searched with: those that cannot take hours over a module's name.

Python's `re` tries every way in which a pattern could match, so "(a+)+!" takes twice as long with every letter. The
text of a pattern is judged here, on the safe side: what is refused can be written more plainly.
"""

from __future__ import annotations

import re

from cprbench.errors import MethodError

MAX_LENGTH = 500
MAX_REPEATS = 8
MAX_WAYS = 10_000
#: Names with | between them, in one group or in none: long where a model is large, and never slow.
_LIST = re.compile(r"\^?(?:\((?:\?:)?)?(?:[\w.|-]|\\[^\w])*\)?\$?")
_ESCAPES = {**dict.fromkeys("wWsSD123456789", "."), "d": "0", **dict.fromkeys("bBAZ", "")}
_ATOM = re.compile(r"\\(.)|\[(\^?\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)
_OPENING = re.compile(r"\(\?(?:P<\w+>|<?[=!]|[:>]|[aiLmsu]+:)")
_FLAGS = re.compile(r"^\(\?[aiLmsu]+\)")
_COUNT = r"(?:[*+?]|\{\d*(?:,\d*)?\})"
_INNERMOST = re.compile(rf"\(([^()]*)\)({_COUNT}?)[+?]?")
_OPTIONAL = re.compile(r"[^|.\x02](?:[*?]|\{0?,\d*\})[+?]?|[.\x02](?:\?|\{0?,1\})[+?]?")
_REPEAT = r"[.\x02](?:[*+]|\{\d*,\d*\})[+?]?"
#: Two repetitions of what fits anything with no letter between them share a name out in every way there is.
_NEIGHBOURS = re.compile(rf"{_REPEAT}[.\x02]*{_REPEAT}")


def refuse_pattern(pattern: str, where: str) -> None:
    """Raise MethodError for a text that is no regular expression, or one that could take hours."""
    shown = f"{where} = {pattern!r:.80}"
    listed = _LIST.fullmatch(pattern) is not None
    if len(pattern) > MAX_LENGTH and not listed:
        raise MethodError(f"{shown} is a pattern of {len(pattern)} characters; {MAX_LENGTH} at most. List the names.")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise MethodError(f"{shown} is no regular expression: {error}. Correct it, or list the names.") from None
    if not listed and (why := _slow(pattern)):
        raise MethodError(f"{shown} {why}, and such a search can take hours. List the names, or write it more plainly.")


def _slow(pattern: str) -> str | None:
    """Return why a pattern could take hours, or None. Groups are judged and folded from the innermost outwards."""
    plain = _OPENING.sub("(", _FLAGS.sub("", _ATOM.sub(_plain_atom, pattern)))
    if "(?" in plain:
        return "holds a group of a kind that is not read here"
    if len(re.findall(_REPEAT, plain)) > MAX_REPEATS:
        return f"repeats more than {MAX_REPEATS} times"
    ways = 2 ** len(re.findall(r"[.)](?:\?|\{0?,1\})", plain))
    while group := _INNERMOST.search(plain):
        inside, count = group.groups()
        branches = inside.split("|")
        moves = len(branches) > 1 or re.search(rf"{_COUNT}|[\x01\x02]", inside)
        if moves and count not in ("", "?"):
            return "repeats a group that itself repeats or branches"
        if any(_NEIGHBOURS.search(_OPTIONAL.sub("", branch)) for branch in branches):
            return "has repetitions next to each other"
        ways *= _ways(branches)
        plain = f"{plain[: group.start()]}{_folded(branches, count)}{plain[group.end() :]}"
    if any(_NEIGHBOURS.search(_OPTIONAL.sub("", branch)) for branch in plain.split("|")):
        return "has repetitions next to each other"
    return f"can match in more than {MAX_WAYS} ways" if ways > MAX_WAYS else None


def _plain_atom(found: re.Match[str]) -> str:
    """Return one character for an escape or a set: "." for what fits many, "0" for digits, whose runs are short."""
    escape, members = found.groups()
    if escape is not None:
        return _ESCAPES.get(escape, "_")
    return "0" if re.fullmatch(r"(?:\\d|0-9|\d)+", members) else "."


def _ways(branches: list[str]) -> int:
    """Return in how many of the branches one and the same name can go on."""
    if len(branches) > 1 and all(re.fullmatch(r"\w+", branch) for branch in branches):
        return max(sum(branch.startswith(other) for other in branches) for branch in branches)
    return len(branches)


def _folded(branches: list[str], count: str) -> str:
    """Return what stands for a group: \\x01 and \\x02 tell that it branches, \\x02 that it fits without a letter."""
    if len(branches) == 1 and not count:
        return branches[0]
    if any(re.search(_REPEAT, branch) and not _has_letter(branch) for branch in branches):
        return ".*"
    lettered = count != "?" and all(map(_has_letter, branches))
    if count not in ("", "?"):
        return f"_{count}" if lettered else f".{count}"
    return "\x01" if lettered else "\x02"


def _has_letter(branch: str) -> bool:
    return re.search(r"[^.\x02]", _OPTIONAL.sub("", re.sub(_REPEAT, "", branch))) is not None
