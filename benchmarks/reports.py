"""How long `cprbench report` takes over 500 runs in all formats, in a fresh process, against a limit of 20 s.

The runs are made from the real ones in tests/records/quickstart.zip: five models x ten arms x ten blocks, with all
their files; scores and costs of the copies differ by luck, for which predictions are changed too.

python -m benchmarks.reports             prints as its last line JSON with seconds by format and in all
python -m benchmarks.reports --profile   also where the time goes
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import pstats
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from cprbench.runs.store import MANIFEST, PREDICTIONS, RECORD
from cprbench.schema import sha256_of

LIMIT_SECONDS = 20.0
FORMATS = ("html", "md", "latex", "csv", "json")
_MODELS, _BLOCKS = 5, 10
_ARMS = ("head", "full", "lora", "lora r=4", "partial k=0.05", "partial k=0.1", "partial k=0.15", "partial k=0.2")
_MORE = ("partial k=0.3", "random-submodules k=0.15")
_ROOT = Path(__file__).parents[1]


def make(folder: Path) -> int:
    """Write the runs into a folder and return how many there are."""
    with zipfile.ZipFile(_ROOT / "tests" / "records" / "quickstart.zip") as archive:
        real: dict[str, dict[str, bytes]] = {}
        for name in archive.namelist():
            run, _, file = name.rpartition("/")
            if file:
                real.setdefault(run, {})[file] = archive.read(name)
    by_arm = {json.loads(files[RECORD])["arm"]: files for files in real.values()}
    made = 0
    for model in range(_MODELS):
        for arm in (*_ARMS, *_MORE):
            like = by_arm.get(arm) or by_arm["lora" if arm.startswith("lora") else "partial k=0.15"]
            for block in range(_BLOCKS):
                _copy(folder, like, f"model-{model}", arm, block)
                made += 1
    return made


def _copy(folder: Path, like: dict[str, bytes], model: str, arm: str, block: int) -> None:
    luck = random.Random(f"{model} {arm} {block}")
    record: dict[str, Any] = json.loads(like[RECORD])
    run_id = sha256_of([model, arm, block])[:16]
    method, _, word = arm.partition(" ")
    settings = record["spec"]["method"]["settings"]
    if word:
        name, _, value = word.partition("=")
        settings = settings | {name: float(value)}
        record |= {"k_asked": float(value), "k_reached": 0.95 * float(value)} if name == "k" else {}
    record["spec"]["method"] = {"name": method, "settings": settings}
    record["spec"]["model"] |= {"label": model, "weights_sha256": sha256_of(model)}
    rows = [json.loads(line) for line in like[PREDICTIONS].decode().splitlines()]
    for row in rows:
        if luck.random() < 0.05:
            row["prediction"] = row["reference"] if luck.random() < 0.7 else "changed"
    right = sum(row["prediction"] == row["reference"] for row in rows) / len(rows)
    record["psi"]["final"] |= {"accuracy": right}
    for cost in ("device_hours", "core_hours", "memory_gb_hours"):
        record["gamma"][cost] *= luck.uniform(0.9, 1.1)
    record |= {"run_id": run_id, "arm": arm, "block": block}
    files = {name: content for name, content in like.items() if name != MANIFEST}
    files[RECORD] = json.dumps(record).encode()
    files[PREDICTIONS] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / run_id).mkdir(parents=True)
    for name, content in files.items():
        (folder / run_id / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / run_id / MANIFEST).write_text(json.dumps({"files": hashes}), encoding="utf-8")


def seconds(runs: Path, out: Path, formats: str) -> float:
    """Return the wall seconds of one report in a fresh process."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "cprbench", "report", str(runs), "--format", formats, "--out", str(out)]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Make the runs, report them format by format and all at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, out = Path(folder) / "runs", Path(folder) / "pages"
        made = make(runs)
        found = {f"{name}_seconds": round(seconds(runs, out, name), 2) for name in FORMATS}
        whole = seconds(runs, out, ",".join(FORMATS))
        if asked.profile:
            from cprbench.cli import app

            profile = cProfile.Profile()
            words = ["report", str(runs), "--format", ",".join(FORMATS), "--out", str(out)]
            profile.runcall(app, words, standalone_mode=False)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
        size = (out / "report.html").stat().st_size
        print(
            json.dumps(
                {"runs": made, "seconds": round(whole, 2), "share_of_limit": round(whole / LIMIT_SECONDS, 3)}
                | found
                | {"html_bytes": size}
            )
        )


if __name__ == "__main__":
    main()
