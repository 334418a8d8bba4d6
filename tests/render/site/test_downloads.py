"""A board as CSV, JSON and LaTeX: exact, the same in all, and inert wherever it is opened."""

from __future__ import annotations

import csv
import io
import json
import re

from cprbench.render.site import boards_of
from cprbench.render.site.downloads import MOST_PRINTED, csv_file, json_file, tex_file
from cprbench.spec import RESOURCES
from tests.hostile.payloads import PAYLOADS, READABLE
from tests.render.site.entries import make_entry, make_row, many, num
from tests.render.site.test_pages import hostile


def test_csv_and_json_hold_the_same_exact_numbers() -> None:
    third = num(1 / 3, 1e-17)
    (board,) = boards_of(
        [make_entry(rows=[make_row(0.1 + 0.2, 5_912_345_678_901.0, gain=third), make_row(None, None)])]
    )
    (first, last), whole = (
        csv.DictReader(io.StringIO(csv_file(board.placed).decode())),
        json.loads(json_file(board.placed)),
    )
    assert [row["position"] for row in whole] == [1, None]
    assert float(first["psi"]) == whole[0]["psi"] == 0.1 + 0.2
    assert float(first["gamma_flops"]) == whole[0]["gamma_flops"] == 5_912_345_678_901.0
    assert float(first["gain_low"]) == whole[0]["gain_low"] == third.low
    assert last["psi"] == "" and whole[1]["psi"] is None and whole[1]["gamma_energy_kwh"] is None
    assert json.loads(last["why"])["gamma_energy_kwh"] == "no energy counter on this machine"
    assert list(first) == list(whole[0]) == list(whole[1])
    assert {f"gamma_{name}" for name in RESOURCES} <= set(first)


def test_the_rows_are_in_the_order_of_the_board() -> None:
    (board,) = boards_of(many(40))
    assert [row["row"] for row in json.loads(json_file(board.placed))] == [of.listed.row.id for of in board.placed]


def test_no_cell_of_text_begins_a_formula() -> None:
    for board in boards_of(hostile(PAYLOADS)):
        for row in csv.DictReader(io.StringIO(csv_file(board.placed).decode())):
            for name, cell in row.items():
                if not re.fullmatch(r"-?[0-9.]+(e[+-]?[0-9]+)?", cell):
                    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")), (name, cell)
        json.loads(json_file(board.placed), parse_constant=lambda word: 1 / 0)


def test_latex_prints_the_text_of_strangers_and_runs_nothing_of_it() -> None:
    boards = boards_of(hostile(READABLE))
    text = "".join(tex_file(board.placed, board.title, ", ".join(board.metrics)).decode() for board in boards)
    body = text[text.index("\\toprule") :]
    for command in ("\\input", "\\immediate", "\\def\\x", "\\write", "\\end{document}"):
        assert command not in body
    assert "\\textbackslash{}input" in body


def test_latex_has_the_first_rows_of_a_long_board_and_says_so() -> None:
    (board,) = boards_of(many(MOST_PRINTED + 40))
    text = tex_file(board.placed, board.title, "accuracy").decode()
    assert f"The first {MOST_PRINTED} of {board.ranked} rows that rank." in text and board.ranked > MOST_PRINTED
    (few,) = boards_of(many(3))
    assert "The first" not in tex_file(few.placed, few.title, "accuracy").decode()


def test_latex_prints_what_ranks_with_its_suite_and_machine_under_one_title() -> None:
    on, off = make_row(0.7, arm="lora r=4"), make_row(0.9, arm="bitfit", unranked=["a smoke test"])
    (board,) = boards_of([make_entry(rows=[on, off], spec={"division": "open"})])
    text = tex_file(board.placed, board.title, "accuracy").decode()
    assert "lora" in text and "bitfit" not in text
    assert "core v1" in text and "GenuineIntel" in text and "open division" in text
    assert text.count("movie-snippets v1") == 1
    (none,) = boards_of([make_entry(rows=[off])])
    text = tex_file(none.placed, none.title, "accuracy").decode()
    assert "No row of this board ranks" in text and "bitfit" not in text
