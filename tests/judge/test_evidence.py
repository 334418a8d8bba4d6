"""What a check finds in a folder: runs with their files, blueprints and documents beside them, and what is damaged."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from cprbench.errors import StoreError
from cprbench.judge.cpr import compare
from cprbench.judge.evidence import Evidence, gather
from cprbench.runs.store import Run
from tests.blueprint.example import full_data, paper_example, save
from tests.conftest import ROOT
from tests.records_factory import answers, make_predictions, make_record, store_run


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with zipfile.ZipFile(ROOT / "tests/records/quickstart.zip") as stored:
        stored.extractall(folder)
    return folder


def test_the_predictions_of_real_runs_give_their_intervals_the_error_of_the_items(quickstart: Path) -> None:
    found = gather(quickstart)
    assert len(found.records) == 8 and not found.damaged
    record = found.records[0]
    assert len(found.predictions(record, "final")) == len(found.predictions(record, "base")) == record.psi.items
    assert found.predictions(record, "final") != found.predictions(record, "base")
    (group,) = compare(found.records, found.predictions)
    assert [arm.gain.no_items for arm in group.arms] == [None] * 4


def test_one_run_is_a_folder_of_runs_and_its_own_files_are_no_documents(quickstart: Path) -> None:
    one = sorted(quickstart.iterdir())[0]
    found = gather(one)
    assert [record.run_id for record in found.records] == [one.name]
    assert not found.damaged and not found.blueprints
    with pytest.raises(StoreError, match="no such folder of runs"):
        gather(quickstart / "none")


def test_blueprints_and_documents_beside_the_runs_are_found_by_what_they_are(tmp_path: Path) -> None:
    store_run(tmp_path, make_record())
    save(tmp_path, full_data(), "ours.json")
    save(tmp_path, paper_example(), "paper.json")
    save(tmp_path, {"schema": "cprbench.audit/1", "spearman": 0.5}, "audit.json")
    save(tmp_path, {"schema": "cprbench.cross/1"}, "cross.json")
    (tmp_path / "deeper").mkdir()
    save(tmp_path / "deeper", full_data(), "not-looked-at.json")
    found = gather(tmp_path)
    assert len(found.records) == 1
    assert set(found.blueprints) == {"ours.json", "paper.json"}
    assert set(found.documents) == {"audit.json", "cross.json"}
    assert not found.damaged


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b'{"layers": "all"}',
        b'{"schema": "cprbench.audit/2"}',
        b'{"schema": "cprbench.blueprint/1", "layers": "all"}',
        b"[" * 100_000,
        b"1" * 5_000,
    ],
    ids=["empty", "text", "bytes", "layers", "schema", "blueprint", "nested", "digits"],
)
def test_a_file_that_cannot_be_read_or_is_not_what_it_says_is_named_as_damaged_and_stops_nothing(
    tmp_path: Path, text: bytes
) -> None:
    store_run(tmp_path, make_record())
    (tmp_path / "strange.json").write_bytes(text)
    save(tmp_path, full_data(), "ours.json")
    found = gather(tmp_path)
    assert set(found.damaged) == {"strange.json"}
    assert str(tmp_path / "strange.json") in found.damaged["strange.json"]
    assert len(found.records) == len(found.blueprints) == 1


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "3", '{"schema": ["cprbench.audit/1"]}', '{"model_type": "bert"}'])
def test_a_json_file_that_does_not_say_that_it_is_ours_is_nobody_s_business(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    found = gather(tmp_path)
    assert not found.damaged and not found.blueprints and not found.documents


def test_a_file_too_large_to_be_ours_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"schema": "cprbench.audit/1", "of": "x" * 100}, "large.json")
    assert "large.json" in gather(tmp_path).documents
    monkeypatch.setattr("cprbench.judge.evidence._MOST_BYTES", 100)
    assert "larger than 100 bytes" in gather(tmp_path).damaged["large.json"]


@pytest.mark.parametrize("cost", ["Infinity", "NaN", "-Infinity", "1e999", "1e300", "-1.0"])
def test_a_cost_that_is_negative_infinite_or_would_sum_to_infinity_is_refused_at_the_door(
    tmp_path: Path, cost: str
) -> None:
    record = make_record(gamma={"energy_kwh": 12345.5})
    folder = store_run(tmp_path, record)
    text = (folder / "record.json").read_text().replace("12345.5", cost)
    (folder / "record.json").write_text(text)
    (folder / "manifest.json").write_text(json.dumps({"files": {"record.json": sha256(text.encode()).hexdigest()}}))
    found = gather(tmp_path)
    assert not found.records
    assert "energy_kwh" in found.damaged[record.run_id] or "JSON" in found.damaged[record.run_id]


def test_a_count_or_a_score_that_no_float_holds_is_refused_at_the_door() -> None:
    for wrong in ({"gamma": {"flops": 10**400}}, {"peak_memory_bytes": 10**400}, {"final": 1e308}, {"final": -1e308}):
        with pytest.raises(ValidationError, match="less than or equal|greater than or equal"):
            make_record(**wrong)
    with pytest.raises(ValidationError, match="time is finite"):
        make_record(seconds={"billed": 1e300})


def test_lines_that_cannot_be_read_are_no_lines(tmp_path: Path) -> None:
    whole = "".join(json.dumps(row) + "\n" for row in make_predictions(50))
    nested = "[" * 100_000
    for block, (text, rows) in enumerate(
        [(whole, 100), ("", 0), ("{", 0), (whole + "3\n", 0), ("[]\n", 0), (nested, 0), ("NaN", 0), (whole[:-5], 0)]
    ):
        record = make_record(block=block)
        store_run(tmp_path, record, predictions=text)
        assert len(gather(tmp_path).predictions(record, "final")) == rows, text[:20]
    assert gather(tmp_path).predictions(make_record(block=99), "final") == []
    assert Evidence().records == []


def test_a_folder_in_place_of_a_file_and_bytes_in_place_of_text_are_no_lines(tmp_path: Path) -> None:
    record = make_record()
    found = Run(record, store_run(tmp_path, record, predictions="", base_predictions=""))
    (found.folder / "predictions.jsonl").unlink()
    (found.folder / "predictions.jsonl").mkdir()
    (found.folder / "base_predictions.jsonl").write_bytes(b"\xff\xfe\x00")
    for when in ("final", "base"):
        assert Evidence({record.run_id: found}).predictions(record, when) == []


def test_a_file_that_the_manifest_does_not_list_is_none_of_the_run_s(tmp_path: Path) -> None:
    record = make_record()
    folder = store_run(tmp_path, record)
    (folder / "predictions.jsonl").write_text(answers(record))
    found = gather(tmp_path)
    assert found.predictions(record, "final") == [] and len(found.records) == 1
