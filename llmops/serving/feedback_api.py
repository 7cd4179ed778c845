"""POST /v1/feedback: what somebody says of a response that was served, by the response's id.

It is answered once it is durable, and may be sent again: the same feedback is stored once.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmops.capture.interaction import Given
from llmops.capture.redact import NotRedacted
from llmops.capture.writing import MAX_RESPONSE_ID, KeyReused, NewFeedback, UnknownResponse
from llmops.errors import BadRequest, ConfigError, CouldNotRun, LlmopsError
from llmops.records import Principal
from llmops.schema import JsonDict
from llmops.serving.capture import Recorder
from llmops.serving.http import (
    Receive,
    Refusal,
    Scope,
    Send,
    header,
    parse_object,
    read_body,
    respond_json,
)

PATH = "/v1/feedback"
DURABLE_WITHIN_S = 10.0
MAX_BODY_BYTES = 256 * 1024
MAX_COMMENT, MAX_CORRECTION = 4_000, 60_000
PAUSES_S = (0.3,)
"""A response may be ending just now, or another gateway on the same database may be about to write it down."""

ResponseId = Annotated[str, Field(min_length=1, max_length=MAX_RESPONSE_ID, pattern=r"^[!-~]+$")]
Choice = Annotated[int, Field(ge=0, le=100_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Preferred(_Body):
    """The answer that another one was preferred to."""

    response_id: ResponseId
    """The `id` of its response."""
    choice: Choice = 0
    """Which of that response's answers."""


class FeedbackBody(_Body):
    """What is said: at least one of thumb, score, comment, correction, preferred_over."""

    response_id: ResponseId
    """The `id` of the response it is about."""
    choice: Choice = 0
    """Which of the response's answers, where `n` asked for several."""
    thumb: Literal["up", "down"] | None = None
    """Good or bad."""
    score: Annotated[int, Field(ge=1, le=5)] | None = None
    """1 (worst) to 5."""
    comment: Annotated[str, Field(min_length=1, max_length=MAX_COMMENT)] | None = None
    """In the person's own words."""
    correction: Annotated[str, Field(min_length=1, max_length=MAX_CORRECTION)] | None = None
    """What the answer should have been."""
    preferred_over: Preferred | None = None
    """Another served answer that this one is better than."""
    user: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Your id of the person who says it; default: the `user` of the request. Stored as a mark."""
    idempotency_key: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")] | None = None
    """Under this key it is stored once. Without it, what repeats the person's newest feedback is."""

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackBody:
        said = (self.thumb, self.score, self.comment, self.correction, self.preferred_over)
        if all(one is None for one in said):
            raise ValueError("says nothing; give thumb, score, comment, correction or preferred_over")
        return self


SCHEMA = "FeedbackRequest"
"""Name of the body's schema in the OpenAPI document."""


def feedback_schemas() -> JsonDict:
    """The body's JSON Schema and those it refers to, by their names in the OpenAPI document."""
    found = FeedbackBody.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**found.pop("$defs"), SCHEMA: found}


class FeedbackApi:
    """Answers POST /v1/feedback for one gateway."""

    def __init__(self, recorder: Recorder) -> None:
        """Hand feedback to `recorder`."""
        self._recorder = recorder

    async def answer(self, scope: Scope, receive: Receive, send: Send, principal: Principal) -> None:
        """Store the feedback and say so: 201, or 200 when it had been stored before.

        Raises:
            Refusal: 400 for what it says, 404 for an unknown response, 409 for a reused key, 503 when it is not stored.
        """
        body = parse_object(await read_body(scope, receive, MAX_BODY_BYTES))
        new = _new_feedback(_parsed(body), principal, header(scope, b"idempotency-key"))
        given = await self._given(new)
        said = {
            "id": given.id, "object": "feedback", "response_id": given.served.response, "repeated": given.repeated,
            "model": given.served.asked, "adapter": given.served.adapter, "lineage": given.served.lineage,
        }  # fmt: skip
        await respond_json(send, said, 200 if given.repeated else 201)

    async def _given(self, new: NewFeedback) -> Given:
        for pause in (*PAUSES_S, None):
            try:
                future = asyncio.wrap_future(self._recorder.give(new))
                return await asyncio.wait_for(future, DURABLE_WITHIN_S)
            except UnknownResponse as error:
                if pause is None:
                    raise Refusal(404, str(error), "response_id", "response_not_found") from None
                await asyncio.sleep(pause)
            except TimeoutError:
                waits = (
                    f"feedback: not durable within {DURABLE_WITHIN_S:g} s; send it again, it is stored once"
                )
                raise Refusal(503, waits, None, "not_stored", 2) from None
            except (LlmopsError, NotRedacted) as error:
                raise _refusal_of(error) from None
        raise AssertionError("the last try returns or raises")


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, KeyReused):
        return Refusal(409, str(error), "idempotency_key", "idempotency_conflict")
    if isinstance(error, ConfigError):
        return Refusal(400, f"{error}; thumbs and scores need none", None, "no_capture_key")
    if isinstance(error, BadRequest):
        return Refusal(400, str(error), str(error).partition(":")[0], "invalid_field")
    if isinstance(error, NotRedacted):
        return Refusal(400, f"comment: rule {error} of the gateway did not end on it; send less text")
    if isinstance(error, CouldNotRun):
        return Refusal(503, str(error), None, "not_stored", 2)
    raise error


def _parsed(body: dict[str, Any]) -> FeedbackBody:
    try:
        return FeedbackBody.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(FeedbackBody.model_fields)
            raise Refusal(400, f"{field}: is not a field; fields: {known}", field, "invalid_field") from None
        said = first["msg"].removeprefix("Value error, ")
        raise Refusal(400, f"{field or 'feedback'}: {said}", field or None, "invalid_field") from None


def _new_feedback(body: FeedbackBody, principal: Principal, key: bytes | None) -> NewFeedback:
    """What the body says, for the responses that `principal` may speak of."""
    everyone = principal.role in ("operator", "admin")
    over = body.preferred_over
    idempotency = body.idempotency_key
    if idempotency is None and key:
        idempotency = key.decode("latin-1")
        if len(idempotency) > 128 or not idempotency.isascii() or not idempotency.isprintable():
            raise Refusal(
                400, "Idempotency-Key: is not 1 to 128 printable ASCII characters", None, "invalid_field"
            )
    return NewFeedback(
        response=body.response_id,
        tenant=None if everyone else principal.tenant,
        choice=body.choice,
        user=body.user,
        thumb=body.thumb,
        score=body.score,
        comment=body.comment,
        correction=body.correction,
        over=(over.response_id, over.choice) if over else None,
        idempotency=idempotency,
    )
