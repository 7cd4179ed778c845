"""Running a user's builder function: `file.py::function`, a generator of plain dictionaries.

The file is loaded by path, not imported by name, and its bytes are hashed into the config's digest.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmops.data.config import BuilderSource
from llmops.data.quarantine import kept_text
from llmops.data.rows import parse_row
from llmops.errors import ConfigError, DataError
from llmops.records import Dropped, Row


def builder_file(source: BuilderSource, folder: Path) -> Path:
    """The file a builder source names, relative to `folder`.

    Raises:
        ConfigError: it is not there.
    """
    path = folder / source.function.rpartition("::")[0]
    if not path.is_file():
        raise ConfigError(f"{path}: no such builder file; correct source.function")
    return path


def run_builder(source: BuilderSource, folder: Path) -> Iterator[Row | Dropped]:
    """Every row the builder yields, checked as rows of a file are.

    Raises:
        ConfigError: the file does not load, or the function is missing or takes other options.
        DataError: the function fails; names how many rows it had given.
    """
    function = load_function(
        builder_file(source, folder), source.function.rpartition("::")[2], "source.function"
    )
    try:
        inspect.signature(function).bind(**source.options)
    except TypeError as error:
        known = ", ".join(inspect.signature(function).parameters)
        raise ConfigError(
            f"{source.function}: options {dict(source.options)}: {error}; known: {known}"
        ) from None
    n_read = 0
    try:
        for data in function(**source.options):
            n_read += 1
            yield _row(data, f"{source.function}:{n_read}")
    except DataError:
        raise
    except Exception as error:  # a user's code may raise anything; their own words are the message
        raise DataError(
            f"{source.function}: failed after {n_read:,} rows ({type(error).__name__}: {error}); "
            "mend the builder or its options"
        ) from error


def _row(data: object, fallback: str) -> Row | Dropped:
    if not isinstance(data, dict):
        return Dropped(fallback, f"not an object: {type(data).__name__}")
    source = data.get("source")
    if not isinstance(source, str) or not source:
        return Dropped(fallback, "no source: every row of a builder names its file:line")
    if "dropped" in data:
        return Dropped(source, str(data["dropped"]))
    found = parse_row(data, source)
    return kept_text(found, data) if isinstance(found, Dropped) else found


def load_function(path: Path, name: str, setting: str) -> Callable[..., Any]:
    """A user's function, from its file; nothing is imported by name.

    Args:
        path: the Python file, which is run.
        name: the function in it.
        setting: what names it, for messages.

    Raises:
        ConfigError: the file does not load, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"llmops_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is not a Python file; correct {setting}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as above
        raise ConfigError(f"{path}: does not load ({type(error).__name__}: {error}); mend it") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{path}: has no function {name}; correct {setting}")
    checked: Callable[..., Any] = function
    return checked
