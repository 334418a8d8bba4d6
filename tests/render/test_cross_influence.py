"""What people see of cross-influence: at 80 columns, and as a page."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from rich.console import Console

from cprbench.judge.cross_influence import CrossInfluence, analyse
from cprbench.render.cross_influence import grid, html, numbers, pairs, show
from cprbench.render.text import plain
from tests.render.test_heatmap import EVIL, Page

SIZES = {"embed": 400, "attn.0": 100, "ffn.0": 200, "attn.1": 100, "ffn.1": 200}
FACTS = [("task", "movie-snippets v1"), ("making them cost", "41.2 s; not measured: kWh")]


def example(ids: list[str] | None = None, table: Any = None, ks: tuple[float, ...] = (0.05, 0.3, 1)) -> CrossInfluence:
    if table is None:
        table = np.outer([9.0, 5.0, 2.0, 4.0, 3.0], np.diff((100 * np.arange(21) / 20) ** 0.6))
    n = table.shape[1]
    names = ids or [f"snippet-{i:05d}" for i in range(n)]
    kept = {q: list(range(int(q * n))) for q in (0.5, 1.0)}
    return analyse(table, names, SIZES, list(range(n)), block_count=4, ks=ks, kept=kept)


def shown(found: CrossInfluence, facts: list[tuple[str, str]] | None = None) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=80, highlight=False, markup=False), found, FACTS if facts is None else facts)
    return stream.getvalue()


def test_the_terminal_shows_everything_in_80_columns() -> None:
    text = shown(example())
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for part in (
        "movie-snippets v1",
        "41.2 s; not measured: kWh",
        "effective rank 1.00 of 5; rank 1 holds 90 % of the squares, rank 1 99 %",
        "embed snippet-00000 23.6 6.48",
        "0.05 none 0.5 none none none",
        "none: k = 0.05 is below the smallest submodule",
        "1 1.000 1 1.000 1.000 1.000",
        "sums absolute values",
        "cost, which is not k x q",
    ):
        assert part in words, part


def test_long_lists_of_singular_values_are_cut() -> None:
    many = analyse(
        np.eye(12),
        [f"x{i}" for i in range(12)],
        {f"attn.{i}": 10 for i in range(12)},
        list(range(12)),
        block_count=1,
        ks=[1],
        kept={1.0: list(range(12))},
    )
    assert dict(numbers(many))["singular values"] == f"{', '.join(['1.00'] * 8)}, … (12 in all)"
    assert "…" not in dict(numbers(example()))["singular values"]


def test_zero_gradients_are_told_as_that() -> None:
    zero = example(table=np.zeros((5, 20)))
    found = dict(numbers(zero))
    assert found["effective rank"] == "every gradient norm is 0"
    assert found["gamma"].startswith("none")
    assert pairs(zero) == []
    assert "every gradient norm is 0" in grid(zero)[1]
    assert "every gradient norm is 0" in shown(zero)
    assert "<p>None: every gradient norm is 0.</p>" in html(zero, FACTS, "t")


def test_the_page_has_a_cell_for_every_submodule_and_block() -> None:
    page = Page(html(example(), FACTS, "Cross-influence: tiny on movie-snippets"))
    heat, whole, largest, predicted, facts = page.tables
    assert [text for text, _ in heat[0]] == ["submodule", "block 1", "block 2", "block 3", "block 4"]
    assert [row[0][0] for row in heat[1:]] == list(SIZES)
    shares = [float(text.replace("<0.1", "0.05")) for row in heat[1:] for text, _ in row[1:]]
    assert 98 < sum(shares) < 102  # percent of the sum of T
    assert [(text, attrs["class"]) for text, attrs in heat[1][1:]] == [
        ("17.0", "s5"),  # 9 of 23, of 0.25^0.6
        ("8.8", "s4"),
        ("7.1", "s4"),
        ("6.2", "s4"),
    ]
    assert [row[0][0] for row in whole[1:]] == ["singular values", "effective rank", "gamma", "delta"]
    assert len(largest) == 11
    assert [text for text, _ in predicted[0]] == ["k", "reached", "q", "eq. 34, T", "eq. 34, T^2", "eq. 35"]
    assert [text for text, _ in predicted[6]] == ["1", "1.000", "1", "1.000", "1.000", "1.000"]
    assert [(name, value) for (name, _), (value, _) in facts[1:]] == FACTS
    assert page.open == []


def test_the_page_says_what_its_numbers_are_not() -> None:
    text = html(example(), FACTS, "t")
    assert "sums absolute values (eq. 32 and 34)" in text
    assert "L2 norm" in text
    assert "cost, which is not k x q" in text
    assert "below the smallest submodule" in text


def test_the_page_asks_for_nothing_and_strangers_texts_stay_text() -> None:
    harmless = Page(html(example(), FACTS, "t"))
    evil = html(example([f"{EVIL}{i}" for i in range(20)]), [(EVIL, EVIL)], EVIL)
    page = Page(evil)
    assert set(page.tags) == set(harmless.tags)
    assert {name for name, _ in page.attributes} == {name for name, _ in harmless.attributes}
    assert any(EVIL in text for row in page.tables[2] for text, _ in row)
    named = analyse(np.eye(2), ["x", "y"], {EVIL: 1, "ffn.0": 1}, [0, 1], block_count=1, ks=[1], kept={1.0: [0, 1]})
    assert set(Page(html(named, FACTS, "t")).tags) == set(harmless.tags)
    assert not re.search(r"(?i)url\(|@import|https?:", html(example(), FACTS, "t"))
    assert "default-src 'none'" in evil
    assert evil == html(example([f"{EVIL}{i}" for i in range(20)]), [(EVIL, EVIL)], EVIL)


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert plain("é ü 中 a-b") == "é ü 中 a-b"
    assert plain("\x1b[2J\u202e\n\u200b") == "\\x1b[2J\\u202e\\n\\u200b"
    ids = [f"\x1b]0;{i}\x07[red]" for i in range(20)]
    text = shown(example(ids))
    assert "\x1b" not in text
    assert "\\x1b]0;0\\x07[red]" in text
    assert "\x1b" not in html(example(ids), FACTS, "t")


def test_long_ids_fold_inside_the_80_columns() -> None:
    ids = [f"{'id' * 60}{i}" for i in range(20)]
    text = shown(example(ids))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
