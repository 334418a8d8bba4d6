"""What methods and selections share: frozen dataclasses of settings, built from words, labelled, files pinned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cprbench.errors import SpecError, did_you_mean

#: A setting that names a file has a second one in stored specs, its content's sha256, under this ending.
PIN = "_sha256"
_FINITE = ConfigDict(allow_inf_nan=False)

Made = TypeVar("Made")


def build(kind: type[Made], settings: Mapping[str, Any], room: str) -> Made:
    """Return a `kind` with `settings` over its defaults; raises SpecError for unknown or ill-typed ones."""
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    hints, typed = get_type_hints(kind), {}
    for key, value in settings.items():
        if key not in fields:
            what = "Selection" if room == "selection" else "Method"
            none = f"{what} {kind.name!r} has no settings."  # type: ignore[attr-defined]
            known = did_you_mean(key, fields) if fields else none
            raise SpecError(f"unknown setting {room}.{key}. {known}")
        try:
            typed[key] = TypeAdapter(hints[key], config=_FINITE).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = " or ".join(item["msg"].removeprefix("Input should be ") for item in error.errors())
            raise SpecError(f"{room}.{key} = {value!r}: it should be {wanted}.") from None
    return kind(**typed)


def settings_of(made: Any) -> dict[str, Any]:
    """Return all settings of a method or selection, defaults included."""
    return dataclasses.asdict(made)


def label(made: Any) -> str:
    """Return its name, its headline settings and whatever differs from the defaults."""
    defaults, files = settings_of(type(made)()), getattr(made, "files", ())
    shown = {
        key: value
        for key, value in settings_of(made).items()
        if (key in made.label_settings or value != defaults[key]) and key not in getattr(made, "unused", ())
    }
    return " ".join([made.name, *(f"{k}={_file(v) if k in files else _short(v)}" for k, v in shown.items())])


def _file(path: str) -> str:
    """Return what tells a file from others of its kind: of peft's configs, which are all called alike, the folder."""
    whole = Path(path)
    return whole.resolve().parent.name if whole.name == "adapter_config.json" else whole.stem


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else str(value).lower()  # "memory=8GiB" stays as it was written


def pinned(made: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return (all settings, setting -> path): files by their name and content hash, so that a record holds no path.

    Raises SpecError for a file that cannot be read.
    """
    from cprbench.blueprint.files import sha256_of_file

    settings, paths = settings_of(made), {}
    for name in getattr(made, "files", ()):
        if settings[name]:
            path = Path(settings[name])
            settings |= {name: path.name, f"{name}{PIN}": sha256_of_file(path)}
            paths[name] = str(path.resolve())
    return settings, paths


def unpinned(room: str, settings: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a stored spec with its files at `paths`. Raises SpecError for a file that has changed."""
    from cprbench.blueprint.files import sha256_of_file

    for key, path in paths.items():
        file = f"{room}.{key} = {settings[key]}"  # without its folder: a record names no path of this machine
        try:
            unchanged = sha256_of_file(path) == settings[f"{key}{PIN}"]
        except SpecError:
            raise SpecError(
                f"{file}: was there when the run was planned and cannot be read now. Start again."
            ) from None
        if not unchanged:
            raise SpecError(f"{file}: has changed since the run was planned. Start again.")
    return {key: paths.get(key, value) for key, value in settings.items() if not key.endswith(PIN)}


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which a file counts by its content alone, not by its name."""
    return {key: value for key, value in settings.items() if f"{key}{PIN}" not in settings}
