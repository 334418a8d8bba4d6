"""The page of a blueprint: whoever wrote the file, and whoever reads the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from cprbench.blueprint.schema import Blueprint
from cprbench.render.heatmap import EDGES, cost_of, domains_of, facts, grid, html, percent, shares, step
from cprbench.schema import parse
from tests.blueprint.example import full_blueprint, full_data, paper_example

EVIL = "<script>alert(1)</script>\" onload='x' & </style><img src=//evil.example>"


def paper() -> Blueprint:
    return parse(Blueprint, paper_example(), "the paper's example")


class Page(HTMLParser):
    """The tags of a page, and the tables as rows of (text, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[tuple[str, dict[str, str | None]]]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(("", dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            text, attrs = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, attrs)


def test_every_cell_of_the_map_has_its_share_and_its_colour() -> None:
    heat = Page(html(full_blueprint())).tables[0]
    kinds = ("attn", "ffn", "other")
    assert [[text for text, _ in row] for row in heat] == [
        ["submodule", *(f"{tag} {kind}" for tag in ("general", "bio") for kind in kinds)],
        ["layer 0", "18.5", "3.0", "", "11.9", "3.0", ""],
        ["layer 1", "11.9", "6.7", "", "18.5", "60.0", ""],
        ["embed", "", "", "60.0", "", "", "6.7"],
    ]
    classes = [attrs.get("class") for _, attrs in heat[1]]
    assert classes[1:] == ["s5", "s3", None, "s5", "s3", None]
    assert heat[3][3][1]["class"] == "s6"


def test_the_tables_say_which_header_a_cell_belongs_to() -> None:
    page = Page(html(full_blueprint()))
    for table in page.tables[:2]:
        for row in table:
            scopes = [attrs.get("scope") for _, attrs in row]
            assert scopes[0] in ("col", "row")
            assert set(scopes[1:]) <= {None, "col", "colgroup"}
    assert page.tags.count("caption") == len(page.tables) == 3
    assert page.open == []


def test_the_scale_is_the_same_on_every_page() -> None:
    assert [step(edge) for edge in EDGES] == [1, 2, 3, 4, 5, 6]
    assert [step(share) for share in (0.0, 0.0009, 0.29, 1.0)] == [0, 0, 5, 6]
    assert [percent(share) for share in (0.0, 0.0001, 0.0005, 0.1234, 1.0)] == ["0", "<0.1", "0.1", "12.3", "100.0"]
    assert "The shade changes at 0.1, 0.3, 1, 3, 10, 30 %." in html(paper())


def test_shares_follow_tags_where_a_file_has_no_norms_of_a_domain() -> None:
    own = shares(paper(), "bio")
    squares = {"attn.0": 0.052**2 * 0.79, "ffn.0": 0.033**2 * 0.68, "attn.1": 0.045**2 * 0.75}
    assert own == pytest.approx({name: square / sum(squares.values()) for name, square in squares.items()})
    assert domains_of(paper()) == ["general", "bio", "legal"]


def test_what_a_file_does_not_tell_is_told_as_that() -> None:
    page = Page(html(paper()))
    row = ["layer 1", "34.8", "not told", "34.6", "not told", "41.9", "not told"]
    assert [text for text, _ in page.tables[0][2]] == row
    assert [text for text, _ in page.tables[1][1]] == [
        *("attn.0", "not told", "0.052", "not told", "not told", "1.47", "not told", "not told", "15 %"),
    ]
    assert "3 of 3 submodules have no mass_curve." in html(paper())
    assert cost_of(None) == "not told"
    data = full_data()
    del data["layers"][0]["domains"]["bio"], data["layers"][0]["domain_tags"]["bio"]
    partly = parse(Blueprint, data, "a file")
    assert shares(partly, "bio") is None
    assert html(partly).count("not told</td>") >= 5


def test_zero_gradients_are_zero_and_not_unknown() -> None:
    data = paper_example()
    for layer in data["layers"]:
        layer["gradient_norm"] = 0.0
    assert set((shares(parse(Blueprint, data, "zero"), "general") or {}).values()) == {0.0}
    tiny = full_blueprint({"attn.0": 1e-300, "ffn.0": 1e-300}, sizes={"attn.0": 1, "ffn.0": 1})
    assert shares(tiny, "general") == {"attn.0": 0.5, "ffn.0": 0.5}


def test_layers_stand_in_their_order_and_the_rest_apart() -> None:
    names = ["embed", "attn.10", "attn.2", "ffn.2", "attn.02", "mlp.0", "head"]
    data = full_data(dict.fromkeys(names, 1.0), sizes=dict.fromkeys(names, 1))
    kinds, rows, apart = grid(parse(Blueprint, data, "odd names"))
    assert kinds == ["attn", "ffn"]
    assert rows == [("2", ["attn.2", "ffn.2"]), ("02", ["attn.02", None]), ("10", ["attn.10", None])]
    assert apart == ["embed", "mlp.0", "head"]
    assert grid(full_blueprint({"wte": 1.0}, sizes={"wte": 1})) == ([], [], ["wte"])
    assert "<td" in html(full_blueprint({"wte": 1.0}, sizes={"wte": 1}))


def hostile() -> Blueprint:
    """Return a file with markup in every free text."""
    data: dict[str, Any] = full_data(model_id=EVIL, k_star=None, k_star_why=EVIL, revision=EVIL)
    data["model"]["source"] = data["measurement"]["loss"] = data["measurement"]["head"] = EVIL
    data["measurement"]["norm"] = data["privacy"]["note"] = data["made"]["tool"] = EVIL
    data["made"]["hardware_class"] = data["cost"][0]["why"] = data["concentration"]["fit"]["why"] = EVIL
    data["cost"][0]["k_star"] = None
    for domain in data["domains"]:
        domain["task"] = domain["split"] = EVIL
    for layer in data["layers"]:
        layer["k_star_why"] = EVIL
    return parse(Blueprint, data, "hostile")


def test_hostile_names_are_text_and_nothing_else() -> None:
    harmless, page = Page(html(full_blueprint())), Page(html(hostile()))
    assert set(page.tags) == set(harmless.tags)
    assert {name for name, _ in page.attributes} == {name for name, _ in harmless.attributes}
    assert page.open == []
    assert any(EVIL in text for table in page.tables for row in table for text, _ in row)


def test_the_page_asks_for_nothing_and_runs_only_what_sorts_its_tables() -> None:
    text = html(full_blueprint())
    page = Page(text)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == 1 and "script-src 'sha256-" in text
    assert not re.search(r"(?i)url\(|@import|https?:|\bsrc=|\bhref=\"[^#]", text)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in text
    for wanted in ("prefers-color-scheme:dark", "width=device-width", "@media print", 'lang="en"'):
        assert wanted in text


def _luminance(colour: str) -> float:
    digits = colour if len(colour) == 6 else "".join(2 * c for c in colour)
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_go_one_way_and_numbers_stay_readable_on_them() -> None:
    found = re.findall(r"\.s(\d)\{--b:#(\w+);--t:#(\w+)\}", html(paper()))
    assert [int(number) for number, _, _ in found] == [*range(7), *range(7)]
    for _, back, ink in found:
        light, dark = sorted((_luminance(back), _luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (back, ink)
    backs = [_luminance(back) for _, back, _ in found]
    assert backs[:7] == sorted(backs[:7], reverse=True)  # light page: darker is more
    assert backs[7:] == sorted(backs[7:])  # dark page: lighter is more


def test_the_same_file_gives_the_same_bytes() -> None:
    assert html(full_blueprint()) == html(full_blueprint())
    assert html(hostile()) == html(hostile())


def test_facts_say_where_numbers_come_from_and_what_making_them_cost() -> None:
    told = dict(facts(full_blueprint()))
    assert told["weights sha256"] == "a1" * 32
    assert told["domain bio"].startswith("bio-task v1, validation split, 512 examples, at most 48 tokens")
    assert told["alpha"].startswith("1.50: heavy-tailed (the power law beats")
    assert told["alpha by submodule"] == "1.50 to 1.50; 5 heavy-tailed"
    assert told["k_star by seconds"] == "37.5 % of the parameters (counter cost of steps, line with R^2 0.99)"
    assert told["making it cost"].endswith("1.00e+15 FLOPs; not measured: core hours")
    noisy = full_blueprint(privacy={"noise_multiplier": 1.0, "epsilon": 3.5, "delta": 1e-5})
    assert dict(facts(noisy))["privacy"] == "aggregates only; epsilon 3.5 at delta 1.00e-05"
    assert dict(facts(paper()))["k_star by submodule"] == "0.13 to 0.25 of its scalars"
