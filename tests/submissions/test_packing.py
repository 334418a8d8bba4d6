"""pack: raw files as they are, weights and logs left behind, and nothing written that validate would refuse."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from cprbench.errors import SpecError, StoreError
from cprbench.submissions.packing import pack
from cprbench.submissions.validation import validate
from tests.conftest import ROOT
from tests.submissions.altering import edit_record, rehash


@pytest.fixture
def runs(tmp_path: Path, tasks: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests/records/methods.zip") as archive:
        archive.extractall(tmp_path / "runs")
    return tmp_path / "runs"


def test_raw_files_are_copied_byte_by_byte_and_weights_and_logs_stay_behind(runs: Path, tmp_path: Path) -> None:
    run = sorted(runs.iterdir())[0]
    (run / "delta.safetensors").write_bytes(b"weights")
    (run / "child.log").write_text("what a child printed")
    rehash(run)
    ids = pack(runs, tmp_path / "packed", name="mine", authors=["Ada", "Grace"], links=["https://example.org/paper"])
    assert ids == sorted(path.name for path in runs.iterdir())
    packed = tmp_path / "packed" / "runs" / run.name
    assert sorted(json.loads((packed / "manifest.json").read_text())["files"]) == sorted(
        path.name for path in packed.iterdir() if path.name != "manifest.json"
    )
    assert not (packed / "delta.safetensors").exists() and not (packed / "child.log").exists()
    assert all((packed / p.name).read_bytes() == (run / p.name).read_bytes() for p in run.glob("*.jsonl"))
    said = validate(tmp_path / "packed").submission
    assert said is not None and (said.authors, said.links) == (["Ada", "Grace"], ["https://example.org/paper"])


def test_a_zip_is_the_same_submission_and_the_same_bytes_every_time(runs: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        pack(runs, tmp_path / name, name="mine", authors=["Ada"])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    pack(runs, tmp_path / "folder", name="mine", authors=["Ada"])
    zipped, plain = validate(tmp_path / "one.zip"), validate(tmp_path / "folder")
    assert (zipped.status, zipped.rows, zipped.digest) == (plain.status, plain.rows, plain.digest)
    assert zipped.rows
    assert not list(tmp_path.glob("*.part"))


def test_damaged_runs_are_named_and_nothing_is_packed(runs: Path, tmp_path: Path) -> None:
    run = sorted(runs.iterdir())[0]
    (run / "history.jsonl").unlink()
    with pytest.raises(StoreError, match=rf"1 damaged run(.|\n)*{run.name}"):
        pack(runs, tmp_path / "packed", name="mine", authors=["Ada"])
    assert not (tmp_path / "packed").exists()


def test_what_is_there_already_is_kept(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        pack(runs, tmp_path / "packed", name="mine", authors=["Ada"])
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no runs to pack"):
        pack(tmp_path / "empty", tmp_path / "other", name="mine", authors=["Ada"])


@pytest.mark.parametrize(
    ("name", "author", "link"),
    [
        ("../up", "Ada", "https://example.org"),
        ("Mine", "Ada", "https://example.org"),
        ("mine", "A\u202eda", "https://example.org"),
        ("mine", " ", "https://example.org"),
        ("mine", "Ada", "javascript:alert(1)"),
        ("mine", "Ada", 'https://example.org/" onclick="x'),
    ],
)
def test_names_authors_and_links_that_a_page_could_not_show_are_refused(
    runs: Path, tmp_path: Path, name: str, author: str, link: str
) -> None:
    with pytest.raises(SpecError):
        pack(runs, tmp_path / "packed", name=name, authors=[author], links=[link])
    assert not (tmp_path / "packed").exists()


def test_a_blueprint_that_guided_a_run_is_packed_with_it_and_other_files_are_not(tmp_path: Path, runs: Path) -> None:
    (runs / "lab.json").write_text('{"layers": []}')
    (runs / "notes.json").write_text("{}")
    pinned = hashlib.sha256((runs / "lab.json").read_bytes()).hexdigest()
    guided = next(p for p in runs.iterdir() if p.is_dir() and '"partial"' in (p / "record.json").read_text())
    edit_record(guided, lambda data: data.update(blueprint=pinned))
    pack(runs, tmp_path / "packed", name="mine", authors=["Ada"])
    assert [path.name for path in (tmp_path / "packed" / "runs").glob("*.json")] == ["lab.json"]
    (runs / "lab.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(StoreError, match="Pass it with --file"):
        pack(runs, tmp_path / "without", name="mine", authors=["Ada"])
    assert not (tmp_path / "without").exists()
    pack(runs, tmp_path / "with", name="mine", authors=["Ada"], files=[tmp_path / "elsewhere.json"])
    assert (tmp_path / "with" / "runs" / "elsewhere.json").exists()
