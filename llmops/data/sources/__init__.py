"""Sources of rows: from what a YAML file names to rows, preferences and judged answers, each in its format.

A source has parts (one a file; else one): of each the format is told from its own rows. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmops.data.containers import read_values
from llmops.data.formats import Format, Found, Raw, parse_all
from llmops.data.sources.config import FilesSource, HttpSource, HubSource, ReadSource, SqlSource
from llmops.records import Dropped

__all__ = [
    "FilesSource",
    "HttpSource",
    "HubSource",
    "Part",
    "ReadSource",
    "SqlSource",
    "open_source",
]


@dataclass(frozen=True)
class Part:
    """A file, or the whole of another source: its name, its format (None: no known one), its rows to be read once."""

    name: str
    format: Format | None
    found: Iterator[Found]

    @property
    def format_name(self) -> str:
        """The format in a word."""
        return self.format.name if self.format else "unknown format"


def open_source(source: ReadSource, folder: Path) -> Iterator[Part]:
    """The parts of a source, one after the other; each is to be read before the next.

    Args:
        source: what the YAML says.
        folder: what paths in it are relative to.

    Raises:
        ConfigError: an environment variable, a driver or an address is not what it must be.
        DataError: a file is missing or broken, or the database or endpoint refuses.
        CouldNotRun: hub, database or endpoint cannot be reached, or an answer is over its bounds.
    """
    if not isinstance(source, FilesSource):
        yield _part(*_opened(source, folder))
        return
    for name in source.paths:
        path = Path(name)
        # An absolute path belongs to one machine: rows carry the file's name alone.
        called = path.name if path.is_absolute() else path.as_posix()
        yield _part(called, read_values(folder / path, called))


def _part(name: str, values: Iterator[Raw | Dropped]) -> Part:
    format, found = parse_all(values)
    return Part(name, format, found)


def _opened(source: HubSource | SqlSource | HttpSource, folder: Path) -> tuple[str, Iterator[Raw | Dropped]]:
    if isinstance(source, HubSource):
        from llmops.data.sources.hub import hub_name, read_hub

        return hub_name(source), read_hub(source, folder)
    if isinstance(source, SqlSource):
        from llmops.data.sources.sql import database_url, read_sql, sql_name

        url = database_url(source, folder)
        return sql_name(url), read_sql(url, source.query)
    from llmops.data.sources.http import http_name, read_http

    return http_name(source), read_http(source)
