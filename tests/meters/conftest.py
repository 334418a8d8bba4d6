"""What the meters' tests share: a played driver, and a trace's windows by phase."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cprbench.meters.energy import Spans
from cprbench.meters.trace import Trace, Window

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]


@pytest.fixture(scope="session")
def shim_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in driver, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc), so the stand-in for libnvidia-ml.so.1 cannot be built")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    folder = tmp_path_factory.mktemp("nvml")
    target = str(folder / "libnvidia-ml.so.1")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", target, str(_HERE / "nvml_shim.c"), "-lm"], check=True
    )
    return folder


@pytest.fixture(scope="session")
def play(shim_folder: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Play a scenario (shim.py): play(script, edges, until=…) returns the answer, with its trace."""
    with _player(shim_folder) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def ask(script: str, edges: list[tuple[float, str, str, int]], until: float = 0.0, **more: Any) -> Any:
            request = {"script": script, "edges": edges, "until": until, "every": 0.1, "offset": 0.03}
            stdin.write(json.dumps(request | more) + "\n")
            stdin.flush()
            answer = json.loads(stdout.readline())
            if "lines" in answer:
                answer["trace"] = Trace.parse(answer["lines"], "shim")
            return answer

        yield ask
        stdin.close()


@pytest.fixture
def without_driver(tmp_path: Path) -> dict[str, Any]:
    """What the meter says where libnvidia-ml.so.1 cannot be loaded."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    (tmp_path / "libnvidia-ml.so.1").write_text("")  # also hides a true one, further down the loader's path
    with _player(tmp_path) as server:
        return dict(json.loads(server.communicate("{}\n")[0]))


@pytest.fixture(scope="session")
def spans() -> Callable[[Trace], Spans]:
    """Group a trace's windows by phase and attempt; select and train of all attempts are billed."""

    def group(trace: Trace) -> Spans:
        found: dict[Any, list[Window]] = {}
        for window in trace.windows():
            found.setdefault((window.phase, window.attempt), []).append(window)
        billed = [w for (phase, _), windows in found.items() if phase in ("select", "train") for w in windows]
        return found | {("billed", 1): billed}

    return group


def _player(folder: Path) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    return subprocess.Popen(
        [sys.executable, str(_HERE / "shim.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(_ROOT)},
    )
