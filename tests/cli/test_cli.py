"""The command line as a person and as a script use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, Arm
from tests.records_factory import make_record, store_run


def cprbench(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cprbench", *words], capture_output=True, text=True, cwd=cwd)


def refused(*words: str) -> str:
    done = cprbench(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch transformers pandas scipy matplotlib sklearn numpy"
    code = (
        "import sys; from cprbench.cli import main; sys.argv = ['cprbench', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([n for n in '{heavy}'.split() if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "run" in done.stdout


@pytest.mark.parametrize("verb", ["run", "report", "status", "list", "export"])
def test_every_verb_is_documented(verb: str) -> None:
    done = cprbench(verb, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
    assert f"cprbench {verb}" in (ROOT / "README.md").read_text() or verb in ("list", "status")


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("tasks", "pubmedqa"),
        ("methods", "partial"),
        ("models", "minilm"),
        ("suites", "quickstart"),
        ("selections", "all"),
    ],
)
def test_list_knows_its_things_in_text_and_json(what: str, known: str) -> None:
    assert known in cprbench("list", what).stdout
    assert known in json.loads(cprbench("list", what, "--json").stdout)


def test_bad_words_are_refused_with_the_nearest_right_one() -> None:
    assert "Did you mean 'tasks'" in refused("list", "taks")
    assert "Did you mean 'movie-snippets'" in refused("run", "movie-snipets", "--model", "minilm", "--method", "full")
    assert "Did you mean 'lora'" in refused("run", "movie-snippets", "--model", "minilm", "--method", "lorra")
    assert "Did you mean 'k'" in refused(
        "run", "movie-snippets", "--model", "minilm", "--method", "partial", "--set", "partial.kk=0.1"
    )
    message = refused("run", "movie-snippets", "--model", "minilm", "--set", "training.max_example=3")
    assert "Did you mean 'max_examples'" in message
    assert "Pass --model" in refused("run", "movie-snippets")
    assert "leave out --method" in refused("run", "quickstart", "--method", "full")
    assert "not in --method" in refused(
        "run", "movie-snippets", "--model", "minilm", "--method", "full", "--set", "lora.r=4"
    )
    assert "lr=RATE" in refused("run", "movie-snippets", "--model", "minilm", "--search", "lr=fast")
    assert "no such folder" in refused("report", "nowhere")
    assert "Did you mean 'html'" in refused("report", "nowhere", "--format", "htm")
    assert "pass --out DIR" in refused("report", "nowhere", "--format", "html")
    assert "pass --out DIR" in refused("report", "nowhere", "--format", "md,csv")


def test_a_mistyped_key_in_a_suite_file_is_named(tmp_path: Path) -> None:
    suite = (ROOT / "tasks/suites/quickstart.toml").read_text().replace("blocks = 2", "blokcs = 2")
    path = tmp_path / "suite.toml"
    path.write_text(suite)
    message = refused("run", str(path))
    assert str(path) in message
    assert "unknown key 'blokcs'. Did you mean 'blocks'?" in message


def test_report_and_status_read_real_records(minilm2: Path, run_arm: Arm, runs_folder: Path) -> None:
    for method in ("head", "full"):
        run_arm(minilm2, method)
    text = cprbench("report", str(runs_folder)).stdout
    assert "movie-snippets v1" in text
    assert "No arm can be compared with full tuning here." in text
    assert max(map(len, text.splitlines())) <= 80
    page = cprbench("report", str(runs_folder), "--format", "md").stdout
    assert "| full |" in page and "Not measured, and why" in page
    groups = json.loads(cprbench("report", str(runs_folder), "--json").stdout)["groups"]
    assert any(arm["arm"] == "full" for group in groups for arm in group["arms"])
    status = json.loads(cprbench("status", str(runs_folder), "--json").stdout)
    assert {row["status"] for row in status["runs"]} >= {"ok"}
    assert "billed in all" in cprbench("status", str(runs_folder)).stdout


def test_a_report_says_what_it_left_out_where_its_files_are_and_what_it_could_not_write(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for i in range(14):
        store_run(runs, make_record(arm=f"arm {i}", new_head_parameters=0))
    (runs / ("f" * 16)).mkdir()
    done = cprbench("report", str(runs), "--format", "md,csv", "--out", str(tmp_path / "pages"))
    assert "damaged: " in done.stderr and f"{'f' * 16}: no manifest.json" in done.stderr
    assert f"{tmp_path / 'pages' / 'model-cards'}/ (14 files)" in done.stdout.replace("\n", "")
    (tmp_path / "file").write_text("not a folder")
    (runs / ("f" * 16)).rmdir()
    assert "cannot write" in refused("report", str(runs), "--out", str(tmp_path / "file" / "pages"))
    assert "unknown claims 'nonsense'" in refused("report", str(runs), "--claims", "nonsense")
    assert "leave --format and --out away" in refused("report", str(runs), "--json", "--format", "md")


def test_a_folder_alone_gets_the_page_and_a_format_on_stdout_is_its_file(tmp_path: Path) -> None:
    store_run(tmp_path / "runs", make_record(arm="full", new_head_parameters=0))
    pages = tmp_path / "pages"
    written = cprbench("report", str(tmp_path / "runs"), "--out", str(pages))
    assert written.stdout.strip().replace("\n", "") == str(pages / "report.html")
    cprbench("report", str(tmp_path / "runs"), "--format", "md,csv", "--out", str(pages))
    for format_, name in (("md", "report.md"), ("csv", "runs.csv")):
        assert cprbench("report", str(tmp_path / "runs"), "--format", format_).stdout == (pages / name).read_text()


def test_claims_that_are_asked_for_are_answered_on_the_terminal_too(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(arm="full", new_head_parameters=0))
    told = cprbench("report", str(tmp_path), "--claims", "paper").stdout
    assert "41 checked: 0 supported, 0 refuted, 41 open." in told
    assert "checked" not in cprbench("report", str(tmp_path)).stdout


def test_run_prints_a_table_of_80_columns_and_says_where_the_records_are(
    minilm2: Path, run_arm: Arm, runs_folder: Path
) -> None:
    run_arm(minilm2, "head")
    run_arm(minilm2, "full")
    settings = [word for key, value in SMALL.items() for word in ("--set", f"training.{key}={value}")]
    words = ["run", "movie-snippets", "--model", str(minilm2), "--method", "head,full", "--blocks", "1", *settings]
    done = cprbench(*words, "--out", str(runs_folder))
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert "2 runs, 2 of them reused. Records:" in done.stdout
    assert "kept" in done.stdout
    assert "[2/2]" in done.stderr
    rows = cprbench(*words, "--out", str(runs_folder), "--json").stdout.splitlines()
    assert [json.loads(row)["arm"] for row in rows] != []
