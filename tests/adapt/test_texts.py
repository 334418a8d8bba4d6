"""Tasks of kind text: what is split, cut, scored and counted."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from cprbench.adapt import models, objectives, scoring, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import Example, load_dataset, sample_by_label
from cprbench.adapt.gradients.influence import input_means
from cprbench.errors import DataError, ModelError, SpecError, TrainingError
from cprbench.meters.flops import Pass, Trained, pass_flops
from cprbench.sessions.inspection import labels_of
from cprbench.tasks import load_task
from tests.adapt.tiny_task import everything, inline, task

TEXT = {"kind": "text", "prompt": "{text}"}
KIND: dict[str, Any] = {
    "primary": "bits_per_byte",
    "metrics": ["bits_per_byte", "nll"],
    "chance": None,
    "example": TEXT,
}
HALVES = {"by": "hash", "test": 0.5, "validation": 0.2}


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> models.LoadedModel:
    """A model whose tokens are pieces of words; it has an end of text and no start."""
    return models.load(resolve(str(tiny_llama), offline=True), None, seed=5, attention="eager")


@pytest.fixture(scope="module")
def verses() -> tuple[Example, ...]:
    return load_dataset(load_task("kjv-verses")).test[:12]


def texts(*rows: str, **example: Any) -> list[Example]:
    source = inline(*({"text": text, "place": f"line {i}"} for i, text in enumerate(rows)))
    return everything(load_dataset(task(source, splits=HALVES, **KIND | {"example": TEXT | example})))


def scored(loaded: models.LoadedModel, examples: Any, max_tokens: int = 256) -> list[scoring.Prediction]:
    items = objectives.tokenize(loaded, examples, max_tokens)
    found = dict(
        pair for values, _ in training.score(loaded, objectives.objective_for(loaded), items, 4) for pair in values
    )
    return [scoring.predict(examples[i], found[i], item.bytes) for i, item in enumerate(items)]


# --- data ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=20, max_size=40))
def test_equal_texts_are_in_one_split_and_every_row_is_somewhere(rows: list[str]) -> None:
    source = inline(*({"id": str(i), "text": text} for i, text in enumerate(rows)))
    try:
        found = load_dataset(task(source, splits=HALVES, **KIND))
    except DataError:
        return  # every text drawn fell elsewhere: no test split
    shown = [{example.prompt for example in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, shown)) == len(set.union(*shown))
    assert len(everything(found)) == len(rows)


def test_verses_that_the_source_has_twice_are_in_one_split() -> None:
    found = load_dataset(load_task("kjv-verses"))
    shown = [{example.prompt for example in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, shown)) == len(set.union(*shown)) == 30_834 < sum(found.counts().values()) == 31_103


def test_a_text_has_no_answer_no_choices_and_one_class() -> None:
    found = texts(*(f"text {i}" for i in range(40)), id="place")
    assert {(example.reference, example.choices, example.tail) for example in found} == {("", (), "")}
    assert {example.id for example in found} == {f"line {i}" for i in range(40)}
    assert len(sample_by_label(found, 7, "salt")) == 7


def test_an_empty_text_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match="a text is empty .*Leave such rows out with `keep`"):
        texts("a", "", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"metrics": ["accuracy"], "primary": "accuracy"}, "accuracy is no metric of kind text"),
        ({"example": TEXT | {"answer": "label"}}, "a text has no answer and no choices"),
        ({"example": TEXT | {"choices": ["a", "b"]}}, "a text has no answer and no choices"),
        ({"example": {"kind": "choice", "prompt": "{text}", "choices": ["a", "b"]}}, "answer is missing"),
    ],
)
def test_a_task_that_mixes_texts_and_choices_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        task(inline({"text": "a"}), splits=HALVES, **KIND | changed)


def test_a_task_of_choices_has_no_bits_per_byte_and_needs_its_chance() -> None:
    with pytest.raises(SpecError, match="bits_per_byte is no metric of kind choice"):
        task(inline({"text": "a"}), metrics=["accuracy", "bits_per_byte"])
    with pytest.raises(SpecError, match="chance is missing"):
        task(inline({"text": "a"}), chance=None)


def test_an_encoder_is_refused_with_the_cure() -> None:
    with pytest.raises(
        TrainingError, match="an encoder predicts none. Use a causal model, for example random:llama-tiny"
    ):
        labels_of(load_task("kjv-verses"), None, "encoder")


# --- tokens -------------------------------------------------------------------------------------------------------


def test_all_bytes_of_a_text_are_scored_after_a_token_that_starts_it(loaded: models.LoadedModel) -> None:
    (item,) = objectives.tokenize(loaded, texts("In the beginning", "x")[:1], 64)
    assert item.ids == (loaded.tokenizer.eos_token_id,)
    assert loaded.tokenizer.decode(item.choices[0]) in ("In the beginning", "x")
    assert (item.bytes, item.truncated) == (len(loaded.tokenizer.decode(item.choices[0])), False)
    assert item.shown == item.ids + item.choices[0]


@cache
def byte_level() -> models.LoadedModel:
    return models.load(resolve("random:llama-tiny", offline=True), None, 1, "sdpa")


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters() | st.just("\ufffd"), min_size=1, max_size=30), room=st.integers(5, 40))
def test_a_cut_text_counts_the_bytes_of_whole_characters_that_its_tokens_spell(text: str, room: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    (item,) = objectives.tokenize(byte_level(), [Example("x", text, "", (), 0)], room)
    spelled = bytes(item.choices[0])  # a token per byte
    assert text.encode().startswith(spelled) and spelled.decode()
    assert item.bytes == len(spelled) <= room - 1
    assert item.truncated == (len(spelled) < len(text.encode()))
    assert len(text.encode()) <= room - 1 or len(spelled) > room - 5


@pytest.mark.parametrize(
    ("text", "max_tokens", "spelled"),
    [("\ufffd" * 4, 8, 6), ("x\ufffdabc", 3, 1), ("x\ufffdabc", 5, 4), ("x\ufffdabc", 6, 5), ("\ufffd", 4, 3)],
)
def test_a_replacement_character_of_the_text_itself_is_not_taken_for_a_cut_one(
    text: str, max_tokens: int, spelled: int
) -> None:
    (item,) = objectives.tokenize(byte_level(), [Example("x", text, "", (), 0)], max_tokens)
    assert (item.bytes, bytes(item.choices[0])) == (spelled, text.encode()[:spelled])


def test_a_cut_before_a_word_whose_space_the_tokenizer_leaves_out_counts_all_that_is_spelled() -> None:
    tokenizer = Tokenizer(
        tokenizer_models.BPE(vocab={"\u2581": 0, "a": 1, "b": 2, "\u2581b": 3}, merges=[("\u2581", "b")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    assert fast.decode([3]) == "b"
    of_pieces = models.LoadedModel(byte_level().model, fast, "causal", byte_level().partition, None)
    (item,) = objectives.tokenize(of_pieces, [Example("x", "a b b", "", (), 0)], 3)
    assert (item.choices, item.bytes) == (((1, 3),), 3)


def test_the_word_of_a_special_token_is_text_where_a_text_spells_it() -> None:
    (item,) = objectives.tokenize(byte_level(), [Example("x", "a<|text|>b", "", (), 0)], 64)
    assert (item.bytes, bytes(item.choices[0])) == (10, b"a<|text|>b")


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 4])
def test_a_text_of_which_nothing_fits_is_refused_for_that(max_tokens: int) -> None:
    told = rf"text 'x': max_tokens = {max_tokens} leaves {max(0, max_tokens - 1)} tokens .* first character '😀'"
    with pytest.raises(DataError, match=told):
        objectives.tokenize(byte_level(), [Example("x", "😀 first", "", (), 0)], max_tokens)


@pytest.mark.parametrize("loses", ["capitals", "spaces at the end", "the start"])
def test_a_tokenizer_that_loses_something_is_refused(
    loses: str, minilm2: Path, tiny_llama: Path, loaded: models.LoadedModel
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm2 if loses == "capitals" else tiny_llama)
    tokenizer.eos_token = None if loses == "the start" else tokenizer.pad_token
    if loses == "spaces at the end":
        tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    lossy = models.LoadedModel(loaded.model, tokenizer, "causal", loaded.partition, None)
    with pytest.raises(ModelError, match=r"cannot spell text 'x' .*use a byte-level tokenizer"):
        objectives.tokenize(lossy, [Example("x", "Upper case ", "", (), 0)], 64)


def test_features_of_a_text_are_of_the_text_and_not_of_its_start(loaded: models.LoadedModel) -> None:
    one, other = input_means(
        loaded, objectives.tokenize(loaded, [Example(t, t, "", (), 0) for t in ("light", "dark")], 64)
    )
    assert abs(one - other).max() > 0


# --- scores -------------------------------------------------------------------------------------------------------


def test_bits_per_byte_are_those_of_a_plain_transformers_loop(
    loaded: models.LoadedModel, verses: tuple[Example, ...], tiny_llama: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    nats, lengths = 0.0, 0
    for example in verses:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(example.prompt)["input_ids"]]])
        with torch.no_grad():
            nats += float(plain(ids, labels=ids).loss) * (ids.shape[1] - 1)
        lengths += len(example.prompt.encode())
    found = scored(loaded, verses)
    assert scoring.psi(found, ["bits_per_byte"])["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / lengths, rel=1e-5
    )
    assert scoring.psi(found, ["nll"])["nll"] == pytest.approx(nats / len(verses), rel=1e-5)


def test_psi_is_recomputed_from_the_rows_of_a_predictions_file(
    loaded: models.LoadedModel, verses: tuple[Example, ...]
) -> None:
    found = scored(loaded, verses, max_tokens=16)
    rows = [json.loads(json.dumps(prediction.row())) for prediction in found]
    assert set(rows[0]["scores"]) == {"nll", "bytes"}
    assert [scoring.Prediction.from_row(row) for row in rows] == found
    total = sum(row["scores"]["nll"] for row in rows) / math.log(2) / sum(row["scores"]["bytes"] for row in rows)
    assert scoring.psi(found, ["bits_per_byte"])["bits_per_byte"] == pytest.approx(total)
    assert all(p.bytes is not None and p.bytes < len(e.prompt) for p, e in zip(found, verses, strict=True))


def test_a_uniform_guess_over_256_bytes_takes_8_bits_per_byte() -> None:
    guess = [scoring.predict(Example("x", "ab", "", (), 0), [-n * math.log(256)], n) for n in (2, 5)]
    assert scoring.psi(guess, ["bits_per_byte"])["bits_per_byte"] == pytest.approx(8, abs=1e-5)


def test_choices_have_no_bits_per_byte() -> None:
    choice = scoring.predict(Example("x", "ab", "", ("a", "b"), 0), [-1.0, -2.0])
    with pytest.raises(SpecError, match="these predictions are choices"):
        scoring.psi([choice], ["bits_per_byte"])


def test_a_step_on_texts_counts_what_torch_executes(loaded: models.LoadedModel, verses: tuple[Example, ...]) -> None:
    same_length = [item for item in objectives.tokenize(loaded, verses, 24) if item.length == 24][:4]
    objective = objectives.objective_for(loaded)
    loaded.train_only(tuple(loaded.partition.sizes))
    with FlopCounterMode(display=False) as counter:
        loss, shape = objective.loss(same_length)
        loss.backward()  # type: ignore[no-untyped-call]
    assert shape == objective.shape(same_length)
    assert shape.scored == shape.tokens == 4 * 23  # every token that is read predicts one
    trained = Trained(frozenset(loaded.partition.sizes), new_head=False)
    done = Pass(phase="train", attempt=1, trains="method", backward=True, **vars(shape))
    config = loaded.model.config.to_dict()  # type: ignore[operator]
    assert pass_flops(config, "causal", None, trained, done).total == counter.get_total_flops()
