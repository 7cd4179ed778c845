"""The example's YAML files made into those of another dataset, line by line, so that true comments stay.

Text in, text out. A setting that is not there is an error: the files and what is changed in them cannot drift apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import yaml

from llmops.errors import CouldNotRun

EXAMPLE = "docstrings"
"""Name of the dataset, recipe, suite and gate that are shipped."""
# What a comment says with these words was seen on the example's data.
_ABOUT_EXAMPLE = re.compile(
    r"docstring|standard library|\b(modules?|functions?|code)\b|Python|measured|\d ?%", re.I
)
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./=@+-]*(:[A-Za-z0-9_./=@+-]+)*")


def renamed(text: str, name: str) -> str:
    """The text with the example's name replaced wherever it stands as a word (`docstrings-sft`, not `docstring`)."""
    return re.sub(rf"\b{EXAMPLE}\b", name, text)


def without_example_comments(text: str) -> str:
    """The YAML text without comments about the example's data; its first line, the command, always stays.

    Lines of comment that follow each other are one comment: they stay or go together.
    """
    first, *rest = text.splitlines()
    kept, block = [first], list[str]()
    for line in [*rest, ""]:
        if line.lstrip().startswith("#"):
            block.append(line)
            continue
        if not _ABOUT_EXAMPLE.search(" ".join(block)):
            kept += block
        block = []
        value, mark, note = line.partition(" #")
        kept.append(value.rstrip() if mark and _ABOUT_EXAMPLE.search(note) else line)
    return "\n".join(kept).rstrip("\n") + "\n"


def with_values(text: str, values: Mapping[str, object], where: str) -> str:
    """The YAML text with settings changed, each of which must stand alone on exactly one line, at any depth.

    A comment behind the value stays. Values are numbers, text, or lists and mappings of them (written in flow style).

    Raises:
        CouldNotRun: a setting is not in the text once (a fault of what is shipped).
    """
    for key, value in values.items():
        line = re.compile(rf"^( *{re.escape(key)}:) +[^#\n]*?( +#[^\n]*)?$", re.MULTILINE)
        text, n_found = line.subn(lambda m, v=value: f"{m[1]} {flow(v)}{m[2] or ''}", text)  # type: ignore[misc]
        if n_found != 1:
            raise CouldNotRun(
                f"{where}: has {n_found} lines `{key}: ...`, not 1; llmops is not whole, install it again"
            )
    return text


def with_block(text: str, key: str, value: object, where: str) -> str:
    """The YAML text with a top-level setting, whatever lies below it, replaced by one line.

    Raises:
        CouldNotRun: the setting is not in the text once (a fault of what is shipped).
    """
    block = re.compile(rf"^{re.escape(key)}:[^\n]*\n(?:[ -][^\n]*\n)*", re.MULTILINE)
    text, n_found = block.subn(lambda _: f"{key}: {flow(value)}\n", text)
    if n_found != 1:
        raise CouldNotRun(
            f"{where}: has {n_found} settings `{key}`, not 1; llmops is not whole, install it again"
        )
    return text


def flow(value: object) -> str:
    """A value as YAML on one line.

    >>> flow({"kind": "files", "paths": ["my rows.jsonl"], "n": 3})
    '{kind: files, paths: ["my rows.jsonl"], n: 3}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
