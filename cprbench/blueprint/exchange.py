"""Picks and blueprints in the words of other tools: peft, axolotl, Spectrum, spreadsheets, model cards.

A submodule is no module of a live model, so functions take what it holds as an argument: submodule -> parameter names
or linear modules. `parameters_of` and `linears_of` read that from a file that stores it; a loaded model's partition
has it too. Text from outside is never run as a regular expression and never trusted in a page or a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cprbench.blueprint.picking import Picked
from cprbench.blueprint.schema import Blueprint, Layer, Making
from cprbench.errors import MethodError, SpecError

#: A parameter or module path; nothing in it means anything to YAML, and only the dot does to a regular expression.
_PATH = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
#: Longest texts of another tool that are read, in characters: a YAML parser in Python reads 0.1 MB a second.
_LONGEST_JSON, _LONGEST_YAML = 4_000_000, 200_000
_LONGEST_NAME = 300
_TASK_TYPES = {"encoder": "SEQ_CLS", "causal": "CAUSAL_LM"}
_COLUMNS = (
    "model_id", "training_checkpoint", "submodule", "parameters", "domain", "domain_tag",
    "gradient_norm", "gradient_norm_low", "gradient_norm_high", "example_norm", "example_norm_low", "example_norm_high",
)  # fmt: skip
_SPENT = {
    "device_hours": "device hours",
    "core_hours": "core hours",
    "energy_kwh": "kWh",
    "memory_gb_hours": "GB·h",
    "co2_kg": "kg CO2",
    "flops": "FLOPs",
}

Members = Mapping[str, Sequence[str]]  # submodule -> names of the live model


@dataclass(frozen=True)
class Unfrozen:
    """What a Spectrum or axolotl file trains: parameter names, and the submodules that these fill or only touch."""

    parameters: tuple[str, ...]
    submodules: tuple[str, ...]  # every parameter is named
    partly: tuple[str, ...]  # some are
    unmatched: tuple[str, ...]  # entries that name nothing here; tied models have no lm_head.weight


def names(picked: Picked) -> str:
    """Return a pick as text, one submodule a line."""
    return "".join(f"{name}\n" for name in picked.submodules)


def parameters_of(blueprint: Blueprint) -> dict[str, list[str]]:
    """Return submodule -> parameter names from a file; raises SpecError for a file that does not name them all."""
    if lacking := [layer.id for layer in blueprint.layers if not layer.parameter_names]:
        raise SpecError(f"this blueprint does not say which parameters {lacking[0]!r} holds. Name a model to ask.")
    return {layer.id: list(layer.parameter_names) for layer in blueprint.layers}


def linears_of(blueprint: Blueprint) -> dict[str, list[str]]:
    """Return submodule -> linear modules from a file; raises SpecError for a file that names none."""
    if not any(layer.linears for layer in blueprint.layers):
        raise SpecError("this blueprint does not say which linear modules its submodules hold. Name a model to ask.")
    return {layer.id: list(layer.linears) for layer in blueprint.layers}


def to_peft(
    submodules: Sequence[str], linears: Members, *, r: int = 8, alpha: int = 16, kind: str | None = None
) -> dict[str, Any]:
    """Return a LoraConfig of peft, as adapter_config.json has it, with adapters on the linears of `submodules` alone.

    `target_modules` is a regular expression of whole module paths, because peft matches a list by its ends, and
    "layer.1.dense" ends "decoder.layer.1.dense" too. `kind`: "encoder" trains peft's classification head beside.
    Submodules without linears (embed) have nothing to adapt; raises MethodError when none has any.
    """
    paths = [path for name in submodules for path in _members(linears, name, "linear modules")]
    if not paths:
        raise MethodError(f"{', '.join(submodules) or 'an empty pick'} holds no linear module that could be adapted.")
    if r < 1:
        raise MethodError(f"rank {r} is below 1.")
    return {
        "peft_type": "LORA",
        "task_type": None if kind is None else _TASK_TYPES[kind],
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": f"(?:{'|'.join(re.escape(path) for path in paths)})",
    }


def to_rank_pattern(
    norms: Mapping[str, float], submodules: Sequence[str], linears: Members, mean_rank: int, *, scaling: float = 2.0
) -> dict[str, Any]:
    """Return r, lora_alpha, rank_pattern and alpha_pattern of peft: larger ranks for larger norms, the mean kept.

    Every submodule with linears gets rank 1 and a part of the other (mean_rank - 1) * submodules ranks in proportion
    to its norm, by largest remainders, so the mean over submodules is exactly `mean_rank`. alpha / r = `scaling` on
    all of them: a larger rank is not a smaller step. Merge into `to_peft` of the same submodules.
    """
    if mean_rank < 1:
        raise MethodError(f"a mean rank of {mean_rank} leaves submodules without an adapter; it is at least 1.")
    adapted = [name for name in submodules if _members(linears, name, "linear modules")]
    if lacking := [name for name in adapted if name not in norms]:
        raise MethodError(f"there is no norm of {lacking[0]!r}.")
    spare, total = (mean_rank - 1) * len(adapted), math.fsum(norms[name] for name in adapted)
    quotas = {name: spare * (norms[name] / total if total else 1 / len(adapted)) for name in adapted}
    ranks = {name: 1 + math.floor(quota) for name, quota in quotas.items()}
    left = mean_rank * len(adapted) - sum(ranks.values())
    for name in sorted(adapted, key=lambda name: math.floor(quotas[name]) - quotas[name])[:left]:
        ranks[name] += 1
    pattern = {f"^{re.escape(path)}": ranks[name] for name in adapted for path in linears[name]}
    return {
        "r": mean_rank,
        "lora_alpha": scaling * mean_rank,
        "rank_pattern": pattern,
        "alpha_pattern": {path: scaling * rank for path, rank in pattern.items()},
    }


def to_axolotl(parameters: Sequence[str]) -> str:
    """Return YAML with `unfrozen_parameters`, one whole-name pattern each, as axolotl and Spectrum users read it.

    Dots stay bare: axolotl escapes them itself (utils/freeze.py), and an escaped one would match nothing there.
    """
    if odd := [name for name in parameters if not _PATH.fullmatch(name)]:
        raise MethodError(f"{odd[0]!r:.80} is no parameter name.")
    return "unfrozen_parameters:\n" + "".join(f"- ^{name}$\n" for name in parameters)


def from_spectrum(text: str, parameters: Members) -> Unfrozen:
    """Return what the `unfrozen_parameters` of a Spectrum or axolotl YAML file name in a model.

    An entry is a module or parameter name, `^` and `$` around it or not; without `$` it also names all inside that
    module. Entries are compared as text: any other operator of regular expressions is refused, so no pattern can
    hang. Raises SpecError for text that is no such file, MethodError for one that names nothing of this model.
    """
    entries = _entries(text)
    of = {name: cell for cell, members in parameters.items() for name in members}
    inside: dict[str, list[str]] = {}  # module or parameter path -> the parameters in it
    for name in of:
        for end in [dot.start() for dot in re.finditer(r"\.", name)] + [len(name)]:
            inside.setdefault(name[:end], []).append(name)
    found: set[str] = set()
    unmatched = []
    for entry in entries:
        plain = _plain(entry)
        matched = [plain] if plain in of else [] if entry.endswith("$") else inside.get(plain, [])
        found.update(matched)
        if not matched:
            unmatched.append(entry)
    if not found:
        raise MethodError(f"no entry names a parameter of this model; the first is {entries[0]!r:.80}.")
    cells = {cell: [name in found for name in members] for cell, members in parameters.items()}
    return Unfrozen(
        parameters=tuple(name for name in of if name in found),
        submodules=tuple(cell for cell, named in cells.items() if named and all(named)),
        partly=tuple(cell for cell, named in cells.items() if any(named) and not all(named)),
        unmatched=tuple(unmatched),
    )


def _entries(text: str) -> list[str]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise MethodError("reading a Spectrum YAML file needs PyYAML. Run: pip install PyYAML") from error
    if len(text) > _LONGEST_YAML:
        raise SpecError(f"a Spectrum file of {len(text)} characters is not read; the limit is {_LONGEST_YAML}.")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes only: building objects lets merge keys explode
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"not a Spectrum file: {type(error).__name__}: {error!s:.200}") from error
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next((value for key, value in pairs if key.value == "unfrozen_parameters"), None)
    nodes = found.value if isinstance(found, yaml.SequenceNode) else []
    if not nodes or not all(node.tag == "tag:yaml.org,2002:str" for node in nodes):
        raise SpecError("not a Spectrum file: unfrozen_parameters is missing or no list of names.")
    return [node.value for node in nodes]


def _plain(entry: str) -> str:
    """Return the name that an entry is a pattern of; raises SpecError for a pattern of more than one name."""
    plain = entry.removeprefix("^").removesuffix("$").replace("\\.", ".").removesuffix(".")
    if len(plain) > _LONGEST_NAME or not _PATH.fullmatch(plain):
        raise SpecError(f"unfrozen_parameters: {entry!r:.80} is no plain name; of patterns only ^, $ and \\. are read.")
    return plain


def scores_from_spectrum(text: str) -> dict[str, float]:
    """Return module -> signal-to-noise ratio from Spectrum's JSON, {module: {"snr": x, "type": ...}}.

    Raises SpecError for other JSON and for modules that Spectrum could not measure: it writes NaN for these and then
    sorts them among the rest.
    """
    if len(text) > _LONGEST_JSON:
        raise SpecError(f"a Spectrum file of {len(text)} characters is not read; the limit is {_LONGEST_JSON}.")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not a Spectrum file: not valid JSON: {error!s:.200}") from error
    if not isinstance(data, dict) or not data:
        raise SpecError('not a Spectrum file: expected {module: {"snr": number, "type": name}}.')
    scores: dict[str, float] = {}
    for module, row in data.items():
        snr = row.get("snr") if isinstance(row, dict) else None
        if isinstance(snr, bool) or not isinstance(snr, int | float):
            raise SpecError(f"not a Spectrum file: {module!r:.80} has no number under snr.")
        if not -1e308 < snr < 1e308:
            raise SpecError(f"{module!r:.80} has the snr {snr!r:.40}: Spectrum could not measure it. Take it out.")
        scores[module] = float(snr)
    return scores


def to_spectrum_json(blueprint: Blueprint) -> str:
    """Return a blueprint as Spectrum's JSON, so that its tools take the top share of every module type.

    `snr` holds the gradient norm of the module's submodule: it ranks modules of one type, and is no signal-to-noise
    ratio. Raises SpecError for a file that names no linear modules.
    """
    norms = {layer.id: layer.gradient_norm for layer in blueprint.layers}
    rows = {
        path: {"snr": norms[name], "type": _type(path)}
        for name, paths in linears_of(blueprint).items()
        for path in paths
    }
    return json.dumps(rows, indent=4, allow_nan=False) + "\n"


def _type(path: str) -> str:
    """Return Spectrum's type of a module: its path inside its layer, "mlp.down_proj"; outside layers, its path."""
    parts = path.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(parts[index + 1 :])


def to_csv(blueprint: Blueprint) -> str:
    """Return a row per submodule and domain; what the file does not tell is an empty field, never a number.

    A text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    for layer in blueprint.layers:
        for domain in dict.fromkeys((str(blueprint.reference), *layer.domains, *layer.domain_tags)):
            row = (blueprint.model_id, blueprint.training_checkpoint, layer.id, layer.parameters, domain)
            table.writerow([_field(value) for value in (*row, *_numbers(layer, domain, blueprint.reference))])
    return out.getvalue()


def _numbers(layer: Layer, domain: str, reference: str | None) -> tuple[float | None, ...]:
    """Return the number columns of a row, from domain_tag on."""
    own = layer.domains.get(domain)
    if own is None:
        norms = (layer.gradient_norm, layer.example_norm) if domain == reference else (None, None)
        return (layer.domain_tags.get(domain), norms[0], None, None, norms[1], None, None)
    ends = [(None, None) if ci is None else (ci.low, ci.high) for ci in (own.gradient_norm_ci, own.example_norm_ci)]
    return (layer.domain_tags.get(domain), own.gradient_norm, *ends[0], own.example_norm, *ends[1])


def _field(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def model_card(blueprint: Blueprint, top: int = 10) -> str:
    """Return a Markdown section for a model card: what the file is, its `top` submodules, use, origin and cost."""
    layers = sorted(blueprint.layers, key=lambda layer: -layer.gradient_norm)
    largest = layers[0].gradient_norm or 1.0
    squares = {layer.id: (layer.gradient_norm / largest) ** 2 for layer in layers}
    total = math.fsum(squares.values()) or 1.0
    lines = [
        "## Gradient blueprint",
        "",
        f"Gradient norms of the {len(layers)} submodules of {_escape(blueprint.model_id)} at "
        f"{blueprint.training_checkpoint:.0%} of its training, by submodule and aggregated over batches: "
        "which parts to tune for the most effect per resource.",
        "",
        "| submodule | parameters | gradient norm | share of squared norm |",
        "| --- | ---: | ---: | ---: |",
    ]
    for layer in layers[:top]:
        parameters = "not told" if layer.parameters is None else f"{layer.parameters:,}"
        share = squares[layer.id] / total
        lines.append(f"| {_escape(layer.id)} | {parameters} | {layer.gradient_norm:.4g} | {share:.1%} |")
    if len(layers) > top:
        lines += ["", f"The {top} largest of {len(layers)}; the file has all."]
    use = ["To tune the best submodules only:", "", "```", _USE, "```"]
    return "\n".join([*lines, "", *use, "", *_origin(blueprint), ""])


_USE = "cprbench run TASK --model MODEL --method partial --set partial.blueprint=FILE"


def _origin(blueprint: Blueprint) -> list[str]:
    """Return the lines of a card that say where the numbers come from and what they cost."""
    model, how, private = blueprint.model, blueprint.measurement, blueprint.privacy
    facts = []
    if model is not None:
        revision = "" if model.revision is None else f" at {_escape(model.revision)}"
        facts.append(f"Model: {_escape(model.source)}{revision}, weights sha256 {model.weights_sha256}.")
    if how is not None:
        facts.append(
            f"Measured on {how.batches} batches of {how.batch_size}: {_escape(how.norm)}; loss {_escape(how.loss)}, "
            f"{how.dtype}, {how.warmup_steps} warm-up steps of the head."
        )
    facts += [f"Domain {d.tag}: {_escape(d.task)} v{d.version}, {d.examples} examples." for d in blueprint.domains]
    if private is not None:
        spent = "no privacy guarantee" if private.epsilon is None else f"epsilon {private.epsilon:g}"
        delta = "" if private.epsilon is None or private.delta is None else f", delta {private.delta:g}"
        facts.append(f"Aggregates only, no examples; {spent}{delta}.")
    facts.append("What making it cost: not told." if blueprint.made is None else _spent(blueprint.made))
    return [f"- {fact}" for fact in facts]


def _spent(made: Making) -> str:
    values = {unit: getattr(made, name) for name, unit in _SPENT.items()}
    known = [f"{value:.3g} {unit}" for unit, value in values.items() if value is not None]
    missing = [unit for unit, value in values.items() if value is None]
    words = ", ".join(known) or "nothing that was measured"
    return f"Made by {_escape(made.tool)} for {words}" + (f"; not measured: {', '.join(missing)}." if missing else ".")


def _escape(text: str) -> str:
    """Return text that Markdown and its tables show as it is; render.text's, which lies above this room."""
    for mark in "\\`*_[]<>|#&":
        text = text.replace(mark, f"\\{mark}")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _members(members: Members, submodule: str, what: str) -> Sequence[str]:
    if submodule not in members:
        raise MethodError(f"it is not said which {what} {submodule!r} holds.")
    return members[submodule]
