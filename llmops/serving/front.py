"""The front of every request, before anything is read of it: headers within bounds, a Host of ours, the raw path.

Paths are compared as they stand in the request line, never decoded and never handed on: what a proxy in front saw is
what is judged here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from llmops.listening import is_loopback
from llmops.serving.http import Refusal, Scope
from llmops.serving.profile import Limits, is_address

SINGLE = frozenset(
    {
        b"host",
        b"authorization",
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"x-request-id",
        b"x-llmops-session",
    }
)
"""Headers of which a second one is refused: whoever reads the other one would judge another request."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Seen:
    """What the front takes from the headers."""

    host: bytes | None
    authorization: bytes | None


def read_headers(scope: Scope, limits: Limits) -> Seen:
    """One pass over the headers.

    Raises:
        Refusal: 431 when they are too many or too large, 400 when one that must be alone comes twice.
    """
    headers = scope["headers"]
    if len(headers) > limits.max_headers:
        raise Refusal(
            431, f"{len(headers)} headers; send at most {limits.max_headers}", code="too_many_headers"
        )
    n_bytes = 0
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        n_bytes += len(name) + len(value)
        if name in SINGLE:
            if name in found:
                raise Refusal(
                    400, f"the header {name.decode()} comes twice; send it once", code="repeated_header"
                )
            found[name] = value
    if n_bytes > limits.max_header_bytes:
        raise Refusal(
            431,
            f"headers of {n_bytes} bytes; send at most {limits.max_header_bytes}",
            code="headers_too_large",
        )
    return Seen(found.get(b"host"), found.get(b"authorization"))


def raw_path(scope: Scope) -> str:
    """The path as it stands in the request line, percent signs and all."""
    raw = scope.get("raw_path")
    if raw is None:  # servers may leave it out
        return quote(scope["path"])
    return bytes(raw).partition(b"?")[0].decode("latin-1")


class Hosts:
    """The names under which this gateway may be asked."""

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        """Bound to the address `bound`; `allowed` are further names, `*.example.com` all below one."""
        self._exact = frozenset(name for name in allowed if not name.startswith("*.")) | {bound.lower()}
        self._below = tuple(name[1:] for name in allowed if name.startswith("*."))
        self._open = not is_loopback(bound)
        self._known: set[bytes] = set()

    def require(self, host: bytes | None) -> None:
        """Refuse a Host that is not ours: a web page whose name was made to point here (DNS rebinding).

        Raises:
            Refusal: 403 naming the host.
        """
        if host is None or host in self._known:
            return
        said = host.decode("latin-1").lower()
        match = _HOST.fullmatch(said)
        if match is None or not self._ours(match[1].strip("[]")):
            raise Refusal(
                403,
                f"Host {said[:100]!r} is not one of this gateway's; ask at 127.0.0.1 or localhost, or add it to "
                "allowed_hosts in the profile",
                code="foreign_host",
            )
        if len(self._known) < 64:
            self._known.add(host)

    def _ours(self, name: str) -> bool:
        # An address cannot be made to point elsewhere, but on a loopback address only loopback's are ours.
        return (
            is_loopback(name)
            or name in self._exact
            or name.endswith(self._below)
            or (self._open and is_address(name))
        )
