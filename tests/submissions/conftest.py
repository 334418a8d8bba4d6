"""The records of tests/records/, packed as submissions, and a folder of tasks that knows their suite."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cprbench.submissions.packing import pack
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project's tasks and suites with small-core beside them, which ranks and of which board.zip holds runs."""
    folder = tmp_path_factory.mktemp("with-small-core") / "tasks"
    shutil.copytree(ROOT / "tasks", folder)
    shutil.copy(ROOT / "tests/records/suites/small-core.toml", folder / "suites")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPRBENCH_TASKS", str(folder))
        yield folder


@pytest.fixture(scope="session")
def packed(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the submission made of one of tests/records/*.zip, by its name; never written to."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            root = tmp_path_factory.mktemp("packed")
            with zipfile.ZipFile(ROOT / "tests" / "records" / f"{name}.zip") as archive:
                archive.extractall(root / "runs")
            made[name] = root / name
            pack(root / "runs", made[name], name=name, authors=["Ada Lovelace"])
        return made[name]

    return of


@pytest.fixture(scope="session")
def _one_block(packed: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(packed("board"), tmp_path_factory.mktemp("one-block") / "board")
    for run in (folder / "runs").iterdir():
        if json.loads((run / "record.json").read_text())["block"] != 1:
            shutil.rmtree(run)
    return folder


@pytest.fixture
def submission(_one_block: Path, tmp_path: Path) -> Path:
    """The six runs of block 1 of the packed board.zip, to be altered."""
    return shutil.copytree(_one_block, tmp_path / "board")


@pytest.fixture
def whole(packed: Callable[[str], Path], tmp_path: Path) -> Path:
    """All 18 runs of the packed board.zip, to be altered."""
    return shutil.copytree(packed("board"), tmp_path / "board")
