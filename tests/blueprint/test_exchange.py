"""Blueprints in other tools' words: accepted by the real peft, harmless in pages and spreadsheets."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cprbench.blueprint.exchange import (
    Unfrozen,
    from_spectrum,
    linears_of,
    model_card,
    names,
    parameters_of,
    scores_from_spectrum,
    to_axolotl,
    to_csv,
    to_peft,
    to_rank_pattern,
    to_spectrum_json,
)
from cprbench.blueprint.picking import Picked
from cprbench.blueprint.schema import Blueprint
from cprbench.errors import MethodError, SpecError

Mapping = dict[str, list[str]]
PARAMETERS = {
    "embed": ["model.embed_tokens.weight"],
    "attn.1": ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias"],
    "ffn.1": ["model.layers.1.mlp.down_proj.weight"],
    "ffn.10": ["model.layers.10.mlp.down_proj.weight", "model.layers.10.mlp.up_proj.weight"],
}


def make(kind: str) -> Any:
    import transformers

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    if kind == "encoder":
        config = transformers.BertConfig(**sizes, num_hidden_layers=12)
        return transformers.AutoModelForSequenceClassification.from_config(config)
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=12, num_key_value_heads=2)
    return transformers.AutoModelForCausalLM.from_config(config)


@cache
def mappings(kind: str) -> tuple[Mapping, Mapping]:
    """Return submodule -> parameter names and -> linear modules of a random tiny model."""
    from torch import nn

    from cprbench.adapt.models import partition

    model = make(kind)
    parameters = {cell: list(inside) for cell, inside in partition(model).parameters.items()}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return parameters, {
        cell: [name.removesuffix(".weight") for name in inside if name in linear] for cell, inside in parameters.items()
    }


def adapted(kind: str, config: dict[str, Any], folder: Path) -> dict[str, tuple[int, float]]:
    """Return module -> (rank, scaling) of what peft adapts when it reads `config` as adapter_config.json."""
    import peft

    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = peft.get_peft_model(make(kind), peft.PeftConfig.from_pretrained(str(folder)))
    modules = model.base_model.model.named_modules()
    return {name: (m.r["default"], m.scaling["default"]) for name, m in modules if hasattr(m, "lora_A")}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", ["encoder", "causal"])
@pytest.mark.parametrize(
    "picked", [["attn.1"], ["ffn.0", "attn.11"], [f"{p}.{i}" for p in ("ffn", "attn") for i in (1, 7)]]
)
def test_peft_adapts_the_linears_of_the_pick_and_no_other(kind: str, picked: list[str], tmp_path: Path) -> None:
    linears = mappings(kind)[1]
    found = adapted(kind, to_peft(picked, linears, r=3, alpha=6, kind=kind), tmp_path)
    assert sorted(found) == sorted(path for cell in picked for path in linears[cell])
    assert set(found.values()) == {(3, 2.0)}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_peft_gives_each_submodule_its_rank_at_one_scaling(kind: str, tmp_path: Path) -> None:
    linears = mappings(kind)[1]
    picked, norms = ["attn.1", "attn.11", "ffn.0"], {"attn.1": 1.0, "attn.11": 6.0, "ffn.0": 3.0, "ffn.3": 99.0}
    config = {**to_peft(picked, linears), **to_rank_pattern(norms, picked, linears, 4)}
    found = adapted(kind, config, tmp_path)
    ranks = {cell: {found[path] for path in linears[cell]} for cell in picked}
    assert ranks == {"attn.1": {(2, 2.0)}, "attn.11": {(6, 2.0)}, "ffn.0": {(4, 2.0)}}
    assert len(found) == sum(len(linears[cell]) for cell in picked)


def test_a_module_whose_path_ends_like_a_picked_one_is_not_adapted() -> None:
    pattern = to_peft(["ffn.1"], {"ffn.1": ["layer.1.dense"]})["target_modules"]
    assert re.fullmatch(pattern, "layer.1.dense")
    assert not re.fullmatch(pattern, "decoder.layer.1.dense")
    assert not re.fullmatch(pattern, "layer_1.dense")


def test_a_pick_without_linears_cannot_be_adapted() -> None:
    assert "embed" not in str(to_peft(["embed", "ffn.1"], {"embed": [], "ffn.1": ["a.b"]}))
    with pytest.raises(MethodError, match="embed holds no linear module"):
        to_peft(["embed"], {"embed": []})
    with pytest.raises(MethodError, match="not said which linear modules 'ffn.2'"):
        to_peft(["ffn.2"], {"embed": []})
    with pytest.raises(MethodError, match="below 1"):
        to_peft(["ffn.1"], {"ffn.1": ["a.b"]}, r=0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(1, 64))
def test_larger_norms_get_no_smaller_ranks_and_the_mean_is_kept(values: list[float], mean: int) -> None:
    norms = {f"ffn.{i}": value for i, value in enumerate(values)}
    linears = {name: [f"{name}.up", f"{name}.down"] for name in norms}
    pattern = to_rank_pattern(norms, list(norms), linears, mean)["rank_pattern"]
    ranks = {name: pattern[f"^{re.escape(linears[name][0])}"] for name in norms}
    assert sum(ranks.values()) == mean * len(norms)
    assert min(ranks.values()) >= 1
    ordered = sorted(norms, key=lambda name: norms[name])
    for low, high in itertools.pairwise(ordered):
        assert ranks[low] <= ranks[high] or norms[low] == norms[high]
    assert all(pattern[f"^{re.escape(linears[n][1])}"] == ranks[n] for n in norms)


def test_a_rank_pattern_needs_a_rank_and_norms() -> None:
    with pytest.raises(MethodError, match="at least 1"):
        to_rank_pattern({"ffn.1": 1}, ["ffn.1"], {"ffn.1": ["a"]}, 0)
    with pytest.raises(MethodError, match="no norm of 'ffn.1'"):
        to_rank_pattern({}, ["ffn.1"], {"ffn.1": ["a"]}, 4)


def axolotl_trains(patterns: list[str], name: str) -> bool:
    """Return what axolotl's utils/freeze.py decides: dots are escaped there, then the pattern is matched."""
    return any(re.compile(pattern.replace(".", "\\.")).match(name) for pattern in patterns)


def test_axolotl_trains_the_named_parameters_and_no_other() -> None:
    every = [name for inside in PARAMETERS.values() for name in inside]
    text = to_axolotl(PARAMETERS["attn.1"])
    patterns = yaml.safe_load(text)["unfrozen_parameters"]
    assert [name for name in every if axolotl_trains(patterns, name)] == PARAMETERS["attn.1"]
    assert text.startswith("unfrozen_parameters:\n- ^model.layers.1.self_attn.q_proj.weight$\n")
    for odd in ("a.b\n- .*", "a b", "a.*", "", "a: b"):
        with pytest.raises(MethodError, match="no parameter name"):
            to_axolotl([odd])


def test_what_is_written_for_axolotl_reads_back() -> None:
    found = from_spectrum(to_axolotl(PARAMETERS["ffn.10"]), PARAMETERS)
    assert found == Unfrozen(tuple(PARAMETERS["ffn.10"]), ("ffn.10",), (), ())


#: The shape of a file as Spectrum writes it (its README): anchored tables first, then bare module names.
SPECTRUM = """unfrozen_parameters:
- ^lm_head.weight$
- ^model.embed_tokens.weight$
# mlp.down_proj layers
- model.layers.1.mlp.down_proj
- model.layers.10.mlp.down_proj
"""


def test_a_spectrum_file_names_modules_of_a_model() -> None:
    found = from_spectrum(SPECTRUM, PARAMETERS)
    assert found.parameters == (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.10.mlp.down_proj.weight",
    )
    assert found.submodules == ("embed", "ffn.1")
    assert found.partly == ("ffn.10",)
    assert found.unmatched == ("^lm_head.weight$",)


def test_an_entry_names_whole_modules_and_never_a_longer_number() -> None:
    def named(entry: str) -> tuple[str, ...]:
        return from_spectrum(f"unfrozen_parameters: ['{entry}', model.embed_tokens]", PARAMETERS).submodules

    assert named("model.layers.1") == named("model.layers.1.") == ("embed", "attn.1", "ffn.1")
    assert named("^model\\.layers\\.10\\.mlp") == ("embed", "ffn.10")
    assert named("model.layers.1$") == ("embed",)
    assert named("layers.1") == ("embed",)


@pytest.mark.parametrize(
    "entry", ["(a+)+$", "model.layers.[0-9]+", ".*", "model|a", "a{1,9}", "^model.embed$[:100]", "a" * 301, "^", "a b"]
)
def test_real_regular_expressions_are_refused_not_run(entry: str) -> None:
    began = time.process_time()
    with pytest.raises(SpecError, match="is no plain name") as caught:
        from_spectrum(json.dumps({"unfrozen_parameters": [entry]}), {"embed": ["a" * 5000 + "b"]})
    assert time.process_time() - began < 1
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "text",
    ["", "[]", "a: [", "unfrozen_parameters: x", "unfrozen_parameters: []", "unfrozen_parameters: [1]", "[" * 100_000,
     "!!python/object/apply:os.system [true]", "unfrozen_parameters: ['a']\n" + "#" * 200_000],
    ids=range(9),
)  # fmt: skip
def test_text_that_is_no_spectrum_file_is_refused_in_words(text: str) -> None:
    with pytest.raises(SpecError, match="Spectrum file"):
        from_spectrum(text, PARAMETERS)


def test_yaml_that_multiplies_itself_is_not_built() -> None:
    bomb = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    began = time.process_time()
    assert from_spectrum(bomb + SPECTRUM, PARAMETERS).submodules == ("embed", "ffn.1")
    assert time.process_time() - began < 1


def test_many_entries_and_many_parameters_are_read_in_a_moment() -> None:
    text = "unfrozen_parameters:\n" + "- model.layers.1\n" * 10_000
    many = {f"ffn.{i}": [f"model.layers.{i}.{j}.weight" for j in range(20)] for i in range(500)}
    began = time.process_time()
    assert from_spectrum(text, many).submodules == ("ffn.1",)
    assert time.process_time() - began < 5


def test_a_spectrum_file_of_another_model_is_refused() -> None:
    with pytest.raises(MethodError, match="no entry names a parameter of this model; the first is 'bert'"):
        from_spectrum("unfrozen_parameters: [bert]", PARAMETERS)


def test_scores_are_read_from_spectrums_json() -> None:
    text = '{"model.layers.1.mlp.down_proj": {"snr": 0.25, "type": "mlp.down_proj"}, "b": {"snr": 2, "type": "b"}}'
    assert scores_from_spectrum(text) == {"model.layers.1.mlp.down_proj": 0.25, "b": 2.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"m.1": {"snr": NaN, "type": "m"}}', "'m.1' has the snr nan: Spectrum could not measure it"),
        ('{"m.1": {"snr": Infinity}}', "could not measure"),
        ('{"m.1": {"snr": 1' + "0" * 400 + "}}", "could not measure"),
        ('{"m.1": {"snr": 1' + "0" * 5000 + "}}", "not valid JSON"),
        ('{"m.1": {"snr": true}}', "'m.1' has no number under snr"),
        ('{"m.1": {"type": "m"}}', "no number under snr"),
        ('{"mlp.down_proj": {"m.1": 0.5}}', "no number under snr"),
        ('{"m.1": 0.5}', "no number under snr"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected"),
        ("{}", "expected"),
        ("{}" + " " * 4_000_000, "limit"),
    ],
    ids=range(13),
)
def test_other_json_and_unmeasured_modules_are_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        scores_from_spectrum(text)
    assert len(str(caught.value)) < 400


HOSTILE = "=cmd|' /C calc'!A0 | x |\n# big\n<script>alert(1)</script> [a](javascript:b) `c` \u202e\""


def blueprint(**more: Any) -> Blueprint:
    ci = {"low": 1.0, "high": 3.0}
    data = {
        "model_id": "lab/model",
        "training_checkpoint": 0.8,
        "layers": [
            {"id": "embed", "gradient_norm": 1.0, "parameter_names": PARAMETERS["embed"]},
            {
                "id": "ffn.10",
                "gradient_norm": 2.0,
                "parameters": 1_234_567,
                "domain_tags": {"general": 1.0, "bio": 0.5},
                "domains": {"general": {"gradient_norm": 2.0, "gradient_norm_ci": ci, "example_norm": 5.0}},
                "parameter_names": PARAMETERS["ffn.10"],
                "linears": ["model.layers.10.mlp.down_proj", "model.layers.10.mlp.up_proj"],
            },
        ],
        **more,
    }
    return Blueprint.model_validate(data)


def test_names_are_lines() -> None:
    assert names(Picked(("attn.0", "ffn.2"), 0.1)) == "attn.0\nffn.2\n"


def test_a_file_that_tells_what_its_submodules_hold_needs_no_model() -> None:
    assert parameters_of(blueprint()) == {"embed": PARAMETERS["embed"], "ffn.10": PARAMETERS["ffn.10"]}
    assert linears_of(blueprint())["embed"] == []
    assert "down_proj" in to_peft(["ffn.10"], linears_of(blueprint()))["target_modules"]
    bare = blueprint(layers=[{"id": "attn.0", "gradient_norm": 1}])
    for ask in (parameters_of, linears_of):
        with pytest.raises(SpecError, match="does not say which"):
            ask(bare)


def test_spectrum_gets_modules_with_their_types_and_reads_them_back() -> None:
    text = to_spectrum_json(blueprint())
    assert json.loads(text) == {
        "model.layers.10.mlp.down_proj": {"snr": 2.0, "type": "mlp.down_proj"},
        "model.layers.10.mlp.up_proj": {"snr": 2.0, "type": "mlp.up_proj"},
    }
    assert set(scores_from_spectrum(text).values()) == {2.0}


def test_a_table_has_a_row_per_submodule_and_domain_and_leaves_empty_what_is_not_told() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(blueprint()))))
    assert [(row["submodule"], row["domain"]) for row in rows] == [
        ("embed", "general"), ("ffn.10", "general"), ("ffn.10", "bio")
    ]  # fmt: skip
    assert rows[0]["gradient_norm"] == "1.0" and rows[0]["parameters"] == "" == rows[0]["domain_tag"]
    assert (rows[1]["gradient_norm_low"], rows[1]["gradient_norm_high"], rows[1]["example_norm"]) == (
        "1.0",
        "3.0",
        "5.0",
    )
    assert rows[1]["example_norm_low"] == "" == rows[2]["gradient_norm"]
    assert (rows[2]["domain_tag"], rows[2]["parameters"]) == ("0.5", "1234567")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_field_of_a_table_is_a_formula(start: str) -> None:
    rows = list(csv.reader(io.StringIO(to_csv(blueprint(model_id=f'{start}1+1,"x"')), newline="")))
    assert {row[0] for row in rows[1:]} == {f'\'{start}1+1,"x"'}
    assert {len(row) for row in rows} == {12}


MADE = {"tool": "cprbench 0.4", "core_hours": 0.25, "flops": 3_000_000_000_000}


def test_a_card_says_what_the_file_is_how_to_use_it_whence_it_comes_and_what_it_cost() -> None:
    text = model_card(
        blueprint(
            made=MADE,
            model={"source": "hub:lab/model", "revision": "abc", "weights_sha256": "0" * 64, "parameters": 9,
                   "kind": "causal"},
            measurement={"loss": "nll", "head": None, "warmup_steps": 5, "dtype": "float32", "batches": 16,
                         "batch_size": 32},
            domains=[{"tag": "general", "task": "movies", "version": 2, "data_sha256": "0" * 64, "split": "validation",
                      "examples": 512, "max_tokens": 48}],
            privacy={"epsilon": 3.0, "delta": 1e-5},
        )
    )  # fmt: skip
    assert "submodules of lab/model at 80% of its training" in text
    assert "| ffn.10 | 1,234,567 | 2 | 80.0% |\n| embed | not told | 1 | 20.0% |" in text
    assert "cprbench run TASK --model MODEL --method partial --set partial.blueprint=FILE" in text
    assert f"Model: hub:lab/model at abc, weights sha256 {'0' * 64}." in text
    assert "16 batches of 32" in text and "Domain general: movies v2, 512 examples." in text
    assert "epsilon 3, delta 1e-05" in text
    assert (
        "Made by cprbench 0.4 for 0.25 core hours, 3e+12 FLOPs; not measured: device hours, kWh, GB·h, kg CO2." in text
    )


def test_a_card_of_a_bare_file_says_what_is_not_told() -> None:
    layers = [{"id": f"ffn.{i}", "gradient_norm": i} for i in range(12)]
    text = model_card(blueprint(layers=layers), top=3)
    assert "What making it cost: not told." in text
    assert text.count("| ffn.") == 3 and "| ffn.11 |" in text and "The 3 largest of 12" in text
    assert "not measured" not in text


def test_a_card_shows_hostile_text_as_text() -> None:
    text = model_card(blueprint(model_id=HOSTILE, made={**MADE, "tool": HOSTILE}))
    page = MarkdownIt("commonmark").enable("table").render(text)
    tags = set(re.findall(r"<(\w+)", page))
    assert tags == {"h2", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "ul", "li"}
    assert page.count("<tr>") == 3 and page.count("<code>") == 1 and page.count("<li>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [a](javascript:b) `c`" in page and "\u202e" not in page


def test_what_is_shown_in_a_page_cannot_name_an_entity() -> None:
    page = MarkdownIt("commonmark").render(model_card(blueprint(model_id="a &lt; b")))
    assert "a &amp;lt; b" in page
