"""Builds rows "function source -> first sentence of its docstring" from Python source on this machine.

Run through `llmops data build data/docstrings.yaml`. Stands alone: it imports nothing but the standard
library. Rows come in a fixed order, name files relative to the source root, and hold no path of this machine.
Functions outside the limits are not rows of this task; a file that cannot be read or parsed is handed on as
dropped, with the reason.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

INSTRUCTION = "Say in one sentence what this Python function does."

# Tests describe their own cases, not behaviour; lib2to3 and idlelib are gone or optional in other builds of
# Python, and a vendored or generated folder is not the standard library's own text.
EXCLUDED = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
}
EXCLUDED_PREFIXES = (".", "config-")

SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z`'\"(]|$)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def rows(
    root: str = "stdlib", min_lines: int = 3, max_lines: int = 40, min_words: int = 4, max_words: int = 30
) -> Iterator[dict[str, object]]:
    """Rows `{"messages", "group", "source"}`, or `{"dropped", "source"}` for a file that cannot be used.

    `root` is `stdlib`, `package:NAME` for an installed package, or a folder (relative to this file). Lines
    are counted without the docstring, words in the answer. The group is the top-level module, so near-copies
    stay together.
    """
    folder = find_root(root)
    for path in source_files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            text = path.read_bytes().decode("utf-8")
            functions = list(documented_functions(ast.parse(text)))
        except (SyntaxError, ValueError) as error:
            yield {
                "dropped": f"not Python: {type(error).__name__}",
                "source": f"{name}:{getattr(error, 'lineno', None) or 1}",
            }
            continue
        lines = text.split("\n")
        for function in functions:
            code, answer = (
                without_docstring(lines, function),
                first_sentence(ast.get_docstring(function) or ""),
            )
            fits = (
                min_lines <= code.count("\n") + 1 <= max_lines
                and min_words <= len(answer.split()) <= max_words
            )
            if fits and not is_signature(answer):
                yield row(code, answer, name, function.lineno)


def row(code: str, answer: str, name: str, line: int) -> dict[str, object]:
    """One conversation: the instruction with the code, answered by the sentence."""
    messages = [
        {"role": "user", "content": f"{INSTRUCTION}\n\n{code}"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "group": name.split("/")[0].removesuffix(".py"), "source": f"{name}:{line}"}


def find_root(root: str) -> Path:
    """The folder of source files that `root` names.

    Raises:
        ValueError: no such package or folder.
    """
    if root == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    if root.startswith("package:"):
        found = importlib.util.find_spec(root.removeprefix("package:"))
        if found is None or not found.submodule_search_locations:
            raise ValueError(f"root {root}: no such installed package")
        return Path(found.submodule_search_locations[0])
    folder = Path(__file__).parent / root
    if not folder.is_dir():
        raise ValueError(f"root {root}: no such folder")
    return folder


def source_files(folder: Path) -> list[Path]:
    """Python files below `folder`, sorted by their relative name, without the excluded folders."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if path.is_file())
    return [folder / name for name in names if not any(excluded(part) for part in name.split("/"))]


def excluded(part: str) -> bool:
    """Whether a file or folder name keeps a path out."""
    return part in EXCLUDED or part.startswith(EXCLUDED_PREFIXES)


def documented_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions and methods that have a docstring and a body besides it, in the order they are written."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, Function) and ast.get_docstring(node) and len(node.body) > 1
    ]
    return iter(sorted(found, key=lambda node: (node.lineno, node.col_offset)))


def without_docstring(lines: list[str], function: Function) -> str:
    """The function's source, decorators first, dedented, its docstring's lines taken out."""
    start = min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1
    docstring = function.body[0]
    kept = lines[start : docstring.lineno - 1] + lines[docstring.end_lineno : function.end_lineno]
    return textwrap.dedent("\n".join(line.rstrip() for line in kept)).strip("\n")


def is_signature(answer: str) -> bool:
    """Whether a docstring opens with a call or a doctest (`get(key) -> value`), not with a sentence."""
    first = answer.split(maxsplit=1)[0]
    return "(" in first.lstrip("(") or answer.startswith(">>>")


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line.

    >>> first_sentence("Return x, e.g. 3. Nothing more.")
    'Return x, e.g. 3.'
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    end = SENTENCE_END.search(paragraph)
    return paragraph[: end.end()] if end else paragraph
