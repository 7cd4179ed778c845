"""The rating page: one Gradio component whose server functions are the calls of a `Desk`, and its web server.

The page's HTML, CSS and JavaScript lie in `assets/`; it works without internet. The server takes no call but those
functions and signing in. Reads and writes the workspace's database.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.auth import Keys
from llmops.errors import BadRequest, ConfigError
from llmops.feedback.address import Address, require_guarded
from llmops.feedback.desk import Desk, Staff, choose_campaign
from llmops.feedback.guard import Guard
from llmops.feedback.rubric import frozen_rubric, rubric_of
from llmops.feedback.sign_in import Door
from llmops.listening import bind
from llmops.ratings.book import RatingBook
from llmops.records import Campaign
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict
from llmops.settings import Workspace

if TYPE_CHECKING:
    import gradio as gr

SHUTDOWN_S = 5
KEEP_ALIVE_S = 75
"""Longer than most raters look at an item: a connection that is closed just when an answer is sent would lose it."""
SCRIPTS = ("draw.js", "calls.js", "keys.js")


def nothing_serves() -> str:
    """The endpoint of a page that was started without one.

    Raises:
        BadRequest: always; typed prompts need one.
    """
    raise BadRequest("page: was started without an endpoint; run `llmops feedback ui --endpoint URL`")


def build_page(desk: Desk, campaign: Campaign) -> gr.Blocks:
    """The rating page of a campaign, ready for `serve_page` or for Gradio's own `launch`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # also read where no argument reaches
    import gradio as gr

    with gr.Blocks(title=f"Rating: {campaign.name}", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            html_template=_asset("page.html"),
            css_template=_asset("page.css"),
            js_on_load="\n".join(_asset(name) for name in SCRIPTS),
            apply_default_css=False,
            server_functions=_functions(desk),
        )
    return blocks


def _functions(desk: Desk) -> list[Callable[[dict[str, Any]], JsonDict]]:
    """The desk's calls as Gradio takes them: plain functions, told apart by name."""

    def enter(call: dict[str, Any]) -> JsonDict:
        return desk.enter(call)

    def next_item(call: dict[str, Any]) -> JsonDict:
        return desk.next_item(call)

    def rate_item(call: dict[str, Any]) -> JsonDict:
        return desk.rate_item(call)

    def last_item(call: dict[str, Any]) -> JsonDict:
        return desk.last_item(call)

    def undo_item(call: dict[str, Any]) -> JsonDict:
        return desk.undo_item(call)

    def ask_both(call: dict[str, Any]) -> JsonDict:
        return desk.ask_both(call)

    def numbers(call: dict[str, Any]) -> JsonDict:
        return desk.numbers(call)

    return [enter, next_item, rate_item, last_item, undo_item, ask_both, numbers]


def open_desk(
    workspace: Workspace, campaign: str | None, find_endpoint: Callable[[], str] = nothing_serves
) -> tuple[Desk, Door, Campaign]:
    """The desk of a campaign, the door to it, and the campaign.

    Args:
        workspace: where the campaign was opened.
        campaign: its name or digest; None takes the newest that is open.
        find_endpoint: address of the endpoint that answers typed prompts.

    Raises:
        BadRequest: there is no such campaign, none is open, or it is closed.
        ConfigError: the workspace's rubric does not say what it must, or asks nothing where scores are wanted.
        InvalidEvidence: its record, items or rubric are gone, or altered.
    """
    registry = Registry.of(workspace)
    chosen = choose_campaign(registry, campaign)
    rubric = frozen_rubric(registry.store, chosen.rubric) if chosen.rubric else rubric_of(workspace)
    if chosen.kind == "rate" and not rubric.questions:
        raise ConfigError(
            f"campaign {chosen.name}: is rated by a rubric that asks nothing; give it questions"
        )
    door = Door(registry.ledger.engine)
    book = RatingBook(registry.store, registry.ledger, chosen)
    arms = None
    if chosen.origin == "typed":
        from llmops.feedback.arms import (
            Arms,  # brings the endpoint's client, which other campaigns do without
        )

        arms = Arms(registry, chosen, find_endpoint)
    return Desk(Staff(registry, book, rubric, door, arms)), door, chosen


def serve_page(
    workspace: Workspace,
    campaign: str | None,
    at: Address,
    on_ready: Callable[[str], None],
    find_endpoint: Callable[[], str] = nothing_serves,
) -> None:
    """Serve the rating page until SIGTERM or SIGINT.

    Args:
        workspace: where the campaign was opened.
        campaign: its name or digest; None takes the newest that is open.
        at: where to listen; on an address that other machines reach only when raters have to sign in.
        on_ready: called once with the page's address when it answers.
        find_endpoint: address of the endpoint that answers typed prompts.

    Raises:
        BadRequest: there is no such campaign, none is open, or it is closed.
        ConfigError: the workspace's rubric does not say what it must, nobody could sign in where other machines reach
            the page, or the certificate is none.
        CouldNotRun: the port is taken.
        InvalidEvidence: the campaign's record, items or rubric are gone, or altered.
    """
    require_guarded(at, Keys.of(workspace))
    with bind(at.host, at.port, "page") as listener:
        desk, door, chosen = open_desk(workspace, campaign, find_endpoint)
        asyncio.run(serve_until(application(desk, door, chosen), Place(at, listener), on_ready))


def _asset(name: str) -> str:
    return (Path(__file__).with_name("assets") / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- serving


def application(desk: Desk, door: Door, campaign: Campaign) -> Guard:
    """The page as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI

    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gr.themes.Default(**fonts).set(
        body_background_fill="#f3f4f6", body_background_fill_dark="#12161c"
    )
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), build_page(desk, campaign), path="", footer_links=[], run_history=False,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, show_error=False, theme=theme,
    )  # fmt: skip
    return Guard(app, door)


@dataclass(frozen=True)
class Place:
    """An address, and the socket that listens there."""

    at: Address
    listener: socket.socket


async def serve_until(
    app: Guard, place: Place, on_ready: Callable[[str], None], ended: threading.Event | None = None
) -> None:
    """Serve the page until SIGTERM or SIGINT, or outside the main thread until `ended` is set."""
    import uvicorn

    at = place.at

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:
            """Leave signals alone: uvicorn's own handlers would end the process by the signal."""
            return nullcontext()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Take the socket, then tell where the page answers."""
            await super().startup(sockets)
            if self.started:
                on_ready(at.url(place.listener.getsockname()[1]))

    server = Server(
        uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, ws="none", server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_S, timeout_keep_alive=KEEP_ALIVE_S,
            ssl_certfile=at.certificate, ssl_keyfile=at.key,
        )
    )  # fmt: skip

    def end() -> None:
        server.should_exit = True

    if ended is not None:
        waiting = asyncio.get_running_loop().run_in_executor(None, ended.wait)
        waiting.add_done_callback(lambda _: end())
    elif threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
    await server.serve(sockets=[place.listener])
