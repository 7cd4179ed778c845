"""`llmops finetune`: a recipe becomes an adapter."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.output import as_json, progress
from llmops.errors import EXIT_BAD_REQUEST, BadRequest
from llmops.ledger import Event
from llmops.records import AdapterRecord, DatasetSnapshot, Lineage, PreferenceSnapshot
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:
    from llmops.train.recipe import Overrides

PROVABLE_NATS = 0.1  # twice what rounding to bfloat16 alone changes; see llmops/engines/proof.py


RecipeFile = Annotated[
    Path | None, typer.Argument(help="A recipe such as recipes/docstrings-sft.yaml.", show_default=False)
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the newest unfinished run, of RECIPE if it is given.")
]
RunId = Annotated[
    str | None, typer.Option(help="With --resume: the run to go on with, or the beginning of its id.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace a setting of the recipe: NAME=VALUE, such as lora.r=8."),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Only say, without loading weights, whether the recipe would train; else exit 2."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print the resolved recipe, and what each process would run.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the adapter's record and lineage, or what --check found.")
]


def finetune(
    recipe: RecipeFile = None,
    resume: Resume = False,
    run: RunId = None,
    settings: Set = None,
    check: Check = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train the LoRA adapter a recipe describes and register it under its digest."""
    if recipe is None and not resume:
        raise BadRequest("finetune: no recipe is given; name a file, or give --resume to go on with a run")
    if run and not resume:
        raise BadRequest("finetune: --run says which run to go on with; give --resume too")
    from llmops.train.recipe import parse_override, set_words

    workspace, overrides = find_workspace(), tuple(parse_override(text) for text in settings or ())
    words = (*_words(resume, run, json), *set_words(overrides))
    if check or dry_run:
        if recipe is None or resume:
            raise BadRequest(
                "finetune: --check and --dry-run look at a recipe; name its file, without --resume"
            )
        if check:
            _check(recipe, workspace, overrides, json)
        if dry_run:
            _dry_run(recipe, workspace, overrides)
        return
    if recipe is not None and _as_one_of_several(recipe, workspace, overrides, words):
        return
    from llmops.train.finetune import finetune as train
    from llmops.train.finetune import resume as go_on

    with progress("finetune") as report:
        started = train(recipe, workspace, report, overrides) if recipe and not resume else None
        record = started or go_on(recipe, workspace, report, run, overrides)
    print_adapter(Registry.of(workspace), record, json)


def _check(recipe: Path, workspace: Workspace, overrides: Overrides, json: bool) -> None:
    """Print what is found out about a recipe; ends with exit code 2 unless nothing stands in its way."""
    from llmops.train.check.report import check_recipe

    with progress("check") as report:
        found = check_recipe(recipe, workspace, report, overrides)
    if json:
        as_json(found.to_dict())
    else:
        typer.echo("\n".join(found.lines()))
    if not found.is_ready:
        raise typer.Exit(EXIT_BAD_REQUEST)


def _dry_run(recipe: Path, workspace: Workspace, overrides: Overrides) -> None:
    """Print the resolved recipe as YAML, and after it, as comments, the command of each process."""
    from tempfile import TemporaryDirectory

    import yaml

    from llmops.train.launch import starts
    from llmops.train.plan import Desk, settle
    from llmops.train.recipe import set_words

    with TemporaryDirectory() as folder, progress("dry run") as report:
        planned = settle(Desk(recipe, workspace, Path(folder), report, overrides, only_looks=True))
    words = (str(recipe.resolve()), *set_words(overrides))
    typer.echo(yaml.safe_dump(planned.resolved, sort_keys=False).rstrip())
    for start in starts(planned.recipe, words):
        typer.echo(f"# LLMOPS_WORKSPACE={shlex.quote(str(workspace.root))} {start}")


def _words(resume: bool, run: str | None, json: bool) -> tuple[str, ...]:
    """The options of this command, as its processes get them."""
    flags = {"--resume": resume, "--json": json}
    return (*(w for w, given in flags.items() if given), *(("--run", run) if run else ()))


def _as_one_of_several(
    recipe: Path, workspace: Workspace, overrides: Overrides, words: tuple[str, ...]
) -> bool:
    """Start the processes of a recipe that asks for several, or be one of them; False where this process shall train.

    Under torchrun the first process prints the adapter.
    """
    from llmops.train.ranks import place, started_by_launcher
    from llmops.train.recipe import load_recipe

    launch = load_recipe(recipe, overrides).launch
    if not place().first:
        from llmops.train.follow import follow

        follow(recipe, workspace, overrides)
        return True
    if launch.processes == 1 or started_by_launcher():
        return False
    if launch.runner == "ray":
        from llmops.train.ray_runner import start_on_ray

        registry = Registry.of(workspace)
        record = registry.adapter(start_on_ray(recipe, workspace, overrides, "--resume" in words))
        print_adapter(registry, record, "--json" in words)
        return True
    from llmops.train.launch import start_elastic

    raise typer.Exit(start_elastic(launch.processes, workspace, (str(recipe), *words)))


def print_adapter(registry: Registry, record: AdapterRecord, json: bool) -> None:
    """Print an adapter's record with its lineage, in words or as JSON."""
    lineage = registry.lineage(record)
    if json:
        as_json({"adapter": record.to_dict(), "lineage": lineage.to_dict()})
        return
    what = "reward model" if record.kind == "reward" else "adapter"
    typer.echo(
        f"{what:8} {record.model_name}  ({lineage.origin}, rank {record.lora_rank}) on {record.base_ref}"
    )
    if record.kind == "reward":
        typer.echo(
            "note     gives a number for a text and writes none: method grpo uses it, no engine serves it"
        )
    if lineage.metrics:
        typer.echo("training " + ", ".join(f"{name} {value:.4g}" for name, value in lineage.metrics.items()))
    if lineage.metrics.get("effect_nats", math.inf) < PROVABLE_NATS:
        typer.echo(
            f"note     the effect is under {PROVABLE_NATS} nats a token: only a float32 engine can prove that it is "
            "applied; train longer to serve it in bfloat16"
        )
    for folder in stored_merges(registry, record):
        typer.echo(f"merged   {folder}: a base model; serve it, or train on it")
    _print_origins(registry, lineage)
    typer.echo(f"digest   {record.adapter}")


def _print_origins(registry: Registry, lineage: Lineage) -> None:
    """Print what an adapter was made from: parent, data, code."""
    if lineage.continues:
        typer.echo(
            f"parent   {registry.adapter(lineage.continues).model_name}, whose weights training began with"
        )
    if lineage.preferences:
        pairs = registry.store.get_record(PreferenceSnapshot, lineage.preferences)
        told = "" if pairs.campaign else f"  ({pairs.rule})"
        typer.echo(f"learnt   {pairs.n_pairs} preferences of {pairs.name}@{short(lineage.preferences)}{told}")
    if lineage.dataset and registry.store.has("dataset_record", lineage.dataset):
        data = registry.store.get_record(DatasetSnapshot, lineage.dataset)
        typer.echo(f"data     {data.name}@{short(lineage.dataset)}  ({data.origin})")
    if lineage.n_rows:
        typer.echo("rows     " + ", ".join(f"{name} {n}" for name, n in lineage.n_rows.items()))
    code = (short(lineage.git_sha) if lineage.git_sha else "no repository") + (
        " with uncommitted changes" if lineage.git_diff_sha256 else ""
    )
    typer.echo(f"code     {code}")


def stored_merges(registry: Registry, record: AdapterRecord) -> list[Path]:
    """Folders of the merged models that recipes have put into the store for an adapter, oldest first."""
    events = registry.ledger.events("adapter.exported")
    digests = dict.fromkeys(str(e.body["merged"]) for e in events if "merged" in e.body and _about(e, record))
    return [registry.store.path("merged", digest) for digest in digests]


def _about(event: Event, record: AdapterRecord) -> bool:
    return bool(event.body["adapter"] == record.adapter)
