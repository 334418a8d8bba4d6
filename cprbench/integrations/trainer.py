"""A callback for transformers.Trainer: its training becomes a full record, marked `external loop`.

trainer = Trainer(…, callbacks=[CprbenchCallback(task="movie-snippets", model="minilm")])
"""

from __future__ import annotations

import atexit
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cprbench.runs.external import Measurement
from cprbench.runs.metering import MeterOptions
from cprbench.spec import RunRecord, Status


class CprbenchCallback(TrainerCallback):  # type: ignore[misc]
    """Meters train and evaluation of a Trainer; scores are the last evaluation's, without their prefix "eval_".

    `primary`: which of them is primary, by default the loss, as nll. The record is `callback.record` afterwards.
    The record is written when training has ended and an evaluation was seen, or when the process ends.
    Only a node's first process measures.
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
        self._validating = self._trained = self._scored = False
        self.record: RunRecord | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the phase train."""
        if not state.is_local_process_zero:
            return
        self._run = Measurement(**self._given, metering=self._metering)
        self._trained = self._scored = False
        atexit.register(self._at_exit)
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
        """Keep the scores; an evaluation before training is the base, one after it closes the record."""
        scores = _scores(kwargs.get("metrics", {}))
        if self._run is None:
            self._base = scores
            return
        self._validating = False
        if self._primary in scores:
            self._run.psi(self._primary, scores, base=self._base)
            self._scored = True
        if self._trained:
            self._finish("ok", None)
        else:
            self._run.start("train")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the loss for history.jsonl."""
        loss = (kwargs.get("logs") or {}).get("loss")
        if self._run is not None and loss is not None:
            self._run.step(state.global_step, float(loss))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the record; without any evaluation so far, wait for the one that usually follows."""
        if self._run is not None:
            self._run.end()
            self._trained = True
            if self._scored:
                self._finish("ok", None)

    def _finish(self, status: Status, error: str | None) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            self.record = run.finish(status, error)

    def _at_exit(self) -> None:
        """Write the record of a training that raised, or that nobody evaluated."""
        died = None if self._trained else "the process ended before the training did"
        self._finish("ok" if self._trained else "failed", died)


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return evaluation scores by our names: the loss is nll, costs and counts of the Trainer are left out."""
    named = {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_")}
    costs = ("time", "_per_second", "num_input_tokens_seen")
    numbers = {
        k: float(v)
        for k, v in named.items()
        if isinstance(v, int | float) and math.isfinite(v) and not k.endswith(costs)
    }
    return {("nll" if key == "loss" else key): value for key, value in numbers.items()}
