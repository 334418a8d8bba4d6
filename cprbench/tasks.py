"""Task and suite files: TOML in, validated nouns out. No data is read here and nothing is imported."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cprbench.errors import SpecError, did_you_mean
from cprbench.schema import Frozen, parse
from cprbench.spec import ModelRef, SuiteSpec, TaskSpec, TrainingSpec

#: Beside the task files: the models that suites name.
MODELS = "models.toml"


class PinnedModels(Frozen):
    """tasks/models.toml: what is known of the models that suites name."""

    model: list[ModelRef]


def tasks_folder() -> Path:
    """Return where task files live: CPRBENCH_TASKS, ./tasks, or tasks/ of the checkout."""
    here = Path(__file__).resolve().parent
    for folder in (os.environ.get("CPRBENCH_TASKS"), "tasks", here.parent / "tasks"):
        if folder and any(Path(folder).glob("*.toml")):
            return Path(folder)
    raise SpecError("no task files found. Run from a checkout of cprbench, or set CPRBENCH_TASKS to its tasks/.")


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file as a dict; raises SpecError that names the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}.") from error


def known_tasks() -> list[str]:
    """Return the names of all task files, sorted."""
    return sorted(path.stem for path in tasks_folder().glob("*.toml") if path.name != MODELS)


def known_suites() -> list[str]:
    """Return the names of all suite files, sorted."""
    return sorted(path.stem for path in (tasks_folder() / "suites").glob("*.toml"))


def load_task(name_or_path: str) -> TaskSpec:
    """Return a task, named or given as the path of its TOML file.

    Raises SpecError with the nearest known name, or with the key that is wrong.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = tasks_folder() / f"{name_or_path}.toml"
        if not path.exists():
            raise SpecError(f"unknown task {name_or_path!r}. {did_you_mean(name_or_path, known_tasks())}")
    task = parse(TaskSpec, read_toml(path), str(path))
    training_for(task, {}, str(path))
    return task


def load_suite(name_or_path: str) -> SuiteSpec:
    """Return a suite, named or given as the path of its TOML file."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = tasks_folder() / "suites" / f"{name_or_path}.toml"
    if not path.exists():
        raise SpecError(f"unknown suite {name_or_path!r}. {did_you_mean(name_or_path, known_suites())}")
    suite = parse(SuiteSpec, read_toml(path), str(path))
    parse(TrainingSpec, suite.training, f"{path} [training]")
    return suite


def pinned_models() -> dict[str, ModelRef]:
    """Return the models that suites name, by the hash of their weights."""
    path = tasks_folder() / MODELS
    return {model.weights_sha256: model for model in parse(PinnedModels, read_toml(path), str(path)).model}


def is_suite(path: Path) -> bool:
    """Return whether a TOML file is a suite rather than a task."""
    return path.suffix == ".toml" and "arm" in read_toml(path)


def training_for(task: TaskSpec, settings: Mapping[str, Any], where: str) -> TrainingSpec:
    """Return the recipe of a run: the defaults, the task's own, then `settings` on top."""
    return parse(TrainingSpec, {**task.training, **settings}, f"{where} [training]")
