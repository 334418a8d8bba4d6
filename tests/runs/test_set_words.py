"""--set ROOM.KEY=VALUE: what is read, and what is refused as it was written."""

from __future__ import annotations

import pytest

from cprbench.errors import SpecError
from cprbench.runs.set_words import read_settings


def test_settings_are_read_by_room_with_their_types() -> None:
    pairs = ["partial.k=0.15,0.3", "partial.embed=true", "lora.r=8", "training.epochs=2", "select.batches=4"]
    assert read_settings(pairs) == {
        "partial": {"k": [0.15, 0.3], "embed": [True]},
        "lora": {"r": [8]},
        "training": {"epochs": [2], "select_batches": [4]},
    }
    assert read_settings(["stop.eta=0.1x", "stop.window=5"]) == {"stop": {"eta": ["0.1x"], "window": [5]}}
    assert read_settings(["training.max_examples=none", "training.attention=eager"]) == {
        "training": {"max_examples": [None], "attention": ["eager"]}
    }
    assert read_settings([]) == {}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("k=0.1", "write ROOM.KEY=VALUE, for example --set partial.k=0.15."),
        ("partial.k", "write ROOM.KEY=VALUE"),
        ("partial.k=", "write ROOM.KEY=VALUE"),
        ("partial.=1", "write ROOM.KEY=VALUE"),
        ("=", "write ROOM.KEY=VALUE"),
        ("", "write ROOM.KEY=VALUE"),
        ("partail.k=0.1", "unknown room 'partail'. Did you mean 'partial'?"),
        ("trainig.epochs=1", "unknown room 'trainig'. Did you mean 'training'?"),
        ("training.epoch=1", "unknown setting training.epoch. Did you mean 'epochs'?"),
        ("select.warmup=1", "unknown setting training.select_warmup. Did you mean 'select_warmup_steps'?"),
        ("training.epochs=1,2", "it is the same for all arms, so it takes one value."),
        ("select.batches=1,2", "it takes one value."),
        ("stop.eta=0.1x,0.2x", "it takes one value."),
        ("stop.windows=3", "unknown setting stop.windows. Did you mean 'window'?"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_as_it_was_written(pair: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_settings([pair])
    assert str(caught.value).startswith(f"--set {pair!r}: ")
    assert message in str(caught.value)


def test_a_setting_that_is_given_twice_is_refused() -> None:
    with pytest.raises(SpecError):
        read_settings(["partial.k=0.1", "partial.k=0.2"])
