"""Psi from the predictions, and the predictions against the references of the task's own pinned source."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from cprbench.adapt.data import Dataset, Example, sample_by_label
from cprbench.adapt.scoring import Prediction, psi
from cprbench.adapt.selection.ranking import keep
from cprbench.errors import SpecError
from cprbench.runs.store import PREDICTIONS
from cprbench.spec import stream_seed
from cprbench.submissions.dossier import Dossier, Flaw, Rows, Rule

_FILES = (("base", f"base_{PREDICTIONS}"), ("final", PREDICTIONS))
#: Log-likelihoods are kept in six digits, of which a class of 77 choices rounds 77.
_ROUNDING = 1e-6
#: Two answers to the same prompt of the same weights: bf16 on the same class of hardware gives these digits.
_SAME = 2e-3


def _lines(run: Dossier) -> Iterator[Flaw]:
    for _, name in _FILES:
        for number, row in enumerate(run.rows(name), start=1):
            if why := _broken(row, run):
                yield Flaw(name, f"line {number} (item {str(row.get('id'))!r:.60}): {why}")
                break


def _broken(row: Mapping[str, Any], run: Dossier) -> str | None:
    """Return what is wrong with a line of predictions by itself."""
    scores = row.get("scores")
    if set(row) != {"id", "prediction", "reference", "scores"} or not isinstance(scores, dict):
        return "it has not exactly id, prediction, reference and scores"
    if not all(isinstance(row[key], str) for key in ("id", "prediction", "reference")):
        return "id, prediction and reference are texts"
    nll = scores.get("nll")
    if not isinstance(nll, int | float) or isinstance(nll, bool) or nll < 0:
        return f"nll is {nll!r}: it is a number and not below 0"
    if "bytes" in scores:
        whole = type(scores["bytes"]) is int and scores["bytes"] > 0
        if set(scores) != {"nll", "bytes"} or not whole or row["prediction"] or row["reference"]:
            return "a text has nll and bytes, and nothing is predicted or right"
        return None
    told = scores.get("log_likelihoods")
    if set(scores) != {"nll", "log_likelihoods"} or not isinstance(told, dict) or not told:
        return "scores are nll and log_likelihoods"
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and v <= 0 for v in told.values()):
        return "a log-likelihood is a number and not above 0"
    if row["prediction"] != max(told, key=lambda choice: told[choice]):
        return f"prediction is {row['prediction']!r:.60}, the likeliest is {max(told, key=lambda c: told[c])!r:.60}"
    if row["reference"] not in told or nll != -told[row["reference"]]:
        return f"nll is {nll}, minus the log-likelihood of {row['reference']!r:.60} is {-told.get(row['reference'], 0)}"
    if run.spec is not None and run.spec.model.kind == "encoder":
        total = math.fsum(map(math.exp, told.values()))
        if abs(total - 1) > len(told) * _ROUNDING:
            return f"the likelihoods of a classifier's choices sum to {total:.7g}, not to 1"
    return None


def _scores(run: Dossier) -> Iterator[Flaw]:
    record = run.record
    if run.spec is None:
        why = "a loop that is not ours: psi is its author's word"
        yield Flaw("record.json", why, "unverified", "Nothing to do: it is shown, and does not rank")
    if run.spec is None or run.task is None:
        return
    for when, name in _FILES:
        rows, said = run.rows(name), getattr(record.psi, when)
        if not rows:
            if said is not None:
                yield Flaw("record.json", f"psi.{when} is {said}, and there is no {name}")
            continue
        try:
            found = psi([Prediction.from_row(dict(row)) for row in rows], run.task.metrics)
        except (SpecError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            continue  # P1 says what is wrong
        if said is None and record.status == "ok" and record.role != "search":
            yield Flaw("record.json", f"psi.{when} is missing, and {name} is there")
        if said is not None and said != found:
            wrong = next((key for key in {**found, **said} if said.get(key) != found.get(key)), "")
            yield Flaw(
                "record.json", f"psi.{when}.{wrong} is {said.get(wrong)}, the predictions make {found.get(wrong)}"
            )
        if record.status == "ok" and len(rows) != record.psi.items:
            yield Flaw("record.json", f"psi.items is {record.psi.items}, {name} has {len(rows)}")
    scored = [getattr(record.psi, when) is not None for when, _ in _FILES]
    if record.status == "ok" and scored != [record.role != "search"] * 2:
        yield Flaw("record.json", f"a run of role {record.role} that ended well has psi before and after, or none")


def _references(run: Dossier) -> Iterator[Flaw]:
    spec = run.spec
    if spec is None or run.task is None or not any(run.rows(name) for _, name in _FILES):
        return
    if isinstance(run.dataset, str):
        why = " ".join(f"the references are not here: {run.dataset}".split())
        yield Flaw(PREDICTIONS, why, "unverified", "Let them be fetched (no --offline), or pass --data DIR")
        return
    wanted = _sample(run.dataset, "test", run.task.name, spec.training.eval_items)
    for _, name in _FILES:
        if rows := run.rows(name):
            yield from _against(rows, wanted, name)


def _sample(dataset: Dataset, split: Literal["train", "test"], task: str, size: int | None) -> Sequence[Example]:
    """Return the examples of a split under a limit: the same for all runs, and hashing them all takes a while."""
    key = (dataset.sha256, split, size)
    if key not in _SAMPLES:
        while len(_SAMPLES) >= _MOST_SAMPLES:
            del _SAMPLES[next(iter(_SAMPLES))]
        _SAMPLES[key] = sample_by_label(getattr(dataset, split), size, f"{task}/{split}")
    return _SAMPLES[key]


_SAMPLES: dict[tuple[str, str, int | None], Sequence[Example]] = {}
_MOST_SAMPLES = 32


def _against(rows: Rows, wanted: Sequence[Example], name: str) -> Iterator[Flaw]:
    if len(rows) != len(wanted):
        yield Flaw(name, f"it has {len(rows)} items, the task's test split with these limits has {len(wanted)}")
        return
    for number, (row, example) in enumerate(zip(rows, wanted, strict=True), start=1):
        if row.get("id") != example.id:
            yield Flaw(name, f"line {number}: item {str(row.get('id'))!r:.60}, in its place is {example.id!r:.60}")
            return
        if row.get("reference") != example.reference:
            yield Flaw(
                name, f"line {number}: reference {row.get('reference')!r:.60}, the source has {example.reference!r:.60}"
            )
            return
        scores = row.get("scores")
        told = scores.get("log_likelihoods", {}) if isinstance(scores, dict) else {}
        if list(told) != list(example.choices):
            yield Flaw(name, f"line {number}: its choices are not those of the task, in their order")
            return
        if isinstance(scores, dict) and scores.get("bytes", 0) > len(example.prompt.encode()):
            yield Flaw(name, f"line {number}: {scores['bytes']} bytes were scored of {len(example.prompt.encode())}")
            return


def _same_base(run: Dossier) -> Iterator[Flaw]:
    """Arms of a block start from the same model: what it said before adaptation is one answer."""
    name = _FILES[0][1]
    # qlora starts from weights that were rounded to 4 bits.
    first = next((mate for mate in run.mates if mate.rows(name) and not _four_bit(mate)), run)
    own, theirs = run.rows(name), first.rows(name)
    if not own or first is run or _four_bit(run):
        return
    if len(own) != len(theirs):
        yield Flaw(name, f"it has {len(own)} items, run {first.run_id} of the same block has {len(theirs)}")
        return
    for number, (a, b) in enumerate(zip(own, theirs, strict=True), start=1):
        if a != b and not _close(a, b):
            yield Flaw(name, f"line {number} differs from that of run {first.run_id}, of the same block")
            return


def _four_bit(run: Dossier) -> bool:
    return run.spec is not None and run.spec.method.name == "qlora"


def _close(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    try:
        if (one["id"], one["reference"]) != (other["id"], other["reference"]):
            return False
        first, second = (
            dict(row["scores"].get("log_likelihoods") or {"": row["scores"]["nll"]}) for row in (one, other)
        )
        return first.keys() == second.keys() and all(abs(first[c] - second[c]) <= _SAME for c in first)
    except (KeyError, TypeError, AttributeError):
        return False


def _chosen(run: Dossier) -> Iterator[Flaw]:
    """The examples that were trained on, where no gradient had a say in them."""
    spec, record = run.spec, run.record
    if spec is None or record.selection_sha256 is None:
        return
    if record.selected_examples is None:
        yield Flaw("record.json", "selected_examples is missing beside selection_sha256")
        return
    if isinstance(run.dataset, str):
        return  # P3 says so
    pool = _sample(run.dataset, "train", spec.task.name, spec.training.max_examples)
    ids = [example.id for example in pool]
    if spec.selection.name == "random" and not (
        spec.selection.settings.get("flops") or spec.selection.settings.get("flops_of")
    ):
        order = list(range(len(ids)))
        random.Random(stream_seed(spec.seed, "random data")).shuffle(order)
        rank = {place: len(order) - i for i, place in enumerate(order)}
        settings = spec.selection.settings
        labels = [example.reference for example in pool]
        scores = [float(rank[place]) for place in range(len(ids))]
        guard = bool(settings.get("class_guard"))
        ids = [ids[i] for i in keep(scores, ids, labels, q=float(settings.get("q") or 0), class_guard=guard)]
    elif spec.selection.name != "all":
        ids = []
        if record.selected_examples > len(pool):
            yield Flaw("record.json", f"selected_examples is {record.selected_examples}, the pool has {len(pool)}")
    if ids and record.selected_examples != len(ids):
        yield Flaw("record.json", f"selected_examples is {record.selected_examples}, this selection keeps {len(ids)}")
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    if ids and record.selection_sha256 != digest:
        yield Flaw("record.json", f"selection_sha256 is {record.selection_sha256}, this selection's is {digest}")


def _same_batches(run: Dossier) -> Iterator[Flaw]:
    """The data order is the block's: runs on the same examples, for as many steps, saw the same batches."""
    own = run.record
    if own.batches_sha256 is None:
        return
    for other in run.mates:
        theirs = other.record
        same = (theirs.selection_sha256, theirs.notes.get("steps")) == (own.selection_sha256, own.notes.get("steps"))
        if same and theirs.batches_sha256 is not None:  # the first such run speaks for all before this one
            if theirs.batches_sha256 != own.batches_sha256:
                yield Flaw("record.json", f"batches_sha256 is not that of run {other.run_id}, on the same examples")
            return


_RUN_AGAIN = "Run it again with `cprbench run`: raw files are never edited"
RULES = (
    Rule("P1", "every prediction follows from its own likelihoods", _RUN_AGAIN, _lines),
    Rule("P2", "psi is what the predictions make", _RUN_AGAIN, _scores),
    Rule("P3", "items, references and choices are those of the task's source", _RUN_AGAIN, _references),
    Rule("P4", "runs of a block start from the same model", _RUN_AGAIN, _same_base),
    Rule("P5", "the examples are those of the selection", _RUN_AGAIN, _chosen),
    Rule("P6", "runs on the same examples saw the same batches", _RUN_AGAIN, _same_batches),
)
