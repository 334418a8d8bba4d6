"""Fine-tune a text classifier with transformers.Trainer, as the library's own examples do, and have it measured.

python examples/finetune_with_trainer.py --model FOLDER --callback           measured from inside, by the callback
cprbench measure --psi-file scores.json -- python examples/finetune_with_trainer.py --model FOLDER    from outside
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy
import transformers
from torch.utils.data import Dataset

from cprbench.adapt.data import Example, load_dataset
from cprbench.tasks import load_task


class Rows(Dataset):  # type: ignore[type-arg]
    """Examples as the Trainer takes them."""

    def __init__(self, examples: tuple[Example, ...], tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self.rows = [{**tokenizer(e.prompt, truncation=True, max_length=48), "labels": e.answer} for e in examples]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.rows[index]


def main() -> None:
    """Train on movie snippets and write the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--scores", type=Path, default=Path("scores.json"))
    parser.add_argument("--callback", action="store_true", help="measure from inside")
    parser.add_argument("--out", default="runs", help="where the callback's record goes")
    given = parser.parse_args()

    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
    data = load_dataset(load_task("movie-snippets"))
    callbacks = []
    if given.callback:
        from cprbench.integrations.trainer import CprbenchCallback

        callbacks.append(CprbenchCallback(task="movie-snippets", model=given.model, primary="accuracy", out=given.out))
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir="trainer-output",
            per_device_train_batch_size=16,
            num_train_epochs=1,
            learning_rate=1e-4,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Rows(data.train[: given.examples], tokenizer),
        eval_dataset=Rows(data.validation[: given.examples], tokenizer),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((numpy.argmax(p.predictions, -1) == p.label_ids).mean())},
        callbacks=callbacks,
    )
    base = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    final = trainer.evaluate()["eval_accuracy"]
    scores = {"primary": "accuracy", "base": {"accuracy": base}, "final": {"accuracy": final}, "items": given.examples}
    given.scores.write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
