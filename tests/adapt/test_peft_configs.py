"""Method peft: any tuner that sits in modules trains and comes back the same; what cannot be honest is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from cprbench.adapt import models
from cprbench.adapt.methods import Context, Method, Target, build_method, named
from cprbench.adapt.methods.adapters import insert
from cprbench.adapt.methods.peft_config import TUNERS
from cprbench.adapt.settings import label, pinned, unpinned
from cprbench.errors import CprbenchError, MethodError, SpecError
from cprbench.meters.flops import Pass, Trained, count

Written = Callable[..., str]
SIZES = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
IDS = torch.randint(1, 98, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a config and return its path."""

    def write(folder: str = "own", **config: Any) -> str:
        path = tmp_path / folder / "adapter_config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["query", "q_proj"]} | config))
        return str(path)

    return write


def encoder() -> models.LoadedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **SIZES, num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = transformers.BertForSequenceClassification(config)
    head = ("classifier.weight", "classifier.bias")
    return models.LoadedModel(model, None, "encoder", models.partition(model, head), 2)


def llama() -> models.LoadedModel:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **heads, tie_word_embeddings=True))
    return models.LoadedModel(model, None, "causal", models.partition(model), None)


def peft(config: str) -> Method:
    return build_method("peft", {"config": config})


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def trained(loaded: models.LoadedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}


def step(loaded: models.LoadedModel) -> None:
    parameters = trained(loaded)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    for _ in range(2):
        loss = loaded.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.logsumexp(-1).mean()
        loss.backward()
        assert all(p.grad is not None for p in parameters.values())
        optimizer.step()
        optimizer.zero_grad()


# --- tuners -----------------------------------------------------------------------------------------

#: What some tuners need said for a model as small as this one.
NEEDED: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["LayerNorm", "input_layernorm"]},
    "OFT": {"oft_block_size": 4, "r": 0},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3], "target_modules": ["word_embeddings", "embed_tokens"]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "topk": 2},
}
UNMERGED = {"LILY"}


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_tuner_trains_in_the_models_own_forward_reloads_and_folds_into_the_same_model(
    tuner: str, written: Written
) -> None:
    method = peft(written(peft_type=tuner, **NEEDED.get(tuner, {})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tuners warn of extensions that they could build on another machine
        for fresh in (encoder, llama):
            loaded, before = fresh(), logits(fresh().model)
            method.check(Target(loaded.kind, loaded.partition.sizes, loaded.partition.parameters))
            prepared = method.prepare(loaded, Context(5))
            own = {name for names in loaded.partition.parameters.values() for name in names}
            assert not own & set(trained(loaded))
            assert set(loaded.partition.new_head) <= set(trained(loaded))
            assert prepared.trained_submodules == models.trained_cells(loaded) != ()
            assert (prepared.uncounted is None) == (tuner == "LORA") == (prepared.adapters is not None)
            step(loaded)
            after = logits(loaded.model)
            assert (after - before).abs().max() > 1e-4
            again = fresh()
            wrapped = insert(again, json.loads(json.dumps(prepared.notes["adapter_config"])), 5)
            again.model.load_state_dict({n: p.detach() for n, p in trained(loaded).items()}, strict=False)
            assert torch.equal(logits(again.model), after)
            if tuner in UNMERGED or (tuner == "BEFT" and fresh is llama):  # no bias to fold one into
                with pytest.raises((NotImplementedError, ValueError)):
                    wrapped.merge_and_unload()
                continue
            assert torch.allclose(logits(wrapped.merge_and_unload()), after, atol=2e-6)


def test_plain_lora_is_counted_by_the_ranks_that_sit_in_the_model(written: Written) -> None:
    path = written(r=4, target_modules=["query", "output.dense"], rank_pattern={"layer.1.output.dense": 7})
    loaded = encoder()
    loaded.model.set_attn_implementation("eager")
    prepared = peft(path).prepare(loaded, Context(5))
    attention = {f"attn.{i}/attention.{name}": 4 for i in (0, 1) for name in ("self.query", "output.dense")}
    assert prepared.adapters == {**attention, "ffn.0/output.dense": 4, "ffn.1/output.dense": 7}
    assert prepared.notes["adapters"] == prepared.adapters
    every = Trained(frozenset(prepared.trained_submodules), True, prepared.adapters)
    done = Pass("train", 1, True, "method", 4, 12, 48, 4)
    with FlopCounterMode(display=False) as counter:
        loaded.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.logsumexp(-1).mean().backward()
    config = loaded.model.config.to_dict()
    assert count(config, "encoder", 2, every, [done])["train", 1].total == counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "LoRA with use_dora has no FLOP count"),
        ({"bias": "all"}, "LoRA with bias has no FLOP count"),
        ({"init_lora_weights": "mica"}, "LoRA with mica has no FLOP count"),
        ({"peft_type": "IA3", "feedforward_modules": []}, "adapters of type IA3 have no FLOP count"),
        ({"target_modules": ["query", "word_embeddings"]}, "bert.embeddings.word_embeddings, which is no linear"),
        ({"target_modules": ["query", "pooler.dense"]}, "bert.pooler.dense, which is no linear of a layer"),
    ],
)
def test_what_has_no_flop_count_says_why_and_states_no_ranks(
    config: dict[str, Any], why: str, written: Written
) -> None:
    prepared = peft(written(**config)).prepare(encoder(), Context(5))
    assert prepared.uncounted is not None and why in prepared.uncounted
    assert prepared.adapters is None and "adapters" not in prepared.notes


def test_an_adapter_on_a_table_or_on_what_modules_share_is_listed_where_it_acts(written: Written) -> None:
    on_table = peft(written(target_modules=["word_embeddings"])).prepare(encoder(), Context(5))
    assert on_table.trained_submodules == ("embed",)
    on_pooler = peft(written(target_modules=["pooler.dense"])).prepare(encoder(), Context(5))
    assert on_pooler.trained_submodules == ("head",)
    shared = peft(written(peft_type="UNILORA", target_modules=["query"])).prepare(encoder(), Context(5))
    assert shared.trained_submodules == ("attn.0", "attn.1")  # one vector, used by all of them


# --- what a saved config brings along ---------------------------------------------------------------


def test_a_config_as_peft_saves_it_trains_although_it_says_that_it_was_for_inference(written: Written) -> None:
    saved = {
        "auto_mapping": None, "base_model_name_or_path": "somebody/else", "inference_mode": True, "loftq_config": {},
        "megatron_core": "megatron.core", "modules_to_save": ["classifier", "score"], "peft_version": "0.21.2",
        "qalora_group_size": 16, "revision": "main", "task_type": "SEQ_CLS", "use_dora": False,
    }  # fmt: skip
    loaded = encoder()
    prepared = peft(written(**saved)).prepare(loaded, Context(5))
    lora = {f"bert.encoder.layer.{i}.attention.self.query.lora_{s}.default.weight" for i in (0, 1) for s in "AB"}
    assert set(trained(loaded)) == lora | {"classifier.weight", "classifier.bias"}
    assert prepared.uncounted is None
    assert not set(prepared.notes["adapter_config"]) & {"task_type", "inference_mode", "modules_to_save"}


@pytest.mark.parametrize("excluded", [None, ["key"], ".*key"])
def test_all_linear_leaves_the_new_head_out(excluded: Any, written: Written) -> None:
    loaded = encoder()
    peft(written(target_modules="all-linear", exclude_modules=excluded)).prepare(loaded, Context(5))
    names = set(trained(loaded))
    assert {"classifier.weight", "classifier.bias"} <= names
    assert not any("classifier" in name and "lora" in name for name in names)
    assert any("query.lora_A" in name for name in names)
    assert any("key.lora_A" in name for name in names) == (excluded is None)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
            r"PROMPT_TUNING puts virtual tokens .*leaves them out",
        ),
        ({"peft_type": "ADALORA"}, r"ADALORA prunes its ranks .*Use a tuner that sits in modules"),
        ({"peft_type": "LORRA"}, r"'LORRA' has not been tried here. Did you mean"),
        ({"init_lora_weights": "eva"}, r'init_lora_weights = "eva" starts from training data'),
        ({"init_lora_weights": "loftq"}, r'init_lora_weights = "loftq"'),
        ({"kasa_config": {"beta": 1}}, r"kasa_config adds a loss"),
        ({"peft_type": "ADAMSS", "use_asa": True}, r"use_asa prunes"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens is switched on"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication repeats layers"),
        ({"modules_to_save": ["pooler"]}, r"modules_to_save names 'pooler', and 'bert.pooler' belongs to the base"),
        ({"target_modules": ["qery"]}, r"target_modules = \['qery'\] match nothing .* Did you mean 'query'"),
        ({"target_modules": r"bert\.layer\.\d+"}, r"match nothing in this model"),
        ({"target_modules": "("}, r"no regular expression"),
    ],
)
def test_what_cannot_be_honest_is_refused_before_anything_runs_and_again_when_it_is_prepared(
    config: dict[str, Any], message: str, written: Written
) -> None:
    method, loaded = peft(written(**config)), encoder()
    with pytest.raises(MethodError, match=message):
        method.check(Target("encoder", loaded.partition.sizes, loaded.partition.parameters))
    with pytest.raises(MethodError, match=message):
        method.prepare(loaded, Context(5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": "x"}, "peft cannot put these adapters into BertForSequenceClassification: unsupported operand"),
        ({"bias": "some"}, "peft cannot put these adapters into BertForSequenceClassification: .*bias"),
        ({"made_up": 1}, "unexpected keyword argument 'made_up'"),
        ({"peft_type": "VERA", "target_modules": ["classifier"]}, "target_modules = .* match nothing"),
        ({"peft_type": "VERA", "target_modules": "(bert.*query|classifier)"}, "of the new head, which trains whole"),
    ],
)
def test_what_peft_refuses_and_what_would_wrap_the_new_head_is_an_error_of_ours(
    config: dict[str, Any], message: str, written: Written
) -> None:
    with pytest.raises(MethodError, match=message):
        peft(written(**config)).prepare(encoder(), Context(5))


def test_peft_without_a_config_says_how_to_name_one() -> None:
    with pytest.raises(MethodError, match=r"needs a config: --method peft:path/adapter_config.json"):
        build_method("peft", {}).check(Target("encoder", {}))


# --- names ------------------------------------------------------------------------------------------


def test_a_method_is_written_with_its_file_after_a_colon_and_only_peft_is() -> None:
    assert named("lora") == ("lora", {})
    assert named("peft:a/b.json") == ("peft", {"config": "a/b.json"})
    assert named("peft:C:/b.json") == ("peft", {"config": "C:/b.json"})
    for wrong in ("lora:a.json", "peft:", ":a"):
        with pytest.raises(SpecError, match="only peft is followed by a file"):
            named(wrong)


def test_an_arm_is_labelled_by_its_file_or_by_the_folder_of_a_file_that_is_called_like_all(written: Written) -> None:
    assert label(peft("some/where/ia3.json")) == "peft config=ia3"
    assert label(peft(written("vera-r64"))) == "peft config=vera-r64"


def test_a_record_keeps_the_configs_content_and_not_its_path(written: Written) -> None:
    path = written("here")
    settings, paths = pinned(peft(path))
    assert settings["config"] == "adapter_config.json" and len(settings["config_sha256"]) == 64
    assert unpinned("peft", settings, paths) == {"config": path}
    Path(path).write_text("{}")
    with pytest.raises(CprbenchError, match="has changed since the run was planned"):
        unpinned("peft", settings, paths)


def test_the_seed_of_the_block_fixes_what_a_tuner_draws(written: Written) -> None:
    method = peft(written(peft_type="LOHA"))

    def started(seed: int) -> Mapping[str, torch.Tensor]:
        loaded = encoder()
        torch.rand(seed * 7)
        method.prepare(loaded, Context(seed))
        return {name: p.detach() for name, p in trained(loaded).items() if "hada" in name}

    first, again, other = started(1), started(1), started(2)
    assert first and all(torch.equal(p, again[name]) for name, p in first.items())
    assert any(not torch.equal(p, other[name]) for name, p in first.items())
