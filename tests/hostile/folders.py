"""Folders with what no submission holds: name -> (what it is, how an honest folder is spoiled)."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from tests.submissions.altering import rehash

Spoil = Callable[[Path], object]


def _run(folder: Path) -> Path:
    return next((folder / "runs").iterdir())


def _file(name: str, content: bytes = b"{}") -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name.replace("RUN", _run(folder).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return spoil


def _link(name: str, target: str) -> Spoil:
    """Return what puts a symbolic link in the place of `name`, to `target` or to the file itself, moved outside."""

    def spoil(folder: Path) -> None:
        path = folder / name.replace("RUN", _run(folder).name)
        if target == "itself":
            moved = folder.parent / "outside"
            shutil.move(path, moved)
            path.symlink_to(moved)
        else:
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    return spoil


def _socket(folder: Path) -> None:
    home = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("README.md")
    finally:
        os.fchdir(home)
        os.close(home)


def _sparse(name: str, size: int) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name.replace("RUN", _run(folder).name)
        path.touch()
        os.truncate(path, size)

    return spoil


def _many(folder: Path) -> None:
    for number in range(5001):
        (folder / "runs" / f"{number}.json").touch()


def _many_runs(folder: Path) -> None:
    for number in range(10_001):
        (folder / "runs" / f"{number:016x}").mkdir()


def _much(folder: Path) -> None:
    for number in range(17):
        _sparse(f"runs/{number}.json", 15_900_000)(folder)


def _unreadable_name(folder: Path) -> None:
    with open(os.path.join(os.fsencode(folder), b"runs", b"caf\xe9.json"), "wb"):
        pass


def _fat_records(folder: Path) -> None:
    """Add eleven runs whose records are small as files and take 20 MB each in memory."""
    dense = b'"notes": {"x": [' + b",".join([b'{"":{"":{"":1}}}'] * 24_000) + b"],"
    honest = _run(folder)
    for number in range(11):
        run = shutil.copytree(honest, folder / "runs" / f"{number:016x}")
        record = (run / "record.json").read_bytes().replace(honest.name.encode(), run.name.encode())
        (run / "record.json").write_bytes(record.replace(b'"notes": {', dense, 1))
        rehash(run)


FOLDERS: dict[str, tuple[str, Spoil]] = {
    "pickle-file": ("a pickle that calls a function", _file("runs/RUN/model.pkl", pickle.dumps(os.getcwd))),
    "weights": ("weights", _file("runs/RUN/weights/model.safetensors")),
    "torch-file": ("weights in a pickle", _file("runs/RUN/pytorch_model.bin")),
    "script": ("a script", _file("setup.py", b"raise SystemExit('run')\n")),
    "module": ("a module that json would be", _file("json.py", b"raise SystemExit('run')\n")),
    "conftest": ("a file that pytest runs", _file("runs/conftest.py", b"raise SystemExit('run')\n")),
    "hook": ("a hook of git", _file(".git/hooks/post-checkout", b"#!/bin/sh\n")),
    "workflow": ("a workflow of a forge", _file(".github/workflows/x.yml")),
    "hidden-file": ("a hidden file", _file(".env")),
    "inner-archive": ("an archive inside", _file("runs/inner.zip", b"PK\5\6" + b"\0" * 18)),
    "page": ("a page", _file("index.html", b"<script>alert(1)</script>")),
    "unknown-json": ("a file of a run that no run has", _file("runs/RUN/extra.json")),
    "unknown-run": ("a run that has no id", _file("runs/my-run/record.json")),
    "upper-run": ("an id in capitals", _file("runs/0123456789ABCDEF/record.json")),
    "too-deep": ("folders in folders", _file("runs/RUN/blueprints/a/b/c.json")),
    "endless": ("folders without end", _file("/".join("a" * 100) + "/x.json")),
    "twins": ("two names that are one elsewhere", lambda f: (_file("runs/A.json")(f), _file("runs/a.json")(f))),
    "device-name": ("a name that is a device elsewhere", _file("runs/con.json")),
    "device-name-2": ("and one that hides it", _file("runs/LPT1.x.json")),
    "backslash": ("a name that is a path elsewhere", _file("runs/..\\..\\evil.json")),
    "drive": ("a name that is a drive elsewhere", _file("runs/C:evil.json")),
    "trailing-space": ("a name that loses its end elsewhere", _file("runs/x.json ")),
    "trailing-dot": ("the same with a dot", _file("submission.toml.")),
    "newline": ("a name of two lines", _file("runs/x.json\n.json")),
    "escape": ("a name that a terminal obeys", _file("runs/\x1b[2J.json")),
    "bidi-name": ("a name that reads backwards", _file("runs/\u202enosj.json")),
    "markup-name": ("a name that a page obeys", _file("runs/<img src=x onerror=alert(1)>.json")),
    "decomposed-name": ("one name in two ways", _file("runs/e\u0301.json")),
    "unreadable-name": ("a name that is no UTF-8", _unreadable_name),
    "long-name": ("a name over 200 characters", _file("runs/" + "n" * 240 + ".json")),
    "link": ("a link to a file of the machine", _link("README.md", "/etc/passwd")),
    "link-record": ("a link in the place of a record", _link("runs/RUN/record.json", "itself")),
    "link-spec": ("a link in the place of submission.toml", _link("submission.toml", "itself")),
    "link-run": ("a link in the place of a run", _link("runs/RUN", "itself")),
    "link-runs": ("a link in the place of runs/", _link("runs", "itself")),
    "link-loop": ("a link to the folder that it is in", _link("runs/RUN/blueprints", "..")),
    "link-nowhere": ("a link to nothing", _link("README.md", "/nowhere/at/all")),
    "link-device": ("a link to what never ends", _link("README.md", "/dev/zero")),
    "pipe": ("a pipe that nobody writes to", lambda f: os.mkfifo(f / "README.md")),
    "pipe-record": ("in the place of a record",
                    lambda f: ((_run(f) / "record.json").unlink(), os.mkfifo(_run(f) / "record.json"))),
    "socket": ("a socket", _socket),
    "folder-as-file": ("a folder in the place of a file", lambda f: (f / "README.md").mkdir()),
    "big-file": ("a file over 16 MB", _sparse("runs/RUN/samples.jsonl", 16_000_001)),
    "terabyte": ("a file of a terabyte, all zeros", _sparse("runs/RUN/history.jsonl", 10**12)),
    "much": ("over 256 MB in all", _much),
    "fat-records": ("records that fill the memory", _fat_records),
    "many": ("over 5,000 files", _many),
    "many-runs": ("over 10,000 runs", _many_runs),
    "no-spec": ("no submission.toml", lambda f: (f / "submission.toml").unlink()),
    "no-runs": ("no runs", lambda f: shutil.rmtree(f / "runs")),
    "no-record": ("a run without a record", lambda f: (_run(f) / "record.json").unlink()),
    "nothing": ("an empty folder", lambda f: (shutil.rmtree(f), f.mkdir())),
}  # fmt: skip
