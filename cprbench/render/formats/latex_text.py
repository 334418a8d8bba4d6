"""Text for LaTeX: what strangers named prints as it is and runs as nothing, breaks where it may, and has a width.

Made for pdflatex with T1 fonts, of 2020 or newer. Characters beyond those fonts are told as [U+XXXX].
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_COMMANDS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{mark: f"\\{mark}" for mark in "{}$&#_%"},
    **{mark: f"{{{mark}}}" for mark in "[]*"},  # after \\ they would be read as its argument or its star
    "\0": "{}",
    "\1": r"\textquotesingle{}",
    "…": r"\dots{}",
    "−": r"\textminus{}",
    "≤": r"\ensuremath{\le}",
    "≥": r"\ensuremath{\ge}",
    "∝": r"\ensuremath{\propto}",
}
#: Beyond ASCII, what T1 and its companion font print: Latin letters, their marks, dashes, quotes.
_PRINTED = re.compile("[¡-¬®-ĥĨ-ķĹ-ľŁ-ňŊ-ťŨ-ž–—‘’“”•†€™→]")
_NUMBER = re.compile(r"(?<![\w.+-])([+-]?)(\d+(?:\.\d+)?)(?:e([+-]\d+))?(x?)(?![\w.]\w)")
_LONG = 14  # a word of more letters than this may be broken: after marks, and where there are none, anywhere
_BREAKS = re.compile(r"(?<=[/_=,:;@])|(?<=-)(?=\D)")
_INTERVAL = re.compile(r"\[[^\[\]]*\]")
#: Widths in em of Latin Modern at 10 points, by character; others are given a letter's or a capital's.
_EM = {
    **dict.fromkeys("ijl.,:;'!|", 0.28),
    **dict.fromkeys("()[]{}frst-", 0.39),
    **dict.fromkeys("0123456789", 0.5),
    **dict.fromkeys("mM%W@", 0.9),
    **dict.fromkeys("+=<>^~w\\", 0.78),
    " ": 0.333,
    "_": 0.7,
}


def clean(text: str) -> str:
    """Return text in one line and composed form; what cannot be printed is named by its code point."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(c if " " <= c <= "~" or c in "…−≤≥∝" or _PRINTED.match(c) else f"[U+{ord(c):04X}]" for c in text)


def words(text: str) -> list[list[str]]:
    """Return the words of text with their minus signs, each in the pieces between which a line may end."""
    return [_pieces(re.sub(r"^([(\[]?)-(?=\d)", "\\1−", word)) for word in clean(text).split(" ") if word]


def _pieces(word: str) -> list[str]:
    if len(word) <= _LONG:
        return [word]
    parts = [part for part in _BREAKS.split(word) if part]
    return [part[i : i + _LONG] for part in parts for i in range(0, len(part), _LONG)]


def tex(text: str) -> str:
    """Return text as LaTeX that prints it as it is."""
    printed = " ".join(r"\allowbreak{}".join(map(_escaped, pieces)) for pieces in words(text))
    return re.sub(r"(?<=\d) (?=\\%)", "~", printed)


def _escaped(piece: str) -> str:
    piece = re.sub(r"([-,])(?=\1)", "\\1\0", piece)  # two in a row would be printed as one sign
    piece = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", "\1", piece)  # between letters it is an apostrophe
    return "".join(_COMMANDS.get(c, c) for c in piece)


def figures(text: str, decimals: int | None = None) -> str:
    """Return a cell of numbers as LaTeX: minus signs, powers of ten, intervals in one line wherever that has room.

    `decimals`: of the column, whose points stand below one another where all of it are plain numbers.
    """
    parts, end = [], 0
    line = clean(text)
    for match in _NUMBER.finditer(line):
        sign, digits, power, times = match.groups()
        parts += [_within(line[end : match.start()]), r"\textminus{}" if sign == "-" else sign, digits]
        parts += [rf"$\times10^{{{int(power)}}}$" if power else "", r"\texttimes{}" if times else ""]
        end = match.end()
    printed = "".join(parts) + _within(line[end:])
    printed = printed.replace(r" \%", r"\,\%")
    printed = re.sub(r"\{\[\}[^\[\]]*\{\]\}", lambda interval: interval[0].replace(" ", r"\penalty999\ "), printed)
    filler = padding(text, decimals)
    return printed + (rf"\phantom{{{filler}}}" if filler else "")


def _within(text: str) -> str:
    """Return what stands between numbers as LaTeX, with the spaces at its ends."""
    return f"{' ' * text.startswith(' ')}{tex(text)}{' ' * (text.endswith(' ') and bool(text.strip()))}"


def plain_decimals(text: str) -> int | None:
    """Return the number of decimals of a cell that is a number and nothing else, or None."""
    match = re.fullmatch(r"[+-]?\d+(?:\.(\d+))?", text)
    return len(match[1] or "") if match else None


def padding(text: str, decimals: int | None) -> str:
    """Return what a cell lacks of its column's decimals, which takes its room unprinted."""
    point = plain_decimals(text)
    if not decimals or point is None or point >= decimals:
        return ""
    return "." * (not point) + "0" * (decimals - point)


def width(text: str) -> float:
    """Return about how wide a line of text is printed, in em."""
    return sum(_EM.get(c, 0.72 if c.isupper() else 0.53) for c in text)


def widths(cells: Sequence[str], numeric: bool, tied: bool = True) -> tuple[float, float]:
    """Return (least, whole) width in em of a column of cells: of the widest piece, and of the widest cell."""
    least = whole = 0.0
    for cell in cells:
        line = clean(cell)
        whole = max(whole, width(line))
        if numeric and tied:
            least = max([least, *map(width, _INTERVAL.findall(line))])
            line = _INTERVAL.sub("", line)
        line = line.replace(" %", "\0%") if numeric else line
        least = max([least, *(width(piece) for word in line.split(" ") for piece in _pieces(word))])
    return least, 1.04 * whole  # an estimate a little short would break a line
