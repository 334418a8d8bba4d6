"""The GitHub action and the pre-commit hook, without GitHub: their files, their scripts and the real command."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

CLAIM = """
[[claim]]
id = "partial-beats-full"
text = "Partial tuning buys more per FLOP than full tuning."
primary = true
statistic = "multiple_of_full"
arm = "partial k=0.15"
direction = ">"
threshold = 1.0
margin = 0.05
"""


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return found


@pytest.fixture
def records(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests/records/quickstart.zip") as stored:
        stored.extractall(tmp_path / "my runs")
    (tmp_path / "claims.toml").write_text(CLAIM)
    return tmp_path / "my runs"


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def step(
    action: dict[str, Any], number: int, folder: Path, inputs: dict[str, str], path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as GitHub's runner does, with the environment that it gives and nothing else."""
    known = {name: str(given.get("default", "")) for name, given in action["inputs"].items()} | inputs
    found = action["runs"]["steps"][number]
    env = {
        "PATH": path,
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "RUNNER_TEMP": str(folder),
    }
    for name, value in found.get("env", {}).items():
        for given, text in known.items():
            value = value.replace(f"${{{{ inputs.{given} }}}}", text)
        env[name] = value
    script = folder / "step.sh"
    script.write_text(found["run"])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


def installed(folder: Path, script: str = f'exec "{sys.executable}" -m cprbench "$@"') -> None:
    program(folder / "cprbench/bin/cprbench", script)


def test_the_action_says_what_it_takes_and_uses_no_one_elses_code(action: dict[str, Any]) -> None:
    assert set(action["inputs"]) == {"runs", "claims", "baseline"}
    assert all(given["description"] for given in [action, *action["inputs"].values()])
    assert action["inputs"]["runs"]["required"] is True
    assert action["runs"]["using"] == "composite"
    for found in action["runs"]["steps"]:
        assert "uses" not in found and found["shell"] == "bash"
        assert "${{" not in found["run"], "an input inside a script can run anything"


def test_the_action_installs_this_checkout_beside_the_jobs_own_packages(action: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    inner = tmp_path / "runner temp/cprbench/bin/python"
    program(tmp_path / "bin/python3", f'echo "$@" >> {log}')
    program(inner, f'echo "$@" >> {log}')
    done = step(action, 0, tmp_path / "runner temp", {}, f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    made, put = log.read_text().splitlines()
    assert made == f"-m venv {tmp_path / 'runner temp/cprbench'}"
    assert put.startswith("-m pip install ") and put.endswith(f" -e {ROOT}")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"runs": "runs"}, ["check", "--", "runs"]),
        ({"runs": "my runs", "claims": "my claims.toml"}, ["check", "--claims=my claims.toml", "--", "my runs"]),
        ({"runs": "runs", "baseline": "main runs"}, ["check", "--baseline=main runs", "--", "runs"]),
        (
            {"runs": "-x $(touch pwned)", "claims": "'; touch pwned; '", "baseline": "`touch pwned`"},
            ["check", "--claims='; touch pwned; '", "--baseline=`touch pwned`", "--", "-x $(touch pwned)"],
        ),
    ],
)
def test_inputs_arrive_as_words_and_run_nothing(
    action: dict[str, Any], tmp_path: Path, inputs: dict[str, str], words: list[str]
) -> None:
    installed(tmp_path, "printf '%s\\n' \"$@\"\nexit 2")
    done = step(action, 1, tmp_path, inputs)
    assert done.stdout.splitlines() == words
    assert done.returncode == 2, "the step must end as the check did"
    assert not (tmp_path / "pwned").exists()


def test_in_a_job_the_check_annotates_and_writes_the_summary(
    action: dict[str, Any], tmp_path: Path, records: Path
) -> None:
    installed(tmp_path)
    (tmp_path / "summary.md").write_text("what another step wrote\n")
    done = step(action, 1, tmp_path, {"runs": str(records), "claims": str(tmp_path / "claims.toml")})
    assert done.returncode == 2, done.stderr  # two blocks leave a claim open
    assert "::warning title=open%3A partial-beats-full::" in done.stdout
    written = (tmp_path / "summary.md").read_text()
    assert written.startswith("what another step wrote\n## cprbench check")
    assert "1 checked: 0 supported, 0 refuted, 1 open." in written


def test_the_pre_commit_hook_runs_the_check_on_what_its_args_name(tmp_path: Path, records: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["language"], hook["pass_filenames"]) == ("cprbench-check", "python", False)
    name, *words = shlex.split(hook["entry"])
    assert name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    installed(tmp_path)
    command = [str(tmp_path / "cprbench/bin" / name), *words, str(records), "--claims", str(tmp_path / "claims.toml")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2, done.stderr
    assert "open" in done.stdout and "partial-beats-full" in done.stdout
    assert "::warning" not in done.stdout, "annotations are for GitHub's log alone"
