"""Records on disk: whole or not at all, never changed, and damage is named."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cprbench.errors import StoreError
from cprbench.runs.store import HISTORY, MANIFEST, PREDICTIONS, RECORD, Run, Store, load_run, load_runs
from cprbench.spec import RunRecord
from tests.records_factory import make_record


@pytest.fixture
def shelf(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.open_for_writing()
    return store


def commit(shelf: Store, record: RunRecord, **files: str) -> Path:
    """Store a record with further files, named by their stem."""
    attempt = shelf.begin(record.run_id)
    for stem, text in files.items():
        (attempt / f"{stem}.jsonl").write_text(text, encoding="utf-8")
    return shelf.commit(attempt, record)


def write_run(folder: Path, record: str, files: dict[str, str] | None = None) -> Path:
    """Write a run directory by hand, as someone who wants no good might: any text, with a manifest that fits."""
    folder.mkdir()
    (folder / RECORD).write_text(record, encoding="utf-8")
    digest = hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    listed = {RECORD: digest} if files is None else files
    (folder / MANIFEST).write_text(json.dumps({"files": listed}), encoding="utf-8")
    return folder


def text_of(record: RunRecord, **changes: Any) -> str:
    return json.dumps(record.model_dump(by_alias=True, mode="json") | changes)


# --- whole or not at all ----------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_stored(shelf: Store) -> None:
    record = make_record(arm="partial k=0.15", notes={"words": "naïve \u2028 ☃", "norms": {"attn.0": 0.1}})
    folder = commit(shelf, record, predictions='{"id": "é", "scores": {}}\n')
    found = load_run(folder)
    assert found == Run(record, shelf.root / record.run_id)
    assert found.lines(PREDICTIONS) == [{"id": "é", "scores": {}}]
    assert found.lines(HISTORY) == []
    assert [run.record for run in load_runs(shelf.root).runs] == [record]
    assert [run.record for run in load_runs(folder).runs] == [record]


def test_the_manifest_holds_the_hash_of_every_other_file(shelf: Store) -> None:
    record = make_record()
    attempt = shelf.begin(record.run_id)
    (attempt / "delta").mkdir()
    (attempt / "delta" / "weights.bin").write_bytes(b"weights")
    folder = shelf.commit(attempt, record)
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    assert listed == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert set(listed) == {RECORD, "delta/weights.bin"}


def test_a_finished_run_leaves_nothing_of_its_attempt(shelf: Store) -> None:
    commit(shelf, make_record())
    assert not list((shelf.root / ".work").iterdir())


def test_an_attempt_starts_empty(shelf: Store) -> None:
    attempt = shelf.begin("a" * 16)
    (attempt / HISTORY).write_text("what a killed process left", encoding="utf-8")
    assert not list(shelf.begin("a" * 16).iterdir())


def test_an_attempt_that_was_never_finished_is_no_run(shelf: Store) -> None:
    record = make_record()
    (shelf.begin(record.run_id) / RECORD).write_text(text_of(record), encoding="utf-8")
    found = load_runs(shelf.root)
    assert (found.runs, found.damaged) == ([], {})
    assert shelf.latest(record.run_id) is None


def test_a_run_is_never_written_over(shelf: Store) -> None:
    record = make_record()
    folder = commit(shelf, record)
    before = (folder / RECORD).read_bytes()
    attempt = shelf.begin(record.run_id)
    with pytest.raises(StoreError):
        shelf.commit(attempt, record.model_copy(update={"block": 5}))
    assert (folder / RECORD).read_bytes() == before


def test_what_is_no_number_is_never_written(shelf: Store) -> None:
    record = make_record().model_copy(update={"k_reached": math.nan})
    try:
        folder = commit(shelf, record)
    except (StoreError, ValueError):
        return
    assert "NaN" not in (folder / RECORD).read_text(encoding="utf-8")


# --- ids --------------------------------------------------------------------------------------------


def test_retries_count_on_from_the_id_of_the_first_run(shelf: Store) -> None:
    identity = "a" * 16
    assert shelf.latest(identity) is None
    for expected in (identity, f"{identity}-2", f"{identity}-3"):
        assert shelf.next_id(identity) == expected
        commit(shelf, make_record(run_id=expected, status="failed"))
        latest = shelf.latest(identity)
        assert latest is not None
        assert latest.record.run_id == expected
    assert len(load_runs(shelf.root).runs) == 3
    assert shelf.next_id("b" * 16) == "b" * 16


def test_a_damaged_directory_does_not_stand_in_the_way_of_a_run(shelf: Store) -> None:
    record = make_record()
    folder = commit(shelf, record)
    (folder / MANIFEST).unlink()
    again = record.model_copy(update={"run_id": shelf.next_id(record.run_id)})
    commit(shelf, again)
    assert again in [run.record for run in load_runs(shelf.root).runs]


# --- damage -----------------------------------------------------------------------------------------


def test_an_altered_file_is_named(shelf: Store) -> None:
    folder = commit(shelf, make_record(), history='{"step": 1}\n')
    with (folder / HISTORY).open("a", encoding="utf-8") as stream:
        stream.write('{"step": 2}\n')
    with pytest.raises(StoreError, match=rf"{folder}/{HISTORY}: sha256 is .*: altered"):
        load_run(folder)
    shutil.rmtree(folder)
    folder = commit(shelf, make_record())
    path = folder / RECORD
    path.write_text(path.read_text(encoding="utf-8").replace("0.8", "0.9"), encoding="utf-8")
    with pytest.raises(StoreError, match=rf"{path}: sha256 is .*: altered"):
        load_run(folder)


def test_an_absent_file_is_named(shelf: Store) -> None:
    folder = commit(shelf, make_record(), predictions="{}\n")
    (folder / PREDICTIONS).unlink()
    with pytest.raises(StoreError, match=rf"not a readable run .*{PREDICTIONS}"):
        load_run(folder)


def test_a_directory_without_a_manifest_is_no_run(shelf: Store) -> None:
    record = make_record()
    folder = commit(shelf, record)
    (folder / MANIFEST).unlink()
    assert shelf.latest(record.run_id) is None
    with pytest.raises(StoreError, match=str(folder)):
        load_run(folder)


def test_damaged_directories_are_named_and_the_rest_is_kept(shelf: Store) -> None:
    records = [make_record(block=block) for block in range(4)]
    folders = [commit(shelf, record) for record in records]
    (folders[0] / MANIFEST).unlink()
    (folders[1] / RECORD).unlink()
    (folders[2] / MANIFEST).write_text('{"files": ', encoding="utf-8")
    (shelf.root / "notes").mkdir()  # not named like a run, so nobody's loss
    (shelf.root / "report.md").write_text("# a report", encoding="utf-8")
    found = load_runs(shelf.root)
    assert [run.record for run in found.runs] == [records[3]]
    assert sorted(found.damaged) == sorted(folder.name for folder in folders[:3])
    assert "never finished" in found.damaged[folders[0].name]
    assert RECORD in found.damaged[folders[1].name]


def test_runs_come_in_the_order_of_their_ids(shelf: Store) -> None:
    for block in (3, 1, 2, 0):
        commit(shelf, make_record(block=block))
    identities = [run.record.run_id for run in load_runs(shelf.root).runs]
    assert identities == sorted(identities)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere: no such folder of runs\. `cprbench run` writes one"):
        load_runs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[1]", b"null", b'{"files": "abc"}', b'{"file": {}}', b'{"files": {"\\u0000": "a"}}', b"\xff\xfe"],
)
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, manifest: bytes) -> None:
    folder = write_run(tmp_path / ("a" * 16), text_of(make_record()))
    (folder / MANIFEST).write_bytes(manifest)
    assert list(load_runs(tmp_path).damaged) == ["a" * 16]


RECORD_TEXT = text_of(make_record())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(RECORD_TEXT[: len(RECORD_TEXT) // 2], id="torn"),
        pytest.param("[]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="no field"),
        pytest.param(text_of(make_record(), schema="cprbench.record/999"), id="schema of the future"),
        pytest.param(text_of(make_record(), extra="field"), id="unknown field"),
        pytest.param(text_of(make_record(), k_reached=math.nan), id="NaN"),
        pytest.param(text_of(make_record(), k_reached=math.inf), id="infinity"),
        pytest.param(text_of(make_record(), seconds={"train": -math.inf}), id="minus infinity"),
        pytest.param(text_of(make_record(), block=-1), id="negative block"),
        pytest.param(text_of(make_record(), status="excellent"), id="unknown status"),
        pytest.param('{"a": ' + "1" * 5000 + "}", id="a number of 5000 digits"),
    ],
)
def test_a_torn_or_hostile_record_is_damage_and_the_rest_is_kept(shelf: Store, text: str) -> None:
    good = make_record()
    commit(shelf, good)
    folder = write_run(shelf.root / ("f" * 16), text)
    with pytest.raises(StoreError, match=str(folder)):
        load_run(folder)
    found = load_runs(shelf.root)
    assert [run.record for run in found.runs] == [good]
    assert list(found.damaged) == [folder.name]


def test_a_record_of_a_hundred_thousand_brackets_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path / ("f" * 16), "[" * 100_000)
    assert list(load_runs(tmp_path).damaged) == ["f" * 16]


def test_a_record_that_its_manifest_does_not_list_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path / ("f" * 16), text_of(make_record()), files={})
    assert list(load_runs(tmp_path).damaged) == ["f" * 16]


def test_a_record_in_the_directory_of_another_id_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path / ("f" * 16), text_of(make_record(run_id="e" * 16)))
    assert list(load_runs(tmp_path).damaged) == ["f" * 16]


def test_a_text_that_has_no_bytes_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path / ("f" * 16), text_of(make_record(), run_id="f" * 16, arm="\ud800"))
    assert list(load_runs(tmp_path).damaged) == ["f" * 16]


def test_a_line_of_predictions_ends_at_a_newline_and_nowhere_else(shelf: Store) -> None:
    row = {"id": "one\u2028two", "prediction": "a\u0085b"}
    folder = commit(shelf, make_record(), predictions=json.dumps(row, ensure_ascii=False) + "\n")
    assert load_run(folder).lines(PREDICTIONS) == [row]


# --- folders that cannot be written -----------------------------------------------------------------


def test_a_folder_below_a_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(StoreError, match=r"cannot write \(Not a directory\)\. .*--out FOLDER"):
        Store(tmp_path / "file" / "runs").open_for_writing()


def test_trying_a_folder_leaves_nothing_in_it(shelf: Store) -> None:
    assert [path for path in shelf.root.rglob("*") if path.is_file()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB; skips where that takes rights that the tests do not have."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can only be mounted by root, with mount(8)")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no small file system could be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Write until the disk is full, and return the file that did it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(b"x" * 1024)
            except OSError:
                return path


def test_a_full_disk_is_named_and_leaves_finished_runs_and_no_half_one(small_disk: Path) -> None:
    shelf = Store(small_disk / "runs")
    shelf.open_for_writing()
    first, second = make_record(block=0), make_record(block=1)
    commit(shelf, first)
    attempt = shelf.begin(second.run_id)
    filler = fill_up(small_disk)
    with pytest.raises(StoreError, match=r"No space left on device\)\. Free some space there, or pass --out"):
        shelf.commit(attempt, second)
    found = load_runs(shelf.root)
    assert [run.record for run in found.runs] == [first]
    assert found.damaged == {}
    with pytest.raises(StoreError, match="No space left"):
        Store(small_disk / "others").open_for_writing()
    filler.unlink()
    shelf.commit(attempt, second)
    assert len(load_runs(shelf.root).runs) == 2


def test_a_run_that_a_living_process_has_claimed_is_left_to_it(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from cprbench.runs.store import Store\n"
    code += "print(Store(Path(sys.argv[1])).begin('a' * 16), flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    shelf = Store(tmp_path)
    with pytest.raises(StoreError, match=rf"process {other.pid} is running this very run"):
        shelf.begin("a" * 16)
    assert shelf.free_id("a" * 16) == "a" * 16 + "-2"
    assert theirs.is_dir()
    other.kill()
    other.communicate()
    mine = shelf.begin("a" * 16)  # a dead process has no claim, and what it left stays beside
    assert (mine.name, shelf.abandoned(mine)) == ("attempt-2", [theirs])
