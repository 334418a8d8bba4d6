"""The nouns: what they refuse, and the seeds that follow from a block."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cprbench.errors import SpecError
from cprbench.schema import Frozen, parse, sha256_of
from cprbench.spec import (
    LOWER_IS_BETTER,
    Environment,
    Gamma,
    Psi,
    Reading,
    RunRecord,
    SuiteSpec,
    TaskSpec,
    TrainingSpec,
    better_by,
    block_seed,
    stream_seed,
)
from cprbench.tasks import training_for
from tests.records_factory import make_record

SOURCES: dict[str, dict[str, Any]] = {
    "package": {"kind": "package", "requirement": "a==1.0", "sha256": "0" * 64, "member": "a.csv"},
    "files": {"kind": "files", "path": "a.csv"},
    "hub": {"kind": "hub", "dataset": "org/name", "revision": "0" * 40},
    "inline": {"kind": "inline", "rows": [{"text": "a", "label": "x"}]},
}


def task_data(**overrides: Any) -> dict[str, Any]:
    """Return the smallest task file that is complete, as TOML gives it."""
    data: dict[str, Any] = {
        "name": "tiny",
        "version": 1,
        "domain": "general",
        "license": "MIT",
        "citation": "nobody 2024",
        "chance": 0.5,
        "primary": "accuracy",
        "metrics": ["accuracy"],
        "source": [SOURCES["inline"]],
        "splits": {"by": "hash", "test": 0.2},
        "example": {"kind": "choice", "prompt": "{text}", "answer": "label", "choices": ["x", "y"]},
    }
    return data | overrides


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        parse(TaskSpec, data, "tiny.toml")
    return str(caught.value)


def test_the_smallest_task_is_accepted() -> None:
    assert parse(TaskSpec, task_data(), "tiny.toml").splits.test == 0.2


@pytest.mark.parametrize(
    ("data", "path", "nearest"),
    [
        (task_data(licence="MIT"), "licence", "license"),
        (task_data(splits={"by": "hash", "test": 0.2, "validaton": 0.1}), "splits.validaton", "validation"),
        (task_data(example={**task_data()["example"], "answr": "label"}), "example.answr", "answer"),
        (task_data(source=[{**SOURCES["package"], "membr": "a"}]), "source.0.package.membr", "member"),
        (task_data(source=[{**SOURCES["files"], "tests": "a.csv"}]), "source.0.files.tests", "test"),
        (
            task_data(source=[SOURCES["files"], {**SOURCES["hub"], "revison": "a"}]),
            "source.1.hub.revison",
            "revision",
        ),
        (task_data(source=[{**SOURCES["inline"], "row": []}]), "source.0.inline.row", "rows"),
        (task_data(source=[{**SOURCES["inline"], "collumns": []}]), "source.0.inline.collumns", "columns"),
    ],
)
def test_a_task_with_a_mistyped_key_names_the_nearest_one(data: dict[str, Any], path: str, nearest: str) -> None:
    assert refusal(data) == f"tiny.toml: unknown key {path!r}. Did you mean {nearest!r}?"


def test_a_key_of_another_kind_of_source_is_not_suggested() -> None:
    assert "member" not in refusal(task_data(source=[{**SOURCES["files"], "membr": "a"}]))


def test_a_task_with_a_mistyped_training_key_names_the_nearest_one() -> None:
    task = parse(TaskSpec, task_data(training={"epoch": 2}), "tiny.toml")
    with pytest.raises(SpecError, match=r"tiny\.toml \[training\]: unknown key 'epoch'\. Did you mean 'epochs'\?"):
        training_for(task, {}, "tiny.toml")


def test_settings_stand_above_the_training_of_a_task_and_that_above_the_defaults() -> None:
    task = parse(TaskSpec, task_data(training={"epochs": 5, "batch_size": 4}), "tiny.toml")
    recipe = training_for(task, {"batch_size": 2}, "here")
    assert (recipe.epochs, recipe.batch_size, recipe.max_tokens) == (5, 2, TrainingSpec().max_tokens)


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_every_kind_of_source_is_accepted(kind: str) -> None:
    task = parse(TaskSpec, task_data(source=[SOURCES[kind]]), "tiny.toml")
    assert task.source[0].kind == kind


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": []}, "source"),
        ({"source": [{"kind": "ftp", "path": "a"}]}, "'package'"),
        ({"source": [{**SOURCES["package"], "requirement": "a>=1.0"}]}, "requirement"),
        ({"source": [{**SOURCES["package"], "sha256": "abc"}]}, "sha256"),
        ({"source": [{**SOURCES["hub"], "revision": "main"}]}, "revision"),
        ({"source": [{"kind": "files"}]}, "one path per split"),
        ({"source": [{"kind": "files", "path": "a", "test": "b"}]}, "one path per split"),
        ({"splits": {"by": "hash"}}, "need test"),
        ({"splits": {"by": "hash", "test": 1.0}}, "less than 1"),
        ({"splits": {"by": "hash", "test": 0.1, "counts": {"tst": 1}}}, "splits.counts.tst"),
        ({"splits": {"by": "stratified-folds"}}, "labels"),
        ({"splits": {"by": "stratified-folds", "labels": ["a"], "folds": 3, "fold": 3}}, "fold below folds"),
        ({"primary": "f1"}, "not among metrics"),
        ({"metrics": ["accuracy", "bleu"]}, "metrics.1"),
        ({"version": 0}, "version"),
        ({"name": "Not A Name"}, "name"),
        ({"example": {"kind": "choice", "prompt": "{a}", "answer": "b"}}, "exactly one of choices"),
        ({"example": {"kind": "choice", "prompt": "{a}", "answer": "b", "choices": ["only"]}}, "at least two"),
        ({"example": {**task_data()["example"], "choices_column": "c"}}, "exactly one of choices"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_what_is_wrong(change: dict[str, Any], words: str) -> None:
    assert words in refusal(task_data(**change))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_in_every_noun(value: float) -> None:
    assert "chance" in refusal(task_data(chance=value))
    for noun, data in (
        (TrainingSpec, {"learning_rate": value}),
        (Reading, {"phase": "train", "quantity": "joules", "value": value, "source": "counter"}),
        (Psi, {"primary": "accuracy", "base": {"accuracy": value}, "final": None, "items": 1}),
        (RunRecord, {**make_record().model_dump(by_alias=True), "k_reached": value}),
        (RunRecord, {**make_record().model_dump(by_alias=True), "seconds": {"train": value}}),
        (Gamma, dict.fromkeys(Gamma.model_fields) | {"device_hours": value}),
    ):
        with pytest.raises(SpecError):
            parse(noun, data, "here")


@pytest.mark.parametrize(
    ("noun", "data"),
    [
        (RunRecord, {**make_record().model_dump(by_alias=True), "notes": {"a": math.nan}}),
        (Environment, {"hardware_class": "any", "facts": {"copy_rate": math.inf}}),
        (
            Reading,
            {"phase": "train", "quantity": "j", "value": 1.0, "source": "rapl", "detail": {"resolution": math.nan}},
        ),
    ],
    ids=["notes of a record", "facts of an environment", "detail of a reading"],
)
def test_what_is_no_number_is_refused_in_free_tables(noun: type[Frozen], data: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        parse(noun, data, "here")


def test_a_reading_is_a_value_with_its_source_or_a_reason() -> None:
    base = {"phase": "train", "quantity": "gpu_energy_joules"}
    assert Reading.model_validate({**base, "value": 0.0, "source": "counter"}).value == 0.0
    assert Reading.model_validate({**base, "value": None, "why_missing": "no NVML device"}).value is None
    for wrong, words in (
        ({"value": 1.0, "source": "counter", "why_missing": "because"}, "either a value or why_missing"),
        ({"value": None}, "either a value or why_missing"),
        ({"value": 1.0}, "source exactly when"),
        ({"value": None, "why_missing": "because", "source": "rapl"}, "source exactly when"),
        ({"value": -0.1, "source": "counter"}, "below zero"),
        ({"value": 1.0, "source": "guessed"}, "source"),
    ):
        with pytest.raises(SpecError, match=words):
            parse(Reading, {**base, **wrong}, "here")


def test_time_in_a_record_is_never_negative() -> None:
    data = make_record().model_dump(by_alias=True) | {"seconds": {"train": -1.0}}
    with pytest.raises(SpecError, match=r"seconds\.train is -1\.0"):
        parse(RunRecord, data, "record.json")


def test_a_record_survives_json() -> None:
    record = make_record(k_asked=0.15, k_reached=0.12)
    text = record.model_dump_json(by_alias=True)
    assert '"schema":"cprbench.record/1"' in text
    assert RunRecord.model_validate_json(text) == record


def test_a_record_of_another_schema_is_refused() -> None:
    data = make_record().model_dump(by_alias=True) | {"schema": "cprbench.record/999"}
    with pytest.raises(SpecError, match=r"cprbench\.record/1"):
        parse(RunRecord, data, "record.json")


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("stats", "status"),
        ("psi.finl", "final"),
        ("readings.0.quantty", "quantity"),
        ("spec.metod", "method"),
        ("spec.training.epoch", "epochs"),
    ],
)
def test_a_record_with_a_mistyped_key_names_the_nearest_one(path: str, nearest: str) -> None:
    data = make_record().model_dump(by_alias=True, mode="json")
    *rooms, key = path.split(".")
    place: Any = data
    for room in rooms:
        place = place[int(room) if room.isdigit() else room]
    place[key] = 1
    with pytest.raises(SpecError, match=rf"^record\.json: unknown key '{path}'\. Did you mean '{nearest}'\?$"):
        parse(RunRecord, data, "record.json")


def test_a_suite_with_mistyped_keys_names_the_nearest_ones() -> None:
    suite: dict[str, Any] = {"tasks": ["a"], "models": ["b"], "arm": [{"method": "full"}]}
    assert parse(SuiteSpec, suite, "s.toml").blocks == 3
    for change, path, nearest in (
        ({"block": 2}, "block", "blocks"),
        ({"limits": {"max_example": 2}}, "limits.max_example", "max_examples"),
        ({"arm": [{"method": "full", "setings": {}}]}, "arm.0.setings", "settings"),
    ):
        with pytest.raises(SpecError) as caught:
            parse(SuiteSpec, {**suite, **change}, "s.toml")
        assert str(caught.value) == f"s.toml: unknown key {path!r}. Did you mean {nearest!r}?"


@pytest.mark.parametrize("empty", ["tasks", "models", "arm"])
def test_a_suite_of_nothing_is_refused(empty: str) -> None:
    suite: dict[str, Any] = {"tasks": ["a"], "models": ["b"], "arm": [{"method": "full"}]}
    with pytest.raises(SpecError, match=f"s.toml: {empty}: .*at least 1"):
        parse(SuiteSpec, {**suite, empty: []}, "s.toml")


def test_the_seed_of_a_block_never_changes() -> None:
    weights = "a" * 64
    assert block_seed("movie-snippets", 1, weights, 0) == 636435631
    assert block_seed("movie-snippets", 1, weights, 1) == 736574137
    assert block_seed("movie-snippets", 2, weights, 0) == 510907213


def test_the_seed_of_a_block_differs_by_task_version_weights_and_block() -> None:
    asked = [("a", 1, "w", 0), ("b", 1, "w", 0), ("a", 2, "w", 0), ("a", 1, "v", 0), ("a", 1, "w", 1)]
    seeds = [block_seed(*one) for one in asked]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_seed_of_a_child_stream_never_changes_and_each_stream_has_its_own() -> None:
    pinned = {
        "data order": 703078742,
        "head init": 1062263860,
        "adapter init": 627328310,
        "dropout": 1999336979,
        "random picks": 277369040,
    }
    assert {stream: stream_seed(12345, stream) for stream in pinned} == pinned
    assert stream_seed(12345, "dropout") != stream_seed(12346, "dropout")
    assert stream_seed(1, "x") == int(sha256_of([1, "x"]), 16) % 2**31


def test_higher_is_better_except_for_negative_log_likelihoods() -> None:
    assert better_by("accuracy", 0.75, 0.5) == 0.25
    assert better_by("nll", 0.5, 0.75) == 0.25
    assert better_by("bits_per_byte", 2.5, 8.0) == 5.5
    assert set(LOWER_IS_BETTER) == {"nll", "bits_per_byte", "loss", "perplexity"}
