"""Votes that were taken back after somebody had seen what they come to: their campaign decides nothing any more.

As long as nobody has seen a result, votes that are taken back are simply not there. Afterwards leaving them out would
be choosing: whoever asks a rater to withdraw knows what it does to the number.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmops.errors import InvalidEvidence
from llmops.ratings.frozen import rated_in
from llmops.ratings.withdrawn import withdrawn_ratings
from llmops.records import Campaign, Decision, JudgeCalibration
from llmops.registry.adapters import Registry
from llmops.schema import short


def require_unseen(registry: Registry, campaign: Campaign) -> None:
    """Refuse a campaign whose votes a decision or a judge's calibration counted before some were taken back.

    Raises:
        InvalidEvidence: names what counted them, and how many; or frozen votes are gone or altered.
    """
    gone = withdrawn_ratings(registry.ledger)
    if not gone:
        return
    for what, votes in _counted(registry, campaign.digest()):
        rated = rated_in(registry.store, votes)
        n = sum(rating in gone for rating in rated)
        if n:
            raise InvalidEvidence(
                f"votes: {n} of the {len(rated)} votes that {what} counted were taken back since, when its result was "
                "known; open the campaign again and rate anew"
            )


def _counted(registry: Registry, campaign: str) -> Iterator[tuple[str, str]]:
    """What counted votes of a campaign (a digest), in words, and the digest of the votes it counted."""
    store, ledger = registry.store, registry.ledger
    for event in ledger.events("decision.made"):
        digest = str(event.body["decision"])
        decision = store.get_record(Decision, digest)
        for counted in (decision.ratings, decision.judge.ratings if decision.judge else None):
            if counted is not None and counted.campaign == campaign:
                yield f"decision {short(digest)}", counted.votes
    for event in ledger.events("judge.calibrated"):
        if event.body["campaign"] == campaign:
            digest = str(event.body["calibration"])
            what = f"calibration {short(digest)} of judge {event.body['judge']}"
            yield what, store.get_record(JudgeCalibration, digest).votes
