"""Blueprints of a whole model on real data: valid, and the same ranks again. Minutes, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cprbench.blueprint import files
from tests.conftest import ROOT


def cprbench(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "cprbench", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_blueprint_of_minilm_in_two_domains_is_valid_and_its_ranks_repeat(real_data: Path, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    domains = ["--domain", "general=movie-snippets", "--domain", "bio=pubmedqa"]
    for path in paths:
        cprbench("blueprint", "create", "minilm", *domains, "--data", str(real_data), "--out", path)
    lines = cprbench("blueprint", "validate", *paths, "--model", "minilm", "--data", str(real_data)).splitlines()
    assert [line for line in lines if not line.partition(": ")[2].startswith("lacks")] == [f"{p}: valid" for p in paths]
    found = json.loads(cprbench("blueprint", "compare", *paths, "--json"))
    assert found["verdict"] == "same pattern"
    assert found["overlap"] == 1.0
    assert {"general", "bio"} == set(found["domains"])
    assert min(found["correlation"], *found["domains"].values()) >= 0.99
    first, second = (files.read(path) for path in paths)
    assert [layer.id for layer in first.layers] == [layer.id for layer in second.layers]
    assert first.model == second.model
    assert first.domains == second.domains


def test_a_blueprint_of_a_causal_model_with_tied_tables_repeats_its_ranks(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    few = ["--batches", "4", "--batch-size", "8"]
    for path in paths:
        cprbench("blueprint", "create", "smollm2-135m", "--domain", "general=movie-snippets", *few, "--out", path)
    found = json.loads(cprbench("blueprint", "compare", *paths, "--json"))
    assert found["verdict"] == "same pattern" and found["overlap"] == 1.0 and found["correlation"] >= 0.99
    blueprint = files.read(paths[0])
    assert blueprint.measurement is not None and blueprint.measurement.head is None
    assert [layer.id for layer in blueprint.layers][:3] == ["embed", "attn.0", "ffn.0"] and len(blueprint.layers) == 62
