"""All pages of the site in Chromium: without scripts, from files, with hostile text, on a phone, on paper, and fast."""

from __future__ import annotations

import gzip
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.render.site.entries import many
from tests.slow.conftest import AXE
from tests.slow.sites import BOARD, ROWS, cells, count, long, opened, write

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
WIDTHS = (360, 1400)


def test_without_javascript_every_row_and_every_column_is_there(browser: Browser, address: str) -> None:
    rows: list[str] = []
    for name in ("index", "page-2", "page-3"):
        with opened(browser, f"{address}/long/movie-snippets-v1/{name}.html", java_script_enabled=False) as page:
            rows += [str(row.get_attribute("id")) for row in page.locator(ROWS).all()]
            assert not page.locator("[name=search]").is_visible() and page.locator("noscript").is_visible()
    assert sorted(rows) == sorted(f"r-{row.id}" for entry in long() for row in entry.rows)
    with opened(browser, f"{address}/small/{BOARD}", 360, java_script_enabled=False) as page:
        page.locator("details.columns summary").click()
        head = page.locator("th[data-key=optimizer_state_bytes]")
        assert not head.is_visible()
        page.get_by_label("optimizer GB").check()
        assert head.is_visible() and cells(page, "optimizer_state_bytes")[0] == "0.18"
        assert page.locator("th[data-key=multiple_energy_kwh]").is_hidden()
        page.locator("label[for=a-energy_kwh]").click()
        assert page.locator("th[data-key=multiple_energy_kwh]").is_visible()


def test_from_a_file_a_page_acts_on_its_own_rows_and_says_so(browser: Browser, folder: Path) -> None:
    with opened(browser, (folder / "long" / BOARD).as_uri()) as page:
        assert (
            page.locator("table.board").evaluate("e => getComputedStyle(e).borderSpacing") == "0px"
        )  # it has its style
        page.select_option("[name=kind]", "ranked")
        assert "of 200 rows" in count(page) and "Opened as a file" in count(page)


@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_text_does_nothing_on_any_page(scripts: bool, browser: Browser, folder: Path, address: str) -> None:
    pages = [str(path.relative_to(folder)) for path in sorted((folder / "hostile").rglob("*.html"))]
    assert len(pages) > 2
    for path in pages:
        with opened(browser, f"{address}/{path}", java_script_enabled=scripts) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= 1400
            if "-v1/" not in path or not scripts:
                continue
            for name in ("suite", "model", "hardware"):
                page.select_option(f"[name={name}]", index=2)
                page.select_option(f"[name={name}]", index=0)
            page.select_option("[name=group]", "hardware")
            page.locator("th[data-key=arm] button").click()
            for box in page.locator("#board input[type=checkbox]").all()[:3]:
                box.check()
            page.locator(ROWS).first.hover()
            assert page.locator("#board script, #board img, #board iframe, #board svg, #compare script").count() == 0


PAGES = (
    f"middle/{BOARD}",
    "middle/index.html",
    "middle/entries/team-001/index.html",
    "middle/entries/tampered/index.html",
)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "path", [*PAGES, "hostile/entries/hostile/index.html", f"hostile/{BOARD}", "hostile/index.html"]
)
def test_no_page_is_wider_than_its_window(path: str, width: int, browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/{path}", width) as page:
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        page.evaluate("for (const box of document.querySelectorAll('#board input')) if (!box.checked) box.click()")
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", ["divided/entries/first/index.html", f"divided/{BOARD}"])
def test_no_label_of_an_axis_is_cut(path: str, width: int, browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/{path}", width) as page:
        for svg in page.locator("figure.plot > svg").all():
            ends = svg.locator("text").evaluate_all("all => all.map(text => text.getBoundingClientRect().right)")
            edge = svg.evaluate("e => e.getBoundingClientRect().right")
            assert svg.evaluate("e => getComputedStyle(e).overflow") == "visible" or max(ends) <= edge
            assert ends and max(ends) <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("path", "width"), [*((path, 1400) for path in PAGES), (f"middle/{BOARD}", 360)])
def test_axe_finds_nothing_wrong(path: str, width: int, scheme: Any, browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/{path}", width, color_scheme=scheme, bypass_csp=True) as page:
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        if path.endswith(BOARD):
            page.select_option("[name=group]", "model")
            for box in page.locator("#board input[type=checkbox]").all()[:2]:
                box.check()
            page.locator("th[data-key=gain] button").click()
        page.add_script_tag(path=AXE)
        found = page.evaluate("rules => axe.run(document, rules)", RULES)
    assert len(found["passes"]) > 20
    wrong = [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]
    assert wrong == []


def test_a_board_on_paper_has_its_head_on_every_sheet_and_no_controls(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    with opened(browser, f"{address}/middle/{BOARD}") as page:
        page.emulate_media(media="print")
        assert not page.locator("#controls").is_visible() and not page.locator("#reset").is_visible()
        page.pdf(path=tmp_path / "page.pdf", format="A4", prefer_css_page_size=True)
    done = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True
    )
    sheets = done.stdout.removesuffix("\f").split("\f")
    heads = ["against full" in sheet for sheet in sheets if "team-00" in sheet]
    assert len(heads) > 1 and all(heads)
    assert "Dashed: the Pareto front." in done.stdout


MEASURE = """async () => {
    const form = document.getElementById("controls"), table = document.getElementById("board"), found = [];
    const time = act => {
        const start = performance.now();
        act();
        table.getBoundingClientRect();  // the table stands where it will be shown
        found.push(performance.now() - start);
        return new Promise(resolve => setTimeout(resolve, 150));
    };
    const choose = (name, value) => {
        form.elements[name].value = value;
        form.elements[name].dispatchEvent(new Event("input", {bubbles: true}));
    };
    for (const key of ["psi", "gamma_flops", "arm", "submission"])
        for (let i = 0; i < 3; i++) await time(() => table.querySelector(`th[data-key=${key}] button`).click());
    for (const [name, value] of [["model", "SmolLM2-135M"], ["model", ""], ["kind", "ranked"], ["method", "lora"],
        ["method", ""], ["kind", ""], ["group", "model"], ["group", ""]]) await time(() => choose(name, value));
    return found;
}"""


def test_a_board_of_3300_rows_is_small_at_first_sight_and_quick_after_it(
    browser: Browser, folder: Path, address: str
) -> None:
    write(many(3300, per_entry=330), folder / "large")
    first = (BOARD, "assets/site.css", "assets/site.js")
    sizes = {path: len(gzip.compress((folder / "large" / path).read_bytes(), 6)) for path in first}
    assert sum(sizes.values()) <= 400 * 1024, sizes
    with opened(browser, f"{address}/large/{BOARD}") as page:
        page.select_option("[name=kind]", "ranked")
        page.wait_for_selector("text=of 3300 rows")
        page.select_option("[name=kind]", "")
        milliseconds = page.evaluate(MEASURE)
        assert statistics.median(milliseconds) <= 200, milliseconds
        page.locator("#more").click()
        assert page.locator(ROWS).count() == 200


def test_the_first_page_names_what_was_refused_and_leads_to_its_findings(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/index.html") as page:
        page.get_by_role("link", name="tampered").click()
        assert "Its own raw files say otherwise" in page.locator("main").inner_text()
        page.get_by_role("link", name="Submissions").click()
        page.get_by_role("link", name="movie-snippets v1", exact=True).click()
        page.locator("#board tbody tr").first.get_by_role("link", name="first").click()
        assert page.locator("section.row").first.is_visible() and "#r-" in page.url
