"""The command line without a process of its own: the same `main`, in the folder that is given."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest.mock import patch

from llmops.cli import main
from tests.loop import Done


def llmops(folder: Path, *arguments: str) -> Done:
    """Run `llmops` in `folder` and say how it ended."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            patch.object(sys, "argv", ["llmops", *arguments]),
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
