"""What holds of the code as a whole: the layers, what importing and `--help` load, and the shape of every command."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

import llmops
from llmops.cli.commands import app

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "gradio",
    "mlflow",
    "datasets",
    "vllm",
    "matplotlib",
    "opentelemetry",
    "llguidance",
    "accelerate",
)


def _commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_help_text_loads_a_heavy_library() -> None:
    """Every command's `--help` runs in one child, which then tells what is in sys.modules."""
    code = f"""
import contextlib, io, json, sys, typer
import llmops
from llmops.cli.commands import app
command = typer.main.get_command(app)
for path in {_commands()!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        command([*path, "--help"])
    assert "Usage" in out.getvalue(), path
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in {HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_every_command_and_option_says_what_it_does() -> None:
    def walk(command: click.Command, path: str) -> None:
        assert command.help, path
        for parameter in command.params:
            if parameter.name != "help":
                assert getattr(parameter, "help", None), f"{path} {parameter.name}"
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")

    walk(typer.main.get_command(app), "llmops")


def test_version_is_the_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmops.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == llmops.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", llmops.__version__)


def test_every_public_function_and_class_is_documented() -> None:
    bare = []
    for path in sorted((ROOT / "llmops").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if (
                named
                and not node.name.startswith("_")
                and ast.get_docstring(node) is None
                and _at_top(path, node)
            ):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert bare == []


def _at_top(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether the definition stands in a module or class body (helpers inside a function need no docstring)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [tree.body, *(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]
    return any(n.lineno == node.lineno for body in bodies for n in body if hasattr(n, "lineno"))


@pytest.mark.parametrize("word", ["todo", "fixme", "xxx"])
def test_nothing_unfinished_is_left_in_the_source(word: str) -> None:
    hits = [
        p
        for p in (ROOT / "llmops").rglob("*.py")
        if re.search(rf"#.*\b{word}\b", p.read_text(), re.IGNORECASE)
    ]
    assert hits == []
