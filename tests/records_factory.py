"""Records made by hand, for tests of everything that only reads records."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cprbench.judge.evidence import Evidence
from cprbench.runs.store import MANIFEST, RECORD, Run
from cprbench.schema import sha256_of
from cprbench.spec import (
    PHASES,
    Choice,
    Environment,
    ExternalModel,
    ExternalSpec,
    ExternalTask,
    Gamma,
    ModelRef,
    Psi,
    Reading,
    RunRecord,
    RunSpec,
    Scalar,
    Search,
    TaskRef,
    TrainingSpec,
)

CPU = "GenuineIntel-6-143-8 avx512 2 cores"
GPU = "1x NVIDIA H100 80GB HBM3 80 GiB 700 W"
#: Of N parameters this many train; an encoder's new head has six more, listed apart.
TOTAL, TRAINED, NEW_HEAD = 1000, 150, 6


def make_gamma(**overrides: Any) -> Gamma:
    """Return the gamma of a run of one hour on two cores, whose energy was not measured."""
    values: dict[str, Any] = {
        "device_hours": 1.0,
        "core_hours": 2.0,
        "energy_kwh": None,
        "memory_gb_hours": 4.0,
        "co2_kg": None,
        "flops": 1000,
    }
    return Gamma(**(values | overrides))


def make_psi(base: float | None = 0.5, final: float | None = 0.8, metric: str = "accuracy", items: int = 100) -> Psi:
    """Return psi with one metric; None where it was never scored."""
    scores = [None if value is None else {metric: value} for value in (base, final)]
    return Psi(primary=metric, base=scores[0], final=scores[1], items=0 if final is None else items)


def make_spec(
    *,
    method: str = "partial",
    settings: Mapping[str, Scalar] | None = None,
    selection: str = "all",
    selection_settings: Mapping[str, Scalar] | None = None,
    task: str = "movie-snippets",
    task_version: int = 1,
    model: str = "all-MiniLM-L6-v2",
    kind: str = "encoder",
    training: Mapping[str, Any] | None = None,
    **ends: Any,
) -> RunSpec:
    """Return a spec; the hashes follow from the names, so equal names mean equal content. `ends`: stop, budget."""
    return RunSpec(
        task=TaskRef(name=task, version=task_version, data_sha256=sha256_of([task, task_version])),
        model=ModelRef.model_validate(
            {
                "source": "minilm",
                "label": model,
                "revision": None,
                "weights_sha256": sha256_of(model),
                "parameters": TOTAL,
                "kind": kind,
                "config": {},
            }
        ),
        method=Choice(name=method, settings=dict(settings or {})),
        selection=Choice(name=selection, settings=dict(selection_settings or {})),
        seed=7,
        training=TrainingSpec(**{"learning_rate": 1e-3, **(training or {})}),
        **ends,
    )


def make_record(
    *,
    arm: str = "partial k=0.15",
    block: int = 0,
    method: str | None = None,
    status: str = "ok",
    base: float = 0.5,
    final: float = 0.8,
    metric: str = "accuracy",
    items: int = 100,
    gamma: Mapping[str, Any] | None = None,
    hardware_class: str = CPU,
    spec: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> RunRecord:
    """Return a record of an arm in a block.

    `base`, `final`, `metric` and `items` make psi, `gamma` and `spec` change single entries of theirs (see make_gamma
    and make_spec), and `overrides` replace fields of the record. A run that did not end well has no scores.
    """
    ended_well = status == "ok"
    costs = make_gamma(**(gamma or {}))
    hours = costs.device_hours or 0.0
    seconds: dict[str, float | None] = {phase: 3600 * hours if phase == "train" else 0.0 for phase in PHASES}
    seconds |= {"billed": 3600 * hours, "billed_last_attempt": 3600 * hours}
    values: dict[str, Any] = {
        "status": status,
        "error": None if ended_well else "the loss is not a number",
        "role": "run",
        "arm": arm,
        "block": block,
        "attempts": 1,
        "spec": make_spec(**{"method": method or arm.split()[0], **(spec or {})}),
        "environment": Environment(hardware_class=hardware_class),
        "psi": make_psi(base, final, metric, items) if ended_well else make_psi(None, None, metric),
        "gamma": costs,
        "seconds": seconds,
        "readings": [Reading(phase="billed", quantity="cpu_energy_joules", value=None, why_missing="no meter here")],
        "trained_parameters": TRAINED,
        "total_parameters": TOTAL,
        "new_head_parameters": NEW_HEAD,
        "trained_submodules": ["ffn.1"],
        "notes": {"learning_rate_from": "declared"},
        "k_asked": None,
        "k_reached": None,
        "optimizer_state_bytes": 8 * TRAINED,
        "peak_memory_bytes": 10**9,
        "selected_examples": 1600,
        "selection_sha256": sha256_of("all"),
    }
    values |= overrides
    if "run_id" not in values:
        content = [values["spec"].model_dump(mode="json"), arm, block, values["role"], hardware_class]
        values["run_id"] = sha256_of(content)[:16]
    return RunRecord(**values)


def make_external(**overrides: Any) -> RunRecord:
    """Return the record of a loop that is not ours; it knows neither its data nor its recipe."""
    record = make_record(**{"new_head_parameters": 0, "selection_sha256": None} | overrides)
    task, model = ExternalTask(name="mine"), ExternalModel(source="mine", label="mine")
    spec = ExternalSpec(task=task, model=model, method=record.spec.method)
    return record.model_copy(update={"loop": "external loop", "spec": spec})


def make_search(*trials: RunRecord) -> Search:
    """Return what the record of a run says about the trials that found its learning rate."""
    rates = [trial.spec.training.learning_rate or 0.0 for trial in trials if trial.spec.training is not None]
    return Search(trials=len(trials), runs=[trial.run_id for trial in trials], learning_rates=rates)


def make_blocks(
    finals: Mapping[str, Sequence[float]], flops: Mapping[str, Sequence[int]] | None = None, **overrides: Any
) -> list[RunRecord]:
    """Return a record per arm and block, of psi by arm and, where they are given, FLOPs by arm."""
    return [
        make_record(
            arm=arm,
            block=block,
            final=final,
            **{"gamma": {"flops": flops[arm][block]}} if flops and arm in flops else {},
            **overrides,
        )
        for arm, values in finals.items()
        for block, final in enumerate(values)
    ]


def make_evidence(*records: RunRecord, **parts: Any) -> Evidence:
    """Return records as a check sees them, without files of runs; `parts` are blueprints and documents."""
    return Evidence(runs={record.run_id: Run(record, Path("nowhere")) for record in records}, **parts)


def make_predictions(right: int, items: int = 100, draw: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a run that answers `right` of its items rightly, others with each `draw`."""
    rows = []
    for i in range(items):
        said = "yes" if (i * 37 + draw * 11) % items < right else "no"
        rows.append({"id": f"item-{i}", "prediction": said, "reference": "yes", "scores": {"nll": 0.1}})
    return rows


def answers(record: RunRecord) -> str:
    """Return the text of a predictions.jsonl that gives the accuracy of a run; blocks miss other items."""
    items = record.psi.items
    right = round(items * (record.psi.final or {}).get("accuracy", 0.0))
    return "".join(json.dumps(row) + "\n" for row in make_predictions(right, items, draw=15 * record.block))


def store_run(folder: Path, record: RunRecord, **files: str) -> Path:
    """Write a run as the store does, with its manifest, and return its folder; `files`: stem -> text of a .jsonl."""
    target = folder / record.run_id
    target.mkdir(parents=True)
    (target / RECORD).write_text(json.dumps(record.model_dump(by_alias=True, mode="json")), encoding="utf-8")
    for stem, text in files.items():
        (target / f"{stem}.jsonl").write_text(text, encoding="utf-8")
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in target.iterdir()}
    (target / MANIFEST).write_text(json.dumps({"files": hashes}), encoding="utf-8")
    return target


def stored_sweep(name: str) -> list[RunRecord]:
    """Return the real records of a sweep in tests/records/sweeps.zip: one block, role smoke, no suite."""
    with zipfile.ZipFile(Path(__file__).parent / "records" / "sweeps.zip") as archive:
        members = sorted(member for member in archive.namelist() if member.startswith(f"{name}/"))
        return [RunRecord.model_validate_json(archive.read(member)) for member in members]
