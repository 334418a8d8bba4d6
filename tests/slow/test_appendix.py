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
from cprbench.render.report.contents import report_of
from cprbench.render.report.latex import files
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
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "appendix"]
        done = subprocess.run(command, cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    log = (folder / "appendix.log").read_text(encoding="utf-8", errors="replace")
    wide = [
        line for line in log.splitlines() if (m := re.match(r"Overfull \\hbox \(([\d.]+)pt", line)) and float(m[1]) > 10
    ]
    wrong = [
        line for line in log.splitlines() if re.search(r"undefined|multiply|too large|Missing character|Rerun", line)
    ]
    assert not wide + wrong
    subprocess.run(["pdftotext", "-raw", "appendix.pdf"], cwd=folder, check=True)
    text = (folder / "appendix.txt").read_text(encoding="utf-8")
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


def test_intervals_fit_the_page_and_are_whole(tmp_path: Path) -> None:
    arms = ("head", "full", "lora", "partial k=0.15", "partial k=0.05 selection=influence q=0.3 warm=true")
    finals = {arm: [0.6 + 0.05 * i + 0.01 * ((3 * i + b) % 4) for b in range(6)] for i, arm in enumerate(arms)}
    flops = {arm: [10**12 * (i + 1) + 10**10 * b for b in range(6)] for i, arm in enumerate(arms)}
    printed = compiled(make_evidence(*make_blocks(finals, flops)), tmp_path)
    assert re.search(r"\[\d\.\d+, \d\.\d+\]", printed), "an interval is one piece of one line"


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
