"""The nouns of cprbench and the files that name them (DESIGN section 1 and 4).

Everything here is frozen, refuses unknown keys with the nearest known one, and refuses NaN and infinity.
This module imports no torch: a record can be read wherever Python runs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from cprbench.endings import Budgets, BudgetSpec, StopSpec
from cprbench.schema import MOST, Amount, Count, Finite, Frozen, Sha256, Table, finite, sha256_of
from cprbench.sources import ExampleSpec, Source, Splits

RECORD_SCHEMA: Literal["cprbench.record/1"] = "cprbench.record/1"
Phase = Literal["setup", "search", "select", "train", "validate", "score"]
PHASES: tuple[Phase, ...] = ("setup", "select", "train", "validate", "score")
#: Phases whose cost is billed in every run (DESIGN: select + train; validate only where the method acts on it).
BILLED_PHASES: tuple[Phase, ...] = ("select", "train")
#: Metrics stored in their natural sign although lower is better, alone or as the end of a name (eval_loss).
LOWER_IS_BETTER = ("nll", "bits_per_byte", "loss", "perplexity")
#: The resources of gamma, in the order in which pages show them.
RESOURCES = ("device_hours", "core_hours", "energy_kwh", "memory_gb_hours", "co2_kg", "flops")

Scalar = bool | int | float | str | None
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(pattern=r"\S", max_length=200)]


class TrainingSpec(Frozen):
    """The recipe that all methods of a comparison share (DESIGN rule 4)."""

    epochs: Annotated[int, Field(ge=1)] = 2
    batch_size: Annotated[int, Field(ge=1)] = 16
    max_tokens: Annotated[int, Field(ge=8)] = 128
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # None: the method's declared default
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.06
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    score_batch_size: Annotated[int, Field(ge=1)] = 32
    max_examples: Count | None = None
    eval_items: Annotated[int, Field(ge=1)] | None = None
    validations: Count = 4  # evaluations on the validation split, evenly spaced over the steps
    validation_items: Annotated[int, Field(ge=1)] = 200
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    schedule: Literal["linear", "constant"] = "linear"  # of the learning rate, after its warm-up
    compile: bool = False  # by torch.compile, the backbone alone, from training on
    cache_prefix: Literal["auto", "memory", "disk", "off"] = "auto"  # keep what the frozen layers below give
    select_warmup_steps: Count = 50
    select_batches: Annotated[int, Field(ge=1)] = 16
    select_batch_size: Annotated[int, Field(ge=1)] = 32


class TaskSpec(Frozen):
    """One task file: where the data comes from, how it is asked and how answers are scored."""

    name: Name
    version: Annotated[int, Field(ge=1)]
    domain: str
    license: str
    citation: str
    chance: Annotated[float, Field(ge=0, le=1)] | None = None  # of a right choice; None for texts
    primary: str
    metrics: list[Literal["accuracy", "macro_f1", "nll", "bits_per_byte"]]
    description: str = ""
    data_sha256: Sha256 | None = None  # of all examples; checked whichever source served them
    source: Annotated[list[Source], Field(min_length=1)]
    splits: Splits
    example: ExampleSpec
    training: dict[str, Scalar] = {}  # task defaults for TrainingSpec

    @model_validator(mode="after")
    def _primary_is_a_metric(self) -> TaskSpec:
        if self.primary not in self.metrics:
            raise ValueError(f"primary {self.primary!r} is not among metrics {self.metrics}")
        return self

    @model_validator(mode="after")
    def _metrics_of_its_kind(self) -> TaskSpec:
        known = {"text": {"bits_per_byte", "nll"}, "choice": {"accuracy", "macro_f1", "nll"}}[self.example.kind]
        if other := sorted(set(self.metrics) - known):
            raise ValueError(f"{other[0]} is no metric of kind {self.example.kind}, which has {sorted(known)}")
        if self.example.kind == "choice" and self.chance is None:
            raise ValueError("chance is missing: the share of right answers that guessing gives")
        return self


def _rising(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Return shares of training as they are; raises ValueError unless they rise in whole per cents."""
    if any(round(share, 2) != share for share in shares) or sorted(set(shares)) != list(shares):
        raise ValueError("shares of training rise, each in whole per cents, as in [0.5, 0.8, 1.0]")
    return shares


Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_rising)]


class ArmSpec(Frozen):
    """A method with settings and a selection; list-valued settings make one arm per combination."""

    method: str
    settings: dict[str, Scalar | list[Scalar]] = {}
    selection: str = "all"
    selection_settings: dict[str, Scalar | list[Scalar]] = {}
    #: Also run what knows nothing: random data at equal q, and at equal billed FLOPs.
    baselines: bool = False
    #: The method of these baselines, where it is not the arm's own: it takes over the settings that both have.
    baseline_method: str | None = None
    #: Where training ends before or after the recipe's epochs; a list of budgets makes one arm each.
    stop: StopSpec | None = None
    budget: Budgets = ()
    #: At which shares of its steps a blueprint of the model is written beside the record.
    snapshots: Shares = ()


class Limits(Frozen):
    """How much smaller than the task a suite is; fixed by its version, so such runs rank among themselves."""

    max_examples: Count | None = None
    eval_items: Annotated[int, Field(ge=1)] | None = None


class Ranking(Frozen):
    """What a submission holds before its rows of a suite rank (docs/submissions.md)."""

    blocks: Annotated[int, Field(ge=1)] = 3
    #: Arms of the same weights, task and hardware class in the same submission; those with a k at the row's own k.
    controls: list[str] = ["full", "random-submodules"]
    optional_models: list[str] = []  # beside the suite's own, which are not optional


class SuiteSpec(Frozen):
    """What one `cprbench run` covers: tasks x models x arms x blocks."""

    name: Name | None = None
    version: Annotated[int, Field(ge=1)] = 1
    tasks: Annotated[list[str], Field(min_length=1)]
    models: Annotated[list[str], Field(min_length=1)]
    blocks: Annotated[int, Field(ge=1)] = 3
    limits: Limits = Limits()
    training: dict[str, Scalar] = {}
    ranking: Ranking | None = None  # None: its rows are shown and never rank
    arm: Annotated[list[ArmSpec], Field(min_length=1)]


# --- runs and records -------------------------------------------------------------------------------


class TaskRef(Frozen):
    """The task of a run, by what identifies it."""

    name: str
    version: int
    data_sha256: Sha256


class ModelRef(Frozen):
    """The model of a run: where it came from and what was in it."""

    source: str
    label: str
    revision: str | None = None
    weights_sha256: Sha256
    parameters: Count  # N: all parameters of the loaded model, a new task head excluded
    kind: Literal["encoder", "causal"]
    config: dict[str, Any]  # the sizes that the FLOP count needs, as the model's own config names them

    @property
    def pinned(self) -> str:
        """The source by which this very model is found again: a hub id with its revision."""
        return self.source if self.revision is None else f"{self.source}@{self.revision}"


class Choice(Frozen):
    """A method or selection with its resolved settings."""

    name: str
    settings: Annotated[dict[str, Scalar], AfterValidator(finite)] = {}


#: What runs did before the recipe had these settings: records without them are read as saying so, and a run that says
#: so has the id that it had.
RECIPE_BEFORE = {
    "gradient_checkpointing": False,
    "optimizer": "adamw",
    "schedule": "linear",
    "compile": False,
    "cache_prefix": "off",
}


class RunSpec(Frozen):
    """Everything that can change a result, defaults resolved."""

    task: TaskRef
    model: ModelRef
    method: Choice
    selection: Choice
    seed: Count
    training: TrainingSpec
    stop: StopSpec | None = None  # these three are no part of the id where there is none
    budget: BudgetSpec | None = None
    snapshots: Shares = ()

    @field_validator("training", mode="before")
    @classmethod
    def _as_it_was(cls, training: Any) -> Any:
        return RECIPE_BEFORE | training if isinstance(training, dict) else training


class ExternalTask(Frozen):
    """The task of a loop that is not ours: its name is the user's word, its data was not seen."""

    name: Label
    version: int = 1
    data_sha256: None = None


class ExternalModel(Frozen):
    """The model of a loop that is not ours, by the name that the user gave it."""

    source: Label
    label: Label
    revision: str | None = None
    weights_sha256: None = None
    parameters: Count | None = None
    kind: None = None


class ExternalSpec(Frozen):
    """What is known of a loop that is not ours: what the user said, and nothing of its recipe."""

    task: ExternalTask
    model: ExternalModel
    method: Choice
    selection: Choice = Choice(name="external")
    seed: None = None
    training: None = None
    stop: None = None
    budget: None = None


class Reading(Frozen):
    """One number from one meter in one phase: a value with its source, or None with a reason."""

    phase: Phase | Literal["billed"]
    attempt: Annotated[int, Field(ge=1)] = 1
    quantity: str  # the unit is part of the name: gpu_energy_joules, peak_rss_bytes
    value: float | int | None
    source: Literal["counter", "sampled", "rapl", "counted", "modelled"] | None = None
    why_missing: str | None = None
    flags: list[str] = []
    detail: Table = {}  # what a reader needs to judge it: resolution, samples, assumed factors

    @model_validator(mode="after")
    def _value_or_reason(self) -> Reading:
        if (self.value is None) != (self.why_missing is not None):
            raise ValueError(f"{self.quantity}: a reading has either a value or why_missing")
        if (self.value is None) != (self.source is None):
            raise ValueError(f"{self.quantity}: a reading has a source exactly when it has a value")
        finite(self.value)
        if self.value is not None and self.value < 0:
            raise ValueError(f"{self.quantity}: {self.value} is below zero, so it was not measured")
        return self


class Environment(Frozen):
    """Where a run ran. No host name and no user name."""

    hardware_class: str
    devices: list[Table] = []
    packages: dict[str, str] = {}
    commit: str | None = None
    dirty: bool | None = None
    python: str = ""
    facts: Table = {}


class Psi(Frozen):
    """Task scores by metric name; base before and final after adaptation, on the same test items."""

    primary: str
    base: dict[str, Finite] | None
    final: dict[str, Finite] | None
    items: Count
    validation: dict[str, Finite] | None = None  # after the last step, on the validation split


class Gamma(Frozen):
    """The resource vector of a run: billed phases over all attempts. None means not measured."""

    device_hours: Amount | None
    core_hours: Amount | None
    energy_kwh: Amount | None
    memory_gb_hours: Amount | None
    co2_kg: Amount | None
    flops: Annotated[int, Field(ge=0, le=10**30)] | None
    energy_scope: str | None = None
    memory_basis: Literal["rss", "pss", "device", "reserved"] | None = "rss"  # pss: of a process tree


class Search(Frozen):
    """What finding the learning rate cost: its own column, never hidden in another."""

    trials: Count
    runs: list[str]
    learning_rates: list[float]
    best_at_edge: bool = False  # the best of several rates is the least or the largest: the grid may be too narrow


def _loop_of(spec: Any) -> str:
    """Return whose loop a spec describes: only ours has a recipe."""
    training = spec.get("training") if isinstance(spec, dict) else getattr(spec, "training", None)
    return "external loop" if training is None else "cprbench"


Status = Literal["ok", "failed", "out_of_memory", "timeout", "interrupted"]


class RunRecord(Frozen):
    """record.json: what one run was, what it reached and what it cost."""

    schema_: Annotated[Literal["cprbench.record/1"], Field(alias="schema")] = RECORD_SCHEMA
    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}(-[0-9]+)?$")]
    previous: str | None = None  # the failed or interrupted run that this one repeats
    status: Status
    error: str | None = None
    role: Literal["run", "search", "smoke"]
    loop: Literal["cprbench", "external loop"] = "cprbench"
    suite: str | None = None
    suite_version: int | None = None
    arm: Label
    block: Count
    attempts: Annotated[int, Field(ge=1)]
    resumed: bool = False
    limits: dict[str, int] = {}
    spec: Annotated[
        Annotated[RunSpec, Tag("cprbench")] | Annotated[ExternalSpec, Tag("external loop")], Discriminator(_loop_of)
    ]
    environment: Environment
    psi: Psi
    gamma: Gamma
    seconds: dict[str, float | None]
    readings: list[Reading]
    search: Search | None = None
    trained_parameters: Count | None
    total_parameters: Count | None
    new_head_parameters: Count | None
    trained_submodules: list[str]
    k_asked: float | None
    k_reached: float | None
    optimizer_state_bytes: Count | None
    peak_memory_bytes: Count | None
    selected_examples: Count | None
    selection_sha256: Sha256 | None
    batches_sha256: Sha256 | None = None
    blueprint: str | None = None
    notes: Table = {}

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("seconds")
    @classmethod
    def _no_negative_time(cls, seconds: dict[str, float | None]) -> dict[str, float | None]:
        for name, value in seconds.items():
            if value is not None and not 0 <= value <= MOST:
                raise ValueError(f"seconds.{name} is {value}: time is finite and not negative")
        return seconds


def billed_phases(stop: StopSpec | None) -> tuple[Phase, ...]:
    """Return the phases that a run bills: a run that may stop acts on its validations, so it pays for them."""
    return BILLED_PHASES if stop is None else (*BILLED_PHASES, "validate")


def block_seed(task_name: str, task_version: int, weights_sha256: str, block: int) -> int:
    """Return the seed of a block (DESIGN section 1): the same for every method, selection and k."""
    return int(sha256_of([task_name, task_version, weights_sha256, block]), 16) % 2**31


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of a named child stream, so that drawing more of one moves no other."""
    return int(sha256_of([seed, stream]), 16) % 2**31


def better_by(metric: str, new: float, old: float) -> float:
    """Return how much better `new` is than `old` on `metric`: higher is better, except where `falls`."""
    return old - new if falls(metric) else new - old


def falls(metric: str) -> bool:
    """Return whether a lower `metric` is better, by its name."""
    return any(metric == name or metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)
