"""The files of the site: whole, linked, the same for the same entries, and nobody's text is more than text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from posixpath import dirname, join, normpath

import pytest

from cprbench.errors import CprbenchError
from cprbench.judge.submission import Entry, Number
from cprbench.render.site import entry_page, entry_path, render
from cprbench.render.site.board import ROWS_ON_A_PAGE
from cprbench.render.site.columns import COLUMNS
from cprbench.spec import RESOURCES
from tests.hostile.payloads import PAYLOADS
from tests.render.site.entries import make_entry, make_finding, make_row, make_run, many, no

BOARD = "movie-snippets-v1/index.html"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)


def refused() -> list[Entry]:
    """Return submissions that have no rows, each for another reason."""
    wrong = [make_finding(message=f"line {i}\nsecond line") for i in range(5)]
    unread = make_finding(code="F1", level="invalid", file="submission.toml", message="name is missing", cure="Add it.")
    return [
        make_entry("tampered", status="contradicted", findings=wrong),
        make_entry("no-file", submission=None, status="invalid", findings=[unread]),
        make_entry("no-data", status="unverified", findings=[make_finding(code="P1", level="unverified", file="")]),
    ]


@cache
def site() -> dict[str, bytes]:
    return dict(render([*many(2 * ROWS_ON_A_PAGE + 1), *refused()]))


class Page(HTMLParser):
    """What a page holds: tags with their attributes, and its text."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[str]:
        return [value or "" for _, attrs in self.tags for key, value in attrs.items() if key == name]


def pages(files: dict[str, bytes]) -> dict[str, Page]:
    return {path: Page(content) for path, content in files.items() if path.endswith(".html")}


def rows_of(page: Page) -> list[str]:
    return [str(attrs["id"]) for tag, attrs in page.tags if tag == "tr" and "data-v" in attrs]


def test_the_same_entries_in_any_order_give_the_same_bytes_in_the_order_of_paths() -> None:
    entries = [*many(450), *refused()]
    random.Random(1).shuffle(entries)
    again = list(render(entries))
    assert [path for path, _ in again] == sorted(path for path, _ in again)
    assert len(again) == len(entries) + 1 + 4 + 3 + 3  # entries, index, assets, downloads, pages
    assert dict(render(many(30))) == dict(render(many(30)[::-1]))


def test_every_row_of_a_board_is_on_one_of_its_pages_with_all_its_numbers() -> None:
    found = pages(site())
    names = [BOARD, "movie-snippets-v1/page-2.html", "movie-snippets-v1/page-3.html"]
    rows = [row for name in names for row in rows_of(found[name])]
    assert sorted(rows) == sorted(f"r-{row.id}" for entry in many(401) for row in entry.rows)
    assert [len(rows_of(found[name])) for name in names] == [200, 200, 1]
    heads = sum(tag == "th" and attrs.get("scope") == "col" for tag, attrs in found[BOARD].tags)
    cells = sum(tag in ("td", "th") for tag, _ in found[BOARD].tags)
    assert cells == 201 * heads and heads == 1 + len(COLUMNS)
    assert "3" in found[names[0]].text and "movie-snippets-v1/page-2.html".rpartition("/")[2] in found[BOARD].all(
        "href"
    )


def test_every_link_leads_to_a_file_and_every_anchor_to_an_element() -> None:
    files = site()
    found = pages(files)
    ids = {path: page.all("id") for path, page in found.items()}
    for path, page in found.items():
        assert len(ids[path]) == len(set(ids[path])), path
        for link in [*page.all("href"), *page.all("src")]:
            if link.startswith("https://example.org/"):
                continue
            target, _, anchor = link.partition("#")
            there = normpath(join(dirname(path), target)) if target else path
            assert not link.startswith("/") and there in files, (path, link)
            board = re.search(r"-v\d+/", there) and path.startswith(
                "entries/"
            )  # which page has the row, only a script finds
            assert board or not anchor or anchor in ids[there], (path, link)


def test_nothing_is_inline_and_nobody_else_is_asked_for_anything() -> None:
    for path, page in pages(site()).items():
        assert page.all("content")[0] == POLICY, path
        assert not page.all("style") and not any(tag == "style" for tag, _ in page.tags), path
        assert [attrs for tag, attrs in page.tags if tag == "script"] == [{"defer": None, "src": page.all("src")[0]}], (
            path
        )
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
        for tag, attrs in page.tags:
            if (attrs.get("href") or "").startswith("http"):
                assert tag == "a" and "noopener" in str(attrs["rel"]) and path.startswith("entries/")
    for path, content in site().items():
        if path.startswith("assets/"):
            assert not re.search(rb"@import|url\(|https?://(?!www\.w3\.org/)", content), path


def test_what_was_not_measured_is_told_in_words_with_the_reason_and_is_no_number() -> None:
    times = {name: no("n/e: gain_not_positive") for name in RESOURCES}
    entry = make_entry(rows=[make_row(multiple_of_full=times, psi=Number(value=None, why="no run ended well"))])
    board, own = (dict(render([entry]))[path].decode() for path in (BOARD, entry_path(entry)))
    assert ' n" title="no energy counter on this machine">not measured</td>' in board
    assert ' n" title="n/e: the gain is not above 0">n/e</td>' in board
    values = re.search(r'data-v="([^"]*)"', board)
    assert values and values[1].startswith("[null,") and values[1].count("null") >= 11
    assert "no energy counter on this machine" in Page(own.encode()).text and "no run ended well" in own


def test_codes_of_the_judge_are_words_on_pages_and_codes_in_the_csv() -> None:
    row = make_row(
        retained_gain=no("denominator_not_positive"),
        psi=Number(value=0.8, why="zero_variance"),
        multiple_of_full={name: no("n/e: full_gain_not_positive") for name in RESOURCES},
        quadrant=dict.fromkeys(RESOURCES, "psi: zero_variance"),
    )
    files = dict(render([make_entry(rows=[row])]))
    for path, said in files.items():
        if path.endswith(".html"):
            assert not re.search(rb"zero_variance|_not_positive|cost_is_zero", said), path
    board = files[BOARD].decode()
    assert ' n" title="what it is divided by is not shown to be above 0">n/e</td>' in board
    assert "all blocks say the same" in board and "full tuning&#39;s own gain is not shown" in board
    assert b"denominator_not_positive" in files["data/movie-snippets-v1.csv"]


def test_a_cost_that_no_meter_read_has_the_meters_reason_cut_on_boards_alone() -> None:
    why = "no RAPL zone under /sys/class/powercap, " + "x" * 200
    row = make_row(gamma=make_row().gamma | {"energy_kwh": no(f"not measured: {why}"), "co2_kg": no("n/e: no grid")})
    files = dict(render([make_entry(rows=[row])]))
    board, own = files[BOARD].decode(), files["entries/first/index.html"].decode()
    assert board.count(f'title="{why[:160]}…">not measured</td>') == 2  # the cost, and its multiple
    assert 'title="n/e: no grid">not measured</td>' in board
    assert f'not measured<span class="reason">{why}</span>' in own


def test_runs_of_a_zip_are_unpacked_before_they_are_run_again() -> None:
    rows = [make_row()]
    assert "unpack it first" in Page(entry_page(make_entry(rows=rows, zipped=True))).text
    assert "unpack it first" not in Page(entry_page(make_entry(rows=rows))).text


def test_a_board_and_the_first_page_say_that_divisions_do_not_share_a_front() -> None:
    entries = [make_entry("a", [make_row()]), make_entry("b", [make_row(0.7)], spec={"division": "open"})]
    files = dict(render(entries))
    assert "division never shares a front" in Page(files[BOARD]).text
    assert (
        "the closed and the open division: each has its own positions, closed first" in Page(files["index.html"]).text
    )


def test_submissions_without_rows_are_named_with_the_first_lines_of_what_is_wrong() -> None:
    text = Page(site()["index.html"]).text
    for said in ("tampered", "contradicted", "runs/00ff/predictions.jsonl: line 0", "and 2 more", "no-file", "F1:"):
        assert said in text
    assert "second line" not in text and "line 3" not in text
    assert "1 unverified, 1 contradicted, 1 invalid" in text
    own = Page(site()["entries/tampered/index.html"]).text
    assert "line 4" in own and "second line" in own and "Submit the run as cprbench wrote it." in own


def test_the_page_of_an_entry_hangs_on_nothing_else_and_has_every_run_with_its_command() -> None:
    entry = make_entry("first", [make_row(runs=[make_run(b, run_id=f"{b:016x}") for b in range(3)])])
    alone, among = dict(render([entry])), dict(render([entry, *many(40)]))
    assert alone[entry_path(entry)] == among[entry_path(entry)] == entry_page(entry)
    text = Page(entry_page(entry)).text
    for said in (
        "cprbench reproduce leaderboard/submissions/first/runs/" + "0" * 15 + "2",
        "transformers 5.23.0",
        "f" * 40,
    ):
        assert said in text
    assert "block 2 goes from 0.575" in text  # the curve in words


def test_a_name_that_is_no_name_never_becomes_a_path() -> None:
    rows = [make_row(task="../../evil"), make_row(task="a/b\\c", arm="full")]
    entries = [make_entry(rows=rows, folder="../<b>"), make_entry(rows=[make_row(arm="head")], folder="up/second")]
    paths = {path for path, _ in render(entries)}
    assert all(re.fullmatch(r"[a-z0-9._/-]+", path) and ".." not in path.split("/") for path in paths)
    assert "entries/second/index.html" in paths and sum(path.startswith("entries/unnamed-") for path in paths) == 1


def test_two_submissions_of_one_name_are_refused() -> None:
    with pytest.raises(CprbenchError, match="two submissions are called 'same'"):
        list(render([make_entry("same"), make_entry("same", digest="0" * 64)]))


def test_a_site_without_submissions_says_so() -> None:
    files = dict(render([]))
    assert set(files) == {"index.html", "assets/icon.svg", "assets/site.css", "assets/site.js", "assets/sort.js"}
    assert "There are none yet." in Page(files["index.html"]).text


def hostile(texts: Sequence[str]) -> list[Entry]:
    """Return entries in which every text that a stranger may choose is one of these."""
    rows = []
    for i, text in enumerate(texts):
        fields = dict.fromkeys(
            ("suite", "domain", "model", "method", "selection", "arm", "hardware_class", "picker"), text
        )
        run = make_run(
            run_id=text, status=text, learning_rate_from=text, packages={text: text}, commit=text, gamma={text: 1.0}
        )
        row = make_row(
            0.5 + i / 1000,
            1e10 * (1 + i),
            **fields,
            metric=text if i % 2 else "accuracy",
            reference=text,
            settings={text: text},
            selection_settings={text: [text]},
            limits={text: 1},
            unranked=[text] * 4 if i % 3 == 0 else [],
            quadrant=dict.fromkeys(RESOURCES, text),
            search=no(text),
            k=no(text),
            runs=[run],
        )
        rows.append(row)
    findings = [make_finding(code=text, file=text, message=text, cure=text) for text in texts]
    return [make_entry("hostile", rows, findings=findings, checked={text: 1 for text in texts})]


def test_the_text_of_a_stranger_is_text_on_every_page() -> None:
    mild = pages(dict(render(hostile([f"text {i}" for i in range(len(PAYLOADS))]))))
    wild = dict(render(hostile(PAYLOADS)))
    for path, page in pages(wild).items():
        usual = {(tag, name) for tag, attrs in mild[path].tags for name in attrs}
        found = {(tag, name) for tag, attrs in page.tags for name in attrs}
        assert found <= usual, (path, found - usual)
        assert {tag for tag, _ in page.tags} == {tag for tag, _ in mild[path].tags}
        if path == "index.html":
            assert [tag for tag, _ in page.tags] == [tag for tag, _ in mild[path].tags], path
        assert all(c.isprintable() or c == "\n" for c in page.text), path
        assert all(
            c.isprintable() for name in ("data-f", "title", "value", "aria-label") for v in page.all(name) for c in v
        )
        for link in page.all("href"):
            assert re.match(r"[a-z0-9./_-]*(#[a-z0-9-]+)?$|https://example.org/paper$", link), link
    assert set(pages(wild)) == set(mild)
