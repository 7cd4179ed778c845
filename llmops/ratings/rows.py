"""What a rater gives, checked and written as a row of the database with its ledger event and its texts."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, or_, select, update

from llmops.errors import BadRequest
from llmops.ledger import append_event
from llmops.ratings.outcomes import rating_of, row_of
from llmops.records import CHOICES_OF, CampaignKind, Rating
from llmops.schema import JsonDict, digest_of
from llmops.tables import events, rating_texts, ratings, showings

MAX_TEXT_CHARACTERS = 100_000
MAX_TAGS = 32
MAX_WORD_CHARACTERS = 64
# Built once: building a statement takes longer than running it.
_INSERT = ratings.insert()
_SAID = select(ratings).where(
    ratings.c.campaign == bindparam("of"),
    ratings.c.item == bindparam("about"),
    ratings.c.rater == bindparam("whose"),
    or_(ratings.c.live, and_(ratings.c.showing == bindparam("shown"), ratings.c.key == bindparam("by_key"))),
)
_MARK = (
    update(showings)
    .where(
        showings.c.campaign == bindparam("of"),
        showings.c.item == bindparam("about"),
        showings.c.rater == bindparam("whose"),
    )
    .values(open=bindparam("is_open"))
)
_LAST_TOLD = (
    select(events.c.body).where(events.c.kind == "rating.given").order_by(events.c.seq.desc()).limit(1)
)
_HIGHEST = select(func.max(ratings.c.number))


@dataclass(frozen=True)
class Answer:
    """What a rater gives for an item.

    `scores` are those of a rating, `edit` the corrected text, `dwell_ms` how long the item was in view. `key` is drawn
    by the page for each click: given again it is the same rating, whatever came in between.
    """

    choice: str
    tags: tuple[str, ...] = ()
    scores: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    edit: str = ""
    dwell_ms: int | None = None
    key: str | None = None

    @property
    def said(self) -> JsonDict:
        """All of it that is the rater's: two clicks that say the same are one answer."""
        return {
            "choice": self.choice,
            "tags": list(self.tags),
            "scores": dict(self.scores),
            "note": self.note,
            "edit": self.edit,
        }


@dataclass(frozen=True)
class Draft:
    """A rating as it is written: whose, about what, and what it says."""

    campaign: str
    item: str
    rater: str
    showing: str
    left: int
    answer: Answer
    at: str
    pins: str
    supersedes: str | None = None


def require_answer(answer: Answer, kind: CampaignKind) -> None:
    """Refuse what is no answer to an item of this kind.

    Raises:
        BadRequest: names what is missing, unknown or too long.
    """
    allowed = CHOICES_OF[kind]
    if answer.choice not in allowed:
        raise BadRequest(f"rating: {answer.choice!r} is not an answer; give one of {', '.join(allowed)}")
    if (answer.choice == "rated") != bool(answer.scores):
        raise BadRequest("rating: scores belong to the answer `rated`, at least one of them")
    if (answer.choice == "edited") != bool(answer.edit.strip()):
        raise BadRequest("rating: a corrected text belongs to the answer `edited`, and may not be empty")
    for name, value in answer.scores.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadRequest(f"rating: score {name}: {value!r} is no whole number")
    words = (*answer.tags, *answer.scores, *([answer.key] if answer.key is not None else []))
    if len(answer.tags) > MAX_TAGS or len(answer.scores) > MAX_TAGS:
        raise BadRequest(f"rating: more than {MAX_TAGS} tags or scores; leave some out")
    if any(not 0 < len(word) <= MAX_WORD_CHARACTERS for word in words):
        raise BadRequest(f"rating: a tag, question or key is empty or over {MAX_WORD_CHARACTERS} characters")
    if max(len(answer.note), len(answer.edit)) > MAX_TEXT_CHARACTERS:
        raise BadRequest(f"rating: a text has over {MAX_TEXT_CHARACTERS:,} characters; shorten it")
    if answer.dwell_ms is not None and not 0 <= answer.dwell_ms < 2**31:
        raise BadRequest(f"rating: dwell_ms {answer.dwell_ms} is no time")


def write_rating(connection: Connection, draft: Draft, number: int | None = None) -> Rating:
    """Write one rating, its texts and its ledger event, inside a transaction of `db.writing`."""
    answer = draft.answer
    texts = {"note": answer.note, "edit": answer.edit}
    salts = {name: secrets.token_hex(16) for name, text in texts.items() if text}
    rating = Rating(
        number=last_number(connection) + 1 if number is None else number,
        campaign=draft.campaign,
        item=draft.item,
        rater=draft.rater,
        showing=draft.showing,
        left=draft.left,
        choice=answer.choice,  # type: ignore[arg-type]
        at=draft.at,
        supersedes=draft.supersedes,
        tags=answer.tags,
        scores=dict(answer.scores),
        **{name: text_digest(salt, texts[name]) for name, salt in salts.items()},
        pins=draft.pins,
        dwell_ms=answer.dwell_ms,
    )
    digest = rating.digest
    if draft.supersedes is not None:
        connection.execute(update(ratings).where(ratings.c.digest == draft.supersedes).values(live=False))
    connection.execute(_INSERT, {**row_of(rating), "digest": digest, "live": True, "key": answer.key})
    pair = {"of": draft.campaign, "about": draft.item, "whose": draft.rater}
    connection.execute(_MARK, {**pair, "is_open": answer.choice == "undone"})
    for name, salt in salts.items():
        connection.execute(
            rating_texts.insert().values(rating=digest, field=name, salt=salt, text=texts[name])
        )
    body = {
        "rating": digest,
        "campaign": draft.campaign,
        "item": draft.item,
        "number": rating.number,
        "pins": draft.pins,
    }
    append_event(connection, "rating.given", body)
    return rating


def read_ratings(connection: Connection, *where: Any) -> list[Rating]:
    """The ratings that fit, by number."""
    rows = connection.execute(select(ratings).where(*where).order_by(ratings.c.number)).mappings()
    return [rating_of({**row}) for row in rows]


def said_before(connection: Connection, showing: Any, key: str | None) -> tuple[Rating | None, Rating | None]:
    """What stands of the pair of item and rater of a showing's row: the rating under this key, and the live one."""
    pair = {"of": showing.campaign, "about": showing.item, "whose": showing.rater}
    known = before = None
    for row in connection.execute(_SAID, {**pair, "shown": showing.id, "by_key": key}).mappings():
        rating = rating_of({**row})
        known = rating if key is not None and (row["showing"], row["key"]) == (showing.id, key) else known
        before = rating if row["live"] else before
    return known, before


def texts_of(connection: Connection, digests: Iterable[str] | None = None) -> dict[tuple[str, str], str]:
    """What raters wrote, by (rating, `note` or `edit`); what was deleted is not among it. None means of all ratings."""
    rows = connection.execute(select(rating_texts))
    wanted = None if digests is None else set(digests)
    return {(row.rating, row.field): row.text for row in rows if wanted is None or row.rating in wanted}


def text_digest(salt: str, text: str) -> str:
    """What a rating carries in a text's place: without salt and text nobody can say what it was."""
    return digest_of([salt, text])


def said_by(connection: Connection, rating: Rating) -> JsonDict:
    """What a rating says, in the form of `Answer.said`."""
    texts = {
        row.field: row.text
        for row in connection.execute(select(rating_texts).where(rating_texts.c.rating == rating.digest))
    }
    return {
        "choice": rating.choice,
        "tags": list(rating.tags),
        "scores": rating.scores,
        "note": texts.get("note", ""),
        "edit": texts.get("edit", ""),
    }


def last_number(connection: Connection) -> int:
    """The highest number ever given, by ledger and rows: one whose row was deleted is not given to another."""
    body = connection.execute(_LAST_TOLD).scalar()
    highest = connection.execute(_HIGHEST).scalar() or 0
    return max(highest, int(json.loads(body)["number"]) if body else 0)
