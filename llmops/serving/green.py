"""`/green/...`: what operators ask of the engine that stands beside another one, before or after it serves.

An address of its own and no header: what clients ask pays nothing for it, and any OpenAI client takes it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmops.errors import LlmopsError
from llmops.records import Principal
from llmops.serving.audit import Audit
from llmops.serving.control import Control
from llmops.serving.http import Receive, Refusal, Scope, Send, require_json, respond_json
from llmops.serving.keeper import Keeper
from llmops.serving.loading import Loading
from llmops.serving.relay import Relay
from llmops.serving.routes import RouteTable
from llmops.serving.status import status_on

GREEN = "/green"
"""What stands before the paths that the second engine answers."""
METHODS = {
    "/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/embeddings": "POST", "/llmops/adapters": "POST",
    "/v1/models": "GET", "/llmops/status": "GET",
}  # fmt: skip


@dataclass(frozen=True)
class Paperwork:
    """What the gateway does around an operator's request, on whichever engine."""

    audit: Audit
    loading: Loading
    cards: Callable[[Principal, RouteTable], list[dict[str, Any]]]  # of the models somebody may see


class Green:
    """Answers on the paths below GREEN; who asks has been found to be an operator."""

    def __init__(self, control: Control, relay: Relay, paperwork: Paperwork) -> None:
        """Answer for the engines of `control`."""
        self._control, self._relay, self._paperwork = control, relay, paperwork

    async def answer(self, path: str, connection: tuple[Scope, Receive, Send], principal: Principal) -> None:
        """Answer one request; `path` is what stands behind GREEN.

        Raises:
            Refusal: there is no second engine or no such path, or what `Relay.complete` and `Loading.add` raise.
        """
        scope, receive, send = connection
        keeper = self._control.keeper.green
        if keeper is None:
            raise Refusal(
                404, "no second engine is there; `llmops engine start PROFILE`", code="no_second_engine"
            )
        method = scope["method"]
        if METHODS.get(path) != method:
            served = ", ".join(GREEN + name for name in METHODS)
            said = f"{method} {GREEN}{path[:100]} is not served; paths: {served}"
            raise Refusal(404, said, code="unknown_path")
        if method == "POST":
            require_json(scope)
        if path == "/llmops/adapters":
            add = self._paperwork.loading.add(scope, receive, keeper.side, self._loader(keeper))
            told = await self._paperwork.audit.call(principal, f"{method} {GREEN}{path}", add)
            return await respond_json(send, told)
        if path == "/v1/models":
            cards = self._paperwork.cards(principal, keeper.side.table)
            return await respond_json(send, {"object": "list", "data": cards})
        if path == "/llmops/status":
            return await respond_json(send, _status(keeper))
        return await self._relay.complete({**scope, "path": path}, receive, send, principal, keeper.side)

    def _loader(self, keeper: Keeper) -> Callable[[str], Any]:
        control = self._control
        if keeper is control.keeper.serving:
            return control.add_adapter
        return partial(control.desk.add_adapter, keeper)


def _status(keeper: Keeper) -> dict[str, Any]:
    try:
        return status_on(keeper)
    except LlmopsError as error:
        raise Refusal(503, str(error), None, "engine_unavailable", 2) from None
