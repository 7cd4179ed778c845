"""The gateway as an ASGI application: an allow-list of paths, and what answers on each.

Paths are compared raw and never handed on: the engine is asked only at addresses written here. Before anything else a
request's headers, Host and key are judged (`front`, `access`). Requests that a web page in the user's browser could
send to this address are refused (a body that is not declared JSON, a foreign Host).
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from llmops.auth import Keys
from llmops.errors import LlmopsError
from llmops.records import Principal
from llmops.serving.access import Access, require_guarded, require_model, visible_targets
from llmops.serving.audit import Audit
from llmops.serving.capture import Recorder
from llmops.serving.capture_metrics import CaptureCollector
from llmops.serving.control import Control
from llmops.serving.feedback_api import PATH as FEEDBACK
from llmops.serving.feedback_api import FeedbackApi
from llmops.serving.front import Hosts, raw_path, read_headers
from llmops.serving.green import GREEN, Green, Paperwork
from llmops.serving.http import (
    JSON_TYPE,
    ClientGone,
    Header,
    Receive,
    Refusal,
    Scope,
    Send,
    require_json,
    respond,
    respond_json,
)
from llmops.serving.loading import Loading
from llmops.serving.lock import announce_running, serve_lock, tell_owner
from llmops.serving.metrics import Metrics
from llmops.serving.observer import Observer
from llmops.serving.openapi import document
from llmops.serving.profile import ServeProfile
from llmops.serving.relay import Relay, Sinks
from llmops.serving.request_log import RequestLog
from llmops.serving.response_cache import ResponseCache
from llmops.serving.routes import Live, RouteTable, Target
from llmops.serving.status import status_of
from llmops.serving.tracing import Tracer
from llmops.serving.upstream import EMBEDDINGS
from llmops.settings import Workspace

REQUEST_LOG = "requests.jsonl"
COMPLETIONS = ("/v1/chat/completions", "/v1/completions", EMBEDDINGS)
METHODS = {
    **dict.fromkeys((*COMPLETIONS, FEEDBACK, "/llmops/adapters"), "POST"),
    **dict.fromkeys(
        ("/v1/models", "/llmops/status", "/healthz", "/readyz", "/metrics", "/openapi.json"), "GET"
    ),
}
log = logging.getLogger("llmops.serving")
PLAIN_TEXT: Header = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


class Gateway:
    """One workspace behind one address. `start` and `stop` bracket its life; ASGI's lifespan calls them too."""

    def __init__(self, profile: ServeProfile, workspace: Workspace) -> None:
        """Prepare; nothing is started."""
        self.profile = profile
        self._workspace = workspace
        self.live = Live()
        self.log = RequestLog(workspace.logs / REQUEST_LOG)
        self.metrics = Metrics()
        self.control = Control(profile, workspace, self.live)
        self.access = Access(profile, workspace)
        self.tracer = Tracer(profile.tracing) if profile.tracing is not None else None
        self._hosts = Hosts(profile.host, profile.allowed_hosts)
        self._audit = Audit(self.control.registry.ledger)
        self._loading = Loading(profile.limits.max_body_bytes)
        self.recorder = Recorder(profile.capture, workspace.database_url)
        self.feedback = FeedbackApi(self.recorder)
        self.cache = ResponseCache(profile.response_cache) if profile.response_cache else None
        self.metrics.registry.register(CaptureCollector(self.recorder, self.cache))
        observer = Observer(self.recorder, self.cache)
        sinks = Sinks(self.log, self.metrics, self.access, observer, self.tracer)
        self.relay = Relay(self.live, profile, sinks)
        self.green = Green(self.control, self.relay, Paperwork(self._audit, self._loading, self._model_cards))
        self.started_at = int(time.time())
        self._show_state()

    async def start(self) -> None:
        """Start log, relay, engine and control.

        Raises:
            LlmopsError: the base or the engine cannot be had; nothing is left running.
        """
        await self.open()
        try:
            await self.control.start()
        except BaseException:
            await self.close()
            raise

    async def stop(self) -> None:
        """Stop control and engine, and write what the log still holds."""
        await self.control.stop()
        await self.close()

    async def open(self) -> None:
        """Start what stands around the engine: the keys and the writers.

        Raises:
            LlmopsError: the keys cannot be read.
        """
        await self.access.open()
        self.log.start()
        self.recorder.start()

    async def close(self) -> None:
        """End what `open` started; what waits is written."""
        await self.relay.close()
        await self.access.close()
        await asyncio.to_thread(self.recorder.stop)
        await self.log.stop()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                await self._http(scope, receive, send)
            except Refusal as refusal:
                self.metrics.refused.labels(refusal.code or "other").inc()
                await respond(
                    send,
                    refusal.status,
                    [JSON_TYPE, *refusal.headers()],
                    refusal.body(),
                )
            except ClientGone:
                pass
            except Exception:
                log.exception("%s %s failed", scope["method"], scope["path"])
                fault = Refusal(500, "a fault of the gateway; its log says more", code="internal_error")
                with suppress(
                    RuntimeError
                ):  # the answer had begun; closing the connection is all that is left
                    await respond(send, 500, [JSON_TYPE], fault.body())
        else:
            raise ValueError(f"gateway: {scope['type']} is not served")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = read_headers(scope, self.profile.limits)
        self._hosts.require(seen.host)
        path, method = raw_path(scope), scope["method"]
        principal = await self.access.principal(scope, path, seen.authorization)
        wanted = METHODS.get(path)
        if wanted is None:
            if path.startswith(GREEN + "/"):
                return await self.green.answer(path.removeprefix(GREEN), (scope, receive, send), principal)
            if path.startswith("/v1/models/") and method == "GET":
                name = unquote(path.removeprefix("/v1/models/"))
                return await respond_json(send, self._model_card(name, principal))
            raise Refusal(
                404, f"{method} {path[:100]} is not served; paths: {', '.join(METHODS)}", code="unknown_path"
            )
        if method != wanted:
            raise Refusal(405, f"{path} takes {wanted}, not {method}", code="method_not_allowed")
        if wanted == "POST":
            require_json(scope)
        if path in COMPLETIONS:
            return await self.relay.complete(scope, receive, send, principal)
        if path == FEEDBACK:
            return await self.feedback.answer(scope, receive, send, principal)
        if path == "/llmops/adapters":
            act = self._loading.add(scope, receive, self.live.side, self.control.add_adapter)
            return await respond_json(send, await self._audit.call(principal, f"{method} {path}", act))
        if path == "/v1/models":
            return await respond_json(
                send, {"object": "list", "data": self._model_cards(principal, self.live.table)}
            )
        if path == "/llmops/status":
            return await respond_json(send, status_of(self.control, self.live, self._counts()))
        if path == "/openapi.json":
            return await respond_json(send, document())
        if path == "/metrics":
            return await respond(send, 200, [PLAIN_TEXT], self.metrics.render())
        return await self._health(path, send)

    # ------------------------------------------------------------ answers

    async def _health(self, path: str, send: Send) -> None:
        """/healthz: restarting this process would not help. /readyz: completions are answered."""
        fatal = self.control.keeper.fatal
        problem = str(fatal) if fatal else self.live.table.down if path == "/readyz" else None
        await respond_json(
            send,
            {"status": "ok"} if problem is None else {"status": "unavailable", "reason": problem},
            200 if problem is None else 503,
        )

    def _model_cards(self, principal: Principal, table: RouteTable) -> list[dict[str, Any]]:
        visible = visible_targets(principal, table)
        return [self._card(name, target) for name, target in visible.items()]

    def _model_card(self, name: str, principal: Principal) -> dict[str, Any]:
        table = self.live.table
        require_model(principal, name, table)
        return self._card(name, table.resolve(name))

    def _card(self, name: str, target: Target) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": self.started_at, "owned_by": "llmops",
            "root": target.engine_name, "max_model_len": self.control.keeper.serving.kept.profile.max_model_tokens,
        }  # fmt: skip

    def _counts(self) -> dict[str, Any]:
        """What runs, waits and was lost here, for `/llmops/status`."""
        return {
            "n_requests": self.relay.n_running, "n_waiting": self.relay.admission.n_waiting,
            "n_log_lines_lost": self.log.n_lost, "n_usage_lost": self.access.usage.n_lost,
            "keys_required": self.access.ring.closed, "capture": self.recorder.status(),
        }  # fmt: skip

    def _show_state(self) -> None:
        """Have the exposition tell what goes on now."""
        live, relay, metrics = self.live, self.relay, self.metrics
        metrics.gauge("llmops_in_flight", "Requests at the engine.", lambda: relay.admission.n_running)
        metrics.gauge("llmops_waiting", "Requests that wait for a place.", lambda: relay.admission.n_waiting)
        metrics.gauge(
            "llmops_engine_up", "1 while the engine answers.", lambda: float(live.table.down is None)
        )
        metrics.gauge("llmops_route_version", "Version of the route table.", lambda: live.table.version)
        metrics.gauge(
            "llmops_gateway_leads",
            "1 at the gateway that decides.",
            lambda: float(self.control.names.leads()),
        )
        metrics.gauge(
            "llmops_usage_lost", "Requests whose use could not be kept.", lambda: self.access.usage.n_lost
        )
        metrics.total("llmops_request_log_lost", "Log lines lost to a full disk.", lambda: self.log.n_lost)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Under `uvicorn --factory`, told the profile's host and port: a start that fails ends the server."""
        await receive()
        url = f"http://{self.profile.host}:{self.profile.port}"
        try:
            require_guarded(self.profile.host, Keys.of(self._workspace))
            with serve_lock(self._workspace) as lock:
                tell_owner(lock, url)
                await self.start()
                announce_running(self._workspace, url, self.control.fleet.session.signature)
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
        except LlmopsError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
