"""Blueprints for tests: the paper's own example, and one that leaves nothing untold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cprbench.blueprint.concentration import mass_exponent
from cprbench.blueprint.schema import Blueprint
from cprbench.schema import parse

WEIGHTS = "a1" * 32
#: In partition order.
SIZES = {"embed": 400, "attn.0": 100, "ffn.0": 200, "attn.1": 100, "ffn.1": 200}
NORMS = {"embed": 0.9, "attn.0": 0.5, "ffn.0": 0.2, "attn.1": 0.4, "ffn.1": 0.3}


def paper_example() -> dict[str, Any]:
    """Return appendix A.1 as printed, its comment and its lost braces apart."""

    def layer(name: str, norm: float, alpha: float, gamma: float, k_star: float, bio: float, legal: float) -> dict:
        tags = {"general": 1.0, "bio": bio, "legal": legal}
        return {
            "id": name,
            "gradient_norm": norm,
            "alpha": alpha,
            "gamma": gamma,
            "k_star": k_star,
            "domain_tags": tags,
        }

    return {
        "model_id": "foundation-7b",
        "training_checkpoint": 0.80,
        "layers": [
            layer("attn.0", 0.052, 1.47, 0.60, 0.15, 0.79, 0.63),
            layer("ffn.0", 0.033, 1.12, 0.53, 0.25, 0.68, 0.50),
            layer("attn.1", 0.045, 1.50, 0.60, 0.13, 0.75, 0.80),
        ],
    }


def full_data(
    norms: dict[str, float] | None = None,
    *,
    sizes: dict[str, int] | None = None,
    domains: Sequence[str] = ("general", "bio"),
    model_id: str = "acme/tiny",
    training_checkpoint: float = 1.0,
    weights_sha256: str = WEIGHTS,
    revision: str | None = "main",
    **changes: Any,
) -> dict[str, Any]:
    """Return the JSON of a blueprint that tells everything; every domain but the first has the norms turned round.

    `norms`, `sizes`: by submodule, in partition order. `changes` replace keys at the top.
    """
    norms, sizes = norms or NORMS, sizes or SIZES
    turned = dict(zip(norms, reversed(list(norms.values())), strict=True))

    def of(tag: str, name: str) -> dict[str, Any]:
        norm = (norms if tag == domains[0] else turned)[name]
        interval = {"low": norm * 0.9, "high": norm * 1.1}
        return {"gradient_norm": norm, "gradient_norm_ci": interval, "example_norm": 2 * norm}

    fit = {
        "points": 1000,
        "density_exponent": 1 + 1 / 1.5,
        "xmin": 1e-6,
        "tail_points": 500,
        "ks_distance": 0.01,
        "lognormal_likelihood_ratio": 2.0,
        "lognormal_p": 0.05,
        "verdict": "heavy-tailed",
        "why": "the power law beats exponential and lognormal",
    }
    curve = [[0.0, 0.0], [0.1, 0.5], [1.0, 1.0]]
    layers = [
        {
            "id": name,
            "gradient_norm": norm,
            "alpha": 1.5,
            "gamma": mass_exponent(1.5),
            "k_star": None,
            "k_star_why": "k_star is of the whole model",
            "domain_tags": {tag: 1.0 for tag in domains},
            "parameters": sizes[name],
            "example_norm": 2 * norm,
            "domains": {tag: of(tag, name) for tag in domains},
            "fit": fit,
            "mass_curve": curve,
            "gamma_fit": 0.3,
            "gamma_fit_r_squared": 0.99,
        }
        for name, norm in norms.items()
    ]
    data: dict[str, Any] = {
        "schema": "cprbench.blueprint/1",
        "model_id": model_id,
        "training_checkpoint": training_checkpoint,
        "layers": layers,
        "model": {
            "source": "tiny",
            "revision": revision,
            "weights_sha256": weights_sha256,
            "parameters": sum(sizes.values()),
            "kind": "causal",
        },
        "measurement": {
            "loss": "answer tokens",
            "head": None,
            "warmup_steps": 0,
            "dtype": "float32",
            "batches": 16,
            "batch_size": 32,
        },
        "domains": [
            {
                "tag": tag,
                "task": f"{tag}-task",
                "version": 1,
                "data_sha256": "d0" * 32,
                "split": "validation",
                "examples": 512,
                "max_tokens": 48,
            }
            for tag in domains
        ],
        "concentration": {
            "alpha": 1.5,
            "gamma": mass_exponent(1.5),
            "fit": fit,
            "scalar_mass_curve": curve,
            "pick_curve": curve,
            "gamma_fit": 0.6,
            "gamma_fit_r_squared": 0.97,
        },
        "cost": [
            {
                "resource": "seconds",
                "fixed_cost": 1.0,
                "cost_per_parameter": 4.0,
                "r_squared": 0.99,
                "points": [[0.1, 1.4], [0.5, 3.0], [1.0, 5.0]],
                "source": "counter",
                "k_star": 0.375,
                "condition_holds": True,
            }
        ],
        "step_cost": {
            "forward_seconds": 0.1,
            "backward_seconds_per_layer": 0.05,
            "seconds_per_parameter": 1e-9,
            "batch_size": 32,
            "tokens": 1536,
        },
        "k_star": 0.375,
        "privacy": {"note": "public data"},
        "made": {
            "tool": "cprbench 0.1.0",
            "device_hours": 0.1,
            "energy_kwh": 0.01,
            "memory_gb_hours": 0.2,
            "co2_kg": 0.004,
            "flops": 10**15,
        },
    }
    return {**data, **changes}


def full_blueprint(norms: dict[str, float] | None = None, **changes: Any) -> Blueprint:
    """Return full_data as a Blueprint."""
    return parse(Blueprint, full_data(norms, **changes), "the example")


def save(folder: Path, data: Any, name: str = "blueprint.json") -> Path:
    """Write `data` as plain JSON, whatever it is, and return the path."""
    path = folder / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
