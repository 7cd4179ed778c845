"""What people said of each answer, taken together: of one person's words about an answer only the newest count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmops.capture.interaction import Feedback

AnswerKey = tuple[str, int]
"""Response id and number of the answer."""


@dataclass(frozen=True)
class Said:
    """Everything about one answer. A correction alone calls it bad."""

    n_good: int = 0
    n_bad: int = 0
    correction: str | None = None  # the newest
    comments: tuple[str, ...] = ()

    @property
    def good(self) -> bool | None:
        """What most people call it; None when as many say good as bad, or nobody says either."""
        return None if self.n_good == self.n_bad else self.n_good > self.n_bad

    @property
    def why_undecided(self) -> str:
        """Why `good` is None."""
        return "split: as many call it good as bad" if self.n_good else "no feedback"


def said_of_answers(rows: Iterable[Feedback]) -> dict[AnswerKey, Said]:
    """What was said, by answer; `rows` in the order they were given."""
    by_answer: dict[AnswerKey, dict[str | None, list[Feedback]]] = {}
    for row in rows:
        people = by_answer.setdefault((row.served.response, row.choice), {})
        people.setdefault(row.user, []).append(row)
    return {key: _together(list(people.values())) for key, people in by_answer.items()}


def preferences(rows: Iterable[Feedback]) -> dict[tuple[AnswerKey, AnswerKey], int]:
    """For two answers, in the order of their keys: how many more people prefer the first to the second."""
    votes: dict[tuple[AnswerKey, AnswerKey, str | None], int] = {}
    for row in rows:
        if row.over is None:
            continue
        chosen, other = (row.served.response, row.choice), (row.over.response, row.over_choice)
        first, second = sorted((chosen, other))
        votes[first, second, row.user] = 1 if chosen == first else -1
    sums: dict[tuple[AnswerKey, AnswerKey], int] = {}
    for (first, second, _), vote in votes.items():
        sums[first, second] = sums.get((first, second), 0) + vote
    return sums


def _together(people: list[list[Feedback]]) -> Said:
    opinions = [_opinion(rows) for rows in people]
    corrections = [row for rows in people for row in rows if row.correction is not None]
    newest = max(corrections, key=lambda row: row.number, default=None)
    comments = sorted((row for rows in people for row in rows if row.comment), key=lambda row: row.number)
    return Said(
        sum(opinion is True for opinion in opinions),
        sum(opinion is False for opinion in opinions),
        newest.correction if newest else None,
        tuple(row.comment for row in comments if row.comment),
    )


def _opinion(rows: list[Feedback]) -> bool | None:
    """One person's newest thumb or score; without any, a correction says bad."""
    for row in reversed(rows):
        if row.thumb is not None or row.score is not None:
            return row.good
    return False if any(row.corrected for row in rows) else None
