"""`llmops feedback`: what people think of answers, from the campaign's file to preferences to learn from."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.evaluate import endpoint_of
from llmops.cli.feedback_data import Name, counts, export, import_
from llmops.cli.insight import insight
from llmops.cli.leaderboard import leaderboard
from llmops.cli.output import as_json, progress, table
from llmops.cli.page import stop, ui
from llmops.cli.withdraw import taken_back_lines, withdraw
from llmops.errors import BadRequest, ConfigError, InvalidEvidence
from llmops.records import Pins
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, short
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:
    from llmops.feedback.campaign_file import CaptureCampaign, GateCampaign, TrainCampaign, TypedCampaign
    from llmops.ratings.book import RatingBook
    from llmops.records import Campaign

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What people think of answers.")


@app.command("open")
def open_(
    file: Annotated[Path, typer.Argument(help="A campaign such as feedback_ui/docstrings-gate.yaml.")],
    adapter: Annotated[
        str | None, typer.Option(help="The candidate of a gate campaign; default: latest.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Where a train campaign samples; default: this workspace's `llmops serve`."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Prompts under way at once.")] = 16,
    json: Annotated[bool, typer.Option("--json", help="Print the campaign.")] = False,
) -> None:
    """Freeze pairs of answers for people to rate: those of two reports (gate), or sampled anew (train)."""
    from llmops.feedback.campaign_file import GateCampaign, load_campaign_file

    workspace, config = find_workspace(), load_campaign_file(file)
    registry = Registry.of(workspace)
    if isinstance(config, GateCampaign):
        if endpoint is not None:
            raise BadRequest("--endpoint: a gate campaign shows the answers of its reports; leave it out")
        campaign = _open_gate(registry, config, file.parent, adapter or "latest")
    else:
        if adapter is not None:
            raise BadRequest(f"--adapter: a train campaign asks the models its file names; edit {file}")
        campaign = _open_train(workspace, config, file.parent, (endpoint, concurrency))
    if json:
        as_json(campaign.to_dict())
        return
    _print(campaign)
    typer.echo(f"rate it  llmops feedback ui {campaign.name}")


app.command()(ui)
app.command()(stop)
app.command()(export)
app.command("import")(import_)
app.command()(withdraw)
app.command()(insight)
app.command()(leaderboard)


@app.command("list")
def list_campaigns() -> None:
    """List the campaigns of this workspace, oldest first."""
    from llmops.ratings.campaigns import campaigns

    registry = Registry.of(find_workspace())
    rows = []
    for campaign in campaigns(registry.store, registry.ledger):
        try:
            book = _book(registry, campaign)
            rated, state = f"{book.standing().n_full} of {campaign.n_items}", _state(registry, book)
        except InvalidEvidence:  # one damaged campaign must not hide the others; `show` says what is wrong
            rated, state = "-", "damaged"
        except ConfigError:  # nor one whose texts are encrypted with a key that is not here
            rated, state = "-", "locked"
        digest = short(campaign.digest())
        rows.append((campaign.name, digest, campaign.purpose, rated, state, campaign.created_at))
    typer.echo(table(("name", "digest", "purpose", "rated", "state", "opened"), rows))


@app.command()
def show(
    name: Name,
    json: Annotated[bool, typer.Option("--json", help="Print record and standing.")] = False,
) -> None:
    """Show how far a campaign is; what votes come to is shown of a gate campaign once it is complete or closed."""
    from llmops.ratings.outcomes import outcome, votes_by_item

    registry = Registry.of(find_workspace())
    book = _find(registry, name)
    campaign, rows, standing = book.campaign, book.evidence(), book.standing()
    votes = votes_by_item(rows)
    said: JsonDict = {
        "state": _state(registry, book),
        "n_full": standing.n_full,
        "n_votes": sum(len(given) for given in votes.values()),
        "n_raters": len({row.rater for row in rows}),
    }
    flagged = taken_back_lines(registry, campaign)
    if flagged:
        said["withdrawn"] = flagged
    if campaign.purpose == "train" or book.settled():
        said["outcomes"] = dict(Counter(outcome(given) for given in votes.values()))
    if json:
        as_json({**campaign.to_dict(), "standing": said})
        return
    _print(campaign)
    rated = f"{said['n_full']} of {campaign.n_items} items have {campaign.votes_per_item} vote(s)"
    typer.echo(
        f"standing {said['state']}; {rated}; {said['n_votes']} votes by {said['n_raters']} people in all"
    )
    for line in flagged:
        typer.echo(f"flagged  {line}")
    if "outcomes" in said:
        typer.echo("outcomes " + (counts(said["outcomes"]) or "none yet"))


@app.command()
def ratings(
    name: Name,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List every rating of a campaign, superseded ones too, after comparing all with the ledger.

    Refused while a gate campaign lacks votes: who sees how it goes may stop when they like the result.
    """
    from llmops.feedback.all_ratings import require_settled
    from llmops.ratings.check import verify_ratings
    from llmops.ratings.outcomes import live, vote_of

    registry = Registry.of(find_workspace())
    book = _find(registry, name)
    require_settled(book)
    verify_ratings(registry.store, registry.ledger, book.campaign.digest())
    given = book.ratings()
    counted, withdrawn = {row.digest for row in live(given)}, book.withdrawn()
    pins = {item.digest: asdict(Pins.of(book.campaign, item)) for item in book.all_items()}
    rows = [
        {
            "number": row.number,
            "digest": row.digest,
            "item": row.item,
            "rater": row.rater,
            "left": row.left,
            "choice": row.choice,
            "vote": vote_of(row),
            "scores": row.scores,
            "tags": list(row.tags),
            "live": row.digest in counted,
            "withdrawn": row.rater in withdrawn,
            "at": row.at,
            "pins": pins.get(row.item),
        }
        for row in given
    ]
    if json:
        for row in rows:
            typer.echo(jsonlib.dumps(row, ensure_ascii=False))
        return
    header = ("number", "item", "rater", "choice", "vote", "live", "at")
    cells = [[short(str(r[k])) if k == "item" else r[k] for k in header] for r in rows]
    typer.echo(table(header, [["-" if c is None else c for c in row] for row in cells]))


@app.command()
def close(name: Name) -> None:
    """Take no more ratings for a campaign; a gate then counts what there is."""
    from llmops.ratings.campaigns import close_campaign, find_campaign

    registry = Registry.of(find_workspace())
    campaign = find_campaign(registry.store, registry.ledger, name)
    close_campaign(registry.ledger, campaign)
    typer.echo(f"closed   {campaign.name}@{short(campaign.digest())}")


def _open_train(
    workspace: Workspace,
    config: TrainCampaign | TypedCampaign | CaptureCampaign,
    folder: Path,
    where: tuple[str | None, int],
) -> Campaign:
    from llmops.feedback.campaign_file import CaptureCampaign, TypedCampaign

    registry = Registry.of(workspace)
    if isinstance(config, CaptureCampaign):
        if where[0] is not None:
            raise BadRequest("--endpoint: these answers were served before; leave it out")
        from llmops.cli.served_answers import open_served

        return open_served(registry, config, folder)
    from llmops.feedback.samples import SampleRequest, open_for_typed, open_from_samples

    request = SampleRequest(where[0] or endpoint_of(workspace), where[1], folder=folder)
    if isinstance(config, TypedCampaign):
        return open_for_typed(registry, config, request)
    with progress("sampling") as report:
        return open_from_samples(registry, config, request, report)


def _open_gate(registry: Registry, config: GateCampaign, folder: Path, adapter: str) -> Campaign:
    """Resolve the gate's file and its suite as they are now, and open the campaign on its newest reports."""
    from llmops.data import find_snapshot
    from llmops.data.cases import DatasetCases
    from llmops.evals.gate import baseline_of, load_gate
    from llmops.evals.gate.vote_plan import vote_plan
    from llmops.evals.suite import load_suite
    from llmops.feedback.open import Comparison, open_from_reports

    path = folder / config.gate
    gate = load_gate(path)
    shown = gate.ratings.suite if gate.ratings and gate.ratings.suite else gate.first
    suite = load_suite(path.parent / gate.files[shown], registry)
    cases, dataset = suite.config.cases, None
    if isinstance(cases, DatasetCases):
        dataset = find_snapshot(registry.store, registry.ledger, cases.name).digest()
    baseline = baseline_of(registry, gate, registry.adapter(adapter))
    about = Comparison(baseline, suite.config.name, suite.digest, dataset, vote_plan(gate))
    return open_from_reports(registry, config, about, adapter, folder)


def _book(registry: Registry, campaign: Campaign) -> RatingBook:
    from llmops.ratings.book import RatingBook

    return RatingBook(registry.store, registry.ledger, campaign)


def _find(registry: Registry, name: str) -> RatingBook:
    from llmops.ratings.campaigns import find_campaign

    return _book(registry, find_campaign(registry.store, registry.ledger, name))


def _state(registry: Registry, book: RatingBook) -> str:
    from llmops.ratings.campaigns import is_closed

    if is_closed(registry.ledger, book.campaign.digest()):
        return "closed"
    return "complete" if book.settled() else "open"


def _print(campaign: Campaign) -> None:
    names = [short(digest) for digest in dict.fromkeys(campaign.systems)]
    twice = len(campaign.systems) == 2 and len(names) == 1
    who = f"{names[0]}, sampled twice" if twice else " and ".join(names) or "systems that are not named"
    engine = campaign.engine
    on = f", {engine.engine} {engine.version} {engine.dtype}" if engine else ""
    at = f", temperature {campaign.decoding['temperature']:g}" if "temperature" in campaign.decoding else ""
    kind = "" if campaign.kind == "compare" else f", {campaign.kind}"
    typer.echo(f"campaign {campaign.name}@{short(campaign.digest())}  ({campaign.purpose}{kind})")
    typer.echo(f"answers  by {who}{on}{at}{f', from {campaign.origin}' if campaign.origin else ''}")
    typer.echo(f"items    {campaign.n_items}, {campaign.votes_per_item} vote(s) each: {campaign.question}")
    typer.echo(f"dropped  {counts(campaign.n_dropped) or 'none'}")
