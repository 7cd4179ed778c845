"""The rating page: one Gradio component whose three server functions are the calls of a `Desk`, and its web server.

The page's HTML, CSS and JavaScript lie beside this file; it works without internet. The server listens on loopback and
takes no call but those three. Reads and writes the workspace's database.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.errors import CouldNotRun
from llmops.feedback.desk import Desk, choose_campaign
from llmops.ratings.book import RatingBook
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict
from llmops.settings import Workspace

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
BACKLOG = 2048
SHUTDOWN_S = 5
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
"""Content-Security-Policy: nothing is fetched from elsewhere. Gradio's front end evaluates its components' scripts."""


def build_page(workspace: Workspace, campaign: str | None = None) -> gr.Blocks:
    """The rating page of a campaign, ready for `serve_page` or for Gradio's own `launch`.

    Args:
        workspace: where the campaign was opened.
        campaign: its name or digest; None takes the newest that is open.

    Raises:
        BadRequest: there is no such campaign, none is open, or it is closed.
        InvalidEvidence: its record or items are gone, or altered.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # also read where no argument reaches
    import gradio as gr

    registry = Registry.of(workspace)
    chosen = choose_campaign(registry, campaign)
    desk = Desk(RatingBook(registry.store, registry.ledger, chosen))

    def next_item(call: dict[str, Any]) -> JsonDict:
        return desk.next_item(call)

    def rate_item(call: dict[str, Any]) -> JsonDict:
        return desk.rate_item(call)

    def last_item(call: dict[str, Any]) -> JsonDict:
        return desk.last_item(call)

    with gr.Blocks(title=f"Rating: {chosen.name}", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            html_template=_asset("page.html"),
            css_template=_asset("page.css"),
            js_on_load=_asset("page.js"),
            apply_default_css=False,
            server_functions=[next_item, rate_item, last_item],
        )
    return blocks


def serve_page(
    workspace: Workspace, campaign: str | None, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serve the rating page on 127.0.0.1 until SIGTERM or SIGINT.

    Args:
        workspace: where the campaign was opened.
        campaign: its name or digest; None takes the newest that is open.
        port: TCP port; 0 takes a free one.
        on_ready: called once with the page's address when it answers.

    Raises:
        BadRequest: there is no such campaign, none is open, or it is closed.
        CouldNotRun: the port is taken.
        InvalidEvidence: the campaign's record or items are gone, or altered.
    """
    with _bind(port) as listener:
        asyncio.run(_serve(_application(build_page(workspace, campaign)), listener, on_ready))


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- serving

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class _Guard:
    """ASGI middleware: lets the page load nothing from elsewhere, and nothing from elsewhere call the page."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on one connection."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        foreign = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
        called = scope["path"].rstrip("/").endswith("/component_server")
        if scope["method"] not in ("GET", "HEAD") and (foreign or not called):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            return await send({"type": "http.response.body", "body": b"not a call of the rating page\n"})

        async def send_guarded(message: Scope) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        return await self._app(scope, receive, send_guarded)


def _application(blocks: gr.Blocks) -> Any:
    import gradio as gr
    from fastapi import FastAPI

    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gr.themes.Default(**fonts).set(
        body_background_fill="#f3f4f6", body_background_fill_dark="#12161c"
    )
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), blocks, path="", footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False, pwa=False, mcp_server=False, show_error=False, theme=theme,
    )  # fmt: skip
    return _Guard(app)


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise CouldNotRun(f"page: port {port} on {HOST}: {error}; choose another port, or 0") from None
    listener.setblocking(False)
    return listener


async def _serve(app: Any, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:
            """Leave signals alone: uvicorn's own handlers would end the process by the signal."""
            return nullcontext()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Take the socket, then tell where the page answers."""
            await super().startup(sockets)
            if self.started:
                on_ready(f"http://{HOST}:{listener.getsockname()[1]}")

    server = Server(
        uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, ws="none", server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )  # fmt: skip

    def end() -> None:
        server.should_exit = True

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
    await server.serve(sockets=[listener])
