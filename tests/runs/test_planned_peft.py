"""peft:PATH on the command line and in suites, and what is refused of configs whose passes cannot be counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt.settings import settings_of
from cprbench.cli.run import _suite
from cprbench.errors import MethodError, SpecError, TrainingError
from cprbench.meters.flops import sizes
from cprbench.runs.arms import Arm, arms_of
from cprbench.runs.planner import plan
from cprbench.runs.set_words import read_settings
from cprbench.spec import ArmSpec, SuiteSpec
from cprbench.tasks import load_suite
from tests.cli.test_cli import refused
from tests.runs.test_planner import inspected, planned
from tests.test_flops import CONFIGS


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, str]:
    """A config of plain LoRA and one of IA3: tuner -> path."""
    made = {}
    for tuner, more in {"LORA": {}, "IA3": {"feedforward_modules": []}}.items():
        path = tmp_path / tuner.lower() / "adapter_config.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"peft_type": tuner, "target_modules": ["query"], **more}))
        made[tuner] = str(path)
    return made


def asked(method: str, *settings: str) -> list[Arm]:
    """Return the arms of a command line."""
    return arms_of(_suite(["movie-snippets"], "minilm", method, "", 1, read_settings(settings)).arm)


def test_configs_stand_among_other_methods_on_the_command_line(configs: dict[str, str]) -> None:
    arms = asked(f"lora,peft:{configs['IA3']},peft:{configs['LORA']}", "lora.r=4")
    assert [arm.label for arm in arms] == ["lora r=4", "peft config=ia3", "peft config=lora"]
    assert settings_of(arms[1].method) == {"config": configs["IA3"]}


def test_a_list_of_configs_makes_an_arm_each(configs: dict[str, str]) -> None:
    arms = asked("peft", f"peft.config={configs['IA3']},{configs['LORA']}")
    assert [arm.label for arm in arms] == ["peft config=ia3", "peft config=lora"]


def test_a_config_that_is_named_twice_is_refused(configs: dict[str, str]) -> None:
    with pytest.raises(SpecError, match=r"names its file itself. Leave out peft.config"):
        asked(f"peft:{configs['IA3']}", "peft.config=other.json")
    with pytest.raises(SpecError, match="only peft is followed by a file"):
        asked("lora:a.json")


def test_a_suite_file_names_a_config_as_the_command_line_does_also_for_its_baselines(
    configs: dict[str, str], tmp_path: Path
) -> None:
    text = f'method = "peft:{configs["LORA"]}"\n'
    text += f'[[arm]]\nmethod = "partial"\nbaselines = true\nbaseline_method = "peft:{configs["LORA"]}"\n'
    head = 'name = "mine"\nversion = 1\ntasks = ["movie-snippets"]\nmodels = ["minilm"]\n[[arm]]\n'
    (tmp_path / "mine.toml").write_text(head + text)
    arms = arms_of(load_suite(str(tmp_path / "mine.toml")).arm)
    name = "peft config=lora"
    assert [arm.label for arm in arms][:2] == [name, "partial k=0.15"]
    assert {arm.method.name for arm in arms} == {"peft", "partial"}
    assert {settings_of(arm.method).get("config", configs["LORA"]) for arm in arms} == {configs["LORA"]}
    assert [arm.follows for arm in arms][-1] == "partial k=0.15"


def test_a_run_keeps_the_configs_content_so_a_copy_elsewhere_is_the_same_run(
    configs: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(Path(configs["LORA"]).read_bytes())
    (here,), (there,), (other,) = (
        planned(ArmSpec(method=f"peft:{path}")) for path in (configs["LORA"], copy, configs["IA3"])
    )
    assert here.run_id == there.run_id != other.run_id
    assert str(tmp_path) not in here.spec.model_dump_json()
    assert here.files["method"] == {"config": configs["LORA"]}
    assert (here.arm, there.arm) == ("peft config=lora", "peft config=copy")


@pytest.mark.parametrize(
    ("selection", "settings"),
    [("influence", {"q": 0.5}), ("cross", {}), ("iterative", {}), ("predicted", {}), ("random", {"flops": 1e12})],
)
def test_selections_that_ask_for_flops_or_gradients_of_examples_take_plain_lora_only(
    selection: str, settings: dict[str, Any], configs: dict[str, str]
) -> None:
    def run(tuner: str) -> list[Any]:
        arm = ArmSpec(method=f"peft:{configs[tuner]}", selection=selection, selection_settings=settings)
        suite = SuiteSpec(tasks=["tiny"], models=["minilm"], blocks=1, arm=[arm])
        found = inspected(train=10_000)
        counted = found.model.model_copy(update={"config": sizes(CONFIGS["bert"].to_dict())})
        return plan(suite, [replace(found, model=counted)], arms_of(suite.arm), settings={})

    assert len(run("LORA")) == 1
    with pytest.raises(MethodError, match=rf"selection '{selection}' asks for what cannot be told: .*type IA3"):
        run("IA3")


def test_selections_that_ask_neither_go_with_every_tuner(configs: dict[str, str]) -> None:
    for selection in ("random", "coreset"):
        assert planned(ArmSpec(method=f"peft:{configs['IA3']}", selection=selection))


def test_a_baseline_by_lot_at_equal_flops_needs_a_tuner_that_is_counted(configs: dict[str, str]) -> None:
    arm = ArmSpec(method="partial", baselines=True, baseline_method=f"peft:{configs['IA3']}")
    with pytest.raises((TrainingError, MethodError), match=r"no FLOPs to compare by: adapters of type IA3"):
        planned(arm)


def test_the_command_refuses_a_config_before_anything_runs(minilm2: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}')
    words = ("run", "movie-snippets", "--model", str(minilm2), "--out", str(tmp_path / "runs"))
    said = refused(*words, "--method", f"full,peft:{tmp_path / 'adapter_config.json'}")
    assert "PREFIX_TUNING puts virtual tokens before the prompt" in " ".join(said.split())
    assert not list((tmp_path / "runs").glob("*/record.json"))
