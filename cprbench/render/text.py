"""Text of strangers, made harmless: for a screen, and for Markdown."""

from __future__ import annotations

import re

_BY_CODE = {"@": "&#64;", "$": "&#36;", "://": "&#58;//", "www.": "www&#46;"}
#: What would begin a list.
_LIST = re.compile(r"^(\d{0,9})([-+.)] )")


def plain(text: str) -> str:
    """Return a stranger's text with what a screen would obey or hide (control, direction marks) written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape(text: str) -> str:
    """Return text that Markdown and its tables show as it is."""
    text = plain(" ".join(text.split())).replace("&", "&amp;")
    for mark in "\\`*_[]<>|#~":
        text = text.replace(mark, f"\\{mark}")
    text = _LIST.sub(r"\1\\\2", text)
    for mark, code in _BY_CODE.items():  # on the hub and on GitHub: somebody's name, a formula, a link
        text = text.replace(mark, code)
    return text
