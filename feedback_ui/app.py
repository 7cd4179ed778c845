"""The rating page: `gradio feedback_ui/app.py` or `python feedback_ui/app.py`, from inside the workspace.

Shows the campaign that `LLMOPS_CAMPAIGN` names, else the newest open one, on port `GRADIO_SERVER_PORT` (default 7860).
"""

from __future__ import annotations

import os
import sys

from llmops.cli.evaluate import endpoint_of
from llmops.errors import LlmopsError
from llmops.feedback.address import Address
from llmops.feedback.page import serve_page
from llmops.settings import find_workspace

if __name__ == "__main__":
    try:
        workspace = find_workspace()
        serve_page(
            workspace,
            os.environ.get("LLMOPS_CAMPAIGN"),
            Address(int(os.environ.get("GRADIO_SERVER_PORT", "7860"))),
            lambda url: print(f"rating page  {url}", flush=True),
            lambda: endpoint_of(workspace),
        )
    except LlmopsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
