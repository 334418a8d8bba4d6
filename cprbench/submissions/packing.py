"""pack: finished runs as a submission, a folder or a .zip. Raw files are copied as they are; weights stay behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cprbench.errors import StoreError, SubmissionError
from cprbench.judge.submission import RUNS_FOLDER, SUBMISSION_FILE, SubmissionSpec
from cprbench.runs.store import HISTORY, MANIFEST, PREDICTIONS, RECORD, SAMPLES, Run, load_runs
from cprbench.schema import parse
from cprbench.submissions.bundle import open_bundle

#: What a run is checked by. Kept weights and logs are no part of a submission.
RAW = (RECORD, HISTORY, SAMPLES, PREDICTIONS, f"base_{PREDICTIONS}", "work.jsonl")
#: Every member of a zip has this time, so that the same runs make the same bytes.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def pack(
    runs: Path,
    out: Path,
    *,
    name: str,
    authors: Sequence[str],
    license_: str = "CC-BY-4.0",
    division: str = "closed",
    links: Sequence[str] = (),
    description: str = "",
    files: Sequence[Path] = (),
) -> list[str]:
    """Write a submission with all runs of a folder to `out`, a new folder or a .zip; return the ids of its runs.

    `files`: blueprints that runs were guided by, where they do not lie beside the runs.
    Raises SpecError for a name or author that cannot be, StoreError for damaged runs and where `out` holds files, and
    SubmissionError where the result would not be read as a submission.
    """
    said: dict[str, object] = {"name": name, "authors": list(authors), "license": license_, "division": division}
    said |= {"links": list(links), "description": description}
    parse(SubmissionSpec, {"schema": "cprbench.submission/1", **said}, "submission")
    found = load_runs(runs)
    if found.damaged:
        told = "\n".join(f"  {why}" for why in found.damaged.values())
        raise StoreError(f"{runs}: {len(found.damaged)} damaged run(s). Every block that was started counts:\n{told}")
    if not found.runs:
        raise StoreError(f"{runs}: there are no runs to pack.")
    folder = out.with_name(f"{out.name}.part") if out.suffix == ".zip" else out
    if out.is_file() or (folder.exists() and any(folder.iterdir())):
        raise StoreError(f"{out} is there already. Name a new folder or .zip with --out.")
    try:
        for run in found.runs:
            _copy(run, folder / RUNS_FOLDER / run.folder.name)
        for path in _blueprints(found.runs, [*files, *sorted(runs.glob("*.json"))]):
            shutil.copyfile(path, folder / RUNS_FOLDER / path.name)
        (folder / SUBMISSION_FILE).write_text(_toml(said), encoding="utf-8")
        open_bundle(folder)
        if out.suffix == ".zip":
            _zip(folder, out)
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"{out}: cannot write ({error.strerror or error}). Pass another --out.") from None
    except (StoreError, SubmissionError):
        shutil.rmtree(folder)
        raise
    return [run.folder.name for run in found.runs]


def _blueprints(runs: Sequence[Run], files: Sequence[Path]) -> list[Path]:
    """Return the files that runs were guided by. Raises StoreError for one that is not among `files`."""
    by_hash = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in files}
    wanted = {run.record.blueprint: run for run in runs if run.record.blueprint is not None}
    for sha256, run in sorted(wanted.items()):
        if sha256 not in by_hash:
            name = run.record.spec.method.settings.get("blueprint")
            raise StoreError(
                f"{run.folder}: it was guided by {name!r} (sha256 {sha256}), which is not beside the runs. Pass it "
                "with --file, so that others can run it again."
            )
    return [by_hash[sha256] for sha256 in sorted(wanted)]


def _copy(run: Run, target: Path) -> None:
    """Copy what a run is checked by, with a manifest of just that."""
    blueprints = sorted(run.folder.glob("blueprints/*.json"))
    kept = [path for path in (*(run.folder / name for name in RAW), *blueprints) if path.exists()]
    hashes = {}
    for path in kept:
        name = path.relative_to(run.folder).as_posix()
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
        hashes[name] = hashlib.sha256((target / name).read_bytes()).hexdigest()
    (target / MANIFEST).write_text(
        json.dumps({"files": dict(sorted(hashes.items()))}, indent=1) + "\n", encoding="utf-8"
    )


def _toml(said: dict[str, object]) -> str:
    """Return submission.toml. A string of JSON is one of TOML."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in said.items() if value]
    return "\n".join(['schema = "cprbench.submission/1"', *lines, ""])


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _NO_TIME)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(member, path.read_bytes())
