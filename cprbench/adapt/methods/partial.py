"""partial: the submodules of largest gradient norm train, up to a share k of all parameters (paper, Algorithm 1).

Norms come from a published blueprint, from training batches (at the warmed head where the head is new), or from both,
blended. What is measured here is billed; a blueprint that somebody published costs its local part only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.blueprint import drift, files, picking, signals
from cprbench.blueprint.budget import Budget, pick_within
from cprbench.blueprint.picking import Picked
from cprbench.blueprint.schema import Blueprint, Measurement
from cprbench.errors import MethodError

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel
    from cprbench.blueprint.schema import StepCost

#: Bytes that training a parameter takes beyond holding it: its gradient and AdamW's two moments, all float32.
BYTES_PER_PARAMETER = 12


@dataclass(frozen=True)
class Chosen:
    """A set, the norms that it was picked by (none where everything was), and what the record keeps of both."""

    submodules: tuple[str, ...]
    norms: Mapping[str, float]
    notes: dict[str, Any]
    k_asked: float | None
    k_reached: float


@dataclass(frozen=True)
class Partial:
    """A set of submodules by rank of gradient norm.

    `k`: share of all parameters, or "blueprint" for the file's own k_star. `embed`: whether the input tables may be
    taken. `pick`: the order (blueprint/picking.py). `blueprint`: a file; `blend_weight`: its part in the blend, 1 for
    no local measurement at all. `domain`, `uncertainty`: which norms of the file (blueprint/signals.py). `budget`:
    "memory=8GiB,time=0.5" in place of k. Rank correlation with local norms below `drift_fallback` falls back to
    whole layers, below `drift_local_only` to local norms alone. `foreign`: accept a blueprint of other weights.
    """

    k: float | Literal["blueprint"] = 0.15
    embed: bool = False
    pick: Literal["norm", "density", "per-parameter", "per-cost"] = "norm"
    granularity: Literal["submodule", "layer"] = "submodule"
    blueprint: str = ""
    blend_weight: float = 0.5
    domain: str = ""
    uncertainty: Literal["ignore", "shrink"] = "ignore"
    budget: str = ""
    drift_fallback: float = 0.5
    drift_local_only: float = 0.2
    foreign: bool = False

    name: ClassVar[str] = "partial"
    learning_rates: ClassVar[Mapping[str, float]] = {"encoder": 2e-4, "causal": 5e-5}
    label_settings: ClassVar[tuple[str, ...]] = ("k",)
    files: ClassVar[tuple[str, ...]] = ("blueprint",)

    @property
    def unused(self) -> tuple[str, ...]:
        """A budget says how much; then k says nothing, and the arm's name leaves it out."""
        return ("k",) if self.budget else ()

    @property
    def chooses(self) -> bool:
        """Everything at once (k = 1 with embed) needs no choice, so none is paid for."""
        return bool(self.budget) or not (self.k == 1 and self.embed)

    def check(self, target: Target) -> None:
        """Refuse settings that exclude each other, a k that cannot be filled, and a blueprint of another model."""
        if not self.blueprint and (self.domain or self.uncertainty != "ignore" or self.k == "blueprint"):
            raise MethodError(
                f"{self.name}.domain, {self.name}.uncertainty and k=blueprint ask a file: set {self.name}.blueprint."
            )
        if not 0 <= self.drift_local_only <= self.drift_fallback <= 1:
            raise MethodError(
                f"{self.name}.drift_local_only = {self.drift_local_only}, drift_fallback = {self.drift_fallback}: "
                "0 <= local_only <= fallback <= 1."
            )
        if self.budget:
            Budget.parse(self.budget)
            if self.pick != "norm" or self.granularity != "submodule":
                raise MethodError(
                    f"{self.name}.budget picks by squared norm: leave out {self.name}.pick and granularity."
                )
        blueprint = self._read()
        if blueprint is not None:
            self._measured_alike(blueprint, target, self._notes_on(blueprint, target))
            self._published(blueprint)
            signals.blend(dict.fromkeys(target.sizes, 1.0), dict.fromkeys(target.sizes, 1.0), self.blend_weight)
        if not self.budget:
            picking.check(target.sizes, target.total, self._share(blueprint), embed=self.embed)

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with its set training; nothing below its lowest submodule gets a backward pass."""
        chosen = self.choose(loaded, context)
        loaded.train_only(chosen.submodules)
        return Prepared(loaded.model, chosen.submodules, chosen.notes, chosen.k_asked, chosen.k_reached)

    def choose(self, loaded: LoadedModel, context: Context) -> Chosen:
        """Return the set of a loaded model; what is measured for it is billed."""
        sizes, total = loaded.partition.sizes, loaded.partition.total
        if not self.chooses:
            return Chosen(tuple(sizes), {}, {}, 1.0, 1.0)
        blueprint = self._read()
        norms, granularity, notes = self._signal(blueprint, context)
        budget = Budget.parse(self.budget) if self.budget else None
        cost = None
        if self.pick == "per-cost" or (budget is not None and budget.time is not None):
            cost = self._cost(blueprint, context)
            notes["step_cost"] = cost.model_dump()
        if budget is not None:
            if budget.memory_bytes is not None and self.blend_weight == 1 and blueprint is not None:
                context.measure_step()  # nothing has run here yet, so nothing has shown what activations take
            notes["memory_bytes"] = context.memory_bytes()
            k_asked, picked = None, self._within(norms, sizes, granularity, budget, cost, notes["memory_bytes"])
        else:
            k_asked = self._share(blueprint)
            picked = picking.pick(
                norms, sizes, total, k_asked, by=self.pick, embed=self.embed, cost=cost, granularity=granularity
            )
        return Chosen(picked.submodules, norms, notes, k_asked, picked.k_reached)

    def _signal(
        self, blueprint: Blueprint | None, context: Context
    ) -> tuple[dict[str, float], Literal["submodule", "layer"], dict[str, Any]]:
        """Return the norms to pick by, the granularity to pick at, and what the record says of both."""
        if blueprint is None:
            local = context.measure_norms()
            return local, self.granularity, {"gradient_norm": local}
        unchecked = self._notes_on(blueprint, context.target)
        self._measured_alike(blueprint, context.target, unchecked)
        published = self._published(blueprint)
        notes: dict[str, Any] = {
            "blueprint": {
                "model_id": blueprint.model_id,
                "training_checkpoint": blueprint.training_checkpoint,
                "not_checked": unchecked,
                "made": None if blueprint.made is None else blueprint.made.model_dump(),  # theirs to pay, not ours
                "gradient_norm": published,
                "blend_weight": self.blend_weight,
            }
        }
        if self.blend_weight == 1:
            notes["blueprint"]["drift"] = {"verdict": "not checked", "why": "blend_weight = 1 measures nothing here"}
            return published, self.granularity, notes
        local = context.measure_norms()
        found = drift.check(published, local, fallback=self.drift_fallback, local_only=self.drift_local_only)
        notes |= {"gradient_norm": local}
        notes["blueprint"]["drift"] = asdict(found)
        if found.verdict == "local":
            notes["blueprint"]["blend_weight_used"] = 0.0
            return local, self.granularity, notes
        notes["blueprint"]["blend_weight_used"] = self.blend_weight
        granularity = "layer" if found.verdict == "layers" else self.granularity
        blended = signals.blend(published, local, self.blend_weight)
        notes["blended_norm"] = blended
        return blended, granularity, notes

    def _read(self) -> Blueprint | None:
        return files.read(self.blueprint) if self.blueprint else None

    def _notes_on(self, blueprint: Blueprint, target: Target) -> list[str]:
        return files.check_model(
            blueprint,
            weights_sha256=target.weights_sha256,
            revision=target.revision,
            sizes=target.sizes,
            model=target.label,
            foreign=self.foreign,
        )

    def _published(self, blueprint: Blueprint) -> dict[str, float]:
        return signals.norms_of(blueprint, domain=self.domain or None, uncertainty=self.uncertainty)

    def _share(self, blueprint: Blueprint | None) -> float:
        if self.k != "blueprint":
            return self.k
        if blueprint is None or blueprint.k_star is None:
            why = blueprint.k_star_why if blueprint is not None else None
            raise MethodError(
                f"the blueprint recommends no k ({why or 'it says no k_star'}). Set {self.name}.k=0.15, say."
            )
        return blueprint.k_star

    def _measured_alike(self, blueprint: Blueprint, target: Target, unchecked: list[str]) -> None:
        """Refuse to blend norms that were not taken alike (NOTES: choices settled)."""
        theirs = blueprint.measurement
        if theirs is None:
            unchecked.append("The blueprint does not say how its norms were measured.")
        elif self.blend_weight < 1:
            if theirs.norm != Measurement.model_fields["norm"].default:
                raise MethodError(
                    f"the blueprint's norms are {theirs.norm!r:.200}, local ones would be "
                    f"{Measurement.model_fields['norm'].default!r}: they do not blend. Pass --set "
                    f"{self.name}.blend_weight=1."
                )
            if target.probe is None:
                return
            warmup = target.probe.warmup_steps if target.kind == "encoder" else 0
            if (theirs.batch_size, theirs.warmup_steps) != (target.probe.batch_size, warmup):
                raise MethodError(
                    f"the blueprint's norms are of batches of {theirs.batch_size} after {theirs.warmup_steps} warm-up "
                    f"steps, local ones would be of {target.probe.batch_size} after {warmup}: they do not blend. Pass "
                    f"--set select.batch_size={theirs.batch_size} --set select.warmup_steps={theirs.warmup_steps}, or "
                    f"{self.name}.blend_weight=1."
                )

    def _cost(self, blueprint: Blueprint | None, context: Context) -> StepCost:
        known = None if blueprint is None else blueprint.step_cost
        return context.measure_step() if known is None else known

    def _within(
        self,
        norms: Mapping[str, float],
        sizes: Mapping[str, int],
        granularity: str,
        budget: Budget,
        cost: StepCost | None,
        memory_bytes: int,
    ) -> Picked:
        groups, group_norms, group_sizes = picking.grouped(norms, sizes, granularity)
        found = pick_within(
            group_norms,
            group_sizes,
            budget,
            step_cost=cost,
            fixed_memory_bytes=memory_bytes,
            bytes_per_parameter=BYTES_PER_PARAMETER,
            embed=self.embed,
        )
        taken = {name for group in found.submodules for name in groups[group]}
        return Picked(tuple(name for name in sizes if name in taken), found.k_reached)
