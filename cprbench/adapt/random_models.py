"""Models without weights: a config and a tokenizer, from which every block draws weights of its own (`random:…`).

Stage 1 of the paper (section 3) begins before there is a checkpoint. What identifies such a model is what is known
before the draw: its config, its tokenizer and that it is drawn; the draw itself follows from the block's seed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from cprbench.adapt.packages import cache_folder, file_sha256
from cprbench.errors import ModelError, did_you_mean
from cprbench.schema import sha256_of

PREFIX = "random:"
#: The built-in models by name, each with its line for `cprbench list models`.
BUILT_IN = {"llama-tiny": "Llama of 6 layers, 1.2M parameters, one token per byte; weights drawn anew in every block"}
_TEXT_START = 256  # the one token that is no byte: it starts, ends and pads
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _TEXT_START + 1,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "bos_token_id": _TEXT_START,
    "eos_token_id": _TEXT_START,
    "pad_token_id": _TEXT_START,
}
#: Files that say how text becomes ids, as the tokenizers of transformers name them. The order is part of every hash.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*.json",  # of versions of their own
    "vocab*",
    "*.model",  # of sentencepiece or tiktoken
    "*.spm",
    "*.tiktoken",
    "*.codes",
    "tekken.json",
    "emoji.json",
)


def folder_of(source: str) -> Path:
    """Return the folder with the config.json and the tokenizer of `source` (random:NAME or random:FOLDER).

    Raises ModelError where there is none.
    """
    name = source.removeprefix(PREFIX)
    if name in BUILT_IN:
        return _built_in(name)
    folder = Path(name)
    if not _tokenizer_files(folder):
        raise ModelError(
            f"unknown model {source!r}: neither built in nor a folder with a config.json and a tokenizer. "
            f"{did_you_mean(source, [PREFIX + known for known in BUILT_IN])}"
        )
    return folder


def identity(folder: Path) -> str:
    """Return what stands for the hash of the weights: the same for all blocks, though each draws its own."""
    return sha256_of(["random initialisation", file_sha256(folder / "config.json"), tokenizer_sha256(folder)])


def tokenizer_sha256(folder: Path) -> str:
    """Return the hash of the files that say how text becomes ids, by name and content."""
    digest = hashlib.sha256()
    for file in _tokenizer_files(folder):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _tokenizer_files(folder: Path) -> list[Path]:
    found = (file for pattern in _TOKENIZER_FILES for file in sorted(folder.glob(pattern)) if file.is_file())
    return list(dict.fromkeys(found))


def _built_in(name: str) -> Path:
    files = {"config.json": _CONFIG, "tokenizer.json": _byte_level(), "tokenizer_config.json": _TOKENIZER_CONFIG}
    target = cache_folder() / "models" / f"{name}-{sha256_of(files)[:16]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fresh = Path(scratch) / "model"
        fresh.mkdir()
        for file, content in files.items():
            (fresh / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        try:
            fresh.rename(target)
        except OSError:  # another process was first; its copy has the same bytes
            if not target.is_dir():
                raise
    return target


_START_WORD = "<|text|>"
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{role: _START_WORD for role in ("bos_token", "eos_token", "pad_token")},
}


def _byte_level() -> dict[str, Any]:
    """Return a tokenizer of 256 bytes without merges, in the form of the library `tokenizers`: id = byte."""
    # Byte-level tokenizers write a byte that cannot be seen as a letter from 256 upwards, in order of bytes.
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = iter(range(256, 512))
    letters = [chr(byte if byte in seen else next(unseen)) for byte in range(256)]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    word = {"id": _TEXT_START, "content": _START_WORD, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**word, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": bytes_only,
        "post_processor": None,
        "decoder": bytes_only,
        "model": {"type": "BPE", "vocab": {letter: byte for byte, letter in enumerate(letters)}, "merges": []},
    }
