"""`llmops feedback insight`: how a campaign and its raters do, in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmops.cli.feedback_data import Name, counts
from llmops.cli.output import as_json, table
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.ratings.insight import Insight
    from llmops.ratings.needs import GateNeeds
    from llmops.ratings.watch import Share


def insight(
    name: Name, json: Annotated[bool, typer.Option("--json", help="Print all figures.")] = False
) -> None:
    """Show pace, agreement, side bias, gold items, repeats, the leaderboard and what the gate still needs.

    How a gate's votes go is not told before they may be looked at.
    """
    from llmops.ratings.book import RatingBook
    from llmops.ratings.campaigns import find_campaign
    from llmops.ratings.insight import insight as look

    registry = Registry.of(find_workspace())
    campaign = find_campaign(registry.store, registry.ledger, name)
    seen = look(RatingBook(registry.store, registry.ledger, campaign))
    if json:
        as_json(seen.to_dict())
        return
    typer.echo(f"campaign {seen.campaign}@{short(seen.digest)}  ({seen.purpose}, {seen.kind})")
    typer.echo(
        f"items    {seen.n_full} of {seen.n_items} complete, {seen.n_votes} votes, {seen.n_open} looked at now"
    )
    alpha = "not to be told" if seen.agreement.alpha is None else f"{seen.agreement.alpha:.3f}"
    typer.echo(f"alpha    {alpha} over {seen.agreement.n_items} items with two votes or more")
    for scored in seen.scores:
        told = "not to be told" if scored.agreement.alpha is None else f"{scored.agreement.alpha:.3f}"
        typer.echo(f"score    {scored.question}: mean {scored.mean:.2f}, alpha {told} (ordinal)")
    for label, value in (("left", seen.left), ("gold", seen.gold), ("repeats", seen.repeats)):
        typer.echo(f"{label:<8} {_share(value)}")
    _print_results(seen)
    if seen.needs is not None:
        _print_needs(seen.needs)
    _print_raters(seen)


def _print_results(seen: Insight) -> None:
    if seen.outcomes is not None:
        typer.echo(f"outcomes {counts(seen.outcomes) or 'none yet'}")
    for place, one in enumerate(seen.leaderboard or (), start=1):
        span = f"{one.strength:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
        typer.echo(
            f"{f'place {place}':<8} {short(one.system)}  {span}, {one.wins:g} of {one.n_votes} votes won"
        )
    if seen.withheld is not None:
        typer.echo(f"withheld {seen.withheld}")


def _print_needs(needs: GateNeeds) -> None:
    if needs.n_votes_missing is None:
        typer.echo("gate     all its looks are passed; run `llmops gate check`")
    else:
        level = "" if needs.look_level is None else f", whose bound has level {needs.look_level:.4f}"
        typer.echo(
            f"gate     needs {needs.n_votes_missing} more votes to look at {needs.next_look} items{level}"
        )
    if needs.n_raters_missing:
        typer.echo(f"gate     needs {needs.n_raters_missing} more raters")
    if needs.n_agreement_items_missing:
        typer.echo(
            f"gate     needs {needs.n_agreement_items_missing} more items with two votes, for agreement"
        )
    sizes = ", ".join(
        f"{n or 'no number of'} items for power {power}" for power, n in needs.items_for_power.items()
    )
    typer.echo(f"plan     {sizes} ({needs.assumed})")


def _print_raters(seen: Insight) -> None:
    header = ("rater", "answers", "skips", "per hour", "seconds", "left", "gold", "repeats", "")
    rows = [
        (
            person.rater,
            person.n_answers,
            person.n_skips,
            "-" if person.per_hour is None else f"{person.per_hour:.0f}",
            "-" if person.dwell_s is None else f"{person.dwell_s:.1f}",
            _frac(person.left),
            _frac(person.gold),
            _frac(person.repeats),
            "withdrawn" if person.withdrawn else "imported" if person.is_imported else "",
        )
        for person in seen.raters
    ]
    if rows:
        typer.echo(table(header, rows))


def _frac(share: Share) -> str:
    return "-" if share.frac is None else f"{share.hits}/{share.n}"


def _share(share: Share) -> str:
    if share.frac is None or share.low is None or share.high is None:
        return "none yet"
    return f"{100 * share.frac:.0f} % of {share.n} [{100 * share.low:.0f}, {100 * share.high:.0f}]"
