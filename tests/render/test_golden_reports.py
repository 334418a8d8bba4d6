"""Reports of real records, whole, as somebody last looked at them; and the same bytes wherever they are made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cprbench.judge.claims import load_claims
from cprbench.judge.evidence import Evidence, gather
from cprbench.render.figures import saving
from cprbench.render.formats.writing import FORMATS, Writing
from tests.conftest import ROOT
from tests.golden_files import is_golden, quickstart

#: What the small grid holds: three shares of parameters by three of the data, and what gains are measured against.
GRID = [
    "head",
    *(
        f"{method}{data}"
        for method in ("full", "partial k=0.05", "partial k=0.2")
        for data in ("", " selection=influence q=0.1", " selection=influence q=0.3")
    ),
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Return the cells of suite k-by-q and the two runs of stage 1, which had a stop rule and wrote blueprints."""
    folder = tmp_path_factory.mktemp("suites")
    with zipfile.ZipFile(ROOT / "tests" / "records" / "suites.zip") as archive:
        archive.extractall(folder)
    found = gather(folder)
    return Evidence(
        {name: run for name, run in found.runs.items() if run.record.arm in GRID or run.record.suite == "stage1"}
    )


def written(evidence: Evidence, format_: str) -> dict[str, bytes]:
    return Writing(evidence, load_claims("paper")).files(format_)


def without_drawings(page: str) -> str:
    """Return a page whose figures are their titles and texts: their lines follow from the version of matplotlib."""
    return re.sub(r"(<svg.*?</desc>).*?</svg>", r"\1</svg>", page, flags=re.DOTALL)


def test_the_markdown_of_the_quickstart_is_golden(quick: Evidence) -> None:
    assert is_golden("quickstart/report.md", written(quick, "md")["report.md"].decode())


def test_the_page_of_the_quickstart_is_golden(quick: Evidence) -> None:
    assert is_golden("quickstart/report.html", without_drawings(written(quick, "html")["report.html"].decode()))


@pytest.mark.parametrize("name", ["quickstart", "grid"])
def test_every_latex_table_and_the_appendix_are_golden(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "pdf", lambda drawing: b"")  # what is drawn has tests of its own
    files = written(request.getfixturevalue("quick" if name == "quickstart" else "grid"), "latex")
    texts = {path.removeprefix("latex/"): text.decode() for path, text in files.items() if path.endswith(".tex")}
    assert {"main.tex", "ledger.tex", "hyper-parameters.tex", "carbon-statement.tex", "appendix.tex"} <= set(texts)
    if name == "grid":
        assert {"k-sweep.tex", "q-sweep.tex", "k-by-q.tex", "claims.tex"} <= set(texts)
    for path, text in texts.items():
        assert is_golden(f"{name}/{path}", text), path
    assert {file.name for file in (ROOT / "tests" / "golden" / name).glob("*.tex")} == set(texts)


def test_the_comparison_of_the_grid_is_golden(grid: Evidence) -> None:
    assert is_golden("grid/comparison.json", written(grid, "json")["comparison.json"].decode())


def test_the_json_of_a_front_holds_the_points_that_it_is_drawn_through(grid: Evidence) -> None:
    groups = json.loads(written(grid, "json")["comparison.json"])["groups"]
    fronts = [group["curves"]["front"] for group in groups]
    assert any(front["arms"] for front in fronts)
    assert all(set(front["points"]) == set(front["arms"]) for front in fronts)


def test_the_same_records_in_another_order_are_the_same_bytes(quick: Evidence) -> None:
    turned = Evidence(dict(reversed(quick.runs.items())))
    for format_ in FORMATS:
        assert written(turned, format_) == written(quick, format_), format_


def test_another_time_zone_locale_and_hash_seed_give_the_same_bytes_of_every_format(tmp_path: Path) -> None:
    quickstart(tmp_path / "runs")
    elsewhere = {
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONHASHSEED": "7",
        "SOURCE_DATE_EPOCH": "0",
    }
    digests = []
    for i, settings in enumerate(({"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}, elsewhere)):
        out = tmp_path / f"pages-{i}"
        words = [sys.executable, "-m", "cprbench", "report", str(tmp_path / "runs"), "--format", ",".join(FORMATS)]
        done = subprocess.run(
            [*words, "--out", str(out)],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digests.append({str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) > 20
