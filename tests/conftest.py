"""Real models, small: MiniLM cut to its first two layers, and a random tiny Llama with a tokenizer of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cprbench.spec import RunRecord

# Before torch is imported: children of a test run beside it, so threads must not spin; and one each is enough where
# pytest-xdist runs a process per core.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: Words that a task needs so small that a run takes seconds; sentences are real movie snippets.
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def minilm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's first two layers, real weights (15.6M parameters)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from cprbench.adapt.checkpoints import resolve

    folder = resolve("minilm", offline=False).folder
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.encoder.layer = model.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    target = tmp_path_factory.mktemp("models") / "minilm-2-layers"
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with a byte-level BPE tokenizer trained on movie snippets; ties its embeddings."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from cprbench.adapt.data import load_dataset
    from cprbench.tasks import load_task

    texts = [example.prompt for example in load_dataset(load_task("movie-snippets")).train[:500]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    target = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of data files that the project never commits; skips where it is absent."""
    folder = Path(os.environ.get("CPRBENCH_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data files at {folder}: set CPRBENCH_DATA to run this test")
    return folder


#: Sizes of a run that takes seconds.
SMALL = {
    "max_examples": 64,
    "eval_items": 48,
    "epochs": 1,
    "batch_size": 8,
    "validations": 2,
    "validation_items": 32,
    "select_warmup_steps": 2,
    "select_batches": 2,
    "select_batch_size": 16,
    "precision": "fp32",
}
Arm = Callable[..., RunRecord]


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's real runs are stored."""
    return tmp_path_factory.mktemp("session") / "runs"


@pytest.fixture(scope="session")
def run_arm(runs_folder: Path) -> Arm:
    """Run one arm on movie snippets for real, once per session, and return its record."""
    from cprbench.runs.runner import Options, run
    from cprbench.spec import ArmSpec, SuiteSpec

    def once(
        model: Path, method: str, *, save: str = "none", settings: dict | None = None, **training: object
    ) -> RunRecord:  # type: ignore[type-arg]
        arm = ArmSpec(method=method, settings=settings or {})
        suite = SuiteSpec(tasks=["movie-snippets"], models=[str(model)], blocks=1, arm=[arm])
        options = Options(out=runs_folder, save=save)  # type: ignore[arg-type]
        return run(suite, options=options, settings={**SMALL, **training}).records[0]  # type: ignore[dict-item]

    return once
