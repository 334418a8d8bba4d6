"""How an arm's training ends, where not with the recipe's epochs: at a billed budget, or by the stop rule.

Both belong to the arm and stand beside its recipe, so that arms with and without them stay comparable.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cprbench.schema import Frozen

#: What can be spent, under its name in gamma; flops are counted ahead, the others are metered as they go.
Resource = Literal["flops", "device_hours", "energy_kwh"]
_Positive = Annotated[float, Field(gt=0)]
#: A whole number stays one: FLOPs may have more digits than a float.
_Amount = Annotated[int | float, Field(gt=0)]


def _short(number: float | None) -> str:
    """Return a number in six digits, or in as many as tell it from others."""
    return f"{number:g}" if float(f"{number:g}") == number else f"{number:.12g}"


class StopSpec(Frozen):
    """The stop rule of an arm (paper section 3): DeltaPsi / DeltaGamma over a window stays below eta."""

    #: psi per unit of the resource, or a share of the largest ratio so far: "0.1x"
    eta: Annotated[str, BeforeValidator(lambda v: repr(v) if type(v) in (int, float) else v)] = "0.1x"
    window: Annotated[int, Field(ge=1)] = 3  # validations
    patience: Annotated[int, Field(ge=1)] = 2  # successive checks below eta
    resource: Resource = "flops"

    @property
    def label(self) -> str:
        """What an arm's name says of it: "stop=0.1x", and what is not as usual."""
        others = {name: getattr(self, name) for name in ("window", "patience", "resource")}
        unusual = [f"{name}={v}" for name, v in others.items() if v != type(self).model_fields[name].default]
        return " ".join([f"stop={self.eta}", *unusual])


class BudgetSpec(Frozen):
    """What a run may bill: an amount in the resource's unit, or a share of what another arm of its block bills.

    A share's amount is filled in once that arm has run.
    """

    resource: Resource
    amount: _Amount | None = None
    share: _Positive | None = None
    of: Annotated[str, Field(min_length=1)] | None = None  # the other arm's label

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """Take the form in which people write it: flops=1e12, 0.5x full, device_hours=0.5x full."""
        if isinstance(given, dict):
            return {"resource": "flops", **given} if "share" in given else given
        if not isinstance(given, str):
            raise ValueError("write RESOURCE=AMOUNT or SHAREx ARM, for example flops=1e12 or 0.5x full")
        head, equals, tail = given.partition("=")
        # "0.5x partial k=0.15" has its equals sign in the arm's name.
        resource, rest = (head, tail) if equals and head.isidentifier() else ("flops", given)
        number, space, of = rest.strip().partition(" ")
        try:
            amount = float(number.removesuffix("x") if space else number)
        except ValueError:
            amount = float("nan")
        if amount != amount or bool(space) != number.endswith("x") or (rest == given and not space):
            raise ValueError("write RESOURCE=AMOUNT or SHAREx ARM, for example flops=1e12 or 0.5x full")
        resource = {"energy": "energy_kwh"}.get(resource, resource)
        return {"resource": resource} | ({"share": amount, "of": of.strip()} if space else {"amount": amount})

    @model_validator(mode="after")
    def _one_or_the_other(self) -> BudgetSpec:
        if (self.share is None) != (self.of is None) or (self.share is None and self.amount is None):
            raise ValueError("give an amount, or a share and of which arm it is (of)")
        return self

    @property
    def label(self) -> str:
        """What an arm's name says of it: "budget=0.5x full", "budget=flops=1e+12"."""
        if self.share is None:
            return f"budget={self.resource}={_short(self.amount)}"
        named = "" if self.resource == "flops" else f"{self.resource}="
        return f"budget={named}{_short(self.share)}x {self.of}"


def _listed(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else [given]


#: One budget or a list of them, each as a table or in the form that BudgetSpec reads.
Budgets = Annotated[tuple[BudgetSpec, ...], BeforeValidator(_listed)]
