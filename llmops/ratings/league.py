"""Which model people like best over all campaigns of a base: one leaderboard of adapter digests from every vote.

Campaigns in which two known systems were compared blind, here: imported answers are left out (nobody knows which side
was shown), and a gate's campaign until its votes may be looked at. One person who likes long answers, or one prompt
that suits one model, makes votes alike; so intervals resample whole prompts, or whole raters. Reads only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from llmops.data import asked_digest
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import campaigns
from llmops.ratings.insight import WORTH
from llmops.ratings.outcomes import live, vote_of
from llmops.ratings.strength import Duel, Strength, joined, strengths
from llmops.records import Campaign
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, short

Cluster = Literal["item", "rater"]
MIN_CLUSTERS = 10
"""With fewer prompts or raters to draw from, a bootstrap's interval is too narrow to be believed."""


@dataclass(frozen=True)
class Board:
    """Systems that were compared with one another, directly or through others, the best first."""

    rows: tuple[Strength, ...]
    n_votes: int
    n_clusters: int

    @property
    def is_thin(self) -> bool:
        """Whether its intervals rest on too few prompts or raters."""
        return self.n_clusters < MIN_CLUSTERS


@dataclass(frozen=True)
class League:
    """All boards of one base, from the campaigns that have votes to count.

    `withheld` are a gate's whose votes nobody may look at yet.
    """

    base: str
    cluster: Cluster
    campaigns: tuple[str, ...]
    withheld: tuple[str, ...]
    boards: tuple[Board, ...]

    def to_dict(self) -> JsonDict:
        """Plain values, as `--json` prints them."""
        return {"schema": "llmops.league/1", **asdict(self)}


def leagues(registry: Registry, name: str | None = None, cluster: Cluster = "item") -> list[League]:
    """The leaderboards of each base whose models campaigns compare; none where no campaign does.

    Args:
        registry: of the workspace.
        name: adapters of this name must take part in a campaign for its votes to count, or it is the start of a base's
            digest (6 digits or more); None takes all campaigns.
        cluster: what is resampled whole.

    Raises:
        InvalidEvidence: a campaign's record, items or texts were altered.
    """
    wanted = {record.adapter for record in registry.adapters() if record.name == name}
    by_base: dict[str, list[Campaign]] = defaultdict(list)
    for campaign in campaigns(registry.store, registry.ledger):
        is_base = name is not None and len(name) >= 6 and campaign.base.startswith(name)
        about = name is None or is_base or bool(wanted & set(campaign.systems))
        if campaign.kind == "compare" and campaign.origin not in ("argilla", "label_studio") and about:
            by_base[campaign.base].append(campaign)
    return [_league(registry, base, found, cluster) for base, found in by_base.items()]


def _league(registry: Registry, base: str, found: Sequence[Campaign], cluster: Cluster) -> League:
    counted, withheld, duels = [], [], list[Duel]()
    for campaign in found:
        book = RatingBook(registry.store, registry.ledger, campaign)
        called = f"{campaign.name}@{short(campaign.digest())}"
        if campaign.purpose == "gate" and not book.settled():
            withheld.append(called)
            continue
        given = _duels(book, cluster)
        duels += given
        counted += [called] if given else []
    boards = []
    for systems in joined(duels):
        among = [duel for duel in duels if duel.first in systems]
        n_clusters = len({duel.cluster for duel in among})
        boards.append(Board(tuple(strengths(among)), len(among), n_clusters))
    boards.sort(key=lambda board: -board.n_votes)
    return League(base, cluster, tuple(counted), tuple(withheld), tuple(boards))


def _duels(book: RatingBook, cluster: Cluster) -> list[Duel]:
    """The votes that count between two known systems; both bad is none."""
    items = {item.digest: item for item in book.items()}
    found = []
    for row in live(book.evidence()):
        item, vote = items[row.item], vote_of(row)
        systems = item.systems or book.campaign.systems
        if vote in WORTH and len(set(systems)) == 2:
            together = row.rater if cluster == "rater" else asked_digest(item.messages)
            found.append(Duel(together, systems[0], systems[1], WORTH[vote]))
    return found
