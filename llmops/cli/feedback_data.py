"""`llmops feedback export` and `llmops feedback import`: people's answers as data, and other tools' answers as ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.output import as_json
from llmops.errors import BadRequest
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, short
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.feedback.export import Export
    from llmops.feedback.forms import Form
    from llmops.records import Campaign

Name = Annotated[str, typer.Argument(help="The campaign's name, or the start of its digest.")]


class AsWhat(StrEnum):
    """What is exported."""

    preferences = "preferences"
    kto = "kto"
    sft = "sft"
    ratings = "ratings"


FORMS: dict[AsWhat, Form] = {AsWhat.preferences: "preferences", AsWhat.kto: "kto", AsWhat.sft: "sft"}


class OnPii(StrEnum):
    """What happens to a row that holds personal data."""

    drop = "drop"
    redact = "redact"
    refuse = "refuse"
    off = "off"


def export(
    name: Name,
    what: Annotated[
        AsWhat, typer.Option("--as", help="Pairs, judged answers, conversations, or every rating.")
    ] = AsWhat.preferences,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the rows to this JSONL file, too, and what was dropped beside it."),
    ] = None,
    pii: Annotated[
        OnPii, typer.Option(help="What happens to a row with personal data (extra pii).")
    ] = OnPii.drop,
    json: Annotated[bool, typer.Option("--json", help="Print the snapshot.")] = False,
) -> None:
    """Freeze a campaign's answers as training data; every item is a row, or dropped with its reason.

    Recipes name preferences by the campaign's name, the others as dataset NAME-kto and NAME-sft. Raters who withdrew
    are not heard, and prompts of a gate's pool never become training data.
    """
    from llmops.feedback.export import Export, write_rows
    from llmops.feedback.sift import NOT_SCANNED, is_scanned
    from llmops.ratings.campaigns import find_campaign

    registry = Registry.of(find_workspace())
    campaign = find_campaign(registry.store, registry.ledger, name)
    if what is AsWhat.ratings:
        _export_ratings(registry, name, output, pii)
        return
    told = _freeze(registry, campaign, Export(FORMS[what], pii.value))
    if output is not None:
        write_rows(registry, told.kind, told.artifact, output)
    if json:
        as_json(told.record)
        return
    typer.echo(told.title)
    typer.echo(f"{told.what:<9}{told.n_rows} of {campaign.n_items} items")
    typer.echo(f"dropped  {counts(told.n_dropped) or 'none'}")
    if not is_scanned(pii.value):
        typer.echo(f"warning: {NOT_SCANNED}; pip install 'llmops[pii]'", err=True)
    typer.echo(f"files    {registry.store.path(told.kind, told.artifact)}")


@dataclass(frozen=True)
class _Told:
    """What an export came to, whichever record it is."""

    kind: str
    artifact: str
    title: str
    what: str
    n_rows: int
    n_dropped: dict[str, int]
    record: JsonDict


def _freeze(registry: Registry, campaign: Campaign, asked: Export) -> _Told:
    from llmops.feedback.export import export_preferences, export_rows

    if asked.form == "preferences":
        pairs = export_preferences(registry, campaign, asked)
        title = f"preferences {pairs.name}@{short(pairs.digest())}  ({pairs.licence})"
        told = (pairs.n_pairs, pairs.n_dropped, pairs.to_dict())
        return _Told("preferences", pairs.artifact, title, "pairs", *told)
    rows = export_rows(registry, campaign, asked)
    title = f"dataset  {rows.name}@{short(rows.digest())}  ({rows.licence})"
    told = (rows.n_rows["train"], rows.n_dropped, rows.to_dict())
    return _Told("dataset", rows.artifact, title, "rows", *told)


def _export_ratings(registry: Registry, name: str, output: Path | None, pii: OnPii) -> None:
    from llmops.feedback.all_ratings import all_ratings
    from llmops.feedback.export import dropped_beside, write_file
    from llmops.ratings.campaigns import find_campaign

    campaign = find_campaign(registry.store, registry.ledger, name)
    told = all_ratings(registry, campaign, pii.value)
    if output is None:
        raise BadRequest("--output: ratings are written to a file; give one, such as ratings.jsonl")
    write_file(output, told.lines)
    write_file(dropped_beside(output), told.dropped_lines)
    typer.echo(f"ratings  {len(told.rows)} of campaign {campaign.name}: {output}")
    typer.echo(f"dropped  {len(told.dropped)}: {dropped_beside(output)}")


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="MAP", help="A YAML file that says what the export's fields mean.")
    ],
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="EXPORT", help="The file that Argilla (to_json) or Label Studio (JSON) exported."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the campaign.")] = False,
) -> None:
    """Bring in what people answered in Argilla or Label Studio, as a closed campaign whose raters are kept apart."""
    from llmops.feedback.imported import import_export

    found = import_export(Registry.of(find_workspace()), file, answers)
    if json:
        as_json(found.campaign.to_dict())
        return
    campaign = found.campaign
    typer.echo(
        f"campaign {campaign.name}@{short(campaign.digest())}  ({campaign.kind}, from {campaign.origin})"
    )
    typer.echo(f"answers  {found.n_ratings} by {found.n_raters} raters about {campaign.n_items} items")
    for lost in found.dropped[:5]:
        typer.echo(f"dropped  {lost.source}: {lost.reason}")
    if len(found.dropped) > 5:
        typer.echo(f"dropped  {len(found.dropped) - 5} more; all are listed beside the items")


def counts(counted: dict[str, int]) -> str:
    """Numbers by name, as one line."""
    return ", ".join(f"{reason} {n}" for reason, n in sorted(counted.items()))
