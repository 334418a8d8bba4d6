"""A task so small that a test writes its data, for the tests of sources, splits and examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cprbench.adapt.data import Dataset, Example, load_dataset
from cprbench.schema import parse
from cprbench.spec import TaskSpec

FILM = {"kind": "choice", "prompt": "{text}\nSentiment:", "answer": "label", "choices": ["bad", "good"]}
HALVES = {"by": "hash", "test": 0.5}


def task(
    source: dict[str, Any] | list[dict[str, Any]], *, splits: dict[str, Any] | None = None, **overrides: Any
) -> TaskSpec:
    """Return a small task over one source or several."""
    data: dict[str, Any] = {
        "name": "tiny",
        "version": 1,
        "domain": "general",
        "license": "MIT",
        "citation": "none",
        "chance": 0.5,
        "primary": "accuracy",
        "metrics": ["accuracy"],
        "source": source if isinstance(source, list) else [source],
        "splits": HALVES if splits is None else splits,
        "example": FILM,
    }
    return parse(TaskSpec, data | overrides, "tiny.toml")


def inline(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "rows": list(rows)}


def films(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return rows with texts of their own; every third is bad."""
    return [{"text": f"film {i}", "label": "bad" if i % 3 == 0 else "good", **more} for i in range(count)]


def everything(data: Dataset) -> list[Example]:
    return [*data.train, *data.validation, *data.test]


def read(folder: Path, name: str, content: str | bytes, **source: Any) -> Dataset:
    """Write a data file and load it as both train and test, so that the rows come back in their order."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    spec = task({"kind": "files", "train": name, "test": name, **source}, splits={"by": "published"})
    return load_dataset(spec, data=folder)


def read_inline(*rows: dict[str, Any], example: dict[str, Any] | None = None, **source: Any) -> Dataset:
    """Load rows that all fall into the test split, in their order."""
    nearly_all = {"by": "hash", "test": 1 - 1e-9}
    return load_dataset(task({**inline(*rows), **source}, splits=nearly_all, example=FILM | (example or {})))
