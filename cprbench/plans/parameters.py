"""How many parameters a model has, by tensor and submodule, from its config alone. Imports no torch.

The tensors are those of transformers 5 for the model types whose FLOPs are counted; tests compare them with live
models, name by name. Nothing is guessed: a config that lacks a size is refused with the key that it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cprbench.errors import ModelError
from cprbench.meters.flops import Kind, Linear, plan_of, sizes

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Names:
    """How a family names what is no linear: `layers` and `norms` with {} for the layer, `tables` with their rows."""

    layers: str
    tables: Mapping[str, str]  # table -> the config key of its rows
    norms: tuple[str, str]  # of attn and of ffn, inside a layer
    biased: bool  # norms have a bias, and so has every linear
    table_norm: str = ""
    final: str = ""  # the norm behind the last layer
    lm_head: str = "lm_head"
    new: tuple[str, ...] = ()  # linears of the new task head: square ones, then the classifier


_BERT_TABLES = {
    "word_embeddings": "vocab_size",
    "position_embeddings": "max_position_embeddings",
    "token_type_embeddings": "type_vocab_size",
}


def _encoder(prefix: str, new: tuple[str, ...]) -> _Names:
    tables = {f"{prefix}.embeddings.{name}": rows for name, rows in _BERT_TABLES.items()}
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    return _Names(
        f"{prefix}.encoder.layer.{{}}", tables, norms, True, table_norm=f"{prefix}.embeddings.LayerNorm", new=new
    )


_ROBERTA = _encoder("roberta", ("classifier.dense", "classifier.out_proj"))
_LLAMA = _Names(
    "model.layers.{}",
    {"model.embed_tokens": "vocab_size"},
    ("input_layernorm", "post_attention_layernorm"),
    False,
    final="model.norm",
)
_NAMES = {
    "bert": _encoder("bert", ("classifier",)),
    "camembert": _ROBERTA,
    "distilbert": _Names(
        "distilbert.transformer.layer.{}",
        {
            "distilbert.embeddings.word_embeddings": "vocab_size",
            "distilbert.embeddings.position_embeddings": "max_position_embeddings",
        },
        ("sa_layer_norm", "output_layer_norm"),
        True,
        table_norm="distilbert.embeddings.LayerNorm",
        new=("pre_classifier", "classifier"),
    ),
    "gemma": _LLAMA,
    "gpt2": _Names(
        "transformer.h.{}",
        {"transformer.wte": "vocab_size", "transformer.wpe": "n_positions"},
        ("ln_1", "ln_2"),
        True,
        final="transformer.ln_f",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
#: Linears of Llama's kin whose bias is a setting; Qwen2 always has one on its query, key and value.
_BIAS_KEYS = {"self_attn": "attention_bias", "mlp": "mlp_bias"}
_WITH_BIAS_KEYS = {"llama": ("self_attn", "mlp"), "gemma": ("self_attn",), "qwen3": ("self_attn",)}
#: Sizes that are read in every family, whether it has to say them or not.
_ANYWHERE = ("head_dim", "num_key_value_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
#: More than any model has: the walk through its layers would not come back.
_MOST_LAYERS, _MOST = 10**4, 10**9


@dataclass(frozen=True)
class Layout:
    """The tensors of a model: submodule -> live name -> shape, in partition order, and those of a new task head."""

    tensors: Mapping[str, Shapes]
    new_head: Shapes

    @property
    def sizes(self) -> dict[str, int]:
        """Submodule -> parameters (DESIGN section 1), tied tensors counted once."""
        return {cell: sum(map(math.prod, shapes.values())) for cell, shapes in self.tensors.items()}

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Submodule -> names of its parameters."""
        return {cell: tuple(shapes) for cell, shapes in self.tensors.items()}

    @property
    def total(self) -> int:
        """N: all parameters, the new head excluded."""
        return sum(self.sizes.values())

    @property
    def new_head_size(self) -> int:
        """Parameters of the new task head; 0 for causal models."""
        return sum(map(math.prod, self.new_head.values()))


def layout(config: Mapping[str, Any], kind: Kind, labels: int | None) -> Layout:
    """Return the tensors of a model with this config; `labels`: outputs of an encoder's new head.

    A BERT's pooler counts as part of the checkpoint. Raises ModelError for an architecture that is not known or a
    config that lacks a size, and SpecError for labels that no head has.
    """
    for key, value in sizes(config).items():
        if (type(value) is int and value > 0) or (key in _ANYWHERE and value is not None):
            _size(config, key)
    plan, names = plan_of(config, kind, labels), _NAMES[config["model_type"]]
    width = plan.attn[-1].outputs  # the hidden size
    tensors: dict[str, Shapes] = {"embed": {}}
    for table, key in names.tables.items():
        tensors["embed"][f"{table}.weight"] = (_size(config, key), width)
    if names.table_norm:
        tensors["embed"] |= _norm(names.table_norm, width, names)
    for layer in range(plan.layers):
        prefix = names.layers.format(layer)
        for cell, norm, linears in (("attn", names.norms[0], plan.attn), ("ffn", names.norms[1], plan.ffn)):
            found = _norm(f"{prefix}.{norm}", width, names)
            for linear in linears:
                found |= {f"{prefix}.{name}": shape for name, shape in _linear(config, linear, names)}
            tensors[f"{cell}.{layer}"] = found
    tensors["head"] = _norm(names.final, width, names) if names.final else {}
    new: Shapes = {}
    if kind == "causal":
        if not config["tie_word_embeddings"]:
            tensors["head"][f"{names.lm_head}.weight"] = (config["vocab_size"], width)
    else:
        for cell, linear in plan.rows:
            if cell == "head":  # BERT's pooler
                tensors["head"] |= _square(f"bert.{linear.name}", linear)
        outputs = [linear for cell, linear in plan.rows if cell == "new"]
        for name, linear in zip(names.new, outputs, strict=True):
            new |= _square(name, linear)
    return Layout({cell: shapes for cell, shapes in tensors.items() if shapes}, new)


def layer_linears(config: Mapping[str, Any], kind: Kind) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the linears of all layers: (submodule, name inside its layer) -> (inputs, outputs)."""
    plan = plan_of(config, kind, labels=1)
    return {(cell, own.name): (own.inputs, own.outputs) for cell, inside in plan.walk() for own in inside}


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= (_MOST_LAYERS if key in _LAYERS else _MOST):
        raise ModelError(
            f"model_type {config.get('model_type')!r:.80}: {key} is {value!r:.80} in its config, so its parameters "
            "cannot be counted. Use the config.json that came with the model."
        )
    return value


def _norm(name: str, width: int, names: _Names) -> Shapes:
    return {f"{name}.{part}": (width,) for part in (("weight", "bias") if names.biased else ("weight",))}


def _square(name: str, linear: Linear) -> Shapes:
    return {f"{name}.weight": (linear.outputs, linear.inputs), f"{name}.bias": (linear.outputs,)}


def _linear(config: Mapping[str, Any], linear: Linear, names: _Names) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a linear inside its layer, and the norm on its output where it has one."""
    model = config["model_type"]
    # GPT-2 keeps its weights as (inputs, outputs).
    turned = model == "gpt2"
    yield f"{linear.name}.weight", (linear.inputs, linear.outputs) if turned else (linear.outputs, linear.inputs)
    part, _, last = linear.name.partition(".")
    switched = part in _WITH_BIAS_KEYS.get(model, ()) and config.get(_BIAS_KEYS[part]) is True
    if names.biased or switched or (model == "qwen2" and last in ("q_proj", "k_proj", "v_proj")):
        yield f"{linear.name}.bias", (linear.outputs,)
    if model == "qwen3" and last in ("q_proj", "k_proj"):
        yield f"{part}.{last[0]}_norm.weight", (_size(config, "head_dim"),)
