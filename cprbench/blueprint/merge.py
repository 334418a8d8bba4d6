"""Many blueprints as one table: appendix A.2, where a conflicting entry silently overwrote the first."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from cprbench.blueprint import files
from cprbench.blueprint.schema import Blueprint, Layer
from cprbench.errors import SpecError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet tells a formula


@dataclass(frozen=True)
class Row:
    """One submodule of one checkpoint in one domain. None: the file does not say.

    alpha, gamma, gamma_fit and k_star were fitted in the file's reference domain and stand in its rows only.
    """

    model_id: str
    training_checkpoint: float
    layer: str
    domain: str
    gradient_norm: float | None = None
    gradient_norm_low: float | None = None
    gradient_norm_high: float | None = None
    example_norm: float | None = None
    domain_tag: float | None = None  # weight of the domain, relative to `general`
    alpha: float | None = None
    gamma: float | None = None
    gamma_fit: float | None = None
    k_star: float | None = None
    parameters: int | None = None
    weights_sha256: str | None = None
    file: str = ""  # the name of the file, without its folders

    @property
    def key(self) -> tuple[str, float, str, str]:
        """What identifies a row."""
        return (self.model_id, self.training_checkpoint, self.layer, self.domain)


def merge(paths: Iterable[str | Path]) -> list[Row]:
    """Return the rows of all files, sorted by key whatever the order of `paths`; equal rows once.

    Raises SpecError for a file that cannot be read, and for two that say different things under one key.
    """
    found: dict[tuple[str, float, str, str], tuple[Row, Path]] = {}
    for path in sorted(map(Path, paths)):
        for row in _rows(files.read(path), path.name):
            known, first = found.setdefault(row.key, (row, path))
            if replace(known, file="") != replace(row, file=""):
                differing = [f.name for f in fields(Row)[:-1] if getattr(known, f.name) != getattr(row, f.name)]
                raise SpecError(
                    f"{first} and {path} differ in {', '.join(differing)} for {row.layer} of {row.model_id!r} at "
                    f"checkpoint {row.training_checkpoint:g}, domain {row.domain}. Leave one of the files out."
                )
    return [found[key][0] for key in sorted(found, key=_natural)]


def to_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV with a header; a text that a spreadsheet would run as a formula gets a leading '."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    for row in rows:
        writer.writerow(_cell(value) for value in asdict(row).values())
    return stream.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """Return the rows as a JSON list of objects, keys sorted."""
    return json.dumps([asdict(row) for row in rows], sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def _rows(blueprint: Blueprint, name: str) -> Iterator[Row]:
    reference = blueprint.reference or ""
    for layer in blueprint.layers:
        measured = {*layer.domains, *layer.domain_tags, reference}
        for domain in sorted(measured):
            yield _row(blueprint, layer, domain, reference, name)


def _row(blueprint: Blueprint, layer: Layer, domain: str, reference: str, name: str) -> Row:
    own = domain == reference
    norms = layer.domains.get(domain)
    interval = None if norms is None else norms.gradient_norm_ci
    whole = layer if own else None  # what the file says of the layer holds in its reference domain
    found = norms or whole
    return Row(
        model_id=blueprint.model_id,
        training_checkpoint=blueprint.training_checkpoint,
        layer=layer.id,
        domain=domain,
        gradient_norm=found.gradient_norm if found else None,
        gradient_norm_low=interval.low if interval else None,
        gradient_norm_high=interval.high if interval else None,
        example_norm=found.example_norm if found else None,
        domain_tag=layer.domain_tags.get(domain),
        alpha=whole.alpha if whole else None,
        gamma=whole.gamma if whole else None,
        gamma_fit=whole.gamma_fit if whole else None,
        k_star=whole.k_star if whole else None,
        parameters=layer.parameters,
        weights_sha256=blueprint.model.weights_sha256 if blueprint.model else None,
        file=name,
    )


def _natural(key: tuple[str, float, str, str]) -> tuple[str, float, tuple[tuple[str, int], ...], str]:
    """Return a sorting key by which attn.2 stands before attn.10."""
    model_id, checkpoint, layer, domain = key
    parts = tuple((text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", layer))
    return model_id, checkpoint, parts, domain


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
