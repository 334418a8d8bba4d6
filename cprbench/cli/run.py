"""cprbench run: adapt models to tasks and write records."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from cprbench.errors import SpecError

if TYPE_CHECKING:
    from cprbench.runs.planner import Planned
    from cprbench.spec import ArmSpec, SuiteSpec

_DECAY = (
    "warning: a stop rule under training.schedule = linear is misled: the rate decays to its planned end, so returns "
    "shrink because of that. Give --set training.schedule=constant."
)

Save = Literal["none", "delta", "model"]


def run(
    what: Annotated[
        list[str], typer.Argument(metavar="TASK… | SUITE.toml", help="Tasks by name or file, or one suite.")
    ],
    model: Annotated[str, typer.Option(help="Alias, folder, .gguf file or hub id@revision.")] = "",
    method: Annotated[str, typer.Option(help="Methods, separated by commas; peft:PATH for any peft config.")] = "",
    selection: Annotated[
        str, typer.Option(help="Which training examples are used: all, random, influence, … (list selections).")
    ] = "",
    blocks: Annotated[int, typer.Option(min=0, help="Repetitions with a seed each (default 3).")] = 0,
    set_: Annotated[list[str], typer.Option("--set", help="ROOM.KEY=VALUE, e.g. partial.k=0.05,0.1")] = [],  # noqa: B006
    budget: Annotated[
        list[str], typer.Option(help="End at a bill: flops=1e12, device_hours=0.5, energy=0.02 (kWh), 0.5x full.")
    ] = [],  # noqa: B006
    search: Annotated[list[str], typer.Option(help="Rates to try: lr=1e-5,1e-4, or head.lr=0.03,0.1")] = [],  # noqa: B006
    save: Annotated[str, typer.Option(help="What to keep of the model: none, delta or model.")] = "none",
    data: Annotated[
        Path | None, typer.Option(help="Folder of data files (else CPRBENCH_DATA, ../shared/data).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where records go.")] = Path("runs"),
    offline: Annotated[bool, typer.Option("--offline", help="Open no connection: caches only.")] = False,
    country: Annotated[str, typer.Option(help="ISO-3 code for the carbon intensity, e.g. FRA.")] = "",
    carbon_intensity: Annotated[float | None, typer.Option(help="Carbon intensity in g CO2 per kWh.")] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the site.")] = 1.0,
    allow_shared: Annotated[bool, typer.Option("--allow-shared", help="Run on a GPU in use; flagged.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed runs again.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train a model together, one per GPU.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the records as JSON lines.")] = False,
) -> None:
    """Adapt models to tasks under meters and write one record per run.

    Runs that are stored already are reused. Exit code 0: all runs ended well; 1: some did not; 130: Ctrl-C.
    """
    from cprbench.cli.progress import Progress
    from cprbench.judge.cpr import compare
    from cprbench.meters.carbon import factors
    from cprbench.render.terminal import print_groups
    from cprbench.runs.metering import MeterOptions
    from cprbench.runs.runner import Options
    from cprbench.runs.runner import run as run_suite
    from cprbench.runs.set_words import read_settings

    settings = read_settings(set_)
    suite = _suite(what, model, method, selection, blocks, settings, budget)
    if save not in get_args(Save):
        raise SpecError(f"--save {save!r}: none, delta or model.")
    options = Options(
        out=out,
        data=data,
        offline=offline,
        retry=retry,
        save=cast(Save, save),
        processes=processes,
        search_rates=_rates(search),
        default_methods=not method,
        metering=MeterOptions(carbon=factors(country or None, carbon_intensity, pue), allow_shared=allow_shared),
    )
    training = {key: values[0] for key, values in settings.get("training", {}).items()}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's notice is a Ctrl-C
    with Progress() as progress:

        def announce(runs: Sequence[Planned]) -> None:
            progress.announce(runs)
            if any(one.spec.stop is not None and one.spec.training.schedule == "linear" for one in runs):
                typer.echo(_DECAY, err=True)

        done = run_suite(suite, options=options, settings=training, observe=progress.observe, announce=announce)
    records = [*done.records, *done.trials]
    if json_:
        for record in records:
            typer.echo(record.model_dump_json(by_alias=True))
    else:
        from rich.console import Console

        print_groups(Console(), compare(records))
        _say_where(done, out)
    for name, why in done.skipped.items():
        typer.echo(f"not run: {name}: {why}", err=True)
    for record in done.failed:
        typer.echo(f"{record.status}: {record.arm}, block {record.block} ({record.run_id}): {record.error}", err=True)
    if done.interrupted:
        typer.echo("interrupted: finished runs are stored, the same command goes on from here.", err=True)
        raise typer.Exit(130)
    if done.failed or done.skipped:
        typer.echo("Run the same command with --retry to run failed runs again.", err=True)
        raise typer.Exit(1)


def _suite(
    what: list[str],
    model: str,
    method: str,
    selection: str,
    blocks: int,
    settings: dict[str, dict[str, list[Any]]],
    budgets: Sequence[str] = (),
) -> SuiteSpec:
    """Return the suite that the command line describes. Raises SpecError when it contradicts itself."""
    from cprbench.adapt.methods import named
    from cprbench.spec import ArmSpec, SuiteSpec
    from cprbench.tasks import is_suite, known_suites, known_tasks, load_suite

    def suite_like(name: str) -> bool:
        return is_suite(Path(name)) if name.endswith(".toml") else name in known_suites() and name not in known_tasks()

    if any(suite_like(name) for name in what):
        if len(what) > 1:
            raise SpecError(f"a suite stands alone, found {len(what)} names: {', '.join(what)}.")
        words = {"--model": model, "--method": method, "--selection": selection, "--budget": budgets}
        given = [flag for flag, value in words.items() if value]
        given += [f"--set {room}.…" for room in settings if room != "training"]
        if given:
            raise SpecError(f"{what[0]} names its own models and arms; leave out {', '.join(given)}.")
        return load_suite(what[0]).model_copy(update={"blocks": blocks} if blocks else {})
    if not model:
        raise SpecError("no model. Pass --model, for example --model minilm (see `cprbench list models`).")
    methods = [name for name in (method or "head,full,lora,partial").split(",") if name]
    selections = (selection or "all").split(",")
    unused = sorted(set(settings) - {named(name)[0] for name in methods} - {"training", "selection", "stop"})
    if unused:
        raise SpecError(f"--set {unused[0]}.…: method {unused[0]!r} is not in --method {','.join(methods)}.")
    arms = [
        ArmSpec(method=name, settings=dict(settings.get(named(name)[0], {})), selection=chosen, selection_settings=own)
        for name in methods
        for chosen, own in _settings_by(selections, settings.get("selection", {})).items()
    ]
    ended = _ended(arms, settings.get("stop", {}), budgets)
    return SuiteSpec(tasks=what, models=[model], blocks=blocks or 3, arm=ended)


def _ended(arms: Sequence[ArmSpec], stop: dict[str, list[Any]], budgets: Sequence[str]) -> list[ArmSpec]:
    """Return the arms of a command with where they end, if not with the recipe.

    Method head, the reference, always does that, and so does an arm of whose bill a budget is a share, beside its
    twins with other budgets. Raises SpecError where no arm is left to end otherwise.
    """
    from cprbench.runs.arms import arms_of, single
    from cprbench.schema import parse
    from cprbench.spec import ArmSpec

    given = {"stop": {key: values[0] for key, values in stop.items()} or None, "budget": list(budgets)}
    asked = parse(ArmSpec, {"method": "full", **given}, "--set stop, --budget")
    if asked.stop is None and not asked.budget:
        return list(arms)
    found: list[ArmSpec] = []
    leaders = {budget.of for budget in asked.budget}
    for arm in single(arms):
        (label,) = (made.label for made in arms_of([arm]))
        own = tuple(budget for budget in asked.budget if budget.of != label) if arm.method != "head" else ()
        if arm.method == "head" or label in leaders or (not own and asked.stop is None):
            found.append(arm)
        if arm.method != "head" and (own or asked.stop is not None):
            found.append(arm.model_copy(update={"stop": asked.stop, "budget": own}))
    if all(arm.stop is None and not arm.budget for arm in found):
        raise SpecError(
            "--budget or --set stop.… is for no arm here: head, and the arm of whose bill it is a share, are free."
        )
    return found


def _settings_by(selections: list[str], given: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Return selection -> those of the given settings that it has. Raises SpecError for one that none of them has."""
    from cprbench.adapt.selection import settings_known
    from cprbench.errors import did_you_mean

    known = {name: settings_known(name) for name in selections}
    for key in given:
        if not any(key in names for names in known.values()):
            every = sorted(set().union(*known.values()))
            hint = did_you_mean(key, every) if every else "These have no settings."
            raise SpecError(f"--set selection.{key}: --selection {','.join(selections)} has none such. {hint}")
    return {name: {key: value for key, value in given.items() if key in names} for name, names in known.items()}


def _rates(searches: list[str]) -> dict[str, list[float]]:
    """Return method ("" for all others) -> rates. Raises SpecError with the form that is understood."""
    from cprbench.adapt.methods import method_class

    found: dict[str, list[float]] = {}
    for search in searches:
        name, _, values = search.partition("=")
        method = name.removesuffix("lr").removesuffix(".")
        if method:
            method_class(method)
        try:
            rates = [float(value) for value in values.split(",")]
        except ValueError:
            rates = []
        if name not in ("lr", f"{method}.lr") or not rates or not all(0 < rate < math.inf for rate in rates):
            raise SpecError(
                f"--search {search!r}: write lr=RATE,RATE or METHOD.lr=RATE,RATE, for example lr=1e-5,1e-4."
            )
        found[method] = rates
    return found


def _say_where(done: Any, out: Path) -> None:
    from cprbench.judge.evidence import gather
    from cprbench.render.formats.writing import render_report

    found = gather(out)
    report = out / "report.md"
    report.write_text(render_report(found.records, evidence=found), encoding="utf-8")
    reused = f", {done.reused} of them reused" if done.reused else ""
    typer.echo(f"\n{len(done.records)} runs{reused}. Records: {out}/ · report: {report}")
