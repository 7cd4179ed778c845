"""A JSON file: an array of rows, read one element at a time, or JSON lines under another name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llmops.data.containers.lines import read_lines, readable
from llmops.data.formats import Raw
from llmops.errors import DataError
from llmops.records import Dropped

CHUNK_CHARACTERS = 1 << 20
MAX_ROW_CHARACTERS = 1 << 26


def read_array(path: Path, name: str) -> Iterator[Raw | Dropped]:
    """Every element of the array in a JSON file, in memory one after the other; rows are counted from 1.

    Raises:
        DataError: the file cannot be read, is no array, or breaks off: what follows a fault cannot be told apart.
    """
    with readable(path):
        try:
            with path.open(encoding="utf-8-sig") as file:
                text = _Text(file, path)
                first = text.peek()
                if first == "[":
                    text.position += 1
                    yield from _elements(text, name)
                    return
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if first != "{":
        raise DataError(f"{path}: is neither an array of rows nor JSON lines; write [ row, row, ... ]")
    yield from _lines(path, name)


def _elements(text: _Text, name: str) -> Iterator[Raw | Dropped]:
    n_read = 0
    while text.peek() != "]":
        value = text.value(n_read + 1)
        n_read += 1
        yield Raw(value, f"{name}:{n_read}")
        mark = text.peek()
        if mark == ",":
            text.position += 1
            if text.peek() == "]":
                raise text.fault(n_read, "a comma before the closing bracket")
        elif mark != "]":
            raise text.fault(n_read, "no comma after it" if mark else "the file breaks off after it")
    text.position += 1
    if text.peek():
        raise text.fault(n_read, "something follows the array")


def _lines(path: Path, name: str) -> Iterator[Raw | Dropped]:
    rows = read_lines(path, name)
    first = next(rows)
    if isinstance(first, Dropped):
        raise DataError(
            f"{path}: holds one object, not rows ({first.reason}); write an array of rows, or one object a line"
        )
    yield first
    yield from rows


class _Text:
    """A window on a JSON text that moves forward."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self.path, self.position = path, 0
        self._file, self._window, self._ended = file, "", False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, without taking it; empty at the end."""
        while True:
            while self.position < len(self._window):
                if not self._window[self.position].isspace():
                    return self._window[self.position]
                self.position += 1
            if not self._more():
                return ""

    def value(self, number: int) -> object:
        """The JSON value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self.position)
                # What ends with the window might go on: a number, for one.
                if end < len(self._window) or not self._more():
                    self.position = end
                    found: object = value
                    return found
            except RecursionError:
                raise self.fault(number, "nested too deeply") from None
            except ValueError as error:
                if len(self._window) - self.position > MAX_ROW_CHARACTERS or not self._more():
                    raise self.fault(number, str(getattr(error, "msg", error))) from None

    def fault(self, number: int, what: str) -> DataError:
        """What is said of a text that goes on in no way that JSON could."""
        return DataError(
            f"{self.path}:{number}: malformed JSON: {what}; mend the file, no row after it can be read"
        )

    def _more(self) -> bool:
        """Read on, at least as much as is unread already; False at the end."""
        if self._ended:
            return False
        rest = self._window[self.position :]
        chunk = self._file.read(max(CHUNK_CHARACTERS, len(rest)))
        self._ended = not chunk
        self._window, self.position = rest + chunk, 0
        return bool(chunk)
