"""cprbench reproduce on real records, run again for real."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cprbench.runs.store import load_run
from tests.conftest import ROOT

PARTIAL, HEAD = "874a5dd8179692c2", "99f7dd7216543174"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests" / "records" / "methods.zip") as archive:
        archive.extractall(tmp_path / "records")
    return tmp_path / "records"


def reproduce(run: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "cprbench", "reproduce", str(run), "--out", str(out)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("run_id", [PARTIAL, HEAD])
def test_a_real_record_is_reproduced_under_its_own_id(run_id: str, records: Path, tmp_path: Path) -> None:
    done = reproduce(records / run_id, tmp_path / "again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "reproduced"
    then, now = (load_run(folder / run_id).record for folder in (records, tmp_path / "again"))
    assert now.spec == then.spec
    assert (now.role, now.limits, now.arm) == (then.role, then.limits, then.arm)
    assert now.gamma.flops == then.gamma.flops
    assert now.trained_submodules == then.trained_submodules


def test_a_boast_does_not_survive_a_re_run(records: Path, tmp_path: Path) -> None:
    folder = records / HEAD
    for name in ("record.json", "predictions.jsonl"):
        text = (folder / name).read_text(encoding="utf-8")
        if name == "record.json":
            data = json.loads(text)
            data["psi"]["final"]["accuracy"] = 1.0
            text = json.dumps(data)
        else:  # every answer is right
            rows = [json.loads(line) for line in text.splitlines()]
            text = "".join(json.dumps(row | {"prediction": row["reference"]}) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": hashes}))
    done = reproduce(folder, tmp_path / "again")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "differs: accuracy after"
