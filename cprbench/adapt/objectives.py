"""What a batch is, what its loss is and how its choices are scored: once for encoders, once for causal models.

Both see the same prompts. Encoders classify the pooled prompt; causal models score every choice by the
log-likelihood of its tokens after the prompt. Logits are computed only where they are scored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cprbench.adapt.data import Example
from cprbench.adapt.models import LoadedModel
from cprbench.errors import DataError, ModelError

_IGNORED = -100


@dataclass(frozen=True)
class Item:
    """An example as token ids. `choices` holds each choice's tokens (empty for encoders).

    A text is the one choice after a token that starts it, and `bytes` says how many of its bytes these tokens spell.
    """

    ids: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int
    truncated: bool = False
    bytes: int | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt, the longest choice included."""
        return len(self.ids) + max((len(c) for c in self.choices), default=0)

    @property
    def shown(self) -> tuple[int, ...]:
        """The tokens that a model is shown whatever the answer: the prompt, or the whole text."""
        return self.ids if self.bytes is None else self.ids + self.choices[0]


@dataclass(frozen=True)
class Shape:
    """What a pass over a batch computes on: the numbers that the FLOP count needs."""

    batch: int
    length: int
    tokens: int
    scored: int
    squared: int  # sum of squared real lengths

    @classmethod
    def of(cls, lengths: Sequence[int], scored: int) -> Shape:
        """Return the shape of a pass over sequences of these lengths, padded to the longest."""
        return cls(len(lengths), max(lengths), sum(lengths), scored, sum(n * n for n in lengths))


@dataclass(frozen=True)
class Work:
    """A pass of a step: what it computed on and between which layers (meters.flops.Pass has the same fields)."""

    shape: Shape
    backward: bool = True
    first_layer: int = 0
    last_layer: int | None = None
    recompute: bool = False


@dataclass(frozen=True)
class Objective(ABC):
    """A model kind's way to read items. Losses are means over examples of each example's own NLL."""

    model: nn.Module
    pad_id: int

    def loss(self, items: Sequence[Item]) -> tuple[Tensor, Shape]:
        """Return the mean loss of a batch and its shape."""
        losses, shape = self.losses(items)
        return losses.mean(), shape

    @abstractmethod
    def losses(self, items: Sequence[Item]) -> tuple[Tensor, Shape]:
        """Return each example's own loss, (batch,), and the shape of the pass."""

    @abstractmethod
    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return how many positions of each example a pass of `losses` reads, padding excluded."""

    @abstractmethod
    def owners(self, items: Sequence[Item]) -> list[int]:
        """Return the example of each row that enters the output layer in a pass of `losses`."""

    def shape(self, items: Sequence[Item]) -> Shape:
        """Return the shape that a pass of `losses` has, without running it."""
        return Shape.of(self.lengths(items), len(self.owners(items)))

    @abstractmethod
    def log_likelihoods(self, items: Sequence[Item]) -> tuple[list[list[float]], Shape]:
        """Return every choice's log-likelihood, per item, and the shape of the pass."""

    def _pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return (ids, mask), both (batch, length) int64 on the model's device."""
        longest = max(len(s) for s in sequences)
        device = next(self.model.parameters()).device
        ids = torch.full((len(sequences), longest), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
            mask[row, : len(sequence)] = 1
        return ids.to(device), mask.to(device)


class Classification(Objective):
    """Encoders: cross-entropy of a classification head over the choices."""

    def _logits(self, items: Sequence[Item]) -> tuple[Tensor, Shape]:
        ids, mask = self._pad([item.ids for item in items])
        return self.model(input_ids=ids, attention_mask=mask).logits.float(), self.shape(items)

    def losses(self, items: Sequence[Item]) -> tuple[Tensor, Shape]:
        """Return the cross-entropy of every example."""
        logits, shape = self._logits(items)
        answers = torch.tensor([item.answer for item in items], device=logits.device)
        return functional.cross_entropy(logits, answers, reduction="none"), shape

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the tokens of every prompt."""
        return [len(item.ids) for item in items]

    def owners(self, items: Sequence[Item]) -> list[int]:
        """Return one row per example."""
        return list(range(len(items)))

    def log_likelihoods(self, items: Sequence[Item]) -> tuple[list[list[float]], Shape]:
        """Return the log-softmax of the head's outputs."""
        logits, shape = self._logits(items)
        return functional.log_softmax(logits, dim=-1).tolist(), shape


class ChoiceLikelihood(Objective):
    """Causal models: the log-likelihood of a choice's tokens, summed; training sees the right choice only."""

    def _token_log_likelihoods(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[list[Tensor], Shape]:
        """Return each sequence's log-likelihoods (its choice's tokens) for (prompt, choice) pairs."""
        # The last token predicts nothing that is scored, so it need not go through the model.
        ids, mask = self._pad([[*prompt, *choice][:-1] for prompt, choice in sequences])
        backbone: Any = self.model.base_model
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = [(row, len(p) - 1 + j) for row, (p, c) in enumerate(sequences) for j in range(len(c))]
        picked = hidden[[r for r, _ in rows], [t for _, t in rows]]
        logits = self.model.get_output_embeddings()(picked).float()  # type: ignore[operator]
        targets = torch.tensor([t for _, choice in sequences for t in choice], device=logits.device)
        found = -functional.cross_entropy(logits, targets, reduction="none")
        shape = Shape.of([len(prompt) + len(choice) - 1 for prompt, choice in sequences], len(rows))
        return list(torch.split(found, [len(choice) for _, choice in sequences])), shape

    def losses(self, items: Sequence[Item]) -> tuple[Tensor, Shape]:
        """Return for every example the mean NLL of its right choice's tokens."""
        found, shape = self._token_log_likelihoods([(item.ids, item.choices[item.answer]) for item in items])
        return -torch.stack([tokens.mean() for tokens in found]), shape

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the tokens of prompt and right choice without the last, which predicts nothing."""
        return [len(item.ids) + len(item.choices[item.answer]) - 1 for item in items]

    def owners(self, items: Sequence[Item]) -> list[int]:
        """Return a row per token of each right choice."""
        return [row for row, item in enumerate(items) for _ in item.choices[item.answer]]

    def log_likelihoods(self, items: Sequence[Item]) -> tuple[list[list[float]], Shape]:
        """Return the summed log-likelihood of every choice's tokens."""
        if all(len(choice) == 1 for item in items for choice in item.choices):
            return self._single_tokens(items)
        pairs = [(item.ids, choice) for item in items for choice in item.choices]
        found, shape = self._token_log_likelihoods(pairs)
        sums = iter([float(tokens.sum()) for tokens in found])
        return [[next(sums) for _ in item.choices] for item in items], shape

    def _single_tokens(self, items: Sequence[Item]) -> tuple[list[list[float]], Shape]:
        """Score one-token choices from one forward pass per prompt instead of one per choice."""
        ids, mask = self._pad([item.ids for item in items])
        backbone: Any = self.model.base_model
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(items)), [len(item.ids) - 1 for item in items]]
        scores = functional.log_softmax(self.model.get_output_embeddings()(last).float(), dim=-1)  # type: ignore[operator]
        values = [[float(scores[row, c[0]]) for c in item.choices] for row, item in enumerate(items)]
        return values, Shape.of([len(item.ids) for item in items], len(items))


def objective_for(loaded: LoadedModel) -> Objective:
    """Return the way in which this kind of model reads items."""
    kind = Classification if loaded.kind == "encoder" else ChoiceLikelihood
    return kind(loaded.model, loaded.tokenizer.pad_token_id)


def tokenize(loaded: LoadedModel, examples: Sequence[Example], max_tokens: int) -> list[Item]:
    """Return examples as items of at most `max_tokens` tokens; too long prompts lose the end of their head.

    The tail of a prompt ("\\nAnswer:") is never cut. Raises DataError when tail and choices alone do not fit or no
    character of a text does, and ModelError for a tokenizer that cannot spell a text.
    """
    if not examples:
        return []
    if not examples[0].choices:
        return [_text(loaded.tokenizer, example, max_tokens) for example in examples]
    choices = _choice_tokens(loaded, examples) if loaded.kind == "causal" else [()] * len(examples)
    whole = loaded.tokenizer([e.prompt for e in examples])["input_ids"]
    items = []
    for example, ids, options in zip(examples, whole, choices, strict=True):
        room = max_tokens - max((len(option) for option in options), default=0)
        kept = ids if len(ids) <= room else _cut(loaded.tokenizer, example, ids, room)
        items.append(Item(tuple(kept), options, example.answer, truncated=kept is not ids))
    return items


def _text(tokenizer: Any, example: Example, max_tokens: int) -> Item:
    """Return a text as an item, cut behind a whole character; only bytes that its tokens spell are counted."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    head = example.head
    # A text may spell the word of a special token; it is text all the same.
    ids = tokenizer(head, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def told(part: Sequence[int]) -> str:
        text: str = tokenizer.decode(part, clean_up_tokenization_spaces=False)
        return text

    if start is None or told(ids) != head:
        raise ModelError(
            f"the tokenizer cannot spell text {example.id!r} or has no token to start it: its tokens read "
            f"{told(ids)!r:.80}. Bits per byte need one that loses nothing: use a byte-level tokenizer."
        )
    keep = min(len(ids), max_tokens - 1)
    # Both parts of a cut character read as U+FFFD, which a text may hold itself: so both sides of the cut are compared.
    # Some tokenizers leave out the space before the first token they are shown.
    while 0 < keep < len(ids) and head not in (told(ids[:keep]) + gap + told(ids[keep:]) for gap in ("", " ")):
        keep -= 1
    if keep < 1 or not told(ids[:keep]):
        raise DataError(
            f"text {example.id!r}: max_tokens = {max_tokens} leaves {max(0, max_tokens - 1)} tokens after the one that "
            f"starts a text, too few for its first character {head[0]!r}. Raise training.max_tokens."
        )
    return Item((start,), (tuple(ids[:keep]),), 0, truncated=keep < len(ids), bytes=len(told(ids[:keep]).encode()))


def _choice_tokens(loaded: LoadedModel, examples: Sequence[Example]) -> list[tuple[tuple[int, ...], ...]]:
    texts = {choice for example in examples for choice in example.choices}
    # A choice follows the prompt after one space, as in running text, unless the prompt ends in white space.
    lead = "" if examples[0].prompt[-1:].isspace() else " "
    ids = {t: tuple(loaded.tokenizer(lead + t, add_special_tokens=False)["input_ids"]) for t in texts}
    return [tuple(ids[choice] for choice in example.choices) for example in examples]


def _cut(tokenizer: Any, example: Example, ids: Sequence[int], room: int) -> list[int]:
    head = tokenizer(example.head, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    keep = room - (len(ids) - len(head))
    while keep > 0:
        shorter: list[int] = tokenizer(example.head[: head[keep - 1][1]] + example.tail)["input_ids"]
        if len(shorter) <= room:
            return shorter
        keep -= max(1, len(shorter) - room)
    raise DataError(
        f"example {example.id!r}: max_tokens leaves {room} tokens for the prompt, fewer than its fixed end "
        f"{example.tail!r} needs. Raise training.max_tokens."
    )
