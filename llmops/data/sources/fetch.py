"""One page over HTTP: fetched whole, within bounds, and asked for again when the answer fails."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from tempfile import SpooledTemporaryFile
from typing import IO
from urllib.parse import urlsplit

from llmops.data.sources.config import HttpSource
from llmops.errors import CouldNotRun, DataError

RETRIED = (429, 500, 502, 503, 504)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
IN_MEMORY_BYTES = 1 << 24
CHUNK_BYTES = 1 << 16


@dataclass
class Bounds:
    """What is left of the bytes and of the time that all pages of a source may take."""

    name: str
    n_bytes: int
    deadline: float

    def take(self, n: int) -> None:
        """Count bytes that came.

        Raises:
            DataError: they are over a bound.
        """
        self.n_bytes -= n
        if self.n_bytes < 0:
            raise DataError(f"source http: {self.name}: more than max_bytes came; raise it, or ask for less")
        if time.monotonic() > self.deadline:
            raise DataError(f"source http: {self.name}: took longer than max_s; raise it, or ask for less")


@dataclass(frozen=True)
class Fetched:
    """A page: its final address, its headers, its bytes in memory or on disk."""

    url: str
    headers: Message
    body: SpooledTemporaryFile[bytes]


class _Failed(Exception):
    """An answer that asking again may mend; `wait_s` is what the endpoint wants to be left alone for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@contextmanager
def fetch(url: str, source: HttpSource, headers: Mapping[str, str], bounds: Bounds) -> Iterator[Fetched]:
    """A page, to be read inside the `with`.

    Raises:
        CouldNotRun: no whole answer came, however often it was asked for.
        DataError: the endpoint refuses, leads to another host with our headers, or is over its bounds.
    """
    with SpooledTemporaryFile(IN_MEMORY_BYTES) as body:
        yield _insist(url, source, headers, (bounds, body))


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _insist(
    url: str, source: HttpSource, headers: Mapping[str, str], into: tuple[Bounds, SpooledTemporaryFile[bytes]]
) -> Fetched:
    bounds, body = into
    wait_s = FIRST_WAIT_S
    for left in range(source.n_retries, -1, -1):
        try:
            final, told = _ask(url, source, headers, into)
        except _Failed as failed:
            pause = max(wait_s, failed.wait_s)
            if not left or time.monotonic() + pause > bounds.deadline:
                raise CouldNotRun(
                    f"source http: {bounds.name}: {failed}, asked {source.n_retries - left + 1} times; check the "
                    "endpoint, or raise n_retries or max_s"
                ) from None
            time.sleep(pause)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            continue
        body.seek(0)
        return Fetched(final, told, body)
    raise AssertionError("the last try returns or raises")


def _ask(
    url: str, source: HttpSource, headers: Mapping[str, str], into: tuple[Bounds, SpooledTemporaryFile[bytes]]
) -> tuple[str, Message]:
    """Ask once and keep the answer's bytes; returns its final address and its headers."""
    bounds, body = into
    body.seek(0)
    body.truncate()
    opener = urllib.request.build_opener(_AtHome(bool(headers), bounds.name))
    request = urllib.request.Request(
        url, headers={"Accept": "application/json, application/x-ndjson", **headers}
    )
    try:
        with opener.open(request, timeout=source.answer_s) as answer:
            n = 0
            while chunk := answer.read(CHUNK_BYTES):
                bounds.take(len(chunk))
                body.write(chunk)
                n += len(chunk)
            said = answer.headers.get("content-length")
            if said is not None and said.isdecimal() and int(said) != n:
                raise _Failed(f"an answer broke off after {n:,} of {int(said):,} bytes")
            return answer.url, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            if error.code in RETRIED:
                raise _Failed(f"answered {error.code}", _retry_after(error.headers)) from None
        raise DataError(
            f"source http: {bounds.name}: answered {error.code} {error.reason}; correct the url or header_env"
        ) from None
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise _Failed(f"no whole answer ({getattr(error, 'reason', None) or type(error).__name__})") from None


class _AtHome(urllib.request.HTTPRedirectHandler):
    """Follows redirects; with headers from the environment only to the same host."""

    def __init__(self, secret: bool, name: str) -> None:
        self.secret, self.name = secret, name

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """The request to go on with; arguments as the library gives them.

        Raises:
            DataError: it would take our headers to another host.
        """
        if self.secret and origin(newurl) != origin(req.full_url):
            raise DataError(
                f"source http: {self.name}: leads on to {urlsplit(newurl).hostname}, where the headers from the "
                "environment are not sent; give that address as url"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _retry_after(headers: Message) -> float:
    value = headers.get("retry-after", "")
    return min(float(value), 60.0) if value.isdecimal() else 0.0
