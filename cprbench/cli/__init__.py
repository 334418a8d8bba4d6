"""The command line: one file per verb. Results go to stdout, progress to stderr.

Verb files import nothing heavy at their top, so that `cprbench --help` answers at once.
"""

from __future__ import annotations

import os
import sys

import typer

from cprbench.cli import (
    blueprint,
    check,
    data,
    doctor,
    export,
    leaderboard,
    lists,
    measure,
    plan,
    report,
    reproduce,
    run,
    status,
    stop_rule,
    submit,
)
from cprbench.errors import CprbenchError

app = typer.Typer(
    name="cprbench",
    help="Capability per resource: adapt real models, pay for every choice, publish what holds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("measure", context_settings={"allow_interspersed_args": False})(measure.measure)
app.command("doctor")(doctor.doctor)
app.command("report")(report.report)
app.command("check")(check.check)
app.command("pack")(submit.pack)
app.command("validate")(submit.validate)
app.command("reproduce")(reproduce.reproduce)
app.command("status")(status.status)
app.command("list")(lists.list_known)
app.command("export")(export.export)
app.add_typer(blueprint.app, name="blueprint")
app.add_typer(data.app, name="data")
app.add_typer(leaderboard.app, name="leaderboard")
app.add_typer(stop_rule.app, name="stop-rule")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        import cprbench

        typer.echo(cprbench.__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line: our own errors become one message and exit code 1, bugs show their stack."""
    try:
        app()
    except CprbenchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `cprbench report … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
