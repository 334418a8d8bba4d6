"""Random models of every family that the FLOP count knows, and items for them, small enough to train in a test."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers

from cprbench.adapt import models
from cprbench.adapt.devices import Engine
from cprbench.adapt.objectives import Item
from cprbench.meters.flops import Pass, Trained, count, sizes
from tests.test_flops import CAUSAL, CONFIGS, LABELS


def small(name: str, trains: tuple[str, ...], *, dropout: float = 0.1) -> models.LoadedModel:
    """Return a model of a family in which these submodules and the new head train."""
    config = CONFIGS[name]
    causal = name in CAUSAL
    if not causal:
        config = type(config).from_dict(config.to_dict() | {"num_labels": LABELS})
    for key in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "dropout",
    ):
        if hasattr(config, key):
            setattr(config, key, dropout)
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    model = auto.from_config(config, attn_implementation="sdpa")
    if causal:
        model.config.use_cache = False
    new = () if causal else models.task_head(model)
    loaded = models.LoadedModel(model, None, "causal" if causal else "encoder", models.partition(model, new), LABELS)
    if causal:
        loaded.labels = None
    loaded.train_only(trains)
    return loaded


def items(loaded: models.LoadedModel, number: int, *, seed: int = 0) -> list[Item]:
    """Return examples of 3 to 12 tokens; a causal model's have choices of one to three."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 100) for _ in range(draw.randint(low, high)))

    causal = loaded.kind == "causal"
    return [
        Item(tokens(3, 12), (tokens(1, 3), tokens(1, 3)) if causal else (), draw.randrange(2)) for _ in range(number)
    ]


def engine(precision: str = "fp32") -> Engine:
    return Engine.start(precision, bf16_is_fast=False)


def flops(loaded: models.LoadedModel, trained: Trained, works: list[Any]) -> int:
    """Return what cprbench counts for the passes that a training loop says it took."""
    passes = [
        Pass(
            phase="train",
            attempt=1,
            trains="method",
            backward=work.backward,
            first_layer=work.first_layer,
            last_layer=work.last_layer,
            recompute=work.recompute,
            **vars(work.shape),
        )
        for work in works
    ]
    found = count(sizes(loaded.model.config.to_dict()), loaded.kind, loaded.labels, trained, passes)
    return sum(part.total for part in found.values())
