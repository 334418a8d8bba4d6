"""pack, validate and leaderboard build as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cprbench.cli import app
from tests.conftest import ROOT
from tests.submissions.altering import edit_record


def cli(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests/records/quickstart.zip") as archive:
        archive.extractall(tmp_path / "runs")
    return tmp_path / "runs"


def test_runs_are_packed_validated_and_shown(runs: Path, tmp_path: Path) -> None:
    target = tmp_path / "submissions" / "mine"
    packed = cli("pack", runs, "--name", "mine", "--author", "Ada", "--author", "Grace", "--out", target)
    assert packed.exit_code == 0, packed.output
    assert packed.output.replace("\n", "") == f"{target}: 8 runs. Next: cprbench validate {target}"
    checked = cli("validate", target)
    assert checked.exit_code == 0, checked.output
    lines = checked.output.splitlines()
    assert all(len(line) <= 80 for line in lines), max(lines, key=len)
    assert lines[-1] == "mine: consistent. 4 rows, 0 of them rank."
    assert re.search(r"^P2  ok +psi is what the predictions make \(8\)$", checked.output, re.MULTILINE)
    assert "does not rank: suite quickstart v1 does not rank: core v1" in " ".join(checked.output.split())
    site = tmp_path / "site"
    built = cli("leaderboard", "build", "--out", site, "--submissions", target.parent)
    assert built.exit_code == 0, built.output
    assert "1 submissions" in built.output and (site / "index.html").exists()
    again = cli("leaderboard", "build", "--out", site, "--submissions", target.parent, "--json")
    told = json.loads(again.output)
    assert (told["validated"], told["written"], told["removed"]) == (0, 0, 0)


def test_a_page_that_was_altered_or_left_by_a_build_that_died_is_made_again(runs: Path, tmp_path: Path) -> None:
    folder, site = tmp_path / "submissions", tmp_path / "site"
    cli("pack", runs, "--name", "mine", "--author", "Ada", "--out", folder / "mine")
    cli("leaderboard", "build", "--out", site, "--submissions", folder)
    page = (site / "index.html").read_bytes()
    (site / "index.html").write_text("tampered")
    built = cli("leaderboard", "build", "--out", site, "--submissions", folder, "--json")
    assert (json.loads(built.output)["written"], (site / "index.html").read_bytes()) == (1, page)


def test_a_folder_of_another_name_is_told_where_it_belongs(runs: Path, tmp_path: Path) -> None:
    packed = cli("pack", runs, "--name", "mine", "--author", "Ada", "--out", tmp_path / "other")
    assert packed.exit_code == 0
    assert "On a board it has to be called mine" in packed.output


def test_a_contradiction_is_told_with_its_file_and_cure_and_ends_with_1(runs: Path, tmp_path: Path) -> None:
    cli("pack", runs, "--name", "mine", "--author", "Ada", "--out", tmp_path / "mine")
    run = sorted((tmp_path / "mine" / "runs").iterdir())[0]
    edit_record(run, lambda data: data["psi"]["final"].update(accuracy=0.99))
    checked = cli("validate", tmp_path / "mine")
    assert checked.exit_code == 1
    text = " ".join(checked.output.split())
    assert f"runs/{run.name}/record.json: psi.final.accuracy is 0.99, the predictions make" in text
    assert "P2 WRONG" in text and "raw files are never edited" in text
    assert json.loads(cli("validate", tmp_path / "mine", "--json").output)["status"] == "contradicted"


def test_what_cannot_be_recomputed_here_ends_with_2(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("pack", runs, "--name", "mine", "--author", "Ada", "--out", tmp_path / "mine.zip")
    monkeypatch.setenv("CPRBENCH_CACHE", str(tmp_path / "empty"))
    checked = cli("validate", tmp_path / "mine.zip", "--offline")
    assert (checked.exit_code, "P3  unverified" in checked.output) == (2, True)


def test_pages_of_a_submission_that_is_gone_are_removed(runs: Path, tmp_path: Path) -> None:
    folder, site = tmp_path / "submissions", tmp_path / "site"
    for name in ("one", "two"):
        cli("pack", runs, "--name", name, "--author", "Ada", "--out", folder / name)
    cli("leaderboard", "build", "--out", site, "--submissions", folder)
    (site / "CNAME").write_text("example.org")
    pages = {path for path in site.rglob("*") if "two" in str(path.relative_to(site)) and path.is_file()}
    assert pages
    shutil.rmtree(folder / "two")
    cli("leaderboard", "build", "--out", site, "--submissions", folder)
    assert not any(page.exists() for page in pages)
    assert (site / "CNAME").exists()
    fresh = tmp_path / "fresh"
    cli("leaderboard", "build", "--out", fresh, "--submissions", folder)
    (site / "CNAME").unlink()
    files = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert files == {path.relative_to(fresh): path.read_bytes() for path in fresh.rglob("*") if path.is_file()}
