"""Token ids to text while they arrive: never half a character, never part of a stop string.

The whole answer of a request that does not stream is the concatenation of the same pieces, so both agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_HELD_REPLACEMENTS = 3
"""What an unfinished UTF-8 character can show as (three only with byte-fallback tokenizers)."""

N_PRIMING_TOKENS = 5


class Decoder(Protocol):
    """The one tokenizer method needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of `token_ids`."""
        ...


class TextStream:
    """Turns the token ids of one answer into text pieces.

    The prompt's last tokens are context for the first piece: a sentencepiece tokenizer drops the leading
    space of a sequence, and an answer that continues a text begins in the middle of one (as in vLLM's
    detokenizer).
    """

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int], skip_special_tokens: bool) -> None:
        """Start after `prompt_ids`; with `skip_special_tokens` specials leave no text."""
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._window = list(prompt_ids[-N_PRIMING_TOKENS:])
        if self._decode(self._window).endswith(REPLACEMENT):
            self._window = []
        self._n_read = len(self._window)
        self._n_sent_chars = len(self._decode(self._window))

    def push(self, token_id: int) -> str:
        """Add one token and return the text that can no longer change, possibly empty."""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = len(text) - len(text.rstrip(REPLACEMENT))
        piece = text[self._n_sent_chars : len(text) - min(held, MAX_HELD_REPLACEMENTS)]
        self._n_sent_chars += len(piece)
        if piece and not held:
            self._slide()
        return piece

    def flush(self) -> str:
        """Return the text still held back (an unfinished character as a replacement character)."""
        text = self._decode(self._window)
        piece = text[self._n_sent_chars :]
        self._n_sent_chars += len(piece)
        return piece

    def _slide(self) -> None:
        """Forget tokens whose text cannot influence what follows: keep the newest piece as context."""
        self._window = self._window[self._n_read :]
        self._n_read = len(self._window)
        self._n_sent_chars = len(self._decode(self._window))

    def _decode(self, token_ids: list[int]) -> str:
        return self._decoder.decode(token_ids, skip_special_tokens=self._skip) if token_ids else ""


class StopScanner:
    """Passes text through until a stop string completes; what might begin one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for any of `stops` (each non-empty)."""
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Return text safe to send; on a match sets `found` and drops the stop string and what follows."""
        if not self._stops:
            return piece
        text = self._held + piece
        matches = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            at, self.found = min(matches)
            self._held = ""
            return text[:at]
        n_held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Return what was held back: the answer ended without completing a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
