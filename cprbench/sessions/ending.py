"""Where the training of a run ends: after its planned steps, at a budget that is metered, or by its stop rule."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cprbench.adapt.objectives import Item
from cprbench.adapt.stopping import StopRule
from cprbench.adapt.training import learning_rate_scale
from cprbench.endings import Resource
from cprbench.errors import TrainingError
from cprbench.meters.carbon import JOULES_PER_KWH
from cprbench.meters.tree import wait_for_device
from cprbench.spec import better_by

if TYPE_CHECKING:
    from cprbench.sessions.session import Session

#: A step is taken where the dearest of so many before it would still fit.
_RECENT = 10
#: A budget that pays for more epochs is a mistake, or a question for another recipe.
MOST_EPOCHS = 1000
#: Before a step has been metered, the warm-up is taken to have so many.
_STEPS_OF_WARMUP = 10


class Ending:
    """Plans or watches where one run ends. With several processes every one asks, and the first one's answer counts."""

    def __init__(self, session: Session) -> None:
        spec = session.spec
        self._session = session
        self._rule = None if spec.stop is None else StopRule(**spec.stop.model_dump())
        budget = spec.budget
        if budget is not None and budget.amount is None:
            raise TrainingError(f"{budget.label}: the bill of that arm is not known here.")
        self._amount = 0.0 if budget is None else float(budget.amount or 0)
        #: A budget that is planned to the step; the others are metered as they are spent.
        self.flops = budget.amount if budget is not None and budget.resource == "flops" else None
        self.metered = budget if budget is not None and budget.resource != "flops" else None
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._begun = self._spent = 0.0
        self._over = False

    @property
    def in_energy(self) -> bool:
        """Whether the run has to know its joules as it goes."""
        ends = (self._session.spec.stop, self._session.spec.budget)
        return any(end is not None and end.resource == "energy_kwh" for end in ends)

    # --- a budget -----------------------------------------------------------------------------------

    def spent(self, resource: Resource) -> float:
        """Return what was billed so far, the same for all processes. Raises TrainingError where nothing tells."""
        return self._session.engine.first(lambda: self._spent_of(resource))

    def _spent_of(self, resource: Resource) -> float:
        session = self._session
        if resource == "flops":
            return session.counter.spent.total
        wait_for_device()
        if resource == "device_hours":
            return self._device_hours(session.channel.billed_seconds(session.billed))
        joules = session.channel.billed_joules(session.billed)
        if joules is None or joules < 0:
            raise TrainingError("the energy counter was lost during the run. Choose flops or device_hours to end by.")
        return joules / JOULES_PER_KWH

    def _device_hours(self, seconds: float) -> float:
        held = self._session.job["accelerators"] if self._session.engine.device.type == "cuda" else 1
        return float(seconds / 3600 * held)

    def batches(self, places: Sequence[int]) -> Iterator[list[Item]]:
        """Yield the batches after what choosing used up, epoch by epoch, as long as somebody asks."""
        session, epochs = self._session, self._session.recipe.epochs
        done = session.steps_done
        while True:
            planned = session.planned(places, epochs)
            yield from planned[done:]
            done, epochs = len(planned), 2 * epochs

    def affordable(
        self, places: Sequence[int], limit: float, costs: Callable[[Sequence[Sequence[Item]]], list[int]]
    ) -> list[list[Item]]:
        """Return the batches of a run that bills at most `limit` FLOPs: to the last step that it has room for.

        `costs` tells the FLOPs of batches up to and including each. Raises TrainingError for a limit that pays for no
        step, or for more than MOST_EPOCHS.
        """
        session, epochs = self._session, self._session.recipe.epochs
        done, left = session.steps_done, limit - session.billed_flops()
        while True:
            batches = session.planned(places, epochs)
            spent = costs(batches[done:])
            if spent and spent[-1] >= left:
                break
            if epochs >= MOST_EPOCHS:
                raise TrainingError(
                    f"{limit:g} FLOPs pay for more than {epochs} epochs ({len(batches)} steps). Lower the budget, or "
                    "train on more examples."
                )
            epochs = min(2 * epochs, MOST_EPOCHS)
        steps = bisect_right(spent, left)
        if not steps:
            raise TrainingError(
                f"{limit:g} FLOPs pay for no step: choosing and one step take {session.billed_flops() + spent[0]}, "
                "which is the least. Raise the budget, or selection.flops."
            )
        # What is kept of frozen layers is planned for the steps that are taken, so these are counted once more.
        while steps > 1 and (own := costs(batches[done : done + steps]))[-1] > left:
            steps = min(steps - 1, bisect_right(own, left))
        return batches[: done + max(1, steps)]

    def scale(self, step: int) -> float:
        """Return the factor on the learning rate before a step of phase train, counted from 0.

        Raises TrainingError where choosing has used the budget up.
        """
        recipe = self._session.recipe
        if self.metered is None:
            return learning_rate_scale(step, (self._session.steps or 0) - self._session.steps_chosen, recipe)
        if step == 0:
            self._begun = self._spent = self.spent(self.metered.resource)
            if self._begun >= self._amount:
                raise TrainingError(
                    f"{self.metered.label}: {self._begun:.3g} {self.metered.resource} went before the first step. "
                    "Raise it."
                )
        room = self._amount - self._begun
        per_step = max(self._steps, default=room * recipe.warmup_fraction / _STEPS_OF_WARMUP) or room
        return learning_rate_scale((self._spent - self._begun) / per_step, room / per_step, recipe)

    # --- after every step ---------------------------------------------------------------------------

    def validates(self) -> bool:
        """Return whether to validate after the step of phase train that was just taken: evenly over the run.

        Raises TrainingError where the first step has overspent the budget.
        """
        session, grid = self._session, self._session.recipe.validations
        if self.metered is None:
            return session.validates()
        amount, before = self._amount, self._spent
        self._spent = self.spent(self.metered.resource)
        if self._spent > amount and not self._steps:
            raise TrainingError(
                f"{self.metered.label}: choosing and one step took {self._spent:.3g}, which is the least. Raise it."
            )
        self._steps.append(self._spent - before)
        self._over = self._spent + max(self._steps) > amount
        old, new = (math.floor(grid * (at - self._begun) / (amount - self._begun)) for at in (before, self._spent))
        return self._over or new > old

    def ends(self, row: Mapping[str, Any]) -> bool:
        """Return whether training ends with a step, whose line of the history this is."""
        if self._rule is None or "validation" not in row:
            return self._over
        rule, primary = self._rule, self._session.task.primary

        def asked() -> bool:
            """Ask with the numbers of the history where it has them, so that a replay of it says the same."""
            if rule.resource == "energy_kwh":
                gamma = self._spent_of("energy_kwh")
            else:
                gamma = row["flops"] if rule.resource == "flops" else self._device_hours(row["seconds"])
            return rule.add(better_by(primary, row["validation"][primary], 0.0), gamma)

        return self._session.engine.first(asked)

    @property
    def expected(self) -> int | None:
        """Return how many steps a run with a metered budget will have taken, going by the last ones; else None."""
        if self.metered is None or not any(self._steps):  # a counter of joules moves in steps of its own
            return None
        return self._session.steps_done + math.floor((self._amount - self._spent) / max(self._steps))

    def told(self) -> dict[str, Any]:
        """Return what a record's notes say of how the run ended."""
        session = self._session
        if (budget := session.spec.budget) is not None:
            return {"budget": {"resource": budget.resource, "spent": self.spent(budget.resource)}}
        if self._rule is None:
            return {}
        return {"stop": {**self._rule.told(), "step": session.steps_done, "of_steps": session.steps}}
