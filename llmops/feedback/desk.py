"""What the rating page may ask: each call takes the browser's JSON and returns what to draw, by the book of ratings.

A reply tells a rater's item, its texts as they stand and the showing's opaque id; which answer is which system's, and
on which side it was put, stay in the database. No state lies here, so a restart of the page costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from llmops.errors import BadRequest, LlmopsError
from llmops.feedback.drawn import item_told
from llmops.feedback.markdown import drawn
from llmops.feedback.rubric import Rubric
from llmops.feedback.sign_in import Caller, Door, SignInNeeded
from llmops.ratings.added import Owned
from llmops.ratings.book import Rated, RatingBook, Showing, Standing
from llmops.ratings.campaigns import campaigns, find_campaign, is_closed
from llmops.ratings.raters import MAX_RATER_CHARACTERS
from llmops.ratings.rows import Answer, said_by
from llmops.records import CHOICES_OF, Campaign, Rating
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict

if TYPE_CHECKING:
    from llmops.feedback.arms import Arms

SIDES = {"a": "left", "b": "right"}
"""What the page calls a side, and what the book calls it: A stands on the left."""
MAX_PROMPT_CHARACTERS = 20_000
MAX_TEXT_CHARACTERS = 100_000

log = logging.getLogger("llmops.feedback")


class Call(BaseModel):
    """What the browser sends with each call."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rater: str = Field(default="", max_length=4 * MAX_RATER_CHARACTERS)
    """The name as it was typed; it counts where the workspace has no keys."""
    showing: str = Field(default="", max_length=64)
    """Id of the showing that is answered."""
    choice: str = Field(default="", max_length=16)
    """The answer, one of the campaign's kind; a and b are the sides."""
    tags: list[str] = Field(default=[], max_length=64)
    """Reasons, of the rubric."""
    scores: dict[str, int] = Field(default={}, max_length=64)
    """Scores, by the rubric's question."""
    note: str = Field(default="", max_length=4000)
    """What the rater wrote beside the answer."""
    edit: str | None = Field(default=None, max_length=MAX_TEXT_CHARACTERS)
    """The corrected answer."""
    dwell_ms: int | None = Field(default=None, ge=0, lt=2**31)
    """How long the item was in view."""
    key: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    """The same for each try to send one answer."""
    before: int | None = None
    """Number of the rating whose predecessor is wanted; None for the newest."""
    prompt: str = Field(default="", max_length=MAX_PROMPT_CHARACTERS)
    """What both models shall answer."""


@dataclass(frozen=True)
class Staff:
    """What a desk works with: one campaign's book, its rubric, who lets raters in, the models of typed prompts."""

    registry: Registry
    book: RatingBook
    rubric: Rubric
    door: Door
    arms: Arms | None


class Desk:
    """What the page may ask: each call takes the browser's JSON and returns what to draw, or `error` with one line."""

    def __init__(self, staff: Staff) -> None:
        """Answer for one campaign."""
        self._staff = staff
        self._book = staff.book

    def enter(self, call: object) -> JsonDict:
        """Whether a key or password is needed, and whether this call comes with a session."""

        def told() -> JsonDict:
            _parse(call)
            return {"accounts": self._staff.door.guarded(), "signed_in": self._staff.door.signed_in()}

        return self._told(told)

    def next_item(self, call: object) -> JsonDict:
        """The item a rater has to answer now, none in the reply when nothing is left; with what the page has to say."""

        def told() -> JsonDict:
            caller = self._caller(_parse(call))
            return {**self._now(caller), "about": self._about(caller)}

        return self._told(told)

    def rate_item(self, call: object) -> JsonDict:
        """Write an answer; `saved` in the reply is its number, there only when it is durable. With the next item."""

        def rate() -> JsonDict:
            asked = _parse(call)
            caller = self._caller(asked)
            answer = self._answer(asked)
            done = self._book.rate_and_next(asked.showing, answer, caller.rater)
            return {**self._told(lambda: self._after(caller, done)), "saved": done.rating.number}

        return self._told(rate)

    def last_item(self, call: object) -> JsonDict:
        """The item a rater answered last, or before the rating `before`, on the sides it had; none before the first."""

        def back() -> JsonDict:
            asked = _parse(call)
            caller = self._caller(asked)
            last = self._book.answered_last(caller.rater, asked.before)
            if last is None:
                return {"item": None}
            return {"item": self._told_item(last.showing, caller), "given": self._given(last)}

        return self._told(back)

    def undo_item(self, call: object) -> JsonDict:
        """Take back a rater's last answer by a rating that supersedes it; its item is to be answered again."""

        def undo() -> JsonDict:
            caller = self._caller(_parse(call))
            last = self._book.answered_last(caller.rater)
            if last is None:
                return {"undone": None}
            item = self._told_item(last.showing, caller)
            self._book.rate(last.showing, Answer("undone"))
            return {
                "undone": last.number,
                "item": item,
                "standing": self._book.standing(caller.rater).__dict__,
            }

        return self._told(undo)

    def ask_both(self, call: object) -> JsonDict:
        """A typed prompt as an item, once both models have answered it."""

        def ask() -> JsonDict:
            asked = _parse(call)
            caller = self._caller(asked)
            if self._staff.arms is None:
                raise BadRequest(f"campaign {self._book.campaign.name}: takes no typed prompts")
            item = self._staff.arms.answer(asked.prompt)
            showing = self._book.add([Owned(item, caller.rater)], caller.rater)
            if showing is None:
                raise BadRequest("prompt: was put before the raters already; ask something else")
            return {"item": self._told_item(showing.id, caller)}

        return self._told(ask)

    def numbers(self, call: object) -> JsonDict:
        """Figures of the campaign as HTML, for operators and admins."""
        from llmops.feedback.admin import figures  # brings numpy, which votes do without

        def told() -> JsonDict:
            if not self._caller(_parse(call)).admin:
                raise BadRequest("admin: these figures are for keys of role operator or admin")
            return {"figures": str(figures(self._staff.registry, self._book, self._staff.door.names()))}

        return self._told(told)

    # ------------------------------------------------------------ what replies are made of

    def _caller(self, asked: Call) -> Caller:
        return self._staff.door.caller(asked.rater)

    def _answer(self, asked: Call) -> Answer:
        choice = SIDES.get(asked.choice, asked.choice)
        kind = self._book.campaign.kind
        if choice not in CHOICES_OF[kind] or choice == "undone" or asked.choice in SIDES.values():
            known = [c for c in CHOICES_OF[kind] if c not in ("undone", *SIDES.values())]
            allowed = [*SIDES, *known] if kind == "compare" else known
            raise BadRequest(f"rating: {asked.choice!r} is not an answer; give one of {', '.join(allowed)}")
        rubric = self._staff.rubric
        return Answer(
            choice,
            tags=rubric.require_tags(asked.tags),
            scores=rubric.require_scores(asked.scores) if choice == "rated" else {},
            note=asked.note.strip(),
            edit=(asked.edit or "") if choice == "edited" else "",
            dwell_ms=asked.dwell_ms,
            key=asked.key,
        )

    def _given(self, rating: Rating) -> JsonDict:
        with self._staff.registry.ledger.engine.connect() as connection:
            said = said_by(connection, rating)
        choice = next((side for side, name in SIDES.items() if name == rating.choice), rating.choice)
        return {**said, "number": rating.number, "choice": choice}

    def _told_item(self, showing: str, caller: Caller) -> JsonDict:
        shown = self._book.shown(showing, caller.rater)
        typed = {"typed": True} if self._book.campaign.origin == "typed" else {}
        return {**item_told(shown, self._staff.rubric), **typed}

    def _now(self, caller: Caller) -> JsonDict:
        showing = self._book.next(caller.rater)
        return self._drawn(caller, showing, self._book.standing(caller.rater))

    def _after(self, caller: Caller, done: Rated) -> JsonDict:
        if done.refused is not None:
            raise done.refused
        return self._drawn(caller, done.showing, done.standing)

    def _drawn(self, caller: Caller, showing: Showing | None, standing: Standing) -> JsonDict:
        return {
            "rater": caller.name,
            "standing": standing.__dict__,
            "item": item_told(showing, self._staff.rubric) if showing else None,
        }

    def _about(self, caller: Caller) -> JsonDict:
        campaign = self._book.campaign
        return {
            "question": campaign.question,
            "kind": campaign.kind,
            "typed": campaign.origin == "typed",
            "admin": caller.admin,
            "guidelines": drawn(self._staff.rubric.guidelines),
            **self._staff.rubric.told(),
        }

    def _told(self, answer: Callable[[], JsonDict]) -> JsonDict:
        """An answer, or the one line that says why there is none."""
        try:
            return answer()
        except SignInNeeded as error:
            return {"error": str(error), "sign_in": True, "accounts": True}
        except LlmopsError as error:
            return {"error": str(error)}
        except SQLAlchemyError as error:
            log.exception("rating page: the database failed")
            reason = getattr(error, "orig", None) or type(error).__name__
            return {"error": f"database: could not be used ({reason}); try again, or tell who runs the page"}


def _parse(call: object) -> Call:
    try:
        return Call.model_validate(call)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "call"
        raise BadRequest(f"page: {where}: {first['msg']}; reload the page") from None


def choose_campaign(registry: Registry, reference: str | None) -> Campaign:
    """The campaign that is meant, which must be open; None means the newest open one.

    Raises:
        BadRequest: there is none, or it is closed.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    store, ledger = registry.store, registry.ledger
    if reference is not None:
        found = find_campaign(store, ledger, reference)
        if is_closed(ledger, found.digest()):
            raise BadRequest(f"campaign {found.name}: is closed; open another one to rate")
        return found
    for campaign in reversed(campaigns(store, ledger)):
        if not is_closed(ledger, campaign.digest()):
            return campaign
    raise BadRequest("campaign: none is open here; run `llmops feedback open` with a campaign's YAML file")
