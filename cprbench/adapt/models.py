"""Checkpoint -> live model, tokenizer and the partition of all its parameters into submodules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import torch
import transformers
from torch import nn

from cprbench.adapt import four_bit as packing
from cprbench.adapt.checkpoints import Checkpoint, Kind
from cprbench.errors import ModelError
from cprbench.spec import stream_seed

_ATTENTION = re.compile(r"^(self_)?att(ention|n)|^sa_|^ln_1$|^input_layernorm$|^layer_norm1$")


@dataclass(frozen=True)
class Partition:
    """All parameters of a model by submodule, from the input upwards; tied tensors are counted once."""

    parameters: Mapping[str, tuple[str, ...]]  # submodule -> parameter names of the live model
    sizes: Mapping[str, int]  # submodule -> number of parameters
    new_head: tuple[str, ...]  # parameters that the checkpoint did not have: trained by every method

    @property
    def total(self) -> int:
        """N: all parameters of the loaded model, the new head excluded."""
        return sum(self.sizes.values())


@dataclass
class LoadedModel:
    """A live model with what the rest needs to know about it."""

    model: nn.Module
    tokenizer: Any
    kind: Kind
    partition: Partition
    labels: int | None  # outputs of the new head; None for causal models

    def train_only(self, submodules: Sequence[str]) -> None:
        """Set requires_grad on the tensors of `submodules` and the new head, and on no other."""
        names = set(self.partition.new_head)
        names.update(n for submodule in submodules for n in self.partition.parameters[submodule])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)


def load(
    checkpoint: Checkpoint, labels: int | None, seed: int, attention: str, *, four_bit: bool = False
) -> LoadedModel:
    """Return the model in float32, its new head drawn from the block's own "head init" stream.

    `labels`: number of choices for an encoder's classification head, None for a causal model. `four_bit`: the weights
    of its linears are packed into 4 bits (four_bit.py); its partition and N stay those of the unpacked model. All
    weights of a model that has none yet come from the block's "init" stream, as its architecture draws them.
    """
    if checkpoint.drawn and four_bit:
        raise ModelError(f"{checkpoint.source} has no weights to pack into 4 bits. Use another method.")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention, "use_safetensors": True}
    unpacked = empty_partition(checkpoint, labels) if four_bit else None
    if unpacked is not None:
        options |= packing.options(sorted({name.rpartition(".")[0] for name in unpacked.new_head}))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint.source}: transformers cannot read the tokenizer in {checkpoint.folder}: {error} A "
            "sentencepiece model without tokenizer.json takes the packages sentencepiece and protobuf, and the name "
            "that its architecture expects; or save it as tokenizer.json."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if checkpoint.drawn:
        torch.manual_seed(stream_seed(seed, "init"))
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        )
        model.config.use_cache = False
        return LoadedModel(model, tokenizer, checkpoint.kind, partition(model), None)
    try:
        if checkpoint.kind == "causal":
            auto = transformers.AutoModelForCausalLM
        else:
            auto, options = transformers.AutoModelForSequenceClassification, {**options, "num_labels": labels}
        model, report = auto.from_pretrained(checkpoint.folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{checkpoint.source} cannot be loaded from {checkpoint.folder}: {error}") from error
    if checkpoint.kind == "causal":
        model.config.use_cache = False
    new_head = tuple(name for name, _ in model.named_parameters() if name in report["missing_keys"])
    if checkpoint.kind == "causal" and new_head:
        raise ModelError(f"{checkpoint.source}: the checkpoint lacks {', '.join(new_head[:5])}.")
    _draw(model, new_head, stream_seed(seed, "head init"))
    if unpacked is not None:
        packing.make_ready(model)
    return LoadedModel(model, tokenizer, checkpoint.kind, unpacked or partition(model, new_head), labels)


def _draw(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Draw new parameters: matrices from N(0, initializer_range), biases 0, norm weights 1.

    Done here and not left to the library, so that a head is the same under every version of it.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = getattr(model.config, "initializer_range", 0.02)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(names):
            parameter = parameters[name]
            if parameter.ndim >= 2:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, spread, generator=generator))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def partition(model: nn.Module, new_head: Sequence[str] = ()) -> Partition:
    """Return the submodules of a live model (DESIGN section 1): embed, attn.i, ffn.i, head.

    Raises ModelError when no stack of layers is found.
    """
    layers = _layer_prefix(model)
    embeddings = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    tables = {_container(name) for name in embeddings if not name.startswith(layers)}
    groups: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():  # tied tensors appear once, under their first name
        if name in new_head:
            continue
        cell = _cell(name, layers, tables, model)
        groups.setdefault(cell, []).append(name)
        sizes[cell] = sizes.get(cell, 0) + parameter.numel()
    order = sorted(groups, key=_position)
    return Partition({c: tuple(groups[c]) for c in order}, {c: sizes[c] for c in order}, tuple(new_head))


def _layer_prefix(model: nn.Module) -> str:
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no list of layers, so it cannot be cut into submodules.")
    name, _ = max(stacks, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return f"{name}."


def _container(table: str) -> str:
    """Return the prefix that holds an input table and its norm: "bert.embeddings." for BERT's."""
    parent, _, _ = table.rpartition(".")
    return f"{parent}." if parent.rpartition(".")[2].startswith("emb") else f"{table}."


def _cell(name: str, layers: str, tables: set[str], model: nn.Module) -> str:
    if name.startswith(layers):
        index, _, inside = name.removeprefix(layers).partition(".")
        part = inside.split(".")[0]
        if part == "post_attention_layernorm":  # Gemma norms what attention gives, Llama what the MLP gets
            layer = model.get_submodule(f"{layers}{index}")
            return f"attn.{index}" if hasattr(layer, "pre_feedforward_layernorm") else f"ffn.{index}"
        return f"attn.{index}" if _ATTENTION.match(part) else f"ffn.{index}"
    return "embed" if any(name.startswith(table) for table in tables) else "head"


def _position(cell: str) -> tuple[int, int, str]:
    kind, _, index = cell.partition(".")
    if not index:
        return (-1, 0, cell) if kind == "embed" else (1 << 30, 0, cell)
    return (int(index), 0 if kind == "attn" else 1, cell)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a live model, from the input upwards."""
    stack: Any = model.get_submodule(_layer_prefix(model).removesuffix("."))
    return list(stack)


def stack_holder(model: nn.Module) -> nn.Module:
    """Return the module that holds the list of layers."""
    return model.get_submodule(_layer_prefix(model).removesuffix(".").rpartition(".")[0])


def first_trained_layer(loaded: LoadedModel) -> int:
    """Return the first layer that the backward pass reaches: their number where nothing but what follows them trains.

    0 where the input tables train, and where something outside the layers trains that is not known to follow them.
    """
    layers = _layer_prefix(loaded.model)
    above = {*loaded.partition.parameters.get("head", ()), *loaded.partition.new_head}
    first = len(layers_of(loaded.model))
    for name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad and name not in above:
            inside = name.removeprefix(layers).partition(".")[0] if name.startswith(layers) else "0"
            first = min(first, int(inside))
    return first


def trained_cells(loaded: LoadedModel) -> tuple[str, ...]:
    """Return the submodules that hold a tensor with requires_grad, adapters included, in order.

    An adapter belongs to the submodule whose module it wraps; what all submodules share belongs to none.
    """
    cells = loaded.partition.parameters
    holder = {name.rpartition(".")[0]: cell for cell, names in cells.items() for name in names}
    own = {name: cell for cell, names in cells.items() for name in names}
    found = set()
    for name, parameter in loaded.model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad or name in loaded.partition.new_head:
            continue
        cell, module = own.get(name), name.rpartition(".")[0]
        while cell is None and module:
            cell, module = holder.get(module), module.rpartition(".")[0]
        if cell is not None:
            found.add(cell)
    return tuple(sorted(found, key=_position))


def layer_linears(loaded: LoadedModel) -> dict[str, str]:
    """Return the linear modules of all layers: full name -> name inside its layer."""
    layers = _layer_prefix(loaded.model)
    kinds = (nn.Linear, transformers.pytorch_utils.Conv1D)
    return {
        name: name.removeprefix(layers).partition(".")[2]
        for name, module in loaded.model.named_modules()
        if name.startswith(layers) and isinstance(module, kinds)
    }


def task_head(model: Any) -> tuple[str, ...]:
    """Return the parameters of a live model's task head: outside its backbone and not its own output layer.

    For models of unknown origin; `load` knows which parameters a checkpoint did not have.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    own = getattr(model, "get_output_embeddings", lambda: None)()
    kept = set() if own is None else {id(parameter) for parameter in own.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) not in kept]
    outside = tuple(name for name in names if not name.startswith(prefix))
    return outside if len(outside) < len(names) else ()  # a bare backbone has no head


def linear_modules(loaded: LoadedModel) -> dict[str, list[str]]:
    """Return submodule -> the linear modules in it, by their names in the live model."""
    cell_of = {name: cell for cell, names in loaded.partition.parameters.items() for name in names}
    found: dict[str, list[str]] = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, (nn.Linear, transformers.pytorch_utils.Conv1D)) and f"{name}.weight" in cell_of:
            found.setdefault(cell_of[f"{name}.weight"], []).append(name)
    return found


def empty_partition(checkpoint: Checkpoint, labels: int | None) -> Partition:
    """Return the partition of a checkpoint without reading its weights (tensors without storage)."""
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
    with torch.device("meta"):
        if checkpoint.kind == "causal":
            model = transformers.AutoModelForCausalLM.from_config(config)
            model.tie_weights()
        else:
            config.num_labels = labels
            model = transformers.AutoModelForSequenceClassification.from_config(config)
    known = _stored_names(checkpoint)
    base = f"{model.base_model_prefix}."
    new = [n for n, _ in model.named_parameters() if n not in known and n.removeprefix(base) not in known]
    return partition(model, new if checkpoint.kind == "encoder" else ())


def _stored_names(checkpoint: Checkpoint) -> set[str]:
    names: set[str] = set()
    for path in checkpoint.folder.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="pt") as stored:
            names.update(stored.keys())
    return names
