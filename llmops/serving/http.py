"""HTTP at the lowest level the gateway needs: reading a bounded body, answering JSON, OpenAI's shape of an error.

Pure ASGI on purpose: a framework's request and response objects cost several times the relay itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
Header = tuple[bytes, bytes]

_HEADERS = "llmops.headers"
JSON_TYPE: Header = (b"content-type", b"application/json")

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "request_timeout",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    499: "client_closed_request",
    500: "internal_error",
    502: "engine_error",
    503: "service_unavailable",
    504: "engine_timeout",
}


class Refusal(Exception):
    """An answer other than 200, decided by the gateway or passed on from the engine."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Keep what the error body and its headers say; `logged` is what the request log says of it."""
        super().__init__(message)
        self.logged = message
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.extra: list[Header] = []

    def body(self) -> bytes:
        """The error as OpenAI's clients read it."""
        return error_body(str(self), self.status, self.param, self.code)

    def headers(self) -> list[Header]:
        """Headers that belong to this answer alone."""
        found: list[Header] = []
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return [*found, *self.extra]


class ClientGone(Exception):
    """The client closed the connection; nobody reads what would be sent."""


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> bytes:
    """JSON of an error in OpenAI's shape."""
    kind = ERROR_TYPES.get(status, "api_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    known: dict[bytes, bytes] | None = scope.get(_HEADERS)
    if known is None:
        known = scope[_HEADERS] = dict(reversed(scope["headers"]))
    return known.get(name)


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The request's body.

    Raises:
        Refusal: 413 when it is longer than `max_bytes`, before more of it is read.
        ClientGone: the client left before all of it came.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return body


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"request body is over {max_bytes} bytes; send less", code="request_too_large")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        Refusal: 400 when it is not JSON, or not an object.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"request body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Refusal(400, f"request body is {type(data).__name__}, not a JSON object", code="invalid_json")
    return data


async def respond(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def respond_json(
    send: Send, value: object, status: int = 200, headers: tuple[Header, ...] = ()
) -> None:
    """Send a value as JSON."""
    await respond(send, status, [JSON_TYPE, *headers], orjson.dumps(value))


def require_json(scope: Scope) -> None:
    """Refuse a body that a web page in somebody's browser could send without asking.

    Raises:
        Refusal: 415, it is not declared to be JSON.
    """
    kind = header(scope, b"content-type") or b""
    if kind.partition(b";")[0].strip().lower() != b"application/json":
        raise Refusal(415, "send the header Content-Type: application/json", code="unsupported_media_type")
