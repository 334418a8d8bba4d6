"""A model's config alone: where it is found, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.configs import config_of
from cprbench.errors import CprbenchError, ModelError, OfflineError
from tests.conftest import ROOT
from tests.plans.test_parameters import LLAMA_7B


def test_a_config_is_found_by_its_file_its_folder_and_an_alias() -> None:
    folder = ROOT / "tests/configs/llama-2-7b"
    for source in (folder, folder / "config.json"):
        found = config_of(str(source), offline=True)
        assert (found.label, found.kind) == ("llama-2-7b", "causal")
        assert found.config == LLAMA_7B
    alias = config_of("minilm", offline=False)
    assert (alias.label, alias.kind, alias.config["num_hidden_layers"]) == ("all-MiniLM-L6-v2", "encoder", 6)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("minilmm", ModelError, "Did you mean 'minilm'"),
        ("nowhere/config.json", ModelError, "no readable config"),
        ("org/name", OfflineError, "--offline"),
    ],
)
def test_a_model_that_is_not_there_says_what_to_do(
    source: str, error: type[CprbenchError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error, match=says):
        config_of(source, offline=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "a table of settings, found list"),
        ("[" * 100_000, "no readable config"),
        ('{"architectures": 5}', r'architectures is 5; it is a list of names, such as \["BertModel"\]'),
        ('{"architectures": [5]}', r"architectures is \[5\]"),
        ('{"architectures": "LlamaForCausalLM"}', "architectures is 'LlamaForCausalLM'"),
        ('{"is_encoder_decoder": true}', "encoder-decoder models are not supported"),
    ],
    ids=["a list", "deep", "a number", "a list of numbers", "a word", "encoder-decoder"],
)
def test_a_config_that_is_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    for reads in (config_of, resolve):  # a plan and a run alike
        with pytest.raises(ModelError, match=says):
            reads(str(tmp_path), offline=True)


def test_a_quantised_alias_that_nobody_has_converted_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cprbench.adapt import configs

    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(configs, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(configs, "fetch_package", lambda *args, **kwargs: tmp_path)
    monkeypatch.setattr(configs, "extract_folder", lambda *args: tmp_path)
    with pytest.raises(ModelError, match="cprbench run TASK --model smollm2-135m"):
        config_of("smollm2-135m", offline=True)
