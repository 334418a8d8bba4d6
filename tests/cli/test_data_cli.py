"""`cprbench data select` and `cross`, as a person and as a script use them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapt.test_scores import SIZES, save
from tests.cli.test_cli import cprbench, refused

N = 20
NAMES = [f"x{i:02d}" for i in range(N)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty examples: J falls with the number; losses rise; ffn.1 goes the other way; class b is the lower half."""
    u = np.array([4.0, 3.0, 1.0, 2.0, 0.0])
    norms = np.outer(np.arange(N, 0, -1) ** 1.5, u)
    norms[:, 4] = 0.1 * np.arange(1, N + 1)
    labels = ["a"] * 10 + ["b"] * 10
    return save(tmp_path / "scores.parquet", norms, ids=NAMES, labels=labels, losses=np.arange(N))


def data(*words: str | Path) -> str:
    """Return what `cprbench data` prints."""
    done = cprbench("data", *map(str, words))
    assert done.returncode == 0, done.stderr
    return done.stdout


def ids(*words: str | Path) -> list[str]:
    found: list[str] = json.loads(data("select", *words))["ids"]
    return found


def no(*words: str | Path) -> str:
    return refused("data", *map(str, words))


def test_a_selection_names_its_ids_its_recipe_and_both_ends(file: Path) -> None:
    found = json.loads(data("select", file, "--q", "0.3"))
    assert found == {
        "schema": "cprbench.selection/1",
        "recipe": {"by": "influence", "q": 0.3, "band": None, "class_guard": False, "submodules": None},
        "scores_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "task": {"name": "movie-snippets", "version": 1, "data_sha256": "d0" * 32},
        "model": {"label": "tiny", "weights_sha256": "a1" * 32},
        "examples": 20,
        "selected": 6,
        "classes": {"a": {"kept": 6, "of": 10}, "b": {"kept": 0, "of": 10}},
        "classes_dropped": ["b"],
        "selection_sha256": hashlib.sha256("\n".join(NAMES[:6]).encode()).hexdigest(),
        "ids": NAMES[:6],
    }


def test_a_selection_follows_its_recipe(file: Path) -> None:
    assert ids(file, "--q", "0.1", "--by", "loss") == NAMES[18:]
    assert ids(file, "--q", "0.1", "--submodules", "ffn.1") == NAMES[18:]
    assert ids(file, "--q", "0.1", "--submodules", "attn.0,ffn.1") == NAMES[:2]  # together attn.0 is the larger
    assert ids(file, "--band", "20..40") == NAMES[12:16]
    guarded = json.loads(data("select", file, "--q", "0.3", "--class-guard"))
    assert guarded["ids"] == [*NAMES[:3], *NAMES[10:13]]
    assert (guarded["classes_dropped"], guarded["recipe"]["class_guard"]) == ([], True)
    named = json.loads(data("select", file, "--band", "0..100", "--submodules", "ffn.1,attn.0,ffn.1"))["recipe"]
    assert named == {
        "by": "influence",
        "q": None,
        "band": "0..100",
        "class_guard": False,
        "submodules": ["ffn.1", "attn.0"],
    }


def test_ids_stand_in_the_order_of_the_file_and_their_hash_does_not(file: Path, tmp_path: Path) -> None:
    turned = save(tmp_path / "turned.parquet", np.ones((3, 5)), ids=["c", "a", "b"])
    found = json.loads(data("select", turned, "--q", "1"))
    assert found["ids"] == ["c", "a", "b"]
    assert found["selection_sha256"] == hashlib.sha256(b"a\nb\nc").hexdigest()


def test_equal_scores_are_told_apart_by_ids_and_not_by_their_order(tmp_path: Path) -> None:
    names = [f"twin{i}" for i in range(6)]
    one = save(tmp_path / "one.parquet", np.ones((6, 5)), ids=names)
    other = save(tmp_path / "other.parquet", np.ones((6, 5)), ids=names[::-1])
    assert set(ids(one, "--q", "0.5")) == set(ids(other, "--q", "0.5"))
    assert len(ids(one, "--q", "0.5")) == 3


def test_a_selection_is_written_with_a_summary_and_the_same_bytes_twice(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "picked.json"
    summary = data("select", file, "--q", "0.3", "--out", out)
    assert summary == f"{out}: 6 of 20 examples, 57.9 % of the sum of gradient norms. No example is left of b.\n"
    first = out.read_bytes()
    printed = data("select", file, "--q", "0.3")
    assert printed.encode() == first
    told = data("select", file, "--q", "0.3", "--out", out, "--json")
    assert out.read_bytes() == first
    assert len(told.splitlines()) == 1
    assert json.loads(told) == json.loads(first)
    assert "No example" not in data("select", file, "--q", "1", "--out", out)


def test_many_lost_classes_are_counted_and_strangers_names_written_out(tmp_path: Path) -> None:
    labels = ["kept", *(f"\x1b[2Jclass{i}" for i in range(7))]
    file = save(tmp_path / "s.parquet", np.outer([2, *[1] * 7], np.ones(5)), labels=labels)
    summary = data("select", file, "--q", "0.125", "--out", tmp_path / "picked.json")
    assert summary.endswith(
        "No example is left of " + ", ".join(f"\\x1b[2Jclass{i}" for i in range(5)) + " and 2 more.\n"
    )
    zero = save(tmp_path / "zero.parquet", np.zeros((3, 5)))
    assert "2 of 3 examples, all gradient norms are 0." in data(
        "select", zero, "--q", "0.7", "--out", tmp_path / "picked.json"
    )


def test_select_refuses_what_selects_nothing_or_contradicts_itself(file: Path, tmp_path: Path) -> None:
    for words in ((), ("--q", "0.3", "--band", "20..80")):
        assert "--q 0.3, or --band 20..80, and not both" in no("select", file, *words)
    assert "keeps none" in no("select", file, "--q", "0.01")
    assert "outside (0, 1]" in no("select", file, "--q", "0")
    assert "outside (0, 1]" in no("select", file, "--q", "nan")
    assert "keeps none" in no("select", file, "--band", "50..50.1")
    assert "LOW..HIGH" in no("select", file, "--band", "80..20")
    assert "Did you mean 'loss'?" in no("select", file, "--q", "0.3", "--by", "los")
    assert "Did you mean 'attn.0'?" in no("select", file, "--q", "0.3", "--submodules", "ffn.1,atn.0")
    assert "Leave out --by loss" in no("select", file, "--q", "0.3", "--submodules", "ffn.1", "--by", "loss")
    before = file.read_bytes()
    assert "is what is being read" in no("select", file, "--q", "0.3", "--out", file)
    assert file.read_bytes() == before
    assert "cannot be written" in no("select", file, "--q", "0.3", "--out", tmp_path / "no" / "s.json")
    assert "cannot be read" in no("select", tmp_path / "absent.parquet", "--q", "0.3")


def test_cross_shows_its_grid_in_80_columns(file: Path) -> None:
    shown = data("cross", file)
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for part in (
        "task movie-snippets v1, train split, data sha256 d0d0d0d0d0d0",
        "model tiny, 1,000 parameters, weights a1a1a1a1a1a1",
        "block 0, 50 warm-up steps, fp32; new head: drawn from block 0, then warmed",
        "making them cost 2.50 s, 1.00e+09 FLOPs; not measured: device hours",
        "embed x00 358",
        "none: k = 0.05 is below the smallest submodule",
        "1 1.000 1 1.000 1.000 1.000",
    ):
        assert part in words, part


def test_cross_takes_d_q_by_influence_and_s_k_by_norm(file: Path) -> None:
    found = json.loads(data("cross", file, "--k", "0.1,1", "--q", "0.25,1", "--blocks", "4", "--json"))
    assert found["schema"] == "cprbench.cross/1"
    assert found["scores_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["info"]["examples"] == 20
    assert np.array(found["shares"]).shape == (5, 4)
    powers = np.arange(N, 0, -1) ** 1.5
    whole = 10 * powers.sum() + 0.1 * np.arange(1, N + 1).sum()
    grid = {(row["k"], row["q"]): row for row in found["grid"]}
    assert grid[0.1, 0.25]["submodules"] == ["attn.0"]
    assert grid[0.1, 0.25]["eq34"] == pytest.approx(3 * powers[:5].sum() / whole)
    assert grid[1, 1]["eq34"] == grid[1, 1]["eq35"] == 1
    assert found["pairs"][0] == {
        "submodule": "embed",
        "id": "x00",
        "value": pytest.approx(4 * powers[0]),
        "share": pytest.approx(4 * powers[0] / whole),
    }


def test_cross_writes_arrays_without_pickles_and_the_same_bytes_twice(file: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "t.npz", tmp_path / "again.npz"
    assert data("cross", file, "--blocks", "4", "--out", out) == f"{out}\n"
    data("cross", file, "--blocks", "4", "--out", again)
    assert out.read_bytes() == again.read_bytes()
    with np.load(out, allow_pickle=False) as arrays:
        found: dict[str, Any] = dict(arrays)
    assert found["T"].shape == (5, N)
    assert found["cells"].tolist() == list(SIZES)
    assert found["sizes"].tolist() == list(SIZES.values())
    assert found["ids"].tolist() == NAMES
    assert found["block_of_example"].tolist() == [i // 5 for i in range(N)]
    assert found["T_blocks"][0, 0] == pytest.approx(found["T"][0, :5].mean())
    assert found["singular_values"] == pytest.approx(np.linalg.svd(found["T"], compute_uv=False), abs=1e-9)


def test_cross_writes_a_page(file: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "page.html", tmp_path / "t.npz"
    assert data("cross", file, "--html", page, "--out", out) == f"{out}\n{page}\n"
    text = page.read_text()
    assert "<title>Cross-influence: tiny on movie-snippets</title>" in text
    assert "2.50 s, 1.00e+09 FLOPs" in text


def test_cross_refuses_what_cannot_be(file: Path, tmp_path: Path) -> None:
    assert "write shares with commas" in no("cross", file, "--k", "0.1;0.2")
    assert "write shares with commas" in no("cross", file, "--q", "")
    assert "outside (0, 1]" in no("cross", file, "--k", "1.5")
    assert "outside (0, 1]" in no("cross", file, "--q", "2")
    assert "keeps none" in no("cross", file, "--q", "0.01")
    assert "21 blocks of 20 examples" in no("cross", file, "--blocks", "21")
    assert "ends in .npz" in no("cross", file, "--out", tmp_path / "t.npy")
    assert "ends in .html" in no("cross", file, "--html", tmp_path / "t.npz")
    assert "cannot be written" in no("cross", file, "--out", tmp_path / "no" / "t.npz")
    for option, name in (("--out", "s.npz"), ("--html", "s.html")):
        source = tmp_path / name
        source.write_bytes(file.read_bytes())
        assert "is what is being read" in no("cross", source, option, source)
        assert source.read_bytes() == file.read_bytes()


def test_both_work_where_torch_is_not_installed_and_help_imports_neither_numpy_nor_pyarrow(
    file: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "for name in 'torch transformers peft pandas scipy matplotlib powerlaw accelerate safetensors'.split():\n"
        "    sys.modules[name] = None\n"
        "from cprbench.cli import app\n"
        "assert not {'numpy', 'pyarrow'} & set(sys.modules)\n"
        f"for words in (['select', {str(file)!r}, '--q', '0.5'], ['cross', {str(file)!r}]):\n"
        "    app(['data', *words], standalone_mode=False)\n"
        "print('both', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "both\n"


@pytest.mark.parametrize("verb", ["select", "cross"])
def test_every_verb_says_what_it_does(verb: str) -> None:
    assert len(data(verb, "--help").splitlines()) > 8
