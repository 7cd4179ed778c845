"""Files of other programs beside the schemas that check-jsonschema carries of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def refusal(schema: str, path: Path) -> str:
    """What a file's schema says against it; empty where it fits."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr
