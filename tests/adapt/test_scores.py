"""The scores file: what is written is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cprbench.adapt.selection import scores
from cprbench.adapt.selection.scores import KEY, ScoresInfo, Writer, norm_over, read
from cprbench.errors import SpecError
from cprbench.schema import parse

SIZES = {"embed": 400, "attn.0": 100, "ffn.0": 200, "attn.1": 100, "ffn.1": 200}
NORMS = np.array([[3.0, 4.0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 6, 8]])
Table = tuple[list[str], list[str], np.ndarray, np.ndarray]


def info_data(examples: int, sizes: dict[str, int] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the metadata of a scores file as JSON."""
    sizes = sizes or SIZES
    model = {"source": "acme/tiny", "label": "tiny", "weights_sha256": "a1" * 32, "kind": "encoder"}
    return {
        "schema": "cprbench.scores/1",
        "task": {"name": "movie-snippets", "version": 1, "data_sha256": "d0" * 32},
        "split": "train",
        "model": {**model, "revision": None, "parameters": sum(sizes.values())},
        "sizes": sizes,
        "head": "drawn from block 0, then warmed",
        "warmup_steps": 50,
        "block": 0,
        "max_tokens": 48,
        "precision": "fp32",
        "examples": examples,
        "made": {"tool": "cprbench 0.1.0", "seconds": 2.5, "flops": 10**9},
        **changes,
    }


def example_info(examples: int, **changes: Any) -> ScoresInfo:
    """Return the metadata of a scores file."""
    return parse(ScoresInfo, info_data(examples, **changes), "the example")


def save(
    path: Path,
    norms: Any = NORMS,
    *,
    ids: Sequence[str] = (),
    labels: Sequence[str] = (),
    losses: Any = None,
    sizes: dict[str, int] | None = None,
    **changes: Any,
) -> Path:
    """Write a scores file and return its path; by default four examples x0 to x3 of classes a and b in turn."""
    norms = np.asarray(norms, dtype=np.float64)
    n = len(norms)
    with Writer(path, list(sizes or SIZES)) as writer:
        writer.write(
            list(ids) or [f"x{i}" for i in range(n)],
            list(labels) or ["ab"[i % 2] for i in range(n)],
            np.arange(n, dtype=float) if losses is None else np.asarray(losses, dtype=float),
            norms,
        )
        writer.close(example_info(n, sizes=sizes, **changes))
    return path


def altered(path: Path, change: Callable[[pa.Table], pa.Table], **metadata: Any) -> Path:
    """Rewrite a scores file with pyarrow alone, as a stranger would."""
    data = {**json.loads(pq.read_metadata(path).metadata[KEY]), **metadata}
    pq.write_table(change(pq.read_table(path)).replace_schema_metadata({KEY: json.dumps(data).encode()}), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def with_column(name: str, values: list[Any], kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        i = table.schema.names.index(name)
        return table.set_column(i, name, pa.array(values, kind or table.schema.field(i).type))

    return change


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "s.parquet", labels=["a", "b", "a", "ä\n"])
    found = read(path)
    assert found.ids == ["x0", "x1", "x2", "x3"]
    assert found.labels == ["a", "b", "a", "ä\n"]
    assert found.cells == list(SIZES)
    assert list(found.sizes.items()) == list(SIZES.items())
    assert found.influence.tolist() == [5.0, 2.0, 0.0, 10.0]  # eq. 27: the root of the summed squares
    assert found.losses.tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.norms, NORMS)
    assert found.info == example_info(4)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pq.read_table(path).schema.names == ["id", "label", "loss", "influence", *(f"norm.{c}" for c in SIZES)]


def test_columns_and_not_the_metadata_give_the_order_of_submodules(tmp_path: Path) -> None:
    path = altered(save(tmp_path / "s.parquet"), lambda t: t, sizes=dict(reversed(SIZES.items())))
    assert list(read(path).sizes.items()) == list(SIZES.items())


def test_the_same_rows_give_the_same_bytes_however_they_are_dealt(tmp_path: Path) -> None:
    n = 10_000  # more than two row groups
    norms = np.random.default_rng(0).lognormal(size=(n, 5))
    ids, labels = [f"x{i}" for i in range(n)], ["ab"[i % 2] for i in range(n)]
    for name, size in (("one", n), ("many", 700)):
        with Writer(tmp_path / name, list(SIZES)) as writer:
            for at in range(0, n, size):
                part = slice(at, at + size)
                writer.write(ids[part], labels[part], norms[part, 0], norms[part])
            writer.close(example_info(n))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    assert pq.ParquetFile(tmp_path / "one").num_row_groups == 3
    assert np.array_equal(read(tmp_path / "many").norms, norms)


def test_tiny_and_huge_norms_have_their_influence() -> None:
    assert norm_over(np.array([[3e-200, 4e-200], [3e99, 4e99], [0, 0]])).tolist() == [
        pytest.approx(5e-200, rel=1e-12, abs=0),
        pytest.approx(5e99, rel=1e-12),
        0,
    ]


def test_only_a_close_puts_a_file_in_place(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    old = save(path).read_bytes()
    with Writer(path, list(SIZES)) as writer:
        writer.write(["y"], ["a"], np.ones(1), NORMS[:1])
        assert [p.name for p in tmp_path.iterdir() if p != path] == [f"s.parquet.tmp-{os.getpid()}"]
    with pytest.raises(RuntimeError, match="stopped"), Writer(path, list(SIZES)):
        raise RuntimeError("stopped")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    for bad in (np.nan, np.inf, -1.0, 1e101):
        with Writer(path, list(SIZES)) as writer:
            with pytest.raises(SpecError, match=r"norm.attn.0 of example 'y' is"):
                writer.write(["y"], ["a"], np.ones(1), [[1, bad, 1, 1, 1]])  # type: ignore[arg-type]
            with pytest.raises(SpecError, match="loss of example 'y' is"):
                writer.write(["y"], ["a"], np.array([bad]), NORMS[:1])
            with pytest.raises(ValueError, match="unlike shapes"):
                writer.write(["y", "z"], ["a"], np.ones(1), NORMS[:1])
            with pytest.raises(ValueError, match="unlike shapes"):
                writer.write(["y"], ["a"], np.ones(1), NORMS[:1, :4])
            writer.write(["y"], ["a"], np.ones(1), NORMS[:1])
            for info in (example_info(2), example_info(1, sizes={"embed": 1})):
                with pytest.raises(SpecError, match="1 rows of 5 submodules were written"):
                    writer.close(info)
    assert not path.exists()
    with pytest.raises(SpecError, match="cannot be written"):
        Writer(tmp_path / "no" / "s.parquet", list(SIZES))


def test_files_that_are_no_scores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    assert "No such file" in refusal(path)
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    path.write_text("id,label\n")
    assert "not parquet that can be read" in refusal(path)
    pq.write_table(pa.table({"id": ["a"], "label": ["b"]}), path)
    assert "lacks the metadata 'cprbench.scores'" in refusal(path)
    assert "no column 'label'" in refusal(altered(save(path), lambda t: t.drop_columns(["label"])))
    pq.write_table(pq.read_table(save(path)).replace_schema_metadata({}), path)
    assert "lacks the metadata" in refusal(path)
    whole = save(path).read_bytes()
    path.write_bytes(whole[:-100])
    assert "not parquet that can be read" in refusal(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "are a list"),
        (b"{}", "task is missing"),
        (json.dumps(info_data(4, heads="x")).encode(), "unknown key 'heads'. Did you mean 'head'?"),
        (b'"' + b"a" * scores.MAX_METADATA + b'"', "its metadata take"),
        (json.dumps(info_data(4, schema="cprbench.scores/2")).encode(), "'cprbench.scores/1' (found"),
        (json.dumps(info_data(4, split="test")).encode(), "split"),
        (json.dumps(info_data(4, sizes={**SIZES, "embed": 0})).encode(), "sizes.embed"),
        (json.dumps(info_data(0)).encode(), "examples"),
        (json.dumps({**info_data(4), "sizes": {**SIZES, "embed": 1}}).encode(), "sizes sum to 601"),
        (json.dumps({str(i): 0 for i in range(5000)}).encode(), "task is missing"),
    ],
)
def test_metadata_of_strangers_are_read_with_care(tmp_path: Path, raw: bytes, words: str) -> None:
    path = save(tmp_path / "s.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata({KEY: raw}), path)
    message = refusal(path)
    assert words in message
    assert len(message.splitlines()) <= 5


@pytest.mark.parametrize(
    ("change", "metadata", "words"),
    [
        (lambda t: t.slice(0, 3), {}, "holds 3 rows, its metadata say 4 examples"),
        (lambda t: t.slice(0, 0), {}, "holds 0 rows"),
        (lambda t: t.drop_columns(["loss"]), {}, "columns are 'id, label, influence"),
        (lambda t: t.drop_columns(["norm.ffn.1"]), {}, "differ in submodule 'ffn.1'"),
        (lambda t: t.append_column("norm.ffn.9", pa.array(np.ones(4))), {}, "differ in submodule 'ffn.9'"),
        (lambda t: t.append_column("norm.ffn.1", pa.array(np.ones(4))), {}, "differ in submodule 'ffn.1'"),
        (lambda t: t.append_column("more", pa.array(np.ones(4))), {}, "columns are"),
        (lambda t: t.select([1, 0, *range(2, t.num_columns)]), {}, "columns are 'label, id"),
        (with_column("loss", [1, 2, 3, 4], pa.int64()), {}, "column 'loss' is of type 'int64'"),
        (with_column("id", [1, 2, 3, 4], pa.int64()), {}, "column 'id' is of type 'int64'"),
        (with_column("norm.embed", [3.0, 1, 0, 0], pa.float32()), {}, "column 'norm.embed' is of type 'float'"),
        (with_column("loss", [1, 2, float("nan"), 4]), {}, "loss of example 'x2' is nan"),
        (with_column("loss", [1, 2, 3, None]), {}, "loss of example 'x3' is nan"),
        (with_column("loss", [1, -0.5, 3, 4]), {}, "loss of example 'x1' is -0.5"),
        (with_column("norm.ffn.1", [0, 0, 0, float("inf")]), {}, "norm.ffn.1 of example 'x3' is inf"),
        (with_column("influence", [5, 2, 0, 10.001]), {}, "influence of example 'x3' is 10.001"),
        (with_column("influence", [5, 2, 1e-12, 10]), {}, "influence of example 'x2' is 1e-12"),
        (with_column("id", ["x0", "x1", "x0", "x2"]), {}, "id 'x0' is there more than once"),
        (with_column("id", ["x0", "x1", "x3", None]), {}, "1 rows have no id"),
        (with_column("label", ["a", None, None, "b"]), {}, "2 rows have no label"),
        (with_column("id", ["x0", "x1", "x3", "x" * 1001]), {}, "one id takes 1001 bytes"),
        (with_column("label", ["a", "b", "c" * 100_001, "d"]), {}, "one label takes 100001 bytes"),
    ],
)
def test_rows_that_contradict_the_metadata_or_one_another_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], metadata: dict[str, Any], words: str
) -> None:
    assert words in refusal(altered(save(tmp_path / "s.parquet"), change, **metadata))


def test_influence_agrees_to_a_millionth(tmp_path: Path) -> None:
    near = altered(save(tmp_path / "s.parquet"), with_column("influence", [5 * (1 + 9e-7), 2, 0, 10]))
    assert read(near).influence[0] == 5 * (1 + 9e-7)
    assert "influence" in refusal(altered(near, with_column("influence", [5 * (1 + 2e-6), 2, 0, 10])))


def test_more_values_than_fit_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "s.parquet")
    monkeypatch.setattr(scores, "MAX_VALUES", 4 * 9)
    assert len(read(path).ids) == 4
    monkeypatch.setattr(scores, "MAX_VALUES", 4 * 9 - 1)
    assert "4 rows of 9 columns are more than 35 values" in refusal(path)


def test_broken_bytes_never_end_in_anything_but_our_error(tmp_path: Path) -> None:
    path, draw = tmp_path / "s.parquet", random.Random(0)
    whole = save(path).read_bytes()
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(3):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(broken)
        try:
            read(path)
        except SpecError:
            refused += 1
    assert refused > 200


def test_without_pyarrow_the_reader_says_what_to_install(tmp_path: Path) -> None:
    path = save(tmp_path / "s.parquet")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from cprbench.adapt.selection import scores\n"
        "from cprbench.errors import SpecError\n"
        f"try: scores.read({str(path)!r})\nexcept SpecError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'cprbench[train]'" in done.stdout, done.stderr
