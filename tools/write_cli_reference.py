"""Write docs/cli.md: the `--help` text of every command, so that readers see it without installing anything.

Run by `make docs`; a test compares the file with what this makes.
"""

from __future__ import annotations

from pathlib import Path

import click
import typer
from click.testing import CliRunner

from llmops.cli.commands import app

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100


def reference() -> str:
    """The whole page as Markdown."""
    root = typer.main.get_command(app)
    parts = ["# Command line\n\nWritten by `make docs` from the commands themselves.\n"]

    def add(command: click.Command, path: tuple[str, ...]) -> None:
        result = CliRunner().invoke(
            root, [*path, "--help"], prog_name="llmops", terminal_width=WIDTH, env={"COLUMNS": "100"}
        )
        title = " ".join(("llmops", *path))
        parts.append(f"\n## {title}\n\n```text\n{result.output.strip()}\n```\n")
        for name, child in getattr(command, "commands", {}).items():
            add(child, (*path, name))

    add(root, ())
    return "".join(parts)


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(reference(), encoding="utf-8")
