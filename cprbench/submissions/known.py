"""What this installation knows of suites and models, read once per folder of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from cprbench import tasks
from cprbench.runs.arms import arms_of
from cprbench.spec import ModelRef, SuiteSpec


def suites() -> Mapping[str, SuiteSpec]:
    """Return the suites by name."""
    return _suites(tasks.tasks_folder())


def models() -> Mapping[str, ModelRef]:
    """Return the models that suites name, by the hash of their weights."""
    return _models(tasks.tasks_folder())


def arms_in(suite: str) -> frozenset[str]:
    """Return the labels of a suite's arms."""
    return _arms(tasks.tasks_folder(), suite)


def ranking() -> str:
    """Return the suites that rank, as a sentence names them."""
    return ", ".join(f"{name} v{suite.version}" for name, suite in suites().items() if suite.ranking) or "no suite"


@lru_cache(maxsize=8)
def _suites(_folder: Path) -> Mapping[str, SuiteSpec]:
    return {name: tasks.load_suite(name) for name in tasks.known_suites()}


@lru_cache(maxsize=8)
def _models(_folder: Path) -> Mapping[str, ModelRef]:
    return tasks.pinned_models()


@lru_cache(maxsize=64)
def _arms(folder: Path, suite: str) -> frozenset[str]:
    return frozenset(arm.label for arm in arms_of(_suites(folder)[suite].arm))
