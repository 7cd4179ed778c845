"""Rows of an HTTP endpoint: one page or many, within bounds of size and time, asked again when an answer fails.

A page is fetched whole before a row of it is given, so that asking again gives no row twice.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from tempfile import SpooledTemporaryFile
from typing import IO
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from llmops.data.containers import parse_line
from llmops.data.formats import Raw
from llmops.data.sources.config import HttpSource
from llmops.data.sources.environment import from_environment
from llmops.data.sources.fetch import Bounds, Fetched, fetch, origin
from llmops.errors import DataError
from llmops.records import Dropped

_LINES = re.compile(r"ndjson|jsonl|jsonlines|json-lines")
_NEXT_LINK = re.compile(r'<([^>]*)>[^,]*;\s*rel="?next"?')


def http_name(source: HttpSource) -> str:
    """What rows of an endpoint carry as their place: host and path, never its parameters."""
    parts = urlsplit(source.url)
    return f"{parts.hostname}{parts.path}"


def read_http(source: HttpSource) -> Iterator[Raw | Dropped]:
    """Every row of every page, counted from 1 over all of them.

    Raises:
        ConfigError: an environment variable is not set.
        CouldNotRun: the endpoint does not answer, however often it is asked.
        DataError: it refuses, gives what holds no rows, leads in a circle or elsewhere, or is over its bounds.
    """
    name, n_read = http_name(source), 0
    headers = {h: from_environment(v, "source http: header_env") for h, v in source.header_env.items()}
    for page in _pages(source, headers):
        for found in page:
            n_read += 1
            place = f"{name}:{n_read}"
            yield (
                Dropped(place, found.reason, found.row)
                if isinstance(found, Dropped)
                else Raw(found.data, place)
            )


@dataclass
class _Paging:
    """Where the next page is, and which were seen."""

    source: HttpSource
    address: str | None
    number: int
    seen: set[str] = field(default_factory=set)

    def lead_on(self, page: Fetched, body: object, n_rows: int) -> None:
        """Work out the address of the page after this one; None after the last."""
        source, current = self.source, self.address or ""
        self.seen.add(current)
        link = _NEXT_LINK.search(page.headers.get("link") or "")
        self.address = None
        if source.next_field is not None:
            following = _inside(body, source.next_field)
            if following not in (None, "", False):
                next_param = source.next_param
                self.address = (
                    _with(current, next_param, str(following))
                    if next_param
                    else urljoin(current, str(following))
                )
        elif link:
            self.address = urljoin(current, link[1])
        elif source.page_param is not None and n_rows:
            self.number += 1
            self.address = _with(current, source.page_param, str(self.number))
        if self.address in self.seen:
            raise DataError(
                f"source http: {http_name(source)}: page {len(self.seen)} leads back to an earlier one"
            )
        if self.address and source.header_env and origin(self.address) != origin(source.url):
            raise DataError(
                f"source http: {http_name(source)}: the next page is at {urlsplit(self.address).hostname}, where the "
                "headers from the environment are not sent; give that address as url"
            )


def _pages(source: HttpSource, headers: Mapping[str, str]) -> Iterator[Iterator[Raw | Dropped]]:
    first = source.url
    if source.page_param is not None:
        first = _with(first, source.page_param, str(source.first_page))
    paging = _Paging(source, first, source.first_page)
    bounds = Bounds(http_name(source), source.max_bytes, time.monotonic() + source.max_s)
    while paging.address is not None:
        with fetch(paging.address, source, headers, bounds) as page:
            body, rows = _rows(page, source)
            n_rows = 0
            first_row = next(rows, None)
            if first_row is not None:
                n_rows = 1
                yield chain([first_row], rows)
            paging.lead_on(page, body, n_rows)


def _rows(page: Fetched, source: HttpSource) -> tuple[object, Iterator[Raw | Dropped]]:
    """The page's JSON (None for JSON lines) and its rows."""
    path = urlsplit(page.url).path
    if _LINES.search(page.headers.get("content-type") or "") or path.endswith((".jsonl", ".ndjson")):
        return None, _lines(page.body)
    text = page.body.read()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith(b"{") and b"\n" in text.strip():
            page.body.seek(0)
            return None, _lines(page.body)
        raise DataError(
            f"source http: {http_name(source)}: a page is no JSON ({error}); correct the url"
        ) from None
    rows = body if source.rows_field is None else _inside(body, source.rows_field)
    if isinstance(rows, dict) and source.rows_field is None and source.next_field is None:
        rows = [rows]  # JSON lines of one line
    if not isinstance(rows, list):
        where = source.rows_field or "the page"
        has = f"; it has {', '.join(sorted(map(str, body))[:8])}" if isinstance(body, dict) else ""
        raise DataError(
            f"source http: {http_name(source)}: {where} is {type(rows).__name__}, not a list of rows{has}; "
            "set rows_field to the field that holds them"
        )
    return body, (Raw(row, "") for row in rows)


def _lines(body: IO[bytes] | SpooledTemporaryFile[bytes]) -> Iterator[Raw | Dropped]:
    return (parse_line(line, "") for line in body)


def _inside(body: object, path: str) -> object:
    for name in path.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _with(url: str, name: str, value: str) -> str:
    """The address with one parameter set."""
    parts = urlsplit(url)
    pairs = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != name]
    return urlunsplit(parts._replace(query=urlencode([*pairs, (name, value)])))
