"""The report as a page: complete as it stands, and whoever named the arms gets text and nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from cprbench.render.document import Cell, Choice, Drawing, Items, Prose, Report, Section, Table
from cprbench.render.formats.html import render_html
from tests.render.test_heatmap import EVIL, Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def line(figure: Figure) -> None:
    figure.add_subplot().plot([1, 2, 3], [0.1, 0.4, 0.5])


def whole(name: str = "partial k=0.15") -> Report:
    """Return a report with every kind of part; `name` is written wherever a stranger's name may be."""
    costs = Table(
        "main",
        f"What each arm kept: {name}",
        ("arm", "kept", "FLOPs", f"why {name}"),
        (
            (Cell("head"), Cell("0 %", 0.0, 0), Cell("9.81e+11", 9.81e11), Cell("the reference")),
            (Cell("full"), Cell("100 %", 1.0, 6), Cell("5.88e+12", 5.88e12), Cell("")),
            (Cell("lora"), Cell("89 %", 0.89, 5), Cell("not measured"), Cell("no counter")),
            (Cell(name), Cell("77 %", 0.77, 4), Cell("3.95e+12", 3.95e12), Cell(name)),
            (Cell("arm 10"), Cell("77 %", 0.77, 4), Cell("none: failed"), Cell("b")),
        ),
        (f"n: blocks; {name}",),
        words=(0, 3),
    )
    drawn = Drawing("line", f"A line: {name}", f"It rises from 0.1 to 0.5, {name}.", line)
    planes = Choice(
        "plane",
        f"Score against cost: {name}",
        "Resource",
        (
            ("FLOPs", Drawing("plane-flops", f"Against FLOPs: {name}", "lora at 4e12.", line)),
            ("kWh", Drawing("plane-kwh", "Against kWh", "lora at 0.1 kWh.", line)),
            (f"GB·h {name}", Drawing("plane-memory", "Against GB·h", "lora at 0.01 GB·h.", line)),
        ),
    )
    why = (Items(f"Not measured {name}", (name, "energy"), folded=True), Items("List", (name,)))
    inner = (
        Section(
            "one-plane", f"Capability {name}", (planes, drawn), (Section("one-deeper", "Deeper", (Prose(("d",)),)),)
        ),
        Section("one-why", "Why", why),
    )
    lead = Prose((f"lora keeps 89 % of full's gain; {name}.", "Two blocks are points."), lead=True)
    groups = (
        Section("one", f"movie-snippets {name}", (lead, costs, Prose((name,))), inner),
        Section(
            "two",
            "other",
            (planes, Table("main", costs.title, ("arm",), ((Cell("lora"),),))),
            (Section("two-why", "Why", why),),
        ),
    )
    return Report(f"Capability per resource {name}", groups, (Section("claims", "Claims", (Prose(("None.",)),)),))


@cache
def written(name: str = "partial k=0.15") -> str:
    return render_html(whole(name))


def ids(page: Page) -> list[str | None]:
    return [value for name, value in page.attributes if name == "id"]


def test_a_table_is_whole_as_it_stands_and_says_what_its_cells_belong_to() -> None:
    table = Page(written()).tables[0]
    assert [[text for text, _ in row] for row in table[:3]] == [
        ["arm", "kept", "FLOPs", "why partial k=0.15"],
        ["head", "0 %", "9.81e+11", "the reference"],
        ["full", "100 %", "5.88e+12", ""],
    ]
    assert [attrs.get("scope") for _, attrs in table[0]] == ["col"] * 4
    assert [attrs.get("scope") for _, attrs in table[1]] == ["row", None, None, None]
    assert [attrs.get("class") for _, attrs in table[2]] == [None, "s6", None, "w"]
    assert [attrs.get("class") for _, attrs in table[0]] == ["first", None, None, "w broad"]
    text = written()
    assert '<caption><span id="one-main">What each arm kept: partial k=0.15</span></caption>' in text
    assert '<p class="note">n: blocks; partial k=0.15</p>' in text


def test_a_table_scrolls_in_a_region_that_keys_reach_and_that_has_its_title() -> None:
    rows = tuple((Cell(str(i)),) for i in range(41))
    long = render_html(Report("t", (Section("s", "s", (Table("t", "t", ("c",), rows),)),)))
    for text, label, kind in ((written(), "one-main", ""), (long, "s-t", " tall")):
        assert f'<div class="scroll{kind}" role="group" tabindex="0" aria-labelledby="{label}">\n<table' in text


def test_only_numbers_are_sorted_as_numbers() -> None:
    cells = (Cell("a"), Cell("1", 1.0), Cell("none"), Cell("?", math.nan), Cell("more", math.inf), Cell("0.1", 0.1))
    table = Page(render_html(Report("t", (Section("s", "s", (Table("t", "t", ("c",) * 6, (cells,)),)),)))).tables[0]
    assert [attrs.get("data-value") for _, attrs in table[1]] == [None, "1.0", None, None, None, "0.1"]


def test_an_interval_stands_below_its_number_and_a_long_reason_is_broken() -> None:
    cells = (
        Cell("lora [a, b]"),
        Cell("+0.185 [+0.145, +0.225]", 0.185),
        Cell("n/e: gain_not_positive"),
        Cell("n/e [x]"),
    )
    page = render_html(Report("t", (Section("s", "s", (Table("t", "t", ("c",) * 4, (cells,)),)),)))
    assert '<td data-value="0.185">+0.185 <span>[+0.145, +0.225]</span></td>' in page
    assert '<td class="why">n/e: gain_<wbr>not_<wbr>positive</td>' in page
    assert '<th scope="row">lora [a, b]</th>' in page and "<td>n/e [x]</td>" in page
    assert ".data td span{display:block" in page and ".data td{white-space:nowrap}" in page


def test_the_answer_comes_first_and_headings_go_down_step_by_step() -> None:
    text = written()
    headings = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert headings == [1, 2, 3, 4, 3, 2, 3, 2]
    first = text.index('<div class="lead">\n<p>lora keeps 89 % of full&#39;s gain')
    assert text.index("<h2") < first < text.index("<table")


def test_every_heading_is_in_reach_and_ids_are_there_once() -> None:
    page = Page(written())
    assert len(ids(page)) == len(set(ids(page)))
    named = {value for name, value in page.attributes if name == "href" and value is not None}
    for section in ("one", "one-plane", "one-why", "two", "claims"):
        assert f"#{section}" in named
    asked = [value.removeprefix("#") for value in named]
    asked += [value for name, value in page.attributes if name == "for" and value is not None]
    asked += [word for name, value in page.attributes if name == "aria-labelledby" for word in (value or "").split()]
    assert set(asked) <= set(ids(page))


def test_a_choice_shows_its_first_option_without_a_script_and_knows_all() -> None:
    text = written()
    radios = re.findall(r'<input type="radio" name="([\w-]+)" id="[\w-]+"( checked)?>', text)
    assert radios == [(f"{group}-plane", checked) for group in ("one-plane", "two") for checked in (" checked", "", "")]
    assert re.findall(r"<label for=[^>]*>([^<]*)</label>", text)[:3] == ["FLOPs", "kWh", "GB·h partial k=0.15"]
    # The style sheet shows the figure after the label after the input that is checked: they are neighbours.
    assert len(re.findall(r"checked>\n<label[^>]*>[^<]*</label>\n<figure>", text)) == 2
    assert ".choice input:checked+label+figure{display:block}" in text
    assert ".choice figure{display:block}" in text.split("@media print")[1]


def test_figures_are_drawn_on_the_page_and_said_in_words() -> None:
    text = written()
    assert text.count("<svg") == text.count("<figcaption>") == 7
    assert "<details><summary>In words</summary><p>It rises from 0.1 to 0.5, partial k=0.15.</p></details>" in text
    assert "<details><summary>Not measured partial k=0.15</summary>\n<ul>\n<li>partial k=0.15</li>" in text


def test_hostile_names_are_text_and_nothing_else() -> None:
    harmless, page = Page(written("x" * len(EVIL))), Page(written(EVIL))
    assert page.tags == harmless.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in harmless.attributes]
    assert page.open == []
    assert any(text == EVIL for table in page.tables for row in table for text, _ in row)


@pytest.mark.parametrize("name", ["{{ 7 * 7 }}", "{% raw %}", "]]>", "<!--", "&lt;b&gt;", "'\"`=", "$x^2$", "模型 🤖"])
def test_what_other_languages_obey_is_read_as_it_was_written(name: str) -> None:
    page = Page(written(name))
    assert page.tables[0][4][0][0] == name


def test_marks_that_would_hide_or_turn_text_are_written_out() -> None:
    text = written("a\u202eb\u200bc\x1b[2Jd\n\u2028\ud800")
    assert r"a\u202eb\u200bc\x1b[2Jd\n\u2028\ud800" in text
    assert not re.search("[\u202e\u200b\x1b\u2028\ud800]", text)
    assert text.encode()


def test_the_page_asks_for_nothing_and_runs_only_what_it_was_made_with() -> None:
    text = written(EVIL)
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.tags.count("script") == 1
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "srcset", "action", "style-src")}
    links = [value or "" for name, value in page.attributes if name in ("href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert not re.search(r"url\((?!#)|@import", text)
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "script-src" not in policy[1].replace(f"script-src 'sha256-{digest}'", "")


def test_a_report_of_nothing_is_still_a_page() -> None:
    page = Page(render_html(Report("Nothing", (), (Section("none", "No runs", (Prose(("There are none.",), True),)),))))
    assert page.open == []
    assert page.tags.count("h1") == 1


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_html(whole(EVIL)) == written(EVIL)
