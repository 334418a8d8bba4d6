"""A light regressor from what is cheap to know of an example to its J(z), with what it is worth on held-out ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cprbench.adapt.selection import Measured, Pool
from cprbench.blueprint.drift import spearman

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Blocks = list[NDArray[Any]]

#: Examples whose features are held at once.
PART = 4096
_FOLDS = 5
_HASHED = 1024
_CLASSES = 100
#: Fewer examples of a class have no rank correlation worth a mean.
_LEAST_OF_CLASS = 5


def cheap_features(pool: Pool, places: Sequence[int], measured: Measured | None = None) -> Blocks:
    """Return what no pass through the model is needed for: length, label, hashed words and pairs, input embeddings."""
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=_HASHED, ngram_range=(1, 2)).transform([pool.texts[i] for i in places])
    lengths = np.log([[pool.lengths[i]] for i in places])
    return [lengths, _one_hot(pool, places), words.toarray(), pool.input_means(places)]


def forward_features(pool: Pool, places: Sequence[int], measured: Measured | None) -> Blocks:
    """Return what one forward pass tells: the loss in three forms, the pooled last hidden states, and the label."""
    import numpy as np

    assert measured is not None and measured.states is not None
    losses = np.maximum(measured.losses, 1e-12)
    # 1 - exp(-loss) is the probability that the right answer misses: what a softmax passes back.
    forms = [form[:, None] for form in (losses, np.log(losses), np.log(-np.expm1(-losses)))]
    return [*forms, _one_hot(pool, places), measured.states]


def _one_hot(pool: Pool, places: Sequence[int]) -> NDArray[Any]:
    """Return a column for each of the most common labels: free answers are as many as examples, and tell nothing."""
    import numpy as np

    counts = Counter(pool.labels)
    common = sorted(counts, key=lambda label: (-counts[label], label))[:_CLASSES]
    column = {label: i for i, label in enumerate(common)}
    found = np.zeros((len(places), len(column)))
    for row, place in enumerate(places):
        if (own := column.get(pool.labels[place])) is not None:
            found[row, own] = 1.0
    return found


class Regressor:
    """A ridge regression in which every block of features weighs as much as one feature, its penalty by itself.

    Standardised one by one, hundreds of coordinates would drown the few features that say most: on 100 examples of
    MiniLM's states the rank correlation fell below that of the loss alone.
    """

    def __init__(self, blocks: Blocks, target: NDArray[Any]) -> None:
        """`blocks`: (examples, width) each; `target`: (examples,)."""
        import numpy as np
        from sklearn.linear_model import RidgeCV

        self._means = [block.mean(0) for block in blocks]
        spread = [((block - mean) ** 2).sum(1).mean() ** 0.5 for block, mean in zip(blocks, self._means, strict=True)]
        self._scales = [value if value > 0 else 1.0 for value in spread]
        self._ridge = RidgeCV(alphas=np.logspace(-4, 4, 25)).fit(self._scaled(blocks), target)

    def _scaled(self, blocks: Blocks) -> NDArray[Any]:
        import numpy as np

        parts = zip(blocks, self._means, self._scales, strict=True)
        return np.hstack([(block - mean) / scale for block, mean, scale in parts])

    def predict(self, blocks: Blocks) -> list[float]:
        """Return the predicted target of every row."""
        found: list[float] = self._ridge.predict(self._scaled(blocks)).tolist()
        return found


@dataclass(frozen=True)
class Fitted:
    """A trained regressor and what it is worth."""

    model: Regressor
    notes: dict[str, Any]


def fit(blocks: Blocks, influence: NDArray[Any], pool: Pool, places: Sequence[int], losses: NDArray[Any]) -> Fitted:
    """Return a regression of log J, with what it is worth on held-out examples.

    Every example is predicted once by a regression that saw none of its fold; equal texts share a fold, or a
    duplicate would be its own answer.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold

    positive = influence[influence > 0]
    # An example without any gradient has no logarithm: it stands a thousandth below the least of the others.
    target = np.log(np.maximum(influence, 1e-3 * positive.min() if len(positive) else 1.0))
    texts = {text: i for i, text in enumerate(dict.fromkeys(pool.texts[i] for i in places))}
    groups = [texts[pool.texts[i]] for i in places]
    held_out = np.full(len(target), target.mean())
    if len(texts) >= _FOLDS:
        for rows, others in GroupKFold(_FOLDS).split(target, groups=groups):
            model = Regressor([block[rows] for block in blocks], target[rows])
            held_out[others] = model.predict([block[others] for block in blocks])
    labels = [pool.labels[i] for i in places]
    notes = {
        "measured": len(places),
        "folds": _FOLDS,
        "spearman": spearman(held_out.tolist(), influence.tolist()),
        "spearman_within_class": within_class(held_out, influence, labels),
        "spearman_of_loss": spearman(losses.tolist(), influence.tolist()),
        "spearman_of_loss_within_class": within_class(losses, influence, labels),
    }
    return Fitted(Regressor(blocks, target), notes)


def within_class(one: NDArray[Any], other: NDArray[Any], labels: Sequence[str]) -> float | None:
    """Return the mean Spearman correlation inside classes of at least five, weighted by size; None without any."""
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    found = []
    for _, rows in sorted(groups.items()):
        value = spearman(one[rows].tolist(), other[rows].tolist()) if len(rows) >= _LEAST_OF_CLASS else None
        if value is not None:
            found.append((value, len(rows)))
    weight = sum(size for _, size in found)
    return sum(value * size for value, size in found) / weight if weight else None
