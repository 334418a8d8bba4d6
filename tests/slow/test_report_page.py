"""The page of a report in a browser: Debian's Chromium, with axe-core's rules on accessibility."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from cprbench.judge.evidence import Evidence, gather
from cprbench.render.document import Cell, Report, Section, Table
from cprbench.render.formats.html import render_html
from cprbench.render.report.contents import report_of
from tests.conftest import ROOT
from tests.records_factory import make_blocks, make_evidence
from tests.render.test_heatmap import EVIL
from tests.render.test_html import whole

AXE = Path(sys.prefix, "npm", "node_modules", "axe-core", "axe.min.js")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
PAGES = ("by hand", "hostile", "intervals", "quickstart", "suites")
WIDTHS = (360, 1400)
#: Twenty seconds each for the long page: every width and every scheme once.
LOOKS = [
    *((name, width, scheme) for name in PAGES[:4] for width in WIDTHS for scheme in ("light", "dark")),
    *(("suites", 360, "light"), ("suites", 1400, "dark")),
]


def of_three_blocks() -> Evidence:
    """Return runs of three blocks, whose means have intervals."""
    names = ("head", "full", "lora", "lora r=4", "partial k=0.05", "partial k=0.15", "random-submodules k=0.15")
    finals = {name: tuple(0.5 + i / 20 + b * (i + 1) / 100 for b in range(3)) for i, name in enumerate(names)}
    finals["full"] = (0.9, 0.93, 0.91)
    return make_evidence(*make_blocks(finals, {name: [1.23e12 * (i + 1)] * 3 for i, name in enumerate(names)}))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the file of each page: two reports made by hand, two of stored runs."""
    folder = tmp_path_factory.mktemp("pages")
    reports = {"by hand": whole(), "hostile": whole(EVIL + 200 * "x"), "intervals": report_of(of_three_blocks())}
    for name in ("quickstart", "suites"):
        with zipfile.ZipFile(ROOT / "tests" / "records" / f"{name}.zip") as archive:
            archive.extractall(folder / f"{name}-runs")
        reports[name] = report_of(gather(folder / f"{name}-runs"))
    found = {name: folder / f"{name}.html" for name in reports}
    for name, report in reports.items():
        found[name].write_text(render_html(report), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium and AXE.exists(), (
        "no chromium, or no axe-core in .venv/npm: run make test-slow, which installs both"
    )
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # it has none for root
        with playwright.chromium.launch(executable_path=chromium, args=flags) as launched:
            yield launched


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1400, **options: Any) -> Iterator[Page]:
    """Open a file in a window of its own; whatever it asks for or complains about fails the test."""
    with browser.new_context(viewport={"width": width, "height": 800}, **options) as context:
        context.add_init_script(path=AXE)
        page, told = context.new_page(), []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        yield page
        assert told == []


def tab_to(page: Page, tag: str) -> None:
    """Press Tab until an element of that tag has the focus."""
    for _ in range(50):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == tag:
            return
    raise AssertionError(f"no {tag} within 50 tabs")


def column(page: Page, index: int) -> list[str]:
    return page.locator("table.data").first.locator(f"tbody tr > :nth-child({index})").all_inner_texts()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_its_window(name: str, width: int, pages: dict[str, Path], browser: Browser) -> None:
    with opened(browser, pages[name], width) as page:
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("name", "width", "scheme"), LOOKS)
def test_axe_finds_nothing_wrong(name: str, width: int, scheme: Any, pages: dict[str, Path], browser: Browser) -> None:
    with opened(browser, pages[name], width, color_scheme=scheme) as page:
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        found = page.evaluate("rules => axe.run(document, rules)", RULES)
    assert len(found["passes"]) > 20
    wrong = [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]
    assert wrong == []


def test_the_page_of_63_runs_is_below_a_megabyte(pages: dict[str, Path]) -> None:
    assert pages["suites"].stat().st_size < 1e6


def test_a_table_is_sorted_by_keyboard(pages: dict[str, Path], browser: Browser) -> None:
    given = ["head", "full", "lora", "partial k=0.15", "arm 10"]
    with opened(browser, pages["by hand"]) as page:
        tab_to(page, "BUTTON")
        head = page.locator("table.data th[scope=col]")
        assert column(page, 1) == given
        page.keyboard.press("Enter")
        assert column(page, 1) == ["arm 10", "full", "head", "lora", "partial k=0.15"]
        assert head.nth(0).get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Tab")  # to "kept"
        page.keyboard.press("Space")
        assert column(page, 2) == ["0 %", "77 %", "77 %", "89 %", "100 %"]
        assert column(page, 1) == ["head", "partial k=0.15", "arm 10", "lora", "full"]  # equals stay as they were given
        assert [head.nth(i).get_attribute("aria-sort") for i in range(3)] == [None, "ascending", None]
        page.keyboard.press("Enter")
        assert column(page, 1) == ["full", "lora", "partial k=0.15", "arm 10", "head"]
        assert head.nth(1).get_attribute("aria-sort") == "descending"
        page.keyboard.press("Enter")
        assert column(page, 1) == given
        assert head.nth(1).get_attribute("aria-sort") is None


def test_what_was_not_measured_is_last_both_ways(pages: dict[str, Path], browser: Browser) -> None:
    with opened(browser, pages["by hand"]) as page:
        button = page.get_by_role("button", name="FLOPs")
        button.press("Enter")
        assert column(page, 3) == ["9.81e+11", "3.95e+12", "5.88e+12", "none: failed", "not measured"]
        button.press("Enter")
        assert column(page, 3) == ["5.88e+12", "3.95e+12", "9.81e+11", "not measured", "none: failed"]


@pytest.mark.parametrize("scripts", [True, False])
def test_the_resource_is_chosen_by_arrow_keys(scripts: bool, pages: dict[str, Path], browser: Browser) -> None:
    with opened(browser, pages["by hand"], java_script_enabled=scripts) as page:
        figures = page.locator(".choice").first.locator("figure")
        shown = lambda: [figures.nth(i).is_visible() for i in range(3)]  # noqa: E731
        assert shown() == [True, False, False]
        tab_to(page, "INPUT")
        page.keyboard.press("ArrowRight")
        assert shown() == [False, True, False]
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert shown() == [False, False, True]
        assert page.locator(".choice").last.locator("figure").first.is_visible()  # the other group's choice stands


@pytest.mark.parametrize("name", ["intervals", "quickstart", "suites"])
def test_what_is_compared_fits_a_desktop(name: str, pages: dict[str, Path], browser: Browser) -> None:
    with opened(browser, pages[name]) as page:
        for table in ("main", "scores", "multiples", "costs", "ledger"):
            found = page.locator(f".scroll[aria-labelledby$='-{table}']").all()
            assert found
            for region in found:
                assert region.evaluate("e => e.scrollWidth - e.clientWidth") == 0, (name, table)


def test_what_lies_beyond_an_edge_fades_until_it_is_in_sight(pages: dict[str, Path], browser: Browser) -> None:
    def edges() -> list[str]:
        read = "name => getComputedStyle(document.querySelector('.it')).getPropertyValue(name)"
        page.wait_for_timeout(200)  # a few frames
        return [page.evaluate(read, f"--{name}") for name in ("before", "after", "below")]

    with opened(browser, pages["suites"]) as page:
        region = page.locator(".tall[aria-labelledby$='-blocks']")
        region.evaluate("e => e.classList.add('it')")
        assert edges() == ["0px", "32px", "32px"]
        region.evaluate("e => e.scrollTo(1e6, 1e6)")
        assert edges() == ["12px", "0px", "0px"]
        region.evaluate("e => e.classList.remove('it')")
        page.locator(".scroll[aria-labelledby=runs-1-main]").evaluate("e => e.classList.add('it')")
        assert edges() == ["0px", "0px", "0px"]  # nothing lies beyond


def test_names_stay_in_sight_and_no_other_head_lies_over_theirs(pages: dict[str, Path], browser: Browser) -> None:
    with opened(browser, pages["suites"], 600) as page:
        name = page.locator(".scroll[aria-labelledby=runs-2-scores-blocks] thead .first")
        name.evaluate("e => { e.scrollIntoView(); e.closest('.scroll').scrollLeft = 120 }")
        over = """e => { const at = e.getBoundingClientRect(), y = at.bottom - 12;
            return Array.from({length: at.width - 2}, (_, i) => document.elementFromPoint(at.left + i + 1, y))
                .every(there => e.contains(there)) }"""
        assert name.evaluate(over)


@pytest.mark.parametrize(("width", "some"), [(360, False), (1400, True)])
def test_only_long_tables_scroll_up_and_down_and_none_on_a_phone(
    width: int, some: bool, pages: dict[str, Path], browser: Browser
) -> None:
    inner = "all => all.filter(e => e.scrollHeight > e.clientHeight).map(e => e.querySelectorAll('tbody tr').length)"
    with opened(browser, pages["suites"], width) as page:
        rows = page.locator(".scroll").evaluate_all(inner)
    assert bool(rows) == some and all(n > 40 for n in rows)


def test_letters_in_figures_can_be_read_on_a_phone(pages: dict[str, Path], browser: Browser) -> None:
    sizes = """all => all.filter(e => e.clientWidth).map(e => {
        const scale = e.getBoundingClientRect().width / e.viewBox.baseVal.width;
        return scale * Math.min(...[...e.querySelectorAll("text")].map(t => parseFloat(getComputedStyle(t).fontSize)));
    })"""
    with opened(browser, pages["suites"], 360) as page:
        found = page.locator("figure svg").evaluate_all(sizes)
    assert len(found) > 5 and min(found) >= 10.5


def test_a_printed_table_has_its_head_on_every_sheet(browser: Browser, tmp_path: Path) -> None:
    rows = tuple((Cell(f"arm {i}"), Cell(str(i), i)) for i in range(150))
    table = Table("long", "Long", ("which", "how many"), rows)
    file = tmp_path / "long.html"
    file.write_text(render_html(Report("t", (Section("s", "s", (table,)),))), encoding="utf-8")
    with opened(browser, file) as page:
        page.pdf(path=tmp_path / "page.pdf", format="A4", prefer_css_page_size=True)
    done = subprocess.run(["pdftotext", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True)
    sheets = done.stdout.removesuffix("\f").split("\f")
    assert len(sheets) > 1 and all("how many" in sheet for sheet in sheets)


def test_without_javascript_everything_is_there(pages: dict[str, Path], browser: Browser) -> None:
    def told(scripts: bool) -> tuple[str, int]:
        with opened(browser, pages["suites"], java_script_enabled=scripts) as page:
            return " ".join(page.locator("main").text_content().split()), page.locator("button").count()

    (plain, none), (scripted, some) = told(False), told(True)
    assert plain == scripted
    assert none == 0 < some


def test_print_shows_every_option_and_what_was_folded(pages: dict[str, Path], browser: Browser, tmp_path: Path) -> None:
    with opened(browser, pages["by hand"]) as page:
        folded = page.locator("main details li").first
        assert not folded.is_visible()
        page.emulate_media(media="print")
        assert all(figure.is_visible() for figure in page.locator(".choice figure").all())
        assert all(text.is_visible() for text in page.locator("figure details p").all())
        assert folded.is_visible()
        for control in (".choice label", "nav", ".skip"):
            assert not page.locator(control).first.is_visible()
        page.pdf(path=tmp_path / "page.pdf", format="A4", prefer_css_page_size=True)
    done = subprocess.run(["pdftotext", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True)
    printed = " ".join(done.stdout.split())
    for part in ("Against FLOPs", "Against kWh", "Against GB·h", "lora at 0.1 kWh.", "It rises from 0.1", "energy"):
        assert part in printed
