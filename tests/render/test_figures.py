"""Figures are saved the same everywhere, alone or many on one page, whatever strangers call their arms."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import combinations
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

from cprbench.adapt.methods import METHODS as BROUGHT
from cprbench.render.document import Drawing
from cprbench.render.figures.saving import pdf, svg
from cprbench.render.figures.style import COLOURS, INK, LETTERS, METHODS, arm_looks, label, looks, method_looks, scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

HOSTILE = (
    "$\\frac{$",
    "_hidden",
    "<script>alert(1)</script>",
    "中文",
    "\u202eabc",
    "\x00\x1b",
    "\ud800",
    "a\nb",
    "🤖" * 40,
    "",
)
SVG = "{http://www.w3.org/2000/svg}"


def drawing(*names: str, title: str = "A title", text: str = "What it shows.") -> Drawing:
    """Return a figure with a name in every place where drawings put names."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, look) in enumerate(zip(names, looks(names).values(), strict=True)):
            axes.plot([1, 1000], [i, i + 1], color=look.colour, marker=look.marker, label=label(name, 30))
        axes.bar([10], [0.5], color=COLOURS[0], hatch="//", edgecolor=INK)
        axes.set_yticks(range(len(names)), labels=[label(name, 30) for name in names])
        axes.annotate(names[0], (1, 0))
        scale(axes, "x", [1, 1000])
        axes.set_xlabel(names[0])
        figure.legend(loc="outside lower left")

    return Drawing("made-up", title, text, draw, (4.8, 6.8))


def texts(of: str) -> list[str]:
    return [str(element.text) for element in ElementTree.fromstring(of).iter(f"{SVG}text")]


def test_a_figure_has_a_title_and_a_text_for_those_who_cannot_see_it() -> None:
    root = ElementTree.fromstring(svg(drawing("a", title="<b> & c", text="It says 3 < 4."), "x-"))
    assert root.get("role") == "img"
    assert str(root.get("aria-labelledby")).split() == [root[0].get("id"), root[1].get("id")] == ["x-title", "x-desc"]
    assert (root[0].text, root[1].text) == ("<b> & c", "It says 3 < 4.")


def test_it_scales_to_its_container_and_stands_inside_a_page() -> None:
    saved = svg(drawing("a"))
    root = ElementTree.fromstring(saved)
    assert saved.startswith("<svg ") and root.get("viewBox") == "0 0 345.6 489.6"
    assert root.get("width") is None and root.get("height") is None
    assert not list(root.iter(f"{SVG}style"))  # it would be the style of the whole page


def test_many_figures_share_a_page_without_sharing_an_id() -> None:
    one, two = (set(re.findall(r'\bid="([^"]+)"', svg(drawing("a", "b"), prefix))) for prefix in ("one-", "two-"))
    assert len(one) > 3 and not one & two


def test_every_id_is_used_and_every_reference_has_its_id() -> None:
    saved = svg(drawing("a", "b"), "p-")
    ids = set(re.findall(r'\bid="([^"]+)"', saved))
    used = set(re.findall(r"#(p-[\w-]+)", saved)) | set(re.findall(r'aria-labelledby="(\S+) (\S+)"', saved)[0])
    assert ids == used


def test_ink_is_the_pages_on_a_page_and_black_alone() -> None:
    on_page, alone = svg(drawing("a")), svg(drawing("a"), alone=True)
    for name in ("--ink", "--soft", "--line"):
        assert f"var({name}," in on_page
    assert "var(" not in alone and INK in alone
    assert "#ffffff" not in on_page + alone  # no background: the page's shows


def test_names_of_strangers_are_set_as_they_stand() -> None:
    found = texts(svg(drawing(*HOSTILE)))
    for name in (
        "$\\frac{$",
        " _hidden",
        "<script>alert(1)</script>",
        "中文",
        "[U+202E]abc",
        "[U+0000][U+001B]",
        "a b",
    ):
        assert name in found
    assert any("[U+D800]" in text for text in found) and "(no name)" in found


def test_titles_and_texts_of_strangers_are_marked_up_as_well_as_names() -> None:
    root = ElementTree.fromstring(svg(drawing("a", title="\x00", text="\ud800")))
    assert (root[0].text, root[1].text) == ("[U+0000]", "[U+D800]")


def test_wide_characters_count_twice_in_a_label() -> None:
    assert label("中" * 40, 20, 4).splitlines()[0] == "中" * 10


def test_paper_shows_a_question_mark_for_what_its_font_lacks() -> None:
    assert pdf(drawing(*HOSTILE)).startswith(b"%PDF")  # a missing glyph is a warning, and warnings are errors here


def test_the_paper_has_its_fonts_inside_and_no_date() -> None:
    saved = pdf(drawing("a"))
    assert b"/FontFile2" in saved  # TrueType outlines, not drawn shapes
    assert b"CreationDate" not in saved


def test_the_bytes_are_the_same_in_another_time_zone_and_locale() -> None:
    code = (
        "import hashlib; from tests.render.test_figures import drawing; "
        "from cprbench.render.figures.saving import pdf, svg; d = drawing('a', 'ü'); "
        "print(hashlib.sha256(svg(d, 'f-').encode() + pdf(d)).hexdigest())"
    )
    elsewhere = {"TZ": "Pacific/Chatham", "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "7"}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | more)
        for more in ({"PYTHONHASHSEED": "1"}, elsewhere)
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_a_readers_own_settings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = svg(drawing("a")), pdf(drawing("a"))
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 23)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 7)
    assert (svg(drawing("a")), pdf(drawing("a"))) == before
    assert matplotlib.rcParams["font.size"] == 23


def linear(colour: str) -> NDArray[np.float64]:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#10161d"])
def test_every_colour_stands_out_on_the_light_and_on_the_dark_page(page: str) -> None:
    assert min(contrast(colour, page) for colour in COLOURS) >= 3


#: What is left of linear RGB without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1).
CONES = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.mark.parametrize("cones", CONES)
def test_no_two_colours_look_alike_to_those_who_lack_a_kind_of_cone(cones: str) -> None:
    def lab(colour: str) -> NDArray[np.float64]:
        xyz = XYZ @ np.clip(np.array(CONES[cones]) @ linear(colour), 0, 1) / [0.9505, 1, 1.089]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    assert min(float(np.linalg.norm(lab(a) - lab(b))) for a, b in combinations(COLOURS, 2)) > 20


def test_series_differ_in_their_marker_and_neighbours_in_their_line() -> None:
    found = list(looks([str(i) for i in range(12)]).values())
    assert len({look.marker for look in found}) == 12
    assert len({(look.colour, look.dash) for look in found}) == 12


def test_a_method_has_one_look_whatever_it_is_shown_beside() -> None:
    assert set(METHODS) == set(BROUGHT)
    whole = method_looks(METHODS)
    assert len(set(whole.values())) == len(METHODS) and len({look.marker for look in whole.values()}) == len(METHODS)
    assert len({whole[name].colour for name in METHODS[:6]}) == 6
    assert method_looks(["mine", "spectrum", "lora"]) | whole == whole | method_looks(["mine"])
    assert arm_looks({"lora": "lora", "full": "full"}) == method_looks(["lora", "full"])


def test_arms_of_one_method_share_its_colour_and_differ_in_marker_and_line() -> None:
    arms = {f"partial k=0.{i}": "partial" for i in range(1, 6)} | {"full": "full", "head": "head", "mine": "mine"}
    found = arm_looks(arms)
    partial = [found[name] for name in arms if name.startswith("partial")]
    assert partial[0] == method_looks(["partial"])["partial"]
    assert {look.colour for look in partial} == {partial[0].colour}
    assert len({look.dash for look in partial}) == 5
    assert len({look.marker for look in found.values()}) == len(arms)
    many = list(arm_looks({str(i): "partial" for i in range(30)}).values())
    assert len({look.marker for look in many[:12]}) == 12  # then they begin again


def test_letters_can_be_read_on_a_phone() -> None:
    saved = svg(drawing("a"))
    sizes = {float(size) for size in re.findall(r"font(?:-size)?: ?([\d.]+)px", saved)}
    assert sizes == {LETTERS}
    assert min(sizes) * 360 / float(re.findall(r'viewBox="0 0 ([\d.]+)', saved)[0]) >= 10.5


def test_a_long_name_is_cut_and_says_so() -> None:
    lines = label("word " * 100, 20, 2).splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 20 and lines[-1].endswith("…")
