"""`llmops feedback withdraw`: a rater takes everything back, and what was built on it says so from then on."""

from __future__ import annotations

from typing import Annotated

import typer

from llmops.cli.output import as_json
from llmops.records import Campaign
from llmops.registry.adapters import Registry
from llmops.settings import find_workspace


def withdraw(
    rater: Annotated[
        str, typer.Argument(help="The rater: their name, or as `llmops feedback ratings` shows it.")
    ],
    reason: Annotated[str | None, typer.Option(help="Why; kept in the database alone.")] = None,
    delete_texts: Annotated[
        bool, typer.Option("--delete-texts", help="Delete the rater's notes and corrections, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what is flagged.")] = False,
) -> None:
    """Count none of a rater's answers any more, and name all that rests on them: data, adapters, verdicts, releases.

    Nothing is undone by itself: exports leave the answers out from now on, a decision that counted them may not be
    acted on, and `llmops status` and `llmops lineage` show what they reached.
    """
    from llmops.ratings.withdrawn import withdraw as take_back

    registry = Registry.of(find_workspace())
    done = take_back(registry.ledger, _as_rated(registry, rater), reason, delete_texts)
    flagged = _flagged(registry, frozenset(done.ratings))
    if json:
        as_json(
            {
                "rater": done.rater,
                "at": done.at,
                "n_ratings": len(done.ratings),
                "n_texts_deleted": done.n_texts_deleted,
                "flagged": flagged,
            }
        )
        return
    typer.echo(f"withdrawn {rater}: {len(done.ratings)} ratings count no more")
    if delete_texts:
        typer.echo(f"deleted   notes and corrections of {done.n_texts_deleted} ratings")
    for line in flagged:
        typer.echo(f"flagged   {line}")
    if not flagged:
        typer.echo("flagged   nothing: no data, adapter or decision rests on them")


def _as_rated(registry: Registry, given: str) -> str:
    """What stands with the ratings of a rater who is named by that, or by the name it was made from."""
    from sqlalchemy import select

    from llmops.auth import Keys
    from llmops.ratings.raters import is_imported, rater_id
    from llmops.tables import ratings

    engine = registry.ledger.engine
    with engine.connect() as connection:
        known = connection.scalar(select(ratings.c.rater).where(ratings.c.rater == given).limit(1))
    return given if known is not None or is_imported(given) else rater_id(Keys(engine), given)


def taken_back_lines(registry: Registry, campaign: Campaign) -> list[str]:
    """What rests on the campaign's ratings that were taken back; empty where none were."""
    from llmops.ratings.book import RatingBook

    book = RatingBook(registry.store, registry.ledger, campaign)
    gone = book.withdrawn()
    if not gone:
        return []
    digests = [row.digest for row in book.ratings() if row.rater in gone]
    n = len(digests)
    first = f"{n} rating{'s' if n != 1 else ''} by {len(gone)} rater(s) who withdrew"
    return [first, *_flagged(registry, frozenset(digests))]


def _flagged(registry: Registry, ratings: frozenset[str]) -> list[str]:
    """Titles of everything that rests on these ratings, with on how many."""
    from llmops.registry.graph import build_graph
    from llmops.registry.taken_back import is_marked, marked, unmarked

    graph = build_graph(registry)
    found = marked(unmarked(graph.nodes), graph.edges, dict.fromkeys(ratings, "its rater took it back"))
    return [f"{n.title} {n.problem}" for n in found.values() if n.kind != "rating" and is_marked(n)]
