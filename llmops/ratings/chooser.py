"""Which showing or item a rater gets next, from what a process knows of the campaign; and how far the campaign is.

Reads inside the caller's transaction, writes nothing. Between two votes only what is new is read: the ledger's new
events, and the showings that lack an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from llmops.ratings.added import added_items
from llmops.ratings.campaigns import is_added_to
from llmops.ratings.moment import lease_start, showings_without_answer
from llmops.ratings.queue import Asked, Need, Turnout, is_gold_due, repeat_for
from llmops.ratings.tally import Said, Tally
from llmops.records import Campaign, Item, Rating

if TYPE_CHECKING:
    from llmops.ratings.ranks import Ranks


@dataclass(frozen=True)
class Standing:
    """How far a campaign is, of its items that count: in all, with enough votes, and rated or skipped by this rater."""

    n_items: int
    n_full: int
    n_mine: int


@dataclass(frozen=True)
class InView:
    """Showings without an answer: those of one rater, newest first, and how many others look at each item now."""

    mine: tuple[Any, ...]
    others: Mapping[str, int]
    since: str  # what was shown later is still its rater's


class Chooser:
    """The items of one campaign and their answers, kept up from transaction to transaction. Not for two threads."""

    def __init__(self, campaign: Campaign, items: Sequence[Item]) -> None:
        """Begin with the frozen items; those that lie in the database are read by `follow`."""
        self._campaign = campaign
        self._digest = campaign.digest()
        self._tally = Tally(self._digest)
        self._n_turns = 0
        self._index(items)

    def follow(self, connection: Connection) -> None:
        """Take in what is new, as this transaction sees it."""
        self._tally.follow(connection)
        if self._n_turns == self._tally.n_turns:
            return
        if is_added_to(self._campaign):
            self._index(added_items(connection, self._digest))
        else:
            self._count(self.counting)
        self._n_turns = self._tally.n_turns

    def take(self, rating: Rating) -> None:
        """Take in a rating that was just written; `forget` when its transaction does not end well."""
        self._tally.take(rating)

    def forget(self) -> None:
        """Read everything again the next time."""
        self._tally.forget()

    # ------------------------------------------------------------ what is known

    @property
    def is_closed(self) -> bool:
        """Whether the campaign takes no more answers."""
        return self._tally.closed

    def is_withdrawn(self, rater: str) -> bool:
        """Whether a rater has withdrawn."""
        return self._tally.is_withdrawn(rater)

    def by(self, rater: str) -> Mapping[str, Said]:
        """What this rater answered or skipped, by item, oldest first."""
        return self._tally.by(rater)

    def votes_of(self, item: Item) -> int:
        """How many votes an item is to have."""
        return item.votes or self._campaign.votes_per_item

    def standing(self, rater: str | None) -> Standing:
        """How far the campaign is, and how many items this rater rated or skipped."""
        self._count(self._tally.changed())
        mine = self._tally.by(rater) if rater else {}
        return Standing(len(self.counting), len(self._full), sum(digest in self.counting for digest in mine))

    def needs(self) -> tuple[list[Need], Turnout]:
        """The items that count as the queue sees them when nobody looks at any, and who has voted."""
        votes = self._tally.votes
        needs = [Need(d, i.group, self.votes_of(i), votes[d]) for d, i in self.counting.items()]
        return needs, self._tally.turnout("")

    # ------------------------------------------------------------ what comes next

    def in_view(self, connection: Connection, rater: str) -> InView:
        """What is shown and not answered now."""
        since, mine, others = lease_start(), [], set[tuple[str, str]]()
        for row in showings_without_answer(connection, self._digest):
            _, item, who, _, at = row
            if item not in self.by_digest or item in self._tally.by(who):
                continue
            if who == rater:
                mine.append(row)
            elif at > since:
                others.add((item, who))
        return InView(tuple(mine), Counter(item for item, _ in others), since)

    def waiting(self, view: InView) -> Any | None:
        """The showing that its rater has not answered: while it is theirs, or may be again."""
        for row in view.mine:
            item = self.by_digest[row.item]
            load = self._tally.votes[row.item] + view.others.get(row.item, 0)
            if row.at > view.since or not item.counts or load < self.votes_of(item):
                return row
        return None

    def choose(self, rater: str, view: InView) -> Item | None:
        """The next item of a rater who has none in view; None when there is none left for them."""
        done = self._tally.by(rater)
        if is_gold_due(self._campaign.gold_every, f"{self._digest}{rater}", len(done)):
            gold = next((item for digest, item in self._gold.items() if digest not in done), None)
            if gold is not None:
                return gold
        repeat = repeat_for(self._repeats, list(done)) if self._repeats else None
        if repeat is not None:
            return repeat
        asked = Asked(view.others, done, self._tally.turnout(rater))
        found = self._ranked().next_item(self._campaign.plan, asked)
        return None if found is None else self.by_digest[found]

    # ------------------------------------------------------------ kept up

    def _index(self, items: Sequence[Item]) -> None:
        self.by_digest = {item.digest: item for item in items}  # an item's digest is computed anew each time
        self.counting = {digest: item for digest, item in self.by_digest.items() if item.counts}
        others = {digest: item for digest, item in self.by_digest.items() if not item.counts}
        self._gold = {digest: item for digest, item in others.items() if item.known is not None}
        self._repeats = {digest: item for digest, item in others.items() if item.repeat_of is not None}
        self._full: set[str] = set()
        self._ranks: Ranks | None = None
        self._count(self.counting)

    def _count(self, items: Iterable[str]) -> None:
        """Take over how many votes these items have."""
        votes = self._tally.votes
        for digest in items:
            item = self.counting.get(digest)
            if item is not None and votes[digest] >= self.votes_of(item):
                self._full.add(digest)
            else:
                self._full.discard(digest)
        if self._ranks is not None:
            self._ranks.count(votes, items)

    def _ranked(self) -> Ranks:
        if self._ranks is None:
            from llmops.ratings.ranks import Ranks  # brings numpy, which those who only read do without

            self._ranks = Ranks([(d, i.group, self.votes_of(i)) for d, i in self.counting.items()])
            self._ranks.count(self._tally.votes, self.counting)
        self._count(self._tally.changed())
        return self._ranks
