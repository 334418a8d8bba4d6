"""cprbench list: what this installation knows."""

from __future__ import annotations

from typing import Annotated

import typer

from cprbench.errors import SpecError, did_you_mean


def list_known(
    what: Annotated[str, typer.Argument(help="tasks, methods, selections, models, suites or claims")],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List tasks, methods, selections, models, suites or claims, a line each."""
    from cprbench.schema import canonical_json

    tables = {
        "tasks": _tasks,
        "methods": _methods,
        "selections": _selections,
        "models": _models,
        "suites": _suites,
        "claims": _claims,
    }
    if what not in tables:
        raise SpecError(f"cannot list {what!r}. {did_you_mean(what, tables)}")
    found = tables[what]()
    if json_:
        typer.echo(canonical_json(found))
        return
    width = max(map(len, found), default=0)
    for name, line in found.items():
        typer.echo(f"{name:<{width}}  {line}")


def _tasks() -> dict[str, str]:
    from cprbench.tasks import known_tasks, load_task

    tasks = {name: load_task(name) for name in known_tasks()}
    return {n: f"v{t.version}, {t.domain}, {t.primary}: {t.description}" for n, t in tasks.items()}


def _methods() -> dict[str, str]:
    from cprbench.adapt.methods import METHODS

    return {name: line for name, (_, line) in METHODS.items()}


def _selections() -> dict[str, str]:
    from cprbench.adapt.selection import SELECTIONS

    return {name: line for name, (_, line) in SELECTIONS.items()}


def _models() -> dict[str, str]:
    from cprbench.adapt.checkpoints import MODELS
    from cprbench.adapt.random_models import BUILT_IN, PREFIX

    shipped = {name: f"{alias.label}, from {alias.requirement}" for name, alias in MODELS.items()}
    return shipped | {PREFIX + name: line for name, line in BUILT_IN.items()}


def _suites() -> dict[str, str]:
    from cprbench.tasks import known_suites, load_suite

    suites = {name: load_suite(name) for name in known_suites()}
    return {
        n: f"v{s.version}: {', '.join(s.tasks)} x {', '.join(s.models)}, {len(s.arm)} arms, {s.blocks} blocks"
        for n, s in suites.items()
    }


def _claims() -> dict[str, str]:
    from cprbench.judge.claims import claims_folder, load_claims

    files = {path.stem: load_claims(str(path)) for path in sorted(claims_folder().glob("*.toml"))}
    return {f"{name}/{claim.id}": f"{claim.source}: {claim.text}" for name, of in files.items() for claim in of}
