"""From votes to preferences: every item of a train campaign is a pair to learn from, or is dropped with its reason.

Reads the campaign and its ratings, all verified first; writes a preference snapshot and tells the ledger.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from llmops.data import asked_digest, gate_prompts
from llmops.errors import BadRequest
from llmops.ratings.book import RatingBook
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import RULE, live, outcome, vote_of
from llmops.ratings.preferences import PAIRS_FILE, DroppedItem, find_preferences, put_preferences
from llmops.records import Campaign, DatasetSnapshot, Item, Preference, PreferenceSnapshot, Rating
from llmops.registry.adapters import Registry
from llmops.settings import now

NO_PAIR = {"tie": "tie", "both_bad": "both bad", "split": "split"}


def export_preferences(registry: Registry, campaign: Campaign) -> PreferenceSnapshot:
    """Freeze what people preferred so far; the same votes again are the same snapshot.

    Raises:
        BadRequest: it is a gate campaign, whose prompts must never be trained on, or no item became a pair.
        InvalidEvidence: ratings, items or a dataset's gate pool were altered.
        StoreError: the disk did not take it.
    """
    if campaign.purpose != "train" or campaign.dataset is None:
        raise BadRequest(
            f"campaign {campaign.name}: is for a gate, and what a gate decides on is never trained on; open one with "
            "purpose: train"
        )
    book = RatingBook(registry.store, registry.ledger, campaign)
    verify_ratings(registry.store, registry.ledger, campaign.digest())
    pairs, dropped = _sorted_out(book, gate_prompts(registry.store, registry.ledger))
    counts = dict(sorted(Counter(d.reason.partition(":")[0] for d in dropped).items()))
    if not pairs:
        why = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        raise BadRequest(
            f"campaign {campaign.name}: none of {campaign.n_items} items is a pair yet ({why}); rate on with "
            f"`llmops feedback ui {campaign.name}`"
        )
    snapshot = PreferenceSnapshot(
        name=campaign.name,
        artifact=put_preferences(registry.store, pairs, dropped),
        campaign=campaign.digest(),
        dataset=campaign.dataset,
        n_pairs=len(pairs),
        n_dropped=counts,
        rule=RULE,
        licence=registry.store.get_record(DatasetSnapshot, campaign.dataset).licence,
        created_at=now(),
    )
    return _recorded(registry, snapshot)


def write_pairs(registry: Registry, snapshot: PreferenceSnapshot, path: Path) -> None:
    """Copy a snapshot's pairs to a JSONL file, verified.

    Raises:
        BadRequest: the file cannot be written there.
        InvalidEvidence: the snapshot's files are gone or altered.
    """
    folder = registry.store.verify("preferences", snapshot.artifact)
    try:
        path.write_bytes((folder / PAIRS_FILE).read_bytes())
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def _recorded(registry: Registry, snapshot: PreferenceSnapshot) -> PreferenceSnapshot:
    """The newest snapshot of the name when it says the same, else this one, stored and told."""
    if any(e.body["name"] == snapshot.name for e in registry.ledger.events("preferences.snapshotted")):
        newest = find_preferences(registry.store, registry.ledger, snapshot.name)
        if (newest.artifact, newest.campaign) == (snapshot.artifact, snapshot.campaign):
            return newest
    body = {
        "name": snapshot.name,
        "preferences": registry.store.put_record(snapshot),
        "artifact": snapshot.artifact,
        "campaign": snapshot.campaign,
    }
    registry.ledger.append("preferences.snapshotted", body)
    return snapshot


def _sorted_out(book: RatingBook, forbidden: set[str]) -> tuple[list[Preference], list[DroppedItem]]:
    """Pairs and dropped items, both in the campaign's order; together they are all its items."""
    answers: dict[str, list[Rating]] = defaultdict(list)
    for rating in live(book.ratings()):
        answers[rating.item].append(rating)
    pairs: list[Preference] = []
    dropped: list[DroppedItem] = []
    for item in book.items():
        gate = asked_digest(item.messages) in forbidden
        found = "gate prompt: stands in a gate pool now" if gate else _judged(item, answers[item.digest])
        if isinstance(found, Preference):
            pairs.append(found)
        else:
            dropped.append(DroppedItem(item.digest, item.source, found))
    return pairs, dropped


def _judged(item: Item, answers: Sequence[Rating]) -> Preference | str:
    """The pair that an item's ratings make it, or why they make none."""
    voted = [rating for rating in answers if vote_of(rating) is not None]
    if not voted:
        return "skipped by all" if answers else "unrated"
    came_to = outcome([vote for rating in voted if (vote := vote_of(rating)) is not None])
    if came_to not in ("first", "second"):
        return NO_PAIR[came_to]
    chosen = 0 if came_to == "first" else 1
    return Preference(
        messages=item.messages,
        chosen=item.answers[chosen],
        rejected=item.answers[1 - chosen],
        group=item.group,
        source=item.source,
        item=item.digest,
        ratings=tuple(rating.digest for rating in voted),
    )
