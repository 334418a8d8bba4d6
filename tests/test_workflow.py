"""The workflow that looks at submissions: what it may do, and that nothing of a pull request is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from cprbench.submissions.packing import pack
from tests.conftest import ROOT

FILE = ROOT / ".github" / "workflows" / "submissions.yml"
WORKFLOW: dict[Any, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
(JOB,) = WORKFLOW["jobs"].values()
STEPS: list[dict[str, Any]] = JOB["steps"]


def step(name: str) -> dict[str, Any]:
    return next(step for step in STEPS if name in step["name"])


def test_it_runs_on_pull_requests_without_the_rights_of_the_base() -> None:
    assert list(WORKFLOW[True]) == ["pull_request"]  # YAML 1.1 reads `on` as true
    assert "pull_request_target" not in FILE.read_text() and "workflow_run" not in FILE.read_text()
    assert WORKFLOW["permissions"] == {}
    assert JOB["permissions"] == {"contents": "read"}
    assert "secrets." not in FILE.read_text() and "github.token" not in FILE.read_text()
    assert "timeout-minutes" in JOB


def test_the_code_is_the_base_branchs_and_its_credentials_are_not_kept() -> None:
    (checkout,) = (step for step in STEPS if "checkout" in step.get("uses", ""))
    assert checkout is STEPS[0]
    assert checkout["with"] == {"ref": "${{ github.base_ref }}", "persist-credentials": False}
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]) for step in STEPS if "uses" in step)
    assert "-e ." in step("without torch")["run"]


def test_no_expression_is_pasted_into_a_shell_line() -> None:
    assert [step["name"] for step in STEPS if "${{" in step.get("run", "")] == []
    expressions = set(re.findall(r"\$\{\{\s*(.*?)\s*\}\}", FILE.read_text()))
    assert expressions == {"github.base_ref", "runner.temp"}


# --- run, against a repository with a pull request ---------------------------------------------------


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(script: str, where: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # As GitHub runs `shell: bash`.
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(words, cwd=where, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base branch with one submission, and a pull request that adds a copy of it and a hostile one, after the job."""
    folder = tmp_path_factory.mktemp("workflow")
    origin, mark = folder / "origin", folder / "mark"
    with zipfile.ZipFile(ROOT / "tests" / "records" / "quickstart.zip") as archive:
        archive.extractall(folder / "runs")
    for run_ in sorted((folder / "runs").iterdir())[2:]:
        shutil.rmtree(run_)
    origin.mkdir()
    git(origin, "init", "--quiet")
    pack(folder / "runs", origin / "leaderboard/submissions/first", name="first", authors=["Ada"])
    shutil.copytree(ROOT / "tasks", origin / "tasks")
    (origin / "trusted.txt").write_text("base\n")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "--message", "base")
    git(origin, "checkout", "--quiet", "-b", "pull")
    attack(origin, mark)
    (origin / ".git/info/attributes").write_text(
        "* -text -ident !filter !working-tree-encoding\n"
    )  # committed as it is
    git(origin, "add", "--all", "--force")
    git(origin, "commit", "--quiet", "--message", "$(touch mark) `touch mark`")
    git(origin, "update-ref", "refs/pull/7/merge", "HEAD")
    git(origin, "checkout", "--quiet", "main")

    base, temp, home = folder / "base", folder / "temp", folder / "home"
    git(folder, "clone", "--quiet", "--branch", "main", f"file://{origin}", "base")
    (temp / "cprbench" / "bin").mkdir(parents=True)
    home.mkdir()
    (home / ".gitconfig").write_text(f'[filter "evil"]\n\tsmudge = touch {mark}; cat\n\trequired = true\n')
    installed = temp / "cprbench" / "bin" / "cprbench"
    installed.write_text(f'#!/bin/sh\nexec {sys.executable} -m cprbench "$@"\n')
    installed.chmod(0o755)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "CPRBENCH_TASKS"))},
        **{"HOME": str(home), "RUNNER_TEMP": str(temp), "GITHUB_REF": "refs/pull/7/merge"},
        **{"GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "PYTHONPATH": str(ROOT)},
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }
    fetched = run(step("as data")["run"], base, env)
    assert fetched.returncode == 0, fetched.stderr
    told = run(step("What changes")["run"], base, env)
    return {"folder": folder, "base": base, "temp": temp, "mark": mark, "told": told}


def attack(origin: Path, mark: Path) -> None:
    """Make of a checkout a pull request that leaves a mark wherever any of it is run, read through or followed."""
    leave = f"open({str(mark)!r}, 'w').write('run')\n"
    submissions = origin / "leaderboard" / "submissions"
    copy = shutil.copytree(submissions / "first", submissions / "copy")
    (copy / "submission.toml").write_text((copy / "submission.toml").read_text().replace("first", "copy"))
    evil = submissions / "evil"
    evil.mkdir()
    for folder in (origin, submissions, evil):
        for name in ("setup.py", "conftest.py", "sitecustomize.py", "cprbench.py", "yaml.py"):
            (folder / name).write_text(leave)
        (folder / "evil.sh").write_text(f"#!/bin/sh\ntouch {mark}\n")
        (folder / "evil.sh").chmod(0o755)
        (folder / ".gitattributes").write_text("* filter=evil text eol=crlf ident working-tree-encoding=UTF-16\n")
    (evil / "submission.toml").symlink_to("/etc/passwd")
    (submissions / "link").symlink_to(origin)
    (submissions / "@everyone [x](https:").mkdir()
    (submissions / "@everyone [x](https:" / "submission.toml").write_text("name = '<script>'\n")
    (origin / "trusted.txt").write_text("changed\n")
    (origin / "tasks" / "movie-snippets.toml").write_text("evil = true\n")


def test_nothing_of_a_pull_request_is_run(job: dict[str, Any]) -> None:
    assert not job["mark"].exists()
    assert (job["base"] / "trusted.txt").read_text() == "base\n"
    assert git(job["base"], "status", "--porcelain") == ""


def test_only_submissions_are_written_out_byte_for_byte_and_no_link(job: dict[str, Any]) -> None:
    pull = job["temp"] / "pull"
    assert not [path for path in pull.rglob("*") if path.is_symlink()]
    assert (pull / "link").is_file() and (pull / "evil" / "submission.toml").read_text() == "/etc/passwd"
    assert not (pull / "tasks").exists() and not (pull / "trusted.txt").exists()
    theirs, ours = (folder / "first" for folder in (pull, job["base"] / "leaderboard" / "submissions"))
    for path in ours.rglob("*"):
        assert path.is_dir() or (theirs / path.relative_to(ours)).read_bytes() == path.read_bytes()


def test_the_summary_is_the_comment_and_a_refused_submission_fails_the_job(job: dict[str, Any]) -> None:
    told, comment = job["told"], (job["temp"] / "comment.md").read_text()
    assert told.returncode == 1, told.stderr
    assert told.stdout == ""  # the log takes words of strangers for commands
    assert (job["folder"] / "summary.md").read_text() == comment
    assert "**evil**: new, invalid" in comment
    assert "**copy**: new, " in comment and "**first**" not in comment
    assert "Runs that another submission holds already" in comment
    assert "@everyone" not in comment and "<script>" not in comment
