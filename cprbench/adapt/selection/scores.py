"""The scores file: one row per training example with its loss and the gradient norms that it gives. No torch.

`cprbench data score` writes it; `select` and `cross` read it, a stranger's file too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from cprbench.blueprint.schema import MAX_LAYERS, Count, Id, Making, ModelInfo
from cprbench.errors import SpecError
from cprbench.schema import Frozen, parse
from cprbench.spec import TaskRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA: Literal["cprbench.scores/1"] = "cprbench.scores/1"
#: The key of the schema metadata that holds ScoresInfo as JSON.
KEY = b"cprbench.scores"
#: The columns that every file has, in order; one NORM + submodule each follow, in partition order.
FIXED, NORM = ("id", "label", "loss", "influence"), "norm."
#: What a file may hold: bytes of metadata, rows x columns (2 GB of numbers), bytes of an id and of a label.
MAX_METADATA, MAX_VALUES, MAX_ID, MAX_LABEL = 256 * 2**10, 250_000_000, 1_000, 100_000
#: How far `influence` may be from the root of the summed squares of its norms, relative.
AGREEMENT = 1e-6
_LARGEST = 1e100  # as in blueprints: squares and sums of these stay finite
_GROUP = 4096  # rows of a row group, however few are written at a time: the same rows give the same bytes
_REMAKE = "Score the data again: cprbench data score."


class ScoredModel(ModelInfo):
    """The model that scored them."""

    label: Annotated[str, Field(min_length=1, max_length=300)]


class ScoresInfo(Frozen):
    """Where the scores are from. `sizes`: submodule -> parameters, of the columns; they sum to the model's."""

    schema_: Annotated[Literal["cprbench.scores/1"], Field(alias="schema")] = SCHEMA
    task: TaskRef
    split: Literal["train"]
    model: ScoredModel
    sizes: Annotated[dict[Id, Annotated[int, Field(gt=0, le=2**53)]], Field(min_length=1, max_length=MAX_LAYERS)]
    head: str | None  # how the new head of an encoder was drawn; None: the model has no new head
    warmup_steps: Count
    block: Count
    max_tokens: Count
    precision: str
    examples: Annotated[int, Field(gt=0)]
    made: Making | None = None

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _sizes_are_the_models(self) -> ScoresInfo:
        if (total := sum(self.sizes.values())) != self.model.parameters:
            raise ValueError(f"sizes sum to {total} parameters, model.parameters is {self.model.parameters}")
        return self


@dataclass(frozen=True, eq=False)
class Scores:
    """A scores file. `losses`, `influence`: (examples,); `norms`: (examples, submodules), T[i, z] at [z, i]."""

    info: ScoresInfo
    ids: list[str]
    labels: list[str]
    losses: NDArray[Any]
    influence: NDArray[Any]
    norms: NDArray[Any]
    cells: list[str]  # the submodules, in partition order
    sha256: str  # of the file's bytes

    @property
    def sizes(self) -> dict[str, int]:
        """Submodule -> parameters, in partition order."""
        return {cell: self.info.sizes[cell] for cell in self.cells}


def norm_over(norms: NDArray[Any]) -> NDArray[Any]:
    """Return the L2 norm of every row of `norms` (examples, submodules); over all submodules it is J (eq. 27)."""
    import numpy as np

    largest = norms.max(axis=1, keepdims=True, initial=0.0)  # the squares of 1e-200 would all be 0
    largest[largest == 0] = 1.0
    found: NDArray[Any] = largest[:, 0] * np.sqrt(np.square(norms / largest).sum(axis=1))
    return found


def read(path: str | Path) -> Scores:
    """Return the scores in the parquet file at `path`, which is untrusted.

    Its columns are FIXED and a norm per submodule of its metadata; its numbers are finite and at least 0; ids are
    there once each; `influence` agrees with its norms. Raises SpecError with the file and the value otherwise, and
    where pyarrow is not installed.
    """
    import numpy as np

    path = Path(path)
    pyarrow, parquet = _pyarrow()
    with _opened(path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            # Texts stay in their dictionary: a small file cannot blow one long text up into a million copies of it.
            file = parquet.ParquetFile(stream, read_dictionary=["id", "label"])
            info, names = _info(path, file.metadata), file.schema_arrow.names
            cells = _cells(path, file.schema_arrow, info, file.metadata.num_rows)
            ids: list[str] = []
            labels: list[str] = []
            numbers = np.empty((info.examples, len(cells) + 2))
            for batch in file.iter_batches(batch_size=_GROUP):
                for i, column in enumerate(batch.columns[2:]):  # null becomes NaN
                    numbers[len(ids) : len(ids) + len(batch), i] = column.to_numpy(zero_copy_only=False)
                ids += _texts(path, "id", batch.column(0), MAX_ID)
                labels += _texts(path, "label", batch.column(1), MAX_LABEL)
        except KeyError as error:  # raised for read_dictionary, with the name as bytes
            raise SpecError(f"{path}: has no column {error.args[0].decode()!r}. {_REMAKE}") from None
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise SpecError(f"{path}: is not parquet that can be read ({str(error)!r:.200}). {_REMAKE}") from None
    if len(ids) != info.examples:
        raise SpecError(f"{path}: {len(ids)} of its {info.examples} rows can be read. {_REMAKE}")
    if len(set(ids)) < len(ids):
        raise SpecError(f"{path}: id {Counter(ids).most_common(1)[0][0]!r} is there more than once. {_REMAKE}")
    _check_numbers(path, ids, names[2:], numbers)
    losses, influence, norms = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
    expected = norm_over(norms)
    if (odd := np.abs(influence - expected) > AGREEMENT * np.maximum(influence, expected)).any():
        i = int(odd.argmax())
        raise SpecError(
            f"{path}: influence of example {ids[i]!r} is {influence[i]:.9g}, the root of the summed squares of its "
            f"norms {expected[i]:.9g}. {_REMAKE}"
        )
    return Scores(info, ids, labels, losses, influence, norms, cells, digest)


class Writer:
    """Writes a scores file row group by row group: a context manager, whose `close` puts the whole file in place.

    A process that is killed leaves `<path>.tmp-<pid>` at most. The same rows and info give the same bytes, however
    the rows are dealt into calls.
    """

    def __init__(self, path: str | Path, cells: Sequence[str]) -> None:
        """`cells`: the submodules, in partition order. Raises SpecError where no file can be, or without pyarrow."""
        self._pyarrow, parquet = _pyarrow()
        self._path, self._cells, self._rows = Path(path), list(cells), 0
        self._part = self._path.with_name(f"{self._path.name}.tmp-{os.getpid()}")
        text, number = self._pyarrow.string(), self._pyarrow.float64()
        columns = [*((n, text) for n in FIXED[:2]), *((n, number) for n in (*FIXED[2:], *(NORM + c for c in cells)))]
        self._schema = self._pyarrow.schema(columns)
        self._waiting: Any = self._schema.empty_table()
        try:
            self._writer = parquet.ParquetWriter(self._part, self._schema)
        except OSError as error:
            raise SpecError(f"{path}: cannot be written ({error}). Choose a folder that exists.") from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._part.unlink(missing_ok=True)  # `close` has moved it

    def write(self, ids: Sequence[str], labels: Sequence[str], losses: NDArray[Any], norms: NDArray[Any]) -> None:
        """Add examples: `losses` (n,), `norms` (n, submodules). Raises SpecError for numbers that `read` refuses."""
        import numpy as np

        losses, norms = np.asarray(losses, np.float64), np.asarray(norms, np.float64)
        if not (len(ids) == len(labels) == len(losses) == len(norms)) or norms.shape[1:] != (len(self._cells),):
            shapes = f"{len(ids)} ids, {len(labels)} labels, losses {losses.shape}, norms {norms.shape}"
            raise ValueError(f"scores of unlike shapes for {len(self._cells)} submodules: {shapes}")
        names = self._schema.names
        _check_numbers(self._path, ids, [names[2], *names[4:]], np.column_stack([losses, norms]))
        columns = [list(ids), list(labels), losses, norm_over(norms), *norms.T]
        arrays = [self._pyarrow.array(column, kind) for column, kind in zip(columns, self._schema.types, strict=True)]
        added = self._pyarrow.table(arrays, schema=self._schema)
        self._waiting = self._pyarrow.concat_tables([self._waiting, added])
        self._rows += len(ids)
        while len(self._waiting) >= _GROUP:
            self._writer.write_table(self._waiting[:_GROUP].combine_chunks())
            self._waiting = self._waiting[_GROUP:]

    def close(self, info: ScoresInfo) -> None:
        """Write what waits and `info`, and put the file in place. Raises SpecError where `info` is of other rows."""
        if info.examples != self._rows or set(info.sizes) != set(self._cells):
            raise SpecError(
                f"{self._path}: {self._rows} rows of {len(self._cells)} submodules were written, info tells of "
                f"{info.examples} examples and {len(info.sizes)} submodules. Nothing is kept."
            )
        if len(self._waiting):
            self._writer.write_table(self._waiting.combine_chunks())
        self._writer.add_key_value_metadata({KEY: info.model_dump_json(by_alias=True).encode()})
        self._writer.close()
        with self._part.open("rb") as stream:
            os.fsync(stream.fileno())
        self._part.replace(self._path)


# --- what a file must be --------------------------------------------------------------------------------


def _pyarrow() -> tuple[Any, Any]:
    try:  # import_module: pyarrow has no types
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise SpecError("scores are parquet files and pyarrow is missing. Run: pip install 'cprbench[train]'") from None


def _opened(path: Path) -> BufferedReader:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not hang us before it is known
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"{path}: cannot be read ({why}). Name an existing scores file.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SpecError(f"{path}: is not a regular file. Name a scores file.")
    return os.fdopen(descriptor, "rb")


def _info(path: Path, metadata: Any) -> ScoresInfo:
    raw = (metadata.metadata or {}).get(KEY)
    if raw is None:
        raise SpecError(f"{path}: lacks the metadata {KEY.decode()!r}: it is parquet, but no scores file. {_REMAKE}")
    if len(raw) > MAX_METADATA:
        raise SpecError(f"{path}: its metadata take {len(raw)} bytes; scores have at most {MAX_METADATA}. {_REMAKE}")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: its metadata are not JSON ({error}). {_REMAKE}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: its metadata are a {type(data).__name__}, not an object. {_REMAKE}")
    try:
        return parse(ScoresInfo, data, str(path))
    except SpecError as error:
        raise SpecError("\n".join(str(error).splitlines()[:5])) from None


def _cells(path: Path, schema: Any, info: ScoresInfo, rows: int) -> list[str]:
    """Return the submodules of a file whose columns, sizes and rows are as its metadata say, before reading a row."""
    names = schema.names
    cells = [name.removeprefix(NORM) for name in names[len(FIXED) :]]
    if names != [*FIXED, *(NORM + cell for cell in cells)]:
        raise SpecError(f"{path}: columns are {', '.join(names)!r:.100}; scores have {', '.join(FIXED)}, then norms.")
    if sorted(cells) != sorted(info.sizes):
        odd = sorted(set(cells) ^ set(info.sizes)) or [cell for cell, n in Counter(cells).items() if n > 1]
        raise SpecError(f"{path}: the columns of norms and the sizes differ in submodule {odd[0]!r}. {_REMAKE}")
    for i, (name, kind) in enumerate(zip(names, schema.types, strict=True)):
        wanted = "double" if i > 1 else "dictionary<values=string, indices=int32, ordered=0>"
        if str(kind) != wanted:
            raise SpecError(
                f"{path}: column {name!r} is of type {str(kind)!r:.80}, not {'string' if i < 2 else wanted}. {_REMAKE}"
            )
    if rows != info.examples:
        raise SpecError(f"{path}: holds {rows} rows, its metadata say {info.examples} examples. {_REMAKE}")
    if rows * len(names) > MAX_VALUES:
        raise SpecError(f"{path}: {rows} rows of {len(names)} columns are more than {MAX_VALUES} values.")
    return cells


def _texts(path: Path, name: str, column: Any, most: int) -> list[str]:
    lengths = importlib.import_module("pyarrow.compute").binary_length(column.dictionary)
    if (longest := max((n or 0 for n in lengths.to_pylist()), default=0)) > most:
        raise SpecError(f"{path}: one {name} takes {longest} bytes, more than {most}. {_REMAKE}")
    if column.null_count:
        raise SpecError(f"{path}: {column.null_count} rows have no {name}. {_REMAKE}")
    found: list[str] = column.to_pylist()
    return found


def _check_numbers(where: Path, ids: Sequence[str], names: Sequence[str], numbers: NDArray[Any]) -> None:
    """Raise SpecError for a number that is NaN, infinite, negative or beyond 1e100."""
    wrong = ~((numbers >= 0) & (numbers <= _LARGEST))  # so written, NaN is wrong too
    if wrong.any():
        row, column = (int(i[0]) for i in wrong.nonzero())
        raise SpecError(
            f"{where}: {names[column]} of example {ids[row]!r} is {numbers[row, column]}: scores are numbers from 0 to "
            f"{_LARGEST:g}. {_REMAKE}"
        )
