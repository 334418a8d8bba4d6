"""The FLOP count: against torch's operator-level counter, and against what must hold for any count."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cprbench.errors import ModelError, SpecError, StoreError
from cprbench.meters.flops import Flops, Pass, Trained, count, pass_flops, sizes, supported

LAYERS, LABELS = 3, 3
#: Real tokens of the sequences of a batch, without and with padding.
EVEN, RAGGED = (12, 12, 12), (12, 7, 4)
SCORED = 5  # positions of a batch at which a causal model computes logits

_SIZES = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 96}
_ENCODER = {**_SIZES, "vocab_size": 101, "num_labels": LABELS}
_CAUSAL = {**_SIZES, "vocab_size": 101, "num_key_value_heads": 2, "pad_token_id": 0}
_GPT2 = {
    "n_embd": 64,
    "n_layer": LAYERS,
    "n_head": 4,
    "vocab_size": 101,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_DISTIL = {"dim": 64, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 96, "vocab_size": 101}
ENCODERS: dict[str, Any] = {
    "bert": transformers.BertConfig(**_ENCODER),
    "camembert": transformers.CamembertConfig(**_ENCODER),
    "distilbert": transformers.DistilBertConfig(**_DISTIL, num_labels=LABELS),
    "roberta": transformers.RobertaConfig(**_ENCODER),
    "xlm-roberta": transformers.XLMRobertaConfig(**_ENCODER),
}
CAUSAL: dict[str, Any] = {
    "gemma": transformers.GemmaConfig(**_CAUSAL, head_dim=24),
    "gpt2": transformers.GPT2Config(**_GPT2),
    "gpt2 with its own mlp size": transformers.GPT2Config(**_GPT2, n_inner=80),
    "llama": transformers.LlamaConfig(**_CAUSAL, tie_word_embeddings=False),
    "llama with a tied lm_head": transformers.LlamaConfig(**_CAUSAL, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**_CAUSAL, head_dim=24, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**_CAUSAL),
    "qwen3": transformers.Qwen3Config(**_CAUSAL, head_dim=32),
}
CONFIGS = ENCODERS | CAUSAL
IN_DETAIL = ("bert", "distilbert", "roberta", "gpt2", "llama", "llama with a tied lm_head", "qwen3")
SETS = {
    "the last ffn": {"ffn.2"},
    "the first ffn": {"ffn.0"},
    "the first attn": {"attn.0"},
    "attn.1 and ffn.2": {"attn.1", "ffn.2"},
    "attn.1, ffn.2 and embed": {"attn.1", "ffn.2", "embed"},
    "embed": {"embed"},
    "head": {"head"},
    "ffn.1 and head": {"ffn.1", "head"},
}
NOTHING = Trained(frozenset(), new_head=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting for each other: these models are tiny, and cores may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def kind_of(name: str) -> Literal["encoder", "causal"]:
    return "encoder" if name in ENCODERS else "causal"


def a_pass(
    name: str,
    trains: Literal["nothing", "head", "all", "method"],
    backward: bool,
    lengths: tuple[int, ...] = EVEN,
) -> Pass:
    scored = len(lengths) if name in ENCODERS else SCORED
    squared = sum(length**2 for length in lengths)
    return Pass("train", 1, backward, trains, len(lengths), max(lengths), sum(lengths), scored, squared=squared)


def model_of(name: str) -> Any:
    auto = transformers.AutoModelForSequenceClassification
    if name in CAUSAL:
        auto = transformers.AutoModelForCausalLM
    return auto.from_config(CONFIGS[name], attn_implementation="eager").train()


def cell_of(tensor: str) -> str:
    """Return the cell of the partition that a parameter belongs to ("new": the new task head)."""
    inside = re.search(r"\.(?:layer|layers|h)\.(\d+)\.(\w+)", tensor)
    if inside is not None:
        first = inside.group(2)
        attn = first in ("attention", "sa_layer_norm", "self_attn", "input_layernorm", "attn", "ln_1")
        return f"{'attn' if attn else 'ffn'}.{inside.group(1)}"
    if "classifier" in tensor:
        return "new"
    return "embed" if re.search(r"embeddings|embed_tokens|wte|wpe", tensor) else "head"


def train_only(model: Any, cells: set[str]) -> None:
    for tensor, parameter in model.named_parameters():
        parameter.requires_grad_(cell_of(tensor) in cells)


def executed(model: Any, name: str, backward: bool, lengths: tuple[int, ...] = EVEN) -> int:
    """Return the FLOPs that torch's counter sees in one pass, made the way the project makes it."""
    ids = torch.randint(3, 100, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        if name in ENCODERS:
            logits = model(input_ids=ids, attention_mask=mask).logits
        else:
            lm = model.get_base_model() if isinstance(model, peft.PeftModel) else model
            hidden = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = lm.lm_head(hidden.reshape(-1, hidden.shape[-1])[:SCORED])
        if backward:
            logits.logsumexp(-1).mean().backward()
    return int(counter.get_total_flops())


def agrees(model: Any, name: str, trained: Trained, p: Pass, lengths: tuple[int, ...] = EVEN) -> None:
    counted = pass_flops(CONFIGS[name].to_dict(), kind_of(name), LABELS, trained, p).total
    seen = executed(model, name, p.backward, lengths)
    assert seen == counted  # measured: no deviation at all, so a forgotten rank-3 product would show


@pytest.mark.parametrize("name", CONFIGS)
def test_a_forward_and_a_full_backward_count_what_torch_executes(name: str) -> None:
    model = model_of(name)
    agrees(model, name, NOTHING, a_pass(name, "nothing", backward=False))
    agrees(model, name, NOTHING, a_pass(name, "all", backward=True))


@pytest.mark.parametrize("cells", SETS.values(), ids=SETS)
@pytest.mark.parametrize("name", IN_DETAIL)
def test_partial_training_counts_what_torch_executes(name: str, cells: set[str]) -> None:
    model = model_of(name)
    new_head = name in ENCODERS
    train_only(model, cells | {"new"} if new_head else cells)
    agrees(model, name, Trained(frozenset(cells), new_head), a_pass(name, "method", backward=True))


@pytest.mark.parametrize("name", ENCODERS)
def test_training_the_new_head_alone_counts_what_torch_executes(name: str) -> None:
    model = model_of(name)
    train_only(model, {"new"})
    agrees(model, name, NOTHING, a_pass(name, "head", backward=True))
    agrees(model, name, Trained(frozenset(), new_head=True), a_pass(name, "method", backward=True))


def test_a_classifier_that_stays_frozen_costs_its_input_gradient_only() -> None:
    model = model_of("bert")
    train_only(model, {"ffn.2"})
    agrees(model, "bert", Trained(frozenset({"ffn.2"}), new_head=False), a_pass("bert", "method", backward=True))


LINEARS = {
    "bert": "attention.self.query attention.self.key attention.self.value attention.output.dense"
    " intermediate.dense output.dense",
    "distilbert": "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
    "gpt2": "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj",
    "llama": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
    " mlp.gate_proj mlp.up_proj mlp.down_proj",
}
SOME = {
    "every linear of every layer": (list(range(LAYERS)), r".*"),
    "every linear of two layers": ([1, 2], r".*"),
    "query, or what holds it": ([0, 1, 2], r".*(query|q_lin|q_proj|c_attn)"),
    "value of the last layer": ([2], r".*(value|v_lin|v_proj|c_attn)"),
    "key and the first of the ffn": ([1], r".*(key|k_lin|k_proj|intermediate.dense|lin1|c_fc|up_proj)"),
    "outputs": ([0, 2], r".*(output.dense|out_lin|lin2|c_proj|o_proj|down_proj)"),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
@pytest.mark.parametrize(("layers", "pattern"), SOME.values(), ids=SOME)
@pytest.mark.parametrize("name", LINEARS)
def test_adapters_count_what_torch_executes(name: str, layers: list[int], pattern: str) -> None:
    chosen = [linear for linear in LINEARS[name].split() if re.fullmatch(pattern, linear)]
    ranks = {linear: rank for rank, linear in enumerate(chosen, start=3)}
    model = model_of(name)
    inside = re.compile(rf".*\.(?:layer|layers|h)\.(?:{'|'.join(map(str, layers))})\.({'|'.join(chosen)})")
    targets = [module for module, _ in model.named_modules() if inside.fullmatch(module)]
    config = peft.LoraConfig(
        target_modules=targets,
        rank_pattern={f".*{re.escape(linear)}": rank for linear, rank in ranks.items()},
        fan_in_fan_out=name == "gpt2",
    )
    model = peft.get_peft_model(model, config)
    for tensor, parameter in model.named_parameters():
        if "classifier" in tensor:
            parameter.requires_grad_(True)
    cells = frozenset(f"{cell}.{layer}" for cell in ("attn", "ffn") for layer in layers)
    trained = Trained(cells, new_head=name in ENCODERS, lora=ranks)
    agrees(model, name, trained, a_pass(name, "method", backward=True))
    agrees(model, name, trained, a_pass(name, "method", backward=False))


def test_adapters_are_counted_in_the_passes_of_the_method_only() -> None:
    config = ENCODERS["bert"].to_dict()
    lora = Trained(frozenset({"ffn.0"}), new_head=True, lora={"output.dense": 4})
    for trains in ("nothing", "head", "all"):
        p = a_pass("bert", trains, backward=trains != "nothing")
        assert pass_flops(config, "encoder", 3, lora, p) == pass_flops(config, "encoder", 3, NOTHING, p)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_padding_and_the_real_part_make_the_total(name: str) -> None:
    p = a_pass(name, "all", backward=True, lengths=RAGGED)
    agrees(model_of(name), name, NOTHING, p, RAGGED)
    config, kind = CONFIGS[name].to_dict(), kind_of(name)
    alone = [replace(p, batch=1, length=n, tokens=n, squared=None, scored=0) for n in RAGGED]
    real = sum((pass_flops(config, kind, LABELS, NOTHING, one) for one in alone), Flops())
    rows = replace(p, batch=1, length=1, tokens=0, squared=None)  # what the output layer costs beside
    output = pass_flops(config, kind, LABELS, NOTHING, rows)
    both = pass_flops(config, kind, LABELS, NOTHING, p)
    assert both.total - both.padding == real.total + output.total - output.padding
    assert 0 < both.padding < both.total


@pytest.mark.parametrize("squared", [None, 3 * 12**2])
def test_a_batch_without_padding_has_padding_zero(squared: int | None) -> None:
    p = replace(a_pass("llama", "all", backward=True), squared=squared)
    assert pass_flops(CAUSAL["llama"].to_dict(), "causal", None, NOTHING, p).padding == 0


def test_without_squared_lengths_padding_is_overstated_by_little_and_the_total_not_at_all() -> None:
    exact = a_pass("bert", "all", backward=True, lengths=RAGGED)
    config = ENCODERS["bert"].to_dict()
    known = pass_flops(config, "encoder", LABELS, NOTHING, exact)
    guessed = pass_flops(config, "encoder", LABELS, NOTHING, replace(exact, squared=None))
    assert guessed.total == known.total
    assert known.padding < guessed.padding < 1.05 * known.padding


@pytest.mark.parametrize("name", CONFIGS)
def test_the_sizes_that_a_record_keeps_give_the_same_count(name: str) -> None:
    config = CONFIGS[name].to_dict()
    kept = json.loads(json.dumps(sizes(config)))
    p = a_pass(name, "all", backward=True, lengths=RAGGED)
    assert len(kept) < 12
    assert supported(kept) is None
    args = (kind_of(name), LABELS, NOTHING, p)
    assert pass_flops(kept, *args) == pass_flops(config, *args)


def test_a_run_is_counted_by_phase_and_attempt() -> None:
    config, trained = sizes(CAUSAL["llama"].to_dict()), Trained(frozenset({"ffn.1"}), new_head=False)
    step, score = a_pass("llama", "method", backward=True), a_pass("llama", "method", backward=False)
    score = replace(score, phase="score", times=7)
    once = pass_flops(config, "causal", None, trained, step)
    found = count(config, "causal", None, trained, [step, step, replace(step, attempt=2), score])
    assert list(found) == [("train", 1), ("train", 2), ("score", 1)]
    assert found["train", 1] == once + once
    assert found["train", 2] == once
    one = pass_flops(config, "causal", None, trained, replace(score, times=1))
    assert found["score", 1].total == 7 * one.total


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mamba", "hidden_size": 64}, "mamba"),
        ({"hidden_size": 64}, "None"),
        ({**sizes(ENCODERS["bert"].to_dict()), "hidden_size": None}, "bert.*hidden_size"),
        ({**sizes(ENCODERS["bert"].to_dict()), "add_cross_attention": True}, "bert.*cross-attention"),
        ({k: v for k, v in CAUSAL["qwen3"].to_dict().items() if k != "head_dim"}, "qwen3.*head_dim"),
    ],
)
def test_what_cannot_be_counted_gives_a_reason_and_no_number(config: dict[str, Any], says: str) -> None:
    assert re.search(says, supported(config) or "")
    with pytest.raises(ModelError, match=says):
        pass_flops(config, "encoder", LABELS, NOTHING, a_pass("bert", "all", backward=True))


def test_a_causal_model_is_not_counted_as_an_encoder() -> None:
    with pytest.raises(ModelError, match="gpt2"):
        pass_flops(CAUSAL["gpt2"].to_dict(), "encoder", LABELS, NOTHING, a_pass("gpt2", "all", backward=True))


@pytest.mark.parametrize(
    ("trained", "labels", "says"),
    [
        (Trained(frozenset({"ffn.3"}), new_head=True), LABELS, "ffn.3"),
        (Trained(frozenset({"ffn.2"}), new_head=True, lora={"mlp.up_proj": 4}), LABELS, "mlp.up_proj"),
        (Trained(frozenset({"ffn.2"}), new_head=True, lora={"output.dense": 0}), LABELS, "rank 0"),
        (NOTHING, LABELS, "nothing has gradients"),
        (Trained(frozenset({"ffn.2"}), new_head=True), None, "labels"),
    ],
)
def test_what_the_model_cannot_have_done_is_refused(trained: Trained, labels: int | None, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        pass_flops(ENCODERS["bert"].to_dict(), "encoder", labels, trained, a_pass("bert", "method", backward=True))


def test_a_pass_survives_its_line_of_work_jsonl() -> None:
    for p in (
        a_pass("bert", "all", backward=True, lengths=RAGGED),
        Pass("score", 2, False, "nothing", 2, 8, 9, 2),
    ):
        assert Pass.parse(json.loads(p.line())) == p


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 37},
        {"batch": 0},
        {"batch": True},
        {"length": 12.0},
        {"trains": "some"},
        {"backward": 1},
        {"squared": 3 * 12**2 + 1},
        {"sequences": 3},
    ],
)
def test_a_line_that_is_no_pass_is_refused(wrong: dict[str, Any]) -> None:
    data = json.loads(a_pass("bert", "all", backward=True).line())
    with pytest.raises(StoreError, match=re.escape(next(iter(wrong)))):
        Pass.parse(data | wrong)
    del data["scored"]
    with pytest.raises(StoreError, match="scored"):
        Pass.parse(data)


CELLS = ["embed", "head", *(f"{cell}.{layer}" for layer in range(LAYERS) for cell in ("attn", "ffn"))]


@given(
    name=st.sampled_from(["bert", "roberta", "gpt2", "llama"]),
    few=st.frozensets(st.sampled_from(CELLS)),
    more=st.frozensets(st.sampled_from(CELLS)),
    new_head=st.booleans(),
    adapters=st.booleans(),
)
def test_training_more_cells_never_costs_less(
    name: str, few: frozenset[str], more: frozenset[str], new_head: bool, adapters: bool
) -> None:
    config, p = sizes(CONFIGS[name].to_dict()), a_pass(name, "method", backward=True, lengths=RAGGED)
    lora = dict.fromkeys(LINEARS["bert" if name == "roberta" else name].split(), 2) if adapters else None

    def cost(cells: frozenset[str], *, head: bool) -> int:
        try:
            return pass_flops(config, kind_of(name), LABELS, Trained(cells, head, lora), p).total
        except SpecError:  # nothing has gradients: such a pass cannot run
            return 0

    everything = pass_flops(config, kind_of(name), LABELS, NOTHING, replace(p, trains="all")).total
    least, most = cost(few, head=False), cost(few | more, head=new_head)
    assert least <= most
    assert adapters or most <= everything


def test_counting_imports_no_torch() -> None:
    code = "import sys, cprbench.meters.flops; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
