"""LaTeX: names of strangers print as they are, tables fit the page, and the appendix asks for what is there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprbench.render.document import Cell, Choice, Drawing, Items, Prose, Report, Section, Table
from cprbench.render.formats.latex import _SHADES, PRINTED, files
from cprbench.render.formats.latex_text import figures, tex, widths
from tests.conftest import ROOT

COMMAND = re.compile(
    r"\\(?:text(?:backslash|asciicircum|asciitilde|quotedbl|quotesingle|asciigrave|less|greater|bar|minus)\{\}|dots\{\}"
    r"|allowbreak\{\}|ensuremath\{\\(?:[lg]e|propto)\}|[{}$&#_%])|\{[][*]\}|(?<=[-,])\{\}"
)


def table(name: str = "main", rows: int = 2, **parts: Any) -> Table:
    cells = tuple((Cell(f"arm {i}"), Cell(f"+0.{i:03d} [-0.10, +0.20]", i / 1000)) for i in range(rows))
    made = Table(name, "What it keeps", ("arm", "gain"), cells)
    return replace(made, **parts)


def drawing(name: str, inches: tuple[float, float] = (4.8, 3.4)) -> Drawing:
    return Drawing(name, f"Title of {name}", "what it shows", lambda figure: None, inches)


def report(*parts: Any, rest: tuple[Section, ...] = ()) -> Report:
    first = Section("runs-1", "task_a v1 x tiny", parts)
    return Report("Capability & cost", (first, Section("runs-2", "task b v1 x tiny", parts)), rest)


def text(made: dict[str, bytes], path: str) -> str:
    return made[path].decode()


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/\allowbreak{}etc/\allowbreak{}passwd\}"),
        (r"\write18{x}", r"\textbackslash{}write18\{x\}"),
        ("^^5c a_b $x$ 5 % #1 & ~", r"\textasciicircum{}\textasciicircum{}5c a\_b \$x\$ 5~\% \#1 \& \textasciitilde{}"),
        ("--set a---b ,,c", "-{}-set a-{}-{}-b ,{},c"),
        ("``a'' <<b>> |", r"\textasciigrave{}\textasciigrave{}a\textquotesingle{}\textquotesingle{} "
         r"\textless{}\textless{}b\textgreater{}\textgreater{} \textbar{}"),
        ('full\'s "gain"', r"full's \textquotedbl{}gain\textquotedbl{}"),
        ("[1cm] * {", r"{[}1cm{]} {*} \{"),
        ("one\ntwo\t three\r\n\n\\par", r"one two three \textbackslash{}par"),
        ("né β 漢 🙂 a\u202eb e\u0301", "né {[}U+03B2{]} {[}U+6F22{]} {[}U+1F642{]} a{[}U+202E{]}b é"),
        ("\x07 \ud800", "{[}U+0007{]} {[}U+D800{]}"),
        ("GenuineIntel-6-143-8", r"GenuineIntel-6\allowbreak{}-143-8"),
        ("c -0.5 (-3, 1e-5)", r"c \textminus{}0.5 (\textminus{}3, 1e-5)"),
    ],
)  # fmt: skip
def test_a_name_prints_as_it_is_and_runs_as_nothing(name: str, printed: str) -> None:
    assert tex(name) == printed


@given(st.text())
def test_no_text_leaves_anything_for_latex_to_read(name: str) -> None:
    printed = tex(name)
    printed.encode()
    left = COMMAND.sub("x", printed)  # what is taken out stood between its neighbours
    assert not re.search(r"[\\{}$&#_^~%\[\]*\"`<>|\x00-\x1f\x7f]|--|,,", left), printed


def test_a_long_name_may_be_broken_over_lines() -> None:
    assert tex("selection=influence") == r"selection=\allowbreak{}influence"
    assert tex("all-MiniLM-L6-v2") == r"all-\allowbreak{}MiniLM-\allowbreak{}L6-\allowbreak{}v2"
    assert tex("learning_rate=5e-05").endswith("=\\allowbreak{}5e-05"), "a power of ten is one piece"
    assert widths(["1.3x [1.1x, 1.5x]"], True)[0] > widths(["1.3x [1.1x, 1.5x]"], True, tied=False)[0]
    assert tex("f" * 40).count(r"\allowbreak{}") == 2
    assert widths(["f" * 40], False)[0] < widths(["f" * 40], False)[1] / 2


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ("-0.125", r"\textminus{}0.125"),
        ("5.88e+12", r"5.88$\times10^{12}$"),
        ("2.0e-05", r"2.0$\times10^{-5}$"),
        ("1.29x [1.10x, 1.52x]", r"1.29\texttimes{} {[}1.10\texttimes{},\penalty999\ 1.52\texttimes{}{]}"),
        ("+0.2 [-0.1, +0.3]", r"+0.2 {[}\textminus{}0.1,\penalty999\ +0.3{]}"),
        ("89 %", r"89\,\%"),
        ("not measured: no_meter", r"not measured: no\_meter"),
        ("GPU-0x12 v1.2.3", r"GPU-0x12 v1.2.3"),
        (r"\$1\input{3}", r"\textbackslash{}\$1\textbackslash{}input\{3\}"),
    ],
)
def test_numbers_have_minus_signs_powers_and_whole_intervals(cell: str, printed: str) -> None:
    assert figures(cell) == printed


def test_the_points_of_a_column_of_numbers_stand_below_one_another() -> None:
    cells = tuple((Cell(str(i)), Cell(value)) for i, value in enumerate(("3.725", "28.1", "115", "not measured")))
    made = text(files(report(replace(table(), rows=cells))), "main.tex")
    assert r"28.1\phantom{00}" in made and r"115\phantom{.000}" in made and "3.725\\\\" in made
    measured = text(files(report(replace(table(), rows=cells[:3]))), "main.tex")
    (number,) = {columns[1] for _, columns in layouts(measured)}
    assert float(number.removesuffix("pt")) >= 9.3 * (6 * 0.5 + 0.28), "115.000 has its room, or it would stick out"
    powers = replace(table(), rows=(*cells, (Cell("x"), Cell("1.00e+12"))))
    assert "phantom" not in text(files(report(powers)), "main.tex"), "powers of ten have no common point"


def test_a_file_per_printed_table_holds_that_of_every_group() -> None:
    claims = Section("claims", "Claims", (table("claims", title="Verdicts"),))
    found = files(report(table(), table("k-by-q"), table("k-by-q-2"), table("scores"), rest=(claims,)))
    assert sorted(found) == ["appendix.tex", "claims.tex", "k-by-q.tex", "main.tex"]
    main = text(found, "main.tex")
    assert re.findall(r"\\caption\{(.*?)\}\\label\{(.*?)\}", main) == [
        (r"What it keeps: task\_a v1 x tiny.", "tab:cpr-runs-1-main"),
        ("What it keeps: task b v1 x tiny.", "tab:cpr-runs-2-main"),
    ]
    assert [main.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [2, 2, 2]
    assert text(found, "k-by-q.tex").count(r"\begin{\cprfloat}") == 4
    assert r"\caption{Verdicts.}\label{tab:cpr-claims-claims}" in text(found, "claims.tex")
    inputs = re.findall(r"\\input\{(.*?)\}", text(found, "appendix.tex"))
    assert inputs == ["main", "k-by-q", "claims"] == [name for name in PRINTED if name in inputs]


def test_notes_stand_below_their_table_and_shades_are_colours() -> None:
    rows = ((Cell("a"), Cell("12 %", 0.12, 1)), (Cell("b"), Cell("99 %", 1, 6)))
    shaded = replace(table(notes=("50 % is half.",)), rows=rows)
    main = text(files(report(shaded)), "main.tex")
    assert main.index(r"\bottomrule") < main.index(r"50~\% is half.") < main.index(r"\end{\cprfloat}")
    assert r"\cellcolor[HTML]{DEEBF7}\textcolor[HTML]{17212B}{12\,\%}" in main
    assert r"\cellcolor[HTML]{08306B}\textcolor[HTML]{FFFFFF}{99\,\%}" in main, "white on the darkest"


def test_the_shades_are_those_of_the_page_in_light() -> None:
    light = (ROOT / "cprbench" / "render" / "templates" / "page.css").read_text().split("@media")[0]
    found = re.findall(r"\.s\d\{--b:#(\w+);--t:#(\w+)\}", light)
    colours = [tuple((colour * (6 // len(colour))).upper() for colour in pair) for pair in found]  # fff is ffffff
    assert tuple(colours) == _SHADES


def test_what_is_longer_than_a_page_goes_over_pages() -> None:
    deep = tuple((Cell("long word " * 60), Cell("1")) for _ in range(20))
    for made, pages in ((table(rows=35), False), (table(rows=36), True), (replace(table(), rows=deep), True)):
        main = text(files(report(made)), "main.tex")
        assert (r"\begin{longtable}" in main and r"\endhead" in main) == pages
        assert (r"\addlinespace" in main) == (made.rows == deep), "rows of several lines stand apart"
        assert (r"\begin{\cprfloat}" in main) != pages and main.count(r"\caption") == 2
        assert main.count("\n\\cprpages\n") == main.count(r"\endgroup\cprback") == 2 * pages


def layouts(made: str) -> list[tuple[tuple[float, ...], list[str]]]:
    """Return of each layout of the tables: (text width, size, leading, half the space between columns), columns."""
    found = re.findall(r"\\cprset\{(\d+)\}\{(\d+)\}\{([\d.]+)\}\{([\d.]+)\}\{.*?\}\{(.*)\}", made)
    return [(tuple(map(float, numbers)), columns.split(r"\or ")) for *numbers, columns in found]


def test_a_wide_table_is_set_smaller_and_broken_between_words_until_it_fits_each_width_of_text() -> None:
    (narrow, columns), again = layouts(text(files(report(table())), "main.tex"))
    assert narrow == (0, 9, 11, 4) and again == (narrow, columns), "one layout for all, in each of two groups"
    assert sum(float(column.removesuffix("pt")) for column in columns) < 250
    names = tuple(f"cost in unit {i}" for i in range(9))
    row = (Cell("partial k=0.15 selection=influence q=0.3 budget=0.25x full"), *(Cell("1.29x [1.10x, 1.52x]"),) * 9)
    wide = text(files(report(replace(table(), columns=("arm", *names), rows=(row,) * 5))), "main.tex")
    found = layouts(wide)[:3]
    assert [numbers[0] for numbers, _ in found] == [0, 396, 469]
    for points, ((_, size, _, half), shares) in zip((345.0, 5.5 * 72.27, 6.5 * 72.27), found, strict=True):
        filled = [float(share.removesuffix(r"\cprwidth")) * points for share in shares]
        assert sum(filled) + 9 * 2 * half <= points + 0.5 and min(filled) > 20 and size < 9


def test_every_file_asks_for_xcolor_without_options_which_a_template_may_have_loaded() -> None:
    for content in files(report(table(), table("ledger"))).values():
        assert rb"\usepackage{xcolor,colortbl}" in content and b"[table]" not in content


def test_the_carbon_statement_is_prose_of_its_section() -> None:
    said = Section(
        "carbon", "Compute & carbon", (Prose(("63 runs took 5 % of a day.",)), Items("Left out", ("co2_kg", "x")))
    )
    found = files(report(table(), rest=(said,)))
    statement = text(found, "carbon-statement.tex")
    assert r"\paragraph{Compute \& carbon.}" in statement and r"63 runs took 5~\% of a day." in statement
    assert r"Left out: co2\_kg; x." in statement
    assert r"\input{carbon-statement}" in text(found, "appendix.tex")


def test_the_appendix_shows_every_drawing_and_all_of_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cprbench.render.figures.saving.pdf", lambda drawn: f"%PDF {drawn.name}".encode())
    options = tuple((f"re_source {i}", drawing(f"plane-{i}")) for i in range(8))
    inside = Section("runs-1-plane", "Plane", (Choice("plane", "Psi against cost", "resource", options),))
    group = Section("runs-1", "a_task", (Prose(("It keeps 77 %.",), lead=True), drawing("wide", (9.0, 3.0))), (inside,))
    found = files(Report("R", (group,)))
    appendix = text(found, "appendix.tex")
    shown = re.findall(r"\\includegraphics\[width=([\d.]+)in\]\{(.*?)\}", appendix)
    assert shown == [
        ("6.50", "figures/runs-1-wide.pdf"),
        *(("3.20", f"figures/runs-1-plane-plane-{i}.pdf") for i in range(8)),
    ]
    assert {path for _, path in shown} == set(found) - {"appendix.tex"}
    assert found["figures/runs-1-plane-plane-3.pdf"] == b"%PDF plane-3"
    assert appendix.count("what it shows") == 9, "in words too"
    assert appendix.count(r"\caption{Psi against cost: a\_task.}") == 2, "eight do not fit on one page"
    assert r"re\_source 7" in appendix and r"\paragraph{a\_task.} It keeps 77~\%." in appendix


def test_a_report_without_runs_is_an_appendix_that_says_so() -> None:
    none = Section("none", "No runs", (Prose(("There are no runs to report.",), lead=True),))
    found = files(Report("R", (), (none,)))
    assert list(found) == ["appendix.tex"] and "There are no runs to report." in text(found, "appendix.tex")
