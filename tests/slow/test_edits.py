"""Every value of real runs, edited one at a time with the hashes made anew: caught, or listed as needing a re-run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.submissions.conftest import packed, tasks
from tests.submissions.test_edits import missed

__all__ = ["packed", "tasks"]


@pytest.mark.parametrize("arm", ["lora", "partial k=0.15 selection=influence q=0.5"])
def test_no_value_of_a_run_can_be_edited_unnoticed(packed: Callable[[str], Path], arm: str) -> None:
    assert missed(packed("board"), arm, seed=2, most=None) == []


def test_no_value_of_a_run_that_ends_by_itself_can_be_edited_unnoticed(packed: Callable[[str], Path]) -> None:
    assert missed(packed("suites"), "full stop=0.1x", seed=3, most=None, block=0) == []
