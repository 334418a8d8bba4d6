"""What every page shares: one style sheet, and a head that lets a page ask for nothing and run nothing but its own."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def plain(text: str) -> str:
    """Return a stranger's text with what a screen would obey or hide (control, direction marks) written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def template(name: str) -> str:
    """Return a file of the package's templates."""
    return files("cprbench.render").joinpath("templates", name).read_text(encoding="utf-8")


def document(title: str, body: str, script: str = "") -> str:
    """Return a whole page; `title` and `body` are HTML, escaped already. Only `script` runs on it: its hash is told."""
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        script = f"<script>{script}</script>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{title}</title>\n<style>\n{template('page.css')}</style>\n</head>\n<body>\n"
        f"{body}{script}</body>\n</html>\n"
    )
