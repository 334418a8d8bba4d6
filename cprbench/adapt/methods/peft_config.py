"""What a peft config may say: it is read as a stranger's data, so that what cannot be honest is refused before a run.

Refused are prompts of virtual tokens, which scoring would leave out; initialisations that read data, which nobody would
bill; tuners that want a loop or a loss of their own; values of the wrong shape; patterns that could search for hours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cprbench.adapt.methods.patterns import refuse_pattern
from cprbench.blueprint.files import read_bytes
from cprbench.errors import MethodError, SpecError, did_you_mean

MAX_BYTES = 64 * 2**10
MAX_ENTRIES = 2_000
MAX_DEPTH = 16
MAX_RANK = 65_536
#: What was tried (tests/adapt/test_peft_configs.py): trains in the model's own forward, reloads, scores the same.
TUNERS = (
    "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3",
    "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD",
    "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip
_VIRTUAL = "puts virtual tokens before the prompt, and scoring, which calls the model's own modules, leaves them out"
_PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
_REFUSED = {
    **dict.fromkeys(_PROMPTS, _VIRTUAL),
    "ADALORA": "prunes its ranks from inside a loop of its own and adds a loss; the one loop does neither",
    "ADAPTION_PROMPT": "puts prompts into attention from outside the modules that it is in",
    "POLY": "wants a task's number with every batch",
    "SHADOW": "changes what layers hand on to each other",
    "XLORA": "mixes adapters that were trained before",
}
_READS_DATA = "starts from training data or from requantised weights, which nothing here would measure or bill"
_REFUSED_SETTINGS = {
    "alora_invocation_tokens": "is switched on by tokens that only peft's own forward pass looks for",
    "arrow_config": "mixes adapters that were trained before",
    "kasa_config": "adds a loss that the one loop does not know",
    "layer_replication": "repeats layers, so that the model has other submodules than the one that was inspected",
    "megatron_config": "needs Megatron's layers",
    "monteclora_config": "adds a loss that the one loop does not know",
    "use_asa": "prunes from inside a loop of its own",
}
_DATA_DRIVEN = ("corda", "eva", "loftq", "lora_ga")
#: What a config says of where it came from, and what the run decides: who trains, and the head.
NOT_OURS = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_version", "revision",
    "runtime_config", "task_type",
)  # fmt: skip


def read(path: str) -> dict[str, Any]:
    """Return the config in a file; raises SpecError where it holds none, MethodError as `refuse` does."""
    where = f"peft.config = {path}"
    content = read_bytes(Path(path))
    if len(content) > MAX_BYTES:
        raise SpecError(f"{where}: it is larger than {MAX_BYTES} bytes, which no peft config is. Name another file.")
    try:
        found = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where}: not valid JSON: {error!s:.200}") from None
    if big := [value for value in _values(found, where) if isinstance(value, dict | list) and len(value) > MAX_ENTRIES]:
        raise SpecError(f"{where}: a list or table has {len(big[0])} entries; {MAX_ENTRIES} at most. Write a pattern.")
    refuse(found, where)
    config: dict[str, Any] = found
    return config


def refuse(config: Any, where: str) -> None:
    """Raise for a config that peft is not to see, wherever it came from; `where` begins the message.

    Raises SpecError for what is no peft config, MethodError for tuners and settings that cannot be honest here, for
    values of the wrong shape and for patterns that could search for hours. Reads neither torch nor peft.
    """
    if not isinstance(config, dict) or config.get("peft_type") is None:
        raise SpecError(f'{where}: no peft config: it has no peft_type, such as "LORA".')
    if any(isinstance(value, float) and not math.isfinite(value) for value in _values(config, where)):
        raise SpecError(f"{where}: a number in it is not finite. Correct it.")
    if odd := [key for key in config if not re.fullmatch(r"\w{1,80}", key, re.ASCII)]:
        raise SpecError(f"{where}: {odd[0]!r:.80} is no setting of peft. Leave it out.")
    _refuse_tuner(config, where)
    _refuse_shapes(config, where)
    for key, pattern in _patterns(config):
        refuse_pattern(pattern, f"{where}: {key}")


def names_in(value: str | list[str] | None) -> list[str]:
    """Return the names that a setting lists; one that is written without a list is a list of one."""
    return [value] if isinstance(value, str) else value or []


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _values(config: Any, where: str) -> list[Any]:
    """Return a config and all that is in it; raises SpecError where it nests too deep for a message to show it."""
    found, level = [], [config]
    for _ in range(MAX_DEPTH):
        found += level
        level = [i for v in level if isinstance(v, dict | list) for i in (v.values() if isinstance(v, dict) else v)]
    if level:
        raise SpecError(f"{where}: it nests deeper than {MAX_DEPTH}, which no peft config does. Name another file.")
    return found


def _refuse_tuner(config: Mapping[str, Any], where: str) -> None:
    kind = config["peft_type"]
    if not isinstance(kind, str):
        raise SpecError(f'{where}: peft_type = {kind!r:.80} has to be a word, such as "LORA". Correct it.')
    if kind in _REFUSED:
        raise MethodError(f"{where}: {kind} {_REFUSED[kind]}. Use a tuner that sits in modules, such as LORA or IA3.")
    if kind not in TUNERS:
        raise MethodError(f"{where}: peft_type {kind!r:.80} has not been tried here. {did_you_mean(kind, TUNERS)}")
    for key, why in _REFUSED_SETTINGS.items():
        if config.get(key):
            raise MethodError(f"{where}: {key} {why}. Leave it out.")
    for key, value in config.items():
        if key.startswith("init_") and isinstance(value, str) and value.lower() in _DATA_DRIVEN:
            raise MethodError(f'{where}: {key} = "{value}" {_READS_DATA}. Use true, "gaussian" or "pissa".')


def _refuse_shapes(config: Mapping[str, Any], where: str) -> None:
    wrong = [(key, wanted) for keys, fits, wanted in _SHAPES for key in keys
             if config.get(key) is not None and not fits(config[key])]  # fmt: skip
    least = 0 if config["peft_type"] == "OFT" else 1  # there 0 leaves it to the size of a block
    told = "r" in config and (config["r"] is not None or config["peft_type"] != "SUPERTUNING")
    if told and not _whole(config["r"], least, MAX_RANK):
        wrong.append(("r", f"a whole number from {least} to {MAX_RANK}"))
    if wrong:
        key, wanted = wrong[0]
        raise MethodError(f"{where}: {key} = {config[key]!r:.80} has to be {wanted}. Correct it or leave it out.")


def _whole(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_names(value: Any) -> bool:
    return all(isinstance(name, str) and name for name in (value if isinstance(value, list) else [value]))


def _table(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(inner) for inner in value.values())


_NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")
_RANKS = ("rank_pattern", "target_svd_config")
_COUNTS = ("block_size_pattern", "n_frequency_pattern")
_FACTORS = ("alpha_pattern", "lambda_pattern")
#: settings -> whether a value other than null has their shape, and that shape in words.
_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_NAMES, _is_names, "a pattern or a list of names"),
    (("modules_to_save", "target_parameters"), _is_names, "a list of names"),
    # a rank below 1 is the share of a matrix that OSF takes
    (_RANKS, _table(lambda rank: _whole(rank, 1, MAX_RANK) or (isinstance(rank, float) and 0 < rank <= 1)),
     f"a table of whole numbers from 1 to {MAX_RANK}"),
    (_COUNTS, _table(lambda count: _whole(count, 1)), "a table of whole numbers above 0"),
    (_FACTORS, _table(_positive), "a table of numbers above 0"),
)  # fmt: skip


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield setting -> what peft reads as a regular expression in it: texts, and the keys of tables."""
    for key in _NAMES:
        value = config.get(key)
        if isinstance(value, str):
            yield key, value
        elif key == "layers_pattern":
            yield from ((key, name) for name in value or ())
    for key in (*_RANKS, *_COUNTS, *_FACTORS):
        yield from ((key, name) for name in config.get(key) or ())
