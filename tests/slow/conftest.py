"""What several slow tests share: Chromium, and sites on a local server."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.hostile.payloads import PAYLOADS
from tests.render.site.entries import many
from tests.render.site.test_pages import hostile, refused
from tests.slow.sites import divided, falling, long, small, write

AXE = Path(sys.prefix, "npm", "node_modules", "axe-core", "axe.min.js")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that tells nobody what it was asked for."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a site per name."""
    root = tmp_path_factory.mktemp("sites")
    write([*small(), *refused()], root / "small")
    write([*many(60), *refused()], root / "middle")
    write(hostile(PAYLOADS), root / "hostile")
    write(long(), root / "long")
    write(falling(), root / "falling")
    write(divided(), root / "divided")
    return root


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """Serve the folder; return its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Debian's Chromium."""
    chromium = shutil.which("chromium")
    assert chromium and AXE.exists(), (
        "no chromium, or no axe-core in .venv/npm: run make test-slow, which installs both"
    )
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # it has none for root
        with playwright.chromium.launch(executable_path=chromium, args=flags) as launched:
            yield launched
