"""`blueprint create` and `audit`: made twice, warm, with noise, of little data, and what is refused."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.devices import Engine
from cprbench.adapt.gradients import privacy
from cprbench.blueprint.drift import spearman
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import DataError, ModelError, SpecError, TrainingError
from cprbench.surveys.blueprints import Recipe, audit, create
from cprbench.surveys.survey import Survey
from cprbench.tasks import load_task
from tests.surveys.test_blueprints import EXAMPLES, FEW, made, norms_anew


@pytest.fixture
def encoder(minilm2: Path) -> Blueprint:
    """A blueprint of MiniLM's first two layers, their head as drawn."""
    return made(minilm2)


@pytest.fixture
def llama(tiny_llama: Path) -> Blueprint:
    """A blueprint of a causal model."""
    return made(tiny_llama)


# --- making it again, warm, with noise, of little -----------------------------------------------------


@functools.cache
def made_again(folder: Path) -> tuple[Blueprint, list[Mapping[str, Any]]]:
    told: list[Mapping[str, Any]] = []
    return create(str(folder), {"general": "movie-snippets"}, recipe=FEW, observe=told.append), told


def test_making_it_again_gives_the_same_norms_and_ranks(minilm2: Path, encoder: Blueprint) -> None:
    again, told = made_again(minilm2)
    for before, after in zip(encoder.layers, again.layers, strict=True):
        assert (before.parameter_names, before.linears) == (after.parameter_names, after.linears)
        assert after.gradient_norm == pytest.approx(before.gradient_norm, rel=1e-6)
        assert after.example_norm == pytest.approx(before.example_norm, rel=1e-6)
        assert after.alpha == pytest.approx(before.alpha, rel=1e-4)
        assert after.domain_tags == {"general": 1.0}
    assert spearman(*([layer.gradient_norm for layer in b.layers] for b in (encoder, again))) == 1.0
    progress = [(event["phase"], event["done"], event["of"]) for event in told if event["event"] == "progress"]
    assert progress == [("general", 1, 3), ("general", 2, 3), ("general", 3, 3)]


def test_a_new_head_is_warmed(minilm2: Path, encoder: Blueprint) -> None:
    warm = create(str(minilm2), {"general": "movie-snippets"}, recipe=replace(FEW, warmup_steps=3))
    assert warm.measurement is not None and warm.measurement.warmup_steps == 3
    assert "then trained alone" in str(warm.measurement.head)
    changes = [abs(w.gradient_norm / e.gradient_norm - 1) for w, e in zip(warm.layers, encoder.layers, strict=True)]
    assert min(changes) > 1e-3


def test_every_step_of_the_warm_up_is_counted(minilm2: Path) -> None:
    counted = []
    for steps in (0, 2, 4):
        job = {**FEW.__dict__, "warmup_steps": steps, "model": str(minilm2), "data": None, "offline": True}
        survey = Survey(job, SimpleNamespace())  # type: ignore[arg-type]
        survey.engine = Engine.start("fp32", bf16_is_fast=False)
        checkpoint = resolve(str(minilm2), offline=True)
        survey.config = checkpoint.config
        task = load_task("movie-snippets").model_dump(mode="json")
        domain = survey._ready({"tag": "general", "task": task}, checkpoint)
        counted.append(survey.flops)
    config = domain.loaded.model.config
    # A step of the head alone: the forward pass of 16 x 48 tokens at most, 2 FLOPs per weight of a layer and token.
    weights = 2 * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)
    assert counted[0] == 0
    assert 2 * 16 * 8 * 2 * weights < counted[1] < 2 * 16 * 48 * 2 * weights * 1.2
    assert counted[2] == pytest.approx(2 * counted[1], rel=0.4)


def test_noise_leaves_an_epsilon_and_nothing_that_noise_does_not_cover(tiny_llama: Path, llama: Blueprint) -> None:
    pytest.importorskip("dp_accounting")
    noisy = create(
        str(tiny_llama), {"film": "movie-snippets"}, recipe=replace(FEW, noise_multiplier=0.5, clip_norm=0.1)
    )
    other = create(
        str(tiny_llama), {"film": "movie-snippets"}, recipe=replace(FEW, noise_multiplier=0.5, clip_norm=0.1)
    )
    drawn = [(a.gradient_norm, b.gradient_norm) for a, b in zip(noisy.layers, other.layers, strict=True)]
    assert all(a != b or a == 0 for a, b in drawn)  # noise that can be drawn again protects nobody
    private = noisy.privacy
    assert private is not None
    assert (private.noise_multiplier, private.clip_norm, private.delta) == (0.5, 0.1, 1e-5)
    assert private.epsilon == pytest.approx(privacy.epsilon(0.5, 1e-5, 2))
    assert private.accountant and private.aggregates_only
    assert noisy.concentration is not None and noisy.concentration.scalar_mass_curve == []
    assert noisy.concentration.fit is None and noisy.concentration.alpha is None
    for layer, clear in zip(noisy.layers, llama.layers, strict=True):
        norms = layer.domains["film"]
        assert norms.example_norm_ci is None and norms.gradient_norm_ci is not None
        assert (layer.mass_curve, layer.fit, layer.alpha, layer.gamma_fit) == ([], None, None, None)
        assert layer.k_star is None and "noise" in str(layer.k_star_why)
        assert layer.gradient_norm <= 0.1 + 6 * 0.5 * 0.1  # clipped, and what noise adds
        assert layer.gradient_norm != clear.gradient_norm
    assert llama.privacy is not None and llama.privacy.epsilon is None


def test_under_noise_the_head_of_an_encoder_stays_as_drawn(minilm2: Path) -> None:
    pytest.importorskip("dp_accounting")
    recipe = Recipe(batches=2, batch_size=8, warmup_steps=5, precision="fp32", noise_multiplier=1.0)
    noisy = create(str(minilm2), {"general": "movie-snippets"}, recipe=recipe)
    assert noisy.measurement is not None
    assert (noisy.measurement.head, noisy.measurement.warmup_steps) == ("as drawn", 0)


def test_with_fewer_examples_than_asked_the_file_says_how_many_there_were(tiny_llama: Path, tmp_path: Path) -> None:
    found = create(str(tiny_llama), {"tiny": tiny_task(tmp_path, 60)}, recipe=replace(FEW, batches=16))
    assert found.measurement is not None
    assert found.domains[0].batches == found.measurement.batches == found.domains[0].examples // 8
    assert 2 <= found.domains[0].batches < 16
    assert found.domains[0].split == "train"  # its validation split is smaller still
    assert any("batches; medians want 16" in sentence for sentence in found.lacks())


def test_too_few_examples_for_two_batches_are_refused_with_the_cure(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"fewer than two batches of 32\. Lower --batch-size"):
        create(str(tiny_llama), {"tiny": tiny_task(tmp_path, 60)}, recipe=replace(FEW, batch_size=32))


def tiny_task(folder: Path, rows: int) -> str:
    """Return the path of a task of `rows` inline rows, 5/7 of them in the train split."""
    lines = [f'{{ text = "film number {i}", label = "{("bad", "good")[i % 2]}" }}' for i in range(rows)]
    (folder / "tiny.toml").write_text(
        'name = "tiny"\nversion = 1\ndomain = "general"\nlicense = "MIT"\ncitation = "none"\nchance = 0.5\n'
        'primary = "accuracy"\nmetrics = ["accuracy"]\n[[source]]\nkind = "inline"\nrows = [' + ", ".join(lines) + "]\n"
        '[splits]\nby = "hash"\ntest = 0.15\nvalidation = 0.1\n[example]\nkind = "choice"\n'
        'prompt = "{text}\\nSentiment:"\nanswer = "label"\nchoices = ["bad", "good"]\n',
        encoding="utf-8",
    )
    return str(folder / "tiny.toml")


# --- refusals ---------------------------------------------------------------------------------------


def test_data_that_a_later_domain_lacks_is_named_before_the_first_one_is_measured(
    tiny_llama: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.toml"
    text = Path(tiny_task(tmp_path, 20)).read_text(encoding="utf-8")
    source = '[[source]]\nkind = "files"\npath = "none.csv"\nformat = "csv"\nsha256 = "' + "0" * 64 + '"\n'
    absent.write_text(re.sub(r"\[\[source\]\].*?(?=\[splits\])", lambda _: source, text, flags=re.S), encoding="utf-8")
    seen: list[str] = []
    with pytest.raises(DataError, match="none.csv"):
        create(
            str(tiny_llama),
            {"film": "movie-snippets", "absent": str(absent)},
            recipe=FEW,
            observe=lambda event: seen.append(event["event"]),
        )
    assert "progress" not in seen


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"batches": 1}, "batches = 1: at least 2"),
        ({"batch_size": 0}, "batch_size = 0: at least 2"),
        ({"precision": "fp16"}, "precision 'fp16': auto, fp32 or bf16"),
        ({"noise_multiplier": -1.0}, "noise_multiplier = -1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier = nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier = inf"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0"),
        ({"clip_norm": math.nan}, "clip_norm = nan"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"delta": 1.0}, "delta = 1.0"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_recipe_that_cannot_be_is_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        Recipe(**recipe)


@pytest.mark.parametrize("checkpoint", [0.0, -0.5, 1.1, 80.0, math.nan])
def test_a_checkpoint_outside_its_range_is_refused_before_anything_runs(checkpoint: float) -> None:
    with pytest.raises(SpecError, match=r"outside \(0, 1\]"):
        create("minilm", {"general": "movie-snippets"}, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({}, "no domain.*--domain general=movie-snippets"),
        ({"general": "movie-snipets"}, "Did you mean 'movie-snippets'"),
        ({"Bio Medicine": "movie-snippets"}, "domain 'Bio Medicine'"),
        ({"": "movie-snippets"}, "domain ''"),
    ],
)
def test_a_domain_that_cannot_be_is_refused_before_anything_runs(
    domains: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cprbench.surveys.blueprints.run_child", lambda *job, **options: pytest.fail("a child was started")
    )
    with pytest.raises(SpecError, match=message):
        create("minilm", domains)


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="Did you mean 'minilm'"):
        create("minilmx", {"general": "movie-snippets"}, recipe=FEW)


# --- the audit --------------------------------------------------------------------------------------


def test_an_audit_ranks_by_norm_and_by_influence_and_says_what_both_cost(tiny_llama: Path) -> None:
    anew = norms_anew(tiny_llama, "movie-snippets")
    found = audit(str(tiny_llama), "movie-snippets", recipe=FEW)
    for cell, norm in found["gradient_norm"].items():
        assert norm == pytest.approx(median(row[0] for row in anew[cell]), rel=1e-4)
    assert set(found["influence"]) == set(found["sizes"]) == set(anew)
    assert all(value > 0 for value in found["influence"].values())
    assert found["gradient_seconds"] > 0 and found["fisher_seconds"] > 0
    assert (found["examples"], found["task"]) == (EXAMPLES, "movie-snippets")
    assert found["made"]["seconds"] > found["gradient_seconds"] and found["made"]["device_hours"] > 0
