"""Model cards: what the hub reads, whoever named the arms, and no emission that was not measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from cprbench.judge.cpr import compare
from cprbench.render.formats.model_card import model_cards
from cprbench.spec import RunRecord
from tests.golden_files import is_golden, quickstart
from tests.records_factory import CPU, GPU, make_record
from tests.render.test_carbon import FRANCE, measured
from tests.render.test_tidy import external

#: Names that would end a front matter, begin a key, or be read as something else.
HOSTILE = (
    "a\n---\nlicense: mit",
    'say "yes": {x: [1]} # no',
    "\\x41 ' \\",
    "*anchor &x !tag %d @ ` | >",
    "null",
    "日本語 😀 \u202e\u2028\x85\ufeff\x7f\U000e0001",
    "[link](http://evil.example) <img src=x onerror=alert(1)>",
    "../../etc/passwd",
)


def front(card: str) -> dict[str, Any]:
    """Return the front matter of a card, as a reader of YAML sees it."""
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    assert found == ModelCard(card).data.to_dict()  # and as the hub does
    return found


def only(*records: RunRecord) -> str:
    (card,) = model_cards(compare(records)).values()
    return card


def test_the_card_tells_the_mean_score_and_its_blocks() -> None:
    told = front(only(make_record(final=0.8), make_record(final=0.9, block=2)))
    data = ModelCardData(**told)
    (result,) = data.eval_results or []
    assert data.model_name == "all-MiniLM-L6-v2 partial k=0.15"
    assert (result.task_type, result.dataset_type, result.dataset_name) == (
        "text-classification",
        "movie-snippets",
        "movie-snippets v1",
    )
    assert result.dataset_revision is None and result.dataset_split == "test"  # the hub's are commits
    assert result.metric_value == pytest.approx(0.85) and result.metric_name == "accuracy, mean of blocks 0, 2"
    assert result.metric_type == "accuracy"


def test_scores_of_texts_are_those_of_text_generation() -> None:
    told = front(only(make_record(metric="bits_per_byte")))
    assert told["model-index"][0]["results"][0]["task"] == {"type": "text-generation"}


def test_emissions_are_grams_of_a_run_with_source_place_and_hardware() -> None:
    told = front(only(measured(), measured(1)))["co2_eq_emissions"]
    assert told["emissions"] == pytest.approx(28)
    assert (told["training_type"], told["geographical_location"]) == ("fine-tuning", "France")
    assert told["hardware_used"] == CPU
    assert "rapl packages" in told["source"] and "56.04 g CO2 per kWh" in told["source"]


def test_emissions_without_a_country_have_no_place() -> None:
    told = front(only(measured(carbon=FRANCE | {"source": "given with --carbon-intensity"})))
    assert "geographical_location" not in told["co2_eq_emissions"]


def test_a_model_drawn_at_random_was_trained_and_not_tuned() -> None:
    drawn = measured()
    spec = drawn.spec.model_copy(update={"model": drawn.spec.model.model_copy(update={"source": "random:llama-tiny"})})
    assert front(only(drawn.model_copy(update={"spec": spec})))["co2_eq_emissions"]["training_type"] == "pre-training"


@pytest.mark.parametrize("kilograms", [1e-8, 2.5e-8, 3.0, 1e19])
def test_small_and_large_emissions_stay_numbers(kilograms: float) -> None:
    told = front(only(make_record(gamma={"co2_kg": kilograms})))["co2_eq_emissions"]["emissions"]
    assert isinstance(told, float) and told == pytest.approx(1000 * kilograms)


def test_emissions_that_one_block_lacks_are_a_comment_with_the_reason() -> None:
    card = only(measured(), make_record(block=1))
    assert "co2_eq_emissions" not in front(card)
    assert '\n# co2_eq_emissions: "not measured"\n' in card


def test_a_licence_or_a_data_set_is_never_made_up() -> None:
    assert not {"license", "datasets", "base_model", "language"} & set(front(only(make_record())))


def test_the_base_model_is_an_id_of_the_hub_or_nothing() -> None:
    def source(name: str, revision: str | None) -> dict[str, Any]:
        record = make_record()
        model = record.spec.model.model_copy(update={"source": name, "revision": revision})
        return front(only(record.model_copy(update={"spec": record.spec.model_copy(update={"model": model})})))

    assert source("meta-llama/Llama-3.2-3B", "abc")["base_model"] == "meta-llama/Llama-3.2-3B"
    assert "base_model" not in source("folder/of/mine", "abc")
    assert "base_model" not in source("my/folder", None)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_told_as_they_are_and_change_nothing_else(name: str) -> None:
    record = make_record(arm=name, method="partial", hardware_class=name, spec={"model": name, "task": name})
    ((stem, card),) = model_cards(compare([record])).items()
    told = front(card)
    assert told["model-index"][0]["name"] == f"{name} {name}"
    assert set(told) == {"tags", "model-index"}
    assert "/" not in stem and "\\" not in stem and stem.strip(".-") == stem and stem.isascii() and stem
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)[<>\[\]`*_]", body)


def test_arms_of_the_same_letters_have_cards_of_their_own() -> None:
    cards = model_cards(compare([make_record(arm="full x"), make_record(arm="full_x"), make_record(arm="full X")]))
    assert sorted(cards) == ["full-x", "full-x-2", "full-x-3"]


def test_groups_are_in_the_names_of_the_files_where_there_are_several() -> None:
    cards = model_cards(compare([make_record(arm="full"), make_record(arm="full", hardware_class=GPU)]))
    assert [stem.rpartition("/")[2] for stem in cards] == ["full", "full"]
    assert {"h100" in stem for stem in cards} == {True, False}


def test_a_smoke_test_has_no_index_and_every_card_says_on_what_it_was_scored() -> None:
    run = make_record(arm="full", role="smoke", limits={"eval_items": 100}, suite="quickstart", suite_version=1)
    (card,) = model_cards(compare([run])).values()
    assert "model-index:" not in card.replace("# model-index:", "") and '# model-index: "A smoke test' in card
    assert "Scored on 100 test items, suite quickstart v1, limits eval\\_items 100".replace("limits ", "") in card
    ranked = make_record(arm="full", new_head_parameters=0, limits={"eval_items": 100})
    (card,) = model_cards(compare([ranked])).values()
    assert 'name: "movie-snippets v1 (eval_items 100)"' in card


def test_a_search_is_named_and_a_reason_stands_where_no_number_is() -> None:
    trial = make_record(arm="full", role="search", block=5)
    runs = [make_record(arm=arm, block=b, final=0.6) for arm in ("head", "full", "lora") for b in (0, 1, 2)]
    cards = model_cards(compare([*runs, trial]))
    assert "| trials of the learning-rate search, not in these costs | 1 |" in cards["full"]
    assert "trials" not in cards["lora"] and "| n/e: full\\_gain\\_not\\_positive |" in cards["lora"]


def test_an_arm_of_failed_runs_has_no_card_and_a_run_without_psi_has_no_index() -> None:
    assert model_cards(compare([make_record(status="failed")])) == {}
    unscored = make_record().psi.model_copy(update={"final": None})
    card = only(make_record().model_copy(update={"psi": unscored}))
    assert "model-index" not in front(card) and '# model-index: "no psi was given"' in card


def test_a_loop_that_is_not_ours_has_a_card_of_what_is_known() -> None:
    told = front(only(external(gamma={"co2_kg": 1.0})))
    result = told["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "my task v1", "type": "my task"} and result["task"] == {"type": "other"}
    assert "training_type" not in told["co2_eq_emissions"]


def test_golden_cards_are_those_of_the_quickstart(tmp_path: Path) -> None:
    cards = model_cards(compare(quickstart(tmp_path).records))
    assert list(cards) == ["head", "full", "lora", "partial-k-0.15"]
    assert is_golden("quickstart/model-card-partial.md", cards["partial-k-0.15"])


def test_a_name_longer_than_a_file_s_may_be_is_cut() -> None:
    (stem,) = model_cards(compare([make_record(arm="x" * 200, method="full")]))
    assert stem == "x" * 100
