"""A folder of submissions: validated once, stored by content, and never dropped in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cprbench.errors import StoreError
from cprbench.judge.submission import Entry
from cprbench.submissions import shelf
from cprbench.submissions.packing import pack
from tests.submissions.altering import edit_record, run_of


@pytest.fixture
def board(tmp_path: Path, submission: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of submissions with one of six runs in it, and a cache that holds the tasks' packages alone."""
    from cprbench.adapt.packages import cache_folder

    cache = tmp_path / "cache"
    shutil.copytree(cache_folder() / "packages", cache / "packages")
    monkeypatch.setenv("CPRBENCH_CACHE", str(cache))
    folder = tmp_path / "submissions"
    folder.mkdir()
    shutil.move(submission, folder / "board")
    return folder


def validated(folder: Path, **options: bool) -> tuple[list[Entry], list[str]]:
    """Return the entries and the names of those that were validated now."""
    now: list[str] = []
    found = shelf.entries(folder, observe=lambda entry, fresh: now.append(entry.folder) if fresh else None, **options)
    return found, now


def test_what_did_not_change_is_not_validated_again(board: Path) -> None:
    first, now = validated(board)
    assert ([entry.status for entry in first], now) == (["consistent"], ["board"])
    assert validated(board) == (first, [])
    edit_record(run_of(board / "board", "lora", 1), lambda data: data.update(block=5))
    second, now = validated(board)
    assert ([entry.status for entry in second], now) == (["contradicted"], ["board"])
    assert validated(board) == (second, [])


def test_an_entry_without_its_references_is_tried_again(board: Path, tmp_path: Path) -> None:
    packages = tmp_path / "cache" / "packages"
    packages.rename(tmp_path / "away")
    assert [entry.status for entry in validated(board, offline=True)[0]] == ["unverified"]
    (tmp_path / "away").rename(packages)
    found, now = validated(board, offline=True)
    assert ([entry.status for entry in found], now) == (["consistent"], ["board"])


def test_a_stored_entry_that_is_torn_is_made_again(board: Path, tmp_path: Path) -> None:
    first, _ = validated(board)
    (stored,) = (tmp_path / "cache" / "entries").glob("*.json")
    stored.write_text(stored.read_text()[:100])
    assert validated(board) == (first, ["board"])


def test_a_task_that_changes_makes_entries_anew(board: Path, tasks: Path) -> None:
    validated(board)
    file = tasks / "movie-snippets.toml"
    text = file.read_text()
    file.write_text(f"{text}\n# a comment\n")
    try:
        assert validated(board)[1] == ["board"]
    finally:
        file.write_text(text)


def test_a_submission_under_another_name_than_its_own_is_refused(board: Path) -> None:
    shutil.copytree(board / "board", board / "another")
    found = {entry.folder: entry for entry in validated(board)[0]}
    assert (found["another"].status, found["another"].rows) == ("invalid", [])
    assert [f.code for f in found["another"].findings] == ["B3"]
    assert found["board"].status == "consistent"


def test_invalid_submissions_are_entries_too_and_other_files_are_none(board: Path) -> None:
    (board / "broken").mkdir()
    (board / "broken" / "evil.pkl").write_bytes(b"\x80")
    (board / "README.md").write_text("how to submit")
    (board / ".hidden").mkdir()
    found = {entry.folder: entry.status for entry in validated(board)[0]}
    assert found == {"board": "consistent", "broken": "invalid"}


def test_a_zip_on_the_board_is_the_same_as_its_folder(
    board: Path, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = board / "board" / "runs"
    pack(runs, tmp_path / "board.zip", name="board", authors=["Ada Lovelace"])
    folder = validated(board)[0]
    shutil.rmtree(board / "board")
    shutil.move(tmp_path / "board.zip", board)
    found, now = validated(board)
    assert ([entry.zipped for entry in (*folder, *found)], now) == ([False, True], [])
    assert [entry.model_copy(update={"zipped": False}) for entry in found] == folder


def test_a_zip_beside_a_folder_of_its_name_is_refused_and_the_folder_stays(board: Path, tmp_path: Path) -> None:
    pack(board / "board" / "runs", board / "board.zip", name="board", authors=["Mallory"])
    found = {entry.folder: (entry.status, bool(entry.rows)) for entry in validated(board)[0]}
    assert found == {"board": ("consistent", True), "board.zip": ("invalid", False)}


def test_one_submission_is_no_folder_of_submissions(board: Path) -> None:
    with pytest.raises(StoreError, match="is one submission"):
        shelf.entries(board / "board")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder of submissions"):
        shelf.entries(tmp_path / "nowhere")
