"""A built site on this machine's own address, as a static host serves it: files below one folder and nothing else."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote, urlsplit

from cprbench.errors import StoreError
from cprbench.render.site.templates import POLICY

ADDRESS = "127.0.0.1"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".tex": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a built site, bound and not yet running; port 0 takes a free one.

    Raises StoreError for a folder without a site, and for a port that cannot be had.
    """
    root = folder.resolve()
    if not (root / "index.html").is_file():
        raise StoreError(f"{folder}: no site (no index.html). Run: cprbench leaderboard build --out {folder}")
    handler = type("_Site", (_Handler,), {"root": root})
    try:
        return ThreadingHTTPServer((ADDRESS, port), handler)
    except (OSError, OverflowError) as error:
        raise StoreError(f"port {port}: {error}. Pass another --port, or 0 for a free one.") from None


class _Handler(BaseHTTPRequestHandler):
    root: ClassVar[Path]
    timeout = 10  # seconds for a request to come
    server_version, sys_version = "cprbench", ""
    error_content_type, error_message_format = "text/plain; charset=utf-8", "%(code)d %(message)s\n"

    def handle(self) -> None:
        """Answer, also to those who no longer listen."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer with a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with what goes before a file."""
        self._answer(body=False)

    def end_headers(self) -> None:
        """Send with every answer, errors too, what a page says of itself: only own files, kept by nobody."""
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""

    def _answer(self, *, body: bool) -> None:
        found = self._file()
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif found.is_dir():  # relative links need the slash
            parts = found.relative_to(self.root).parts
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", "/" + "".join(f"{quote(part)}/" for part in parts))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            content = found.read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _TYPES.get(found.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    def _file(self) -> Path | None:
        """Return the file that was asked for, or a folder that holds an index.html and was asked for without a slash.

        None for what is not below the site's folder, links that lead out of it included.
        """
        try:
            path = unquote(urlsplit(self.path).path, errors="strict")
            found = (self.root / f".{path}").resolve(strict=True)
        except (OSError, ValueError):
            return None
        if not found.is_relative_to(self.root):
            return None
        if not found.is_dir():
            return found if found.is_file() and not path.endswith("/") else None
        index = (found / "index.html").resolve()
        if not index.is_file() or not index.is_relative_to(self.root):
            return None
        return index if path.endswith("/") else found
