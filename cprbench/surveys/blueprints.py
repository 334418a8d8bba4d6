"""`blueprint create` and `blueprint audit`: a metered child measures, the parent adds what the making cost."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cprbench.blueprint.schema import Blueprint, Tag
from cprbench.errors import SpecError
from cprbench.meters import hardware
from cprbench.meters.flops import Flops
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.runs.child import run_child
from cprbench.runs.metering import MeterOptions, making, open_bench
from cprbench.runs.store import SAMPLES
from cprbench.schema import parse
from cprbench.tasks import load_task

Observer = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Recipe:
    """How gradients are measured (NOTES: at least 16 batches of 32), and the noise put on them.

    `noise_multiplier` 0: no noise. `clip_norm`: what every example's gradient is clipped to under noise; it may not be
    chosen by looking at the data.
    """

    batches: int = 16
    batch_size: int = 32
    warmup_steps: int = 50
    precision: str = "auto"
    noise_multiplier: float = 0.0
    clip_norm: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Raise SpecError for a setting that cannot be."""
        for name, value, least in (("batches", self.batches, 2), ("batch_size", self.batch_size, 2)):
            if value < least:
                raise SpecError(f"{name} = {value}: at least {least}.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise SpecError(f"precision {self.precision!r}: auto, fp32 or bf16.")
        noise, clip = self.noise_multiplier, self.clip_norm
        known = math.isfinite(noise) and math.isfinite(clip)
        if not known or noise < 0 or clip <= 0 or not 0 < self.delta < 1 or self.warmup_steps < 0:
            raise SpecError(
                f"noise_multiplier = {self.noise_multiplier}, clip_norm = {self.clip_norm}, delta = {self.delta}, "
                f"warmup_steps = {self.warmup_steps}: not negative, clip_norm above 0, delta between 0 and 1."
            )


@dataclass(frozen=True)
class Surroundings:
    """Where data lies, whether the network may be used, and how to meter."""

    data: Path | None = None
    offline: bool = False
    metering: MeterOptions = field(default_factory=MeterOptions)


def create(
    model: str,
    domains: Mapping[str, str],
    *,
    checkpoint: float = 1.0,
    recipe: Recipe | None = None,
    surroundings: Surroundings | None = None,
    observe: Observer = lambda event: None,
) -> Blueprint:
    """Return the blueprint of a model, measured on a task for each domain (tag -> task), with what making it cost.

    Raises SpecError for domains or a checkpoint that cannot be, and whatever the child met, as the same class.
    """
    recipe, surroundings = recipe or Recipe(), surroundings or Surroundings()
    if not domains:
        raise SpecError("no domain: a blueprint is measured on data. Pass --domain general=movie-snippets, say.")
    if not 0 < checkpoint <= 1:
        raise SpecError(f"checkpoint {checkpoint} is outside (0, 1]: it is the fraction of training that is done.")
    for tag in domains:
        _check_tag(tag)
    entries = [{"tag": tag, "task": load_task(task).model_dump(mode="json")} for tag, task in domains.items()]
    job = {"kind": "blueprint", "checkpoint": checkpoint, **recipe.__dict__}
    found, made = _metered(job, model, entries, surroundings, observe)
    return parse(Blueprint, {**found["blueprint"], "made": made}, f"the blueprint of {model}")


def audit(
    model: str,
    task: str,
    *,
    recipe: Recipe | None = None,
    surroundings: Surroundings | None = None,
    observe: Observer = lambda event: None,
) -> dict[str, Any]:
    """Return gradient norms, Fisher-preconditioned influence and the cost of both (paper, 4.2) by name."""
    recipe, surroundings = recipe or Recipe(), surroundings or Surroundings()
    entries = [{"tag": "audit", "task": load_task(task).model_dump(mode="json")}]
    job = {"kind": "audit", "checkpoint": 1.0, **recipe.__dict__}
    found, made = _metered(job, model, entries, surroundings, observe)
    return {**found["audit"], "made": made}


def _check_tag(tag: str) -> None:
    try:
        TypeAdapter(Tag).validate_python(tag)
    except ValidationError:
        raise SpecError(
            f"domain {tag!r:.80} is no tag: small letters, digits, dots, dashes and underscores, at most 64 of them. "
            "Pass --domain bio=pubmedqa, say."
        ) from None


def _metered(
    job: Mapping[str, Any],
    model: str,
    domains: Sequence[Mapping[str, Any]],
    surroundings: Surroundings,
    observe: Observer,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the job in a child of its own; return its result and what it cost."""
    carbon = surroundings.metering.carbon
    bench = open_bench(surroundings.metering)
    try:
        with tempfile.TemporaryDirectory(prefix="cprbench-") as scratch:
            outcome = run_child(
                {
                    **job,
                    "model": model,
                    "domains": list(domains),
                    "data": None if surroundings.data is None else str(surroundings.data),
                    "offline": surroundings.offline,
                    "attempt": 1,
                },
                Path(scratch),
                observe,
                offline=surroundings.offline,
                meters=bench.meters,
                environment=bench.child_environment,
            )
            result = outcome.must()
            on_gpu = result["device"] == "cuda"
            counted = result["flops"]
            flops = counted if isinstance(counted, str) else {("select", 1): Flops(counted)}
            bill = account(
                Trace.load(Path(scratch) / SAMPLES),
                flops,
                cores=hardware.bound_cores(),
                accelerators=bench.accelerators(on_gpu),
                carbon=carbon,
                flags=bench.flags,
            )
        return result, making(bill, bench, on_gpu)
    finally:
        bench.close()
