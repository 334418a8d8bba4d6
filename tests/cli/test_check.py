"""cprbench check at the command line: its exit codes, its formats, and every way to ask it wrongly."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cprbench.cli import app
from cprbench.judge.claims import load_claims
from cprbench.judge.statistics import RESAMPLES, SEED, VERSION
from tests.conftest import ROOT
from tests.records_factory import answers, make_blocks, make_record, store_run, stored_sweep

PARTIAL = "partial k=0.15"
HEAD = (0.60, 0.61, 0.59, 0.60, 0.62, 0.58)
FULL = (0.80, 0.83, 0.78, 0.81, 0.82, 0.76)
KEEPS_MOST = (0.79, 0.82, 0.78, 0.80, 0.80, 0.755)
MINE = """
[[claim]]
id = "keeps-90-percent"
text = "Partial tuning keeps 90 % of full tuning's gain."
primary = true
statistic = "retained_gain"
arm = "partial k=0.15"
direction = ">="
threshold = 0.9

[[claim]]
id = "at-half-the-flops"
text = "It does so at half of the FLOPs."
statistic = "cost_ratio"
arm = "partial k=0.15"
direction = "<="
threshold = 0.5

[[claim]]
id = "keeps-everything"
text = "It keeps everything."
statistic = "retained_gain"
arm = "partial k=0.15"
direction = ">="
threshold = 1.0

[[claim]]
id = "lora-too"
text = "So does LoRA."
statistic = "retained_gain"
arm = "lora"
direction = ">="
threshold = 0.9
command = "cprbench run mine"
"""


@pytest.fixture(autouse=True)
def _no_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def stored(folder: Path, partial: Sequence[float] = KEEPS_MOST, **more: Any) -> Path:
    finals = {"head": HEAD, "full": FULL, PARTIAL: partial}
    flops = {"head": [100] * 6, "full": [1000] * 6, PARTIAL: [500] * 6}
    files = more.pop("files", None)
    for record in make_blocks(finals, flops, items=500, **more):
        store_run(folder, record, **({"predictions": answers(record)} if files is None else files))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("check") / "runs")


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claims") / "mine.toml"
    path.write_text(MINE)
    return path


def check(*words: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, words)], env={"COLUMNS": "80"}, catch_exceptions=False)


def refused(*words: object) -> str:
    done = check(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    return done.stderr


# --- claims -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ("keeps-90-percent,at-half-the-flops", 0),
        ("keeps-90-percent,lora-too", 2),
        ("keeps-everything", 1),
        ("lora-too, keeps-everything", 1),  # an open claim hides no refuted one
        ("", 1),
    ],
)
def test_the_exit_code_says_whether_all_hold_one_is_refuted_or_one_is_open(
    runs: Path, mine: Path, chosen: str, code: int
) -> None:
    done = check(runs, "--claims", mine, "--claim", chosen)
    assert done.exit_code == code, done.output
    for name in chosen.split(","):
        assert name.strip() in done.stdout


def test_the_text_has_a_verdict_a_number_a_reason_and_the_command_of_what_is_open(runs: Path, mine: Path) -> None:
    shown = check(runs, "--claims", mine).stdout
    assert "supported  at-half-the-flops: 0.5" in shown and "counted, in every block" in shown
    assert "refuted    keeps-everything:" in shown
    assert "open       lora-too: not measured" in shown and "cprbench run mine" in shown
    assert shown.splitlines()[-1] == "4 checked: 2 supported, 1 refuted, 1 open."


def test_json_names_id_verdict_number_interval_and_reason_and_how_it_was_resampled(runs: Path, mine: Path) -> None:
    done = check(runs, "--claims", mine, "--json")
    assert check(runs, "--claims", mine, "--format", "json").stdout == done.stdout
    document = json.loads(done.stdout)
    assert document["statistics"] == {"version": VERSION, "seed": SEED, "resamples": RESAMPLES}
    assert [claim["id"] for claim in document["claims"]] == [c.id for c in load_claims(str(mine))]
    for claim in document["claims"]:
        assert {"id", "verdict", "value", "low", "high", "reason"} <= set(claim)
        assert claim["reason"]
    assert document["claims"][1]["value"] == document["claims"][1]["low"] == 0.5


def test_other_formats_and_a_file_in_place_of_the_terminal(runs: Path, mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "check.xml"
    done = check(runs, "--claims", mine, "--format", "junit", "--out", out)
    assert (done.exit_code, done.stdout) == (1, "")
    suite = ElementTree.fromstring(out.read_text())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    assert check(runs, "--claims", mine, "--format", "github").stdout.count("::error") == 1


def test_a_claim_asked_for_alone_shares_its_error_with_all_primary_claims_of_the_file(
    runs: Path, tmp_path: Path
) -> None:
    one, other = (block for block in MINE.split("[[claim]]")[1:3])
    beside = [one.replace("keeps-90-percent", f"also-{i}").replace('"lora"', '"full"') for i in range(4)]
    for texts, code, words in (([one, other], 0, "after Holm"), ([one, other, *beside], 2, "is not below 0.05")):
        path = tmp_path / f"{len(texts)}.toml"
        path.write_text("".join(f"[[claim]]{text}" for text in texts))
        done = check(runs, "--claims", path, "--claim", "keeps-90-percent")
        assert done.exit_code == code and words in " ".join(done.stdout.split()), done.stdout
        assert "1 checked" in done.stdout


def test_the_same_runs_and_claims_give_the_same_bytes(runs: Path, mine: Path) -> None:
    assert check(runs, "--claims", mine, "--json").stdout_bytes == check(runs, "--claims", mine, "--json").stdout_bytes


def test_an_id_asked_for_twice_is_answered_once(runs: Path, mine: Path) -> None:
    assert "1 checked" in check(runs, "--claims", mine, "--claim", "keeps-everything,keeps-everything").stdout


@pytest.mark.parametrize("sweep", [None, "k-sweep"])
def test_without_a_file_the_papers_claims_are_asked_and_each_gets_an_answer(tmp_path: Path, sweep: str | None) -> None:
    for record in stored_sweep(sweep) if sweep else []:
        store_run(tmp_path, record)
    done = check(tmp_path, "--json")
    assert done.exit_code == 2
    claims = json.loads(done.stdout)["claims"]
    assert [claim["id"] for claim in claims] == [claim.id for claim in load_claims("paper")]
    assert all(claim["reason"] and claim["command"].startswith("cprbench ") for claim in claims)


def test_the_commands_of_the_papers_claims_are_ones_that_this_program_takes() -> None:
    for claim in load_claims("paper"):
        for line in claim.evidence_command.split(" && "):
            name, *words = shlex.split(line.partition(" > ")[0])
            assert name == "cprbench", claim.id
            command: Any = typer.main.get_command(app)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context(line, words)  # raises for an option that is not there


def test_damaged_runs_are_named_and_not_used(tmp_path: Path, mine: Path) -> None:
    folder = stored(tmp_path / "runs")
    extra = store_run(folder, make_record(arm="lora"))
    assert check(folder, "--claims", mine, "--claim", "keeps-90-percent").exit_code == 0
    (extra / "record.json").write_text("{}")
    done = check(folder, "--claims", mine, "--claim", "keeps-90-percent")
    assert done.exit_code == 2
    assert "damaged: " in done.stderr and extra.name in done.stderr and extra.name in done.stdout.replace("\n", "")
    held = check(again(tmp_path / "again"), "--baseline", folder, "--axes", "counted")
    assert held.exit_code == 2 and "damaged, in the baseline: " in held.stderr


@pytest.mark.parametrize(
    "text",
    ["not json\n", "3\n", "{}\n", '{"id": 1, "scores": NaN}\n' * 9, '{"id": [], "prediction": {}, "reference": 0}\n'],
)
def test_predictions_that_are_garbage_stop_neither_check_nor_report(tmp_path: Path, mine: Path, text: str) -> None:
    folder = stored(tmp_path / "runs", files={"predictions": text, "base_predictions": text})
    done = check(folder, "--claims", mine, "--claim", "keeps-90-percent")
    assert done.exit_code == 2 and "the error of the test's items is not known" in " ".join(done.stdout.split())
    for words in ([], ["--json"]):
        done = CliRunner().invoke(app, ["report", str(folder), *words], catch_exceptions=False)
        assert done.exit_code == 0 and PARTIAL in done.stdout


def test_a_real_folder_of_two_blocks_leaves_everything_open(tmp_path: Path, mine: Path) -> None:
    with zipfile.ZipFile(ROOT / "tests/records/quickstart.zip") as archive:
        archive.extractall(tmp_path / "runs")
    done = check(tmp_path / "runs", "--claims", mine)
    assert done.exit_code == 2
    assert "2 blocks, no interval: a verdict needs 6" in " ".join(done.stdout.split())


# --- a baseline -------------------------------------------------------------------------------------


def again(folder: Path, partial: Sequence[float] = KEEPS_MOST, **more: Any) -> Path:
    """Store the same arms and blocks as another machine's directory would hold them: the clock differs."""
    return stored(folder, partial, seconds={"train": 9.0, "billed": 9.0}, **more)


def test_a_baseline_holds_regresses_or_stays_open(runs: Path, tmp_path: Path) -> None:
    same = again(tmp_path / "same")
    held = check(same, "--baseline", runs, "--axes", "psi,counted")
    assert held.exit_code == 0, held.output
    assert "15 checked: 15 supported" in held.stdout  # three arms, psi and four counts
    more = again(tmp_path / "more", optimizer_state_bytes=1201)
    done = check(more, "--baseline", runs, "--axes", "counted", "--json")
    assert done.exit_code == 1
    claims = json.loads(done.stdout)["claims"]
    assert {c["id"].rpartition("/")[2] for c in claims if c["verdict"] == "refuted"} == {"optimizer_state_bytes"}
    assert check(same, "--baseline", runs, "--axes", "energy_kwh").exit_code == 2


def test_a_margin_decides_what_is_too_much(runs: Path, tmp_path: Path) -> None:
    lower = again(tmp_path / "lower", [psi - 0.03 + 0.001 * (i % 2) for i, psi in enumerate(KEEPS_MOST)])
    assert check(lower, "--baseline", runs, "--axes", "psi").exit_code == 1
    assert check(lower, "--baseline", runs, "--axes", "psi", "--margin", "psi=0.05").exit_code == 0


# --- asked wrongly ----------------------------------------------------------------------------------


def test_wrong_options_end_with_2_and_a_hint(runs: Path, mine: Path, tmp_path: Path) -> None:
    for words, *hints in (
        (["--claims", mine, "--claim", "keeps-90"], "unknown claim 'keeps-90'", "keeps-90-percent"),
        (["--claims", "papers"], "unknown claims 'papers'", "paper"),
        (["--claims", tmp_path / "none.toml"], "none.toml", "cannot be read"),
        (["--format", "xml"], "--format 'xml'", "junit"),
        (["--baseline", runs, "--claims", mine], "two questions"),
        (["--baseline", runs, "--claim", "x"], "two questions"),
        (["--axes", "psi"], "--baseline"),
        (["--margin", "psi=0.1"], "--baseline"),
        (["--baseline", runs], "same record", "--out"),
        (["--baseline", tmp_path / "none"], "no such folder of runs"),
        (["--claims", mine, "--out", tmp_path / "none" / "x"], "No such file or directory"),
    ):
        told = refused(runs, *words)
        assert all(hint in told for hint in hints), told
    assert "no such folder of runs" in refused(tmp_path / "none")
    assert check(runs, "--no-such-option").exit_code == 2


def test_wrong_axes_and_margins_end_with_2_and_a_hint(runs: Path, tmp_path: Path) -> None:
    same = again(tmp_path / "same")
    for words, *hints in (
        (["--axes", "second"], "unknown axis 'second'", "seconds"),
        (["--margin", "psi"], "--margin 'psi'", "psi=0.01"),
        (["--margin", "psi=much"], "--margin 'psi=much'"),
        (["--margin", "psi=-1"], "AXIS=NUMBER"),
        (["--margin", "psi=nan"], "AXIS=NUMBER"),
        (["--margin", "psi=inf"], "AXIS=NUMBER"),
        (["--margin", "=0.1"], "unknown axis ''"),
        (["--margin", "pssi=0.1"], "unknown axis 'pssi'", "psi"),
        (["--margin", "flops=0.1"], "counted", "no margin"),
    ):
        told = refused(same, "--baseline", runs, *words)
        assert all(hint in told for hint in hints), told


def test_what_nobody_foresaw_ends_with_2_and_its_traceback(
    runs: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in (ZeroDivisionError("nobody foresaw"), RecursionError("nobody foresaw"), KeyError("nobody foresaw")):

        def fail(*given: object, wrong: Exception = wrong) -> None:
            raise wrong

        monkeypatch.setattr("cprbench.judge.claims.check", fail)
        done = check(runs, "--claims", mine)
        assert done.exit_code == 2 and "error: " in done.stderr
        assert "Traceback" in done.stderr and "nobody foresaw" in done.stderr


def test_a_hostile_file_of_claims_ends_with_2_and_names_its_key(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for old, new, key in (
        ("threshold = 1.0", "threshold = nan", "claim.2.threshold"),
        ('statistic = "cost_ratio"', 'statistic = "cost"', "unknown statistic 'cost'"),
        ('id = "lora-too"', 'id = "keeps-everything"', "two claims are called 'keeps-everything'"),
        ('command = "cprbench run mine"', "run = 1", "unknown key 'claim.3.run'"),
        ("[[claim]]", "\x00", "not valid TOML"),
    ):
        path.write_text(MINE.replace(old, new))
        assert key in refused(runs, "--claims", path)
