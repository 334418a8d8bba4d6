"""What was measured of a model, put into the form of a blueprint file: curves, fits, intervals, recommended shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cprbench.adapt import models
from cprbench.adapt.checkpoints import Checkpoint
from cprbench.adapt.gradients import privacy
from cprbench.adapt.gradients.measure import Measured
from cprbench.adapt.models import LoadedModel
from cprbench.adapt.objectives import Item, Objective
from cprbench.adapt.random_models import PREFIX, tokenizer_sha256
from cprbench.blueprint import concentration, picking
from cprbench.spec import TrainingSpec, stream_seed

_NO_COST = "what a step costs by how much trains was not measured"


@dataclass(frozen=True)
class Domain:
    """One domain, measured: norms by submodule, with the model and the examples that they came from."""

    tag: str
    loaded: LoadedModel
    objective: Objective
    recipe: TrainingSpec
    batches: list[list[Item]]
    pool: int  # examples that they were taken from
    info: dict[str, Any]
    rows: list[dict[str, float]]  # per batch: submodule -> norm of the batch-mean gradient
    example_norm: dict[str, float]
    measured: Measured | None  # None where noise was asked for: nothing per example leaves

    def norm(self, cell: str) -> float:
        """Return the median over batches."""
        return median(row[cell] for row in self.rows)

    def holding(self, measured: Measured) -> Domain:
        """Return this domain with what was measured of it."""
        means = dict(zip(self.loaded.partition.sizes, measured.example_norms.mean(0).tolist(), strict=True))
        return replace(self, rows=measured.batch_norms, example_norm=means, measured=measured)


@dataclass(frozen=True)
class Composer:
    """Everything a file is made of. `job`: what was asked for; `reference`: whose norms `gradient_norm` are."""

    job: Mapping[str, Any]
    checkpoint: Checkpoint
    domains: Sequence[Domain]
    reference: Domain
    warmup_steps: int
    precision: str

    def file(self, costs: list[dict[str, Any]], steps: dict[str, Any] | None) -> dict[str, Any]:
        """Return the file's JSON. `costs`: resource -> (k, cost) points of eq. 10; `steps`: the parts of a step.

        Without them it has no k_star, and says why.
        """
        checkpoint, domains, reference = self.checkpoint, self.domains, self.reference
        partition = reference.loaded.partition
        norms = {cell: reference.norm(cell) for cell in partition.sizes}
        overall = _concentration(reference, norms)
        for cost in costs:
            _finish_cost(cost, overall, partition.total)
        # The first resource whose cost is a line in k, so that eq. 15 applies at all; memory is held, not spent.
        order = [cost for name in ("flops", "seconds") for cost in costs if cost["resource"] == name]
        poor = order[0] if order else {"k_star": None, "why": _NO_COST}
        chosen = next((c for c in order if (c["r_squared"] or 0) >= concentration.POOR_FIT), poor)
        shares = {domain.tag: _shares(domain) for domain in domains}
        linears = models.linear_modules(reference.loaded)
        layers = [self._layer(cell, shares, linears.get(cell, []), chosen) for cell in partition.sizes]
        warmup = self.warmup_steps
        head = "N(0, initializer_range) from the block's stream, then trained alone" if warmup else "as drawn"
        return {
            "schema": "cprbench.blueprint/1",
            "model_id": checkpoint.label,
            "training_checkpoint": self.job["checkpoint"],
            "layers": layers,
            "model": {
                "source": _public(checkpoint.source),
                "revision": checkpoint.revision,
                "weights_sha256": checkpoint.weights_sha256,
                "parameters": partition.total,
                "kind": checkpoint.kind,
                "tokenizer_sha256": tokenizer_sha256(checkpoint.folder),
            },
            "measurement": {
                "loss": "mean over a batch of each example's NLL of its answer",
                "head": head if partition.new_head else None,
                "warmup_steps": warmup,
                "dtype": "bfloat16" if self.precision == "bf16" else "float32",
                "batches": reference.info["batches"],
                "batch_size": self.job["batch_size"],
            },
            "domains": [domain.info for domain in domains],
            "concentration": overall,
            "cost": costs,
            "step_cost": steps,
            "k_star": chosen["k_star"],
            "k_star_why": chosen["why"] or f"eq. 15 for {chosen['resource']}",
            "privacy": self._privacy(),
        }

    def _layer(
        self,
        cell: str,
        shares: Mapping[str, Mapping[str, float]],
        linears: Sequence[str],
        cost: Mapping[str, Any],
    ) -> dict[str, Any]:
        reference, partition = self.reference, self.reference.loaded.partition
        base = shares[reference.tag][cell]
        layer: dict[str, Any] = {
            "id": cell,
            "gradient_norm": reference.norm(cell),
            "example_norm": reference.example_norm[cell],
            "parameters": partition.sizes[cell],
            "parameter_names": list(partition.parameters[cell]),
            "linears": list(linears),
            "domain_tags": {tag: found[cell] / base for tag, found in shares.items()} if base > 0 else {},
            "domains": {domain.tag: _norms(domain, cell) for domain in self.domains},
        }
        if reference.measured is None:
            return layer | {"k_star_why": "no curve of single scalars is released under noise"}
        magnitudes = reference.measured.magnitudes
        curve = concentration.mass_curve_of_histogram(*magnitudes.ordered([cell]))
        gamma_fit, r_squared = concentration.fit_exponent(curve)
        layer |= _tail(magnitudes.sample(cell), cell)
        layer |= {"mass_curve": curve, "gamma_fit": gamma_fit, "gamma_fit_r_squared": r_squared}
        layer["k_star"], layer["k_star_why"], _ = _optimum(gamma_fit, r_squared, cost)
        return layer

    def _privacy(self) -> dict[str, Any]:
        sigma = self.job["noise_multiplier"]
        if not sigma:
            return {
                "aggregates_only": True,
                "note": "no noise, so no formal guarantee",
            }
        return {
            "aggregates_only": True,
            "noise_multiplier": sigma,
            "clip_norm": self.job["clip_norm"],
            "epsilon": privacy.epsilon(sigma, self.job["delta"], privacy.MECHANISMS * len(self.domains)),
            "delta": self.job["delta"],
            "accountant": "dp_accounting.pld.PLDAccountant",
            "note": "add or remove one example, which joins a batch by its own hash; heads stay as drawn. Not covered: "
            "hash, size and lengths of the data, which the costs tell too",
        }


def _concentration(domain: Domain, norms: Mapping[str, float]) -> dict[str, Any]:
    """Return the two curves of the whole model, with their exponents (NOTES: choices settled)."""
    sizes = domain.loaded.partition.sizes
    pick_curve = concentration.pick_curve(picking.rank(norms, sizes, "density"), norms, sizes)
    gamma_fit, r_squared = concentration.fit_exponent(pick_curve)
    found: dict[str, Any] = {
        "pick_curve": pick_curve,
        "gamma_fit": gamma_fit,
        "gamma_fit_r_squared": r_squared,
    }
    if domain.measured is not None:
        magnitudes = domain.measured.magnitudes
        found["scalar_mass_curve"] = concentration.mass_curve_of_histogram(*magnitudes.ordered(list(sizes)))
        total = sum(sizes.values())
        generator = torch.Generator().manual_seed(stream_seed(0, "tail/draw"))
        drawn = []
        for cell, size in sizes.items():  # each submodule by its share of scalars, from all batches alike
            values = magnitudes.sample(cell)
            order = torch.randperm(len(values), generator=generator)
            drawn.append(values[order[: max(1, 100_000 * size // total)]])
        found |= _tail(torch.cat(drawn), "model")
    return found


def _shares(domain: Domain) -> dict[str, float]:
    squared = {cell: domain.norm(cell) ** 2 for cell in domain.loaded.partition.sizes}
    total = math.fsum(squared.values())
    return {cell: value / total if total else 0.0 for cell, value in squared.items()}


def _norms(domain: Domain, cell: str) -> dict[str, Any]:
    seed = stream_seed(0, f"bootstrap/{domain.tag}/{cell}")
    batches = concentration.bootstrap_ci([row[cell] for row in domain.rows], "median", seed)
    examples = None
    if domain.measured is not None:
        column = list(domain.loaded.partition.sizes).index(cell)
        size = len(domain.measured.example_norms) // len(domain.rows)
        means = [chunk[:, column].mean().item() for chunk in torch.split(domain.measured.example_norms, size)]
        examples = concentration.bootstrap_ci(means, "mean", seed)
    return {
        "gradient_norm": domain.norm(cell),
        "gradient_norm_ci": None if batches is None else batches.model_dump(),
        "example_norm": domain.example_norm[cell],
        "example_norm_ci": None if examples is None else examples.model_dump(),
    }


def _tail(values: torch.Tensor, what: str) -> dict[str, Any]:
    """Return alpha, gamma by the text formula, and the fit's diagnostics."""
    alpha, fit = concentration.fit_tail(values.double().numpy(), stream_seed(0, f"tail/{what}"))
    usable = alpha is not None and alpha > 0
    return {
        "alpha": alpha if usable else None,
        "gamma": concentration.mass_exponent(alpha) if alpha is not None and usable else None,
        "fit": fit.model_dump(),
    }


def _optimum(
    gamma_fit: float | None, r_squared: float | None, cost: Mapping[str, Any]
) -> tuple[float | None, str | None, bool | None]:
    """Return (k_star, why it is null, whether eq. 16 holds)."""
    if gamma_fit is None or r_squared is None or r_squared < concentration.POOR_FIT:
        told = "none" if r_squared is None else f"{r_squared:.2f}"
        return None, f"the curve is no power of the share (R^2 {told}, wanted {concentration.POOR_FIT})", None
    if not 0 < gamma_fit < 1:
        return None, f"the fitted exponent {gamma_fit:.2f} is outside (0, 1), which eq. 15 needs", None
    if "r_squared" not in cost:
        return None, _NO_COST, None
    line = cost["r_squared"]
    if line is not None and line < concentration.POOR_FIT:
        return (
            None,
            f"the {cost['resource']} of a step are no line in k (R^2 {line:.2f}, wanted {concentration.POOR_FIT})",
            None,
        )
    best = concentration.best_share(gamma_fit, cost["fixed_cost"], cost["cost_per_parameter"])
    return best.k, best.why, best.holds


def _finish_cost(cost: dict[str, Any], overall: Mapping[str, Any], total: int) -> None:
    line = concentration.fit_cost(cost["points"], total)
    cost |= {
        "fixed_cost": line.fixed_cost,
        "cost_per_parameter": line.cost_per_parameter,
        "r_squared": line.r_squared,
    }
    found = _optimum(overall["gamma_fit"], overall["gamma_fit_r_squared"], cost)
    cost["k_star"], cost["why"], cost["condition_holds"] = found


def _public(source: str) -> str:
    """Return a model's source without the folders of this machine."""
    name = Path(source.removeprefix(PREFIX))
    return PREFIX * source.startswith(PREFIX) + name.name if name.exists() else source
