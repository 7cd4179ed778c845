"""A workspace with one registered adapter, and the command line run inside this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import LlmopsError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.settings import Workspace


@dataclass(frozen=True)
class Said:
    """What a command printed, the code it would end with, and its error's one line."""

    code: int
    out: str
    error: str


@dataclass(frozen=True)
class Shop:
    """A workspace, its base model, and an adapter `docs` that was let in through the importer."""

    workspace: Workspace
    base: Path
    adapter: Path  # the PEFT folder it came from
    record: AdapterRecord

    @property
    def root(self) -> Path:
        return self.workspace.root

    @property
    def registry(self) -> Registry:
        return Registry.of(self.workspace)

    def events(self, kind: str) -> list[dict[str, object]]:
        return [event.body for event in self.registry.ledger.events(kind)]  # type: ignore[arg-type]


def llmops(*words: object) -> Said:
    """A command line, run in this process; a deliberate error ends it with that error's code."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    error = found.exception
    if error is not None and not isinstance(error, LlmopsError | SystemExit):
        raise error
    code = error.exit_code if isinstance(error, LlmopsError) else found.exit_code
    return Said(code, found.stdout, str(error) if isinstance(error, LlmopsError) else found.stderr)
