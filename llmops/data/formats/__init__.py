"""Formats of data: from one JSON value to a row, a preference or a judged answer, or to a named reason why not.

Pure functions; what opens files and addresses is `llmops.data.sources`. The format is told from a file's own rows.
"""

from llmops.data.formats.judged import unpaired
from llmops.data.formats.known import FORMATS, Format, Found, Item, detect, format_of, parse
from llmops.data.formats.stream import Raw, parse_all

__all__ = [
    "FORMATS",
    "Format",
    "Found",
    "Item",
    "Raw",
    "detect",
    "format_of",
    "parse",
    "parse_all",
    "unpaired",
]
