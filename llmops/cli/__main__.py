"""`llmops`, and `python -m llmops.cli` for children of the same interpreter: what stands around every command."""

from __future__ import annotations

import os
import sys
import traceback

from llmops.errors import EXIT_COULD_NOT_RUN, LlmopsError
from llmops.train.memory.heap import begin_again

TRAINING = ("finetune", "reproduce", "verify-resume")
"""Commands that train in their own process, or in children that inherit its environment."""


def main() -> None:
    """Run the command line; every deliberate error is one line on stderr and its documented exit code."""
    # Set before any library is imported: none of them may call home.
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
        "MLFLOW_DISABLE_TELEMETRY",
        "VLLM_NO_USAGE_STATS",
    ):
        os.environ.setdefault(name, "true" if name.startswith("MLFLOW") else "1")
    begin_again(TRAINING)
    try:
        # Takes a second: a process that begins again would take it twice.
        from llmops.cli.commands import app

        app()
    except LlmopsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # A crash must not end with Python's 1: that code says the gate decided against a model.
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        print(f"error: llmops: {said}; this is a fault of llmops, please report it", file=sys.stderr)
        sys.exit(EXIT_COULD_NOT_RUN)


if __name__ == "__main__":
    main()
