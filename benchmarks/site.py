"""How long the leaderboard takes with 10,000 runs in 1,000 submissions: to validate, to build, to look at.

Every submission holds ten real runs of tests/records/board.zip: full tuning, random submodules and one other arm in
three blocks, and one run more. Names, authors and answers differ: the likelihoods of some items' two choices change
places, prediction, psi and manifest follow, so that rules find nothing wrong and no two rows have the same score. A
sample that no reading is made of differs too: runs with the same samples are copies, and do not rank.

Limits: 60 s to build after one submission was touched, and from stored entries into an empty folder; 400 KiB for the
first view of the board, compressed (page, style, scripts); 200 ms from a filter or a sort to the second frame after it,
in headless Chromium. A search is told apart: it waits for the next letter first.

python -m benchmarks.site             prints as its last line JSON with all of these and their shares of the limits
python -m benchmarks.site --profile   also where the time of the builds goes; --submissions 50 for a quick look
"""

from __future__ import annotations

import argparse
import cProfile
import gzip
import hashlib
import json
import os
import pstats
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cprbench.adapt.packages import cache_folder
from cprbench.adapt.scoring import Prediction, psi
from cprbench.runs.store import MANIFEST, PREDICTIONS, RECORD, SAMPLES

LIMIT_SECONDS, LIMIT_KIB, LIMIT_MS = 60.0, 400.0, 200.0
_SUBMISSIONS, _RUNS = 1000, 10
_CONTROLS = ("full", "random-submodules k=0.15")
_ROOT = Path(__file__).parents[1]
_RECORDS = _ROOT / "tests" / "records"
#: What a reader does, each a line of JavaScript: `pick` chooses the n-th option of a filter, `head` clicks a heading.
_ACTIONS = {
    "filter": [
        *("pick('method', 1)", "pick('method', 3)", "pick('kind', 1)", "pick('kind', 3)", "pick('kind', 0)"),
        *("pick('method', 0)", "pick('selection', 1)", "pick('selection', 0)", "axis('device_hours')", "axis('flops')"),
        *("pick('group', 1)", "pick('group', 4)", "pick('group', 0)"),
    ],
    "sort": ["head('psi')", "head('psi')", "head('gamma_flops')", "head('arm')", "head('submission')", "head('tier')"],
    "search": ["type('partial')", "type('submission-0042')", "type('')"],
}
_MEASURE = """async action => {
  const table = document.querySelector('#board'), form = document.querySelector('#controls');
  const tell = (field, kind) => field.dispatchEvent(new Event(kind, {bubbles: true}));
  const pick = (name, n) => { form.elements[name].selectedIndex = n; tell(form.elements[name], 'input'); };
  const axis = (name, radio = document.querySelector(`#a-${name}`)) => { radio.checked = true; tell(radio, 'input'); };
  const head = key => table.tHead.querySelector(`[data-key="${key}"] button`).click();
  const type = text => { form.elements.search.value = text; tell(form.elements.search, 'input'); };
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const body = table.tBodies[0], points = document.querySelector('.points');
  let drawn = 0;
  const watch = new MutationObserver(() => { drawn = performance.now(); });
  watch.observe(points, {childList: true});
  const began = performance.now();
  eval(action);
  while (table.tBodies[0] === body && performance.now() - began < 20000) await frame();
  await frame();
  await frame();
  const shown = performance.now() - began;
  while (!drawn && performance.now() - began < 20000) await frame();
  watch.disconnect();
  return [shown, drawn - began];
}"""


def make(folder: Path, submissions: int) -> None:
    """Write the submissions into a folder."""
    with zipfile.ZipFile(_RECORDS / "board.zip") as archive:
        real: dict[str, dict[str, bytes]] = {}
        for name in archive.namelist():
            run, _, file = name.rpartition("/")
            if file:
                real.setdefault(run, {})[file] = archive.read(name)
    arms: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
    for run, files in sorted(real.items()):
        arms.setdefault(json.loads(files[RECORD])["arm"], []).append((run, files))
    others = sorted(set(arms) - set(_CONTROLS))
    for number in range(submissions):
        luck = random.Random(number)
        own, next_one = (others[(number + i) % len(others)] for i in (0, 1))
        runs = [run for arm in (*_CONTROLS, own) for run in arms[arm]] + arms[next_one][:1]
        target, skill = folder / f"submission-{number:04d}", luck.uniform(0.3, 0.9)
        for run, files in runs[:_RUNS]:
            _write(target / "runs" / run, _answered(files, luck, skill))
        said = [("schema", "cprbench.submission/1"), ("name", target.name), ("license", "CC-BY-4.0")]
        lines = [f'{key} = "{value}"' for key, value in said] + [f'authors = ["Author {number % 317}"]']
        (target / "submission.toml").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _answered(files: Mapping[str, bytes], luck: random.Random, skill: float) -> dict[str, bytes]:
    """Return a run whose answers to some items are the other choice, right with a chance of `skill`."""
    record: dict[str, Any] = json.loads(files[RECORD])
    rows = [json.loads(line) for line in files[PREDICTIONS].decode().splitlines()]
    for row in rows:
        if luck.random() < 0.2 and (row["prediction"] == row["reference"]) != (luck.random() < skill):
            one, other = row["scores"]["log_likelihoods"].items()
            told = {one[0]: other[1], other[0]: one[1]}
            row["prediction"] = max(told, key=lambda choice: told[choice])
            row["scores"] |= {"log_likelihoods": told, "nll": -told[row["reference"]]}
    record["psi"]["final"] = psi([Prediction.from_row(row) for row in rows], list(record["psi"]["final"]))
    text = json.dumps(record, indent=1, ensure_ascii=False)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {**files, RECORD: text.encode(), PREDICTIONS: lines.encode(), SAMPLES: _sampled(files[SAMPLES], luck)}


def _sampled(samples: bytes, luck: random.Random) -> bytes:
    """Return a run's samples with another value where no reading is made of it: two runs never have the same."""
    rows = [json.loads(line) for line in samples.splitlines()]
    edge = next(row for row in rows if row.get("edge") == "start" and "pss_bytes" in row["values"])
    edge["values"]["pss_bytes"] -= luck.randrange(1, 200_000)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != MANIFEST}
    for name in hashes:
        (folder / name).write_bytes(files[name])
    (folder / MANIFEST).write_text(json.dumps({"files": hashes}), encoding="utf-8")


def _surroundings(folder: Path) -> None:
    """Let this process and its children know small-core, and store entries where there are none yet."""
    shutil.copytree(_ROOT / "tasks", folder / "tasks")
    shutil.copy(_RECORDS / "suites" / "small-core.toml", folder / "tasks" / "suites")
    known = cache_folder() / "packages"
    (folder / "cache").mkdir()
    if known.is_dir():
        (folder / "cache" / "packages").symlink_to(known)
    os.environ |= {"CPRBENCH_TASKS": str(folder / "tasks"), "CPRBENCH_CACHE": str(folder / "cache")}


def built(submissions: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """Return the wall seconds of `leaderboard build` in a fresh process, and what it says it did."""
    words = [sys.executable, "-m", "cprbench", "leaderboard", "build", "--submissions", str(submissions)]
    began = time.perf_counter()
    done = subprocess.run([*words, "--out", str(out), "--json"], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def _tree(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _validated(submissions: Path) -> dict[str, Any]:
    """Return how long it takes to validate all of it for the first time, and what comes of it."""
    from cprbench.submissions.shelf import entries

    began = time.perf_counter()
    found = entries(submissions)
    seconds = time.perf_counter() - began
    runs = sum(entry.checked.get("B2", 0) for entry in found)
    return {
        "submissions": len(found),
        "runs": runs,
        "rows": sum(len(entry.rows) for entry in found),
        "ranked": sum(row.ranked for entry in found for row in entry.rows),
        "consistent": sum(entry.status == "consistent" for entry in found),
        "cold_validation_seconds": round(seconds, 1),
        "cold_validation_ms_per_run": round(1000 * seconds / max(1, runs), 1),
    }


def _looked_at(site: Path) -> dict[str, Any]:
    """Return what the first view of the largest board weighs, and how long its filters and sorts take."""
    from playwright.sync_api import sync_playwright

    board = max(site.glob("*/index.html"), key=lambda path: path.stat().st_size).relative_to(site)
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    found: dict[str, Any] = {}
    with _served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 900}, bypass_csp=True)  # eval is ours
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(request.url.removeprefix(f"{address}/")))
        page.goto(f"{address}/{board}", wait_until="networkidle")
        kib = _kib(site, asked)
        found |= {"first_view_kib": round(kib, 1), "share_of_limit_kib": round(kib / LIMIT_KIB, 3)}
        # The first action fetches the board's other pages, which is the network's time: it is told apart.
        found["first_action_ms"] = round(page.evaluate(_MEASURE, "head('psi')")[0])
        found["whole_board_kib"] = round(_kib(site, asked))
        page.evaluate(_MEASURE, "head('psi')")
        page.evaluate(_MEASURE, "head('psi')")
        worst = 0.0
        for kind, actions in _ACTIONS.items():
            times = [page.evaluate(_MEASURE, action) for _ in range(3) for action in actions]
            shown, drawn = ([time[i] for time in times] for i in (0, 1))
            found |= {f"{kind}_ms": round(statistics.median(shown)), f"{kind}_ms_worst": round(max(shown))}
            found |= {f"{kind}_plot_ms_worst": round(max(drawn))}
            worst = worst if kind == "search" else max(worst, *shown)
        browser.close()
    return found | {"share_of_limit_ms": round(worst / LIMIT_MS, 3)}


def _kib(site: Path, asked: set[str]) -> float:
    """Return what files of the site weigh, each compressed by itself."""
    return sum(len(gzip.compress((site / path).read_bytes())) for path in asked) / 1024


@contextmanager
def _served(site: Path) -> Iterator[str]:
    from cprbench.render.site.serving import open_server

    with open_server(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def main() -> None:
    """Make the submissions, validate and build them three times, and look at the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="also print where the time of a build goes")
    parser.add_argument("--submissions", type=int, default=_SUBMISSIONS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _surroundings(folder)
        submissions, site, again = (folder / part for part in ("submissions", "site", "again"))
        make(submissions, asked.submissions)
        found = _validated(submissions)
        from_stored, _ = built(submissions, site)
        second, told = built(submissions, site)
        other, _ = built(submissions, again)
        found |= {"identical": told["written"] == 0 and _tree(site) == _tree(again)}
        spec = submissions / "submission-0001" / "submission.toml"
        spec.write_text(spec.read_text(encoding="utf-8").replace("Author", "Another author"), encoding="utf-8")
        touched, told = built(submissions, site)
        found |= {
            "site_mib": round(sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 2**20, 1),
            "files": told["files"],
            "build_seconds": round(min(from_stored, other), 2),
            "second_build_seconds": round(second, 2),
            "touched_seconds": round(touched, 2),
            "touched_validated": told["validated"],
            "touched_written": told["written"],
            "share_of_limit_seconds": round(max(min(from_stored, other), touched) / LIMIT_SECONDS, 3),
        }
        if asked.profile:
            from cprbench.cli import app

            profile = cProfile.Profile()
            words = ["leaderboard", "build", "--submissions", str(submissions), "--out", str(folder / "profiled")]
            profile.runcall(app, words, standalone_mode=False)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
        print(json.dumps(found | _looked_at(site)))


if __name__ == "__main__":
    main()
