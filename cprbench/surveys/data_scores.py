"""`data score`: a metered child measures part by part, the parent writes the file with what making it cost.

Everything unfinished lies in `.work/<file name>/` beside the file: parts of rows, and a folder per attempt with its
samples, so that a later attempt goes on from there and bills what the earlier ones spent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cprbench.errors import SpecError
from cprbench.meters import hardware
from cprbench.meters.flops import Flops
from cprbench.meters.ledger import account
from cprbench.meters.trace import Trace
from cprbench.runs.child import run_child
from cprbench.runs.metering import Bench, making, open_bench
from cprbench.runs.store import SAMPLES, Store
from cprbench.spec import Reading
from cprbench.surveys.blueprints import Surroundings
from cprbench.tasks import load_task


def score(
    model: str,
    task: str,
    out: Path,
    *,
    max_examples: int | None = None,
    block: int = 0,
    warmup_steps: int = 50,
    batch_size: int = 32,
    precision: str = "auto",
    surroundings: Surroundings | None = None,
    observe: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> Any:
    """Score the training examples of a task, write the file at `out` and return its ScoresInfo.

    Goes on where an earlier attempt at the same file stopped. Raises SpecError for settings that cannot be and for a
    file that is there, StoreError where it cannot be written, and whatever the child met, as the same class.
    """
    surroundings = surroundings or Surroundings()
    wanted = {
        "--max-examples": 1 if max_examples is None else max_examples,
        "--batch-size": batch_size,
        "--warmup-steps": warmup_steps + 1,
    }
    if wrong := [name for name, value in {**wanted, "--block": block + 1}.items() if value < 1]:
        raise SpecError(f"{wrong[0]} is too small: examples and batches of at least 1, steps and blocks of at least 0.")
    if precision not in ("auto", "fp32", "bf16"):
        raise SpecError(f"precision {precision!r}: auto, fp32 or bf16.")
    if out.exists():
        raise SpecError(f"{out} is there already. Name another file, or delete it.")
    spec = load_task(task)
    shelf = Store(out.parent)
    shelf.open_for_writing()
    bench = open_bench(surroundings.metering)
    try:
        folder = shelf.begin(out.name)
        earlier = shelf.abandoned(folder)
        job = {
            "kind": "scores",
            "model": model,
            "task": spec.model_dump(mode="json"),
            "data": None if surroundings.data is None else str(surroundings.data),
            "offline": surroundings.offline,
            "max_examples": max_examples,
            "block": block,
            "warmup_steps": warmup_steps,
            "batch_size": batch_size,
            "precision": precision,
            "folder": str(folder),
            "attempt": 1,
        }
        result = run_child(
            job,
            folder,
            observe,
            offline=surroundings.offline,
            meters=bench.meters,
            environment=bench.child_environment,
        ).must()
        made = _made([*earlier, folder], result, bench, surroundings)
        info = _write(out, folder.parent / "parts", {**result["info"], "made": made})
        shutil.rmtree(folder.parent, ignore_errors=True)
        with suppress(OSError):  # others may have work there
            folder.parent.parent.rmdir()
        return info
    finally:
        bench.close()


def _made(
    attempts: Sequence[Path], result: Mapping[str, Any], bench: Bench, surroundings: Surroundings
) -> dict[str, Any]:
    """Return what all attempts cost together."""
    on_gpu, why = result["device"] == "cuda", result["uncounted"]
    readings: list[Reading] = []
    for number, folder in enumerate(attempts, start=1):
        if not (folder / SAMPLES).exists():
            continue  # it died before it began
        told = folder / "flops.jsonl"
        lines = told.read_text(encoding="utf-8").split("\n")[:-1] if told.exists() else []
        last = Flops(**json.loads(lines[-1])) if lines else Flops()
        bill = account(
            Trace.load(folder / SAMPLES).as_attempt(number),
            why or {("select", number): last},
            cores=hardware.bound_cores(),
            accelerators=bench.accelerators(on_gpu),
            carbon=surroundings.metering.carbon,
            earlier=readings,
            flags=bench.flags,
        )
        readings = bill.readings
    return making(bill, bench, on_gpu)


def _write(out: Path, parts: Path, info: Mapping[str, Any]) -> Any:
    """Write all parts in their order as one file, one part in memory at a time."""
    import numpy as np

    from cprbench.adapt.selection.scores import ScoresInfo, Writer
    from cprbench.schema import parse

    paths = sorted(parts.glob("[0-9]*.npz"))
    with np.load(paths[0], allow_pickle=False) as rows:
        cells: list[str] = rows["cells"].tolist()  # what crossed the channel is sorted by name, columns are not
    found = parse(ScoresInfo, {**info, "sizes": {cell: info["sizes"][cell] for cell in cells}}, str(out))
    with Writer(out, cells) as writer:
        for path in paths:
            with np.load(path, allow_pickle=False) as rows:
                writer.write(rows["ids"].tolist(), rows["labels"].tolist(), rows["losses"], rows["norms"])
        writer.close(found)
    return found
