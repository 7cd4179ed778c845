"""How the training libraries behave inside llmops: no telemetry, no chatter. Imports none of the heavy ones itself."""

from __future__ import annotations

import logging
import os

_NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
_CHATTY = ("bitsandbytes.backends.cpu.ops",)  # warns of a missing optional kernel whenever PEFT is imported


def quiet_libraries() -> None:
    """Turn telemetry off and progress bars and warnings that say nothing about the run; call before importing PEFT."""
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
