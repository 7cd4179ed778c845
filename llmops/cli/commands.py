"""All commands: one module a noun, each of which parses, calls a stage and prints.

Nothing heavy is imported until a command runs: every `--help` answers without torch, transformers, mlflow or vllm.
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmops import __version__
from llmops.cli import (
    adapter,
    approve,
    base,
    batch,
    capture,
    compare,
    data,
    engine,
    evaluate,
    export,
    feedback,
    finetune,
    gate,
    grow,
    judge,
    key,
    ledger,
    lineage,
    quickstart,
    release,
    reproduce,
    rollout,
    serve,
    status,
    sweep,
    upkeep,
    usage,
)

app = typer.Typer(
    name="llmops",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help=(
        "From a base model to a served, rated and improving one.\n\n"
        "Exit codes: 0 done or PASS, 1 FAIL, 2 bad request, 3 INCONCLUSIVE, 4 INVALID evidence, 5 could not run, "
        "130 or 143 ended by Ctrl-C or SIGTERM."
    ),
)
app.add_typer(base.app, name="base")
app.add_typer(data.app, name="data")
app.command("finetune")(finetune.finetune)
app.command("sweep")(sweep.sweep)
app.command("verify-resume")(reproduce.verify_resume)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(adapter.app, name="adapter")
app.command("merge")(export.merge)
app.command("export")(export.export)
app.command("push")(export.push)
app.command("card")(export.card)
app.command("serve")(serve.serve)
app.command("stop")(serve.stop)
app.command("batch")(batch.batch)
evaluate.app.command("compare")(compare.compare)
evaluate.app.command("grow")(grow.grow)
evaluate.app.command("judge")(judge.judge)
app.add_typer(evaluate.app, name="eval")
app.add_typer(gate.app, name="gate")
app.add_typer(feedback.app, name="feedback")
app.add_typer(capture.app, name="capture")
app.command("approve")(approve.approve)
app.add_typer(release.app, name="release")
app.add_typer(rollout.app, name="rollout")
app.add_typer(engine.app, name="engine")
app.add_typer(key.app, name="key")
app.command("usage")(usage.usage)
app.add_typer(ledger.app, name="ledger")
app.command("lineage")(lineage.lineage)
app.command("status")(status.status)
app.command("quickstart")(quickstart.quickstart)
app.command("init")(upkeep.init)
app.command("gc")(upkeep.gc)
app.command("backup")(upkeep.backup)
app.command("restore")(upkeep.restore)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before every command; `--version` is answered before this runs."""
