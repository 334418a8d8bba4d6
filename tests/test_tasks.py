"""Task and suite files: the contract that every one of them keeps, and the errors of those who write them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cprbench.adapt.checkpoints import MODELS
from cprbench.adapt.methods import METHODS
from cprbench.adapt.random_models import BUILT_IN, PREFIX
from cprbench.adapt.scoring import METRICS
from cprbench.adapt.selection import SELECTIONS
from cprbench.errors import SpecError
from cprbench.sources import FilesSource, HubSource, PackageSource
from cprbench.tasks import is_suite, known_suites, known_tasks, load_suite, load_task, tasks_folder, training_for

TASKS = known_tasks()
SUITES = known_suites()


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of tasks to edit, which is the one in use."""
    folder = tmp_path / "tasks"
    shutil.copytree(tasks_folder(), folder)
    monkeypatch.setenv("CPRBENCH_TASKS", str(folder))
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_a_task_file_is_complete(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    for text in (task.domain, task.description, task.license, task.citation):
        assert len(text.split()) >= 1
    assert (task.example.kind == "text") if task.chance is None else 0 < task.chance < 1
    assert task.primary in task.metrics
    assert len(set(task.metrics)) == len(task.metrics)
    assert set(task.metrics) <= set(METRICS)
    assert training_for(task, {}, name).max_examples is None


@pytest.mark.parametrize("name", TASKS)
def test_a_task_file_pins_its_data(name: str) -> None:
    task = load_task(name)
    assert task.data_sha256 is not None
    assert {"train", "test"} <= set(task.splits.counts)
    for source in task.source:
        if isinstance(source, FilesSource):
            hashes = source.sha256 if isinstance(source.sha256, dict) else {"all": source.sha256}
            assert set(hashes) == set(source.paths())
            assert all(len(digest or "") == 64 for digest in hashes.values())
        elif isinstance(source, PackageSource):
            assert len(source.sha256) == 64
        elif isinstance(source, HubSource):
            assert len(source.revision) == 40


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_file_names_tasks_methods_and_selections_that_exist(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert set(suite.tasks) <= set(TASKS)
    assert set(suite.models) <= {*MODELS, *(PREFIX + name for name in BUILT_IN)}
    assert {arm.method for arm in suite.arm} <= set(METHODS)
    assert {arm.selection for arm in suite.arm} <= set(SELECTIONS)
    for task in suite.tasks:
        training_for(load_task(task), {**suite.limits.model_dump(exclude_none=True), **suite.training}, name)


def test_there_are_task_and_suite_files_to_check() -> None:
    assert {"movie-snippets", "banking77", "pubmedqa"} <= set(TASKS)
    assert "quickstart" in SUITES


def test_an_unknown_task_names_the_nearest_one() -> None:
    with pytest.raises(SpecError, match=r"unknown task 'movie-snipets'\. Did you mean 'movie-snippets'\?"):
        load_task("movie-snipets")


def test_an_unknown_suite_names_the_nearest_one() -> None:
    with pytest.raises(SpecError, match=r"unknown suite 'quikstart'\. Did you mean 'quickstart'\?"):
        load_suite("quikstart")


def test_a_task_is_also_found_by_the_path_of_its_file(tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    text = (tasks_folder() / "pubmedqa.toml").read_text(encoding="utf-8")
    copy.write_text(text.replace('name = "pubmedqa"', 'name = "mine"'), encoding="utf-8")
    assert load_task(str(copy)).name == "mine"
    assert load_task(str(copy)).source == load_task("pubmedqa").source


def test_a_path_with_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.toml"):
        load_task(str(tmp_path / "nothing.toml"))
    with pytest.raises(SpecError, match=r"nothing\.toml"):
        load_suite(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize(
    ("right", "mistyped", "message"),
    [
        ("license =", "licence =", "unknown key 'licence'. Did you mean 'license'?"),
        ("member =", "memmber =", "unknown key 'source.0.package.memmber'. Did you mean 'member'?"),
        ("test = 0.2", "tests = 0.2", "unknown key 'splits.tests'. Did you mean 'test'?"),
        ("prompt =", "promt =", "unknown key 'example.promt'. Did you mean 'prompt'?"),
        ("max_tokens =", "max_token =", "unknown key 'max_token'. Did you mean 'max_tokens'?"),
    ],
)
def test_a_mistyped_key_in_a_task_file_names_the_file_and_the_nearest_key(
    own_tasks: Path, right: str, mistyped: str, message: str
) -> None:
    path = own_tasks / "movie-snippets.toml"
    text = path.read_text(encoding="utf-8")
    assert right in text
    path.write_text(text.replace(right, mistyped, 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_task("movie-snippets")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_mistyped_key_in_a_suite_file_names_the_file_and_the_nearest_key(own_tasks: Path) -> None:
    path = own_tasks / "suites" / "quickstart.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("eval_items", "eval_item"), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_suite("quickstart")
    assert str(caught.value) == f"{path}: unknown key 'limits.eval_item'. Did you mean 'eval_items'?"


def test_a_mistyped_training_key_in_a_suite_file_names_the_file(own_tasks: Path) -> None:
    path = own_tasks / "suites" / "quickstart.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[training]\nepochs", "[training]\nepoch"), encoding="utf-8")
    with pytest.raises(SpecError, match="epochs"):
        load_suite("quickstart")


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('name = "a"\nversion = = 1\n', encoding="utf-8")
    with pytest.raises(SpecError, match=r"broken\.toml: not valid TOML: .*line 2"):
        load_task(str(path))
    path.write_bytes(b'name = "\xff"\n')
    with pytest.raises(SpecError, match=r"broken\.toml: cannot be read"):
        load_task(str(path))


def test_a_new_task_is_one_file_and_nothing_else(own_tasks: Path) -> None:
    (own_tasks / "tiny.toml").write_text(
        'name = "tiny"\nversion = 1\ndomain = "general"\nlicense = "MIT"\ncitation = "none"\nchance = 0.5\n'
        'primary = "accuracy"\nmetrics = ["accuracy"]\n'
        '[[source]]\nkind = "inline"\nrows = [{ text = "a", label = "x" }]\n'
        '[splits]\nby = "hash"\ntest = 0.5\n'
        '[example]\nkind = "choice"\nprompt = "{text}"\nanswer = "label"\nchoices = ["x", "y"]\n',
        encoding="utf-8",
    )
    assert "tiny" in known_tasks()
    assert load_task("tiny").domain == "general"


def test_a_suite_is_told_from_a_task_by_its_arms() -> None:
    assert is_suite(tasks_folder() / "suites" / "quickstart.toml")
    assert not is_suite(tasks_folder() / "pubmedqa.toml")


def test_without_any_task_file_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CPRBENCH_TASKS", str(tmp_path / "empty"))
    assert tasks_folder().name in ("tasks", "_tasks")  # the checkout's own are still found
    monkeypatch.setattr("cprbench.tasks.__file__", str(tmp_path / "site" / "cprbench" / "tasks.py"))
    with pytest.raises(SpecError, match="CPRBENCH_TASKS"):
        tasks_folder()
