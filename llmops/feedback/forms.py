"""What an item's answers come to in each form that is exported: the declared rules, as pure functions.

Only live answers of raters who did not withdraw are looked at; skips say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmops.ratings.outcomes import RULE, Outcome, is_answer, outcome, vote_of
from llmops.records import CampaignKind, Item, Labelled, Message, Preference, Rating, Row

Form = Literal["preferences", "kto", "sft"]
Made = Preference | Labelled | Row
Texts = Mapping[tuple[str, str], str]
"""What raters wrote, by (rating, `note` or `edit`)."""

GOOD_FROM, BAD_TO = 4.0, 2.0
"""Mean score from which an answer is good, and up to which it is bad."""

_NO_PAIR: dict[Outcome, str] = {"tie": "tie", "both_bad": "both bad", "split": "split"}
_MAJORITY = RULE.partition("; ties")[0]
_EDITS = (
    "a rater's last answer counts, skips are none; an answer that more raters kept than corrected is good as it is; "
    "one that more corrected is replaced by the newest correction; as many of both is split"
)
_SCORES = (
    "a rater's last answer counts, skips are none; an item's score is the mean over its raters of each one's mean over "
    f"the questions; {GOOD_FROM:g} or more is good, {BAD_TO:g} or less is bad, and what lies between is left out"
)
RULES: dict[tuple[CampaignKind, Form], str] = {
    ("compare", "preferences"): RULE,
    (
        "compare",
        "kto",
    ): f"{_MAJORITY}; the preferred answer is good and the other bad, both bad are two bad ones; ties "
    "and split items are left out",
    (
        "compare",
        "sft",
    ): f"{_MAJORITY}; the preferred answer is learnt; ties, both bad and split items are left out",
    ("edit", "preferences"): f"{_EDITS}; the correction is preferred over what it corrects",
    ("edit", "kto"): f"{_EDITS}; a corrected answer is bad and its correction good",
    ("edit", "sft"): f"{_EDITS}; what remains is learnt",
    ("rate", "kto"): _SCORES,
    ("rate", "sft"): f"{_SCORES}; good ones are learnt",
}
"""How conflicting and repeated answers are resolved, in words; snapshots carry it. What is missing cannot be made."""


@dataclass(frozen=True)
class Judged:
    """Rows that an item became, and the answers they rest on."""

    rows: tuple[Made, ...]
    ratings: tuple[str, ...]


def judged(
    item: Item, kind: CampaignKind, form: Form, answers: Sequence[Rating], texts: Texts
) -> Judged | str:
    """The rows of an item, or why there are none."""
    said = [row for row in answers if is_answer(row)]
    if not said:
        return "skipped by all" if any(row.choice == "skip" for row in answers) else "unrated"
    made = _OF_KIND[kind](item, form, said, texts)
    if isinstance(made, str):
        return made
    digests = tuple(row.digest for row in said)
    rows = tuple(_with_ratings(row, digests) for row in made)
    return Judged(rows, digests)


def _compared(item: Item, form: Form, said: Sequence[Rating], _texts: Texts) -> tuple[Made, ...] | str:
    came_to = outcome([vote for row in said if (vote := vote_of(row)) is not None])
    if came_to == "both_bad" and form == "kto":
        return tuple(_labelled(item, answer, False) for answer in item.answers)
    if came_to in _NO_PAIR:
        return _NO_PAIR[came_to]
    chosen, rejected = item.answers if came_to == "first" else item.answers[::-1]
    if form == "sft":
        return (_row(item, chosen),)
    if form == "kto":
        return _labelled(item, chosen, True), _labelled(item, rejected, False)
    return (_preference(item, chosen, rejected),)


def _edited(item: Item, form: Form, said: Sequence[Rating], texts: Texts) -> tuple[Made, ...] | str:
    edits = [row for row in said if row.choice == "edited"]
    n_kept = len(said) - len(edits)
    if len(edits) == n_kept:
        return "split"
    (answer,) = item.answers
    if n_kept > len(edits):
        if form == "preferences":
            return "kept: nothing to prefer over it"
        return (_row(item, answer),) if form == "sft" else (_labelled(item, answer, True),)
    there = [text for row in edits if (text := texts.get((row.digest, "edit"))) is not None]
    if not there:
        return "deleted: the corrected texts were"
    if there[-1].strip() == answer.strip():
        return "same: the correction is the answer"
    if form == "sft":
        return (_row(item, there[-1]),)
    if form == "kto":
        return _labelled(item, there[-1], True), _labelled(item, answer, False)
    return (_preference(item, there[-1], answer),)


def _rated(item: Item, form: Form, said: Sequence[Rating], _texts: Texts) -> tuple[Made, ...] | str:
    each = [sum(row.scores.values()) / len(row.scores) for row in said]
    score = sum(each) / len(each)
    if BAD_TO < score < GOOD_FROM:
        return f"middling: score {score:.2f}"
    (answer,) = item.answers
    if form == "kto":
        return (_labelled(item, answer, score >= GOOD_FROM),)
    return (_row(item, answer),) if score >= GOOD_FROM else f"bad: score {score:.2f}"


_OF_KIND: dict[CampaignKind, Callable[[Item, Form, Sequence[Rating], Texts], tuple[Made, ...] | str]] = {
    "compare": _compared,
    "edit": _edited,
    "rate": _rated,
}


def _preference(item: Item, chosen: str, rejected: str) -> Preference:
    return Preference(item.messages, chosen, rejected, item.group, item.source, item.digest, ())


def _labelled(item: Item, answer: str, good: bool) -> Labelled:
    return Labelled(item.messages, answer, good, item.group, item.source)


def _row(item: Item, answer: str) -> Row:
    return Row((*item.messages, Message("assistant", answer)), item.group, item.source)


def _with_ratings(row: Made, digests: tuple[str, ...]) -> Made:
    return replace(row, ratings=digests) if isinstance(row, Preference) else row
