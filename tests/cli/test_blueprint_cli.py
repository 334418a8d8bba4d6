"""The verbs of `cprbench blueprint`, as a person and as a script use them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cprbench.blueprint import files
from cprbench.cli.blueprint_making import _planned, verdict
from cprbench.errors import SpecError
from tests.blueprint.example import NORMS, SIZES, full_data, paper_example, save
from tests.cli.test_cli import cprbench, refused

WITH_NAMES = {name: [f"model.{name}.weight"] for name in SIZES}


def named(**changes: object) -> dict:  # type: ignore[type-arg]
    """Return the full example with parameter names and linear modules; its input tables have no linear module."""
    data = full_data(**changes)  # type: ignore[arg-type]
    for layer in data["layers"]:
        layer["parameter_names"] = WITH_NAMES[layer["id"]]
        layer["linears"] = [] if layer["id"] == "embed" else [f"model.{layer['id']}"]
    return data


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The full example as a file."""
    return save(tmp_path, named())


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    """A file with the paper's fields only."""
    return save(tmp_path, paper_example(), "paper.json")


def blueprint(*words: str | Path) -> str:
    """Return what `cprbench blueprint` prints."""
    done = cprbench("blueprint", *map(str, words))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_show_draws_every_domain_in_80_columns(file: Path, paper: Path) -> None:
    for shown in (blueprint("show", file), blueprint("show", paper)):
        assert max(map(len, shown.splitlines())) <= 80
    shown = blueprint("show", file)
    # 0.25 and 0.04 of the sum 1.35 of squares; the second domain has the norms turned round.
    assert "0      █████·  18.5  ███···   3.0  █████·  11.9  ███···   3.0" in shown
    assert "embed  ██████  60.0                ████··   6.7" in shown
    assert "37.5 % of the parameters" in shown
    assert "heavy-tailed" in shown
    assert "0.1 device hours, 0.01 kWh" in shown
    assert "the file lacks nothing" in shown


def test_show_says_what_a_file_of_the_paper_lacks(paper: Path) -> None:
    shown = " ".join(blueprint("show", paper).split())
    assert "none: not told why" in shown
    assert "making it cost not told" in shown
    assert "It does not say on which data gradients were taken" in shown
    assert "1 ██████ 34.8 not told" in shown  # it has no ffn.1


def test_show_of_one_domain_names_the_nearest_of_a_wrong_one(file: Path) -> None:
    assert "bio attn" in blueprint("show", file, "--domain", "bio")
    assert "general attn" not in blueprint("show", file, "--domain", "bio")
    assert "Did you mean 'bio'?" in refused("blueprint", "show", str(file), "--domain", "bi")


def test_show_prints_hostile_names_as_they_are(tmp_path: Path) -> None:
    evil = save(tmp_path, named(model_id="[red]acme[/] {x} <b>"))
    assert "[red]acme[/] {x} <b>" in blueprint("show", evil)


def test_show_writes_a_page_and_never_over_the_file_that_it_reads(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert blueprint("show", file, "--html", page).strip() == str(page)
    assert page.read_text().startswith("<!doctype html>")
    before = file.read_bytes()
    assert "is what is being read" in refused("blueprint", "show", str(file), "--html", str(file))
    assert file.read_bytes() == before
    assert "Leave out --domain" in refused("blueprint", "show", str(file), "--html", str(page), "--domain", "bio")
    assert "cannot be written" in refused("blueprint", "show", str(file), "--html", str(tmp_path / "no/page.html"))


def test_validate_lists_findings_a_line_each_and_tells_by_its_exit_code(file: Path, paper: Path) -> None:
    assert blueprint("validate", file) == f"{file}: valid\n"
    lines = blueprint("validate", file, paper).splitlines()
    assert lines[1] == f"{paper}: valid"
    assert len(lines) == 2 + len(files.read(paper).lacks())
    bad = save(paper.parent, {**paper_example(), "training_checkpoint": 80, "modelid": "x"}, "bad.json")
    done = cprbench("blueprint", "validate", str(file), str(bad))
    assert done.returncode == 1
    assert f"{file}: valid\n{bad}: not valid\n{bad}: error: unknown key 'modelid'" in done.stdout.replace(
        f"{bad}: error: training_checkpoint: Input should be less than or equal to 1 (found 80)\n", ""
    )
    found = json.loads(cprbench("blueprint", "validate", str(file), str(bad), "--json").stdout)["files"]
    assert [entry["valid"] for entry in found] == [True, False]


def test_compare_gives_a_verdict_and_its_numbers(file: Path, tmp_path: Path) -> None:
    turned = dict(zip(NORMS, reversed(NORMS.values()), strict=True))
    other = save(tmp_path, full_data(turned), "other.json")
    assert blueprint("compare", file, file).startswith("same pattern: the ranks correlate at 1.00")
    text = blueprint("compare", file, other)
    assert "drifted" in text
    found = json.loads(blueprint("compare", file, other, "--json"))
    assert found["verdict"] == "drifted"
    assert found["k"] == 0.15
    assert found["correlation"] == pytest.approx(0.0)
    assert json.loads(blueprint("compare", file, other, "--json", "--k", "0.3"))["k"] == 0.3


def test_merge_writes_one_table_of_many_files(file: Path, paper: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "json"):
        out = tmp_path / f"table.{suffix}"
        assert blueprint("merge", paper, file, "--out", out) == f"{out}: 19 rows of 2 files\n"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert rows[0]["model_id"] == "acme/tiny"
    printed = blueprint("merge", file, paper, "--json")
    assert json.loads(printed) == json.loads((tmp_path / "table.json").read_text())
    assert "Pass --out" in refused("blueprint", "merge", str(file))
    assert "ends in .csv or .json" in refused("blueprint", "merge", str(file), "--out", str(tmp_path / "t.txt"))
    assert "is what is being read" in refused("blueprint", "merge", str(file), "--out", str(file))


def test_pick_prints_the_result_alone_and_sums_it_up_on_stderr(file: Path) -> None:
    done = cprbench("blueprint", "pick", str(file), "--k", "0.3")
    assert done.stdout == "attn.0\nattn.1\n"  # the input tables' 0.9 is not asked for; no room for ffn.1 after these
    assert done.stderr == "2 of 5 submodules, 20 % of the parameters (asked: k = 0.3; domain general, by norm).\n"


def test_pick_turns_its_settings_into_what_the_picker_takes(file: Path) -> None:
    assert blueprint("pick", file) == "attn.0\n"  # k = 0.15
    assert blueprint("pick", file, "--k", "blueprint") == "attn.0\nattn.1\n"
    assert blueprint("pick", file, "--k", "0.4", "--embed") == "embed\n"
    assert blueprint("pick", file, "--k", "0.3", "--granularity", "layer") == "attn.0\nffn.0\n"
    assert blueprint("pick", file, "--k", "0.15", "--by", "density", "--domain", "bio") == "attn.1\n"
    assert blueprint("pick", file, "--uncertainty", "shrink") == "attn.0\n"
    slow = {**full_data()["step_cost"], "backward_seconds_per_layer": 0.5}
    deep = save(file.parent, named(step_cost=slow), "deep.json")
    assert blueprint("pick", deep, "--by", "per-cost", "--k", "0.3") == "attn.1\nffn.1\n"  # layer 0 costs too much
    told = json.loads(blueprint("pick", file, "--json"))
    assert (told["submodules"], told["k_reached"], told["format"]) == (["attn.0"], 0.1, "names")


def test_pick_writes_every_format(file: Path, tmp_path: Path) -> None:
    assert blueprint("pick", file, "--format", "axolotl") == "unfrozen_parameters:\n- ^model.attn.0.weight$\n"
    config = json.loads(blueprint("pick", file, "--format", "peft", "--rank", "4", "--k", "0.3"))
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
    assert [name for name in SIZES if re.fullmatch(config["target_modules"], f"model.{name}")] == ["attn.0", "attn.1"]
    ranks = json.loads(blueprint("pick", file, "--format", "rank-pattern", "--k", "0.3"))
    assert sorted(ranks["rank_pattern"].values()) == [7, 9]  # mean 8, by norms 0.4 and 0.5
    assert re.fullmatch(ranks["target_modules"], "model.attn.0")
    out = tmp_path / "pick.json"
    assert blueprint("pick", file, "--format", "peft", "--out", out) == ""
    assert json.loads(out.read_text())["peft_type"] == "LORA"
    done = cprbench("blueprint", "pick", str(file), "--embed", "--k", "0.6", "--format", "peft")
    assert "No linear module to adapt in embed." in done.stderr


def test_pick_within_a_budget_asks_the_file_for_what_steps_cost(tmp_path: Path) -> None:
    memory = {
        **full_data()["cost"][0],
        **{"resource": "memory_bytes", "fixed_cost": 4.0, "cost_per_parameter": 12.0, "source": "modelled"},
    }
    file = save(tmp_path, named(cost=[memory]))
    assert blueprint("pick", file, "--budget", "memory=5200B") == "attn.0\n"  # 4000 fixed, 12 each: 100 fit
    assert blueprint("pick", file, "--budget", "memory=6399B") == "attn.0\n"
    assert blueprint("pick", file, "--budget", "memory=6400B") == "attn.0\nattn.1\n"
    assert "smallest that fits" in refused("blueprint", "pick", str(file), "--budget", "memory=5199B")
    assert blueprint("pick", file, "--budget", "time=0.76") == "attn.1\nffn.1\n"  # 0.15 s of 0.2: the upper layer
    assert "leave out --k" in refused("blueprint", "pick", str(file), "--budget", "time=0.5", "--k", "0.3")
    bare = save(tmp_path, named(cost=[], step_cost=None), "bare.json")
    assert "no cost model of memory_bytes" in refused("blueprint", "pick", str(bare), "--budget", "memory=1GiB")
    assert "measured step_cost" in refused("blueprint", "pick", str(bare), "--budget", "time=0.5")


def test_pick_says_what_a_file_cannot_answer(file: Path, paper: Path) -> None:
    assert "does not state the parameters of 'attn.0'" in refused("blueprint", "pick", str(paper))
    assert "Did you mean 'axolotl'?" in refused("blueprint", "pick", str(file), "--format", "axolot")
    assert "--k 'much'" in refused("blueprint", "pick", str(file), "--k", "much")
    assert "Did you mean 'density'?" in refused("blueprint", "pick", str(file), "--by", "densty")
    assert "below the smallest submodule" in refused("blueprint", "pick", str(file), "--k", "0.01")
    silent = save(paper.parent, named(k_star=None, k_star_why="the fit is poor"), "silent.json")
    assert "recommends no k (the fit is poor)" in refused("blueprint", "pick", str(silent), "--k", "blueprint")


def test_export_prints_every_format(file: Path) -> None:
    assert blueprint("export", file, "--format", "csv").count("\n") == 1 + 2 * len(SIZES)
    assert json.loads(blueprint("export", file, "--format", "spectrum-json"))["model.ffn.1"]["snr"] == 0.3
    assert blueprint("export", file, "--format", "spectrum-yaml", "--k", "0.3").count("\n- ^model.") == 2
    card = blueprint("export", file, "--format", "model-card")
    assert card.startswith("## Gradient blueprint")
    assert json.loads(blueprint("export", file, "--format", "model-card", "--json"))["text"] == card
    assert "--k does nothing for csv" in refused("blueprint", "export", str(file), "--format", "csv", "--k", "0.3")
    assert "Did you mean 'csv'?" in refused("blueprint", "export", str(file), "--format", "cvs")


def test_reading_and_using_work_where_torch_is_not_installed(file: Path, tmp_path: Path) -> None:
    verbs = [
        ["show", str(file)],
        ["show", str(file), "--html", str(tmp_path / "page.html")],
        ["validate", str(file)],
        ["compare", str(file), str(file)],
        ["merge", str(file), "--out", str(tmp_path / "t.csv")],
        *(["pick", str(file), "--format", name] for name in ("names", "peft", "axolotl", "rank-pattern")),
        ["pick", str(file), "--by", "per-cost", "--uncertainty", "shrink"],
        ["pick", str(file), "--budget", "time=0.9"],
        *(["export", str(file), "--format", f] for f in ("csv", "spectrum-json", "spectrum-yaml", "model-card")),
    ]
    code = (
        "import sys\n"
        "absent = 'torch transformers peft numpy pandas scipy matplotlib powerlaw codecarbon accelerate safetensors'\n"
        "for name in absent.split(): sys.modules[name] = None\n"
        "from cprbench.cli import app\n"
        f"for words in {verbs!r}:\n"
        "    app(['blueprint', *words], standalone_mode=False)\n"
        "print('all of them', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("all of them\n"), done.stderr
    hidden = "import sys; sys.modules['torch'] = None; from cprbench.cli import main; main()"
    words = ["blueprint", "validate", str(file), "--model", "minilm"]
    done = subprocess.run([sys.executable, "-c", hidden, *words], capture_output=True, text=True)
    assert (done.returncode, "pip install 'cprbench[train]'" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("verb", ["create", "show", "validate", "compare", "merge", "pick", "export", "audit"])
def test_every_verb_says_what_it_does(verb: str) -> None:
    assert len(blueprint(verb, "--help").splitlines()) > 8


def test_create_refuses_before_it_measures(tmp_path: Path) -> None:
    def no(*words: str, out: Path = tmp_path / "new.json") -> str:
        return refused("blueprint", "create", "no-such-model", "--out", str(out), *words)

    general = ("--domain", "general=movie-snippets")
    assert "write TAG=TASK" in no()
    assert "Did you mean 'movie-snippets'" in no("--domain", "general=movie-snipets")
    assert "lower-case" in no("--domain", "Bio=movie-snippets")
    assert "given twice" in no(*general, *general)
    existing = save(tmp_path, {}, "old.json")
    assert "exists" in no(*general, out=existing)
    assert "is a folder" in no(*general, "--force", out=tmp_path)
    assert "cannot be written" in no(*general, out=tmp_path / "nowhere" / "new.json")
    assert "--noise-multiplier too" in no(*general, "--clip-norm", "2")
    assert "batches = 1" in no(*general, "--batches", "1")
    assert "in (0, 1]" in no(*general, "--checkpoint", "80")
    save(tmp_path, {}, "new-50.json")
    assert "new-50.json exists" in no(*general, "--checkpoint", "0.5=other")


def test_checkpoints_name_their_files() -> None:
    def plans(*checkpoints: str) -> list[tuple[str, float, str]]:
        return [(p.source, p.checkpoint, str(p.path)) for p in _planned("m", list(checkpoints), Path("f/x.json"))]

    assert plans() == [("m", 1.0, "f/x.json")]
    assert plans("0.8") == [("m", 0.8, "f/x.json")]
    both = [("a", 0.5, "f/x-50.json"), ("m", 1.0, "f/x-100.json")]
    assert plans("0.5=a") == both
    assert plans("1", "0.5=a") == both
    assert plans("0.8", "1=b", "0.5=a")[1:] == [("m", 0.8, "f/x-80.json"), ("b", 1.0, "f/x-100.json")]
    for wrong in (("0.8", "0.9"), ("0.8", "0.8=a"), ("1=a",), ("0.5=",), ("nan",), ("half",)):
        with pytest.raises(SpecError):
            plans(*wrong)


def test_a_verdict_of_an_audit_says_no_more_than_it_can() -> None:
    expected = {0.9: "Supported", 0.899: "Partly supported", 0.5: "Partly supported", 0.49: "Not supported"}
    for correlation, word in expected.items():
        said = verdict(correlation, "minilm", "movie-snippets")
        assert said.startswith(word)
        assert said.endswith("on minilm and movie-snippets; nothing follows for others.")
    assert verdict(None, "m", "t").startswith("Not comparable")


@pytest.fixture(scope="module")
def created(minilm2: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """`create` of a small real model; its last argument is the file."""
    out = tmp_path_factory.mktemp("created") / "two.json"
    words = ["--domain", "general=movie-snippets", "--batches", "3", "--batch-size", "8", "--warmup-steps", "2"]
    return cprbench("blueprint", "create", str(minilm2), *words, "--checkpoint", "0.8", "--out", str(out))


def test_create_measures_a_real_model(created: subprocess.CompletedProcess[str]) -> None:
    assert created.returncode == 0, created.stderr
    path = created.stdout.splitlines()[0]
    assert path == created.args[-1]
    assert "making it cost" in created.stdout
    assert "lacks: Domain 'general': 3 batches; medians want 16." in created.stdout
    assert "general: 3 of 3 batches" in created.stderr
    assert "at 80 % of training on general=movie-snippets" in created.stderr
    made = files.read(path)
    assert made.training_checkpoint == 0.8
    assert made.made is not None and made.made.seconds
    assert "ffn.1" in blueprint("show", path, "--json")


def test_validate_knows_the_model_of_a_file_and_refuses_another(
    created: subprocess.CompletedProcess[str], minilm2: Path, tiny_llama: Path
) -> None:
    out = created.args[-1]
    assert blueprint("validate", out, "--model", minilm2).startswith(f"{out}: valid\n")
    other = cprbench("blueprint", "validate", out, "--model", str(tiny_llama))
    assert other.returncode == 1
    assert f"{out}: error: the blueprint of" in other.stdout
    assert "is not of" in other.stdout


def test_audit_measures_both_rankings_and_judges_them(tiny_llama: Path) -> None:
    words = ["blueprint", "audit", str(tiny_llama), "--task", "movie-snippets", "--batches", "2", "--batch-size", "4"]
    shown = blueprint(*words[1:], "--k", "0.4")
    assert "submodule" in shown
    assert re.search(r"(Supported|supported): norms", shown) or "Not supported" in shown
    found = json.loads(blueprint(*words[1:], "--json"))
    assert set(found["influence"]) == set(found["gradient_norm"]) == set(found["sizes"])
    assert -1 <= found["spearman"] <= 1
    assert found["fisher_to_gradient_seconds"] == found["fisher_seconds"] / found["gradient_seconds"]
    assert found["verdict"] == verdict(found["spearman"], str(tiny_llama), "movie-snippets")
    assert max(map(len, shown.splitlines()[:8])) <= 80
