"""What a peft config may say: shapes, patterns and sizes that are refused before anything runs, and in records too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cprbench.adapt.export import save_merged
from cprbench.adapt.methods import Context, Target
from cprbench.adapt.methods.patterns import refuse_pattern
from cprbench.adapt.methods.peft_config import refuse
from cprbench.errors import MethodError, SpecError
from cprbench.spec import RunSpec
from tests.adapt.test_peft_configs import Written, encoder, peft, written

__all__ = ["written"]  # a fixture

NAMES = "a pattern or a list of names. Correct it or leave it out"
RANK = "a whole number from 1 to 65536. Correct it or leave it out"
RANKS = "a table of whole numbers from 1 to 65536. Correct it or leave it out"
FACTORS = "a table of numbers above 0. Correct it or leave it out"
LISTED = "a list of names. Correct it or leave it out"


@pytest.mark.parametrize(
    ("key", "value", "shown", "wanted"),
    [
        *[(key, 5, "5", NAMES) for key in ("target_modules", "exclude_modules", "feedforward_modules")],
        ("target_modules", True, "True", NAMES),
        ("target_modules", [["query"]], "[['query']]", NAMES),
        ("target_modules", ["query", 3], "['query', 3]", NAMES),
        ("target_modules", {"query": 1}, "{'query': 1}", NAMES),
        ("target_modules", [""], "['']", NAMES),
        ("target_modules", ["query"] * 40 + [None], str(["query"] * 40)[:80], NAMES),
        ("layers_pattern", [1], "[1]", NAMES),
        ("modules_to_save", 7, "7", LISTED),
        ("modules_to_save", [7], "[7]", LISTED),
        ("modules_to_save", [["classifier"]], "[['classifier']]", LISTED),
        *[("r", value, repr(value), RANK) for value in ("8", 2.5, 0, -1, 65_537, True, None, [8])],
        *[("rank_pattern", value, repr(value), RANKS) for value in (3, ["query"], {"query": "8"}, {"query": 0})],
        *[("rank_pattern", {"query": value}, f"{{'query': {value}}}", RANKS) for value in (2.5, 10**6, True, None)],
        *[("alpha_pattern", {"query": value}, f"{{'query': {value}}}", FACTORS) for value in (0, -1.5, True, None)],
        ("alpha_pattern", [1], "[1]", FACTORS),
    ],
)
def test_a_value_of_the_wrong_shape_is_named_before_anything_runs_with_what_it_has_to_be(
    key: str, value: Any, shown: str, wanted: str, written: Written
) -> None:
    path = written(**{key: value})
    with pytest.raises(MethodError) as refused:
        peft(path).check(Target("encoder", {}))
    assert str(refused.value) == f"peft.config = {path}: {key} = {shown} has to be {wanted}."


@pytest.mark.parametrize(
    "config",
    [
        {"alpha_pattern": {"query": 2.5}, "rank_pattern": {"query": 65_536}, "r": 1},
        {"alpha_pattern": None, "rank_pattern": {}, "layers_pattern": None, "modules_to_save": None},
        {"peft_type": "OFT", "r": 0},
        {"peft_type": "OSF", "rank_pattern": {"query": 0.5}},
        {"peft_type": "SUPERTUNING", "r": None},
        {"target_modules": None, "exclude_modules": "classifier"},
        {"target_modules": "all-linear"},
    ],
)
def test_what_peft_takes_passes(config: dict[str, Any], written: Written) -> None:
    peft(written(**config)).check(Target("encoder", {}))


def test_one_name_to_save_is_read_as_a_name_and_not_letter_by_letter(written: Written) -> None:
    loaded = encoder()
    target = Target("encoder", loaded.partition.sizes, loaded.partition.parameters)
    peft(written(modules_to_save="classifier")).check(target)
    with pytest.raises(MethodError, match="modules_to_save names 'pooler', and 'bert.pooler' belongs to the base"):
        peft(written(modules_to_save="pooler")).check(target)


NESTED = "repeats a group that itself repeats or branches"
NEXT = "has repetitions next to each other"
WAYS = "can match in more than 10000 ways"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(([a-z.]+)+)+!", NESTED),
        (r"(?:[\w.]*)*!", NESTED),
        (r"(\w+\.?)+!", NESTED),
        ("(?:.|.){30}!", NESTED),
        ("(?:.{0,40}){40}!", NESTED),
        (".*.*.*.*.*!", NEXT),
        ("(.*|a)(.*|b)(.*|.)!", NEXT),
        ("(?=.*)(?!.*).*!", NEXT),
        (".?" * 20 + "!", WAYS),
        ("(.|.)" * 20 + "!", WAYS),
        ("(e|e)" * 20 + "!", WAYS),
        ("a.*" * 9, "repeats more than 8 times"),
        ("(?x)(a+) +", "holds a group of a kind that is not read here"),
        ("q.*" + "k" * 500, "is a pattern of 503 characters; 500 at most"),
        ("(", "is no regular expression: missing ), unterminated subpattern at position 0"),
        ("a{99999999999}", "is no regular expression: the repetition number is too large"),
    ],
)
def test_a_pattern_that_could_take_hours_is_refused_wherever_it_stands_and_never_searched_with(
    pattern: str, why: str, written: Written
) -> None:
    loaded = encoder()
    target = Target("encoder", loaded.partition.sizes, loaded.partition.parameters)
    tables = [{key: {pattern: 3}} for key in ("rank_pattern", "alpha_pattern")]
    for config in [{"target_modules": pattern}, {"exclude_modules": pattern}, {"layers_pattern": [pattern]}, *tables]:
        (key,) = config
        with pytest.raises(MethodError) as refused:
            peft(written(**config)).check(target)
        assert f": {key} = {pattern!r:.80} {why}" in str(refused.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)$",
        r"(?:.*?(?:vision|language).*?(?:self_attn|mlp|ffn).*?(?:q_proj|proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp))",
        r"^(?!.*vision_tower).*layers\.\d+.*(q|k|v|o)_proj",
        "model.layers.(?:[0-9]|1[0-5]).self_attns?.q_proj",
        r"[^.]*\.layers\.[^.]*\.mlp\.[^.]*",
        "(?i)(.*encoder|decoder).*query",
        "(?:" + "|".join(rf"bert\.encoder\.layer\.{i}\.output\.dense" for i in range(500)) + ")",  # blueprint to-peft
    ],
)
def test_patterns_as_people_write_them_pass(pattern: str) -> None:
    refuse_pattern(pattern, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no peft config: it has no peft_type"),
        ('{"r": 8}', "no peft config: it has no peft_type"),
        ('{"peft_type": 5}', r'peft_type = 5 has to be a word, such as "LORA"'),
        ('{"peft_type": ["LORA"]}', r"peft_type = \['LORA'\] has to be a word"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is not a finite number"),
        ('{"peft_type": "LORA", "lora_alpha": 1e999}', "a number in it is not finite"),
        ('{"peft_type": "LORA", "\\u001b[2J": 1}', r"'\\x1b\[2J' is no setting of peft"),
        ('{"peft_type": "LORA"' + " " * 2**16 + "}", "it is larger than 65536 bytes"),
        ('{"peft_type": "LORA", "target_modules": ' + "[" * 20 + "]" * 20 + "}", "it nests deeper than 16"),
        ("[" * 30_000, "not valid JSON"),
        (json.dumps({"peft_type": "LORA", "target_modules": ["q"] * 2001}), "has 2001 entries; 2000 at most"),
        (json.dumps({"peft_type": "LORA", "rank_pattern": {f"q{i}": 1 for i in range(2001)}}), "has 2001 entries"),
    ],
)
def test_a_file_that_is_no_peft_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(SpecError, match=message):
        peft(str(tmp_path / "c.json")).check(Target("encoder", {}))
    with pytest.raises(SpecError, match="cannot be read|no such file|not there"):
        peft(str(tmp_path / "none.json")).check(Target("encoder", {}))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), RuntimeError),
        (MemoryError(), MemoryError),
        (RuntimeError("sizes differ"), MethodError),
        (re.error("missing )"), MethodError),
    ],
)
def test_a_want_of_memory_is_passed_on_as_it_is_and_what_peft_refuses_is_an_error_of_ours(
    error: Exception, expected: type[Exception], written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("peft.get_peft_model", fail)
    with pytest.raises(expected) as raised:
        peft(written()).prepare(encoder(), Context(5))
    assert (raised.value is error) == (expected is not MethodError)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (["LORA"], "no peft config: it has no peft_type"),
        ({"peft_type": "XLORA"}, "XLORA mixes adapters that were trained before"),
        ({"peft_type": "LORA", "target_modules": 5}, "target_modules = 5 has to be"),
        ({"peft_type": "LORA", "target_modules": "(([a-z.]+)+)+!"}, "repeats a group that itself repeats"),
        ({"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config needs Megatron"),
    ],
)
def test_the_config_in_a_strangers_record_is_refused_as_one_in_a_file_is(
    note: Any, message: str, tmp_path: Path
) -> None:
    where = "notes.adapter_config of the record: "
    with pytest.raises((MethodError, SpecError), match=where + ".*" + message):
        save_merged(cast(RunSpec, None), "x", {}, tmp_path, 2, adapter_config=note)
    with pytest.raises((MethodError, SpecError), match="here: .*" + message):
        refuse(note, "here")
