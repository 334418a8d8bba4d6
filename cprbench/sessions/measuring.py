"""What methods and selections may ask to be measured before they choose: in the child, inside phase `select`.

Every pass is counted and every second billed.
"""

from __future__ import annotations

import hashlib
import math
import random
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cprbench.adapt import training
from cprbench.adapt.data import Example
from cprbench.adapt.gradients import influence
from cprbench.adapt.gradients.measure import submodule_norms, warm_head
from cprbench.adapt.gradients.steps import probe_sets, step_cost, time_steps
from cprbench.adapt.methods import Context, Prepared, Probe, Target, method_class
from cprbench.adapt.objectives import Item, Shape, Work
from cprbench.adapt.products import float32_products
from cprbench.adapt.selection import Measured, Pool
from cprbench.blueprint.schema import StepCost
from cprbench.meters.flops import Flops, Trained, Trains
from cprbench.schema import sha256_of
from cprbench.sessions.score_cache import ScoreCache
from cprbench.spec import stream_seed

if TYPE_CHECKING:
    from cprbench.sessions.session import Session


class Measuring:
    """The measurements of one run. `session`: the run, whose batches and accounts they use."""

    def __init__(self, session: Session, examples: Sequence[Example], items: Sequence[Item]) -> None:
        self._session = session
        self._examples, self._items = examples, items
        self._setting = (session.loaded, session.objective, session.engine)
        # By identity, since adapters rename what they wrap.
        named = dict(session.loaded.model.named_parameters())
        cells = session.loaded.partition.parameters
        self._cell_of = {id(named[name]): cell for cell, names in cells.items() for name in names}
        self._warm = not (session.loaded.partition.new_head and session.recipe.select_warmup_steps)
        self._rounds = 0

    def context(self) -> Context:
        """Return what a method's `prepare` is given."""
        spec, partition = self._session.spec, self._session.loaded.partition
        model, recipe = spec.model, spec.training
        return Context(
            seed=spec.seed,
            target=Target(
                model.kind,
                partition.sizes,
                partition.parameters,
                model.weights_sha256,
                model.revision,
                model.label,
                Probe(recipe.select_batch_size, recipe.select_warmup_steps),
            ),
            measure_norms=self.norms,
            measure_step=self.step,
            memory_bytes=lambda: self._session.engine.first(peak_memory_bytes),
        )

    def pool(self, prepared: Prepared) -> Pool:
        """Return what a selection's `select` is given: every training example, with the method in place."""
        return Pool(
            ids=[example.id for example in self._examples],
            labels=[example.reference for example in self._examples],
            texts=[example.prompt for example in self._examples],
            lengths=[item.length for item in self._items],
            seed=self._session.spec.seed,
            sizes=self._session.loaded.partition.sizes,
            trained=prepared.trained_submodules,
            warm=self.warm,
            measure=self.measure,
            input_means=lambda places: influence.input_means(self._session.loaded, [self._items[i] for i in places]),
            train=self.train,
            afford=self.afford,
        )

    # --- of submodules ------------------------------------------------------------------------------

    def warm(self) -> None:
        """Train the new head alone, once, on the first batches of the whole pool's plan; they count as steps.

        Raises TrainingError where they are all that the run has.
        """
        if self._warm:
            return
        session, steps = self._session, self._session.recipe.select_warmup_steps
        session.afford_steps(steps, "select.warmup_steps")
        self._warm = True
        trains = {name: p.requires_grad for name, p in session.loaded.model.named_parameters()}
        torch.manual_seed(stream_seed(session.spec.seed, "warm-up"))
        batches = session.planned(range(len(self._items)))[:steps]
        session.seen += batches
        warm_head(*self._setting, batches, session.recipe, session.after_step("select", "head"))
        for name, parameter in session.loaded.model.named_parameters():  # the method may have said what trains
            parameter.requires_grad_(trains[name])

    def norms(self) -> dict[str, float]:
        """Warm the new head, if there is one, then measure gradient norms on random batches of the pool."""
        session, recipe = self._session, self._session.recipe
        self.warm()
        draw = random.Random(stream_seed(session.spec.seed, "probe"))
        size = min(len(self._items), recipe.select_batches * recipe.select_batch_size)
        chosen = draw.sample(list(self._items), size)
        step = recipe.select_batch_size
        probes = [chosen[i : i + step] for i in range(0, size, step)]

        def observe(shape: Shape, extra: int) -> None:
            session.counter.enter("select", "all", Work(shape), extra=extra)

        return session.engine.first(lambda: submodule_norms(*self._setting, probes, observe))

    def step(self) -> StepCost:
        """Time steps that train a few small sets, on the batch of median length."""
        session, sizes = self._session, self._session.loaded.partition.sizes
        shapes: list[Shape] = []

        def observe(cells: Sequence[str], shape: Shape) -> None:
            shapes.append(shape)
            extra = self._beyond_forward(cells, shape)
            session.counter.enter("select", "nothing", Work(shape, backward=False), extra=extra)

        batches = sorted(session.planned(range(len(self._items))), key=lambda b: max(item.length for item in b))
        sets = probe_sets(sizes)

        def timed() -> StepCost:
            seconds = time_steps(*self._setting, batches[len(batches) // 2], sets, session.recipe, observe)
            return step_cost(sets, seconds, sizes, shapes[0])

        return session.engine.first(timed)

    def _beyond_forward(self, cells: Sequence[str], shape: Shape) -> int:
        """Return the FLOPs of a step that trains `cells` beyond those of its forward pass."""
        counter = self._session.counter
        trained = Trained(frozenset(cells), bool(self._session.loaded.partition.new_head))
        step, forward = (counter.pass_of(Work(shape, backward), "select", "method") for backward in (True, False))
        return counter.of([step], trained).total - counter.of([forward], trained).total

    # --- of examples --------------------------------------------------------------------------------

    def measure(self, places: Sequence[int], *, gradients: bool = True, states: bool = False) -> Measured:
        """Return what the pool tells at these places: from the cache where it was measured before, billed all the same.

        Raises what `influence.measure` raises.
        """
        if gradients:
            self.warm()
        return self._session.engine.first(lambda: self._measured(places, gradients=gradients, states=states))

    def _measured(self, places: Sequence[int], *, gradients: bool, states: bool) -> Measured:
        session, items = self._session, [self._items[i] for i in places]
        cache = ScoreCache(Path(session.job["scores"]), session.folder / "scores.jsonl")
        key = self._key(items, gradients=gradients, states=states)
        # Joules of another run are not on this one's counter, so what has to be known as it goes is measured again.
        if not session.ending.in_energy and (stored := cache.get(key)) is not None:
            seconds = session.counter.bill_again(stored[1])
            session.channel.seconds["select"] = session.channel.seconds.get("select", 0.0) + seconds
            return stored[0]
        parameters = session.loaded.model.named_parameters()
        cells: dict[str, tuple[str, ...]] = {cell: () for cell in session.loaded.partition.sizes}
        for name, parameter in parameters:
            if (cell := self._cell_of.get(id(parameter))) is not None:
                cells[cell] += (name,)

        def observe(shape: Shape, extra: int | None, done: int) -> None:
            trains: Trains = "nothing" if extra is None else "activations"
            session.counter.enter("select", trains, Work(shape, extra is not None), extra=extra or 0)
            session.channel.send("progress", phase="select", done=done, of=len(items))

        before, began = session.counter.spent, time.monotonic()
        with session.channel.phase("select"):  # a window of its own, so that its cost can be told from the rest
            found = influence.measure(
                *self._setting,
                items,
                session.recipe.select_batch_size,
                observe,
                cells=cells,
                gradients=gradients,
                states=states,
            )
        spent = session.counter.spent
        spent = Flops(spent.total - before.total, spent.padding - before.padding)
        cache.put(key, found, (began, time.monotonic()), spent)
        return found

    def _key(self, items: Sequence[Item], **what: bool) -> str:
        """Return a hash of all that could change what is measured, or what that costs."""
        session, recipe = self._session, self._session.recipe
        text = hashlib.sha256()
        for item in items:
            text.update(repr((item.ids, item.choices, item.answer)).encode())
        changed = hashlib.sha256()
        if session.steps_done:  # else the model is as its weights' hash and its seed say
            for parameter in session.loaded.model.parameters():
                if id(parameter) not in self._cell_of or (self._rounds and parameter.requires_grad):
                    changed.update(parameter.detach().float().cpu().numpy().tobytes())
        adapted = session.counter.trained is not None and getattr(
            method_class(session.spec.method.name), "adapts", False
        )
        return sha256_of(
            {
                **what,
                "weights": session.spec.model.weights_sha256,
                "changed": changed.hexdigest(),
                "seed": session.spec.seed if session.loaded.partition.new_head or adapted else None,
                "method": session.spec.method.model_dump(mode="json") if adapted else None,
                "items": text.hexdigest(),
                "batch_size": recipe.select_batch_size,
                "attention": recipe.attention,
                "precision": session.engine.precision,
                "products": float32_products(),
                "hardware_class": session.job["hardware_class"],
                "torch": torch.__version__,
            }
        )

    def train(self, places: Sequence[int], steps: int) -> None:
        """Train what the method trains for a few steps on these places, at its rate; they count as steps of the run.

        Raises TrainingError where they are all that the run has.
        """
        session = self._session
        self.warm()
        session.afford_steps(steps, "selection.steps x rounds")
        self._rounds += 1
        items = [self._items[i] for i in places]
        size = session.recipe.batch_size
        epochs = math.ceil(steps * size / len(items))
        seed = stream_seed(session.spec.seed, f"iterative {self._rounds}")
        plan = training.plan_batches([item.length for item in items], size, epochs, seed)[:steps]
        batches = [[items[i] for i in batch] for batch in plan]
        session.seen += batches
        training.train(
            *self._setting,
            batches,
            session.recipe,
            float(session.recipe.learning_rate or 0.0),
            session.after_step("select", "method"),
            scale=lambda step: 1.0,
        )

    def afford(self, order: Sequence[int], flops: float) -> int:
        """Return how many of the first places of `order` a run can train on that bills at most `flops`, at least one.

        All of them where even they leave some of it.
        """
        self._session.must_count()
        low, high, left = 1, len(order), flops - self._session.billed_flops()
        while low < high:
            middle = (low + high + 1) // 2
            batches = self._session.planned(sorted(order[:middle]))[self._session.steps_done :]
            low, high = (middle, high) if (self.costs(batches) or [0])[-1] <= left else (low, middle - 1)
        return low

    def costs(self, batches: Sequence[Sequence[Item]]) -> list[int]:
        """Return the FLOPs of training on `batches` up to and including each, of all processes, frozen layers kept."""
        session, counter = self._session, self._session.counter
        cache = session.cache_of(batches)
        schedule = training.schedule_of(
            session.loaded, session.objective, session.recipe, cache, session.engine.processes
        )
        known: dict[Work, int] = {}  # thousands of steps have a few shapes
        found, total = [], 0
        for batch in batches:
            for work in schedule.works(batch):
                if work not in known:
                    known[work] = counter.of([counter.pass_of(work, "train", "method")]).total
                total += known[work]
            found.append(total)
        return found


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far: on the device where it uses CUDA, else resident."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    try:  # ru_maxrss would do, but a child inherits its parent's there
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
