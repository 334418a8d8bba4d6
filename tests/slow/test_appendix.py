"""The appendix compiles with Debian's pdflatex: nothing sticks out, nothing is undefined, names print as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
import zipfile
from pathlib import Path

import pytest

from cprbench.judge.evidence import Evidence, gather
from cprbench.render.formats.latex import files
from cprbench.render.report.contents import report_of
from cprbench.spec import RunRecord
from tests.conftest import ROOT
from tests.records_factory import make_blocks, make_evidence, make_record

HOSTILE = (
    r"partial \input{/etc/passwd}", r"\write18{id}", "^^5cend{document}", "100%", "$x_1$ & {a}}", "#1 ~tilde",
    "a--b---c", "``quoted'' <<it>> \"so\"", "[1cm]", "*star", "Łódź né", "漢字 🙂 a\u202eb", "x" * 200, "a_b=" * 40,
)  # fmt: skip


def stored(name: str, folder: Path) -> Evidence:
    with zipfile.ZipFile(ROOT / "tests" / "records" / f"{name}.zip") as archive:
        archive.extractall(folder / name)
    return gather(folder / name)


def compiled(evidence: Evidence, folder: Path) -> str:
    """Return the text of the appendix; its log must have no error and nothing that sticks out or is undefined."""
    if not shutil.which("pdflatex"):
        pytest.fail("pdflatex is absent: run scripts/system-packages slow")
    for path, content in files(report_of(evidence)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return typeset(folder, "appendix")


def typeset(folder: Path, name: str) -> str:
    """Return the text of a document after two runs, with the log's promises of `compiled`."""
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", name]
        done = subprocess.run(command, cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    log = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    wide = [
        line for line in log.splitlines() if (m := re.match(r"Overfull \\hbox \(([\d.]+)pt", line)) and float(m[1]) > 10
    ]
    wrong = [
        line for line in log.splitlines() if re.search(r"undefined|multiply|too large|Missing character|Rerun", line)
    ]
    assert not wide + wrong
    subprocess.run(["pdftotext", "-raw", f"{name}.pdf"], cwd=folder, check=True)
    text = (folder / f"{name}.txt").read_text(encoding="utf-8")
    for kind in ("Table", "Figure"):
        numbers = [int(number) for number in re.findall(rf"\b{kind} (\d+): ", text)]
        assert numbers == list(range(1, len(numbers) + 1)), "they stand in their order"
    return text


def squeezed(text: str) -> str:
    """Return text without the spaces and ligatures by which a line of print differs from its source."""
    return "".join(unicodedata.normalize("NFKC", text).split())


@pytest.mark.parametrize("name", ["quickstart", "suites"])
def test_the_appendix_of_stored_runs_compiles(name: str, tmp_path: Path) -> None:
    printed = squeezed(compiled(stored(name, tmp_path), tmp_path))
    assert "partialk=0.15" in printed and "Computeandcarbonstatement" in printed


WHOLE = r"\[\d\.\d+, \d\.\d+\]"  # an interval
#: Papers that take the tables by \input, by name: preambles after which the lines of the files' heads follow.
PAPERS = {
    "neurips": r"\documentclass{article}\usepackage[textwidth=5.5in,textheight=9in]{geometry}\usepackage{xcolor,calc}",
    "article": r"\documentclass{article}\usepackage[dvipsnames]{xcolor}",
    "twelve points": r"\documentclass[12pt,a4paper]{article}",
    "two columns": r"\documentclass[twocolumn]{article}",
}


def in_paper(evidence: Evidence, paper: str, folder: Path) -> str:
    """Return the text of a paper that takes all tables of runs, with the promises of `typeset`."""
    made = files(report_of(evidence))
    tables = [path for path in made if path.endswith(".tex") and path != "appendix.tex"]
    for path in tables:
        (folder / path).write_bytes(made[path])
    needed = "\n".join(re.findall(r"^%   (.*)", made["main.tex"].decode(), re.MULTILINE))
    body = "\n".join(f"Text before.\n\\input{{{path}}}\nText after.\n" for path in tables)
    whole = f"{PAPERS[paper]}\n{needed}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    (folder / "paper.tex").write_text(whole)
    text = typeset(folder, "paper")
    assert "Table 1: " in text and text.count("Text after.") == len(tables)
    return text


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("name", ["quickstart", "suites"])
def test_every_table_fits_the_text_of_a_paper(name: str, paper: str, tmp_path: Path) -> None:
    in_paper(stored(name, tmp_path), paper, tmp_path)


def test_intervals_fit_the_page_and_are_whole(tmp_path: Path) -> None:
    assert re.search(WHOLE, compiled(six_blocks(), tmp_path)), "an interval is one piece of one line"


@pytest.mark.parametrize("paper", PAPERS)
def test_intervals_fit_the_text_of_a_paper(paper: str, tmp_path: Path) -> None:
    text = in_paper(six_blocks(), paper, tmp_path)
    assert paper != "two columns" or re.search(WHOLE, text)


def six_blocks() -> Evidence:
    """Return runs of five arms over six blocks: enough for intervals."""
    arms = ("head", "full", "lora", "partial k=0.15", "partial k=0.05 selection=influence q=0.3 warm=true")
    finals = {arm: [0.6 + 0.05 * i + 0.01 * ((3 * i + b) % 4) for b in range(6)] for i, arm in enumerate(arms)}
    flops = {arm: [10**12 * (i + 1) + 10**10 * b for b in range(6)] for i, arm in enumerate(arms)}
    return make_evidence(*make_blocks(finals, flops))


def test_names_of_strangers_print_as_they_are(tmp_path: Path) -> None:
    records = make_blocks({"head": [0.6], "full": [0.8]})
    records += [make_record(arm=name, method="partial", final=0.7 + i / 100) for i, name in enumerate(HOSTILE)]
    printed = squeezed(compiled(make_evidence(*records), tmp_path))
    for name in HOSTILE[:-3]:
        assert squeezed(name) in printed, name
    assert "[U+6F22][U+5B57][U+1F642]a[U+202E]b" in printed
    assert "root:" not in printed


@pytest.mark.parametrize("records", [[], [make_record(status="failed")]], ids=["no runs", "all failed"])
def test_an_appendix_without_results_compiles_too(records: list[RunRecord], tmp_path: Path) -> None:
    assert "Capability per resource" in compiled(make_evidence(*records), tmp_path)
