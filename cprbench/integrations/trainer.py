"""A callback for transformers.Trainer: its training becomes a full record, marked `external loop`.

trainer = Trainer(…, callbacks=[CprbenchCallback(task="movie-snippets", model="minilm")])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cprbench.runs.external import Measurement
from cprbench.runs.metering import MeterOptions
from cprbench.spec import RunRecord


class CprbenchCallback(TrainerCallback):  # type: ignore[misc]
    """Meters train and evaluation of a Trainer; scores are the last evaluation's, without their prefix "eval_".

    `primary`: which of them is primary, by default the loss, as nll. The record is `callback.record` afterwards.
    Only the world's process zero measures: one meter per node.
    """

    def __init__(
        self,
        *,
        task: str,
        model: str,
        method: str = "trainer",
        primary: str = "nll",
        block: int = 0,
        out: Path | str = "runs",
        metering: MeterOptions | None = None,
    ) -> None:
        self._given: dict[str, Any] = {"task": task, "model": model, "method": method, "block": block, "out": out}
        self._metering = metering
        self._primary = primary
        self._run: Measurement | None = None
        self._base: dict[str, float] | None = None
        self._validating = False
        self.record: RunRecord | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the phase train."""
        if not state.is_local_process_zero:
            return
        self._run = Measurement(**self._given, metering=self._metering)
        model = kwargs.get("model")
        if model is not None:
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            self._run.tell(trained_parameters=trained, total_parameters=sum(p.numel() for p in model.parameters()))
        self._run.start("train")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the phase validate at an evaluation's first batch: the Trainer has no earlier event."""
        if self._run is not None and not self._validating:
            self._validating = True
            self._run.start("validate")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the scores and go on with the phase train; an evaluation before training is the base."""
        scores = _scores(kwargs.get("metrics", {}))
        if self._run is None:
            self._base = scores
            return
        self._validating = False
        self._run.start("train")
        if self._primary in scores:
            self._run.psi(self._primary, scores, base=self._base)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the loss for history.jsonl."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if self._run is not None and loss is not None:
            self._run.step(state.global_step, float(loss))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the record."""
        if self._run is not None:
            self.record = self._run.finish()
            self._run = None


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return evaluation scores by our names: the loss is nll, costs and counts of the Trainer are left out."""
    named = {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_")}
    costs = ("time", "_per_second", "num_input_tokens_seen")
    numbers = {k: float(v) for k, v in named.items() if isinstance(v, int | float) and not k.endswith(costs)}
    return {("nll" if key == "loss" else key): value for key, value in numbers.items()}
