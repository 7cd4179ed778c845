"""Tool calls in an answer's text, as models of the Hermes family write them (Qwen, SmolLM3 and others):
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Text that only looks like one stays text.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import orjson

OPENING = "<tool_call>"
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text without its calls, and the calls in OpenAI's shape.

    >>> text, calls = split_calls('Well.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    >>> text, calls[0]["function"]
    ('Well.', {'name': 'add', 'arguments': '{"a":1}'})
    """
    calls: list[dict[str, Any]] = []

    def take(match: re.Match[str]) -> str:
        try:
            data = orjson.loads(match[1])
            function = {
                "name": str(data["name"]),
                "arguments": orjson.dumps(data.get("arguments", {})).decode(),
            }
        except (orjson.JSONDecodeError, KeyError):
            return match[0]
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        return ""

    rest = _CALL.sub(take, text)
    return (rest.strip() if calls else text), calls


class CallScanner:
    """Passes the text of a stream on up to where a call may begin; the rest is held until the answer ends."""

    def __init__(self) -> None:
        """Begin with nothing held."""
        self._held = ""

    def push(self, piece: str) -> str:
        """Text that can be sent."""
        text = self._held + piece
        at = text.find(OPENING)
        if at < 0:
            at = len(text) - _overlap(text)
        self._held = text[at:]
        return text[:at]

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """What was held: text, and calls."""
        held, self._held = self._held, ""
        return split_calls(held)


def _overlap(text: str) -> int:
    """Length of the longest beginning of a call's mark that ends the text."""
    return next((n for n in range(len(OPENING) - 1, 0, -1) if text.endswith(OPENING[:n])), 0)
