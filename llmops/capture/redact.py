"""Texts with things taken out: by the profile's rules, and by presidio's recognisers where they are asked for.

A text that cannot be redacted is never kept: whoever asks drops it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import regex

from llmops.capture.config import CaptureSettings
from llmops.data.quality import pii
from llmops.data.quality.config import Pii
from llmops.errors import ConfigError

TIMEOUT_S = 0.5
_NO_TEXT = ("role", "type", "id", "tool_call_id", "finish_reason")
"""Fields of turns and answers that are names, not text."""


class NotRedacted(Exception):
    """A rule failed, or did not come to an end in time, so that nobody knows what the text still holds."""


class Redactor:
    """The rules of one profile."""

    def __init__(self, settings: CaptureSettings) -> None:
        """Compile the rules.

        Raises:
            ConfigError: `personal_data: on`, and presidio is not installed.
        """
        self._rules = [(regex.compile(rule.pattern), f"<{rule.name}>") for rule in settings.redact]
        if settings.personal_data == "on" and not pii.installed():
            raise ConfigError(f"capture.personal_data: needs presidio-analyzer; {pii.INSTALL}")
        wanted = settings.personal_data != "off" and settings.on and pii.installed()
        self._find: Callable[[str], list[pii.Span]] | None = (
            (lambda text: pii.spans_of(text, Pii())) if wanted else None
        )

    def load(self) -> None:
        """Import what the recognisers need, which takes seconds, before the first text comes."""
        if self._find is not None:
            self._find("a@example.com +1 212 555 0100 4111 1111 1111 1111 8.8.8.8 DE89370400440532013000")

    def text(self, text: str) -> tuple[str, int]:
        """The text with every finding replaced by a name in angle brackets, and how many there were.

        Raises:
            NotRedacted: a rule took too long.
        """
        n_found = 0
        for rule, name in self._rules:
            try:
                text, n = rule.subn(name, text, timeout=TIMEOUT_S, concurrent=True)
            except TimeoutError:
                raise NotRedacted(name) from None
            n_found += n
        for span in reversed(self._personal(text)):
            text = f"{text[: span.start]}<{span.entity}>{text[span.end :]}"
            n_found += 1
        return text, n_found

    def _personal(self, text: str) -> list[pii.Span]:
        if self._find is None:
            return []
        try:
            return self._find(text)
        except Exception as error:
            raise NotRedacted(f"personal_data ({error})") from error

    def value(self, value: Any) -> tuple[Any, int]:
        """A JSON value with every text in it redacted, keys and names of roles aside.

        Raises:
            NotRedacted: a rule took too long.
        """
        if not self._rules and self._find is None:
            return value, 0
        n_found = 0

        def walk(value: Any) -> Any:
            nonlocal n_found
            if isinstance(value, str):
                value, n = self.text(value)
                n_found += n
            elif isinstance(value, list):
                return [walk(one) for one in value]
            elif isinstance(value, dict):
                return {k: v if k in _NO_TEXT else walk(v) for k, v in value.items()}
            return value

        return walk(value), n_found
