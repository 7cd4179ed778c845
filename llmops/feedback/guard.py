"""Before the rating page: nothing is loaded from elsewhere, nothing from elsewhere calls it, and raters sign in here.

`POST session` opens a session in a cookie that no script can read, `DELETE session` ends it. ASGI middleware; whatever
else the page is asked goes on to Gradio.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmops.errors import LlmopsError
from llmops.feedback.sign_in import COOKIE, SESSION_S, Door, presented

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLS, SESSION = "/component_server", "/session"
MOST_BYTES = {CALLS: 1_000_000, SESSION: 8_192}
"""How large a body may be: a corrected answer of 100,000 characters fits."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
"""Content-Security-Policy: nothing is fetched from elsewhere. Gradio's front end evaluates its components' scripts."""


class Guard:
    """Answers, refuses or passes on each connection."""

    def __init__(self, app: App, door: Door) -> None:
        """Stand before the page; `door` lets raters in."""
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        place = scope["path"].rstrip("/")
        changes = scope["method"] not in ("GET", "HEAD")
        called = next((end for end in MOST_BYTES if place.endswith(end)), None)
        if changes and (
            called is None or headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
        ):
            return await _say(send, 403, b"not a call of the rating page\n")
        if (
            changes
            and called is not None
            and not _fits(headers.get(b"content-length", b""), MOST_BYTES[called])
        ):
            return await _say(send, 413, b"more than a call of the rating page holds\n")
        if changes and called == SESSION:
            return await self._session(scope, receive, send)
        presented.set(headers.get(b"cookie", b"").decode("latin-1"))

        async def send_guarded(message: Scope) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message["headers"], *extra, (b"x-content-type-options", b"nosniff")]
            await send(message)

        return await self._app(scope, receive, send_guarded)

    async def _session(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sign in or out."""
        how = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if scope["scheme"] == "https" else "")
        body = await _body(receive)
        if scope["method"] == "DELETE":
            return await _say(send, 200, b"{}", f"{COOKIE}=; Max-Age=0{how}")
        try:
            said = json.loads(body)
            cookie = await asyncio.to_thread(self._door.open, said)  # hashing a password takes its time
        except ValueError:
            return await _say(send, 400, b'{"error": "sign-in: not JSON; reload the page"}')
        except LlmopsError as error:
            return await _say(send, 200, json.dumps({"error": str(error)}).encode())
        return await _say(send, 200, b"{}", f"{COOKIE}={cookie}; Max-Age={SESSION_S}{how}")


def _fits(said: bytes, most: int) -> bool:
    """Whether a body says how long it is, and is not too long."""
    return said.isdigit() and int(said) <= most


async def _body(receive: Receive) -> bytes:
    read, more = b"", True
    while more:
        message = await receive()
        read += message.get("body", b"")
        more = bool(message.get("more_body"))
    return read


async def _say(send: Send, status: int, body: bytes, cookie: str = "") -> None:
    kind = b"application/json" if body.startswith(b"{") else b"text/plain"
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if cookie:
        headers.append((b"set-cookie", cookie.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
