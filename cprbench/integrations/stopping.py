"""The stop rule for transformers.Trainer: training ends when a unit of spending buys too little.

trainer = Trainer(…, callbacks=[StopRuleCallback(eta="0.1x", flops_per_step=2e12)])
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from transformers import TrainerCallback

from cprbench.adapt.stopping import StopRule
from cprbench.spec import falls


class StopRuleCallback(TrainerCallback):  # type: ignore[misc]
    """Feeds every evaluation of a training to the stop rule, and ends the training when the rule says so.

    `metric`: the key of the evaluation's metrics; one that ends in loss, nll, bits_per_byte or perplexity is negated.
    The resource is FLOPs where `flops_per_step` is given, else seconds since training began, evaluations included: a
    rule that reads them makes them part of the cost. All processes go by the first one's clock. What was seen and
    decided is in `callback.rule`; a training that is resumed begins it anew.
    """

    def __init__(
        self,
        *,
        eta: str | float = "0.1x",
        window: int = 3,
        patience: int = 2,
        metric: str = "eval_loss",
        flops_per_step: float | None = None,
    ) -> None:
        resource = "seconds" if flops_per_step is None else "flops"
        self._given: dict[str, Any] = {"eta": eta, "window": window, "patience": patience, "resource": resource}
        self._metric, self._flops_per_step = metric, flops_per_step
        self._began: float | None = None  # None: no training is under way
        self.rule = StopRule(**self._given)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with a fresh rule."""
        self.rule, self._began = StopRule(**self._given), time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Feed the rule; evaluations outside training and those of other data, without the metric, are not checks."""
        value = (kwargs.get("metrics") or {}).get(self._metric)
        if self._began is None or value is None:
            return
        if self._flops_per_step is None:
            from accelerate.utils import broadcast_object_list

            [gamma] = broadcast_object_list([time.monotonic() - self._began])
        else:
            gamma = self._flops_per_step * state.global_step
        if self.rule.add(-value if falls(self._metric) else value, gamma):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn when the rule had nothing to go by: silence would look like a rule that never fired."""
        self._began = None
        if not self.rule.points:
            text = f"no evaluation of this training had {self._metric!r}, so the stop rule could not act. "
            warnings.warn(text + "Set eval_strategy, and metric to a key of its metrics.", stacklevel=2)
