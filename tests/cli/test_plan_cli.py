"""cprbench plan on the command line: tables of 80 columns, one JSON document, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cprbench.cli import app
from cprbench.errors import CprbenchError
from tests.conftest import ROOT

LLAMA = str(ROOT / "tests/configs/llama-2-7b/config.json")


def plan(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def no(*words: str) -> str:
    with pytest.raises(CprbenchError) as caught:
        CliRunner().invoke(app, ["plan", *words], catch_exceptions=False)
    return str(caught.value)


def document(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(*words, "--json"))
    return found


def test_a_table_has_a_row_per_arm_and_fits_80_columns() -> None:
    text = plan("movie-snippets", "--model", "minilm", "--set", "partial.k=0.1,0.2")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    header = next(line for line in lines if line.startswith("arm"))
    assert header.split() == ["arm", "trained", "weights", "grads", "optim", "activ", "peak", "FLOPs"]
    arms = [line.split("  ")[0].strip() for line in lines[lines.index(header) + 1 :][:5]]
    assert arms == ["head", "full", "lora", "partial k=0.1*", "partial k=0.2*"]
    words = " ".join(text.split())
    for part in (
        "22.7M, ",
        "modelled",
        "All modelled, nothing ran",
        "worst case, from the input upwards",
        "peak of partial: while gradient norms are measured",
        "12 bytes each, the convention of the paper's 67 GB",
        "interpreter",
    ):
        assert part in words, part


def test_a_board_adds_hours_energy_and_co2_with_what_they_assume() -> None:
    text = plan("pubmedqa", "--model", LLAMA, "--method", "lora,qlora", "--hardware", "a100-80", "--utilisation", "0.3",
                "--carbon-intensity", "100")  # fmt: skip
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "on a100-80 at 30 % of its peak FLOP/s" in words
    assert "of memory hours kWh kg CO2" in words
    assert "NVIDIA A100 data sheet, SXM 80 GB; 400 W throughout" in words
    assert "linears of layers in nf4" in words
    silent = plan("pubmedqa", "--model", LLAMA, "--method", "lora", "--hardware", "a100-80")
    assert "kg CO2: not known" in " ".join(silent.split())


def test_json_says_that_everything_is_modelled_and_what_was_assumed() -> None:
    found = document("pubmedqa", "--model", LLAMA, "--method", "full,lora", "--hardware", "h100-80",
                     "--set", "training.batch_size=2")  # fmt: skip
    assert found["schema"] == "cprbench.plan/1"
    assert found["source"] == "modelled"
    assert found["training"]["batch_size"] == 2
    assert found["hardware"]["utilisation"] == 0.4
    assert found["memory"] == "CUDA allocator"
    (model,) = found["models"]
    assert (model["model"], model["kind"], model["parameters"]) == ("llama-2-7b", "causal", 6_738_415_616)
    full, lora = model["rows"]
    assert full["optimizer_bytes"] == 8 * 6_738_415_616
    assert full["weight_bytes"] == full["gradient_bytes"] == 4 * 6_738_415_616
    assert lora["trained_parameters"] == 32 * 8 * (4 * 8192 + 3 * 15_104)
    assert full["co2_kg"] is None and full["why_missing"]["co2_kg"]


def test_the_sheet_says_what_fits_by_model_method_and_k() -> None:
    words = ("pubmedqa", "--model", f"minilm,{LLAMA}", "--set", "training.batch_size=1",
             "--set", "training.gradient_checkpointing=true", "--set", "select.batch_size=1")  # fmt: skip
    found = document(*words, "--fits", "24GiB")
    assert found["fits_bytes"] == 24 * 2**30
    small, large = found["models"]
    arms = [row["arm"] for row in large["rows"]]
    shares = ("0.05", "0.1", "0.15", "0.2", "0.3", "0.5")
    assert arms == ["full", "lora", "qlora", *(f"{m} k={k}" for m in ("partial", "partial+lora") for k in shares)]
    assert all(row["fits"] for row in small["rows"])
    assert {row["arm"] for row in large["rows"] if row["fits"]} == {"qlora"}
    for row in large["rows"]:
        assert row["fits"] is (row["peak_bytes"] <= 24 * 2**30)
    text = plan(*words, "--fits", "24GiB")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("model")).split() == [
        "model", "arm", "trained", "peak", "GiB", "fits",
    ]  # fmt: skip
    assert [line.split()[-1] for line in lines if "qlora" in line][:2] == ["yes", "yes"]
    given = document(*words, "--fits", "24GiB", "--method", "partial", "--set", "partial.k=0.25")
    assert [row["arm"] for row in given["models"][0]["rows"]] == ["partial k=0.25"]


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("24GB", 24 * 10**9), ("1.5 GiB", 1_610_612_736), ("1000", 1000)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert document("movie-snippets", "--model", "minilm", "--method", "full", "--fits", text)["fits_bytes"] == size


@pytest.mark.parametrize("text", ["9" * 400 + "GiB", "9" * 400, "1e9GiB", "-1GiB", "\u0663GiB", "0.5", "24 ", " "])
def test_what_is_no_size_is_refused(text: str) -> None:
    said = no("movie-snippets", "--model", "minilm", "--fits", text)
    assert said.startswith("--fits '") and said.endswith("is no size. Write 24GiB, 24GB or a number of bytes.")
    assert len(said) < 150


def test_what_cannot_be_planned_is_refused_with_what_to_do() -> None:
    task = "movie-snippets"
    assert "--model minilm" in no(task)
    assert "--model minilm" in no(task, "--model", ",")
    assert "--method ',' names no method" in no(task, "--model", "minilm", "--method", ",")
    assert "knows no selections" in no(task, "--model", "minilm", "--set", "selection.q=0.3")
    assert "Write 24GiB" in no(task, "--model", "minilm", "--fits", "24 gigs")
    assert "Write 24GiB" in no(task, "--model", "minilm", "--fits", "0GiB")
    assert "above 0 and at most 1" in no(task, "--model", "minilm", "--utilisation", "40")
    assert "'a100-80'" in no(task, "--model", "minilm", "--hardware", "a100-81")
    assert "is not in --method full" in no(task, "--model", "minilm", "--method", "full", "--set", "lora.r=4")
    assert "Did you mean 'lora'" in no(task, "--model", "minilm", "--method", "lore")
    assert "qlora: method 'qlora' needs an NVIDIA GPU" in no(task, "--model", "minilm", "--method", "qlora")
    assert "unknown task" in no("movie-snipets", "--model", "minilm")


def test_a_config_that_is_none_is_one_sentence_and_no_stack(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": 5}')
    words = [sys.executable, "-m", "cprbench", "plan", "movie-snippets", "--model", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and "architectures is 5; it is a list of names" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_arm_that_cannot_run_is_told_beside_those_that_can() -> None:
    text = " ".join(plan("movie-snippets", "--model", LLAMA, "--method", "head,full").split())
    assert "not planned: llama-2-7b, head: method 'head' trains only a new task head" in text


def test_it_works_where_torch_is_not_installed() -> None:
    code = (
        "import sys\n"
        "for name in 'torch transformers peft accelerate pandas scipy safetensors'.split():\n"
        "    sys.modules[name] = None\n"
        "from cprbench.cli import app\n"
        f"app(['plan', 'movie-snippets', '--model', {LLAMA!r}, '--fits', '80GiB'], standalone_mode=False)\n"
        "print('planned', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "planned\n"
