"""What a blueprint file says: appendix A.1's fields by their names, then where every number comes from.

A file with nothing but the paper's fields validates and is usable; `Blueprint.lacks` says what it cannot tell.
Files keep the paper's words: `alpha` is the rank-size exponent, `gamma` = 1 - alpha/(1 + alpha), `k_star` a
recommended share of parameters (paper, sections 4.1 and 5, appendix A.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from cprbench.schema import Frozen, Sha256, Share

BLUEPRINT_SCHEMA: Literal["cprbench.blueprint/1"] = "cprbench.blueprint/1"
#: The domain whose shares all `domain_tags` are relative to.
GENERAL = "general"
#: What the making of a blueprint is measured in.
COSTS = ("device_hours", "energy_kwh", "memory_gb_hours", "co2_kg", "flops")
#: More submodules than any model has; a file with more is refused before it is looked at.
MAX_LAYERS = 10_000

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0, le=1e100)]  # squares and sums of these stay finite
Count = Annotated[int, Field(ge=0, le=2**63)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,199}$")]
Tag = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
#: (share of the elements, share of the mass that they hold), both rising to 1.
Curve = Annotated[list[tuple[Share, Share]], Field(max_length=200)]


class Interval(Frozen):
    """A 95 % percentile-bootstrap interval over batches."""

    low: NotNegative
    high: NotNegative

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is empty")
        return self


class Norms(Frozen):
    """The gradient of one submodule in one domain, both definitions (NOTES: choices settled).

    `gradient_norm`: median over batches of the norm of the batch-mean gradient. `example_norm`: mean over examples of
    the norm of the example's own gradient.
    """

    gradient_norm: NotNegative
    gradient_norm_ci: Interval | None = None
    example_norm: NotNegative | None = None
    example_norm_ci: Interval | None = None


class Fit(Frozen):
    """How well a power law describes sorted magnitudes |gradient| (paper, eq. 1), by the package `powerlaw`."""

    points: Count
    density_exponent: float | None  # a of p(x) ~ x^-a; alpha = 1/(a - 1)
    xmin: NotNegative | None
    tail_points: Count
    ks_distance: NotNegative | None
    lognormal_likelihood_ratio: float | None  # above 0: the power law is the likelier of the two
    lognormal_p: Share | None
    verdict: Literal["heavy-tailed", "not heavy-tailed", "undecided"]
    why: str


class Layer(Frozen):
    """One submodule; `id` as in the partition of the live model: attn.0, ffn.12, embed, head."""

    id: Id
    gradient_norm: NotNegative
    alpha: Positive | None = None
    gamma: NotNegative | None = None
    k_star: Share | None = None
    domain_tags: dict[Tag, NotNegative] = {}
    parameters: Annotated[int, Field(gt=0, le=2**53)] | None = None
    parameter_names: Annotated[list[str], Field(max_length=10_000)] = []  # of the live model; tied tensors once
    linears: Annotated[list[str], Field(max_length=10_000)] = []  # modules of this submodule that multiply matrices
    example_norm: NotNegative | None = None
    domains: dict[Tag, Norms] = {}
    fit: Fit | None = None
    mass_curve: Curve = []  # share of |gradient| held by the top share of the submodule's scalars
    gamma_fit: NotNegative | None = None  # exponent fitted to mass_curve
    gamma_fit_r_squared: float | None = None
    k_star_why: str | None = None  # why k_star is null


class ModelInfo(Frozen):
    """The model that was measured."""

    source: str
    revision: str | None = None
    weights_sha256: Sha256
    parameters: Count  # N, a new task head excluded
    kind: Literal["encoder", "causal"]
    tokenizer_sha256: Sha256 | None = None


class Measurement(Frozen):
    """How gradients were taken. Norms of another definition, batch size or warm-up are not blended."""

    loss: str
    head: str | None  # how the new head of an encoder was drawn; None: the model has no new head
    warmup_steps: Count
    dtype: Literal["float32", "bfloat16"]
    norm: str = "median over batches of the norm of the batch-mean gradient"
    batches: Count
    batch_size: Count


class DomainInfo(Frozen):
    """The data of one domain."""

    tag: Tag
    task: str
    version: Count
    data_sha256: Sha256
    split: str
    examples: Count
    batches: Count | None = None
    max_tokens: Count


class Concentration(Frozen):
    """The whole model's two curves and their exponents, in the reference domain."""

    alpha: Positive | None = None
    fit: Fit | None = None
    scalar_mass_curve: Curve = []  # all scalars of the model: share of |gradient| by share of scalars
    pick_curve: Curve = []  # whole submodules in pick order: share of squared norm by share of parameters
    gamma: NotNegative | None = None  # 1 - alpha/(1 + alpha)
    gamma_fit: NotNegative | None = None  # of pick_curve: what k_star uses
    gamma_fit_r_squared: float | None = None


class CostFit(Frozen):
    """C(k) = (fixed_cost + cost_per_parameter * k) * N per training step (paper, eq. 10), fitted to measured steps."""

    resource: Literal["seconds", "flops", "memory_bytes"]
    fixed_cost: NotNegative
    cost_per_parameter: NotNegative
    r_squared: float | None
    points: list[tuple[Share, NotNegative]]  # (k, measured cost of one step)
    source: Literal["counter", "sampled", "counted", "modelled"]
    k_star: Share | None = None  # eq. 15 with gamma_fit; None where eq. 16 fails or the fit is poor
    condition_holds: bool | None = None  # eq. 16: gamma_fit < beta/(alpha + beta)
    why: str | None = None  # why k_star is null


class StepCost(Frozen):
    """Measured seconds of one training step by part: what `per-cost` picking asks."""

    forward_seconds: NotNegative
    backward_seconds_per_layer: NotNegative
    seconds_per_parameter: NotNegative
    batch_size: Count
    tokens: Count  # padded positions of that batch


class Privacy(Frozen):
    """What the file says about its data: aggregates only, noise if any, and the guarantee that it buys."""

    aggregates_only: Literal[True] = True
    noise_multiplier: NotNegative | None = None
    clip_norm: Positive | None = None
    epsilon: NotNegative | None = None
    delta: Share | None = None
    accountant: str | None = None
    note: str | None = None


class Making(Frozen):
    """What made the file and what that cost: printed beside every use of it, never billed to its users."""

    tool: str
    device_hours: NotNegative | None = None
    core_hours: NotNegative | None = None
    energy_kwh: NotNegative | None = None
    memory_gb_hours: NotNegative | None = None
    co2_kg: NotNegative | None = None
    flops: Count | None = None
    seconds: NotNegative | None = None
    hardware_class: str | None = None
    packages: dict[str, str] = {}
    why_missing: dict[str, str] = {}  # of resources that were not measured


class Blueprint(Frozen):
    """One model at one checkpoint: its submodules, in partition order."""

    schema_: Annotated[Literal["cprbench.blueprint/1"] | None, Field(alias="schema")] = None
    model_id: Annotated[str, Field(min_length=1, max_length=300)]
    training_checkpoint: Annotated[float, Field(gt=0, le=1)]
    layers: Annotated[list[Layer], Field(min_length=1, max_length=MAX_LAYERS)]
    model: ModelInfo | None = None
    measurement: Measurement | None = None
    domains: list[DomainInfo] = []
    concentration: Concentration | None = None
    cost: list[CostFit] = []
    step_cost: StepCost | None = None
    k_star: Share | None = None
    k_star_why: str | None = None  # for which resource, or why it is null
    privacy: Privacy | None = None
    made: Making | None = None

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _each_layer_once(self) -> Blueprint:
        seen: set[str] = set()
        for layer in self.layers:
            if layer.id in seen:
                raise ValueError(f"submodule {layer.id!r} is listed twice")
            seen.add(layer.id)
        return self

    @property
    def reference(self) -> str | None:
        """The domain that `gradient_norm` of the layers is of: general, else the first one listed."""
        tags = [domain.tag for domain in self.domains]
        return GENERAL if GENERAL in tags or not tags else tags[0]

    def lacks(self) -> list[str]:
        """Return what this file cannot tell, one sentence each; empty for a file that tells everything."""
        total, model, curves = len(self.layers), self.model, self.concentration
        own = [layer.domains.get(self.reference or "") for layer in self.layers]

        def without(what: str, known: Iterable[object]) -> str | None:
            missing = sum(not present for present in known)
            return f"{missing} of {total} submodules have no {what}." if missing else None

        unpaid = [name for name in COSTS if self.made is None or getattr(self.made, name) is None]
        found = (
            None if model else "It does not say which weights were measured (model.weights_sha256).",
            "It does not say which revision was measured (model.revision)." if model and not model.revision else None,
            None if self.measurement else "It does not say how gradients were taken (measurement): no blending.",
            None if self.domains else "It does not say on which data gradients were taken (domains).",
            *(
                f"Domain {d.tag!r}: {d.batches} batches; medians want 16."
                for d in self.domains
                if (d.batches or 16) < 16
            ),
            without("parameters (its size)", (layer.parameters for layer in self.layers)),
            without("gradient_norm_ci (how sure its norm is)", (n and n.gradient_norm_ci for n in own)),
            without("example_norm", (layer.example_norm is not None for layer in self.layers)),
            without("alpha (rank-size exponent)", (layer.alpha for layer in self.layers)),
            without("fit (evidence for its alpha)", (layer.fit for layer in self.layers)),
            without("mass_curve", (layer.mass_curve for layer in self.layers)),
            without("k_star and no reason why", (x.k_star is not None or x.k_star_why for x in self.layers)),
            None if curves and curves.scalar_mass_curve else "It has no curve of scalar mass (concentration).",
            None if curves and curves.pick_curve else "It has no pick curve (concentration): no k follows from it.",
            None if self.cost else "It has no cost model (cost): k_star cannot be recomputed.",
            None if self.step_cost else "It has no measured step (step_cost): picking per cost is not possible.",
            None if self.k_star is not None or self.k_star_why else "It has no k_star and does not say why.",
            None if self.privacy else "It says nothing on the privacy of its data (privacy).",
            f"It does not say what its making cost: {', '.join(unpaid)} (made)." if unpaid else None,
        )
        return [sentence for sentence in found if sentence]
