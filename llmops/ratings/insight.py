"""What can be said of a campaign and its raters while it is open, without telling how a gate's votes go.

`insight` reads the campaign's rows and gives one frozen record: what the admin tab draws and `llmops feedback insight`
prints. Who wins stays out of a gate's campaign until its votes may be looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from llmops.ratings.agreement import Agreed, Kappa, krippendorff_alpha, pairwise_kappas
from llmops.ratings.book import RatingBook
from llmops.ratings.needs import GateNeeds, gate_needs
from llmops.ratings.outcomes import is_answer, live, outcome, vote_of, votes_by_item
from llmops.ratings.strength import Duel, Strength, strengths
from llmops.ratings.watch import RaterInsight, Share, Watched, rater_insights, share
from llmops.records import Campaign, Item, Rating
from llmops.schema import JsonDict

WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}
SCHEMA = "llmops.insight/1"


@dataclass(frozen=True)
class Scored:
    """One question of the rubric: how often each value was given, and the agreement on it (ordinal alpha)."""

    question: str
    counts: dict[int, int]
    mean: float
    agreement: Agreed


@dataclass(frozen=True)
class Insight:
    """All that can be said of a campaign now. Shares have exact 95 % intervals; times are seconds."""

    campaign: str
    digest: str
    kind: str
    purpose: str
    n_items: int
    n_full: int
    n_votes: int
    n_open: int  # items somebody looks at now
    items_by_votes: dict[int, int]  # number of votes -> how many items have so many
    by_hour: tuple[tuple[str, int], ...]  # (hour as 2026-01-01T09, answers given in it), oldest first
    raters: tuple[RaterInsight, ...]
    agreement: Agreed  # on the choice (compare) or on whether an edit was needed (edit), nominal
    kappas: tuple[Kappa, ...]
    scores: tuple[Scored, ...]  # rate
    left: Share  # chosen on the left, of all choices between left and right
    gold: Share  # answered as known
    repeats: Share  # answered as before, the sides being swapped
    outcomes: dict[str, int] | None  # None while withheld
    leaderboard: tuple[Strength, ...] | None  # None while withheld, or where nothing can be ranked
    withheld: str | None  # why outcomes or leaderboard are not told
    needs: GateNeeds | None  # what the gate still needs; None where none waits

    def to_dict(self) -> JsonDict:
        """Plain values, as `--json` prints them."""
        return {"schema": SCHEMA, **asdict(self)}


def insight(book: RatingBook) -> Insight:
    """Look at a campaign's ratings as they are now.

    Raises:
        InvalidEvidence: an item's text was altered.
    """
    campaign, every = book.campaign, live(book.ratings())
    rows = [row for row in live(book.evidence()) if is_answer(row)]
    answers = [row for row in every if is_answer(row)]
    people = rater_insights(_watched(book, every, answers))
    heard = [person for person in people if not person.withdrawn]
    n_votes = Counter(row.item for row in rows)
    standing = book.standing()
    told, board, withheld = _results(book, rows)
    return Insight(
        campaign=campaign.name,
        digest=campaign.digest(),
        kind=campaign.kind,
        purpose=campaign.purpose,
        n_items=standing.n_items,
        n_full=standing.n_full,
        n_votes=len(rows),
        n_open=book.n_open(),
        items_by_votes=dict(sorted(Counter(n_votes[item.digest] for item in book.items()).items())),
        by_hour=tuple(sorted(Counter(row.at[:13] for row in answers).items())),
        raters=tuple(people),
        agreement=_agreement(rows),
        kappas=tuple(pairwise_kappas(_said_by_rater(rows))),
        scores=tuple(_scores(rows)),
        left=_joined(person.left for person in heard),
        gold=_joined(person.gold for person in heard),
        repeats=_joined(person.repeats for person in heard),
        outcomes=told,
        leaderboard=board,
        withheld=withheld,
        needs=gate_needs(book),
    )


def _watched(book: RatingBook, every: Sequence[Rating], answers: Sequence[Rating]) -> Watched:
    return Watched(
        answers=answers,
        skipped=[row for row in every if row.choice == "skip"],
        items={item.digest: item for item in book.all_items()},
        first_shown=book.first_shown(),
        withdrawn=book.withdrawn(),
    )


def value_of(row: Rating) -> str | None:
    """What a rating says as one word, for agreement: the vote, or what was done; None for scores."""
    return vote_of(row) or (row.choice if row.choice in ("edited", "kept") else None)


def duels(items: Iterable[Item], campaign: Campaign, rows: Iterable[Rating]) -> list[Duel]:
    """Votes as comparisons of systems; both bad is none."""
    systems = {item.digest: item.systems or campaign.systems for item in items}
    found = []
    for row in rows:
        vote = vote_of(row)
        if vote in WORTH and len(systems.get(row.item, ())) == 2:
            first, second = systems[row.item]
            found.append(Duel(row.item, first, second, WORTH[vote]))
    return found


def _results(
    book: RatingBook, rows: Sequence[Rating]
) -> tuple[dict[str, int] | None, tuple[Strength, ...] | None, str | None]:
    """Outcomes and leaderboard, or why they are not told."""
    campaign = book.campaign
    if campaign.purpose == "gate" and not book.settled():
        return None, None, "nobody looks at a gate's votes before all are in, or its gate has looked"
    if campaign.kind != "compare":
        return dict(Counter[str](row.choice for row in rows)), None, None
    told = dict(Counter[str](outcome(votes) for votes in votes_by_item(rows).values()))
    pairs = [d for d in duels(book.items(), campaign, rows) if d.first != d.second]
    if not pairs:
        return told, None, "there are no votes between two systems that are known"
    board = strengths(pairs)
    if not board:
        return told, None, "some systems were never compared, not even through others"
    return told, tuple(board), None


def _agreement(rows: Sequence[Rating]) -> Agreed:
    said: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        value = value_of(row)
        if value is not None:
            said[row.item].append(value)
    return krippendorff_alpha(list(said.values()))


def _said_by_rater(rows: Sequence[Rating]) -> dict[str, dict[str, str]]:
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        value = value_of(row)
        if value is not None:
            said[row.rater][row.item] = value
    return dict(said)


def _scores(rows: Sequence[Rating]) -> list[Scored]:
    given: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for question, value in row.scores.items():
            given[question][row.item].append(value)
    found = []
    for question, by_item in sorted(given.items()):
        values = [value for each in by_item.values() for value in each]
        agreed = krippendorff_alpha(list(by_item.values()), "ordinal")
        found.append(
            Scored(question, dict(sorted(Counter(values).items())), sum(values) / len(values), agreed)
        )
    return found


def _joined(shares: Iterable[Share]) -> Share:
    each = list(shares)
    n, hits = sum(s.n for s in each), sum(s.hits for s in each)
    return share([True] * hits + [False] * (n - hits))
