"""Model cards for the hub, one per arm: YAML that says what the arm reached and emitted, and a table of what it cost.

Fields are those of the hub's model card (model-index, co2_eq_emissions: grams). What the record does not tell is a
comment, so a licence, a data set or an emission is never made up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cprbench import __version__
from cprbench.judge.cpr import ArmResult, Group
from cprbench.judge.groups import ended_well, runs_by_arm
from cprbench.render.numbers import (
    missing_resources,
    number,
    percent,
    resource_title,
    score,
    signed,
    times,
    with_interval,
)
from cprbench.render.report.answer import SMOKE
from cprbench.render.report.carbon import grids
from cprbench.render.text import escape
from cprbench.render.titles import titles_of
from cprbench.spec import RESOURCES, RunRecord, RunSpec

#: Where a hub id is expected: "org/name", nothing else.
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
#: Metrics of answers that are chosen among labels; others are of text.
_OF_CHOICES = ("accuracy", "macro_f1")
_MOST_LETTERS = 100


def model_cards(groups: Sequence[Group]) -> dict[str, str]:
    """Return file stem -> card, for every arm of which a run ended well.

    Stems are the arms' names in plain letters; of several groups, each in a folder of its group's title.
    """
    cards: dict[str, str] = {}
    for group, title in zip(groups, titles_of(groups), strict=True):
        runs = runs_by_arm(group.records)
        for arm in group.arms:
            if own := list(ended_well(runs[arm.arm]).values()):
                folder = f"{_plain(title)}/" if len(groups) > 1 else ""
                cards[_stem(folder + _plain(arm.arm), cards)] = _card(group, arm, own)
    return cards


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_MOST_LETTERS].strip("-.") or "unnamed"


def _stem(stem: str, taken: Mapping[str, str]) -> str:
    return next(name for n in range(1, len(taken) + 2) if (name := stem if n == 1 else f"{stem}-{n}") not in taken)


def _card(group: Group, arm: ArmResult, runs: Sequence[RunRecord]) -> str:
    model, task = group.key["model"], group.key["task"]
    rows = [f"| {name} | {escape(value)} |" for name, value in _costs(arm)]
    against = "method head" if group.reference == "head" else "the untouched base"
    return "\n".join(
        [
            "---",
            *_front(group, arm, runs),
            "---",
            "",
            f"# {escape(model)}, adapted by {escape(arm.arm)}",
            "",
            f"What adapting {escape(model)} to {escape(task)} by {escape(arm.arm)} reached and cost, on "
            f"{escape(group.key['hardware_class'])}. Means over {_blocks(arm)}; costs are those of one run, selection "
            f"included; gains are on {escape(group.metric)}, against {against}. {escape(_where(group, runs))}",
            *([SMOKE] if group.key["role"] == "smoke" else []),
            "",
            "|  | mean |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _where(group: Group, runs: Sequence[RunRecord]) -> str:
    """Return on what data the score is: a part of a test is another test."""
    items = ", ".join(sorted({str(record.psi.items) for record in runs}))
    suites = f", suite {', '.join(group.key['suites'])}" if group.key["suites"] else ""
    limits = "".join(f", {name} {value}" for name, value in sorted(group.key["limits"].items()))
    data = f", data sha256 {str(group.key['data_sha256'])[:12]}" if group.key["data_sha256"] else ""
    return f"Scored on {items} test items{suites}{limits}{data}."


def _costs(arm: ArmResult) -> Iterator[tuple[str, str]]:
    yield "score", with_interval(score, arm.final)
    yield "gain", with_interval(signed, arm.gain)
    yield "share of full tuning's gain", with_interval(percent, arm.retained_gain)
    yield "gain per FLOP, as a multiple of full tuning's", with_interval(times, arm.multiple_of_full["flops"])
    yield "parameters trained", percent(arm.trained_share)
    yield "seconds", number(arm.seconds)
    yield from ((resource_title(name), number(arm.gamma[name])) for name in RESOURCES)
    if arm.trials:
        yield "trials of the learning-rate search, not in these costs", str(arm.trials)


def _blocks(arm: ArmResult) -> str:
    return f"{'block' if len(arm.blocks) == 1 else 'blocks'} {', '.join(map(str, arm.blocks))}"


# --- front matter -----------------------------------------------------------------------------------


def _front(group: Group, arm: ArmResult, runs: Sequence[RunRecord]) -> Iterator[str]:
    base = {r.spec.model.source for r in runs if isinstance(r.spec, RunSpec) and r.spec.model.revision is not None}
    if len(base) == 1 and _HUB_ID.fullmatch(source := next(iter(base))):
        yield from _yaml({"base_model": source})
    else:
        yield _comment("base_model", f"no id of the hub in the records, but {group.key['model']}")
    yield _comment("license, datasets", f"not in the records: see task {group.key['task']} and the model")
    yield from _yaml({"tags": ["cprbench"]})
    if group.key["role"] == "smoke":
        yield _comment("model-index", SMOKE)
    elif arm.final.value is None:
        yield _comment("model-index", arm.final.why or "no psi was given")
    else:
        index = {"name": f"{group.key['model']} {arm.arm}", "results": [_result(group, arm)]}
        yield from _yaml({"model-index": [index]})
    if arm.gamma["co2_kg"].value is None:
        why = (missing_resources(record).get("co2_kg") for record in runs)
        yield _comment("co2_eq_emissions", next((reason for reason in why if reason), "not measured"))
    else:
        yield from _yaml({"co2_eq_emissions": _emissions(arm.gamma["co2_kg"].value, runs)})


def _result(group: Group, arm: ArmResult) -> dict[str, Any]:
    ours = group.key["loop"] == "cprbench"
    kind = "text-classification" if group.metric in _OF_CHOICES else "text-generation"
    name = f"{group.key['task']} v{group.key['task_version']}"
    data = {"name": name, "type": group.key["task"]}
    if group.key["limits"]:
        data["name"] += f" ({', '.join(f'{n} {v}' for n, v in sorted(group.key['limits'].items()))})"
    if ours:
        data["split"] = "test"
    metric = {"type": group.metric, "value": arm.final.value, "name": f"{group.metric}, mean of {_blocks(arm)}"}
    return {"task": {"type": kind if ours else "other"}, "dataset": data, "metrics": [metric]}


def _emissions(kilograms: float, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the hub's fields; emissions are grams, the mean of a run."""
    scopes = sorted({str(record.gamma.energy_scope) for record in runs})
    grid = grids(runs)
    factors = "; or ".join(one.words for one in grid) or "factors not told"
    found: dict[str, Any] = {
        "emissions": 1000 * kilograms,
        "source": f"cprbench {__version__}: energy ({', '.join(scopes)}) x {factors}; a run's mean, selection included",
    }
    if runs[0].loop == "cprbench":
        drawn = runs[0].spec.model.source.startswith("random:")
        found["training_type"] = "pre-training" if drawn else "fine-tuning"
    if len(places := {one.place for one in grid}) == 1 and (place := next(iter(places))) is not None:
        found["geographical_location"] = place
    return found | {"hardware_used": runs[0].environment.hardware_class}


def _yaml(value: Any) -> list[str]:
    """Return tables, lists and scalars as lines of block YAML."""
    if isinstance(value, dict):
        lines = []
        for name, part in value.items():
            inner = _yaml(part)
            nested = isinstance(part, dict | list)
            lines += [f"{name}:", *(f"  {line}" for line in inner)] if nested else [f"{name}: {inner[0]}"]
        return lines
    if isinstance(value, list):
        return [("  " if i else "- ") + line for part in value for i, line in enumerate(_yaml(part))]
    return [_scalar(value)]


def _scalar(value: str | float) -> str:
    if isinstance(value, str):  # as JSON quotes it, and what a YAML reader refuses or hides as its code
        quoted = json.dumps(value, ensure_ascii=False)
        return "".join(letter if letter.isprintable() else _escaped(letter) for letter in quoted)
    text = repr(float(value))  # YAML 1.1 reads 1e-05 as a text
    return text if "e" not in text or "." in text else text.replace("e", ".0e")


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def _comment(name: str, why: str) -> str:
    return f"# {name}: {_scalar(why)}"
