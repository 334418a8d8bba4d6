"""Records in a notebook: a frame with gaps where nothing was measured, and a table that runs nothing."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import cprbench
from cprbench.errors import CprbenchError, StoreError
from cprbench.integrations.notebook import Runs, load_runs
from tests.records_factory import make_blocks, make_record, store_run


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    for record in make_blocks({"head": [0.6, 0.6], "full": [0.8, 0.8]}):
        store_run(tmp_path, record)
    return load_runs(tmp_path)


def test_the_public_name_gives_runs_with_records_and_damage(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / ("f" * 16)).mkdir()
    found = cprbench.load_runs(tmp_path)
    assert isinstance(found, Runs) and [run.record for run in found.runs] == found.records == runs.records
    assert list(found.damaged) == ["f" * 16]
    with pytest.raises(StoreError, match="no such folder"):
        cprbench.load_runs(tmp_path / "nowhere")


def test_a_frame_has_a_row_per_run_with_numbers_and_gaps(runs: Runs) -> None:
    frame = runs.to_frame()
    assert list(frame.run_id) == [record.run_id for record in runs.records]
    assert frame.groupby("arm").psi_final.mean().to_dict() == pytest.approx({"head": 0.6, "full": 0.8})
    assert frame.gamma_energy_kwh.isna().all() and frame.gamma_flops.sum() == 4000


def test_a_column_of_some_gaps_stays_a_column_of_whole_numbers(tmp_path: Path) -> None:
    for block, flops in enumerate((2**60 + 1, None)):
        store_run(tmp_path, make_record(block=block, gamma={"flops": flops}))
    column = load_runs(tmp_path).to_frame().gamma_flops
    assert column.dropna().tolist() == [2**60 + 1] and column.isna().sum() == 1


def test_counts_beyond_64_bits_stay_exact(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(gamma={"flops": 10**25}))
    assert load_runs(tmp_path).to_frame().gamma_flops.tolist() == [10**25]


def test_readings_are_rows_of_their_own(runs: Runs) -> None:
    frame = runs.to_frame(readings=True)
    assert len(frame) == 4 and set(frame.why_missing) == {"no meter here"} and frame.value.isna().all()


def test_without_pandas_the_error_says_what_to_do(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CprbenchError, match="pip install pandas"):
        runs.to_frame()


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_notebook_shows_what_arms_keep_and_cost(runs: Runs) -> None:
    seen = Seen(runs._repr_html_())
    assert seen.words[1:6] == ["arm", "psi", "gain", "kept", "FLOPs"]
    assert seen.words[-5:] == ["full", "0.800", "+0.200", "100 %", "1000"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&amp;"
    store_run(tmp_path, make_record(arm=evil, method="full", hardware_class=evil, spec={"task": evil, "model": evil}))
    seen = Seen(load_runs(tmp_path)._repr_html_())
    assert seen.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert evil in seen.words


def test_damaged_folders_are_named_and_an_empty_one_says_so(tmp_path: Path) -> None:
    (tmp_path / ("f" * 16)).mkdir()
    page = load_runs(tmp_path)._repr_html_()
    assert "There are no runs." in page and "f" * 16 in page
