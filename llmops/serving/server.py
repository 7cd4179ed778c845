"""`llmops serve` and `llmops stop`: the gateway as a process, from the port and lock to the last log line.

Imports nothing of the gateway until it serves: other commands ask here whether something runs.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmops.auth import Keys
from llmops.listening import bind, require_certificate
from llmops.serving.lock import Running, announce_running, running, serve_lock, stop, tell_owner
from llmops.settings import Workspace

if TYPE_CHECKING:
    from llmops.serving.app import Gateway
    from llmops.serving.profile import ServeProfile

__all__ = ["Running", "build_app", "running", "serve", "stop"]

LAST_WORDS_S = 3.0  # for requests that are cut off to be told so

log = logging.getLogger("llmops.serving")


def build_app(profile: ServeProfile, workspace: Workspace) -> Gateway:
    """The gateway as an ASGI application; its lifespan starts and stops the engine.

    The engine is that of the profile, or the one that took its place by `llmops engine switch`.

    Raises:
        InvalidEvidence: what took its place cannot be read.
    """
    from llmops.registry.adapters import Registry
    from llmops.serving.app import Gateway
    from llmops.serving.standing import profile_in_force

    return Gateway(profile_in_force(profile, Registry.of(workspace)), workspace)


def serve(profile: ServeProfile, workspace: Workspace, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish running requests and return.

    Args:
        profile: which base on which engine, where it listens; port 0 takes a free one.
        workspace: whose ledger decides what the names stand for.
        announce: called once with the address when completions are answered.

    Raises:
        ConfigError: the address can be reached from other machines and there are no keys, or the certificate is none.
        CouldNotRun: another serve runs in this workspace, or the port is taken; before anything heavy.
        EngineFailed: the engine did not start, or died and could not be brought back.
    """
    from llmops.serving.access import require_guarded

    require_guarded(profile.host, Keys.of(workspace))
    if profile.tls is not None:
        require_certificate("tls", profile.tls.certificate, profile.tls.key)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with serve_lock(workspace) as lock, bind(profile.host, profile.port) as listener:
        url = url_of(listener, "http" if profile.tls is None else "https")
        tell_owner(lock, url)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_Service(profile, workspace, listener, url).run(announce or (lambda _url: None)))


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The address at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Service:
    """One run of the gateway under uvicorn, with signals of its own: uvicorn's would end the process with them."""

    def __init__(
        self, profile: ServeProfile, workspace: Workspace, listener: socket.socket, url: str
    ) -> None:
        self._workspace = workspace
        self._listener = listener
        self._url = url
        self._gateway = build_app(profile, workspace)
        self._drain_s = profile.timeouts.drain_s
        self._server = uvicorn_server(self._gateway, profile)
        self._stop = asyncio.Event()

    async def run(self, announce: Callable[[str], None]) -> None:
        """Serve until told to stop."""
        self._take_signals()
        keeper = self._gateway.control.keeper
        keeper.on_fatal = self._stop.set
        answering = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        starting = asyncio.create_task(self._gateway.start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # Until the engine is up the port answers already: 503 with the reason.
            await asyncio.wait({answering, starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await self._announce(announce)
                await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(answering, starting)
            stopping.cancel()
        if keeper.fatal is not None:
            raise keeper.fatal

    async def _announce(self, announce: Callable[[str], None]) -> None:
        session = self._gateway.control.fleet.session
        body = {
            "url": self._url, "engine": session.engine_digest, "base": session.base.digest,
            "leads": self._gateway.control.names.leads(),
        }  # fmt: skip
        await asyncio.to_thread(self._gateway.control.registry.ledger.append, "serve.started", body)
        announce_running(self._workspace, self._url, session.signature)
        announce(self._url)

    async def _end(self, answering: asyncio.Task[None], starting: asyncio.Task[None]) -> None:
        """Take no more requests, finish those that run, then stop the rest."""
        was_up = self._workspace.serve_file.is_file()
        self._workspace.serve_file.unlink(missing_ok=True)
        self._server.should_exit = True
        await self._gateway.relay.drain(self._drain_s)
        await asyncio.gather(answering, return_exceptions=True)
        if starting.done() and starting.exception() is None:
            await self._gateway.stop()
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if was_up:
            body = {"url": self._url}
            await asyncio.to_thread(self._gateway.control.registry.ledger.append, "serve.stopped", body)

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._told_to_stop)

    def _told_to_stop(self) -> None:
        """The first signal lets running requests finish, the second cuts them off."""
        if self._stop.is_set():
            self._gateway.relay.cut_off()
            self._server.force_exit = True
        self._stop.set()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop that serves: uvloop's where it is installed, which costs less, else asyncio's own."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def uvicorn_server(app: Any, profile: ServeProfile) -> Any:
    """The HTTP server around a gateway: it leaves signals alone, and cuts off endless headers."""
    import uvicorn

    from llmops.serving.wire import BoundedProtocol

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:
            """Leave signals alone: whoever runs this has taken them."""
            return nullcontext()

    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=round(profile.timeouts.drain_s + LAST_WORDS_S),
        timeout_keep_alive=75,
        proxy_headers=False,
        http=BoundedProtocol,
        ssl_certfile=profile.tls.certificate if profile.tls else None,
        ssl_keyfile=profile.tls.key if profile.tls else None,
    )
    return Server(config)
