"""Losses and scores against independent computations in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cprbench.adapt import models, objectives, scoring, training
from cprbench.adapt.checkpoints import resolve
from cprbench.adapt.data import Example, load_dataset
from cprbench.errors import DataError
from cprbench.tasks import load_task


@pytest.fixture(scope="module")
def examples() -> tuple[Example, ...]:
    return load_dataset(load_task("movie-snippets")).test[:24]


def score(loaded: models.LoadedModel, examples: tuple[Example, ...]) -> list[scoring.Prediction]:
    items = objectives.tokenize(loaded, examples, 48)
    batches = training.score(loaded, objectives.objective_for(loaded), items, 8)
    found = {i: scoring.predict(examples[i], v) for values, _ in batches for i, v in values}
    return [found[i] for i in range(len(items))]


def test_an_encoders_scores_equal_a_plain_transformers_loop(minilm2: Path, examples: tuple[Example, ...]) -> None:
    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=5, attention="sdpa")
    found = score(loaded, examples)
    tokenizer = AutoTokenizer.from_pretrained(minilm2)
    right = nll = 0.0
    for example, prediction in zip(examples, found, strict=True):
        inputs = tokenizer(example.prompt, return_tensors="pt", truncation=True, max_length=512)
        with torch.no_grad():
            expected = torch.log_softmax(loaded.model(**inputs).logits[0], -1)
        if inputs["input_ids"].shape[1] <= 48:  # longer ones are cut, which the plain loop does not do
            assert list(prediction.log_likelihoods.values()) == pytest.approx(expected.tolist(), abs=2e-5)
        right += prediction.prediction == ("negative", "positive")[example.answer]
        nll -= prediction.log_likelihoods[("negative", "positive")[example.answer]]
    scores = scoring.psi(found, ["accuracy", "nll"])
    assert scores["accuracy"] == pytest.approx(right / len(examples))
    assert scores["nll"] == pytest.approx(nll / len(examples))


def test_a_causal_models_choices_are_scored_as_transformers_scores_them(
    tiny_llama: Path, examples: tuple[Example, ...]
) -> None:
    loaded = models.load(resolve(str(tiny_llama), offline=True), None, seed=5, attention="sdpa")
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    short = tuple(e for e in examples if len(tokenizer(e.prompt)["input_ids"]) < 40)
    assert len(short) > 4
    for example, prediction in zip(short, score(loaded, short), strict=True):
        for choice in example.choices:
            prompt = tokenizer(example.prompt)["input_ids"]
            answer = tokenizer(" " + choice, add_special_tokens=False)["input_ids"]
            assert len(answer) > 1  # this tokenizer splits them, so sums over tokens are tested
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            expected = sum(logits[len(prompt) - 1 + j, token] for j, token in enumerate(answer))
            assert prediction.log_likelihoods[choice] == pytest.approx(float(expected), abs=1e-4)


def test_one_token_choices_score_the_same_by_the_short_way_as_by_the_long_one(tiny_llama: Path) -> None:
    loaded = models.load(resolve(str(tiny_llama), offline=True), None, seed=5, attention="sdpa")
    objective = objectives.objective_for(loaded)
    assert isinstance(objective, objectives.ChoiceLikelihood)
    items = [objectives.Item(tuple(range(5, 9 + n)), ((20,), (30,), (40,)), 1) for n in range(4)]
    with torch.no_grad():
        short, shape = objective.log_likelihoods(items)
        pairs = [(item.ids, choice) for item in items for choice in item.choices]
        long, _ = objective._token_log_likelihoods(pairs)
    assert [v for row in short for v in row] == pytest.approx([float(t) for t in long], abs=1e-5)
    assert shape.batch == shape.scored == 4


def test_the_loss_is_the_mean_over_examples_of_each_examples_own_nll(tiny_llama: Path) -> None:
    loaded = models.load(resolve(str(tiny_llama), offline=True), None, seed=5, attention="sdpa")
    loaded.model.eval()
    objective = objectives.objective_for(loaded)
    items = [objectives.Item((5, 6, 7), ((20, 21), (30,)), 0), objectives.Item((8, 9), ((20, 21), (30,)), 1)]
    together = objective.loss(items)[0].detach()
    alone = [objective.loss([item])[0].detach() for item in items]
    assert float(together) == pytest.approx(float(sum(alone)) / 2, abs=1e-5)


def test_a_long_prompt_loses_the_end_of_its_text_and_never_its_tail(minilm2: Path) -> None:
    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=5, attention="sdpa")
    example = Example("x", "word " * 200, "\nSentiment:", ("negative", "positive"), 0)
    (item,) = objectives.tokenize(loaded, [example], 32)
    text = loaded.tokenizer.decode(item.ids)
    assert item.truncated
    assert len(item.ids) <= 32
    assert text.endswith("sentiment : [SEP]")
    assert text.startswith("[CLS] word")
    (short,) = objectives.tokenize(loaded, [Example("y", "word", "\nSentiment:", ("a", "b"), 0)], 32)
    assert not short.truncated


def test_a_length_that_cannot_hold_the_tail_is_an_error(minilm2: Path) -> None:
    loaded = models.load(resolve(str(minilm2), offline=True), 2, seed=5, attention="sdpa")
    example = Example("x", "word " * 200, " tail" * 30, ("negative", "positive"), 0)
    with pytest.raises(DataError, match="Raise training.max_tokens"):
        objectives.tokenize(loaded, [example], 8)
