"""Entries made by hand, for tests of the site: a row as it is asked for, or as many varied ones as a board may have."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from cprbench.judge.submission import Entry, Finding, Number, Row, RunLine, SubmissionSpec
from cprbench.spec import RESOURCES

CPU, GPU = "GenuineIntel-6-143-8 avx512 2 cores", "1x NVIDIA H100 80GB HBM3 80 GiB 700 W"
NO_ENERGY = "no energy counter on this machine"
#: (method, settings, how much of what can be gained it gains, FLOPs as a share of full's)
METHODS: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    ("head", {}, 0.0, 0.17),
    ("full", {}, 1.0, 1.0),
    ("lora", {"r": 4}, 0.84, 0.69),
    ("lora", {"r": 16}, 0.93, 0.72),
    ("partial", {"k": 0.05}, 0.6, 0.55),
    ("partial", {"k": 0.15}, 0.78, 0.67),
    ("partial", {"k": 0.3}, 0.88, 0.75),
    ("random-submodules", {"k": 0.15}, 0.6, 0.6),
    ("last-layers", {"k": 0.15}, 0.66, 0.45),
    ("bitfit", {}, 0.5, 0.62),
)
MODELS = {"all-MiniLM-L6-v2": 0.85, "SmolLM2-135M": 0.88, "Qwen2.5-0.5B": 0.91}


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def no(why: str) -> Number:
    return Number(value=None, why=why)


def num(value: float | None, spread: float = 0.0, why: str = "not measured") -> Number:
    if value is None:
        return no(why)
    return Number(value=value, low=value - spread, high=value + spread) if spread else Number(value=value)


def make_run(block: int = 0, psi: float | None = 0.8, flops: float | None = 1e12, **fields: Any) -> RunLine:
    """Return a run of a row."""
    gamma = {name: None for name in RESOURCES} | {"flops": flops, "device_hours": 0.01, "memory_gb_hours": 0.004}
    values: dict[str, Any] = {
        "run_id": digest(fields, block, psi)[:16],
        "block": block,
        "status": "ok",
        "psi": psi,
        "base": 0.5,
        "gamma": gamma,
        "seconds": {"setup": 2.5, "select": 4.0, "train": 25.5, "validate": 1.5, "score": 2.0, "billed": 29.5},
        "curve": [((flops or 1.0) * share, 0.5 + 0.3 * share) for share in (0.25, 0.5, 0.75, 1.0)],
        "learning_rate": 1e-4,
        "learning_rate_from": "declared",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "commit": "f" * 40,
        "dirty": False,
    }
    return RunLine(**(values | fields))


def make_row(final: float | None = 0.8, flops: float | None = 1e12, **fields: Any) -> Row:
    """Return a row of three blocks that ranks, whose energy was not measured; `fields` replace its fields."""
    name = fields.get("arm", "lora r=4")
    values: dict[str, Any] = {
        "id": digest(final, flops, sorted(fields.items(), key=str))[:12],
        "suite": "core",
        "suite_version": 1,
        "task": "movie-snippets",
        "task_version": 1,
        "domain": "general",
        "model": "all-MiniLM-L6-v2",
        "weights_sha256": digest("all-MiniLM-L6-v2"),
        "data_sha256": digest("movie-snippets"),
        "method": name.partition(" ")[0],
        "settings": {},
        "selection": "all",
        "selection_settings": {},
        "arm": name,
        "hardware_class": CPU,
        "metric": "accuracy",
        "reference": "head",
        "baseline": False,
        "role": "run",
        "tier": "consistent",
        "unranked": [],
        "blocks": [0, 1, 2],
        "failed": 0,
        "psi": num(final, 0.012),
        "gain": num(None if final is None else final - 0.5, 0.02),
        "retained_gain": num(None if final is None else (final - 0.5) / 0.4, 0.05),
        "gamma": {n: no(NO_ENERGY) for n in RESOURCES}
        | {"flops": num(flops), "device_hours": num(0.0083), "core_hours": num(0.0166), "memory_gb_hours": num(0.004)},
        "seconds": num(29.5),
        "peak_memory_bytes": num(1.21e9),
        "optimizer_state_bytes": num(1.8e8),
        "trained_share": num(0.15),
        "selected_examples": num(1600),
        "multiple_of_full": {n: no("not measured") for n in RESOURCES} | {"flops": num(1.29, 0.08)},
        "quadrant": dict.fromkeys(RESOURCES, "cost: not measured") | {"flops": "trade-off"},
        "k": num(0.15),
        "picker": "",
        "q": num(1.0),
        "search": no("none (declared rate)"),
        "trials": 0,
        "runs": [make_run(b, final, flops, run_id=digest(name, final, flops, b)[:16]) for b in range(3)],
    }
    return Row(**(values | fields))


def make_entry(name: str = "first", rows: Sequence[Row] = (), **fields: Any) -> Entry:
    """Return a submission with rows; `fields` replace its fields, `spec` those of its submission.toml."""
    spec = {
        "schema": "cprbench.submission/1",
        "name": name,
        "authors": ["Ada Lovelace", "Grace Hopper"],
        "license": "CC-BY-4.0",
        "links": ["https://example.org/paper"],
        "description": "Runs of the core suite on one machine.",
    }
    values: dict[str, Any] = {
        "digest": digest(name),
        "submission": SubmissionSpec(**(spec | fields.pop("spec", {}))),
        "folder": name,
        "status": "consistent",
        "checked": {"F1": 12, "G2": 9, "P1": 9},
        "findings": [],
        "rows": list(rows),
    }
    return Entry(**(values | fields))


def make_finding(**fields: Any) -> Finding:
    """Return a finding."""
    values = {
        "code": "P2",
        "level": "wrong",
        "file": "runs/00ff/predictions.jsonl",
        "message": "accuracy is 0.91, the predictions give 0.87",
        "cure": "Submit the run as cprbench wrote it.",
    }
    return Finding(**(values | fields))


def many(count: int, *, per_entry: int = 10, seed: int = 0) -> list[Entry]:
    """Return submissions with `count` rows in all on one board, varied in everything that a board shows."""
    draw = random.Random(seed)
    entries, rows = [], list[Row]()
    for i in range(count):
        method, settings, keeps, cost = METHODS[i % len(METHODS)]
        model, top = draw.choice(list(MODELS.items()))
        machine = draw.choice((CPU, GPU, "AuthenticAMD-26-2-1 avx512 2 cores"))
        full = {"all-MiniLM-L6-v2": 5.9e12, "SmolLM2-135M": 3.1e13, "Qwen2.5-0.5B": 1.2e14}[model]
        rows.append(
            _varied(draw, i, method, settings, keeps, cost * full * draw.uniform(0.9, 1.1), model, top, machine)
        )
        if len(rows) == per_entry or i == count - 1:
            name = f"team-{len(entries):03d}"
            entries.append(make_entry(name, rows, spec={"authors": [f"Author {len(entries)}"]}))
            rows = []
    return entries


def _varied(
    draw: random.Random,
    i: int,
    method: str,
    settings: dict[str, Any],
    keeps: float,
    flops: float,
    model: str,
    top: float,
    machine: str,
) -> Row:
    psi = min(0.99, 0.6 + (top - 0.6) * keeps + draw.gauss(0, 0.01))
    gain, hours = psi - 0.6, flops / (4e11 if machine == GPU else 1e11) / 3600
    energy = num(hours * 0.35 * draw.uniform(0.9, 1.1)) if machine == GPU else no(NO_ENERGY)
    unranked = ["2 blocks ended well, 3 are asked for"] if draw.random() < 0.1 else []
    told = [f"{name}={value}" for name, value in settings.items()]
    times = {n: num(draw.uniform(0.8, 1.6), 0.1) for n in RESOURCES if energy.value is not None or "e" not in n[:1]}
    words = ("trade-off", "dominates", "dominated", "indistinguishable: psi not told apart")
    selection = "influence" if method == "full" and i % 3 == 0 else "all"
    return make_row(
        psi,
        flops,
        id=digest(i)[:12],
        arm=" ".join([method, *told, *(["influence q=0.3"] if selection != "all" else [])]),
        method=method,
        settings=settings | ({"pick": "norm", "embed": False} if method == "partial" else {}),
        selection=selection,
        selection_settings={"q": 0.3} if selection != "all" else {},
        model=model,
        weights_sha256=digest(model),
        hardware_class=machine,
        reference="head" if model == "all-MiniLM-L6-v2" else "base",
        baseline=method in ("head", "full", "random-submodules", "last-layers"),
        tier=draw.choice(("consistent", "consistent", "reproduced")) if not unranked else "self-reported",
        unranked=unranked,
        psi=num(psi, draw.uniform(0.005, 0.02)),
        gain=num(gain, draw.uniform(0.005, 0.02)),
        retained_gain=num(gain / (top - 0.6), draw.uniform(0.02, 0.1)),
        gamma={
            "device_hours": num(hours),
            "core_hours": num(2 * hours),
            "energy_kwh": energy,
            "memory_gb_hours": num(hours * draw.uniform(0.4, 2.0)),
            "co2_kg": num(energy.value * 0.05) if energy.value is not None else no(NO_ENERGY),
            "flops": num(float(int(flops))),
        },
        multiple_of_full={
            n: no("n/e: gain_not_positive") if gain <= 0 else times.get(n, no("not measured")) for n in RESOURCES
        },
        quadrant={n: draw.choice(words) if n in times else "cost: not measured" for n in RESOURCES},
        optimizer_state_bytes=num(float(int(flops / 30000))),
        trained_share=num(settings.get("k", 1.0 if method == "full" else 0.01)),
        k=num(settings.get("k", 1.0 if method == "full" else 0.01)),
        picker={"partial": "norm", "random-submodules": "random", "last-layers": "depth"}.get(method, ""),
        q=num(0.3 if selection != "all" else 1.0),
    )
