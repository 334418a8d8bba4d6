"""Many files as one table, without the silent overwriting of appendix A.2's sketch."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cprbench.blueprint.merge import merge, to_csv, to_json
from cprbench.errors import SpecError
from tests.blueprint.example import full_data, paper_example, save


def test_files_of_labs_and_checkpoints_become_one_table(tmp_path: Path) -> None:
    paths = [
        save(tmp_path, full_data(training_checkpoint=1.0), "full.json"),
        save(tmp_path, full_data(training_checkpoint=0.5), "half.json"),
        save(tmp_path, paper_example(), "paper.json"),
    ]
    rows = merge(paths)
    assert len(rows) == 2 * 5 * 2 + 3 * 3
    assert len({row.key for row in rows}) == len(rows)
    assert [row.training_checkpoint for row in rows[:20]] == [0.5] * 10 + [1.0] * 10
    assert merge(paths[::-1]) == rows


def test_a_row_holds_its_domains_norms_and_the_fit_only_where_it_was_made(tmp_path: Path) -> None:
    rows = {row.key: row for row in merge([save(tmp_path, full_data())])}
    general, bio = (rows["acme/tiny", 1.0, "attn.0", tag] for tag in ("general", "bio"))
    assert (general.gradient_norm, general.example_norm, general.alpha) == (0.5, 1.0, 1.5)
    assert (bio.gradient_norm, bio.gradient_norm_low, bio.alpha, bio.gamma_fit) == (0.4, 0.4 * 0.9, None, None)
    assert general.parameters == bio.parameters == 100 and general.file == "blueprint.json"


def test_the_papers_tags_are_rows_without_a_norm(tmp_path: Path) -> None:
    rows = {row.key[2:]: row for row in merge([save(tmp_path, paper_example())])}
    assert rows["attn.0", "general"].gradient_norm == 0.052 and rows["attn.0", "general"].k_star == 0.15
    assert rows["attn.0", "bio"].gradient_norm is None and rows["attn.0", "bio"].domain_tag == 0.79


def test_equal_rows_stand_once_and_conflicting_ones_name_both_files(tmp_path: Path) -> None:
    first, again = save(tmp_path, paper_example(), "a.json"), save(tmp_path, paper_example(), "b.json")
    rows = merge([again, first])
    assert len(rows) == 9 and {row.file for row in rows} == {"a.json"}
    other = paper_example()
    other["layers"][1]["gradient_norm"] = 0.9
    conflicting = save(tmp_path, other, "c.json")
    with pytest.raises(SpecError, match=r"a\.json and .*c\.json differ in gradient_norm for ffn\.0 .*general"):
        merge([conflicting, first])
    foreign = [save(tmp_path, full_data(weights_sha256=weights * 32), f"{weights}.json") for weights in ("a1", "b2")]
    with pytest.raises(SpecError, match="differ in weights_sha256"):
        merge(foreign)


def test_one_bad_file_stops_the_merge(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"bad\.json: is not JSON"):
        (tmp_path / "bad.json").write_text("{")
        merge([save(tmp_path, paper_example()), tmp_path / "bad.json"])


def test_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names: dict[str, Any] = {f"attn.{i}": 1.0 for i in (10, 2, 1)}
    rows = merge([save(tmp_path, full_data(names, sizes=dict.fromkeys(names, 5), domains=("general",)))])
    assert [row.layer for row in rows] == ["attn.1", "attn.2", "attn.10"]


@pytest.mark.parametrize("lead", ["=", "+", "-", "@"])
def test_a_formula_in_a_text_reaches_no_spreadsheet(tmp_path: Path, lead: str) -> None:
    text = to_csv(merge([save(tmp_path, full_data(model_id=f'{lead}HYPERLINK("x")'))]))
    read = list(csv.DictReader(io.StringIO(text)))
    assert {row["model_id"] for row in read} == {f'\'{lead}HYPERLINK("x")'}
    assert {row["training_checkpoint"] for row in read} == {"1.0"} and read[0]["k_star"] == ""


def test_both_forms_hold_the_same_rows(tmp_path: Path) -> None:
    rows = merge([save(tmp_path, full_data())])
    as_json, as_csv = json.loads(to_json(rows)), list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(as_json) == len(as_csv) == len(rows)
    assert all(float(a["gradient_norm"]) == b["gradient_norm"] for a, b in zip(as_csv, as_json, strict=True))
    assert as_json[0]["alpha"] is None or as_json[0]["alpha"] == 1.5
    assert list(as_csv[0]) == ["model_id", "training_checkpoint", "layer", "domain", *list(as_csv[0])[4:]]
    assert "\r" not in to_csv(rows)
