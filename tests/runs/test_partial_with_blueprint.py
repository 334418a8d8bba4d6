"""partial with a published blueprint, through real children: what it bills, what it picks, what the record says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cprbench.blueprint import files, picking, signals
from cprbench.blueprint.budget import Budget, pick_within
from cprbench.blueprint.drift import spearman
from cprbench.blueprint.schema import StepCost
from cprbench.errors import MethodError, SpecError
from cprbench.meters.flops import Pass, Trained, pass_flops
from cprbench.runs import runner
from cprbench.runs.planner import Inspected
from cprbench.runs.runner import Options
from cprbench.runs.store import load_run
from cprbench.spec import RunRecord
from cprbench.surveys.blueprints import Recipe, create
from cprbench.tasks import load_task
from tests.blueprint.example import full_data, save
from tests.conftest import Arm

Partial = Callable[..., RunRecord]


@pytest.fixture(scope="module")
def looked(minilm2: Path, tiny_llama: Path) -> dict[str, Inspected]:
    """What an inspecting child finds out, once: it is the same for every run of this file."""
    task = load_task("movie-snippets")
    return {str(folder): runner.inspect(task, str(folder), Options()) for folder in (minilm2, tiny_llama)}


@pytest.fixture
def quick(looked: dict[str, Inspected], monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every run the child that looks at the same task and model again."""
    monkeypatch.setattr(runner, "inspect", lambda task, model, options: looked[model])


@pytest.fixture
def partial(quick: None, run_arm: Arm, tiny_llama: Path) -> Partial:
    """Run partial on the tiny Llama for real and return its record."""

    def once(model: Path = tiny_llama, method: str = "partial", **settings: Any) -> RunRecord:
        record = run_arm(model, method, settings={"k": 0.3, **settings} if method == "partial" else settings)
        assert record.status == "ok", record.error
        return record

    return once


@pytest.fixture
def local(partial: Partial) -> dict[str, float]:
    """The norms that a run measures by itself."""
    norms: dict[str, float] = partial().notes["gradient_norm"]
    return norms


@pytest.fixture
def write(looked: dict[str, Inspected], tiny_llama: Path, tmp_path: Path) -> Callable[..., str]:
    """Write a blueprint of the tiny Llama, measured as a local run would measure, and return its path."""
    target = looked[str(tiny_llama)].target

    def file(norms: Mapping[str, float], name: str = "made.json", **changes: Any) -> str:
        data = full_data(dict(norms), sizes=dict(target.sizes), weights_sha256=target.weights_sha256, **changes)
        data["measurement"] |= {"batch_size": 16}
        return str(save(tmp_path, {**data, **{key: changes[key] for key in changes if key in data}}, name))

    return file


def reordered(norms: Mapping[str, float], order: str) -> dict[str, float]:
    """Return norms whose ranks are permuted: digit i of `order` is the rank of the value that cell i gets."""
    values = sorted(norms.values())
    ranks = {name: values.index(norm) for name, norm in norms.items()}
    return {name: values[int(order[ranks[name]])] for name in norms}


def flops(record: RunRecord, phase: str) -> float:
    (found,) = [r.value for r in record.readings if (r.phase, r.quantity) == (phase, "flops")] or [0.0]
    return found or 0.0


def nothing_of(folder: Path, record: RunRecord) -> bool:
    return str(folder) not in record.model_dump_json()


# --- what is billed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(minilm2: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A blueprint that `create` made of MiniLM's two layers, with norms taken as the runs of this file take them."""
    recipe = Recipe(batches=2, batch_size=16, warmup_steps=2, precision="fp32")
    path = tmp_path_factory.mktemp("published") / "minilm.json"
    files.write(create(str(minilm2), {"general": "movie-snippets"}, recipe=recipe), path)
    return str(path)


def test_a_published_blueprint_bills_its_local_part_only_and_the_record_tells_the_choice(
    partial: Partial, published: str, minilm2: Path, runs_folder: Path
) -> None:
    alone = partial(minilm2)
    blended = partial(minilm2, blueprint=published)
    assert flops(blended, "select") == flops(alone, "select") > 0
    assert flops(blended, "billed") == flops(blended, "select") + flops(blended, "train") == blended.gamma.flops
    assert blended.blueprint == files.sha256_of_file(published)
    assert alone.blueprint is None
    told, theirs = blended.notes["blueprint"], files.read(published)
    assert theirs.made is not None
    assert told["made"] == json.loads(json.dumps(theirs.made.model_dump()))
    assert told["made"]["flops"] not in (0, blended.gamma.flops)
    assert told["drift"]["verdict"] == "use" and told["drift"]["correlation"] > 0.5
    assert (told["blend_weight"], told["blend_weight_used"], told["not_checked"]) == (0.5, 0.5, [])
    norms = {layer.id: layer.gradient_norm for layer in theirs.layers}
    assert told["gradient_norm"] == norms
    assert blended.notes["gradient_norm"] == alone.notes["gradient_norm"]  # the same batches after the same warm-up
    mixed = signals.blend(norms, alone.notes["gradient_norm"], 0.5)
    assert blended.notes["blended_norm"] == pytest.approx(mixed)
    sizes = {layer.id: layer.parameters or 0 for layer in theirs.layers}
    expected = picking.pick(mixed, sizes, sum(sizes.values()), 0.3)
    assert (blended.trained_submodules, blended.k_reached) == (list(expected.submodules), expected.k_reached)
    assert blended.arm == "partial k=0.3 blueprint=minilm"
    assert blended.spec.method.settings["blueprint"] == "minilm.json"
    assert nothing_of(Path(published).parent, blended)
    stored = runs_folder / blended.run_id
    assert not [f for f in stored.iterdir() if str(Path(published).parent).encode() in f.read_bytes()]


def test_a_blueprint_alone_bills_no_flops_of_choosing_and_warms_no_head(
    partial: Partial, published: str, minilm2: Path, runs_folder: Path
) -> None:
    record = partial(minilm2, blueprint=published, blend_weight=1.0)
    assert flops(record, "select") == 0
    assert record.seconds["select"] is not None and record.seconds["select"] < 0.5
    assert record.notes["warmup_steps_of_head"] == 0
    rows = load_run(runs_folder / record.run_id).lines("history.jsonl")
    assert [row["phase"] for row in rows] == ["train"] * 8
    assert "gradient_norm" not in record.notes and "blended_norm" not in record.notes
    told = record.notes["blueprint"]
    assert told["drift"]["verdict"] == "not checked" and "measures nothing" in told["drift"]["why"]
    norms = told["gradient_norm"]
    sizes = {layer.id: layer.parameters or 0 for layer in files.read(published).layers}
    assert tuple(record.trained_submodules) == picking.pick(norms, sizes, sum(sizes.values()), 0.3).submodules


# --- drift ------------------------------------------------------------------------------------------


def test_drifted_ranks_fall_back_to_whole_layers(
    partial: Partial, local: dict[str, float], write: Any, looked: dict[str, Inspected]
) -> None:
    norms = reordered(local, "230154")
    correlation = spearman(list(norms.values()), [local[name] for name in norms])
    assert correlation is not None and 0.2 < correlation < 0.5
    record = partial(blueprint=write(norms), k=0.4)
    told = record.notes["blueprint"]["drift"]
    assert (told["verdict"], told["correlation"]) == ("layers", pytest.approx(correlation))
    assert "only whole layers" in told["why"]
    inside = {name.partition(".")[2] for name in record.trained_submodules if "." in name}
    for layer in inside:
        assert {f"attn.{layer}", f"ffn.{layer}"} <= set(record.trained_submodules)
    mixed = signals.blend(norms, local, 0.5)
    assert record.notes["blended_norm"] == pytest.approx(mixed)
    dear = {"forward_seconds": 0.1, "backward_seconds_per_layer": 0.0, "seconds_per_parameter": 1e-5}
    dear |= {"batch_size": 16, "tokens": 16}
    within = partial(blueprint=write(norms, step_cost=dear), budget="time=0.4")  # a budget takes whole layers, too
    cells = set(within.trained_submodules)
    assert all({f"attn.{i}", f"ffn.{i}"} & cells in (set(), {f"attn.{i}", f"ffn.{i}"}) for i in "01")
    cost = StepCost.model_validate(dear)
    sizes = dict(looked[within.spec.model.source].sizes)
    single = pick_within(mixed, sizes, Budget.parse("time=0.4"), step_cost=cost)
    assert set(single.submodules) != cells
    trusting = partial(blueprint=write(norms), k=0.4, drift_fallback=0.25)
    assert trusting.notes["blueprint"]["drift"]["verdict"] == "use"
    assert trusting.trained_submodules != record.trained_submodules


def test_ranks_turned_round_fall_back_to_local_norms_alone(
    partial: Partial, local: dict[str, float], write: Any
) -> None:
    file = write(reordered(local, "543210"))
    record, alone = partial(blueprint=file), partial()
    told = record.notes["blueprint"]
    assert (told["drift"]["verdict"], told["drift"]["correlation"]) == ("local", -1.0)
    assert (told["blend_weight"], told["blend_weight_used"]) == (0.5, 0.0)
    assert "stale" in told["drift"]["why"] and "blended_norm" not in record.notes
    assert record.trained_submodules == alone.trained_submodules
    assert record.psi == alone.psi
    assert record.run_id != alone.run_id and record.blueprint


def test_the_threshold_of_local_norms_alone_can_be_set(partial: Partial, local: dict[str, float], write: Any) -> None:
    file = write(reordered(local, "230154"))
    record = partial(blueprint=file, drift_local_only=0.49)
    assert record.notes["blueprint"]["drift"]["verdict"] == "local"
    assert "below 0.49" in record.notes["blueprint"]["drift"]["why"]


# --- what is picked ---------------------------------------------------------------------------------


def picked(record: RunRecord, norms: Mapping[str, float], looked: Mapping[str, Inspected], **asked: Any) -> bool:
    target = looked[record.spec.model.source].target
    k = asked.pop("k", 0.3)
    return tuple(record.trained_submodules) == picking.pick(norms, target.sizes, target.total, k, **asked).submodules


def test_k_can_be_the_files_own(
    partial: Partial, local: dict[str, float], write: Any, looked: dict[str, Inspected]
) -> None:
    record = partial(k="blueprint", blueprint=write(local), blend_weight=1.0)
    assert (record.k_asked, record.arm) == (0.375, "partial k=blueprint blueprint=made blend_weight=1")
    assert picked(record, local, looked, k=0.375)
    silent = write(local, k_star=None, k_star_why="the curve is no power of the share")
    with pytest.raises(MethodError, match=r"recommends no k \(the curve is no power of the share\). Set partial.k"):
        partial(k="blueprint", blueprint=silent)


def test_a_domain_has_norms_of_its_own(
    partial: Partial, local: dict[str, float], write: Any, looked: dict[str, Inspected]
) -> None:
    file = write(local)  # "bio" has them turned round
    bio = {layer.id: layer.domains["bio"].gradient_norm for layer in files.read(file).layers}
    record = partial(blueprint=file, domain="bio", blend_weight=1.0)
    assert record.notes["blueprint"]["gradient_norm"] == bio
    assert picked(record, bio, looked) and not picked(record, local, looked)
    with pytest.raises(MethodError, match="no domain 'boi'. Did you mean 'bio'"):
        partial(blueprint=file, domain="boi")


def test_shrinking_pulls_uncertain_norms_towards_their_mean(
    partial: Partial, local: dict[str, float], write: Any
) -> None:
    data = json.loads(Path(write(local)).read_text())
    widest = max(local, key=lambda name: local[name])
    for layer in data["layers"]:
        norm = layer["gradient_norm"]
        wide = 0.9 if layer["id"] == widest else 0.01
        layer["domains"]["general"]["gradient_norm_ci"] = {"low": norm * (1 - wide), "high": norm * (1 + wide)}
    file = save(Path(write(local)).parent, data, "shrunk.json")
    record = partial(blueprint=str(file), uncertainty="shrink", blend_weight=1.0)
    told = record.notes["blueprint"]["gradient_norm"]
    assert told == signals.norms_of(files.read(file), uncertainty="shrink")
    assert told[widest] < local[widest] * 0.9


def test_whole_layers_can_be_asked_for(
    partial: Partial, local: dict[str, float], write: Any, looked: dict[str, Inspected]
) -> None:
    record = partial(blueprint=write(local), granularity="layer", k=0.4, blend_weight=1.0)
    assert picked(record, local, looked, k=0.4, granularity="layer")
    assert {"attn.0", "ffn.0"} <= set(record.trained_submodules)


# --- what a step costs ------------------------------------------------------------------------------


def test_the_cost_of_a_step_is_the_files_where_it_has_one(
    partial: Partial, local: dict[str, float], write: Any, looked: dict[str, Inspected]
) -> None:
    file = write(local)
    record = partial(blueprint=file, pick="per-cost", blend_weight=1.0)
    theirs = files.read(file).step_cost
    assert theirs is not None and record.notes["step_cost"] == theirs.model_dump()
    assert flops(record, "select") == 0
    assert picked(record, local, looked, by="per-cost", cost=theirs)


def test_the_cost_of_a_step_is_measured_here_where_the_file_has_none_and_billed(
    partial: Partial, local: dict[str, float], write: Any, runs_folder: Path
) -> None:
    record = partial(blueprint=write(local, step_cost=None), pick="per-cost", blend_weight=1.0)
    measured = record.notes["step_cost"]
    assert measured["forward_seconds"] > 0 and (measured["batch_size"], measured["tokens"] % 8) == (8, 0)
    passes = [Pass.parse(row) for row in load_run(runs_folder / record.run_id).lines("work.jsonl")]
    steps = [p for p in passes if p.phase == "select"]
    model = record.spec.model
    # Every third layer is the last one of two; head, last and first layer: three sets, in a warming and three rounds.
    sets = [("head",), ("attn.1", "ffn.1"), ("attn.0", "ffn.0")] * 4
    assert len(steps) == len(sets)
    expected = 0
    for one, cells in zip(steps, sets, strict=True):
        whole = replace(one, backward=True, trains="method", extra_flops=0)
        expected += pass_flops(model.config, "causal", None, Trained(frozenset(cells), False), whole).total
    assert flops(record, "select") == expected > 0
    assert record.seconds["select"] and record.seconds["select"] > 3 * measured["forward_seconds"]


def test_a_budget_of_time_and_memory_takes_the_place_of_k(
    partial: Partial, local: dict[str, float], write: Any, looked: dict[str, Inspected]
) -> None:
    file = write(local)
    record = partial(blueprint=file, budget="memory=64GiB,time=0.9", blend_weight=1.0)
    assert record.k_asked is None and record.k_reached
    sizes = looked[record.spec.model.source].sizes
    expected = pick_within(
        local,
        sizes,
        Budget.parse("memory=64GiB,time=0.9"),
        step_cost=files.read(file).step_cost,
        fixed_memory_bytes=0,
        bytes_per_parameter=12,
    )
    assert tuple(record.trained_submodules) == expected.submodules
    assert "budget=memory=64GiB,time=0.9" in record.arm
    with pytest.raises(SpecError, match="memory=8 has no size and unit"):
        partial(blueprint=file, budget="memory=8")


def test_memory_of_a_budget_is_the_childs_own_and_not_that_of_who_started_it() -> None:
    held = bytearray(2**30)  # a notebook, say: a child inherits this size in its ru_maxrss
    held[::4096] = b"x" * len(held[::4096])
    code = "from cprbench.sessions.measuring import peak_memory_bytes as p; print(p())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10**8 < int(done.stdout) < 10**9
    assert len(held) == 2**30


# --- refusals ---------------------------------------------------------------------------------------


def test_a_foreign_revision_is_refused_unless_it_is_asked_for_and_then_noted(
    partial: Partial, local: dict[str, float], write: Any
) -> None:
    data = json.loads(Path(write(local)).read_text())
    data["model"]["weights_sha256"] = "0" * 64
    file = str(save(Path(write(local)).parent, data, "foreign.json"))
    with pytest.raises(SpecError, match="foreign revision: it was measured on weights 000000000000"):
        partial(blueprint=file)
    record = partial(blueprint=file, foreign=True)
    (note,) = record.notes["blueprint"]["not_checked"]
    assert note.startswith("Accepted as foreign: ") and "foreign revision" in note


def test_a_file_with_the_papers_fields_only_works_and_says_what_could_not_be_checked(
    partial: Partial, local: dict[str, float], tmp_path: Path, looked: dict[str, Inspected]
) -> None:
    paper = {
        "model_id": "foundation-7b",
        "training_checkpoint": 0.8,
        "layers": [
            {"id": name, "gradient_norm": norm, "alpha": 1.5, "gamma": 0.6, "k_star": 0.1, "domain_tags": {"bio": 0.7}}
            for name, norm in local.items()
        ],
    }
    record = partial(blueprint=str(save(tmp_path, paper, "paper.json")))
    told = record.notes["blueprint"]
    assert told["made"] is None and told["training_checkpoint"] == 0.8
    said = " ".join(told["not_checked"])
    assert len(told["not_checked"]) == 3
    assert "parameters of every submodule" in said and "which weights" in said and "how its norms were measured" in said
    assert picked(record, local, looked)


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"batch_size": 32}, "--set select.batch_size=32 --set select.warmup_steps=0"),
        ({"warmup_steps": 50}, "--set select.batch_size=16 --set select.warmup_steps=50"),
        ({"norm": "mean norm of single examples"}, "partial.blend_weight=1"),
    ],
)
def test_norms_that_were_not_taken_alike_are_not_blended(
    change: dict[str, Any], cure: str, quick: None, local: dict[str, float], write: Any, run_arm: Arm, tiny_llama: Path
) -> None:
    data = json.loads(Path(write(local)).read_text())
    data["measurement"] |= change
    file = str(save(Path(write(local)).parent, data, "unlike.json"))
    with pytest.raises(MethodError, match="do not blend") as refused:  # before anything runs
        run_arm(tiny_llama, "partial", settings={"k": 0.3, "blueprint": file})
    assert cure in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "bio"}, "ask a file: set partial.blueprint"),
        ({"uncertainty": "shrink"}, "ask a file"),
        ({"k": "blueprint"}, "ask a file"),
        ({"drift_fallback": 0.1}, "0 <= local_only <= fallback <= 1"),
        ({"drift_local_only": -0.1}, "0 <= local_only"),
        ({"budget": "time=0.5", "pick": "density"}, "leave out partial.pick and granularity"),
        ({"budget": "time=0.5", "granularity": "layer"}, "leave out partial.pick and granularity"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_before_anything_runs(
    settings: dict[str, Any], message: str, partial: Partial
) -> None:
    with pytest.raises(MethodError, match=re.escape(message)):
        partial(**settings)
