"""A file's values one after the other: its format is told from the first of them, then every one is parsed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from llmops.data.formats.known import Format, Found, detect, parse
from llmops.data.quarantine import kept_text
from llmops.records import Dropped

N_LOOKED_AT = 100


@dataclass(frozen=True)
class Raw:
    """A JSON value as it was read, and where it stood (`file:line`)."""

    data: object
    source: str


def parse_all(values: Iterable[Raw | Dropped]) -> tuple[Format | None, Iterator[Found]]:
    """The format of a file, told from its first 100 values, and every value in it; memory holds no more than those.

    None: no value is in a known format, so that every one is dropped.
    """
    rest = iter(values)
    first = list(islice(rest, N_LOOKED_AT))
    found = detect(value.data for value in first if isinstance(value, Raw))
    return found, (
        value if isinstance(value, Dropped) else _parsed(value, found) for value in chain(first, rest)
    )


def _parsed(value: Raw, form: Format | None) -> Found:
    found = parse(value.data, value.source, form)
    return kept_text(found, value.data) if isinstance(found, Dropped) else found
