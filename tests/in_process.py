"""The command line without a process of its own: the same `main`, in the folder that is given."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

from llmops.cli.__main__ import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def llmops(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, typed: TextIO | None = None
) -> Done:
    """Run `llmops` in `folder` and say how it ended; `env` replaces all variables, `typed` the terminal."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            patch.dict(os.environ, os.environ if env is None else env, clear=True),
            patch.object(sys, "argv", ["llmops", *arguments]),
            patch.object(sys, "stdin", typed or sys.stdin),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
                code = 0
            except SystemExit as done:
                code = done.code if isinstance(done.code, int) else int(done.code is not None)
    finally:
        os.chdir(before)
    return Done(code, out.getvalue(), err.getvalue())
