"""Sites that the slow tests open in Chromium, and how they open them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from cprbench.judge.submission import Entry
from cprbench.render.site import render
from tests.render.site.entries import GPU, make_entry, make_row, make_run, many, no, num

BOARD = "movie-snippets-v1/index.html"
ROWS = "#board tr[data-v]"
#: The arms of small() in the order of their board.
ORDER = ["full", "lora r=4", "head", "lora r=8", "bitfit", "partial k=0.15"]


def small() -> list[Entry]:
    """Return a board of six rows on two machines, of two submissions, whose order is known by heart."""

    def costs(flops: float, hours: float) -> dict[str, Any]:
        return make_row().gamma | {"flops": num(flops), "device_hours": num(hours)}

    off = ["2 blocks ended well, 3 are asked for"]
    rows = [
        make_row(0.90, arm="full", baseline=True, gamma=costs(6e12, 0.5)),
        make_row(0.88, arm="lora r=4", gamma=costs(4e12, 0.4), settings={"r": 4}),
        make_row(0.70, arm="head", baseline=True, gamma=costs(1e12, 0.1)),
        make_row(0.99, arm="partial k=0.15", gamma=costs(1e11, 0.01), unranked=off),
    ]
    others = [
        make_row(
            0.86, arm="lora r=8", hardware_class=GPU, gamma=costs(5e12, 0.02), weights_sha256="0" * 64, model="big"
        ),
        make_row(0.89, arm="bitfit", hardware_class=GPU, gamma=costs(7e12, 0.03) | {"flops": no("no counter")}),
    ]
    return [make_entry("first", rows), make_entry("second", others)]


def divided() -> list[Entry]:
    """Return a board of two divisions, and of a row with other limits that does not rank."""
    limits = {"eval_items": 400}
    edge = [make_run(0, curve=[(1.05e12, 0.5), (1.2405e12, 0.8)])]  # 1.25×10¹² stands at the right edge
    ours = [make_row(0.9, 1e12, arm="full", limits=limits, runs=edge), make_row(0.8, 2e12, arm="head", limits=limits)]
    smoke = make_row(0.99, 1e10, arm="smoke", limits={"eval_items": 8}, unranked=["a smoke test"])
    theirs = make_row(0.95, 1e11, arm="lora", limits=limits)
    return [make_entry("first", [*ours, smoke]), make_entry("second", [theirs], spec={"division": "open"})]


def falling() -> list[Entry]:
    """Return a board whose scores are better where they are lower."""
    rows = [make_row(score, 1e12 * i, arm=f"arm {i}", metric="nll") for i, score in enumerate((0.4, 0.3, 0.5), 1)]
    return [make_entry("first", rows)]


def long() -> list[Entry]:
    """Return a board of three pages."""
    return many(450, per_entry=50)


def write(entries: list[Entry], folder: Path) -> None:
    """Write a site to a folder."""
    for path, content in render(entries):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@contextmanager
def opened(browser: Browser, url: str, width: int = 1400, **options: Any) -> Iterator[Page]:
    """Open a page in a window of its own; whatever it complains about or asks of somebody else fails the test."""
    own = url[: url.index("/", 8)]
    told: list[str] = []
    with browser.new_context(viewport={"width": width, "height": 800}, **options) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: told.append(message.text))  # where a policy is broken, it is told here
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.on("request", lambda request: told.append(request.url) if not request.url.startswith(own) else None)
        page.goto(url)
        yield page
        assert told == []


def arms(page: Page) -> list[str]:
    """Return the arms that a board shows, in their order."""
    return [text.split("\n")[0].removesuffix(" baseline") for text in page.locator(f"{ROWS} th").all_inner_texts()]


def groups(page: Page) -> list[str]:
    """Return the titles of the groups of a board."""
    return page.locator("#board tr.group").all_inner_texts()


def cells(page: Page, key: str) -> list[str]:
    """Return the texts of a column of a board."""
    index = page.locator(f"#board th[data-key={key}]").evaluate("th => th.cellIndex")
    return page.locator(f"{ROWS} > :nth-child({index + 1})").all_inner_texts()


def count(page: Page) -> str:
    """Return what a board says of how many rows it shows."""
    return page.locator("#count").inner_text()
