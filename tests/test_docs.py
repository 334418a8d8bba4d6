"""README and docs say what is true: their commands parse, their Python runs, their files exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import cprbench
from cprbench.cli import app
from cprbench.cli.run import _suite
from cprbench.runs.set_words import read_settings
from tests.conftest import ROOT

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for path in DOCS for block in blocks(path, "") for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("cprbench ")})


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documents_parses(line: str) -> None:
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    verb = words[0]
    while hasattr(command, "commands"):  # "blueprint create" is a verb of a verb
        assert words and words[0] in command.commands, f"no verb {words[:1]} in {line}"
        command, words = command.commands[words[0]], words[1:]
    given = command.make_context(verb, words).params
    if verb == "run":
        _suite(
            list(given["what"]),
            given["model"],
            given["method"],
            given["selection"],
            given["blocks"],
            read_settings(given["set_"]),
            given["budget"],
        )


def test_there_are_commands_in_the_readme() -> None:
    assert len(commands()) > 8


def test_the_python_in_the_documents_uses_names_that_exist() -> None:
    code = "\n".join(block for path in DOCS for block in blocks(path, "python"))
    names = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cprbench"
    }
    assert names
    rooms = {path.name for path in (ROOT / "cprbench").iterdir() if path.is_dir()}
    assert names <= {*cprbench.__all__, *rooms}


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {t for path in DOCS for t in re.findall(r"`?make ([a-z-]+)`?", path.read_text(encoding="utf-8"))}
    assert {"quickstart", "test", "test-slow"} <= named | {"test-slow"}
    assert named <= targets | {"it"}


def test_files_that_the_documents_link_exist() -> None:
    for path in DOCS:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name} links {link}"
