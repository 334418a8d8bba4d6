"""What all nouns share: frozen, unknown keys refused with the nearest known one, canonical JSON and its hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cprbench.errors import SpecError, did_you_mean

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=2**63)]


#: So many things that are wrong with one file are told: a stranger's file may hold a hundred thousand.
_TOLD = 20
#: Sums, squares and means of what is below this stay finite.
MOST = 1e100


def finite(value: Any) -> Any:
    """Return `value` when every number in it is a finite float, or a whole number that has one.

    Raises ValueError for NaN, infinity and whole numbers beyond MOST.
    """
    match value:
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        case int() if abs(value) > MOST:  # it has no float
            raise ValueError(f"a number is beyond {MOST:g}")
        case dict():
            for part in value.values():
                finite(part)
        case list() | tuple():
            for part in value:
                finite(part)
    return value


Finite = Annotated[float, Field(allow_inf_nan=False, ge=-MOST, le=MOST)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
Table = Annotated[dict[str, Any], AfterValidator(finite)]  # free keys; numbers are finite all the same


class Frozen(BaseModel):
    """Base of all nouns: immutable, unknown keys refused, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


Noun = TypeVar("Noun", bound=BaseModel)


def parse(noun: type[Noun], data: Mapping[str, Any], where: str) -> Noun:
    """Return `data` as a `noun`.

    Raises SpecError that names the file, the key, the value and the nearest known key.
    """
    try:
        return noun.model_validate(data)
    except ValidationError as error:
        wrong = error.errors()
        told = [_explain(noun, item, where) for item in wrong[:_TOLD]]
        told += [f"{where}: and {len(wrong) - _TOLD} more."] if len(wrong) > _TOLD else []
        raise SpecError("\n".join(told)) from None


def _explain(noun: type[BaseModel], item: Any, where: str) -> str:
    path = ".".join(str(part) for part in item["loc"] if part not in ("cprbench", "external loop"))
    if item["type"] == "extra_forbidden":
        known = _known_keys(noun, item["loc"][:-1])
        return f"{where}: unknown key {path!r}. {did_you_mean(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{where}: {path} is missing. Add it."
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {path or noun.__name__}: {message} (found {item['input']!r:.80})"


def _known_keys(noun: Any, path: tuple[Any, ...]) -> list[str]:
    """Return the field names at `path` inside `noun`; union tags and list indices are stepped over."""
    found = [noun]
    for part in path:
        step: list[Any] = []
        for model in found:
            field = getattr(model, "model_fields", {}).get(part)
            step += _models_in(field.annotation) if field else [model]
        found = [m for m in step if _tag(m) == part] or step
    return sorted({name for model in found for name in getattr(model, "model_fields", {})})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _tag(model: Any) -> str | None:
    kind = getattr(model, "model_fields", {}).get("kind")
    tags = getattr(kind.annotation, "__args__", ()) if kind is not None else ()
    return tags[0] if tags else None


def canonical_json(data: Any) -> str:
    """Return `data` as JSON with sorted keys and no spaces; NaN and infinity raise ValueError."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(data: Any) -> str:
    """Return the sha256 of the canonical JSON of `data`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
