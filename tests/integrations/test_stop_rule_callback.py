"""The stop rule in transformers.Trainer ends a training where the same rule, fed the same points, says stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cprbench.adapt.stopping import StopRule
from cprbench.errors import SpecError
from cprbench.integrations.stopping import StopRuleCallback


class Line(torch.nn.Module):
    """y = w x, learnt in a few steps and then flat."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        given = self.w * x
        return {"loss": ((given - labels) ** 2).mean(), "logits": given}


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([index / 16])
        return {"x": x, "labels": 2 * x}


def trainer(callback: StopRuleCallback, folder: Path, eval_strategy: str = "steps") -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=60,
        learning_rate=0.2,
        lr_scheduler_type="constant",
        eval_strategy=eval_strategy,
        eval_steps=2,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(
        model=Line(), args=arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[callback]
    )


def evaluations(trained: transformers.Trainer) -> list[tuple[int, float]]:
    return [(row["step"], row["eval_loss"]) for row in trained.state.log_history if "eval_loss" in row]


def test_a_training_ends_where_the_rule_says_stop(tmp_path: Path) -> None:
    callback = StopRuleCallback(eta="0.1x", window=2, patience=2, flops_per_step=100.0)
    trained = trainer(callback, tmp_path)
    trained.train()
    rule = StopRule("0.1x", 2, 2)
    said = [rule.add(-loss, 100.0 * step) for step, loss in evaluations(trained)]
    assert said == [False] * (len(said) - 1) + [True]
    assert trained.state.global_step == 2 * len(said) < 60
    assert callback.rule.told() == rule.told()


def test_without_a_count_of_flops_the_resource_is_seconds(tmp_path: Path) -> None:
    callback = StopRuleCallback(eta="1e-12", window=2, patience=30)
    trained = trainer(callback, tmp_path)
    before = time.monotonic()
    trained.train()
    spent = [point.gamma for point in callback.rule.points]
    assert callback.rule.resource == "seconds"
    assert len(spent) == 30 and spent == sorted(spent)
    assert 0.0 < spent[0] < spent[-1] < time.monotonic() - before
    assert trained.state.global_step == 60  # so much patience is never used up


def test_all_processes_go_by_the_first_ones_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda mine: [next(clock)])
    callback = StopRuleCallback(eta=0.5, window=1, patience=2)
    control, state = transformers.TrainerControl(), transformers.TrainerState()
    callback.on_train_begin(None, state, control)
    for loss in (3.0, 2.0, 2.0, 2.0):
        assert not control.should_training_stop
        callback.on_evaluate(None, state, control, metrics={"eval_loss": loss})
        callback.on_evaluate(None, state, control, metrics={"eval_other_loss": 9.0})
    assert control.should_training_stop
    assert [point.gamma for point in callback.rule.points] == [1.0, 2.0, 3.0, 4.0]


def test_a_score_that_rises_is_fed_as_it_is_and_other_evaluations_are_no_checks() -> None:
    callback = StopRuleCallback(eta="0.1x", window=1, patience=1, metric="eval_a_accuracy", flops_per_step=1.0)
    control, state = transformers.TrainerControl(), transformers.TrainerState()

    def evaluate(step: int, **metrics: float) -> None:
        state.global_step = step
        callback.on_evaluate(None, state, control, metrics=metrics)

    evaluate(0, eval_a_accuracy=0.1)  # before training: not a check of it
    callback.on_train_begin(None, state, control)
    evaluate(1, eval_a_accuracy=0.2)
    evaluate(1, eval_b_accuracy=0.9)
    evaluate(2, eval_a_accuracy=0.5)
    callback.on_train_end(None, state, control)
    evaluate(3, eval_a_accuracy=0.5)
    assert [point.psi for point in callback.rule.points] == [0.2, 0.5]
    assert not control.should_training_stop


def test_a_second_training_begins_with_a_fresh_rule(tmp_path: Path) -> None:
    callback = StopRuleCallback(eta="0.1x", window=2, patience=2, flops_per_step=1.0)
    steps = []
    for _ in range(2):
        trained: Any = trainer(callback, tmp_path)
        trained.train()
        steps.append(trained.state.global_step)
    assert steps[0] == steps[1] < 60


def test_a_rule_that_saw_nothing_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no evaluation of this training had 'eval_f1'.*eval_strategy"):
        trainer(StopRuleCallback(metric="eval_f1"), tmp_path).train()


def test_settings_that_mean_nothing_are_refused_before_training() -> None:
    with pytest.raises(SpecError, match=r"stop\.eta"):
        StopRuleCallback(eta="10x")
