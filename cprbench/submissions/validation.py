"""validate: a submission as an Entry. Everything in it is hostile until it was read strictly; nothing in it is run.

What is derived is recomputed from the raw files by the functions that made it (rules/), what ranks is decided from
what was recomputed (board.py), and whatever is wrong is a Finding with its file and a cure. No torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cprbench
from cprbench.adapt.data import Dataset, load_dataset
from cprbench.errors import CprbenchError, SpecError, SubmissionError
from cprbench.judge.submission import RUNS_FOLDER, SUBMISSION_FILE, Entry, Finding, Level, Status, SubmissionSpec
from cprbench.runs.store import MANIFEST, RECORD
from cprbench.schema import parse, sha256_of
from cprbench.spec import RunRecord, RunSpec, TaskSpec
from cprbench.submissions.board import rows_of
from cprbench.submissions.bundle import Bundle, open_bundle
from cprbench.submissions.dossier import Dossier, Flaw, Rows, Rule
from cprbench.submissions.rules import RULES
from cprbench.submissions.rules.evidence import forget
from cprbench.submissions.strict import parse_json, parse_jsonl, parse_toml, weight
from cprbench.tasks import load_task, tasks_folder

#: So many findings of one rule are told; the rest are counted.
_TOLD = 5
#: Bytes of memory (strict.weight) of the rows that are kept, and the most that all records of a submission may take.
_KEPT, _MOST_RECORDS = 150_000_000, 150_000_000
_UNREADABLE = Rule(
    "B1", "it can be read, and holds nothing but a submission", "See docs/submissions.md, what a submission holds",
    lambda run: (),
)  # fmt: skip
_MANIFEST = Rule(
    "B2", "every file is the one that its manifest names", "Pack the runs again with `cprbench pack`", lambda run: ()
)
BUNDLE_RULES = (_UNREADABLE, _MANIFEST)


def validate(path: Path, *, data: Path | None = None, offline: bool = False, tasks: Tasks | None = None) -> Entry:
    """Return a submission, a folder or a .zip, as an entry of the board. Its content never raises.

    `data`: the folder of --data, where tasks read their own files. `tasks`: shared by many calls.
    Raises SubmissionError for a path that is not there.
    """
    if not path.exists():
        raise SubmissionError(f"{path}: no such submission. `cprbench pack` makes one.")
    tasks = tasks or Tasks(data, offline=offline)
    name = folder_of(path)
    try:
        bundle = open_bundle(path)
    except SubmissionError as error:
        return _refused(_digest(str(error).encode()), name, None, error)
    return judged(bundle, name, tasks)


def folder_of(path: Path) -> str:
    """Return what a submission is called where it lies; a name that is no UTF-8 comes with a mark for what is not."""
    return os.fsencode(os.path.basename(os.path.abspath(path))).decode("utf-8", "replace").removesuffix(".zip")


def judged(bundle: Bundle, folder: str, tasks: Tasks) -> Entry:
    """Return the entry of a submission's files. `folder`: what it is called where it lies."""
    digest, spec = _digest(b""), None
    try:
        digest = _digest(bundle.digest.encode(), tasks.identity)
        spec = _spec(bundle)
        dossiers = _dossiers(bundle, spec, tasks)
    except (SubmissionError, SpecError) as error:
        return _refused(digest, folder, spec, error)
    checked = Counter({"B1": 1, "B2": len(dossiers)})
    flaws: dict[str, list[Finding]] = {}
    for run in dossiers.values():
        for rule in RULES:
            checked[rule.code] += 1
            found = [_finding(rule, flaw, run.run_id) for flaw in _asked(rule, run)]
            flaws.setdefault(run.run_id, []).extend(found)
    forget()
    entry = _entry(digest, spec, folder, [finding for found in flaws.values() for finding in found], checked)
    if entry.status in ("invalid", "contradicted"):
        return entry
    return entry.model_copy(update={"rows": rows_of(spec, list(dossiers.values()), flaws)})


def _refused(digest: str, folder: str, spec: SubmissionSpec | None, error: Exception) -> Entry:
    """Return the entry of what cannot be read as a submission."""
    return _entry(digest, spec, folder, [_finding(_UNREADABLE, Flaw("", str(error), "invalid"))], {"B1": 1})


def digest_of(path: Path, tasks: Tasks) -> str:
    """Return what `validate` would call a submission: a hash of its bytes, of the tasks and of the rules' version."""
    try:
        return _digest(open_bundle(path).digest.encode(), tasks.identity)
    except SubmissionError as error:
        return _digest(str(error).encode())


def _asked(rule: Rule, run: Dossier) -> Iterable[Flaw]:
    """Return what a rule finds. A rule that stumbles over a record has found one that it cannot vouch for."""
    try:
        return list(rule.check(run))
    except (CprbenchError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        why = f"{rule.title}: could not be asked of this run ({type(error).__name__}: {error!s:.200})"
        return [Flaw(RECORD, why)]


def _finding(rule: Rule, flaw: Flaw, run_id: str | None = None) -> Finding:
    file = flaw.file if run_id is None else f"{RUNS_FOLDER}/{run_id}/{flaw.file}"
    return Finding(code=rule.code, level=flaw.level, file=file, message=flaw.message, cure=flaw.cure or rule.cure)


def _entry(
    digest: str, spec: SubmissionSpec | None, folder: str, findings: list[Finding], checked: Mapping[str, int]
) -> Entry:
    levels = {finding.level for finding in findings}
    order: tuple[tuple[str, Status], ...] = (
        ("invalid", "invalid"),
        ("wrong", "contradicted"),
        ("unverified", "unverified"),
    )
    status = next((status for found, status in order if found in levels), "consistent")
    return Entry(
        digest=digest,
        submission=spec,
        folder=folder,
        status=status,
        checked=dict(checked),
        findings=list(_shortened(findings)),
        rows=[],
    )


def _shortened(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings, of each rule and level the first few and how many more there are."""
    told: Counter[tuple[str, Level]] = Counter()
    last: dict[tuple[str, Level], Finding] = {}
    for finding in findings:
        key = finding.code, finding.level
        told[key] += 1
        last[key] = finding
        if told[key] <= _TOLD:
            yield finding
    for key, count in told.items():
        if count > _TOLD:
            yield last[key].model_copy(update={"file": "", "message": f"and {count - _TOLD} more"})


def _digest(content: bytes, identity: str = "") -> str:
    return hashlib.sha256(f"{_code()} {identity} ".encode() + content).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a hash of our own code: an entry that was stored before a rule changed is made again."""
    root = Path(cprbench.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _spec(bundle: Bundle) -> SubmissionSpec:
    if SUBMISSION_FILE not in bundle.files:
        raise SubmissionError(f"{SUBMISSION_FILE} is missing. `cprbench pack` writes it.")
    return parse(SubmissionSpec, parse_toml(bundle.read(SUBMISSION_FILE), SUBMISSION_FILE), SUBMISSION_FILE)


class Tasks:
    """The tasks of this installation with the examples of their own sources, each read once."""

    def __init__(self, data: Path | None, *, offline: bool) -> None:
        self._data, self._offline = data, offline
        self._known: dict[str, tuple[TaskSpec | None, Dataset | str]] = {}

    @cached_property
    def identity(self) -> str:
        """A hash of the task, suite and model files, on which every entry depends."""
        folder = tasks_folder()
        files = sorted([*folder.glob("*.toml"), *folder.glob("suites/*.toml")])
        return sha256_of([[path.name, path.read_text(encoding="utf-8")] for path in files])

    def of(self, name: str, version: int) -> tuple[TaskSpec | None, Dataset | str]:
        """Return (task, its examples or why they are not here); no task where this version is not known."""
        key = f"{name} {version}"
        if key not in self._known:
            self._known[key] = self._load(name, version)
        return self._known[key]

    def _load(self, name: str, version: int) -> tuple[TaskSpec | None, Dataset | str]:
        try:
            task = load_task(name) if "/" not in name and not name.endswith(".toml") else None
        except (SpecError, OSError):  # OSError: no file has so long a name
            task = None
        if task is None or task.version != version:
            return None, "the task is not known here"
        try:
            return task, load_dataset(task, data=self._data, offline=self._offline)
        except CprbenchError as error:
            return task, str(error)


_Kept = OrderedDict[str, tuple[Rows, int]]


class _Files(Mapping[str, Rows]):
    """The .jsonl files of a run, parsed when they are asked for; the rows of the last ones are kept."""

    def __init__(self, bundle: Bundle, folder: str, names: Iterable[str], kept: _Kept) -> None:
        self._bundle, self._folder, self._names, self._kept = bundle, folder, sorted(names), kept

    def __getitem__(self, name: str) -> Rows:
        if name not in self._names:
            raise KeyError(name)
        path = f"{self._folder}/{name}"
        if path not in self._kept:
            content = self._bundle.read(path)
            self._kept[path] = parse_jsonl(content, path), weight(content)
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(path)
        return self._kept[path][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _dossiers(bundle: Bundle, spec: SubmissionSpec, tasks: Tasks) -> dict[str, Dossier]:
    """Return the runs by id. Raises SubmissionError or SpecError for the first that cannot be read."""
    by_run: dict[str, dict[str, int]] = {}
    for name, size in bundle.files.items():
        parts = name.split("/", 2)
        if parts[0] == RUNS_FOLDER and len(parts) == 3:
            by_run.setdefault(parts[1], {})[parts[2]] = size
    if not by_run:
        raise SubmissionError(f"{RUNS_FOLDER}/ holds no run. `cprbench pack` copies them there.")
    kept: _Kept = OrderedDict()
    taken = 0
    siblings: dict[str, Dossier] = {}
    mates: dict[str, list[Dossier]] = {}
    for run_id, names in sorted(by_run.items()):
        folder = f"{RUNS_FOLDER}/{run_id}"
        data, size = _record(bundle, folder, names)
        taken += size
        if taken > _MOST_RECORDS:
            raise SubmissionError(f"{RUNS_FOLDER}/: records of over {_MOST_RECORDS:,} bytes. Split the submission.")
        record = parse(RunRecord, data, f"{folder}/{RECORD}")
        task, dataset = tasks.of(record.spec.task.name, record.spec.task.version)
        files = _Files(bundle, folder, [name for name in names if name.endswith(".jsonl")], kept)
        for name in files:
            _ = files[name]  # what cannot be parsed makes the submission invalid, whether a rule asks for it or not
        alike = mates.setdefault(_block_of(record), [])
        run = Dossier(run_id, record, data, files, task, dataset, siblings, alike, spec.division)
        siblings[run_id] = run
        alike.append(run)
    return siblings


def _block_of(record: RunRecord) -> str:
    """Return a hash of what runs share that start from the same model and are asked the same."""
    spec = record.spec
    if not isinstance(spec, RunSpec):
        return record.run_id
    recipe = spec.training.model_dump(exclude={"learning_rate"})
    place = [spec.seed, record.environment.hardware_class, record.role == "search"]
    return sha256_of([spec.task.model_dump(), spec.model.weights_sha256, recipe, *place])


def _record(bundle: Bundle, folder: str, names: Mapping[str, int]) -> tuple[dict[str, Any], int]:
    """Return record.json and what it takes of memory. Raises SubmissionError for a run that is not whole."""
    for name in (MANIFEST, RECORD):
        if name not in names:
            raise SubmissionError(f"{folder}/{name} is missing: a run is what `cprbench run` wrote, whole.")
    manifest = parse_json(bundle.read(f"{folder}/{MANIFEST}"), f"{folder}/{MANIFEST}")
    listed = manifest.get("files") if isinstance(manifest, dict) and set(manifest) == {"files"} else None
    if not isinstance(listed, dict) or set(listed) != set(names) - {MANIFEST}:
        raise SubmissionError(f"{folder}/{MANIFEST}: it lists other files than there are. {_MANIFEST.cure}.")
    for name, expected in sorted(listed.items()):
        actual = hashlib.sha256(bundle.read(f"{folder}/{name}")).hexdigest()
        if actual != expected:
            raise SubmissionError(f"{folder}/{name}: sha256 is {actual}, its manifest says {expected!r:.80}. Altered.")
    content = bundle.read(f"{folder}/{RECORD}")
    data = parse_json(content, f"{folder}/{RECORD}")
    if not isinstance(data, dict):
        raise SubmissionError(f"{folder}/{RECORD}: it holds no record. A run is what `cprbench run` wrote.")
    return data, weight(content)
