"""Parsing a command line as the program would, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from llmops.cli.commands import app


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The values that `llmops` WORDS gives to its command's parameters, by name.

    Raises:
        SystemExit or a usage error of the parser: the words are not such a command.
    """
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="llmops")
    rest = list(words)
    while hasattr(command, "resolve_command"):
        command.parse_args(context, rest)  # where a group puts in the command that may go unnamed
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, words
        command, context = found, found.context_class(found, info_name=name, parent=context)
    values: dict[str, Any] = command.make_context(str(context.info_name), rest, parent=context.parent).params
    return values
