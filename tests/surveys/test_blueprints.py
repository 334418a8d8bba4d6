"""`blueprint create` on real models and real data: what the file says against what can be computed anew."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cprbench.adapt import data, models, objectives
from cprbench.adapt.checkpoints import resolve
from cprbench.blueprint import files
from cprbench.blueprint.concentration import POOR_FIT
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import SpecError
from cprbench.spec import block_seed, stream_seed
from cprbench.surveys.blueprints import Recipe, create
from cprbench.tasks import load_task
from tests.conftest import ROOT

#: Few and small; 3 batches have a middle one.
FEW = Recipe(batches=3, batch_size=8, warmup_steps=0, precision="fp32")
EXAMPLES = 24
Norms = dict[str, list[list[float]]]  # submodule -> per batch: the batch-mean gradient's norm, then every example's


def shouting(folder: Path) -> str:
    """Write a second domain, the same snippets under other words, beside a model; return its path."""
    text = (ROOT / "tasks" / "movie-snippets.toml").read_text(encoding="utf-8")
    path = folder.parent / "shouting.toml"
    text = text.replace('name = "movie-snippets"', 'name = "shouting"').replace("{text}", "WELL! {text}!!!")
    path.write_text(re.sub(r"(?m)^(data_sha256|counts).*$", "", text), encoding="utf-8")
    return str(path)


@functools.cache  # once for all tests of a session
def made(folder: Path) -> Blueprint:
    """Make a blueprint: of an encoder in two domains, the reference not first; of a causal model in one of its own."""
    if "minilm" not in folder.name:
        return create(str(folder), {"film": "movie-snippets"}, recipe=FEW)
    return create(str(folder), {"loud": shouting(folder), "general": "movie-snippets"}, checkpoint=0.8, recipe=FEW)


@pytest.fixture
def encoder(minilm2: Path) -> Blueprint:
    """A blueprint of MiniLM's first two layers."""
    return made(minilm2)


@pytest.fixture
def llama(tiny_llama: Path) -> Blueprint:
    """A blueprint of a causal model."""
    return made(tiny_llama)


@pytest.fixture(scope="module")
def anew(minilm2: Path, tiny_llama: Path) -> dict[str, Norms]:
    """The norms by autograd on single examples, without this project's gradient code."""
    return {
        "general": norms_anew(minilm2, "movie-snippets"),
        "loud": norms_anew(minilm2, shouting(minilm2)),
        "film": norms_anew(tiny_llama, "movie-snippets"),
    }


@functools.cache
def norms_anew(folder: Path, name: str) -> Norms:
    task, checkpoint = load_task(name), resolve(str(folder), offline=True)
    seed = block_seed(task.name, task.version, checkpoint.weights_sha256, 0)
    loaded = models.load(checkpoint, 2 if checkpoint.kind == "encoder" else None, seed, "sdpa")
    model = loaded.model.eval()
    size = FEW.batches * FEW.batch_size
    chosen = data.sample_by_label(data.load_dataset(task).validation, size, f"{task.name}/blueprint")
    items = objectives.tokenize(loaded, chosen, 48)
    random.Random(stream_seed(seed, "probe")).shuffle(items)
    found: Norms = {}
    for start in range(0, size, FEW.batch_size):
        total: dict[str, torch.Tensor] = {}
        rows: dict[str, list[float]] = {}
        for item in items[start : start + FEW.batch_size]:
            model.zero_grad()
            loss_of(model, item).backward()
            squares: dict[str, float] = {}
            for path, parameter in model.named_parameters():
                cell = cell_of(path)
                squares[cell] = squares.get(cell, 0.0) + norm(parameter.grad) ** 2
                total.setdefault(path, torch.zeros_like(parameter.grad)).add_(parameter.grad)
            for cell, square in squares.items():
                rows.setdefault(cell, []).append(math.sqrt(square))
        for cell, single in rows.items():
            whole = math.hypot(*(norm(g) for path, g in total.items() if cell_of(path) == cell))
            found.setdefault(cell, []).append([whole / FEW.batch_size, *single])
    return found


def norm(gradient: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def loss_of(model: Any, item: objectives.Item) -> torch.Tensor:
    if not item.choices:
        return model(input_ids=torch.tensor([item.ids]), labels=torch.tensor([item.answer])).loss
    answer = item.choices[item.answer]
    labels = torch.tensor([[-100] * len(item.ids) + list(answer)])
    return model(input_ids=torch.tensor([[*item.ids, *answer]]), labels=labels).loss


def cell_of(path: str) -> str:
    if path.startswith("classifier"):
        return "new head"
    if not (found := re.search(r"layers?\.(\d+)\.(\w+)", path)):
        return "embed" if "embed" in path else "head"
    return f"{'attn' if found[2] in ('attention', 'self_attn', 'input_layernorm') else 'ffn'}.{found[1]}"


def numbers(part: Any) -> Iterator[float]:
    match part:
        case bool():
            return
        case int() | float():
            yield float(part)
        case dict() | list():
            for inner in part.values() if isinstance(part, dict) else part:
                yield from numbers(inner)


def without_curves(part: Any) -> Any:
    """Return a part of a file without its curves, whose shares are no norms."""
    if isinstance(part, dict):
        return {key: without_curves(inner) for key, inner in part.items() if not key.endswith("curve")}
    return [without_curves(inner) for inner in part] if isinstance(part, list) else part


def texts(part: Any) -> Iterator[str]:
    match part:
        case str():
            yield part
        case dict() | list():
            for inner in [*part, *part.values()] if isinstance(part, dict) else part:
                yield from texts(inner)


# --- what is in the file ----------------------------------------------------------------------------


def test_a_written_file_reads_back_the_same_and_lacks_only_what_was_not_measured(
    encoder: Blueprint, llama: Blueprint, tmp_path: Path
) -> None:
    for blueprint in (encoder, llama):
        files.write(blueprint, tmp_path / "made.json")
        assert files.read(tmp_path / "made.json") == blueprint
        expected = r"revision|batches; medians want 16|energy_kwh|co2_kg"
        assert all(re.search(expected, sentence) for sentence in blueprint.lacks()), blueprint.lacks()
        assert str(ROOT) not in (text := (tmp_path / "made.json").read_text()) and "/tmp" not in text
    assert (encoder.training_checkpoint, llama.training_checkpoint) == (0.8, 1.0)


def test_the_file_names_the_model_its_weights_and_its_tokenizer_by_hash(
    encoder: Blueprint, llama: Blueprint, minilm2: Path, tiny_llama: Path
) -> None:
    for blueprint, folder, kind in ((encoder, minilm2, "encoder"), (llama, tiny_llama, "causal")):
        model = blueprint.model
        assert model is not None
        assert (model.source, model.kind, blueprint.model_id) == (folder.name, kind, folder.name)
        assert model.weights_sha256 == resolve(str(folder), offline=True).weights_sha256
        with safe_open(folder / "model.safetensors", framework="pt") as stored:
            held = sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
        assert model.parameters == held == sum(layer.parameters or 0 for layer in blueprint.layers)
    assert encoder.model and llama.model and encoder.model.tokenizer_sha256 != llama.model.tokenizer_sha256
    assert encoder.measurement is not None and llama.measurement is not None
    assert (encoder.measurement.head, llama.measurement.head) == ("as drawn", None)
    assert (encoder.measurement.batches, encoder.measurement.batch_size) == (3, 8)
    info = {domain.tag: domain for domain in encoder.domains}
    assert list(info) == ["loud", "general"]
    assert info["loud"].task == "shouting"
    task = load_task("movie-snippets")
    assert (info["general"].data_sha256, info["general"].version) == (task.data_sha256, 1)
    assert (info["general"].split, info["general"].examples, info["general"].batches) == ("validation", EXAMPLES, 3)


def test_the_tokenizers_hash_follows_its_files(llama: Blueprint, tiny_llama: Path) -> None:
    from cprbench.adapt.random_models import tokenizer_sha256

    assert llama.model is not None
    assert llama.model.tokenizer_sha256 == tokenizer_sha256(tiny_llama)
    text = (tiny_llama / "tokenizer.json").read_text()
    try:
        (tiny_llama / "tokenizer.json").write_text(text + " ")
        assert llama.model.tokenizer_sha256 != tokenizer_sha256(tiny_llama)
    finally:
        (tiny_llama / "tokenizer.json").write_text(text)


def test_every_parameter_of_the_live_model_is_in_one_submodule_and_no_task_head_is(
    encoder: Blueprint, llama: Blueprint, minilm2: Path, tiny_llama: Path
) -> None:
    for blueprint, folder, labels in ((encoder, minilm2, 2), (llama, tiny_llama, None)):
        live = models.load(resolve(str(folder), offline=True), labels, 0, "sdpa").model
        for layer in blueprint.layers:
            own = [name for name, _ in live.named_parameters() if cell_of(name) == layer.id]
            assert sorted(layer.parameter_names) == sorted(own)
            assert layer.parameters == sum(live.get_parameter(name).numel() for name in own)
            for path in layer.linears:
                assert isinstance(live.get_submodule(path), torch.nn.Linear)
    assert {layer.id: len(layer.linears) for layer in llama.layers if layer.id.startswith("attn")} == {
        "attn.0": 4,
        "attn.1": 4,
    }


def test_norms_equal_those_of_plain_autograd_on_single_examples(
    encoder: Blueprint, llama: Blueprint, anew: dict[str, Norms]
) -> None:
    for blueprint in (encoder, llama):
        for layer in blueprint.layers:
            for tag, norms in layer.domains.items():
                rows = anew[tag][layer.id]
                assert norms.gradient_norm == pytest.approx(median(row[0] for row in rows), rel=1e-4)
                assert norms.example_norm == pytest.approx(mean(x for row in rows for x in row[1:]), rel=1e-4)
            reference = layer.domains[blueprint.reference or ""]
            assert (layer.gradient_norm, layer.example_norm) == (reference.gradient_norm, reference.example_norm)


def test_intervals_hold_their_middle_and_lie_within_what_batches_showed(
    encoder: Blueprint, llama: Blueprint, anew: dict[str, Norms]
) -> None:
    for layer in (*encoder.layers, *llama.layers):
        for tag, norms in layer.domains.items():
            batch, single = norms.gradient_norm_ci, norms.example_norm_ci
            assert batch is not None and single is not None
            assert batch.low <= norms.gradient_norm <= batch.high
            assert single.low <= (norms.example_norm or 0) <= single.high
            if layer in encoder.layers or tag == "film":
                seen = [row[0] for row in anew[tag][layer.id]]
                assert min(seen) * (1 - 1e-4) <= batch.low < batch.high <= max(seen) * (1 + 1e-4)


def test_domain_tags_are_ratios_of_shares_of_squared_norm(encoder: Blueprint, llama: Blueprint) -> None:
    def share(tag: str, name: str) -> float:
        squares = {layer.id: layer.domains[tag].gradient_norm ** 2 for layer in encoder.layers}
        return squares[name] / sum(squares.values())

    for layer in encoder.layers:
        assert set(layer.domain_tags) == set(layer.domains) == {"general", "loud"}
        assert layer.domain_tags["general"] == 1.0
        assert layer.domain_tags["loud"] == pytest.approx(share("loud", layer.id) / share("general", layer.id))
    assert any(abs(layer.domain_tags["loud"] - 1) > 1e-3 for layer in encoder.layers)
    assert encoder.reference == "general"
    assert llama.reference == "film"  # without a general domain the first one is what all others are relative to
    assert all(layer.domain_tags == {"film": 1.0} for layer in llama.layers)


def test_gamma_is_the_text_formula_of_alpha(encoder: Blueprint, llama: Blueprint) -> None:
    for blueprint in (encoder, llama):
        for noun in (*blueprint.layers, blueprint.concentration):
            assert noun is not None and noun.alpha is not None and noun.fit is not None
            assert noun.gamma == pytest.approx(1 - noun.alpha / (1 + noun.alpha))
            assert noun.alpha == pytest.approx(1 / ((noun.fit.density_exponent or 0) - 1))


def test_k_star_follows_from_the_files_own_numbers_or_says_why_not(encoder: Blueprint, llama: Blueprint) -> None:
    seen = set()
    for blueprint in (encoder, llama):
        whole = blueprint.concentration
        assert whole is not None
        costs = {cost.resource: cost for cost in blueprint.cost}
        ordered = [costs[name] for name in ("flops", "seconds")]
        chosen = next((cost for cost in ordered if (cost.r_squared or 0) >= POOR_FIT), ordered[0])
        assert blueprint.k_star == chosen.k_star
        assert blueprint.k_star_why == (chosen.why or f"eq. 15 for {chosen.resource}")
        claims = [(cost, cost.k_star, cost.why, whole) for cost in blueprint.cost]
        claims += [(chosen, layer.k_star, layer.k_star_why, layer) for layer in blueprint.layers]  # type: ignore[misc]
        for cost, k_star, why, curve in claims:
            gamma, fixed, slope = curve.gamma_fit, cost.fixed_cost, cost.cost_per_parameter
            assert (k_star is None) == (why is not None)
            if (curve.gamma_fit_r_squared or 0) < POOR_FIT:
                seen.add("poor")
                assert k_star is None and "R^2" in str(why)
            elif (cost.r_squared or 0) < POOR_FIT:
                seen.add("crooked")
                assert k_star is None and "no line in k" in str(why)
            elif gamma is not None and gamma < slope / (fixed + slope):  # eq. 16
                seen.add("holds")
                assert k_star == pytest.approx(gamma * fixed / (slope * (1 - gamma)))  # eq. 15
            else:
                seen.add("fails")
                assert k_star is None and "k = 1 is best" in str(why)
    assert "poor" in seen and len(seen) > 1


def test_curves_rise_from_nothing_to_everything(encoder: Blueprint, llama: Blueprint) -> None:
    for blueprint in (encoder, llama):
        whole = blueprint.concentration
        assert whole is not None
        assert len(whole.pick_curve) == 1 + len(blueprint.layers)
        for curve in (whole.pick_curve, whole.scalar_mass_curve, *(layer.mass_curve for layer in blueprint.layers)):
            assert (curve[0], curve[-1]) == ((0, 0), (1, pytest.approx(1)))
            assert curve == sorted(curve) and all(a[1] <= b[1] for a, b in itertools.pairwise(curve))
        norms = {layer.id: layer.gradient_norm**2 for layer in blueprint.layers}
        sizes = {layer.id: layer.parameters or 0 for layer in blueprint.layers}
        densest = max(norms, key=lambda name: norms[name] / sizes[name])
        first = (sizes[densest] / sum(sizes.values()), norms[densest] / sum(norms.values()))
        assert whole.pick_curve[1] == (pytest.approx(first[0]), pytest.approx(first[1]))


def test_costs_rise_with_the_share_and_lie_near_their_line(encoder: Blueprint, llama: Blueprint) -> None:
    for blueprint in (encoder, llama):
        assert {(cost.resource, cost.source) for cost in blueprint.cost} == {
            ("seconds", "sampled"),
            ("memory_bytes", "modelled"),
            ("flops", "counted"),
        }
        assert blueprint.model is not None
        for cost in blueprint.cost:
            shares, found = zip(*cost.points, strict=True)
            assert len(shares) >= 3 and shares[-1] == 1.0
            assert all(a < b for a, b in itertools.pairwise(shares))
            assert 0 < found[0] < found[-1] == pytest.approx(max(found), rel=0.3)
            line = (cost.fixed_cost + cost.cost_per_parameter) * blueprint.model.parameters
            assert line == pytest.approx(found[-1], rel=0.5)
            if cost.resource == "memory_bytes":
                assert list(found) == sorted(found) and 12 <= cost.cost_per_parameter < 100  # and activations
        step = blueprint.step_cost
        assert step is not None and step.forward_seconds > 0 and step.batch_size == EXAMPLES // 2
        assert step.tokens % step.batch_size == 0 and step.tokens <= 48 * step.batch_size


def test_making_is_metered_and_what_could_not_be_metered_says_why(encoder: Blueprint, llama: Blueprint) -> None:
    for blueprint in (encoder, llama):
        made = blueprint.made
        assert made is not None and made.tool.startswith("cprbench ")
        assert (
            made.flops and made.flops > 0 and made.seconds and made.device_hours == pytest.approx(made.seconds / 3600)
        )
        assert made.memory_gb_hours and made.core_hours and made.hardware_class
        assert set(made.packages) == {"torch", "transformers"}
        for name in ("energy_kwh", "co2_kg"):
            assert getattr(made, name) is not None or made.why_missing[name], name
    full = {cost.resource: cost.points[-1][1] for cost in encoder.cost}
    # Two domains of 3 batches, and steps of every set in four rounds: at least the probes themselves were counted.
    assert encoder.made and encoder.made.flops and encoder.made.flops > 4 * full["flops"]


# --- aggregates only --------------------------------------------------------------------------------


def test_nothing_of_a_single_example_is_in_the_file(
    encoder: Blueprint, llama: Blueprint, anew: dict[str, Norms], tmp_path: Path
) -> None:
    single = {x for norms in anew.values() for rows in norms.values() for row in rows for x in row[1:]}
    snippets = data.load_dataset(load_task("movie-snippets")).validation
    for blueprint in (encoder, llama):
        files.write(blueprint, tmp_path / "made.json")
        written = json.loads((tmp_path / "made.json").read_text())
        stack = [written]
        while stack:
            part = stack.pop()
            inside = list(part.values()) if isinstance(part, dict) else list(part)
            assert len(inside) != EXAMPLES or not list(numbers(inside))
            stack += [inner for inner in inside if isinstance(inner, (dict, list))]
        told = numbers(without_curves(written))
        close = [x for x in told for y in single if math.isclose(x, y, rel_tol=1e-6)]
        assert len(close) <= 1, close  # among a hundred thousand pairs one may be near by chance
        said = set(texts(written))
        assert not said & {example.id for example in snippets}
        whole = "\n".join(said)
        assert not [example.id for example in snippets if example.head in whole]


@pytest.mark.parametrize("place", ["top", "layer", "domain of a layer", "data", "privacy"])
def test_a_field_per_example_cannot_be_written(place: str, llama: Blueprint, tmp_path: Path) -> None:
    written: dict[str, Any] = llama.model_dump(mode="json", by_alias=True)
    target = {
        "top": written,
        "layer": written["layers"][0],
        "domain of a layer": written["layers"][0]["domains"]["film"],
        "data": written["domains"][0],
        "privacy": written["privacy"],
    }[place]
    target["example_norms"] = [0.5] * EXAMPLES
    (tmp_path / "leaking.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(SpecError, match="unknown key .*example_norms"):
        files.read(tmp_path / "leaking.json")
    written.pop("example_norms", None)
    with pytest.raises(SpecError, match="aggregates_only"):
        written["privacy"] = {"aggregates_only": False}
        (tmp_path / "leaking.json").write_text(json.dumps(written), encoding="utf-8")
        files.read(tmp_path / "leaking.json")
