"""The Python API: about fifteen names, all of them there, sorted and documented."""

from __future__ import annotations

import re
from pathlib import Path

import cprbench


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    for name in cprbench.__all__:
        found = getattr(cprbench, name)
        assert name == "__version__" or found.__doc__, name
    assert cprbench.__all__ == sorted(cprbench.__all__)
    assert 10 <= len(cprbench.__all__) <= 18
    assert dir(cprbench) == cprbench.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(cprbench, "runn")


def test_the_changelog_and_the_project_file_name_this_version() -> None:
    root = Path(__file__).resolve().parents[1]
    assert f"## [{cprbench.__version__}]" in (root / "CHANGELOG.md").read_text()
    assert re.search(rf'^version = "{re.escape(cprbench.__version__)}"$', (root / "pyproject.toml").read_text(), re.M)
