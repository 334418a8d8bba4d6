"""The report as LaTeX: one file per printed table, to \\input into a paper, and an appendix with all of them and the
figures, which compiles as it is. Pure: report in, files out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cprbench.render.document import Choice, Drawing, Items, Prose, Report, Section, Table
from cprbench.render.formats.latex_text import figures, padding, plain_decimals, tex, widths

#: Tables that papers print, in the order of the appendix. A table that a group has more than once ends in -2, -3, …
PRINTED = ("main", "k-sweep", "q-sweep", "k-by-q", "ledger", "claims", "hyper-parameters")
_NEEDED = r"""\usepackage[T1]{fontenc}
\usepackage{lmodern}
\usepackage{array,booktabs,longtable}
\usepackage{xcolor,colortbl}
"""
#: What every file of tables defines: the width to fill, the float that spans all columns, and \cprset, which keeps a
#: layout where the text is that wide: points of letters and lines, half of those between columns, what stands between
#: rows, widths of columns. \cprpages goes before a longtable: it would overtake floats, and it stops in two columns.
_MACROS = r"""\ifdefined\cprwidth\else\newlength{\cprwidth}\global\cprwidth=\textwidth\fi
\def\cprfloat{table\ifdim\columnwidth<\textwidth*\fi}
\def\cprset#1{\ifdim\cprwidth<#1pt \expandafter\cprskip\else\expandafter\cprkeep\fi}
\def\cprskip#1#2#3#4#5{}
\def\cprkeep#1#2#3#4#5{\def\cprsize{\fontsize{#1}{#2}\selectfont\setlength{\tabcolsep}{#3pt}}\def\cprgap{#4}%
  \def\cprcolumn##1{\dimexpr\ifcase##1 #5\fi\relax}}
\makeatletter
\def\cprpages{\par\begingroup\let\@elt\relax\edef\cprwait{\@botlist\@deferlist}\ifx\cprwait\@empty\endgroup\else
  \endgroup\clearpage\fi\def\cprback{}\ifdim\columnwidth<\textwidth\onecolumn\def\cprback{\twocolumn}\fi}
\makeatother
"""
#: Widths of text that tables are laid out for, in points: article's, NeurIPS's and this appendix's. A wider text takes
#: the next one below, a little stretched.
_TEXT_POINTS = (345.0, 5.5 * 72.27, 6.5 * 72.27)
_HIGH_POINTS = 390.0  # of a table that is one page's float; longer ones go over pages
_GAP_POINTS = 2.0  # between rows of several lines, which would run into one another
_SCALE = 0.875  # of drawings: two on a page, letters of 8 points
_HEAD_EM = 4.0  # a shorter heading stays in one line
#: Steps of the heat map: background and ink, those of the page in light.
_SHADES = (
    ("F4F8FC", "17212B"),
    ("DEEBF7", "17212B"),
    ("C1D9EF", "17212B"),
    ("94C4E4", "17212B"),
    ("5AA2D1", "0B1620"),
    ("1F67AD", "FFFFFF"),
    ("08306B", "FFFFFF"),
)
_CONTINUED = r"\multicolumn{%d}{@{}l@{}}{\textit{%s}}\\"


class _Step(NamedTuple):
    """One way to set a table: how large, how narrow a column may get, whether intervals stay in one line."""

    size: int  # of letters, in points, whatever a class calls small
    leading: float
    em_points: float
    least_em: float
    tied: bool
    between_points: float  # columns
    worth: float  # how much higher the table may be one step above


#: The step with the least height times `worth` is taken: a smaller size only where it saves lines.
_STEPS = (
    _Step(9, 11, 9.3, 7.0, True, 8.0, 1.0),
    _Step(8, 9.5, 8.5, 7.0, True, 8.0, 1.15),
    _Step(7, 8, 8.0, 6.0, True, 8.0, 1.3),
    _Step(7, 8, 8.0, 6.0, True, 4.0, 1.6),
    _Step(8, 9.5, 8.5, 7.0, False, 8.0, 2.0),
    _Step(7, 8, 8.0, 0.0, False, 4.0, 2.5),
    _Step(6, 7, 7.4, 0.0, False, 3.0, 4.0),
)


class _Layout(NamedTuple):
    step: _Step
    columns: list[str]  # their widths in LaTeX
    lines: int  # of the body
    gap: float  # between rows, in points
    lacks: float  # the points by which it sticks out


def files(report: Report) -> dict[str, bytes]:
    """Return path below the folder latex -> bytes: tables, the carbon statement, the appendix and its figures.

    Raises CprbenchError where there are figures and matplotlib is not installed.
    """
    found: dict[str, bytes] = {}
    for name in PRINTED:
        tables = [
            _table(table, section, of)
            for of, section in _sections(report)
            for table in section.parts
            if isinstance(table, Table) and re.fullmatch(rf"{name}(-\d+)?", table.name)
        ]
        if tables:
            found[f"{name}.tex"] = _file(_MACROS + "\n".join(tables))
    carbon = [_prose(section, of) for of, section in _sections(report) if section.name.endswith("carbon")]
    if carbon:
        found["carbon-statement.tex"] = _file("\n".join(carbon))
    inputs = [f"\\input{{{path.removesuffix('.tex')}}}" for path in found]
    drawn = []
    for of, section in _sections(report):
        for part in section.parts:
            if isinstance(part, Drawing):
                drawn.append(_figure([("", part)], part.title, section, of, found))
            elif isinstance(part, Choice):
                drawn.append(_figure(part.options, part.title, section, of, found))
    found["appendix.tex"] = _appendix(report, inputs, drawn).encode()
    return found


def _sections(report: Report) -> Iterator[tuple[str, Section]]:
    """Yield (title of its group, or nothing, section) of all sections."""
    for group in report.groups:
        yield from ((group.title, section) for section in group.walk())
    for part in report.rest:
        yield from (("", section) for section in part.walk())


def _file(body: str) -> bytes:
    needed = "".join(f"%   {line}\n" for line in _NEEDED.splitlines())
    return f"% Made by cprbench report. In the preamble, after the template's own packages:\n{needed}{body}".encode()


def _slug(*names: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(names).lower()).strip("-")


def _caption(title: str, of: str) -> str:
    return tex(title.rstrip(".") + (f": {of}." if of else "."))


# --- tables -----------------------------------------------------------------------------------------


def _table(table: Table, section: Section, of: str) -> str:
    decimals = [_decimals([row[j].text for row in table.rows]) for j in range(len(table.columns))]
    layouts = [_layout(table, decimals, points) for points in _TEXT_POINTS]
    sets = [_kept(layout) for layout in layouts]
    chosen = "".join(
        f"\\cprset{{{points - 1:.0f}}}{kept}\n"
        for points, kept, before in zip((1, *_TEXT_POINTS[1:]), sets, ("", *sets), strict=False)
        if kept != before
    )
    caption = f"\\caption{{{_caption(table.title, of)}}}\\label{{tab:cpr-{_slug(section.name, table.name)}}}"
    spec = "".join(
        f">{{\\ragged{'right' if j in table.words else 'left'}\\arraybackslash}}p{{\\cprcolumn{{{j}}}}}"
        for j in range(len(table.columns))
    )
    head = " & ".join(
        f"\\parbox[b]{{\\hsize}}{{\\ragged{'right' if j in table.words else 'left'} {tex(name)}}}"
        for j, name in enumerate(table.columns)
    )
    rows = []
    for row in table.rows:
        printed = []
        for j, cell in enumerate(row):
            text = tex(cell.text) if j in table.words else figures(cell.text, decimals[j])
            if cell.shade is not None:
                back, ink = _SHADES[cell.shade]
                text = f"\\cellcolor[HTML]{{{back}}}\\textcolor[HTML]{{{ink}}}{{{text}}}"
            printed.append(text)
        rows.append(" & ".join(printed))
    body = "\\\\\\cprgap\n".join(rows) + "\\\\"
    notes = "".join(f"{tex(note)}\\par\n" for note in table.notes)
    if notes:
        notes = f"\\begin{{minipage}}{{\\cprwidth}}\\footnotesize\\raggedright\n{notes}\\end{{minipage}}\n"
    if max(layout.lines * layout.step.leading + (len(rows) - 1) * layout.gap for layout in layouts) <= _HIGH_POINTS:
        return (
            f"{chosen}\\begin{{\\cprfloat}}\n\\centering\\cprsize\n{caption}\\par\\smallskip\n"
            f"\\begin{{tabular}}{{@{{}}{spec}@{{}}}}\n\\toprule\n{head}\\\\\n\\midrule\n{body}\n\\bottomrule\n"
            f"\\end{{tabular}}\n\\par\\smallskip\n{notes}\\end{{\\cprfloat}}\n"
        )
    continued = _CONTINUED % (len(table.columns), "continued")
    more = _CONTINUED % (len(table.columns), "continued on the next page")
    return (
        f"{chosen}\\cprpages\n\\begingroup\\cprsize\n\\setlength{{\\LTcapwidth}}{{\\cprwidth}}\n"
        f"\\begin{{longtable}}{{@{{}}{spec}@{{}}}}\n"
        f"{caption}\\\\\n\\toprule\n{head}\\\\\n\\midrule\n\\endfirsthead\n{continued}\n\\toprule\n{head}\\\\\n\\midrule\n"
        f"\\endhead\n\\midrule\n{more}\n\\endfoot\n\\bottomrule\n\\endlastfoot\n{body}\n\\end{{longtable}}\n"
        f"{{\\centering\n{notes}\\par}}\\bigskip\n\\endgroup\\cprback\n"
    )


def _kept(layout: _Layout) -> str:
    r"""Return a layout as \cprset is told of it."""
    gap = f"\\addlinespace[{layout.gap:g}pt]" if layout.gap else ""
    columns = "\\or ".join(layout.columns)
    step = layout.step
    return f"{{{step.size}}}{{{step.leading:g}}}{{{step.between_points / 2:g}}}{{{gap}}}{{{columns}}}"


def _decimals(cells: Sequence[str]) -> int | None:
    """Return how many decimals a column of plain numbers has, or None: powers of ten have no common point."""
    if any(re.search(r"\de[+-]\d", cell) for cell in cells):
        return None
    return max((found for cell in cells if (found := plain_decimals(cell)) is not None), default=None)


def _layout(table: Table, decimals: Sequence[int | None], text_points: float) -> _Layout:
    """Return how a table is set in a text of a width: as large as may be without many broken lines."""
    found = [_set(table, decimals, text_points, step) for step in _STEPS]
    return min(found, key=lambda layout: (layout.lacks, layout.lines * layout.step.em_points * layout.step.worth))


def _set(table: Table, decimals: Sequence[int | None], text_points: float, step: _Step) -> _Layout:
    """Return the widths of columns: whole where that fits; else they share what there is by how much they lack."""
    numeric = [j not in table.words for j in range(len(table.columns))]
    cells = [
        [row[j].text + number * padding(row[j].text, decimals[j]) for row in table.rows]
        for j, number in enumerate(numeric)
    ]
    needs = [widths(column, number, step.tied) for column, number in zip(cells, numeric, strict=True)]
    heads = [widths([name], False) for name in table.columns]
    whole = [max(0.5, head, min(line, _HEAD_EM), need) for (head, line), (_, need) in zip(heads, needs, strict=True)]
    least = [
        max(0.5, head, min(line, _HEAD_EM), narrow, min(need, step.least_em))
        for (head, line), (narrow, need) in zip(heads, needs, strict=True)
    ]
    room = (text_points - step.between_points * (len(numeric) - 1)) / step.em_points
    spare, lack = room - sum(least), sum(whole) - sum(least)
    share = min(1.0, max(0.0, spare / lack)) if lack else 1.0
    ems = [low + share * (high - low) for low, high in zip(least, whole, strict=True)]
    lines = 0
    for row in zip(*cells, strict=True):
        ratios = [widths([cell], number)[1] / em for cell, number, em in zip(row, numeric, ems, strict=True)]
        lines += max(1 if ratio < 1.001 else math.ceil(1.1 * ratio) for ratio in ratios)
    points = [step.em_points * em for em in ems]
    columns = [f"{wide:.1f}pt" if share == 1.0 else f"{wide / text_points:.4f}\\cprwidth" for wide in points]
    return _Layout(step, columns, lines, _GAP_POINTS * (lines > len(table.rows)), max(0.0, -spare * step.em_points))


# --- prose, figures, the appendix -------------------------------------------------------------------


def _prose(section: Section, of: str) -> str:
    """Return the sentences of a section, under the title of its group."""
    said = [f"\\paragraph{{{tex(of or section.title)}.}}"]
    for part in section.parts:
        if isinstance(part, Prose):
            said += [tex(paragraph) for paragraph in part.paragraphs]
        elif isinstance(part, Items):
            said.append(tex(f"{part.title}: {'; '.join(part.items)}."))
    return "{\\emergencystretch=3em\n" + "\n\n".join(said) + "\\par}\n"  # names of machines do not break


def _figure(
    options: Sequence[tuple[str, Drawing]], title: str, section: Section, of: str, found: dict[str, bytes]
) -> str:
    """Return floats with one drawing, or with two of a choice side by side; files go to `found`.

    What a drawing shows in words stands below it: it names what could not be drawn.
    """
    from cprbench.render.figures.saving import pdf

    alone = len(options) == 1
    shown, rows = [], 1
    for label, drawing in options:
        path = f"figures/{_slug(section.name, drawing.name)}.pdf"
        found[path] = pdf(drawing)
        wide, high = drawing.inches
        room = min(7.0, 8.5 - 0.14 * len(drawing.text) / 110) if alone else 7.0  # above its text
        scale = min(_SCALE, (6.5 if alone else 3.2) / wide, max(3.0, room) / high)
        rows = max(rows, int(7.8 / (scale * high + 0.2)))  # what a page has room for
        image = f"\\includegraphics[width={scale * wide:.2f}in]{{{path}}}"
        shown.append(f"\\begin{{tabular}}{{@{{}}c@{{}}}}{image}\\\\{tex(label)}\\end{{tabular}}" if label else image)
    told = "\\par\n".join(tex(f"{label}: {drawing.text}" if label else drawing.text) for label, drawing in options)
    pairs = ["\\hfill\n".join(shown[i : i + 2]) for i in range(0, len(shown), 2)]
    floats = []
    for i in range(0, len(pairs), rows):
        page = "\\\\\n".join(pairs[i : i + rows])
        label = "" if i else f"\\label{{fig:cpr-{_slug(section.name, options[0][1].name)}}}"
        caption = f"\\caption{{{_caption(title, of)}}}{label}"
        below = f"\\smallskip\n\\parbox{{\\linewidth}}{{{told}}}" if alone else ""
        floats.append(f"\\begin{{figure}}\n\\centering\\footnotesize\n{page}\n{caption}{below}\n\\end{{figure}}\n")
    return "".join(floats) + ("" if alone else f"{{\\footnotesize {told}\\par}}\n")  # may be longer than a page


def _appendix(report: Report, inputs: Sequence[str], drawn: Sequence[str]) -> str:
    answers = "\n".join(
        f"\\paragraph{{{tex(group.title)}.}} "
        + " ".join(tex(said) for part in leads for said in part.paragraphs)
        + "\n"
        for group in (*report.groups, *report.rest)
        if (leads := [part for part in group.parts if isinstance(part, Prose) and part.lead])
    )
    return (
        "% Made by cprbench report: pdflatex appendix, twice.\n\\documentclass{article}\n"
        f"{_NEEDED}\\usepackage{{graphicx,float}}\n\\usepackage[textwidth=6.5in,textheight=9in]{{geometry}}\n"
        "\\floatplacement{table}{H}\n\\floatplacement{figure}{H}\n\\begin{document}\n\\appendix\n"
        f"\\section{{{tex(report.title)}}}\n{answers}\n" + "\n".join((*inputs, *drawn)) + "\\end{document}\n"
    )
