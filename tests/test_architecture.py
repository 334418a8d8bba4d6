"""The house keeps its shape: import directions, file sizes, and what may import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cprbench"

#: room -> the rooms that it may import besides itself (docs/design.md).
MAY_IMPORT = {
    "errors": set(),
    "schema": {"errors"},
    "sources": {"errors", "schema"},
    "endings": {"schema"},
    "spec": {"errors", "schema", "sources", "endings"},
    "tasks": {"errors", "schema", "spec"},
    "blueprint": {"errors", "schema", "spec", "tasks"},
    "meters": {"errors", "schema", "spec", "tasks"},
    "adapt": {"errors", "schema", "sources", "spec", "tasks", "blueprint"},
    "sessions": {"errors", "schema", "sources", "endings", "spec", "tasks", "blueprint", "adapt", "meters"},
    "runs": {"errors", "schema", "sources", "endings", "spec", "tasks", "blueprint", "adapt", "meters", "sessions"},
    "surveys": {"errors", "schema", "sources", "spec", "tasks", "blueprint", "adapt", "meters", "sessions", "runs"},
    "plans": {"errors", "schema", "spec", "tasks", "blueprint", "adapt", "meters", "runs"},
    "judge": {"errors", "schema", "spec", "tasks", "blueprint", "runs.store"},
    "submissions": {"errors", "schema", "spec", "tasks", "adapt", "blueprint", "meters", "plans", "runs", "judge"},
    "render": {"errors", "schema", "spec", "tasks", "blueprint", "runs.store", "judge"},
}
#: Modules that read records and files only: they work where torch is not installed.
READING_SIDE = (
    "cprbench.spec",
    "cprbench.tasks",
    "cprbench.adapt.configs",
    "cprbench.adapt.data",
    "cprbench.adapt.random_models",
    "cprbench.adapt.scoring",
    "cprbench.adapt.stopping",
    "cprbench.adapt.methods",
    "cprbench.adapt.selection.ranking",
    "cprbench.adapt.selection.scores",
    "cprbench.blueprint.schema",
    "cprbench.blueprint.files",
    "cprbench.blueprint.concentration",
    "cprbench.blueprint.picking",
    "cprbench.blueprint.budget",
    "cprbench.blueprint.signals",
    "cprbench.blueprint.exchange",
    "cprbench.blueprint.drift",
    "cprbench.blueprint.merge",
    "cprbench.blueprint.cross_influence",
    "cprbench.plans.boards",
    "cprbench.meters.flops",
    "cprbench.plans.footprint",
    "cprbench.meters.ledger",
    "cprbench.plans.forecast",
    "cprbench.runs.store",
    "cprbench.runs.arms",
    "cprbench.runs.planner",
    "cprbench.runs.set_words",
    "cprbench.judge.cpr",
    "cprbench.judge.retention",
    "cprbench.judge.cross_influence",
    "cprbench.judge.statistics",
    "cprbench.judge.frontier",
    "cprbench.judge.scaling",
    "cprbench.judge.sweeps",
    "cprbench.judge.ledger",
    "cprbench.judge.evidence",
    "cprbench.judge.claims",
    "cprbench.judge.regression",
    "cprbench.judge.agreement",
    "cprbench.render.cross_influence",
    "cprbench.render.formats.markdown",
    "cprbench.render.report.carbon",
    "cprbench.render.formats.model_card",
    "cprbench.render.formats.tidy",
    "cprbench.render.plan",
    "cprbench.render.formats.latex",
    "cprbench.render.formats.html",
    "cprbench.render.formats.writing",
    "cprbench.render.site",
    "cprbench.render.stop_rule",
    "cprbench.render.verdicts",
    "cprbench.render.agreement",
    "cprbench.render.site.changes",
    "cprbench.render.site.serving",
    "cprbench.submissions.strict",
    "cprbench.submissions.archive",
    "cprbench.submissions.bundle",
    "cprbench.cli",
    "cprbench.integrations.notebook",
)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cprbench"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cprbench"):
            for alias in node.names:
                deeper = PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)
                is_module = deeper.is_dir() or deeper.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def test_imports_go_downwards_only() -> None:
    wrong = []
    for path in files():
        own = room(".".join(("cprbench", *path.relative_to(PACKAGE).with_suffix("").parts)))
        if own not in MAY_IMPORT:
            continue  # the package's own files, cli and integrations may import anything
        for module in imports(path):
            target = room(module)
            allowed = target in ("", own) or any(
                module == f"cprbench.{name}" or module.startswith(f"cprbench.{name}.") for name in MAY_IMPORT[own]
            )
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files()
        if "cli" not in path.parts and path.name != "__main__.py"
        for module in imports(path)
        if room(module) == "cli"
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_longer_than_400_lines_and_none_is_called_utils() -> None:
    sources = [*files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = [f"{p.relative_to(ROOT)}: {n}" for p in sources if (n := len(p.read_text().splitlines())) > 400]
    assert not long, "\n".join(long)
    assert not [p for p in sources if p.stem in ("utils", "helpers", "base", "manager", "common")]


@pytest.mark.parametrize("module", READING_SIDE)
def test_the_reading_side_imports_no_torch(module: str) -> None:
    heavy = "torch transformers pandas scipy matplotlib sklearn codecarbon"
    code = f"import sys, {module}; print([n for n in '{heavy}'.split() if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
