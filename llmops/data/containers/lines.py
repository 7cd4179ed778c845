"""JSON lines, and what every reader says of a file that cannot be opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmops.data.formats import Raw
from llmops.errors import DataError
from llmops.records import Dropped


def read_lines(path: Path, name: str | None = None) -> Iterator[Raw | Dropped]:
    """The JSON value of every line; arguments and errors as for `llmops.data.containers.read_values`."""
    with readable(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_line(line, f"{name or path}:{number}")


def parse_line(line: bytes, source: str) -> Raw | Dropped:
    """The JSON value of one line."""
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        readable = line.decode("utf-8", "backslashreplace")
        return Dropped(source, f"not UTF-8: byte {line[error.start]:#04x} at {error.start}", readable)
    if not text.strip():
        return Dropped(source, "empty line")
    try:
        return Raw(json.loads(text), source)
    except json.JSONDecodeError as error:
        return Dropped(source, f"malformed JSON: {error.msg} at column {error.colno}", text)
    except ValueError:  # Python reads no longer ones
        return Dropped(source, "malformed JSON: a number of more than 4,300 digits", text)
    except RecursionError:
        return Dropped(source, "malformed JSON: nested too deeply", text)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Errors of opening and reading `path` as ours.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); give a JSONL, JSON, CSV or Parquet file"
        ) from None
