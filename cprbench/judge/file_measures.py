"""Statistics of files about models (blueprints, audits, cross-influence): one model is one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cprbench.blueprint.concentration import share_at
from cprbench.blueprint.schema import Blueprint, Layer
from cprbench.judge.asking import Ask, UnmeasuredError
from cprbench.judge.statistics import Estimate, mean_difference


def _models(values: Iterable[tuple[str, float | None]], what: str) -> Estimate:
    """Return the mean over models; several files of one model are averaged first."""
    found: dict[str, list[float]] = {}
    for model, value in values:
        if value is not None and math.isfinite(value):
            found.setdefault(model, []).append(value)
    if not found:
        raise UnmeasuredError(f"there is no {what} here")
    return mean_difference([sum(of) / len(of) for of in found.values()])


def _blueprints(ask: Ask, value: Callable[[Blueprint], float | None], what: str) -> Estimate:
    files = ask.evidence.blueprints.values()
    return _models(
        ((b.model.weights_sha256 if b.model else b.model_id, value(b)) for b in files), f"blueprint with {what}"
    )


def top_mass(ask: Ask) -> Estimate:
    share = ask.setting("share", 0.1)
    curve = lambda b: share_at(b.concentration.scalar_mass_curve, share) if b.concentration else None  # noqa: E731
    return _blueprints(ask, curve, "a curve of scalar mass")


def power_law_share(ask: Ask) -> Estimate:
    """Return the share of submodules whose |gradient| is heavy-tailed, likelier a power law than lognormal (eq. 1)."""

    def share(blueprint: Blueprint) -> float | None:
        fits = [layer.fit for layer in blueprint.layers if layer.fit is not None and layer.fit.verdict != "undecided"]
        yes = [f for f in fits if f.verdict == "heavy-tailed" and (f.lognormal_likelihood_ratio or 0.0) > 0]
        return len(yes) / len(fits) if fits else None

    return _blueprints(ask, share, "fits of its tails")


def _part(layers: Sequence[Layer], kind: str, third: int) -> list[Layer]:
    """Return the attn or ffn cells of the first (0), middle (1) or last (2) third of the layers."""
    numbered = [(int(tail), layer) for layer in layers if (tail := layer.id.rpartition(".")[2]).isdigit()]
    depth = max((number for number, _ in numbered), default=-1) + 1
    return [
        layer for number, layer in numbered if layer.id.startswith(f"{kind}.") and number * 3 // max(1, depth) == third
    ]


def influence_share(ask: Ask) -> Estimate:
    """Return the share of squared gradient norm that the densest middle attention cells hold, up to `share` of N."""
    limit = ask.setting("share", 0.13)

    def share(blueprint: Blueprint) -> float | None:
        if any(layer.parameters is None for layer in blueprint.layers):
            return None
        total = sum(layer.parameters or 0 for layer in blueprint.layers)
        left, held = limit * total, 0.0
        for layer in sorted(
            _part(blueprint.layers, "attn", 1), key=lambda x: -(x.gradient_norm**2 / (x.parameters or 1))
        ):
            if (layer.parameters or 0) <= left:
                left -= layer.parameters or 0
                held += layer.gradient_norm**2
        whole = math.fsum(layer.gradient_norm**2 for layer in blueprint.layers)
        return held / whole if whole and left < limit * total else None

    return _blueprints(ask, share, "parameters of its submodules, of which a middle attention cell fits")


def domain_lean(ask: Ask) -> Estimate:
    """Return the share of squared norm in late feed-forward cells in `domain` / their share in `reference_domain`."""
    domains = [str(ask.claim.settings.get(n, d)) for n, d in (("domain", "math"), ("reference_domain", "general"))]

    def lean(blueprint: Blueprint) -> float | None:
        shares = []
        for domain in domains:
            norms = {x.id: x.domains[domain].gradient_norm ** 2 for x in blueprint.layers if domain in x.domains}
            late = sum(norms.get(layer.id, 0.0) for layer in _part(blueprint.layers, "ffn", 2))
            shares.append(late / sum(norms.values()) if sum(norms.values()) else None)
        return shares[0] / shares[1] if shares[0] is not None and shares[1] else None

    return _blueprints(ask, lean, f"domains {domains[0]} and {domains[1]}")


def _document(ask: Ask, schema: str, value: Callable[[Mapping[str, Any]], tuple[str, float | None]]) -> Estimate:
    found = [value(document) for document in ask.evidence.documents.values() if document.get("schema") == schema]
    return _models(found, f"document {schema} in a .json file")


def fisher_rank_correlation(ask: Ask) -> Estimate:
    def spearman(document: Mapping[str, Any]) -> tuple[str, float | None]:
        value = document.get("spearman")
        return str(document.get("model")), float(value) if isinstance(value, int | float) else None

    return _document(ask, "cprbench.audit/1", spearman)


def power_law_of_examples(ask: Ask) -> Estimate:
    """Return 1 where J(z) is heavy-tailed and likelier a power law than lognormal (eq. 28), else 0, over models."""

    def verdict(document: Mapping[str, Any]) -> tuple[str, float | None]:
        fit, info = document.get("tail_of_j"), document.get("info")
        model = str(info.get("model") if isinstance(info, dict) else None)
        if not isinstance(fit, dict) or fit.get("verdict") == "undecided":
            return model, None
        ratio = fit.get("lognormal_likelihood_ratio")
        return model, float(fit.get("verdict") == "heavy-tailed" and isinstance(ratio, int | float) and ratio > 0)

    return _document(ask, "cprbench.cross/1", verdict)
