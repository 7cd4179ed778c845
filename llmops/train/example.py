"""One encoded row, in memory or read back from the disk."""

from __future__ import annotations

from dataclasses import dataclass

from llmops.chat import Encoded


@dataclass(frozen=True)
class Example:
    """One row as the trainer sees it."""

    encoded: Encoded
    group: str
    source: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The whole row, as the model reads it."""
        return self.encoded.input_ids

    @property
    def n_tokens(self) -> int:
        """Length in tokens."""
        return len(self.encoded.input_ids)
