"""Blueprint files: reading what strangers publish, writing what we publish, and whether a file is of this model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cprbench.blueprint.concentration import mass_exponent
from cprbench.blueprint.schema import BLUEPRINT_SCHEMA, MAX_LAYERS, Blueprint
from cprbench.errors import SpecError, did_you_mean
from cprbench.schema import parse

#: A blueprint of 200 submodules in five domains with all curves takes 3 MB.
MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32
MAX_VALUES = 2_000_000
MAX_TEXT = 10_000
#: Published gammas have two decimals.
GAMMA_TOLERANCE = 0.0051
_NAMED = 5  # as many submodules or mistakes as a message names
_EXPLAINED = 1_000  # as many mistakes as are worth the search for the nearest known key
#: Control characters, direction marks and isolates, zero-width and line separators, lone surrogates: what a terminal
#: or a page would obey or hide instead of showing.
_HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_NUMBERS = re.compile(r"\[\n\s+([^\[\]{}\"]*?)\n\s+\]")  # a raw line break is never inside a JSON string


def read(path: str | Path) -> Blueprint:
    """Return the blueprint in the file at `path`, ours or one with the paper's fields only (appendix A.1).

    A file is untrusted: it is at most MAX_BYTES of UTF-8 JSON, nests at most MAX_DEPTH deep, repeats no key, and holds
    no NaN, no infinity, no hidden character and at most MAX_LAYERS submodules. `gamma` stays as the file says it:
    1 - alpha/(1 + alpha) or, as the paper's examples print it, alpha/(1 + alpha). Raises SpecError otherwise.
    """
    return _blueprint(_text(Path(path)), str(path))


def write(blueprint: Blueprint, path: str | Path) -> None:
    """Write `blueprint` to `path` in one step: the old file or the whole new one is there, never a part.

    The same blueprint gives the same bytes. Raises SpecError for what `read` would refuse, and where no file can be.
    """
    path = Path(path)
    text = _pretty(blueprint.model_dump(mode="json", by_alias=True))
    _blueprint(text, str(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written ({error.strerror}). Choose a folder that exists.") from None
    finally:
        part.unlink(missing_ok=True)


def sha256_of_file(path: str | Path) -> str:
    """Return the sha256 of a blueprint file's bytes, 64 hexadecimal digits; raises SpecError as `read` does."""
    return hashlib.sha256(read_bytes(Path(path))).hexdigest()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a blueprint file, as published in docs/blueprint.schema.json."""
    schema: dict[str, Any] = _untitled(Blueprint.model_json_schema(by_alias=True))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_model(
    blueprint: Blueprint,
    *,
    weights_sha256: str,
    revision: str | None,
    sizes: Mapping[str, int],
    model: str,
    foreign: bool = False,
) -> list[str]:
    """Return what could not be checked of whether `blueprint` is of the loaded model, one sentence each.

    `sizes`: submodule -> parameters of the live model; `model`, `revision`: its label. Raises SpecError for another
    model (other submodules or sizes), and for other weights of the same shape unless `foreign`.
    """
    named = blueprint.model_id
    theirs = {layer.id: layer.parameters for layer in blueprint.layers}
    differences = _differing_names(list(theirs), list(sizes), model)
    differences += _differing_sizes(theirs, sizes, model)
    total = sum(sizes.values())
    if blueprint.model is not None and blueprint.model.parameters != total and not differences:
        differences = [f"it was measured on {blueprint.model.parameters} parameters, {model} has {total}"]
    if differences:
        raise SpecError(
            f"the blueprint of {named!r} is not of {model}: {'; '.join(differences)}. "
            f"Use a blueprint of {model}, or make one: cprbench blueprint create."
        )
    notes = []
    if None in theirs.values():
        notes.append("The blueprint does not state the parameters of every submodule: a model of other sizes passes.")
    if blueprint.model is None:
        notes.append("The blueprint does not say which weights it was measured on: other weights of this shape pass.")
    elif blueprint.model.weights_sha256 != weights_sha256:
        other = (
            f"the blueprint of {named!r} is of a foreign revision: it was measured on weights "
            f"{blueprint.model.weights_sha256[:12]} (revision {blueprint.model.revision or 'not told'}, at "
            f"{blueprint.training_checkpoint:.0%} of training), {model} holds {weights_sha256[:12]} "
            f"(revision {revision or 'not told'})"
        )
        if not foreign:
            raise SpecError(f"{other}. Load what was measured, or pass foreign=true (in a run partial.foreign=true).")
        notes.append(f"Accepted as foreign: {other}.")
    return notes


def _differing_names(theirs: Sequence[str], ours: Sequence[str], model: str) -> list[str]:
    unknown = [name for name in theirs if name not in set(ours)]
    missing = [name for name in ours if name not in set(theirs)]
    found = []
    if unknown:
        hint = did_you_mean(unknown[0], ours)
        near = f" ({hint})" if hint.startswith("Did you mean") else ""  # not the whole list of a large model
        found.append(f"{model} has no {_some(unknown)}{near}")
    if missing:
        found.append(f"the file lacks {_some(missing)}")
    return found


def _differing_sizes(theirs: Mapping[str, int | None], ours: Mapping[str, int], model: str) -> list[str]:
    wrong = [name for name, size in theirs.items() if size is not None and name in ours and size != ours[name]]
    if not wrong:
        return []
    first = wrong[0]
    return [
        f"{_some(wrong)} differ in size ({first}: {theirs[first]} parameters in the file, {ours[first]} in {model})"
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file of at most MAX_BYTES; pipes and devices are refused unread.

    Links are followed first: the hub's cache is made of them.
    """
    try:
        path = path.resolve()
        # O_NONBLOCK: a named pipe must not hang us before its kind is known.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"{path}: cannot be read ({why}). Name an existing file.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SpecError(f"{path}: is not a regular file. Name a file.")
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SpecError(f"{path}: is larger than {MAX_BYTES} bytes, which neither a blueprint nor a scan is.")
    return content


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from None


def _blueprint(text: str, where: str) -> Blueprint:
    data = _parsed(text, where)
    if not isinstance(data, dict):
        raise SpecError(
            f"{where}: holds a {type(data).__name__}. A blueprint is a JSON object with model_id and layers."
        )
    layers = data.get("layers")
    if isinstance(layers, list) and len(layers) > MAX_LAYERS:
        raise SpecError(f"{where}: layers has {len(layers)} entries. A blueprint has at most {MAX_LAYERS} submodules.")
    _inspect(data, where)
    if data.get("schema") not in (None, BLUEPRINT_SCHEMA):
        raise SpecError(
            f"{where}: schema {data['schema']!r:.80} is unknown here; this cprbench reads {BLUEPRINT_SCHEMA!r}. "
            "Use the cprbench that wrote the file, or a newer one."
        )
    blueprint = _validated(data, where)
    if blueprint.schema_ is not None:
        _check_gammas(blueprint, where)
    return blueprint


def _parsed(text: str, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise SpecError(f"{where}: key {key!r:.80} stands twice in one object. Keep the one that is meant.")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise SpecError(_too_deep(where)) from None
    except ValueError as error:
        raise SpecError(f"{where}: is not JSON: {error}. JSON has no comments and no trailing commas.") from None


def _inspect(data: Any, where: str) -> None:
    """Raise SpecError for what JSON allows and a blueprint does not: depth, masses, infinities, hidden characters."""
    stack: list[tuple[Any, Any, int]] = [(data, None, 1)]
    values = 0
    while stack:
        parent, path, depth = stack.pop()
        values += len(parent)
        if values > MAX_VALUES:
            raise SpecError(
                f"{where}: holds more than {MAX_VALUES} values. A blueprint holds aggregates only: is it one?"
            )
        for key, value in parent.items() if isinstance(parent, dict) else enumerate(parent):
            if isinstance(key, str):
                _check_text(key, path, where)
            if isinstance(value, (dict, list)):
                if depth == MAX_DEPTH:
                    raise SpecError(_too_deep(where))
                stack.append((value, (path, key), depth + 1))
            elif isinstance(value, str):
                _check_text(value, (path, key), where)
            elif isinstance(value, float) and not math.isfinite(value):
                place = _place((path, key))
                raise SpecError(f"{where}: {place} is {value}, not a finite number. Write null for what is not known.")


def _check_text(text: str, path: Any, where: str) -> None:
    if len(text) > MAX_TEXT:
        raise SpecError(f"{where}: a text at {_place(path)} has {len(text)} characters. Keep it below {MAX_TEXT}.")
    hidden = _HIDDEN.search(text)
    if hidden:
        raise SpecError(
            f"{where}: a text at {_place(path)} holds the hidden character U+{ord(hidden[0]):04X}. Take it out."
        )


def _too_deep(where: str) -> str:
    return f"{where}: nests deeper than {MAX_DEPTH} levels. A blueprint has five: is it one?"


def _place(path: Any) -> str:
    """Return a linked (parent, key) path as layers.3.gradient_norm."""
    keys: list[str] = []
    while path is not None:
        path, key = path
        keys.append(str(key))
    return ".".join(reversed(keys)) or "the top"


def _validated(data: dict[str, Any], where: str) -> Blueprint:
    cure = "Correct the file or ask its publisher; docs/blueprint.schema.json says what may stand where."
    try:
        return Blueprint.model_validate(data)
    except ValidationError as error:
        mistakes = error.error_count()
        if mistakes > _EXPLAINED:  # the nearest known key of each would take minutes
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise SpecError(f"{where}: {mistakes} mistakes; the first: {place!r:.80}: {first['msg']}. {cure}") from None
    try:
        return parse(Blueprint, data, where)
    except SpecError as error:
        lines = str(error).splitlines()
        more = [f"{where}: and {len(lines) - _NAMED} more mistakes."] if len(lines) > _NAMED else []
        raise SpecError("\n".join([*lines[:_NAMED], *more, cure])) from None


def _check_gammas(blueprint: Blueprint, where: str) -> None:
    """Raise SpecError where gamma is neither the paper's formula of alpha nor its examples' (NOTES, A.1)."""
    pairs = {f"layers.{i} ({layer.id})": layer for i, layer in enumerate(blueprint.layers)}
    for place, noun in {**pairs, "concentration": blueprint.concentration}.items():
        if noun is None or noun.alpha is None or noun.gamma is None:
            continue
        formula = mass_exponent(noun.alpha)
        if min(abs(noun.gamma - formula), abs(noun.gamma - (1 - formula))) > GAMMA_TOLERANCE:
            raise SpecError(
                f"{where}: {place}: gamma {noun.gamma} does not follow from alpha {noun.alpha}. "
                f"Write 1 - alpha/(1 + alpha) = {formula:.4f}."
            )


def _pretty(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]", text) + "\n"


def _untitled(part: Any) -> Any:
    """Return a JSON Schema without the titles that pydantic derives from names."""
    match part:
        case dict():
            return {k: _untitled(v) for k, v in part.items() if not (k == "title" and isinstance(v, str))}
        case list():
            return [_untitled(value) for value in part]
    return part
