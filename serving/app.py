"""The gateway for an ASGI server of your own: `uvicorn --factory serving.app:build --port 8000`.

`llmops serve serving/local.yaml` does the same and more: it picks the port, stops cleanly and exits with a
code that says why. LLMOPS_PROFILE names another profile than serving/local.yaml. One process only: no
--workers.
"""

from __future__ import annotations

import os
from pathlib import Path

from llmops.serving.app import Gateway
from llmops.serving.profile import load_profile
from llmops.serving.server import build_app
from llmops.settings import find_workspace


def build() -> Gateway:
    """The gateway of the workspace around the current folder."""
    workspace = find_workspace()
    return build_app(load_profile(Path(os.environ.get("LLMOPS_PROFILE", "serving/local.yaml"))), workspace)
