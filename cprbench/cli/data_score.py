"""cprbench data score: the verb that measures. A metered child does the work, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cprbench.cli.blueprint_making import Data, Offline
from cprbench.cli.blueprint_use import Json, echo_json
from cprbench.cli.watch import Watch


def score(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task by name or file; its train split is scored.")],
    model: Annotated[str, typer.Option(help="Alias, folder, .gguf file or hub id@revision.")],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Where the scores go.")],
    max_examples: Annotated[int | None, typer.Option(help="Score a sample by label, the one that runs take.")] = None,
    block: Annotated[int, typer.Option(help="The block whose new head is drawn.")] = 0,
    warmup_steps: Annotated[int, typer.Option(help="Head-only steps before a new head is measured.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Examples per batch.")] = 32,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    data: Data = None,
    offline: Offline = False,
    country: Annotated[str, typer.Option(help="ISO-3 code for the carbon intensity, e.g. FRA.")] = "",
    carbon_intensity: Annotated[float | None, typer.Option(help="Carbon intensity in g CO2 per kWh.")] = None,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the site.")] = 1.0,
    allow_shared: Annotated[bool, typer.Option("--allow-shared", help="Run on a GPU in use; flagged.")] = False,
    json_: Json = False,
) -> None:
    """Measure every training example's loss and gradient norms by submodule; what that costs is in the file.

    Killed or interrupted, the same command goes on from the last part that was finished.
    """
    from cprbench.meters.carbon import factors
    from cprbench.render.heatmap import cost_of
    from cprbench.runs.metering import MeterOptions
    from cprbench.surveys import data_scores
    from cprbench.surveys.blueprints import Surroundings

    metering = MeterOptions(carbon=factors(country or None, carbon_intensity, pue), allow_shared=allow_shared)
    what = f"the training examples of {task} with {model}, for {out}"
    with Watch(what, "examples", after="; next: one file", lost="the same command goes on from here") as watch:
        info = data_scores.score(
            model,
            task,
            out,
            max_examples=max_examples,
            block=block,
            warmup_steps=warmup_steps,
            batch_size=batch_size,
            precision=precision,
            surroundings=Surroundings(data=data, offline=offline, metering=metering),
            observe=watch.observe,
        )
    if json_:
        echo_json(info.model_dump(mode="json", by_alias=True))
        return
    typer.echo(f"{out}: {info.examples} examples, {len(info.sizes)} submodules")
    typer.echo(f"  making it cost {cost_of(info.made)}")
