"""Statistics of files about models (blueprints, audits, cross-influence): one model is one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cprbench.blueprint.concentration import DECISIVE_P, share_at
from cprbench.blueprint.schema import Blueprint, Fit, Layer
from cprbench.judge.claims.asking import Ask, UnmeasuredError
from cprbench.judge.statistics import Estimate, mean_difference


def _models(values: Iterable[tuple[str, str, float | None]], what: str) -> Estimate:
    """Return the mean over models from (file, model, value); several files of one model are averaged first.

    Raises UnmeasuredError where there is no file, and where one has no value: leaving it out would be choosing.
    """
    found: dict[str, list[float]] = {}
    for file, model, value in values:
        if value is None or not math.isfinite(value):
            raise UnmeasuredError(f"could not be measured: {file} has no {what}, and means leave nothing out")
        found.setdefault(model, []).append(value)
    if not found:
        raise UnmeasuredError(f"there is no file with {what} here")
    return mean_difference([sum(of) / len(of) for of in found.values()])


def _blueprints(ask: Ask, value: Callable[[Blueprint], float | None], what: str) -> Estimate:
    files = ask.evidence.blueprints.items()
    return _models(((file, b.model.weights_sha256 if b.model else b.model_id, value(b)) for file, b in files), what)


def top_mass(ask: Ask) -> Estimate:
    """Return the share of |gradient| that the top `share` of scalars hold."""
    share = ask.setting("share", 0.1)
    curve = lambda b: share_at(b.concentration.scalar_mass_curve, share) if b.concentration else None  # noqa: E731
    return _blueprints(ask, curve, "curve of scalar mass")


def _power_law(fit: Fit) -> bool:
    """Return whether a tail is heavy and told from a lognormal's, in favour of the power law; undecided is no."""
    ratio, p = fit.lognormal_likelihood_ratio, fit.lognormal_p
    return fit.verdict == "heavy-tailed" and ratio is not None and p is not None and ratio > 0 and p < DECISIVE_P


def power_law_share(ask: Ask) -> Estimate:
    """Return the share of submodules whose |gradient| follows a power law rather than a lognormal (eq. 1)."""

    def share(blueprint: Blueprint) -> float | None:
        fits = [layer.fit for layer in blueprint.layers if layer.fit is not None]
        return sum(map(_power_law, fits)) / len(fits) if fits else None

    return _blueprints(ask, share, "fit of its tails")


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

    return _blueprints(ask, share, "size of its submodules with a middle attention cell that fits")


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

    files = {file: b for file, b in ask.evidence.blueprints.items() if set(domains) <= _domains(b)}  # others are silent
    values = ((file, b.model.weights_sha256 if b.model else b.model_id, lean(b)) for file, b in files.items())
    return _models(values, f"share of late feed-forward cells in domains {domains[0]} and {domains[1]}")


def _domains(blueprint: Blueprint) -> set[str]:
    return {domain for layer in blueprint.layers for domain in layer.domains}


def _documents(
    ask: Ask, schema: str, value: Callable[[Mapping[str, Any]], tuple[str, float | None]], what: str
) -> Estimate:
    found = ((file, d) for file, d in ask.evidence.documents.items() if d.get("schema") == schema)
    return _models(((file, *value(document)) for file, document in found), what)


def fisher_rank_correlation(ask: Ask) -> Estimate:
    """Return Spearman's correlation of gradient norms and Fisher-preconditioned influence (section 4.2)."""

    def spearman(document: Mapping[str, Any]) -> tuple[str, float | None]:
        value = document.get("spearman")
        return str(document.get("model")), value if isinstance(value, float) else None

    return _documents(ask, "cprbench.audit/1", spearman, "rank correlation with Fisher influence")


def power_law_of_examples(ask: Ask) -> Estimate:
    """Return 1 where the tail of J(z) follows a power law rather than a lognormal (eq. 28), else 0, over models."""

    def told(document: Mapping[str, Any]) -> tuple[str, float | None]:
        info = document.get("info")
        try:
            fit = Fit.model_validate(document.get("tail_of_j"))
        except ValidationError:
            return "", None
        return str(info.get("model") if isinstance(info, dict) else None), float(_power_law(fit))

    return _documents(ask, "cprbench.cross/1", told, "fit of J's tail")
