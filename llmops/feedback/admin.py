"""The admin tab: a campaign's figures (`llmops.ratings.insight`) as pictures.

How a gate's votes go is not among them before that may be looked at; the figures themselves see to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from llmops.errors import InvalidEvidence
from llmops.feedback.plots import SHARE, Axis, Plot, Row, bars, box, figure, interval, nothing, parts, point
from llmops.ratings.book import RatingBook
from llmops.ratings.insight import Insight, insight
from llmops.ratings.league import leagues
from llmops.ratings.needs import GateNeeds
from llmops.ratings.strength import Strength
from llmops.ratings.watch import RaterInsight, Share
from llmops.registry.adapters import Registry
from llmops.schema import short

AGREEMENT = Axis(-0.2, 1, ((0, "chance"), (0.4, "0.4"), (0.8, "0.8"), (1, "1")), 0.0)
DWELL = Axis(1, 900, ((1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min")), log=True)
N_HOURS, N_RATERS, N_PAIRS = 36, 12, 12
MIN_PAIR_ITEMS = 5
RATER_ID = 64  # characters of the digest that stands for a name
HASTY_S = 2.0
"""A median time on an item below this calls for a look: nobody reads two answers so fast."""

Named = Callable[[str], str]


def figures(registry: Registry, book: RatingBook, names: Mapping[str, str]) -> Markup:
    """All pictures of a campaign.

    Args:
        registry: knows what systems are called.
        book: the campaign's.
        names: names of raters by what stands with their ratings; others are shown by the start of that.

    Raises:
        InvalidEvidence: an item's text was altered.
    """
    seen = insight(book)

    def named(rater: str) -> str:
        return names.get(rater) or (rater if len(rater) != RATER_ID else f"#{rater[:6]}")

    systems = {record.adapter: record.model_name for record in registry.adapters()}
    systems |= {book.campaign.base: f"base@{short(book.campaign.base)}"}
    plots = [
        _queue(seen),
        *([_needs(seen.needs)] if seen.needs else []),
        _pace(seen.raters, named),
        _dwell(seen.raters, named),
        _sides(seen, named),
        _agreement(seen, named),
        _known(seen, named),
        *([_scores(seen)] if seen.scores else []),
        _results(seen, systems),
        *_over_all(registry, book, systems),
    ]
    return Markup("").join(figure(plot) for plot in plots)


# ---------------------------------------------------------------- how far, and how fast


def _queue(seen: Insight) -> Plot:
    n_begun = seen.n_items - seen.n_full - seen.items_by_votes.get(0, 0)
    rows = [
        Row(
            "Items",
            parts([(1, seen.n_full), (2, max(0, n_begun))], seen.n_items),
            f"{seen.n_full} of {seen.n_items} done",
        )
    ]
    hours = [n for _, n in seen.by_hour[-N_HOURS:]]
    if len(hours) > 1:
        rows.append(Row("Busy hours", bars(hours, max(hours)), f"{max(hours)} answers at most"))
    lead = f"{_n(seen.n_votes, 'answer')} by {_n(len(seen.raters), 'rater')}; {_n(seen.n_open, 'item')} in view now."
    legend = ((1, "all votes in"), (2, "some"))
    return Plot("Queue", lead, tuple(rows), ("", "standing"), legend=legend)


def _n(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _needs(needs: GateNeeds) -> Plot:
    want = needs.next_look or needs.n_full
    rows = [
        Row(
            "Next look" if needs.looks else "All items",
            parts([(1, min(needs.n_full, want))], max(want, 1)),
            f"{needs.n_full} of {want} items",
        )
    ]
    for chance, n in needs.items_for_power.items():
        said = "more than can be counted" if n is None else f"{n:,} items"
        drawing = nothing() if n is None else parts([(1, min(needs.n_full, n))], n)
        rows.append(Row(f"PASS with {float(chance):.0%}", drawing, said))
    missing = [
        _n(n, f"more {what}")
        for n, what in (
            (needs.n_votes_missing or 0, "vote"),
            (needs.n_raters_missing, "rater"),
            (needs.n_agreement_items_missing, "twice-rated item"),
        )
        if n
    ]
    wanted = (
        f"Before the next look: {', '.join(missing)}" if missing else "Nothing is missing: it can look now"
    )
    lead = f"{wanted}. Chances are planned with {needs.assumed}."
    return Plot("What the gate still needs", lead, tuple(rows), ("", "rated of wanted"))


def _pace(raters: Sequence[RaterInsight], named: Named) -> Plot:
    most = max((person.per_hour for person in raters if person.per_hour is not None), default=1.0)
    axis = Axis(0, most, ((0, "0"), (most, f"{most:,.0f} an hour")))
    rows = [
        Row(
            named(person.rater),
            point(axis, person.per_hour) if person.per_hour is not None else nothing(),
            f"{person.n_answers} / {person.n_skips}" + (", withdrawn" if person.withdrawn else ""),
        )
        for person in raters[:N_RATERS]
    ]
    lead = f"Answers an hour while at work.{_more(raters)}"
    return Plot("Pace", lead, tuple(rows), ("rater", "answers / skips"), axis)


def _dwell(raters: Sequence[RaterInsight], named: Named) -> Plot:
    rows = [
        Row(
            named(person.rater),
            box(DWELL, person.dwell_spread_s),
            f"median {person.dwell_spread_s[2]:.1f} s",
            off=person.dwell_spread_s[2] < HASTY_S,
        )
        for person in raters[:N_RATERS]
        if person.dwell_spread_s is not None
    ]
    lead = f"A box around the middle half of the times, a line at the median.{_more(raters)}"
    return Plot("Time on an item", lead, tuple(rows), ("rater", "time"), DWELL)


def _more(raters: Sequence[RaterInsight]) -> str:
    return f" The first {N_RATERS} of {len(raters)}." if len(raters) > N_RATERS else ""


# ---------------------------------------------------------------- how they rate


def _sides(seen: Insight, named: Named) -> Plot:
    rows = [_share("everybody", seen.left)]
    rows += [_share(named(person.rater), person.left) for person in seen.raters[:N_RATERS] if person.left.n]
    lead = "Of the choices between A and B, how many were for the left one; sides are drawn, so half is expected."
    return Plot("Left-side bias", lead, tuple(rows), ("rater", "left, 95 %"), SHARE)


def _share(name: str, share: Share) -> Row:
    if share.frac is None or share.low is None or share.high is None:
        return Row(name, nothing(), "none yet")
    off = not share.low <= 0.5 <= share.high
    drawing = interval(SHARE, share.frac, share.low, share.high)
    frac, low, high = (100 * value for value in (share.frac, share.low, share.high))
    return Row(name, drawing, f"{frac:.0f} % [{low:.0f}, {high:.0f}] of {share.n}", off)


def _agreement(seen: Insight, named: Named) -> Plot:
    rows = []
    if seen.kind != "rate":
        rows.append(_agreed("everybody, α", seen.agreement.alpha, seen.agreement.n_items))
    rows += [
        _agreed(f"{scored.question}, α", scored.agreement.alpha, scored.agreement.n_items)
        for scored in seen.scores
    ]
    pairs = sorted((k for k in seen.kappas if k.n_items >= MIN_PAIR_ITEMS), key=lambda k: -k.n_items)
    rows += [_agreed(" · ".join(named(r) for r in k.raters), k.kappa, k.n_items) for k in pairs[:N_PAIRS]]
    lead = (
        "Beyond chance, where several rated one item: Krippendorff's α over all, and Cohen's κ of two raters who share "
        f"{MIN_PAIR_ITEMS} items or more."
    )
    return Plot("Agreement", lead, tuple(rows), ("", "items"), AGREEMENT)


def _agreed(name: str, value: float | None, n_items: int) -> Row:
    if value is None:
        return Row(name, nothing(), "cannot be said" if n_items else "no item twice yet")
    return Row(name, point(AGREEMENT, value), f"{value:.2f} on {n_items} items", value < 0.2)


def _known(seen: Insight, named: Named) -> Plot:
    rows = []
    for what, whole in (("gold", seen.gold), ("repeats", seen.repeats)):
        if whole.n:
            rows.append(_held(f"{what}, all", whole))
        for person in seen.raters[:N_RATERS]:
            share = person.gold if what == "gold" else person.repeats
            if share.n:
                rows.append(_held(f"{what}, {named(person.rater)}", share))
    lead = "Gold items answered as is known; repeats answered as before although the sides were swapped."
    said = lead if rows else f"{lead} None is answered yet."
    return Plot("Consistency", said, tuple(rows), ("", "held, 95 %"), SHARE)


def _held(name: str, share: Share) -> Row:
    row = _share(name, share)
    return Row(row.name, row.drawing, row.said, share.high is not None and share.high < 0.7)


def _scores(seen: Insight) -> Plot:
    rows = []
    for scored in seen.scores:
        n = sum(scored.counts.values())
        shades = [(_SHADE[value], n_given) for value, n_given in sorted(scored.counts.items())]
        rows.append(Row(scored.question, parts(shades, n), f"mean {scored.mean:.2f} of {n}"))
    legend = ((4, "1"), (2, "2"), (3, "3"), (1, "4 and 5"))
    return Plot("Scores", "How often each value was given.", tuple(rows), ("question", "mean"), legend=legend)


_SHADE = {1: 4, 2: 2, 3: 3, 4: 1, 5: 1}


# ---------------------------------------------------------------- what it comes to


def _over_all(registry: Registry, book: RatingBook, systems: Mapping[str, str]) -> list[Plot]:
    """The leaderboard of the base over all campaigns, where this one is not the only one that counts."""
    title, headers = "Leaderboard over all campaigns", ("system", "log strength, 95 %")
    try:
        found = leagues(registry, book.campaign.base)
    except InvalidEvidence as error:  # of another campaign: this one's figures are not to be missed for it
        return [Plot(title, f"Not shown: {error}.", (), headers)]
    plots = []
    for league in found:
        for board in league.boards[:1] if len(league.campaigns) > 1 else ():
            axis, rows = _ranked(board.rows, systems)
            lead = (
                f"{_n(board.n_votes, 'vote')} in {len(league.campaigns)} campaigns, bootstrap over prompts."
            )
            plots.append(Plot(title, lead, rows, headers, axis))
    return plots


def _ranked(board: Sequence[Strength], systems: Mapping[str, str]) -> tuple[Axis, tuple[Row, ...]]:
    edge = max(0.5, *(abs(v) for s in board for v in (s.low, s.high)))
    axis = Axis(-edge, edge, ((-edge, f"{-edge:.1f}"), (0, "0"), (edge, f"{edge:+.1f}")), 0.0)
    rows = [
        Row(
            systems.get(s.system, short(s.system)),
            interval(axis, s.strength, s.low, s.high),
            f"{s.strength:+.2f} [{s.low:+.2f}, {s.high:+.2f}]",
        )
        for s in board
    ]
    return axis, tuple(rows)


def _results(seen: Insight, systems: Mapping[str, str]) -> Plot:
    title, headers = "Leaderboard", ("system", "log strength, 95 %")
    board = seen.leaderboard
    if not board:
        return Plot(title, f"Not shown: {seen.withheld or 'there are no votes yet'}.", (), headers)
    axis, rows = _ranked(board, systems)
    said = ", ".join(f"{word.replace('_', ' ')} {n}" for word, n in sorted((seen.outcomes or {}).items()))
    lead = f"Bradley and Terry's strengths, bootstrap over items. Outcomes of items: {said}."
    return Plot(title, lead, rows, headers, axis)
