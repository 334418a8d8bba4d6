"""cprbench leaderboard serve: a built site over a real socket, and nothing that is not below its folder."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cprbench.cli import app
from cprbench.errors import StoreError
from cprbench.render.site.pages import render
from cprbench.render.site.serving import open_server
from tests.render.site.entries import many


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "site"
    for path, content in render(many(10)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder.parent / "secret.html").write_text("secret")
    (folder / "out.html").symlink_to(folder.parent / "secret.html")
    (folder / "away").symlink_to(folder.parent)
    (folder / "in.html").symlink_to(folder / "index.html")
    (folder / "empty").mkdir()
    (folder / "with-link").mkdir()
    (folder / "with-link" / "index.html").symlink_to(folder.parent / "secret.html")
    return folder


@pytest.fixture(scope="module")
def port(site: Path) -> Iterator[int]:
    with open_server(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("assets/*.css", "text/css; charset=utf-8"),
        ("assets/*.js", "text/javascript; charset=utf-8"),
        ("assets/*.svg", "image/svg+xml; charset=utf-8"),
        ("data/*.json", "application/json; charset=utf-8"),
        ("data/*.csv", "text/csv; charset=utf-8"),
        ("data/*.tex", "text/plain; charset=utf-8"),
    ],
)
def test_every_kind_of_file_comes_as_it_is_with_its_type(pattern: str, kind: str, site: Path, port: int) -> None:
    path = next(iter(sorted(site.glob(pattern))))
    answer, body = ask(port, f"/{path.relative_to(site)}?q=1")
    assert (answer.status, body, answer.headers["Content-Type"]) == (200, path.read_bytes(), kind)
    head, nothing = ask(port, f"/{path.relative_to(site)}", "HEAD")
    assert (head.status, nothing) == (200, b"")
    assert head.headers["Content-Length"] == str(len(body))


def test_every_answer_has_the_pages_own_policy_and_is_kept_by_nobody(site: Path, port: int) -> None:
    meta = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]+)"', (site / "index.html").read_text())
    assert meta is not None
    for path in ("/", "/no-such-page", "/entries"):
        answer, _ = ask(port, path)
        assert answer.headers["Content-Security-Policy"] == meta[1].replace("&#39;", "'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_folder_is_its_index_and_is_never_listed(site: Path, port: int) -> None:
    assert ask(port, "/")[1] == (site / "index.html").read_bytes()
    name = next(iter(sorted((site / "entries").iterdir()))).name
    answer, _ = ask(port, f"/entries/{name}")
    assert (answer.status, answer.headers["Location"]) == (301, f"/entries/{name}/")
    assert ask(port, f"/entries/{name}/")[0].status == 200
    for path in ("/assets", "/assets/", "/empty/", "/data/", "/index.html/"):
        assert ask(port, path)[0].status == 404, path


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.html", "/%2e%2e/secret.html", "/..%2fsecret.html", "/entries/../../secret.html"),
        *("/out.html", "/away/secret.html", "/away/", "/with-link/", "/with-link", "//secret.html", "/%00", "/%ff"),
        *("secret.html", "http://127.0.0.1/../secret.html", "/" + "a" * 5000, "/..", "//../secret.html", "*"),
    ],
)
def test_nothing_that_is_not_below_the_folder_is_served(path: str, port: int) -> None:
    answer, body = ask(port, path)
    assert answer.status == 404
    assert b"secret" not in body


def test_a_link_that_stays_inside_is_followed_and_other_methods_are_not_understood(site: Path, port: int) -> None:
    assert ask(port, "/in.html")[1] == (site / "index.html").read_bytes()
    assert ask(port, "/", "POST")[0].status == 501


def test_it_listens_to_this_machine_alone(port: int) -> None:
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as caller:
            caller.settimeout(2)
            assert caller.connect_ex((address, port)) != 0


def test_what_cannot_be_served_is_refused_with_the_cure(site: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no site .no index.html.. Run: cprbench leaderboard build"):
        open_server(tmp_path, 0)
    with pytest.raises(StoreError, match=f"port {port}: .*Pass another --port"):
        open_server(site, port)
    assert CliRunner().invoke(app, ["leaderboard", "serve", str(tmp_path)]).exit_code == 1


def test_the_verb_prints_the_address_and_ends_quietly_at_ctrl_c(site: Path) -> None:
    words = [sys.executable, "-u", "-m", "cprbench", "leaderboard", "serve", str(site), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    told = re.match(r"http://127\.0\.0\.1:(\d+)/ ", process.stdout.readline())
    assert told is not None
    assert ask(int(told[1]), "/")[0].status == 200
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, "", "")
