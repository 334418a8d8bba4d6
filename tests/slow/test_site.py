"""A board in Chromium: filter, sort, group, axis, permalink, compare, plot, download."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.render.site.entries import CPU, GPU
from tests.slow.sites import BOARD, ORDER, ROWS, arms, cells, count, groups, opened


def test_filters_act_together_and_say_how_many_rows_are_left(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/{BOARD}") as page:
        assert arms(page) == ORDER
        page.select_option("[name=hardware]", CPU)
        page.select_option("[name=kind]", "ranked")
        assert arms(page) == ["full", "lora r=4", "head"]
        assert count(page).startswith("3 of 6 rows.")
        page.fill("[name=search]", "LORA first")
        expect(page.locator(ROWS)).to_have_count(1)
        page.fill("[name=search]", "nobody")
        page.wait_for_selector("text=No row fits.")
        page.get_by_role("button", name="Reset").click()
        assert len(arms(page)) == 6 and "#" not in page.url
        page.select_option("[name=hardware]", GPU)
        page.select_option("[name=kind]", "method")
        assert arms(page) == ["lora r=8", "bitfit"]
    with opened(browser, f"{address}/divided/{BOARD}") as page:
        page.select_option("[name=division]", "open")
        assert arms(page) == ["lora"]


def test_a_column_is_sorted_by_keyboard_the_better_way_first(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/{BOARD}") as page:
        head = page.locator("th[data-key=gamma_flops]")
        button = head.get_by_role("button")
        button.focus()
        page.keyboard.press("Enter")
        assert cells(page, "gamma_flops") == [
            "1.00e+12",
            "4.00e+12",
            "5.00e+12",
            "6.00e+12",
            "not measured",
            "1.00e+11",
        ]
        assert head.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Space")
        assert cells(page, "gamma_flops") == [
            "6.00e+12",
            "5.00e+12",
            "4.00e+12",
            "1.00e+12",
            "not measured",
            "1.00e+11",
        ]
        assert head.get_attribute("aria-sort") == "descending" and page.url.endswith("#sort=gamma_flops.descending")
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") is None
        assert arms(page) == ORDER
        page.locator("th[data-key=psi] button").click()
        assert page.locator("th[data-key=psi]").get_attribute("aria-sort") == "descending"
        page.locator("th[data-key=arm] button").click()
        assert arms(page) == [
            *sorted(set(ORDER) - {"partial k=0.15"}),
            "partial k=0.15",
        ]


def test_what_hangs_on_the_machine_is_grouped_by_hardware_class_with_a_front_in_each(
    browser: Browser, address: str
) -> None:
    with opened(browser, f"{address}/small/{BOARD}") as page:
        page.locator("label[for=a-device_hours]").click()
        assert groups(page) == [CPU, GPU]
        assert "Grouped by hardware class" in count(page)
        assert arms(page) == [
            "full",
            "lora r=4",
            "head",
            "partial k=0.15",
            "bitfit",
            "lora r=8",
        ]
        fronts = page.locator("#board tr.front th").all_inner_texts()
        assert len(fronts) == 5
        assert page.locator("th[data-key=multiple_device_hours]").is_visible()
        assert not page.locator("th[data-key=multiple_flops]").is_visible()
        expect(page.locator("#plot-title")).to_contain_text(f"device hours per run ({CPU})")  # one plane, one machine
        expect(page.locator(".points a")).to_have_count(4)
        expect(page.locator(".fronts path")).to_have_count(1)
        page.locator("label[for=a-flops]").click()
        assert groups(page) == []
        page.locator("details.columns summary").click()
        page.get_by_label("peak GB").check()
        page.locator("th[data-key=peak_memory_bytes] button").click()
        assert groups(page) == [CPU, GPU]


def test_rows_are_grouped_by_what_a_reader_asks_for(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/{BOARD}") as page:
        page.select_option("[name=group]", "submission")
        assert groups(page) == ["first", "second"]
        page.select_option("[name=group]", "model")
        assert groups(page) == ["all-MiniLM-L6-v2", "big"]
        assert "of each group" in count(page)
        assert [text.split("\n")[0] for text in cells(page, "position")] == ["1", "2", "3", "–", "–", "1"]


def test_an_address_keeps_the_whole_view_and_back_goes_back(browser: Browser, address: str) -> None:
    url = f"{address}/small/{BOARD}"
    with opened(browser, url) as page:
        page.select_option("[name=model]", "big")
        page.select_option("[name=group]", "suite")
        page.locator("details.columns summary").click()
        page.get_by_label("tier", exact=True).last.uncheck()
        page.locator("th[data-key=gain] button").click()
        page.fill("[name=search]", "r=8")
        expect(page).to_have_url(re.compile("search=r"))
        link, seen = page.url, (arms(page), groups(page))
        page.fill("[name=search]", "")
        expect(page).not_to_have_url(re.compile("search="))
        page.go_back()
        assert page.locator("th[data-key=gain]").get_attribute("aria-sort") is None
        assert page.locator("[name=model]").input_value() == "big"
        for _ in range(3):
            page.go_back()
        expect(page.locator(ROWS)).to_have_count(6)
        page.go_forward()
        expect(page.locator(ROWS)).to_have_count(1)
    with opened(browser, link) as page:
        expect(page.locator(ROWS)).to_have_count(1)
        assert (arms(page), groups(page)) == seen == (["lora r=8"], ["core v1"])
        assert not page.locator("th[data-key=tier]").is_visible()
        assert page.locator("th[data-key=gain]").get_attribute("aria-sort") == "descending"
    with opened(
        browser, f"{url}#model=nobody&axis=nothing&sort=x.y&columns=&compare=a.b&row=c&group=__proto__"
    ) as page:
        page.wait_for_selector("text=6 of 6 rows")
        assert len(arms(page)) == 6


def test_two_rows_are_compared_and_what_may_not_be_is_told(browser: Browser, address: str) -> None:
    def line(name: str) -> list[str]:
        row = page.locator(f"#compare tbody tr:has(th:text-is('{name}'))")
        return [" ".join(text.split()) for text in row.locator("td").all_inner_texts()]

    with opened(browser, f"{address}/small/{BOARD}") as page:
        page.get_by_label("Compare full").check()
        assert "tick a second row" in page.locator("#compare").inner_text()
        page.get_by_label("Compare lora r=4").check()
        assert page.evaluate("document.activeElement.id") == "compare-title"
        assert line("psi: accuracy") == ["0.900 [0.888, 0.912]", "0.880 [0.868, 0.892]", "−0.020"]
        assert line("FLOPs") == ["6.00e+12", "4.00e+12", "−2.00e+12, 0.67x"]
        assert line("retained gain")[2] == "−5 points"
        assert line("kWh") == [*["not measured no energy counter on this machine"] * 2, ""]
        assert line("arm")[2] == "differs" and line("suite")[2] == "same"
        page.get_by_label("Compare lora r=8").check()  # takes the place of the first
        assert page.locator("#board input:checked").count() == 2
        assert line("device hours")[2] == "not comparable: other hardware class"
        assert line("gain over head")[2] == "not comparable: other weights"
        assert line("FLOPs")[2] == "+1.00e+12, 1.25x"
        assert "Not comparable in part: other weights, other hardware class." in page.locator("#compare").inner_text()
        url = page.url
        page.get_by_role("button", name="Close").click()
        assert not page.locator("#compare").is_visible()
    with opened(browser, url) as page:
        page.wait_for_selector("#compare tbody tr")
        assert line("device hours")[2] == "not comparable: other hardware class"


def test_divisions_and_limits_are_drawn_apart_and_compare_says_so(browser: Browser, address: str) -> None:
    titles = ["core v1, eval_items 400, closed division", "core v1, eval_items 400, open division"]
    with opened(browser, f"{address}/divided/{BOARD}") as page:
        assert page.locator(".points a").count() == 2  # of the closed division
        page.select_option("[name=kind]", "method")
        assert groups(page) == [*titles, "core v1, eval_items 8, closed division"]
        assert [text.split("\n")[0] for text in cells(page, "position")] == ["1", "2", "1", "–"]
        expect(page.locator("#plot-title")).to_contain_text("(core v1, eval_items 400, closed division)")
        expect(page.locator(".points a")).to_have_count(2)
        psi = page.locator("#compare tbody tr:has(th:text-is('psi: accuracy')) td").last
        page.get_by_label("Compare full").check()
        page.get_by_label("Compare lora").check()
        assert psi.inner_text() == "+0.050" and "Other division:" in page.locator("#compare").inner_text()
        page.get_by_label("Compare lora").uncheck()
        page.get_by_label("Compare smoke").check()
        assert psi.inner_text() == "not comparable: other limits"
        assert "Not comparable in part: other limits." in page.locator("#compare").inner_text()


def test_a_resource_that_nobody_measured_is_told_in_the_drawing(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/{BOARD}") as page:
        page.locator("label[for=a-energy_kwh]").click()
        expect(page.locator("figure.plot .axes text")).to_have_text(["kWh: not measured in any row here"])
        assert page.locator(".legend li").count() == 0
        page.locator("label[for=a-flops]").click()
        expect(page.locator(".points a")).to_have_count(5)
        assert page.locator(".legend li").count() == 4


def test_an_address_of_a_row_that_is_gone_says_so(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/{BOARD}#r-000000000000") as page:
        page.wait_for_selector("text=The row that the address names is not on this board.")


def test_a_mark_leads_to_its_row_and_a_row_to_its_mark(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/small/{BOARD}") as page:
        marks = page.locator(".points a")
        assert marks.count() == 5  # one row has no FLOPs
        row = marks.first.get_attribute("href") or ""
        marks.first.press("Enter")
        assert page.locator(f"{row}.on").count() == 1 and f"row={row[3:]}" in page.url
        page.locator("#board tbody tr").nth(1).locator("td a").first.press("Enter")
        assert page.evaluate("document.activeElement.id").startswith("p-")
        assert page.locator("#plot-told").inner_text().startswith("lora r=4")
        assert (
            page.locator("#board tr.on").count() == 2
        )  # the one that was asked for, and the one whose mark has the focus


@pytest.mark.parametrize("site", ["small", "falling"])
def test_the_script_orders_rows_as_their_page_does(site: str, browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/{site}/{BOARD}") as page:
        given, fronts = arms(page), page.locator("#board tr.front th").all_inner_texts()
        page.select_option("[name=kind]", "ranked")
        page.select_option("[name=kind]", "")
        assert (arms(page), page.locator("#board tr.front th").all_inner_texts()) == (given, fronts)
        assert [text.split("\n")[0] for text in cells(page, "position")] == [
            *map(str, range(1, len(fronts) + 2)),
            *["–"] * (len(given) - len(fronts) - 1),
        ]


def test_all_pages_of_a_board_act_as_one(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/long/movie-snippets-v1/page-2.html") as page:
        first = arms(page)
        page.locator("th[data-key=psi] button").focus()
        page.locator("th[data-key=psi] button").press("Enter")
        page.wait_for_selector("text=450 of 450 rows")
        page.locator("th[data-key=psi] button").press("Enter")
        page.locator("th[data-key=psi] button").press("Enter")
        found = page.locator(ROWS).evaluate_all("all => all.map(tr => tr.id)")
        assert len(found) == 100 and arms(page) != first[:100]
        page.get_by_role("button", name="Show 100 more").click()
        assert page.locator(ROWS).count() == 200
        assert not page.locator("nav[aria-label=Pages]").is_visible()
    with opened(browser, f"{address}/long/{BOARD}") as page:
        given = page.locator(ROWS).evaluate_all("all => all.map(tr => tr.id)")
        assert given[:100] == found  # the script orders as the pages do, whichever page it starts from
        deep = "document.querySelectorAll('#board tr[data-v]')"
        page.goto(f"{address}/long/movie-snippets-v1/page-3.html")
        last = page.evaluate(f"{deep}[{deep}.length - 1].id")
    with opened(browser, f"{address}/long/{BOARD}#{last}") as page:
        page.wait_for_selector(f"#{last}.on")
        assert page.locator(f"#{last}").is_visible()


def test_a_download_is_the_whole_board(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/long/{BOARD}") as page:
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        assert download.value.suggested_filename == "movie-snippets-v1.csv"
        assert len(Path(download.value.path()).read_text(encoding="utf-8").splitlines()) == 451
