"""Files that methods read, blueprints and Spectrum scans: pinned by content, changed or moved, twice, and exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cprbench.blueprint.files import sha256_of_file
from cprbench.errors import MethodError, SpecError
from cprbench.meters.flops import Pass, Trained, count
from cprbench.runs.arms import arms_of
from cprbench.runs.planner import Inspected, Planned, plan
from cprbench.runs.runner import Options, export, run
from cprbench.runs.set_words import read_settings
from cprbench.runs.store import load_run
from cprbench.spec import ArmSpec, RunRecord, SuiteSpec
from tests.conftest import SMALL, Arm
from tests.runs.test_partial_with_blueprint import (  # noqa: F401
    Partial,
    flops,
    local,
    looked,
    nothing_of,
    partial,
    quick,
    write,
)


def suite(model: Path, *settings: dict[str, Any], method: str = "partial") -> SuiteSpec:
    arms = [ArmSpec(method=method, settings={"k": 0.3, **own}) for own in settings]
    return SuiteSpec(tasks=["movie-snippets"], models=[str(model)], blocks=1, arm=arms)


def planned(found: Inspected, *settings: dict[str, Any]) -> list[Planned]:
    asked = suite(Path(found.model.source), *settings)
    return plan(asked, [found], arms_of(asked.arm), settings=SMALL)


NORMS = {"embed": 6.0, "attn.0": 5.0, "ffn.0": 4.0, "attn.1": 3.0, "ffn.1": 2.0, "head": 1.0}


# --- identity ---------------------------------------------------------------------------------------


def test_the_id_of_a_run_follows_the_files_content_and_not_where_it_lies(
    looked: dict[str, Inspected],  # noqa: F811
    tiny_llama: Path,
    write: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    found, first = looked[str(tiny_llama)], Path(write(NORMS))
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "other.json"
    copy.write_bytes(first.read_bytes())
    changed = Path(write(NORMS | {"head": 1.5}, name="changed.json"))
    (here,), (there,), (another,), (none,) = (
        planned(found, settings)
        for settings in ({"blueprint": str(first)}, {"blueprint": str(copy)}, {"blueprint": str(changed)}, {})
    )
    assert here.run_id == there.run_id
    assert len({here.run_id, another.run_id, none.run_id}) == 3
    assert here.spec.method.settings["blueprint"] == "made.json"
    assert here.spec.method.settings["blueprint_sha256"] == sha256_of_file(first)
    assert str(tmp_path) not in here.spec.model_dump_json()
    assert here.files == {"method": {"blueprint": str(first)}, "selection": {}}
    assert (here.arm, there.arm) == ("partial k=0.3 blueprint=made", "partial k=0.3 blueprint=other")


def test_two_files_of_one_name_in_a_suite_are_refused_with_the_cure(
    looked: dict[str, Inspected],  # noqa: F811
    tiny_llama: Path,
    write: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    first = Path(write(NORMS))
    (tmp_path / "elsewhere").mkdir()
    second = tmp_path / "elsewhere" / first.name
    second.write_text(Path(write(NORMS | {"head": 2.0}, name="x.json")).read_text())
    with pytest.raises(SpecError, match=r"'partial k=0\.3 blueprint=made' is listed twice.*give its file another name"):
        planned(looked[str(tiny_llama)], {"blueprint": str(first)}, {"blueprint": str(second)})
    renamed = second.rename(second.with_name("late.json"))
    runs = planned(looked[str(tiny_llama)], {"blueprint": str(first)}, {"blueprint": str(renamed)})
    assert len({run.run_id for run in runs}) == 2


@pytest.mark.parametrize("change", ["altered", "gone"])
def test_a_file_that_changes_between_plan_and_run_fails_the_run_and_not_silently(
    change: str,
    quick: None,  # noqa: F811
    tiny_llama: Path,
    write: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    file = Path(write(NORMS))

    def meddle(planned: Planned, event: Mapping[str, Any]) -> None:
        if event["event"] == "run":
            if change == "gone":
                file.unlink()
            else:
                file.write_text(file.read_text() + " ")

    options = Options(out=tmp_path / "runs")
    asked = suite(tiny_llama, {"blueprint": str(file)})
    (record,) = run(asked, options=options, settings=SMALL, observe=meddle).records
    assert record.status == "failed"
    said = "has changed since the run was planned" if change == "altered" else "cannot be read now"
    assert f"partial.blueprint = made.json: {'was there when ' if change == 'gone' else ''}" in str(record.error)
    assert said in str(record.error) and "Start again" in str(record.error)
    assert nothing_of(file.parent, record)


def test_a_missing_file_is_refused_before_anything_runs(quick: None, tiny_llama: Path, tmp_path: Path) -> None:  # noqa: F811
    asked = suite(tiny_llama, {"blueprint": str(tmp_path / "none.json")})
    with pytest.raises(SpecError, match=r"none\.json: cannot be read .*Name an existing file"):
        run(asked, options=Options(out=tmp_path / "runs"), settings=SMALL)


# --- the command line -------------------------------------------------------------------------------


def test_a_budget_with_a_comma_is_one_value_and_a_list_of_numbers_is_many() -> None:
    pairs = ["partial.budget=memory=8GiB,time=0.5", "partial.k=0.1,0.2", "partial.blueprint=a.json,b.json"]
    assert read_settings(pairs)["partial"] == {
        "budget": ["memory=8GiB,time=0.5"],
        "k": [0.1, 0.2],
        "blueprint": ["a.json", "b.json"],
    }
    assert read_settings(["partial.budget=time=0.5"]) == {"partial": {"budget": ["time=0.5"]}}
    assert read_settings(["partial.k=blueprint,0.15"]) == {"partial": {"k": ["blueprint", 0.15]}}
    (arm,) = arms_of([ArmSpec(method="partial", settings={"budget": "memory=8GiB,time=0.5"})])
    assert arm.label == "partial budget=memory=8GiB,time=0.5"  # as it was written, so that it can be asked again


# --- spectrum ---------------------------------------------------------------------------------------


def counted(record: RunRecord, folder: Path, trained: Trained) -> int:
    """Return the training FLOPs of a run's own passes, counted anew for what should have trained."""
    passes = [Pass.parse(row) for row in load_run(folder / record.run_id).lines("work.jsonl")]
    model = record.spec.model
    return count(model.config, model.kind, record.notes["labels"], trained, passes)["train", 1].total


def test_a_spectrum_yaml_trains_exactly_what_it_names(
    partial: Partial,  # noqa: F811
    tiny_llama: Path,
    runs_folder: Path,
    tmp_path: Path,
) -> None:
    scan = tmp_path / "unfrozen.yaml"
    scan.write_text(
        "unfrozen_parameters:\n- ^lm_head.weight$\n# mlp.down_proj layers\n- model.layers.1.mlp.down_proj\n"
        "- model.layers.1.self_attn.q_proj\n",
        encoding="utf-8",
    )
    record = partial(method="spectrum", scan=str(scan))
    tensors = {
        "attn.1": ["model.layers.1.self_attn.q_proj.weight"],
        "ffn.1": ["model.layers.1.mlp.down_proj.weight"],
    }
    assert record.notes["tensors"] == tensors
    assert record.trained_submodules == ["attn.1", "ffn.1"]
    assert record.trained_parameters == 64 * 64 + 64 * 128
    assert record.k_asked is None and record.k_reached == record.trained_parameters / record.total_parameters  # type: ignore[operator]
    assert record.notes["unmatched"] == ["^lm_head.weight$"]  # it is tied: embed_tokens is its name
    assert record.notes["partly_trained"] == ["attn.1", "ffn.1"]
    assert flops(record, "train") == counted(record, runs_folder, Trained(frozenset(tensors), False, None, tensors))
    assert flops(record, "train") < counted(record, runs_folder, Trained(frozenset(tensors), False))
    assert flops(record, "select") == 0
    assert record.blueprint is None and nothing_of(tmp_path, record)
    assert record.spec.method.settings["scan"] == "unfrozen.yaml"
    assert record.spec.method.settings["scan_sha256"] == sha256_of_file(scan)


def snr(path: Path, ratios: Mapping[str, float]) -> str:
    path.write_text(json.dumps({name: {"snr": ratio, "type": "x"} for name, ratio in ratios.items()}))
    return str(path)


def test_a_spectrum_json_ranks_submodules_by_the_mean_ratio_of_their_modules(
    partial: Partial,  # noqa: F811
    tiny_llama: Path,
    runs_folder: Path,
    tmp_path: Path,
) -> None:
    ratios = {"model.layers.0.self_attn.q_proj": 9.0, "model.layers.0.self_attn.k_proj": 1.0}  # mean 5
    ratios |= {"model.layers.1.self_attn.q_proj": 6.0, "model.layers.1.mlp.down_proj": 4.0}
    record = partial(method="spectrum", scan=snr(tmp_path / "snr.json", ratios), k=0.35)
    assert record.trained_submodules == ["attn.0", "attn.1"]  # 6, then 5; then ffn.1 would exceed k
    assert record.k_asked == 0.35 and 0.2 < (record.k_reached or 0) <= 0.35
    trained = Trained(frozenset(record.trained_submodules), False)
    assert flops(record, "train") == counted(record, runs_folder, trained)
    assert record.arm == "spectrum k=0.35 scan=snr"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a scan: --set spectrum.scan="),
        ('{"roberta.layer.9": {"snr": 1.0, "type": "x"}}', "names no module of this model"),
        ('{"model.layers.0.mlp.up_proj": {"snr": NaN}}', "Spectrum could not measure it"),
        ("unfrozen_parameters:\n- ^roberta.layer$\n", "no entry names a parameter of this model"),
        ("unfrozen_parameters:\n- (a+)+$\n", "is no plain name"),
        ("trained: everything\n", "unfrozen_parameters is missing"),
    ],
)
def test_a_scan_of_nothing_here_is_refused_before_anything_runs(
    text: str,
    message: str,
    quick: None,  # noqa: F811
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    scan = tmp_path / "scan"
    scan.write_text(text)
    asked = suite(tiny_llama, {"scan": str(scan)} if text else {}, method="spectrum")
    with pytest.raises((MethodError, SpecError), match=message):
        run(asked, options=Options(out=tmp_path / "runs"), settings=SMALL)


# --- export -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["partial", "spectrum"])
def test_a_run_with_a_file_is_exported_without_it(
    method: str,
    quick: None,  # noqa: F811
    run_arm: Arm,
    runs_folder: Path,
    tiny_llama: Path,
    write: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    if method == "partial":
        file, settings = Path(write(NORMS)), {"blueprint": write(NORMS), "blend_weight": 1.0, "k": 0.31}
    else:
        file = tmp_path / "one.yaml"
        file.write_text("unfrozen_parameters:\n- ^model.layers.0.mlp.up_proj.weight$\n")
        settings = {"scan": str(file)}
    record = run_arm(tiny_llama, method, settings=settings, save="delta", learning_rate=1e-3)
    assert record.status == "ok", record.error
    file.unlink()
    export(runs_folder / record.run_id, tmp_path / "merged", offline=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    before = dict(transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).named_parameters())
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    if method == "spectrum":
        assert changed == {"model.layers.0.mlp.up_proj.weight"}
    else:
        assert sum(before[name].numel() for name in changed) == record.trained_parameters
