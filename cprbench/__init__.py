"""cprbench: capability per resource.

    errors spec tasks    the nouns and the files that name them
    adapt/               what happens to a model: data, models, methods, the training loop, scores
    blueprint/           submodule statistics as files, and picking from them
    meters/              what it costs
    runs/                RunSpec -> RunRecord: planner, runner and worker, store
    judge/               gain, retained gain, multiples of full: the only formulas
    render/              records -> pages and tables
    integrations/        doors for loops that are not ours
    cli/                 one file per verb

Names are loaded when they are first used, so `import cprbench` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "CprbenchError": "cprbench.errors",
    "Gamma": "cprbench.spec",
    "Psi": "cprbench.spec",
    "Reading": "cprbench.spec",
    "RunRecord": "cprbench.spec",
    "RunSpec": "cprbench.spec",
    "SuiteSpec": "cprbench.spec",
    "TaskSpec": "cprbench.spec",
    "apply_blueprint": "cprbench.integrations.blueprints",
    "compare": "cprbench.judge.cpr",
    "export": "cprbench.runs.runner",
    "load_runs": "cprbench.integrations.notebook",
    "load_suite": "cprbench.tasks",
    "load_task": "cprbench.tasks",
    "measure": "cprbench.runs.external",
    "render_report": "cprbench.render.formats.writing",
    "run": "cprbench.runs.runner",
}

__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cprbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
