"""Blueprint files from strangers: what is accepted, what is refused and in which words, and whose model they are of."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.blueprint import files
from cprbench.blueprint.schema import MAX_LAYERS, Blueprint
from cprbench.errors import SpecError
from tests.blueprint.example import NORMS, SIZES, WEIGHTS, full_blueprint, full_data, paper_example, save

ROOT = Path(__file__).resolve().parents[2]


def refused(folder: Path, content: Any, match: str) -> str:
    """Assert that a file is refused, quickly and as a SpecError that names the file; return the message."""
    path = folder / "hostile.json"
    if isinstance(content, (str, bytes)):
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    else:
        path = save(folder, content, path.name)
    start = time.process_time()
    with pytest.raises(SpecError, match=match) as caught:
        files.read(path)
    assert time.process_time() - start < 10
    message = str(caught.value)
    assert str(path) in message and len(message) < 5000
    return message


def changed(where: str, value: Any, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a full blueprint's JSON with the value at a dotted path replaced."""
    data = copy.deepcopy(full_data() if data is None else data)
    *parents, last = where.split(".")
    part: Any = data
    for key in parents:
        part = part[int(key)] if isinstance(part, list) else part[key]
    part[int(last) if isinstance(part, list) else last] = value
    return data


def test_the_papers_own_example_is_read_and_tells_what_it_lacks(tmp_path: Path) -> None:
    blueprint = files.read(save(tmp_path, paper_example()))
    assert [layer.gamma for layer in blueprint.layers] == [0.60, 0.53, 0.60]  # as printed: alpha/(1 + alpha)
    assert blueprint.layers[0].domain_tags["bio"] == 0.79
    lacks = "\n".join(blueprint.lacks())
    for word in ("weights_sha256", "parameters", "gradient_norm_ci", "example_norm", "fit", "cost", "privacy", "made"):
        assert word in lacks
    assert "energy_kwh" in lacks and "3 of 3 submodules" in lacks
    assert "alpha (" not in lacks  # it has those


def test_a_full_file_lacks_nothing_and_each_missing_part_is_told() -> None:
    assert full_blueprint().lacks() == []
    for part, word in {
        "model": "weights_sha256",
        "measurement": "measurement",
        "concentration": "pick curve",
        "step_cost": "step_cost",
        "k_star": "k_star",
        "privacy": "privacy",
        "made": "its making",
    }.items():
        assert word in " ".join(full_blueprint(**{part: None}).lacks()), part
    assert full_blueprint(cost=[]).lacks() == ["It has no cost model (cost): k_star cannot be recomputed."]
    assert full_blueprint(k_star=None, k_star_why="k = 1 is best").lacks() == []
    assert full_blueprint(revision=None).lacks() == ["It does not say which revision was measured (model.revision)."]
    unpaid = Blueprint.model_validate(changed("made.co2_kg", None)).lacks()
    assert unpaid == ["It does not say what its making cost: co2_kg (made)."]
    for field, value in (("parameters", None), ("fit", None), ("mass_curve", []), ("k_star_why", None)):
        told = Blueprint.model_validate(changed(f"layers.1.{field}", value)).lacks()
        assert len(told) == 1 and told[0].startswith("1 of 5 submodules have no") and field[:6] in told[0]


def test_what_is_written_is_read_again_as_the_same_bytes(tmp_path: Path) -> None:
    for name, data in (("paper", paper_example()), ("full", full_data())):
        first, second = tmp_path / f"{name}.json", tmp_path / f"{name}-2.json"
        blueprint = files.read(save(tmp_path, data))
        files.write(blueprint, first)
        files.write(files.read(first), second)
        assert files.read(first) == blueprint
        assert first.read_bytes() == second.read_bytes()
        assert files.sha256_of_file(first) == files.sha256_of_file(second)
        assert json.loads(first.read_text())["layers"][0]["id"] == data["layers"][0]["id"]
    keys = list(json.loads(first.read_text()))
    assert keys == sorted(keys) and set(full_data()) <= set(keys)
    assert "[0.1, 0.5]" in first.read_text()  # a point is one line's worth


def test_writing_is_one_step_and_never_writes_what_reading_would_refuse(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    files.write(full_blueprint(), path)
    before = path.read_bytes()
    bad = full_blueprint(k_star_why="see\x1b[2J")
    with pytest.raises(SpecError, match=r"U\+001B"):
        files.write(bad, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["b.json"]
    with pytest.raises(SpecError, match=r"cannot be written .* folder that exists"):
        files.write(full_blueprint(), tmp_path / "absent" / "b.json")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.json"
    files.write(full_blueprint(), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpecError, match="No space left"):
        files.write(full_blueprint(model_id="other"), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_published_schema_is_that_of_the_code() -> None:
    path = ROOT / "docs" / "blueprint.schema.json"
    published = json.loads(path.read_text(encoding="utf-8"))
    assert published == files.json_schema(), f"write json.dumps(files.json_schema(), indent=1) to {path}"
    assert {"model_id", "training_checkpoint", "layers"} == set(published["required"])
    assert "schema" in published["properties"] and "schema_" not in published["properties"]
    assert '"title"' not in json.dumps(published)


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    real = save(tmp_path, paper_example())
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(real)
    os.mkfifo(pipe)
    assert files.read(link) == files.read(real)  # the hub's cache is made of links
    link_to_pipe = tmp_path / "pipe-link.json"
    link_to_pipe.symlink_to(pipe)
    for path, match in (
        (link_to_pipe, "not a regular file"),
        (tmp_path, "not a regular file"),
        (pipe, "not a regular file"),
        (tmp_path / "absent.json", "No such file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\0b"), "cannot be read"),
    ):
        for function in (files.read, files.sha256_of_file):
            with pytest.raises(SpecError, match=match):
                function(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is not JSON"),
        ("{} x", "is not JSON"),
        ('{"a": 1, // why\n}', "JSON has no comments"),
        ("[]", "holds a list"),
        ("null", "holds a NoneType"),
        (b'{"model_id": "\xff"}', "byte 14 is not UTF-8"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        ('\ufeff{"a": 1}', "BOM"),
        ('{"layers": [{"id": "a", "id": "b"}]}', "key 'id' stands twice"),
        ('{"k_star": NaN}', "k_star is nan"),
        ('{"layers": [{"gradient_norm": -Infinity}]}', r"layers\.0\.gradient_norm is -inf.*Write null"),
        ('{"layers": [{"gradient_norm": 1e999}]}', r"layers\.0\.gradient_norm is inf"),
        ('{"made": {"flops": 1' + "0" * 5000 + "}}", "is not JSON"),
        ("[" * 100_000, "deeper than 32"),
        ('{"a":' * 33 + "1" + "}" * 33, "deeper than 32"),
        ('{"model_id": "a\\u202eb"}', r"model_id holds the hidden character U\+202E"),
        ('{"model_id": "a\\u0000"}', r"U\+0000"),
        ('{"model_id": "a\\ud800"}', r"U\+D800"),
        ('{"k\\u200bstar": 1}', r"U\+200B"),
        ('{"schema": "cprbench.blueprint/2"}', r"'cprbench\.blueprint/2' is unknown here.*newer"),
        ('{"model_id": "' + "a" * 20_000 + '"}', "20000 characters"),
        (" " * (files.MAX_BYTES + 1), f"larger than {files.MAX_BYTES} bytes"),
    ],
)
def test_hostile_bytes_are_refused_with_what_is_wrong(tmp_path: Path, content: str | bytes, match: str) -> None:
    refused(tmp_path, content, match)


def test_as_deep_and_as_large_as_allowed_is_allowed_that_far(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(files.MAX_DEPTH - 2):
        deep = {"a": deep}
    refused(tmp_path, changed("made.detail", deep), "unknown key 'made.detail'")  # read, and refused for what it says
    refused(tmp_path, changed("made.detail", {"a": deep}), "deeper than 32")
    padded = json.dumps(paper_example())
    (tmp_path / "padded.json").write_text(padded + " " * (files.MAX_BYTES - len(padded)))
    assert files.read(tmp_path / "padded.json").model_id == "foundation-7b"


@pytest.mark.parametrize("layer", ["{}", "0", '{"x":1}'])
def test_a_million_layers_are_refused_by_their_count(tmp_path: Path, layer: str) -> None:
    refused(tmp_path, '{"layers": [' + ",".join([layer] * 1_000_000) + "]}", "layers has 1000000 entries")


def test_a_heap_of_values_or_mistakes_is_refused_in_seconds(tmp_path: Path) -> None:
    refused(tmp_path, '{"x": [' + ",".join(["[]"] * 5_000_000) + "]}", "more than 2000000 values")
    refused(tmp_path, changed("cost", [{"z": 1}] * 150_000), "mistakes; the first: 'cost.0")
    refused(tmp_path, {**paper_example(), **{f"key{i}": 1 for i in range(100_000)}}, "100000 mistakes")
    refused(tmp_path, changed("layers", [{"id": "a b"}] * MAX_LAYERS), "20000 mistakes")


def test_every_mistake_names_its_place_and_a_few_are_shown(tmp_path: Path) -> None:
    message = refused(tmp_path, changed("layers.1.gradient_nrom", 1), "unknown key 'layers.1.gradient_nrom'")
    assert "Did you mean 'gradient_norm'?" in message and "docs/blueprint.schema.json" in message
    refused(tmp_path, changed("layers.1.gradient_norm", -1), r"layers\.1\.gradient_norm: .*found -1")
    refused(tmp_path, changed("layers.2.id", "attn.0"), "'attn.0' is listed twice")
    refused(tmp_path, changed("layers.1.id", "../etc"), r"layers\.1\.id")
    refused(tmp_path, changed("layers", []), "at least 1 item")
    refused(tmp_path, changed("training_checkpoint", 80), "training_checkpoint: .*less than or equal to 1")
    refused(tmp_path, changed("layers.0.domains.general.gradient_norm_ci", {"low": 2, "high": 1}), "is empty")
    many = copy.deepcopy(full_data(sizes=None))
    for layer in many["layers"]:
        layer |= {"one": 1, "two": 2}
    assert "and 5 more mistakes" in refused(tmp_path, many, "unknown key")


@pytest.mark.parametrize("gamma", [0.4, 0.6, 0.405])
def test_both_readings_of_gamma_are_accepted_and_left_as_they_are(tmp_path: Path, gamma: float) -> None:
    blueprint = files.read(save(tmp_path, changed("layers.1.gamma", gamma)))
    assert blueprint.layers[1].gamma == gamma


def test_another_gamma_is_an_error_in_a_file_of_ours_only(tmp_path: Path) -> None:
    refused(tmp_path, changed("layers.1.gamma", 0.5), r"layers\.1 \(attn\.0\): gamma 0\.5 .* = 0\.4000")
    refused(tmp_path, changed("concentration.gamma", 0.41), "concentration: gamma")
    files.read(save(tmp_path, changed("layers.1.gamma", 0.5, paper_example())))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(
        [
            "model_id",
            "layers",
            "layers.0",
            "layers.0.id",
            "layers.0.gradient_norm",
            "layers.1.fit",
            "layers.0.domains",
            "domains",
            "cost.0.points",
            "concentration.pick_curve",
            "made.detail",
        ]
    ),
    JSON,
)
@settings(deadline=None)
def test_any_value_anywhere_is_read_or_refused_as_a_spec_error(
    tmp_path_factory: pytest.TempPathFactory, where: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = save(folder, changed(where, value))
    try:
        blueprint = files.read(path)
    except SpecError:
        return
    files.write(blueprint, path)
    assert files.read(path) == blueprint


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_spec_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(content)
    with pytest.raises(SpecError):
        files.read(path)


def check(blueprint: Blueprint, **changes: Any) -> list[str]:
    known: dict[str, Any] = {"weights_sha256": WEIGHTS, "revision": "main", "sizes": SIZES, "model": "tiny", **changes}
    return files.check_model(blueprint, **known)


def test_a_blueprint_of_this_very_model_passes_without_a_note() -> None:
    assert check(full_blueprint()) == []
    assert check(full_blueprint(), sizes=dict(reversed(SIZES.items()))) == []


def test_a_blueprint_of_another_model_is_refused_with_the_nearest_names() -> None:
    other = {f"layer.{i}.attn": 100 for i in range(9)}
    with pytest.raises(SpecError, match=r"tiny has no layer\.0\.attn, .* and 4 more.*the file lacks embed, attn\.0"):
        check(full_blueprint(dict.fromkeys(other, 1.0), sizes=other))
    renamed = {name.replace("attn", "atn"): norm for name, norm in NORMS.items()}
    sizes = {name.replace("attn", "atn"): size for name, size in SIZES.items()}
    with pytest.raises(SpecError, match=r"tiny has no atn\.0, atn\.1 \(Did you mean 'attn\.0'\?\)"):
        check(full_blueprint(renamed, sizes=sizes), foreign=True)
    with pytest.raises(SpecError, match=r"the file lacks head\. Use a blueprint of tiny"):
        check(full_blueprint(), sizes={**SIZES, "head": 1})


def test_a_blueprint_of_other_sizes_is_refused() -> None:
    with pytest.raises(SpecError, match=r"ffn\.0, ffn\.1 differ in size \(ffn\.0: 200 .* 300 in tiny\)"):
        check(full_blueprint(), sizes={**SIZES, "ffn.0": 300, "ffn.1": 300}, foreign=True)
    unsized = changed("layers.2.parameters", None)
    with pytest.raises(SpecError, match="measured on 1000 parameters, tiny has 1100"):
        check(Blueprint.model_validate(unsized), sizes={**SIZES, "ffn.0": 300})
    notes = check(Blueprint.model_validate(unsized))
    assert len(notes) == 1 and "does not state the parameters of every submodule" in notes[0]


def test_other_weights_of_the_same_shape_are_a_foreign_revision_unless_forced() -> None:
    with pytest.raises(SpecError, match=r"foreign revision: .*a1a1a1a1a1a1 \(revision main, at 80%.* holds b2b2.*v2"):
        check(full_blueprint(training_checkpoint=0.8), weights_sha256="b2" * 32, revision="v2")
    notes = check(full_blueprint(), weights_sha256="b2" * 32, revision=None, foreign=True)
    assert len(notes) == 1 and notes[0].startswith("Accepted as foreign") and "not told" in notes[0]


def test_a_file_of_the_paper_passes_with_notes_of_what_nobody_could_check() -> None:
    sizes = {"attn.0": 1, "ffn.0": 2, "attn.1": 1}
    notes = check(Blueprint.model_validate(paper_example()), sizes=sizes)
    assert len(notes) == 2 and "sizes" in notes[0] and "which weights" in notes[1]
