"""--budget and --set stop.…: which arms of a command they are for, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cprbench.cli.run import _suite
from cprbench.errors import SpecError
from cprbench.runs.arms import arms_of
from cprbench.runs.set_words import read_settings


def labels(*pairs: str, budgets: tuple[str, ...] = (), what: str = "movie-snippets", **words: str) -> list[str]:
    given: dict[str, Any] = {"model": "minilm", "method": "head,full,lora", "selection": "", "blocks": 1, **words}
    return [arm.label for arm in arms_of(_suite([what], **given, settings=read_settings(pairs), budgets=budgets).arm)]


def test_a_budget_and_a_rule_are_for_every_arm_but_the_reference() -> None:
    assert labels(budgets=("flops=1e12",)) == ["head", "full budget=flops=1e+12", "lora budget=flops=1e+12"]
    assert labels("stop.eta=0.2x", "stop.patience=3") == [
        "head",
        "full stop=0.2x patience=3",
        "lora stop=0.2x patience=3",
    ]


def test_the_arm_whose_bill_a_budget_is_a_share_of_has_none() -> None:
    assert labels(budgets=("0.5x full", "1x full")) == ["head", "full", "lora budget=0.5x full", "lora budget=1x full"]
    chosen = labels(budgets=("1x full",), method="full", selection="all,influence")
    assert chosen == ["full", "full selection=influence q=0.3 budget=1x full"]


@pytest.mark.parametrize(
    ("pairs", "budgets", "message"),
    [
        (["stop.ata=1"], (), "unknown setting stop.ata. Did you mean 'eta'"),
        (["stop.eta=0.1x,0.2x"], (), "it takes one value"),
        (["stop.window=0"], (), "stop.window: .*greater than or equal to 1"),
        ([], ("1e12",), "write RESOURCE=AMOUNT or SHAREx ARM"),
        ([], ("seconds=5",), "'flops', 'device_hours' or 'energy_kwh'"),
        ([], ("1x ful",), "no arm 'ful' that ends by itself. Known: head"),
    ],
)
def test_words_that_mean_nothing_are_refused(pairs: list[str], budgets: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        labels(*pairs, budgets=budgets, method="head,full")


def test_a_suite_names_its_own_endings() -> None:
    suite = {"model": "", "method": "", "what": "quickstart"}
    with pytest.raises(SpecError, match="leave out --budget"):
        labels(budgets=("flops=1",), **suite)
    with pytest.raises(SpecError, match="leave out --set stop"):
        labels("stop.eta=0.1x", **suite)


def test_an_arm_that_is_measured_by_stays_free_beside_its_twins_with_other_budgets() -> None:
    words = {"method": "full,lora"}
    assert labels(budgets=("1x full", "1x lora"), **words) == [
        "full",
        "full budget=1x lora",
        "lora",
        "lora budget=1x full",
    ]
    assert labels(budgets=("0.5x full", "flops=1e11"), **words) == [
        "full",
        "full budget=flops=1e+11",
        "lora budget=0.5x full",
        "lora budget=flops=1e+11",
    ]
    shares = labels("partial.k=0.1,0.3", budgets=("0.5x partial k=0.1",), method="partial")
    assert shares == ["partial k=0.1", "partial k=0.3 budget=0.5x partial k=0.1"]


@pytest.mark.parametrize(
    ("method", "pairs", "budgets"),
    [
        ("full", (), ("0.5x full", "device_hours=1x full")),
        ("head", (), ("flops=1e9",)),
        ("head", ("stop.eta=0.1x",), ()),
    ],
)
def test_an_ending_that_no_arm_takes_is_refused(method: str, pairs: tuple[str, ...], budgets: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="is for no arm here"):
        labels(*pairs, budgets=budgets, method=method)
