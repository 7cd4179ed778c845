"""Live votes: what users said of the answers a public name gave them, for whoever decides how much a canary may serve.

Reads feedback without its texts, so it needs no key.
"""

from __future__ import annotations

from sqlalchemy import Engine

from llmops.capture.interaction import Feedback
from llmops.capture.reading import Filter, feedback_rows
from llmops.records import LiveVote

WORST, BEST = 1, 5


class ServedVotes:
    """The votes in one database: what `LiveVotes` asks for."""

    def __init__(self, engine: Engine) -> None:
        """Use an open database."""
        self._engine = engine

    def votes(self, public_name: str, since: str) -> list[LiveVote]:
        """The votes on answers that `public_name` gave at `since` (RFC 3339, UTC) or later, by number.

        Each user's newest word about an answer, or about the same two, counts. Answers nobody saw take no feedback.
        """
        found: dict[tuple[object, ...], LiveVote] = {}
        for said in feedback_rows(self._engine, None, Filter(asked=public_name, since=since)):
            answer = (said.served.response, said.choice)
            worth = worth_of(said)
            if worth is not None:
                vote = LiveVote(said.number, said.served.adapter, worth, said.user)
                _replace(found, (said.user, answer), vote)
            if said.over is not None:
                other = (said.over.response, said.over_choice)
                vote = LiveVote(said.number, said.served.adapter, 1.0, said.user, said.over.adapter)
                _replace(found, (said.user, frozenset({answer, other})), vote)
        return list(found.values())


def worth_of(said: Feedback) -> float | None:
    """What a thumb or a score is worth, 0 to 1; a correction alone is a thumb down. None for a mere comment.

    A score of 3 is worth a half, as a tie is.
    """
    if said.thumb is not None:
        return 1.0 if said.thumb == "up" else 0.0
    if said.score is not None:
        return (said.score - WORST) / (BEST - WORST)
    return 0.0 if said.corrected else None


def _replace(votes: dict[tuple[object, ...], LiveVote], key: tuple[object, ...], vote: LiveVote) -> None:
    """Put a newer vote in the place of the older one, at the end: the order is that of what counts."""
    votes.pop(key, None)
    votes[key] = vote
