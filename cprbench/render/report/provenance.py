"""Where the numbers come from: the ledger of phases, recipes and settings, meters, machines, versions, and what is
missing with its reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cprbench.judge.cpr import Group
from cprbench.judge.groups import Figure, ended_well, runs_by_arm
from cprbench.judge.ledger import ArmLedger
from cprbench.render.document import Cell, Items, Part, Prose, Table
from cprbench.render.numbers import missing_resources, number, resource_title
from cprbench.render.report.comparison import cell, count, search
from cprbench.spec import PHASES, RESOURCES, RunRecord

#: Rates of one hardware class that differ by more than this factor are flagged (DESIGN section 1).
_STEADY = 1.15


def ledger_table(group: Group, found: Sequence[ArmLedger]) -> Table:
    """Return the seconds of each phase, search beside, and what is billed of them."""
    arms = {arm.arm: arm for arm in group.arms}
    return Table(
        "ledger",
        "The ledger: mean seconds per run, phase by phase, over all attempts",
        ("arm", "runs", "attempts", "search", *PHASES, "billed", "billed, last attempt"),
        tuple(
            (
                Cell(row.arm),
                count(row.runs),
                count(row.attempts),
                Cell(search(arms[row.arm]), row.search_seconds.value),
                *(cell(number, row.seconds[phase]) for phase in PHASES),
                cell(number, row.billed_seconds),
                cell(number, row.billed_last_attempt),
            )
            for row in found
        ),
        (
            "Billed: select + train, and validate where the method acts on it. Search is of all trials together; "
            "setup and score stand beside and are billed to nobody.",
        ),
        words=(0, 3),
    )


def flops_table(found: Sequence[ArmLedger]) -> Table:
    """Return the FLOPs of each phase: what choosing cost, and what training did."""
    return Table(
        "ledger-flops",
        "FLOPs per run, phase by phase, over all attempts",
        ("arm", *PHASES),
        tuple((Cell(row.arm), *(cell(number, row.flops[phase]) for phase in PHASES)) for row in found),
        ("Billed are select and train, and validate where the method acts on it.",),
    )


def settings_table(group: Group) -> Table:
    """Return what each arm was asked to do, defaults resolved."""
    rows = []
    by_arm = runs_by_arm(group.records)
    for name, runs in ((arm.arm, by_arm[arm.arm]) for arm in group.arms):
        first = next(iter(runs.values()))
        spec = first.spec
        rates = {_rate(r) for r in runs.values()}
        ends = [
            f"{word} {_settings(end.model_dump())}"
            for word, end in (("stop", spec.stop), ("budget", spec.budget))
            if end
        ]
        submodules = {", ".join(r.trained_submodules) for r in ended_well(runs).values()}
        external = first.loop != "cprbench"
        rows.append(
            (
                Cell(name),
                Cell(f"{spec.method.name} {_settings(spec.method.settings)}".strip()),
                Cell(f"{spec.selection.name} {_settings(spec.selection.settings)}".strip()),
                Cell(", ".join(sorted(rates))),
                Cell("; ".join(ends) or ("not told" if external else "epochs of the recipe")),
                Cell("not told" if external else _trained(submodules)),
            )
        )
    return Table(
        "hyper-parameters",
        "Methods, selections and learning rates",
        ("arm", "method", "selection", "learning rate", "ends after", "trained submodules"),
        tuple(rows),
        words=(0, 1, 2, 3, 4, 5),
    )


def _trained(sets: set[str]) -> str:
    """Return the submodules that runs trained, by their names in a line."""
    if len(sets) != 1:
        return f"{len(sets)} different sets" if sets else "no run ended well"
    return next(iter(sets)) or "the new head alone"


def recipe_table(group: Group) -> Table:
    """Return what all arms share: task, model, recipe and limits."""
    key, record = group.key, group.records[0]
    facts = {
        "task": f"{key['task']} v{key['task_version']}",
        "data sha256": key["data_sha256"],
        "model": key["model"],
        "source": getattr(record.spec.model, "pinned", record.spec.model.source),
        "weights sha256": key["weights_sha256"],
        "parameters (N)": next((r.total_parameters for r in group.records if r.total_parameters), None),
        "seeds": ", ".join(map(str, sorted({r.spec.seed for r in group.records if r.spec.seed is not None}))),
        "test items": ", ".join(sorted({str(r.psi.items) for r in group.records if r.status == "ok"})),
        **{f"limit {name}": value for name, value in sorted(key["limits"].items())},
        **{name.replace("_", " "): value for name, value in sorted((key["recipe"] or {}).items())},
    }
    rows = tuple((Cell(name), Cell("not told" if value in (None, "") else str(value))) for name, value in facts.items())
    return Table("recipe", "Recipe: the same for all arms", ("setting", "value"), rows, words=(0, 1))


def _rate(record: RunRecord) -> str:
    rate = None if record.spec.training is None else record.spec.training.learning_rate
    how = record.notes.get("learning_rate_from")
    return "not told" if rate is None else f"{rate:g} ({how})" if isinstance(how, str) else f"{rate:g}"


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()) if value not in (None, ""))


# --- meters, machines, versions ---------------------------------------------------------------------


def sources_table(records: Iterable[RunRecord]) -> Table:
    """Return by which meter each billed quantity was read in how many runs, its flags, and why others have none."""
    found: dict[tuple[str, str, str], int] = defaultdict(int)
    for record in records:
        for reading in record.readings:
            if reading.phase == "billed":
                told = reading.source or f"not measured: {reading.why_missing}"
                found[reading.quantity, told, ", ".join(reading.flags)] += 1
    rows = tuple(
        (Cell(quantity), Cell(source), count(runs), Cell(flags or "none"))
        for (quantity, source, flags), runs in sorted(found.items(), key=lambda item: _measured_first(item[0]))
    )
    return Table(
        "sources",
        "The source of every billed number",
        ("quantity", "source", "runs", "flags"),
        rows,
        (
            "counter, rapl: read from the hardware or the kernel; sampled: an integral of samples; counted: from the "
            "arithmetic of the model; modelled: an estimate, which ranks against nothing measured.",
        ),
        words=(0, 1, 3),
    )


def _measured_first(key: tuple[str, str, str]) -> tuple[bool, tuple[str, str, str]]:
    return (key[1].startswith("not measured"), key)


def versions_table(records: Iterable[RunRecord]) -> Table:
    """Return machines and versions; where runs differ, every value with its count."""
    facts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        environment = record.environment
        commit = (
            None
            if environment.commit is None
            else environment.commit + (" (with changes)" if environment.dirty else "")
        )
        told = {
            "hardware class": environment.hardware_class,
            "python": environment.python,
            "commit": commit,
            **{f"package {name}": version for name, version in environment.packages.items()},
            **{name: environment.facts.get(name) for name in ("cpu", "system")},
            **{f"device {i}": _settings(device) for i, device in enumerate(environment.devices)},
        }
        for name, value in told.items():
            if value:
                facts[name][str(value)] += 1
    rows = tuple((Cell(name), Cell(_counted(values))) for name, values in sorted(facts.items(), key=_machine_first))
    return Table("versions", "Machine and versions", ("what", "value"), rows, words=(0, 1))


def _machine_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return (item[0].startswith("package"), item[0])


def _counted(values: Mapping[str, int]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({runs} runs)" for value, runs in sorted(values.items()))


def covers(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return what gamma's numbers cover, which flags they carry, and whether the machine was steady."""
    ok = [r for r in records if r.status == "ok"]
    scopes = sorted({r.gamma.energy_scope for r in ok if r.gamma.energy_scope})
    bases = sorted({str(r.gamma.memory_basis) for r in ok if r.gamma.memory_gb_hours is not None})
    flags = sorted({flag for r in ok for reading in r.readings if reading.phase == "billed" for flag in reading.flags})
    words = [f"memory is {', '.join(bases)}"] if bases else []
    words += [f"energy covers {', '.join(scopes)}"] if scopes else []
    words += [f"flags of billed readings: {', '.join(flags)}"] if flags else []
    for name in sorted({name for r in ok for name in _rates(r)}):
        values = [_rates(r)[name] for r in ok if name in _rates(r)]
        if max(values) > _STEADY * min(values):
            words.append(f"{name} differed by over 15 % between runs of this hardware class")
    return (f"Sources: {'; '.join(words)}.",) if words else ()


def _rates(record: RunRecord) -> dict[str, float]:
    rates = record.environment.facts.get("rates")
    return {n: v for n, v in rates.items() if isinstance(v, int | float)} if isinstance(rates, dict) else {}


# --- what is missing, what failed, what others paid --------------------------------------------------


def missing(records: Sequence[RunRecord]) -> tuple[Part, ...]:
    """Return what gamma lacks and why, once per reason, and what is only modelled: beside, never in its place."""
    reasons: dict[tuple[str, str], int] = defaultdict(int)
    for record in records:
        for resource, why in missing_resources(record).items():
            reasons[resource, why] += 1
    order = {resource: i for i, resource in enumerate(RESOURCES)}
    lines = [
        f"{resource_title(resource)}: {why}" + (f" ({of})" if (of := _of(runs, records)) else "")
        for (resource, why), runs in sorted(reasons.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    ]
    modelled = [r for record in records for r in record.readings if r.phase == "billed" and r.source == "modelled"]
    for quantity in sorted({r.quantity for r in modelled if r.value is not None and r.quantity != "co2_kg"}):
        values = [r.value for r in modelled if r.quantity == quantity and r.value is not None]
        mean = number(Figure(sum(values) / len(values)))
        of = ", ".join(["modelled", *filter(None, [_of(len(values), records)])])
        lines.append(f"{quantity}: {mean} a run on average is an estimate ({of}) and enters no comparison")
    return (Items("Not measured, and why", tuple(lines)),) if lines else ()


def _of(runs: int, records: Sequence[RunRecord]) -> str:
    """Return of how many runs something is said, "" where it is said of all."""
    return f"{runs} of {len(records)} runs" if runs < len(records) else ""


def failures(group: Group) -> tuple[Part, ...]:
    """Return the runs that did not end well, with their errors."""
    told = tuple(map(failed, group.failures))
    return (Items("Runs that did not end well", told),) if told else ()


def failed(record: RunRecord) -> str:
    """Return a run that did not end well, with its error, in a line."""
    return f"{record.run_id} {record.arm}, block {record.block}: {record.status}: {record.error or 'no reason told'}"


def stops(records: Sequence[RunRecord]) -> tuple[Part, ...]:
    """Return where the stop rule ended training, a line per run that had one."""
    lines = []
    for record in sorted(records, key=lambda r: (r.arm, r.block)):
        told = record.notes.get("stop")
        if isinstance(told, dict):
            at = told.get("stopped_at")
            where = "never stopped" if at is None else f"stopped at step {at} of {told.get('of_steps')}"
            lines.append(f"{record.arm}, block {record.block}: {where}: {told.get('why')}")
    return (Items("Stop rule", tuple(lines)),) if lines else ()


def predictors(records: Sequence[RunRecord]) -> tuple[Part, ...]:
    """Return how good predictions of J were on held-out examples, beside the loss alone."""
    lines = []
    for record in sorted(records, key=lambda r: (r.arm, r.block)):
        chosen = record.notes.get("selection")
        told = chosen.get("predictor") if isinstance(chosen, dict) else None
        if isinstance(told, dict):
            own, loss, inside = (told.get(n) for n in ("spearman", "spearman_of_loss", "spearman_within_class"))
            worse = ""
            if isinstance(own, int | float) and isinstance(loss, int | float) and loss > own:
                worse = " The loss alone ranks better."
            figures = ", ".join(
                f"{name} {value:.3f}" if isinstance(value, int | float) else f"{name} not defined"
                for name, value in (("overall", own), ("within classes", inside), ("the loss alone", loss))
            )
            lines.append(f"{record.arm}, block {record.block}: {figures}.{worse}")
    return (Items("Predicted J against J on held-out examples, Spearman", tuple(lines)),) if lines else ()


def published(records: Sequence[RunRecord]) -> tuple[Part, ...]:
    """Return what making the files cost that these runs used: printed beside, billed to nobody here."""
    lines = set()
    for record in records:
        used = record.notes.get("blueprint") if record.blueprint else None
        if isinstance(used, dict):
            lines.add(
                f"Blueprint {(record.blueprint or '')[:12]} of {used.get('model_id')}: making it cost {_spent(used)}."
            )
        chosen = record.notes.get("selection")
        used = chosen.get("scores") if isinstance(chosen, dict) else None
        if isinstance(used, dict):
            name = str(record.spec.selection.settings.get("scores_sha256"))[:12]
            lines.add(f"Scores {name} of {record.arm}: making them cost {_spent(used)}.")
    return (Prose(tuple(f"{line} Not billed to these runs." for line in sorted(lines))),) if lines else ()


def _spent(used: Mapping[str, Any]) -> str:
    made = used.get("made")
    made = made if isinstance(made, dict) else {}
    spent = [f"{made[n]:.3g} {resource_title(n)}" for n in RESOURCES if isinstance(made.get(n), int | float)]
    return ", ".join(spent) or "not measured"
