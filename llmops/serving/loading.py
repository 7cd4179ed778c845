"""`POST /llmops/adapters`: an operator has a registered adapter loaded and proved under its immutable name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from llmops.errors import BadRequest, CouldNotRun, EngineFailed, InvalidEvidence, LlmopsError
from llmops.serving.audit import Acted
from llmops.serving.fleet import Loaded, ProofFailed, proof_fields
from llmops.serving.http import Receive, Refusal, Scope, parse_object, read_body
from llmops.serving.routes import Side


class Loading:
    """Takes requests to load adapters, with bodies of so many bytes at most."""

    def __init__(self, max_body_bytes: int) -> None:
        """Load nothing yet."""
        self._max_body_bytes = max_body_bytes

    async def add(
        self, scope: Scope, receive: Receive, side: Side, load: Callable[[str], Awaitable[Loaded]]
    ) -> Acted:
        """Load the adapter a request names, through `load`, on the engine of a side.

        Raises:
            Refusal: the request is none, the engine is away, or the adapter is unknown, altered or not applied.
        """
        body = parse_object(await read_body(scope, receive, self._max_body_bytes))
        reference = body.get("adapter")
        if not isinstance(reference, str) or body.keys() != {"adapter"}:
            raise Refusal(400, 'send {"adapter": "<name, name@digest12, digest or latest>"}', param="adapter")
        if side.table.down is not None:
            raise Refusal(503, f"{side.table.down}; try again shortly", None, "engine_unavailable", 2)
        try:
            loaded = await load(reference)
        except LlmopsError as error:
            raise _refusal_of(error) from None
        answer = {
            "model": loaded.record.model_name,
            "adapter": loaded.record.adapter,
            "proof": proof_fields(loaded.proof),
        }
        return Acted(answer, {"adapter": loaded.record.adapter})


def _refusal_of(error: LlmopsError) -> Refusal:
    """An error of control as an HTTP answer."""
    if isinstance(error, BadRequest):
        return Refusal(404 if "no such adapter" in str(error) else 400, str(error), param="adapter")
    if isinstance(error, ProofFailed):
        return Refusal(422, f"{error} ({proof_fields(error.proof)})", param="adapter", code="proof_failed")
    if isinstance(error, InvalidEvidence):
        return Refusal(422, str(error), param="adapter", code="invalid_evidence")
    if isinstance(error, EngineFailed):
        return Refusal(502, str(error), code="engine_failed")
    return Refusal(503 if isinstance(error, CouldNotRun) else 500, str(error), retry_after_s=5)
